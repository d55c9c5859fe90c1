"""Which devices this computer has, which of them work, and why the rest do not.

`survey` looks without changing anything, below a file system root that tests can choose. It says
of a device that does not work what is seen of its hardware and drivers, so that a user knows what
is missing. `open_device` hands out a device that works, or says why it does not. Modules that
import a driver (pyopencl, pyxrt) are imported only when such a device is asked for.
"""

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import llvmlite.binding
import platformdirs
import psutil
import threadpoolctl

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice, usable_cores
from aieflow.devices.igpu_survey import survey_igpu
from aieflow.devices.npu_survey import survey_npu
from aieflow.devices.opencl_folders import replace_unwritable
from aieflow.devices.surroundings import Finding, Surroundings, gib, read_text
from aieflow.ops.cpu.vector import has_wide_registers
from aieflow.ops.errors import DeviceError, InputError

if TYPE_CHECKING:
    from aieflow.devices.opencl_driver import OpenClInfo

DEVICES = ("cpu", "igpu", "npu")
# What of an instruction set decides how fast the kernels can be.
NOTED_FEATURES = (
    *("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512vnni", "avx512bf16"),
    *("avxvnni", "amx-tile", "amx-bf16", "neon", "fp-armv8", "dotprod", "bf16", "i8mm", "sve"),
)
LANES_PER_CORE = 4  # at most; more than one of them only shares the core


def here() -> Surroundings:
    """The computer as this process sees it."""
    return Surroundings(
        Path("/"),
        os.environ,
        is_installed=lambda module: find_spec(module) is not None,
        is_accessible=lambda file: os.access(file, os.R_OK | os.W_OK),
        opencl=_opencl_devices,
        python=sys.version_info[:2],
        locked_nbytes=_locked_nbytes(),
    )


def cache_folder() -> Path:
    """Where compiled OpenCL kernels are kept: a folder of the user's, which need not exist yet."""
    return platformdirs.user_cache_path("aieflow", appauthor=False) / "opencl"


def survey(
    surroundings: Surroundings | None = None, names: Iterable[str] = DEVICES
) -> tuple[Finding, ...]:
    """One finding for each device of `names`; raises nothing for what is absent.

    Only that of the iGPU imports pyopencl.
    """
    around = surroundings or here()
    surveys = {"cpu": _survey_cpu, "igpu": survey_igpu, "npu": survey_npu}
    return tuple(surveys[name](around) for name in names)


def open_device(
    name: str,
    lanes: int | None = None,
    *,
    cache: Path | None = None,
    xclbin: Path | None = None,
    allow_fp16: bool = False,
) -> Device:
    """The device called `name`.

    `lanes` are the CPU's compute lanes (default: one for each usable core), `cache` is a folder
    for the iGPU's compiled kernels (None: none are kept; see `cache_folder`), `xclbin` the NPU's
    design. `igpu` may be a CPU under OpenCL where there is no GPU: its identity says so.

    Raises InputError for a device that does not exist or does not open, with the driver's words,
    for lanes out of range, and for an NPU without a design.
    """
    if name not in DEVICES:
        raise InputError(f"no device is called {name!r}: there are {', '.join(DEVICES)}")
    try:
        if name == "igpu":
            return _open_igpu(cache, allow_fp16)
        if name == "npu":
            return _open_npu(xclbin)
    except DeviceError as error:
        words = str(error).removeprefix(f"{name}: ")
        raise InputError(
            f"{name} does not open: {words}; `aieflow devices` shows what is there and what is "
            "missing"
        ) from error
    most = LANES_PER_CORE * usable_cores()
    if lanes is not None and not 1 <= lanes <= most:
        raise InputError(
            f"--lanes = {lanes}: must be from 1 to {most}, {LANES_PER_CORE} for each usable core "
            f"of the {name}"
        )
    return CpuDevice(lanes, _cpu_name(here()))


def _open_igpu(cache: Path | None, allow_fp16: bool) -> Device:
    note = replace_unwritable(os.environ)
    from aieflow.devices.opencl_driver import choose, list_devices
    from aieflow.devices.opencl_tuning import open_tuned

    best = choose(list_devices(), with_cpu=True)
    if note is None:
        return open_tuned(best, cache, allow_fp16)
    return open_tuned(best, None, allow_fp16, [note])


def _open_npu(xclbin: Path | None) -> Device:
    if xclbin is None:
        raise InputError(
            "npu: needs a design: `--xclbin FILE` names one; `aieflow npu build` makes them where "
            "mlir-aie is installed"
        )
    from aieflow.devices.npu import NpuDevice
    from aieflow.devices.xclbin import read_design, read_xclbin
    from aieflow.devices.xrt import load_pyxrt

    design = read_design(read_xclbin(xclbin))
    return NpuDevice(load_pyxrt(), xclbin, design)


def _opencl_devices() -> "tuple[OpenClInfo, ...]":
    """All OpenCL devices, first the one that `open_device` opens, which is opened once to be sure.

    Raises DeviceError where pyopencl cannot be imported, or the device does not open.
    """
    replace_unwritable(os.environ)
    from aieflow.devices.opencl_driver import choose, list_devices

    found = list_devices()
    if not found:
        return ()
    best = choose(found, with_cpu=True)
    from aieflow.devices.opencl import OpenClDevice

    OpenClDevice(best.device).close()
    return best, *(each for each in found if each is not best)


def _locked_nbytes() -> int | None:
    """How much memory this process may lock; None: no limit, or none that can be told."""
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _survey_cpu(around: Surroundings) -> Finding:
    cores = usable_cores()
    memory = psutil.virtual_memory()
    facts = {
        "cores": f"{cores} usable, {psutil.cpu_count() or cores} in the computer",
        "memory": f"{gib(memory.total)}, {gib(memory.available)} free",
        "large products": "aieflow's own tiles" if has_wide_registers() else "through BLAS",
        "BLAS": describe_blas(threadpoolctl.threadpool_info()),
        "numba": f"{version('numba')} for {llvmlite.binding.get_host_cpu_name()}",
        "instructions": describe_instructions(llvmlite.binding.get_host_cpu_features()),
    }
    return Finding("cpu", True, _cpu_name(around), facts, is_automatic=True)


def _cpu_name(around: Surroundings) -> str:
    for line in read_text(around.path("/proc/cpuinfo")).splitlines():
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
