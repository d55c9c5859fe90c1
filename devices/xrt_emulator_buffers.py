"""The emulated NPU's memory: buffers with a host side and a device side that do not follow.

A real NPU buffer is one piece of memory seen through caches that are not coherent. Here it is two
pieces, so that what may go wrong does: only `sync` copies, only in its direction, only the bytes
of its range. Both sides begin as 0xFF (NaN in every float format), so that a read before the first
sync shows. Names, arguments and errors are pyxrt's.
"""

import threading
import weakref
from collections import deque
from enum import Enum, IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from aieflow.devices.xrt_emulator_clock import EmulatedClock
from aieflow.devices.xrt_emulator_faults import Faults

PAGE = 4096
FIRST_ADDRESS = 0x4000000  # of device memory: where the driver's heap of instructions ends
BANK_MASK = 0xFFFF  # the low half of a group id; the high half is the context's slot
NO_BANK = 0xFFFF  # of scalar arguments
_BYTE_MASK = (1 << 64) - 1

Bytes = npt.NDArray[np.uint8]
BytesLike = bytes | bytearray | memoryview | npt.NDArray[Any]


class SyncDirection(Enum):
    """`pyxrt.xclBOSyncDirection`."""

    XCL_BO_SYNC_BO_TO_DEVICE = 0
    XCL_BO_SYNC_BO_FROM_DEVICE = 1


class BufferFlags(IntEnum):
    """`pyxrt.bo.flags`."""

    normal = 0
    cacheable = 1 << 24
    svm = 1 << 27
    device_only = 1 << 28
    host_only = 1 << 29
    p2p = 1 << 30


class Memory:
    """What all buffers of one emulated device share: a budget, addresses, a clock, the faults."""

    def __init__(self, nbytes: int, clock: EmulatedClock, faults: Faults) -> None:
        self.nbytes = nbytes
        self.clock = clock
        self.faults = faults
        self._lock = threading.Lock()
        # Finalizers, which can interrupt anything, only append here.
        self._returned: deque[int] = deque()
        self._used = 0
        self._live = 0
        self._next_address = FIRST_ADDRESS

    @property
    def used_nbytes(self) -> int:
        """Bytes of all buffers that exist, in whole pages."""
        with self._lock:
            self._settle()
            return self._used

    @property
    def live_buffers(self) -> int:
        """Number of buffers that exist, sub-buffers not counted."""
        with self._lock:
            self._settle()
            return self._live

    def take(self, nbytes: int) -> int:
        """The device address of new memory; raises RuntimeError beyond the memlock limit."""
        pages = _rounded(nbytes)
        with self._lock:
            self._settle()
            if self._used + pages > self.nbytes:
                raise RuntimeError(
                    f"mmap(addr=0x0, len={pages}, prot=3, flags=8209, offset={self._next_address})"
                    " failed (err=-11): Resource temporarily unavailable"
                )
            self._used += pages
            self._live += 1
            address = self._next_address
            self._next_address += pages
        return address

    def give_back(self, nbytes: int) -> None:
        """A buffer is gone."""
        self._returned.append(_rounded(nbytes))

    def _settle(self) -> None:
        while self._returned:
            self._used -= self._returned.popleft()
            self._live -= 1


def _rounded(nbytes: int) -> int:
    return -(-nbytes // PAGE) * PAGE


class Allocation:
    """The two sides of one buffer object; given back when nothing refers to it any more."""

    __slots__ = ("__weakref__", "address", "device", "flags", "group", "host", "memory")

    def __init__(self, memory: Memory, nbytes: int, flags: BufferFlags, group: int) -> None:
        self.memory = memory
        self.address = memory.take(nbytes)
        weakref.finalize(self, memory.give_back, nbytes).atexit = False
        self.flags = flags
        self.group = group
        self.host = _pages(nbytes)
        self.device = _pages(nbytes)


def _pages(nbytes: int) -> Bytes:
    """New memory that begins at a page, all 0xFF."""
    data = np.empty(nbytes + PAGE, np.uint8)
    start = -data.ctypes.data % PAGE
    pages = data[start : start + nbytes]
    pages.fill(0xFF)
    return pages


class EmulatedBuffer:
    """`pyxrt.bo`: a buffer object, or a range of one."""

    def __init__(self, allocation: Allocation, nbytes: int, offset: int = 0) -> None:
        self.allocation = allocation
        self.offset = offset
        self._host = allocation.host[offset : offset + nbytes]
        self._nbytes = nbytes

    @property
    def bank(self) -> int:
        """The memory bank that the buffer lies in."""
        return self.allocation.group & BANK_MASK

    @property
    def device_side(self) -> Bytes:
        """The bytes as the array sees them: not for hosts."""
        return self.allocation.device[self.offset : self.offset + self._nbytes]

    def size(self) -> int:
        """Size in bytes."""
        return self._nbytes

    def address(self) -> int:
        """Device address."""
        return self.allocation.address + self.offset

    def map(self) -> memoryview:
        """The host side, writable."""
        return self._mapped().data

    def write(self, data: BytesLike, seek: int) -> None:
        """Copy bytes to the host side from `seek` on; raises RuntimeError past the end."""
        source = np.frombuffer(data, np.uint8)
        if _natural(seek, "seek") + source.nbytes > self._nbytes:
            raise RuntimeError("attempting to write past buffer size: Invalid argument")
        self._mapped()[seek : seek + source.nbytes] = source

    def read(self, size: int, skip: int) -> npt.NDArray[np.int8]:
        """Copy of bytes of the host side; raises RuntimeError past the end."""
        if _natural(skip, "skip") + _natural(size, "size") > self._nbytes:
            raise RuntimeError("attempting to read past buffer size: Invalid argument")
        return self._mapped()[skip : skip + size].view(np.int8).copy()

    def sync(
        self, direction: SyncDirection, size: int | None = None, offset: int | None = None
    ) -> None:
        """Copy the range (default: all) from one side to the other; nothing else ever does."""
        if not isinstance(direction, SyncDirection) or (size is None) != (offset is None):
            raise TypeError("sync(): incompatible function arguments")
        memory = self.allocation.memory
        begun = memory.clock.now()
        is_in = direction is SyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
        memory.faults.check("sync.in" if is_in else "sync.out")
        first = 0 if offset is None else _natural(offset, "offset")
        count = self._nbytes if size is None else _natural(size, "size")
        if first + count > self._nbytes:
            raise RuntimeError("DRM_IOCTL_AMDXDNA_SYNC_BO IOCTL failed (err=-22): Invalid argument")
        host, device = (side[first : first + count] for side in (self._host, self.device_side))
        source, target = (host, device) if is_in else (device, host)
        np.copyto(target, source)
        seconds = memory.clock.latencies.transfer_s(count)
        memory.clock.spend({"sync.in" if is_in else "sync.out": seconds}, begun)

    def _mapped(self) -> Bytes:
        if self.allocation.flags is BufferFlags.device_only:
            raise RuntimeError("buffer is not mapped")
        return self._host


def new_buffer(memory: Memory, size: int, flags: BufferFlags, group: int) -> EmulatedBuffer:
    """`bo(device, size, flags, group)`; raises RuntimeError as the driver does."""
    memory.faults.check("bo")
    if _natural(size, "size") == 0:
        raise RuntimeError("DRM_IOCTL_AMDXDNA_CREATE_BO IOCTL failed (err=-22): Invalid argument")
    return EmulatedBuffer(Allocation(memory, size, flags, group), size)


def sub_buffer(parent: EmulatedBuffer, size: int, offset: int) -> EmulatedBuffer:
    """`bo(parent, size, offset)`: the same memory; it keeps the parent's alive."""
    if _natural(size, "size") == 0 or _natural(offset, "offset") + size > parent.size():
        raise RuntimeError("size and offset exceed the parent buffer: Invalid argument")
    if parent.offset or parent.size() != parent.allocation.host.nbytes:
        raise RuntimeError("emulated XRT: derive sub-buffers from the root buffer only")
    return EmulatedBuffer(parent.allocation, size, offset)


def _natural(value: object, name: str) -> int:
    """What pybind takes for a size_t; raises TypeError for the rest."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _BYTE_MASK:
        raise TypeError(f"incompatible function arguments: {name} = {value!r} is no size_t")
    return value


def clone_buffer(buffer: EmulatedBuffer, bank: int) -> EmulatedBuffer:
    """What XRT uses in place of a buffer in the wrong bank: a copy that nobody else sees."""
    source = buffer.allocation
    group = source.group & ~BANK_MASK | bank
    clone = EmulatedBuffer(
        Allocation(source.memory, buffer.size(), source.flags, group), buffer.size()
    )
    clone.device_side[:] = np.frombuffer(buffer.map(), np.uint8)
    return clone
