"""Host memory that an OpenCL device reaches: which buffer an address lies in, and transfers.

Adopted memory is an *extent*. Where device and host share memory the extent's one buffer is made of
the host's own pages (`CL_MEM_USE_HOST_PTR`), and a transfer is a map and an unmap: the driver may
flush caches, but copies nothing. Elsewhere the buffer has the extent's size in the device's memory,
and a transfer copies. A kernel's operand is the part of a buffer that its address says, as a
sub-buffer; equal operands are one sub-buffer, so a kernel can tell that two arguments are the same.

The driver says whether memory is shared, and is not just believed: a probe writes to a buffer made
of host memory and looks whether the host's bytes changed without a map.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from aieflow.devices.base import PAGE, Direction, Moved
from aieflow.devices.opencl_driver import cl, naming, refusal
from aieflow.ops.op import Array

Events = tuple[cl.Event, cl.Event]  # the first and the last command of a transfer
Transfer = Callable[[cl.CommandQueue], Events]  # enqueues it; `finish` of the queue ends it
BYTES = np.dtype(np.uint8)
PROBE = 0xA5  # a byte that fresh zeros are not


@dataclass(slots=True)
class Extent:
    """Adopted memory and its buffer; `holders` adopted it, or memory inside it."""

    start: int  # address
    memory: Array
    buffer: cl.Buffer
    holders: int = 1
    regions: dict[tuple[int, int], cl.Buffer] = field(default_factory=dict)  # by offset, size

    @property
    def end(self) -> int:
        """The address behind the last byte."""
        return self.start + int(self.memory.nbytes)


def address(x: Array) -> int:
    """Where x begins in host memory."""
    return int(x.__array_interface__["data"][0])


def page_aligned(nbytes: int) -> Array:
    """New host memory of whole pages, so many bytes of it; raises DeviceError."""
    pages = -(-max(nbytes, 1) // PAGE) * PAGE
    try:
        data = np.empty(pages + PAGE, np.uint8)
    except MemoryError:
        raise refusal(f"no memory for a buffer of {nbytes} bytes") from None
    start = -address(data) % PAGE
    return data[start : start + nbytes]


def shares_memory(context: cl.Context, queue: cl.CommandQueue) -> bool:
    """Whether the device writes to the host's own pages; asks the driver, then tries it."""
    if not context.devices[0].host_unified_memory:
        return False
    page = page_aligned(PAGE)
    page[:] = 0
    flags = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
    with naming("probing for shared memory"):
        buffer = cl.Buffer(context, flags, hostbuf=page)
        cl.enqueue_fill_buffer(queue, buffer, np.full(1, PROBE, np.uint8), 0, PAGE)
        queue.finish()
        is_seen = bool((page == PROBE).all())
        buffer.release()
    return is_seen


class AdoptedMemory:
    """The extents of one device, and what their transfers moved."""

    def __init__(self, context: cl.Context, queue: cl.CommandQueue, zero_copy: bool | None) -> None:
        device = context.devices[0]
        self.moved = Moved()
        self.nbytes = 0  # of all extents
        self.is_zero_copy = shares_memory(context, queue) if zero_copy is None else zero_copy
        self._context = context
        self._queue = queue  # for the check of a new buffer
        self._alignment = max(1, int(device.mem_base_addr_align) // 8)
        self._most = int(device.max_mem_alloc_size)
        self._extents: list[Extent] = []  # by start

    def require_size(self, nbytes: int) -> None:
        """Raise DeviceError where one allocation of the device cannot be so large."""
        if nbytes > self._most:
            raise refusal(
                f"a buffer of {nbytes} bytes is more than the {self._most} that the driver "
                "allows in one piece: use a smaller batch, or shards"
            )

    def adopt(self, memory: Array) -> None:
        """Make memory reachable; again, where it is inside an extent. Raises DeviceError."""
        start, nbytes = address(memory), int(memory.nbytes)
        extent = self._find(start, nbytes)
        if extent is not None:
            extent.holders += 1
            return
        if start % PAGE or not nbytes:
            raise refusal(f"memory at {start:#x} ({nbytes} bytes) is not page-aligned")
        place = bisect.bisect(self._extents, start, key=lambda one: one.start)
        for other in self._extents[max(0, place - 1) : place + 1]:
            if other.start < start + nbytes and start < other.end:
                raise refusal(f"memory at {start:#x} overlaps memory adopted before")
        self.require_size(nbytes)
        flags = cl.mem_flags.READ_WRITE
        with naming(f"adopting {nbytes} bytes"):
            if self.is_zero_copy:
                buffer = cl.Buffer(self._context, flags | cl.mem_flags.USE_HOST_PTR, hostbuf=memory)
                self._require_same_address(buffer, start)
            else:
                buffer = cl.Buffer(self._context, flags, nbytes)
        self._extents.insert(place, Extent(start, memory, buffer))
        self.nbytes += nbytes

    def disown(self, memory: Array) -> None:
        """Forget memory when its last holder does; raises DeviceError if none adopted it."""
        extent = self._find(address(memory), int(memory.nbytes))
        if extent is None:
            raise refusal(f"memory at {address(memory):#x} was not adopted")
        extent.holders -= 1
        if not extent.holders:
            self._extents.remove(extent)
            self.nbytes -= int(extent.memory.nbytes)

    def operand(self, start: int, nbytes: int) -> cl.Buffer:
        """The buffer of so many bytes at an address in adopted memory; raises DeviceError."""
        extent = self._extent_of(start, nbytes)
        offset = start - extent.start
        if not offset and nbytes == extent.memory.nbytes:
            return extent.buffer
        if offset % self._alignment:
            raise refusal(
                f"an operand at byte {offset} of its buffer: the driver wants a multiple of "
                f"{self._alignment}"
            )
        region = extent.regions.get((offset, nbytes))
        if region is None:
            with naming(f"a sub-buffer of {nbytes} bytes at {offset}"):
                region = extent.buffer.get_sub_region(offset, nbytes)
            extent.regions[offset, nbytes] = region
        return region

    def transfer(self, region: Array, direction: Direction) -> Transfer:
        """What brings a region to the other side; raises DeviceError, as it may itself."""
        start, nbytes = address(region), int(region.nbytes)
        extent = self._extent_of(start, nbytes)
        buffer, offset = extent.buffer, start - extent.start
        what = f"transfer {direction} of {nbytes} bytes"
        # a slice of the memory that the extent keeps: the caller's array may go
        host = extent.memory[offset : offset + nbytes]
        # what the host wrote lies in place already, so nothing needs to be fetched for the map
        flags = cl.map_flags.READ if direction == "out" else cl.map_flags.WRITE_INVALIDATE_REGION

        def share(queue: cl.CommandQueue) -> Events:
            with naming(what):
                mapped, first = cl.enqueue_map_buffer(
                    queue, buffer, flags, offset, (nbytes,), BYTES, is_blocking=False
                )
                last = mapped.base.release(queue)
                queue.flush()
            self.moved.transfers += 1
            return first, last

        def copy(queue: cl.CommandQueue) -> Events:
            with naming(what):
                if direction == "in":
                    done = cl.enqueue_copy(queue, buffer, host, dst_offset=offset, is_blocking=True)
                else:
                    done = cl.enqueue_copy(queue, host, buffer, src_offset=offset, is_blocking=True)
            self.moved.transfers += 1
            self.moved.copied_nbytes += nbytes
            return done, done

        return share if self.is_zero_copy else copy

    def close(self) -> None:
        """Forget every extent. Buffers go with the last bound call that has them."""
        self._extents.clear()
        self.nbytes = 0

    def _require_same_address(self, buffer: cl.Buffer, start: int) -> None:
        mapped, _ = cl.enqueue_map_buffer(self._queue, buffer, cl.map_flags.READ, 0, (1,), BYTES)
        found = address(mapped)
        mapped.base.release(self._queue).wait()
        if found != start:
            buffer.release()
            raise refusal(
                f"the driver maps host memory at {start:#x} to {found:#x}: it does not share "
                "memory, open the device with zero_copy=False"
            )

    def _find(self, start: int, nbytes: int) -> Extent | None:
        place = bisect.bisect(self._extents, start, key=lambda one: one.start)
        extent = self._extents[place - 1] if place else None
        return extent if extent is not None and start + nbytes <= extent.end else None

    def _extent_of(self, start: int, nbytes: int) -> Extent:
        extent = self._find(start, nbytes)
        if extent is None:
            raise refusal(f"{nbytes} bytes at {start:#x} lie in no adopted memory: adopt it first")
        return extent
