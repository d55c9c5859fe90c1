"""Which devices this computer has, which of them work, and why the rest do not.

`survey` looks without changing anything, below a file system root that tests can choose. It says
of a device that does not work what is seen of its hardware and drivers, so that a user knows what
is missing. `open_device` hands out a device that works, or says why it does not.
"""

import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import llvmlite.binding
import psutil
import threadpoolctl

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice, usable_cores
from aieflow.ops.errors import InputError

DEVICES = ("cpu", "igpu", "npu")
# What of an instruction set decides how fast the kernels can be.
NOTED_FEATURES = (
    *("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avx512bf16"),
    *("avxvnni", "amx-tile", "amx-bf16", "neon", "fp-armv8", "dotprod", "bf16", "i8mm", "sve"),
)
LANES_PER_CORE = 4  # at most; more than one of them only shares the core


@dataclass(frozen=True, slots=True)
class Finding:
    """What is known of one device of this computer."""

    device: str  # `cpu`, `igpu` or `npu`
    works: bool
    description: str  # what it is, or why it does not work
    facts: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a survey looks: a file system, the environment, the Python modules."""

    root: Path
    environment: Mapping[str, str]
    is_installed: Callable[[str], bool]  # by name of a module
    is_accessible: Callable[[Path], bool]  # to this user, for reading and writing

    def path(self, absolute: str) -> Path:
        """The place of an absolute path below the root."""
        return self.root / absolute.lstrip("/")


def here() -> Surroundings:
    """The computer as this process sees it."""
    return Surroundings(
        Path("/"),
        os.environ,
        is_installed=lambda module: find_spec(module) is not None,
        is_accessible=lambda file: os.access(file, os.R_OK | os.W_OK),
    )


def survey(surroundings: Surroundings | None = None) -> tuple[Finding, ...]:
    """One finding for each device, in the order of `DEVICES`; raises nothing for what is absent."""
    around = surroundings or here()
    return _cpu(around), _igpu(around), _npu(around)


def open_device(name: str, lanes: int | None = None) -> Device:
    """The device called `name`, with so many compute lanes (default: one for each usable core).

    Raises InputError for a device that does not exist or does not work, and for lanes out of range.
    """
    if name not in DEVICES:
        raise InputError(f"no device is called {name!r}: there are {', '.join(DEVICES)}")
    if name != "cpu":
        raise InputError(f"{name} does not work: {_no_device(name)}: use cpu")
    most = LANES_PER_CORE * usable_cores()
    if lanes is not None and not 1 <= lanes <= most:
        raise InputError(
            f"--lanes = {lanes}: must be from 1 to {most}, {LANES_PER_CORE} for each usable core "
            f"of the {name}"
        )
    return CpuDevice(lanes)


def _no_device(name: str) -> str:
    kind = {"igpu": "OpenCL", "npu": "NPU"}[name]
    return f"aieflow {version('aieflow')} has no {kind} device yet"


def _cpu(around: Surroundings) -> Finding:
    cores = usable_cores()
    memory = psutil.virtual_memory()
    facts = {
        "cores": f"{cores} usable, {psutil.cpu_count() or cores} in the computer",
        "memory": f"{_gib(memory.total)}, {_gib(memory.available)} free",
        "BLAS": describe_blas(threadpoolctl.threadpool_info()),
        "numba": f"{version('numba')} for {llvmlite.binding.get_host_cpu_name()}",
        "instructions": describe_instructions(llvmlite.binding.get_host_cpu_features()),
    }
    return Finding("cpu", True, _cpu_name(around), facts)


def _cpu_name(around: Surroundings) -> str:
    for line in _read(around.path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Hardware", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def describe_blas(libraries: Iterable[Mapping[str, object]]) -> str:
    """The BLAS libraries among what `threadpool_info` lists: name, version, kernels, threads."""
    found = []
    for library in libraries:
        if library.get("user_api") != "blas":
            continue
        details = [
            text.format(library[key])
            for key, text in (("architecture", "{} kernels"), ("threading_layer", "{}"))
            if library.get(key)
        ]
        name = f"{library.get('internal_api')} {library.get('version') or 'of unknown version'}"
        found.append(f"{name} ({', '.join(details)})" if details else name)
    return "; ".join(found) or "none that can be told: matrix products may be slow"


def describe_instructions(features: Mapping[str, bool]) -> str:
    """Those of a CPU's features that decide how fast the kernels can be."""
    return ", ".join(name for name in NOTED_FEATURES if features.get(name)) or "the plain set"


def _igpu(around: Surroundings) -> Finding:
    nodes = sorted(around.path("/dev/dri").glob("renderD*"))
    folder = _vendors_folder(around)
    drivers = [f"{icd.stem} ({_read(icd).strip()})" for icd in sorted(folder.glob("*.icd"))]
    facts = {
        "hardware": _accessible(nodes, around, "/sys/class/drm", "render")
        or "no render node in /dev/dri",
        "OpenCL drivers": ", ".join(drivers) or f"none in {_shown(folder, around)}",
        "pyopencl": _installed(around, "pyopencl"),
    }
    return Finding("igpu", False, _no_device("igpu"), facts)


def _vendors_folder(around: Surroundings) -> Path:
    """Where the OpenCL loader looks for drivers: two loaders, two variables, one default."""
    for variable in ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"):
        value = around.environment.get(variable)
        if value:
            return around.path(value)
    return around.path("/etc/OpenCL/vendors")


def _npu(around: Surroundings) -> Finding:
    nodes = sorted(around.path("/dev/accel").glob("accel*"))
    is_loaded = around.path("/sys/module/amdxdna").is_dir()
    xrt = around.path(around.environment.get("XILINX_XRT") or "/opt/xilinx/xrt")
    facts = {
        "hardware": _accessible(nodes, around, "/sys/class/accel", "render")
        or "no device node in /dev/accel",
        "driver": "amdxdna is loaded" if is_loaded else "amdxdna is not loaded",
        "XRT": f"in {_shown(xrt, around)}" if xrt.is_dir() else f"not in {_shown(xrt, around)}",
        "pyxrt": _installed(around, "pyxrt"),
    }
    return Finding("npu", False, _no_device("npu"), facts)


def _accessible(nodes: Iterable[Path], around: Surroundings, classes: str, group: str) -> str:
    """Each device node with its driver, and what hinders this user."""
    seen = []
    for node in nodes:
        link = around.path(f"{classes}/{node.name}/device/driver")
        driver = f" ({link.readlink().name})" if link.is_symlink() else ""
        hint = ""
        if not around.is_accessible(node):
            hint = f", not accessible to you: join the group {group}"
        seen.append(f"{_shown(node, around)}{driver}{hint}")
    return "; ".join(seen)


def _installed(around: Surroundings, module: str) -> str:
    return "installed" if around.is_installed(module) else "not installed"


def _shown(path: Path, around: Surroundings) -> str:
    return f"/{path.relative_to(around.root).as_posix()}"


def _read(file: Path) -> str:
    """The text of a small file; nothing where there is none."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB"
