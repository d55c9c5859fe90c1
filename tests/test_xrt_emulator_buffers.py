"""The emulated NPU's buffers: two sides that do not follow, ranges, and a limit."""

from collections.abc import Callable

import numpy as np
import pytest

from aieflow.devices.xrt_emulator_buffers import (
    BufferFlags,
    EmulatedBuffer,
    Memory,
    SyncDirection,
    new_buffer,
    sub_buffer,
)
from aieflow.devices.xrt_emulator_clock import EmulatedClock, Latencies
from aieflow.devices.xrt_emulator_faults import Faults

IN = SyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
OUT = SyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE


def make_memory(nbytes: int = 1 << 20) -> Memory:
    return Memory(nbytes, EmulatedClock(Latencies()), Faults())


def make_buffer(nbytes: int, memory: Memory | None = None) -> EmulatedBuffer:
    return new_buffer(memory or make_memory(), nbytes, BufferFlags.host_only, 0)


@pytest.mark.parametrize("direction", [IN, OUT], ids=["in", "out"])
def test_a_sync_moves_its_range_in_its_direction_only(direction: SyncDirection) -> None:
    buffer = make_buffer(100)
    host, device = np.frombuffer(buffer.map(), np.uint8), buffer.device_side
    host[:], device[:] = 1, 2
    buffer.sync(direction, 10, 20)
    changed, other = (device, host) if direction is IN else (host, device)
    new, old = (1, 2) if direction is IN else (2, 1)
    assert changed.tolist() == [old] * 20 + [new] * 10 + [old] * 70
    assert other.tolist() == [new] * 100
    buffer.sync(direction)
    assert changed.tolist() == [new] * 100


def test_buffers_begin_as_nan_on_pages_of_their_own() -> None:
    memory = make_memory()
    first, second = make_buffer(5, memory), make_buffer(4097, memory)
    for buffer in (first, second):
        host = np.frombuffer(buffer.map(), np.uint8)
        assert np.all(host == 0xFF)
        assert np.all(buffer.device_side == 0xFF)
        assert host.ctypes.data % 4096 == 0
        assert buffer.address() % 4096 == 0
    assert second.address() == first.address() + 4096
    assert (first.size(), second.size()) == (5, 4097)


def test_a_sub_buffer_is_the_same_memory() -> None:
    root = make_buffer(8192)
    part = sub_buffer(root, 100, 4096)
    part.write(b"abc", 1)
    part.sync(IN, 2, 1)
    assert bytes(root.map()[4096:4100]) == b"\xffabc"
    assert root.device_side[4096:4100].tobytes() == b"\xffab\xff"
    assert part.address() == root.address() + 4096
    assert part.read(3, 1).tobytes() == b"abc"
    with pytest.raises(RuntimeError, match="root buffer only"):
        sub_buffer(part, 10, 0)
    with pytest.raises(RuntimeError, match="exceed the parent"):
        sub_buffer(root, 4097, 4096)


def test_memory_is_given_back_and_limited() -> None:
    memory = make_memory(3 * 4096)
    first, part = make_buffer(4096, memory), make_buffer(1, memory)
    assert (memory.used_nbytes, memory.live_buffers) == (8192, 2)
    with pytest.raises(RuntimeError, match=r"mmap\(.*err=-11\): Resource temporarily unavailable"):
        make_buffer(4097, memory)
    view = sub_buffer(first, 10, 0)
    del first
    assert memory.used_nbytes == 8192  # the sub-buffer keeps its root
    del view, part
    assert (memory.used_nbytes, memory.live_buffers) == (0, 0)
    assert make_buffer(3 * 4096, memory).size() == 3 * 4096


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda b: b.write(b"12345", 0), RuntimeError, "write past buffer size"),
        (lambda b: b.write(b"1234", 1), RuntimeError, "write past buffer size"),
        (lambda b: b.write(b"1", -1), TypeError, "size_t"),
        (lambda b: b.read(5, 0), RuntimeError, "read past buffer size"),
        (lambda b: b.read(4, 1), RuntimeError, "read past buffer size"),
        (lambda b: b.sync(IN, 5, 0), RuntimeError, "SYNC_BO"),
        (lambda b: b.sync(IN, 4, 1), RuntimeError, "SYNC_BO"),
        (lambda b: b.sync(IN, 4), TypeError, "incompatible"),
        (lambda b: b.sync(0), TypeError, "incompatible"),
    ],
)
def test_a_wrong_range_is_refused(
    call: Callable[[EmulatedBuffer], object], error: type[Exception], words: str
) -> None:
    buffer = make_buffer(4)
    with pytest.raises(error, match=words):
        call(buffer)
    assert np.all(buffer.device_side == 0xFF)


def test_a_buffer_of_the_device_alone_has_no_host_side() -> None:
    buffer = new_buffer(make_memory(), 4, BufferFlags.device_only, 0)
    for call in (buffer.map, lambda: buffer.read(1, 0), lambda: buffer.write(b"1", 0)):
        with pytest.raises(RuntimeError, match="not mapped"):
            call()
