"""A module shaped like pyxrt over XRT's own C library, with the driver of XRT's that does nothing.

Debian's `libxrt1` has XRT 2.13 without pyxrt, and a driver for tests, `noop`: buffers, groups,
arguments, runs and states are XRT's; nothing is executed and a sync moves nothing. So `Run.start`
computes on the mapped buffers, with the emulated array, what the instructions say, before it hands
the command to XRT. Every call of the library is counted. Needs `XCL_EMULATION_MODE=noop` and
`XILINX_XRT` in the environment, and everything closed before the process ends.
"""

import ctypes
from collections import Counter
from collections.abc import Mapping
from ctypes import c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from aieflow.devices import xrt_emulator_array
from aieflow.devices.xclbin import Xclbin, read_design, read_xclbin
from aieflow.ops.npu.instructions import decode

LIBRARY = "libxrt_coreutil.so.2"
HOST_ONLY, CACHEABLE = 1 << 29, 1 << 24
NAME = "emulated NPU Phoenix: XRT 2.13 with the noop driver"
SIGNATURES: Mapping[str, tuple[Any, tuple[Any, ...]]] = {
    "xrtDeviceOpen": (c_void_p, (c_uint,)),
    "xrtDeviceClose": (c_int, (c_void_p,)),
    "xrtDeviceLoadXclbinFile": (c_int, (c_void_p, ctypes.c_char_p)),
    "xrtDeviceGetXclbinUUID": (c_int, (c_void_p, ctypes.c_char_p)),
    "xrtPLKernelOpen": (c_void_p, (c_void_p, ctypes.c_char_p, ctypes.c_char_p)),
    "xrtKernelArgGroupId": (c_int, (c_void_p, c_int)),
    "xrtKernelClose": (c_int, (c_void_p,)),
    "xrtBOAlloc": (c_void_p, (c_void_p, c_size_t, c_uint64, c_uint)),
    "xrtBOSubAlloc": (c_void_p, (c_void_p, c_size_t, c_size_t)),
    "xrtBOMap": (c_void_p, (c_void_p,)),
    "xrtBOSize": (c_size_t, (c_void_p,)),
    "xrtBOSync": (c_int, (c_void_p, c_int, c_size_t, c_size_t)),
    "xrtBOFree": (c_int, (c_void_p,)),
    "xrtRunOpen": (c_void_p, (c_void_p,)),
    "xrtRunStart": (c_int, (c_void_p,)),
    "xrtRunState": (c_int, (c_void_p,)),
    "xrtRunClose": (c_int, (c_void_p,)),
    "xrtRunSetArg": (c_int, (c_void_p, c_int)),  # and one more, of any type
}


class Library:
    """The C functions: counted, and their failures as exceptions."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.log: list[str] = []
        self.groups: dict[int, int] = {}  # by argument: what XRT said
        self.allocated: set[tuple[int, int]] = set()  # flags and group
        self._library = ctypes.CDLL(LIBRARY)
        for name, (result, arguments) in SIGNATURES.items():
            function = getattr(self._library, name)
            function.restype = result
            function.argtypes = arguments

    def call(self, name: str, *arguments: Any) -> Any:  # noqa: ANN401
        self.counts[name] += 1
        if name not in ("xrtRunState", "xrtBOSync", "xrtBOMap"):
            self.log.append(name)
        result = getattr(self._library, name)(*arguments)
        kind = SIGNATURES[name][0]
        if (kind is c_void_p and not result) or (name != "xrtKernelArgGroupId" and result == -1):
            raise RuntimeError(f"{name} failed")
        return result


class Device:
    def __init__(self, library: Library, index: int) -> None:
        self.library = library
        self.handle = library.call("xrtDeviceOpen", index)
        self.files: dict[str, Path] = {}

    def get_info(self, key: object) -> str:
        return NAME

    def register_xclbin(self, xclbin: "XclbinFile") -> object:
        self.files[str(xclbin.content.uuid)] = xclbin.path
        return xclbin.get_uuid()

    def __del__(self) -> None:
        self.library.call("xrtDeviceClose", self.handle)


class XclbinFile:
    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.content: Xclbin = read_xclbin(self.path)

    def get_uuid(self) -> object:
        return self.content.uuid

    def get_kernels(self) -> list[SimpleNamespace]:
        arguments = len(self.content.arguments)
        return [
            SimpleNamespace(get_name=lambda: self.content.kernel, get_num_args=lambda: arguments)
        ]


class Context:
    """What 2.13 has in place of a hardware context: the device with the xclbin loaded."""

    def __init__(self, device: Device, uuid: object) -> None:
        self.device = device
        path = device.files[str(uuid)]
        self.content = read_xclbin(path)
        device.library.call("xrtDeviceLoadXclbinFile", device.handle, str(path).encode())
        self.uuid = ctypes.create_string_buffer(16)
        device.library.call("xrtDeviceGetXclbinUUID", device.handle, self.uuid)


class Kernel:
    def __init__(self, context: Context, name: str) -> None:
        self.context, self.library = context, context.device.library
        self.handle = self.library.call(
            "xrtPLKernelOpen", context.device.handle, context.uuid, name.encode()
        )

    def group_id(self, index: int) -> int:
        group = int(self.library.call("xrtKernelArgGroupId", self.handle, index))
        self.library.groups[index] = group
        return group

    def __del__(self) -> None:
        self.library.call("xrtKernelClose", self.handle)


class Buffer:
    """`bo`: of a device, or a range of another buffer."""

    def __init__(self, library: Library, *arguments: Any) -> None:  # noqa: ANN401
        self.library = library
        if isinstance(arguments[0], Device):
            self.parent: object = arguments[0]
            device, size, flags, group = arguments
            self.handle = library.call("xrtBOAlloc", device.handle, size, flags, group)
            library.allocated.add((flags, group))
        else:
            self.parent, size, offset = arguments
            self.handle = library.call("xrtBOSubAlloc", arguments[0].handle, size, offset)

    def size(self) -> int:
        return int(self.library.call("xrtBOSize", self.handle))

    def map(self) -> memoryview:
        address = self.library.call("xrtBOMap", self.handle)
        return memoryview((ctypes.c_uint8 * self.size()).from_address(address)).cast("B")

    def sync(self, direction: int, size: int, offset: int) -> None:
        self.library.call("xrtBOSync", self.handle, direction, size, offset)

    def __del__(self) -> None:
        if "handle" in vars(self):
            self.library.call("xrtBOFree", self.handle)


class Run:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel, self.library = kernel, kernel.library
        self.handle = self.library.call("xrtRunOpen", kernel.handle)
        self.arguments: dict[int, Any] = {}

    def set_arg(self, index: int, value: Any) -> None:  # noqa: ANN401
        if isinstance(value, Buffer):
            given: Any = c_void_p(value.handle)
        elif isinstance(value, int):
            given = c_uint64(value)
        else:
            raise TypeError(f"set_arg(): incompatible function arguments: {value!r}")
        self.arguments[index] = value
        self.library.call("xrtRunSetArg", self.handle, index, given)

    def start(self) -> None:
        """Compute, then hand the command to XRT, whose driver does nothing with it."""
        words = np.frombuffer(self.arguments[1].map(), np.uint8)[: self.arguments[2]]
        design = read_design(self.kernel.context.content)
        work = xrt_emulator_array.prepare(decode(words.copy().view(np.uint32)), design)
        sides = {
            place: np.frombuffer(self.arguments[3 + place].map(), np.uint8) for place in range(3)
        }
        xrt_emulator_array.execute(work, sides)
        self.library.call("xrtRunStart", self.handle)

    def state(self) -> int:
        return int(self.library.call("xrtRunState", self.handle))

    def __del__(self) -> None:
        self.library.call("xrtRunClose", self.handle)


class NoopXrt:
    """The module."""

    xclBOSyncDirection = SimpleNamespace(  # noqa: N815  # pyxrt's name
        XCL_BO_SYNC_BO_TO_DEVICE=0, XCL_BO_SYNC_BO_FROM_DEVICE=1
    )
    xrt_info_device = SimpleNamespace(name="name")

    def __init__(self) -> None:
        self.library = Library()
        library = self.library

        def bo(*arguments: Any) -> Buffer:  # noqa: ANN401
            return Buffer(library, *arguments)

        bo.host_only, bo.cacheable = HOST_ONLY, CACHEABLE  # type: ignore[attr-defined]  # as pyxrt
        self.bo: Any = bo

    def device(self, index: int) -> Device:
        return Device(self.library, index)

    def xclbin(self, path: str) -> XclbinFile:
        return XclbinFile(path)

    def hw_context(self, device: Device, uuid: object) -> Context:
        return Context(device, uuid)

    def kernel(self, context: Context, name: str) -> Kernel:
        return Kernel(context, name)

    def run(self, kernel: Kernel) -> Run:
        return Run(kernel)
