"""The NPU's buffers: persistent XRT buffer objects, found again by the address of an operand.

A buffer object lives as long as the memory it was handed out as (or until `close`). An operand may
be any range of a buffer; the array is then given a sub-buffer of the root buffer.
"""

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aieflow.devices.xrt import Handle, Xrt, XrtBuffer
from aieflow.devices.xrt_errors import xrt_error
from aieflow.ops.errors import DeviceError
from aieflow.ops.op import Array

CACHE_LINE = 64  # what a sync moves at once: a buffer's neighbours must not share one


@dataclass(frozen=True, slots=True)
class Range:
    """A part of a buffer object."""

    address: int  # of the buffer's host side
    offset: int
    nbytes: int


class NpuMemory:
    """Buffers of one device, all for kernel arguments of one memory group."""

    def __init__(self, xrt: Xrt, device: Handle, group: int, nbytes: int) -> None:
        self._xrt = xrt
        self._device: Handle = device
        self._group = group
        self._nbytes = nbytes
        self._lock = threading.Lock()
        self._buffers: dict[int, XrtBuffer] = {}  # by address of the host side

    @property
    def free_nbytes(self) -> int:
        """What is left of the budget."""
        return self._nbytes - sum(buffer.size() for buffer in list(self._buffers.values()))

    def allocate(self, nbytes: int) -> Array:
        """The host side of a new buffer; raises DeviceError."""
        data, buffer = self.new_buffer(nbytes)
        address = _address(data)
        self._buffers[address] = buffer
        # Views of `data` keep it alive, so that nobody can hold memory of a buffer that is gone.
        weakref.finalize(data, self._buffers.pop, address, None).atexit = False
        return data

    def new_buffer(self, nbytes: int) -> tuple[Array, XrtBuffer]:
        """A buffer that the caller keeps; raises DeviceError."""
        if nbytes > self.free_nbytes:
            raise DeviceError(
                f"npu: no memory for a buffer of {nbytes} bytes: {self.free_nbytes} are left of "
                f"{self._nbytes}: raise the memlock limit (`ulimit -l unlimited`), or train with a "
                "smaller batch"
            )
        return new_buffer(self._xrt, self._device, nbytes, self._xrt.bo.host_only, self._group)

    def find(self, region: Array, what: str) -> Range:
        """Where a contiguous operand lies; raises DeviceError, naming `what`."""
        start = _address(region)
        for address, buffer in list(self._buffers.items()):
            if address <= start and start + region.nbytes <= address + buffer.size():
                break
        else:
            raise DeviceError(
                f"npu: {what}: {region.nbytes} bytes at {start:#x} lie in no buffer of this "
                "device: operands of its compute lane must come from `allocate`"
            )
        if (start - address) % CACHE_LINE or not region.flags.c_contiguous:
            raise DeviceError(
                f"npu: {what}: byte {start - address} of a buffer with strides {region.strides}: "
                f"operands must be contiguous and begin at multiples of {CACHE_LINE} bytes"
            )
        return Range(address, start - address, region.nbytes)

    def sub_buffer(self, place: Range, what: str) -> XrtBuffer:
        """The buffer object for exactly this range; raises DeviceError."""
        root = self._root(place)
        if place.offset == 0 and place.nbytes == root.size():
            return root
        try:
            return self._xrt.bo(root, place.nbytes, place.offset)
        except (RuntimeError, TypeError) as error:
            raise xrt_error(f"{what}: range of a buffer", error) from error

    def sync(self, place: Range, is_in: bool, what: str) -> Callable[[], None]:
        """The call that brings the range to the other side; raises DeviceError, as `what`."""
        directions = self._xrt.xclBOSyncDirection
        direction = (
            directions.XCL_BO_SYNC_BO_TO_DEVICE if is_in else directions.XCL_BO_SYNC_BO_FROM_DEVICE
        )

        def run() -> None:
            try:
                # Looked up each time: a call that outlives `close` must not hold the buffer.
                self._root(place).sync(direction, place.nbytes, place.offset)
            except (RuntimeError, TypeError) as error:
                raise xrt_error(what, error) from error

        return run

    def _root(self, place: Range) -> XrtBuffer:
        buffer = self._buffers.get(place.address)
        if buffer is None:
            raise DeviceError("npu: the device is closed: open it again")
        return buffer

    def close(self) -> None:
        """Give all buffers back; what was handed out must not be used any more."""
        self._buffers.clear()
        self._device = None


def new_buffer(
    xrt: Xrt, device: Handle, nbytes: int, flags: Handle, group: int
) -> tuple[Array, XrtBuffer]:
    """A buffer object and its host side as uint8; raises DeviceError."""
    try:
        buffer = xrt.bo(device, nbytes, flags, group)
        return np.frombuffer(buffer.map(), np.uint8), buffer
    except (RuntimeError, TypeError, MemoryError) as error:
        raise xrt_error(f"allocating {nbytes} bytes", error) from error


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])
