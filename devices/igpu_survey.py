"""What is known of the iGPU without running anything on it: drivers, OpenCL devices, permissions.

It works where OpenCL has a device that opens. A GPU is taken by `--devices auto`; a CPU under
OpenCL (PoCL) is not: it computes what a GPU would, no faster than the host's own kernels, so it
stands in for one only where the user names `igpu`.
"""

from collections.abc import Sequence
from pathlib import Path

from aieflow.devices.surroundings import (
    JOIN_RENDER,
    DeviceNode,
    Finding,
    OpenClDescription,
    Surroundings,
    describe_nodes,
    device_nodes,
    gib,
    read_text,
)
from aieflow.ops.errors import DeviceError

STAND_IN = "OpenCL on the CPU: a stand-in, chosen only by name (`--devices igpu`)"
NO_PYOPENCL = "pyopencl is not installed: run `pip install 'aieflow[igpu]'`"
# Packages of Debian and Ubuntu with an OpenCL driver, by the kernel's driver of the GPU.
PACKAGES = {
    "amdgpu": "mesa-opencl-icd or rocm-opencl-runtime",
    "i915": "intel-opencl-icd",
    "xe": "intel-opencl-icd",
    "nvidia": "nvidia-opencl-icd",
}
ANY_PACKAGE = "mesa-opencl-icd, rocm-opencl-runtime or what your GPU's maker offers"
# Mesa's rusticl shows no device unless told which of its drivers may.
RUSTICL_DRIVERS = {"amdgpu": "radeonsi", "i915": "iris", "xe": "iris", "nouveau": "nouveau"}


def survey_igpu(around: Surroundings) -> Finding:
    """The iGPU; imports pyopencl where it is installed, and opens the device once."""
    nodes = device_nodes(around, "/dev/dri", "renderD*", "/sys/class/drm")
    folder = vendors_folder(around)
    drivers = {icd.stem: read_text(icd).strip() for icd in sorted(folder.glob("*.icd"))}
    listed = ", ".join(f"{name} ({library})" for name, library in drivers.items())
    none = f"none in {around.shown(folder)}"
    facts = {
        "hardware": describe_nodes(nodes) or "no render node in /dev/dri",
        "OpenCL drivers": listed or none,
        "pyopencl": "installed" if around.is_installed("pyopencl") else "not installed",
    }
    if not around.is_installed("pyopencl"):
        facts["OpenCL drivers"] = listed or f"{none}: {_install(nodes)}"
        return Finding("igpu", False, NO_PYOPENCL, facts)
    try:
        found = around.opencl()
    except DeviceError as error:
        return Finding("igpu", False, str(error).removeprefix("igpu: "), facts)
    if not found:
        return Finding("igpu", False, _why_no_gpu(nodes, drivers, around), facts)
    facts["OpenCL drivers"] = listed or f"{none}; what is used came otherwise, as with pip"
    best, *others = found
    facts = describe_opencl(best) | facts
    if others:
        facts["also found"] = "; ".join(_in_one_line(each) for each in others)
    is_gpu = best.kind == "GPU"
    if not is_gpu:
        facts["use"] = STAND_IN
        if nodes:
            facts["GPU"] = _why_no_gpu(nodes, drivers, around)
    return Finding("igpu", True, best.identity, facts, is_automatic=is_gpu)


def vendors_folder(around: Surroundings) -> Path:
    """Where the OpenCL loader looks for drivers: two loaders, two variables, one default."""
    for variable in ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"):
        value = around.environment.get(variable)
        if value:
            return around.path(value)
    return around.path("/etc/OpenCL/vendors")


def describe_opencl(info: OpenClDescription) -> dict[str, str]:
    """The facts of an OpenCL device."""
    return {
        "platform": info.platform,
        "driver": info.driver,
        "version": info.version,
        "type": info.kind,
        "memory": _memory(info),
    }


def _in_one_line(info: OpenClDescription) -> str:
    return f"{info.identity} ({info.kind}, {info.version}, {_memory(info)})"


def _memory(info: OpenClDescription) -> str:
    shared = "unified with the computer's" if info.is_unified else "the device's own"
    return f"{gib(info.nbytes)}, {shared}"


def _why_no_gpu(nodes: Sequence[DeviceNode], drivers: dict[str, str], around: Surroundings) -> str:
    """Why OpenCL shows no GPU, and what to do."""
    if nodes and not any(node.is_accessible for node in nodes):
        return f"you may not open {', '.join(node.path for node in nodes)}: {JOIN_RENDER}"
    gpus = [RUSTICL_DRIVERS[node.driver] for node in nodes if node.driver in RUSTICL_DRIVERS]
    is_mute = not around.environment.get("RUSTICL_ENABLE")
    if gpus and is_mute and any("rusticl" in name.lower() for name in drivers):
        return (
            f"the OpenCL driver rusticl shows no GPU unless told to: set RUSTICL_ENABLE={gpus[0]}"
        )
    if not drivers:
        return f"no OpenCL driver is installed: {_install(nodes)}"
    return f"the OpenCL driver shows no GPU ({', '.join(drivers)}): {_install(nodes)}"


def _install(nodes: Sequence[DeviceNode]) -> str:
    if not nodes:
        return (
            f"for a GPU install {ANY_PACKAGE}; to try it on the CPU pocl-opencl-icd (names of "
            "Debian and Ubuntu)"
        )
    known = [PACKAGES[node.driver] for node in nodes if node.driver in PACKAGES]
    return f"install {known[0] if known else ANY_PACKAGE} (names of Debian and Ubuntu)"
