"""The facts on which the speed of a device of this computer depends.

Where one of them changes, what was measured before is stale. The text of our own kernels is one of
them, by its hash.
"""

import hashlib
import importlib.metadata
from pathlib import Path

from aieflow.devices.base import Device
from aieflow.devices.power_supply import power_supply
from aieflow.devices.registry import here
from aieflow.devices.surroundings import Finding
from aieflow.ops import catalogue
from aieflow.profiles.measured import Fingerprint

OPS = Path(catalogue.__file__).parent
SOURCES = {"cpu": OPS / "cpu", "igpu": OPS / "opencl", "npu": OPS / "npu"}
LIBRARIES = {"cpu": ("numpy", "numba", "mkl"), "igpu": ("pyopencl",), "npu": ()}
# Of a finding's facts: not how much memory is free, say.
FACTS = {
    "cpu": ("cores", "BLAS", "instructions"),
    "igpu": ("platform", "driver", "version"),
    "npu": ("XRT", "firmware", "pyxrt"),
}


def power_source() -> str:
    """`mains`, `battery`, or `unknown` where there is nothing to tell it by."""
    return power_supply(here()).source


def fingerprint(device: Device, finding: Finding, power: str) -> Fingerprint:
    """The facts of an opened device; `finding` is what a survey says of it."""
    facts = {"model": finding.description, "identity": device.identity, "power": power}
    facts["lanes"] = str(len(device.lanes))
    for name in FACTS[device.name]:
        # libraries are listed in the order in which they were loaded, which varies
        facts[name] = "; ".join(sorted(finding.facts.get(name, "absent").split("; ")))
    for library in LIBRARIES[device.name]:
        facts[library] = _version(library)
    facts["kernels"] = source_hash(SOURCES[device.name])
    return facts


def source_hash(folder: Path) -> str:
    """The hash of the texts in a folder of kernels."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".py", ".cl"):
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
