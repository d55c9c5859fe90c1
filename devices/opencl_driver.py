"""The OpenCL driver as the other modules see it: pyopencl, its errors, and the devices it lists.

Whoever imports this module gets DeviceError where pyopencl is missing, so import it only to open
an OpenCL device or to list them. A GPU that shares the computer's memory is preferred to one that
does not. A CPU under OpenCL (PoCL) computes no faster than the host's own kernels: it stands in for
an iGPU in tests, and is chosen only by a caller who asks for it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from aieflow.ops.errors import DeviceError
from aieflow.ops.opencl.launch import Traits

try:
    import pyopencl as cl
except ImportError as error:
    raise DeviceError(
        f"igpu: pyopencl cannot be imported ({error}): run `pip install 'aieflow[igpu]'`",
        "igpu",
    ) from error

__all__ = ["OpenClInfo", "choose", "cl", "list_devices", "naming", "refusal"]

Kind = Literal["GPU", "CPU", "other"]
CPU_NOTE = "(OpenCL on the CPU)"


@dataclass(frozen=True, slots=True)
class OpenClInfo:
    """One OpenCL device of this computer."""

    device: cl.Device
    platform: str
    name: str
    driver: str  # its version
    version: str  # of OpenCL
    kind: Kind
    nbytes: int  # of global memory
    is_unified: bool  # whether host and device share memory, as the driver says
    traits: Traits

    @property
    def identity(self) -> str:
        """Device and driver in one line; says so where the device is a CPU."""
        platform = "PoCL" if self.platform == "Portable Computing Language" else self.platform
        if self.kind == "CPU":
            name = self.name.removeprefix("pthread-").removeprefix("cpu-")
            return f"{platform} {self.driver} on {name} {CPU_NOTE}"
        return f"{self.name} by {platform} {self.driver}"


def refusal(message: str) -> DeviceError:
    """The error of this device that says `message`."""
    return DeviceError(f"igpu: {message}", "igpu")


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn an error of the driver into a DeviceError that says what was tried."""
    try:
        yield
    except cl.Error as error:
        raise refusal(f"{what}: {error}") from error


def describe(device: cl.Device) -> OpenClInfo:
    """What the driver says of a device; raises DeviceError."""
    with naming("asking for a device's properties"):
        return OpenClInfo(
            device,
            device.platform.name.strip(),
            device.name.strip(),
            device.driver_version.strip(),
            device.version.strip(),
            _kind(int(device.type)),
            int(device.global_mem_size),
            bool(device.host_unified_memory),
            _traits(device),
        )


def _kind(bits: int) -> Kind:
    if bits & int(cl.device_type.GPU):
        return "GPU"
    return "CPU" if bits & int(cl.device_type.CPU) else "other"


def _traits(device: cl.Device) -> Traits:
    return Traits(
        is_cpu=_kind(int(device.type)) == "CPU",
        local_nbytes=int(device.local_mem_size),
        max_group=int(device.max_work_group_size),
        compute_units=int(device.max_compute_units),
        vector_width=max(1, int(device.native_vector_width_float)),
        has_fp16="cl_khr_fp16" in device.extensions.split(),
    )


def list_devices() -> tuple[OpenClInfo, ...]:
    """Every device that can compile and run kernels; none where no driver is installed."""
    found: list[OpenClInfo] = []
    for platform in _platforms():
        try:
            devices = platform.get_devices()
        except cl.Error:  # a driver without a device says so by an error
            continue
        found += [describe(one) for one in devices if one.available and one.compiler_available]
    return tuple(found)


def choose(infos: Sequence[OpenClInfo], with_cpu: bool) -> OpenClInfo:
    """The first GPU with unified memory, else any GPU, else (`with_cpu`) the first CPU.

    Raises DeviceError that lists what there is.
    """
    gpus = [info for info in infos if info.kind == "GPU"]
    cpus = [info for info in infos if info.kind == "CPU"] if with_cpu else []
    for info in sorted(gpus, key=lambda gpu: not gpu.is_unified) + cpus:
        return info
    seen = "; ".join(info.identity for info in infos) or "no OpenCL device at all"
    raise refusal(f"no GPU among {seen}: install your GPU's OpenCL driver")


def _platforms() -> list[cl.Platform]:
    try:
        return list(cl.get_platforms())
    except cl.Error:  # the loader found no driver
        return []
