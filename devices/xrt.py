"""What aieflow uses of `pyxrt`, the Python module of AMD's XRT, as a type; and how to load it.

pyxrt is no wheel: it comes with XRT and is built for one version of Python. The emulator in
`xrt_emulator` has the same shape, so a device does not know which of the two it works with.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol, cast

from aieflow.devices.xrt_errors import xrt_error

Handle = Any  # an object of the binding that is only handed back to it
NEW, QUEUED, RUNNING, COMPLETED, ERROR, ABORT, SUBMITTED, TIMEOUT, NORESPONSE = range(1, 10)
PENDING = frozenset({NEW, QUEUED, RUNNING, SUBMITTED})  # states of a command that has not ended


class XrtBuffer(Protocol):
    """`bo`."""

    def size(self) -> int:
        """Size in bytes."""
        ...

    def map(self) -> memoryview:
        """The host side."""
        ...

    def sync(self, direction: Handle, size: int, offset: int, /) -> None:
        """Bring a range to the other side."""
        ...


class XrtBufferType(Protocol):
    """The class `bo`: constructors, and the flags that are its attributes."""

    @property
    def cacheable(self) -> Handle:
        """Flag of instruction buffers."""
        ...

    @property
    def host_only(self) -> Handle:
        """Flag of data buffers."""
        ...

    def __call__(self, *arguments: Handle) -> XrtBuffer:
        """`(device, size, flags, group)` or `(parent, size, offset)`."""
        ...


class XrtKernelInfo(Protocol):
    """`xclbin.xclbinkernel`."""

    def get_name(self) -> str:
        """The kernel's name."""
        ...

    def get_num_args(self) -> int:
        """The number of its arguments."""
        ...


class XrtXclbin(Protocol):
    """`xclbin`."""

    def get_uuid(self) -> Handle:
        """What `hw_context` is given."""
        ...

    def get_kernels(self) -> Sequence[XrtKernelInfo]:
        """The kernels in it."""
        ...


class XrtDevice(Protocol):
    """`device`."""

    def register_xclbin(self, xclbin: Handle, /) -> Handle:
        """Make an xclbin known."""
        ...

    def get_info(self, key: Handle, /) -> str:
        """Name and the like."""
        ...


class XrtKernel(Protocol):
    """`kernel`."""

    def group_id(self, index: int, /) -> int:
        """Where buffers for an argument must lie; never a constant."""
        ...


class XrtRun(Protocol):
    """`run`. `wait` is left out on purpose: it holds the GIL and ignores time-outs."""

    def set_arg(self, index: int, value: Handle, /) -> None:
        """Give an argument: a buffer or an int32; TypeError for anything else."""
        ...

    def start(self) -> None:
        """Begin."""
        ...

    def state(self) -> Handle:
        """Where it is; `int` of it is one of the states above."""
        ...


class Xrt(Protocol):
    """The module."""

    @property
    def bo(self) -> XrtBufferType:
        """Buffers."""
        ...

    @property
    def xclBOSyncDirection(self) -> Handle:  # noqa: N802  # pyxrt's name
        """`XCL_BO_SYNC_BO_TO_DEVICE` and `XCL_BO_SYNC_BO_FROM_DEVICE`."""
        ...

    @property
    def xrt_info_device(self) -> Handle:
        """Keys of `device.get_info`."""
        ...

    def device(self, index: int, /) -> XrtDevice:
        """Open a device."""
        ...

    def xclbin(self, path: str, /) -> XrtXclbin:
        """Read an xclbin."""
        ...

    def hw_context(self, device: Handle, uuid: Handle, /) -> Handle:
        """Set up the array."""
        ...

    def kernel(self, context: Handle, name: str, /) -> XrtKernel:
        """The kernel of that name."""
        ...

    def run(self, kernel: Handle, /) -> XrtRun:
        """A command."""
        ...


def load_pyxrt() -> Xrt:
    """The module; raises DeviceError with the remedy where it is missing or for another Python."""
    try:
        return cast(Xrt, import_module("pyxrt"))
    except (ImportError, RuntimeError) as error:
        raise xrt_error("importing pyxrt", error) from error
