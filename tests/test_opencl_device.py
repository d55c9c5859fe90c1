"""The OpenCL device: choice, memory, transfers, compiled kernels, errors, time stamps.

PoCL runs OpenCL on the CPU, where memory is shared; `zero_copy=False` gives a device with memory of
its own, so both kinds are tested here.
"""

import gc
import hashlib
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aieflow.devices.base import PAGE
from aieflow.ops import pointwise
from aieflow.ops.builder import Builder
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call
from aieflow.ops.op import Array
from aieflow.ops.opencl.launch import Launch, OpenClKernel, Operand, Traits
from aieflow.ops.opencl.pointwise import ADD
from aieflow.ops.spec import Spec

try:
    from aieflow.devices import opencl_program
    from aieflow.devices.opencl import OpenClDevice, open_opencl_device
    from aieflow.devices.opencl_driver import Kind, OpenClInfo, choose, list_devices
except DeviceError as error:
    pytest.skip(str(error), allow_module_level=True)

DEVICES = list_devices()
if not DEVICES:
    pytest.skip("no OpenCL driver has a device: install PoCL", allow_module_level=True)
pytestmark = pytest.mark.opencl
COUNT = 1000
Opener = Callable[..., OpenClDevice]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Opens devices, and closes them after the test."""
    devices: list[OpenClDevice] = []

    def open_one(**options: Any) -> OpenClDevice:  # noqa: ANN401  # the device's own
        devices.append(OpenClDevice(DEVICES[0].device, **options))
        return devices[-1]

    yield open_one
    for device in devices:
        device.close()


def add_node(count: int = COUNT) -> Node:
    builder = Builder("sum")
    x, y = (builder.state(name, Spec((count,)), "parameter") for name in "xy")
    builder.apply(pointwise.ADD, [x, y], ["out"])
    return builder.nodes[-1]


class Sum:
    """`out = x + y` on a device: its memory and its calls."""

    def __init__(self, device: OpenClDevice, count: int = COUNT) -> None:
        self.memory = device.allocate(3 * 4 * (count + 64)).data
        step = -(-4 * count // 256) * 256
        self.x, self.y, self.out = (
            self.memory[i * step : i * step + 4 * count].view(np.float32) for i in range(3)
        )
        self.x[:], self.y[:], self.out[:] = 1, 2, -1
        self.bring = partial(device.transfer, self.memory, "in")
        self.fetch = partial(device.transfer, self.memory, "out")
        self.call = device.bind(
            add_node(count), Call((self.x, self.y), (self.out,), {}, np.empty(0, np.uint8))
        )
        finish = device.finish("igpu.compute")
        assert finish is not None
        self.finish = finish

    def run(self) -> None:
        for call in (self.bring, self.call, self.finish, self.fetch):
            call()


# Which device


def info(name: str, kind: Kind, is_unified: bool) -> OpenClInfo:
    traits = Traits(kind == "CPU", 1 << 15, 256, 1, 8)
    device = DEVICES[0].device
    return OpenClInfo(device, "maker", name, "1.0", "OpenCL 3.0", kind, 1 << 30, is_unified, traits)


def test_a_gpu_that_shares_memory_is_preferred_and_a_cpu_must_be_asked_for() -> None:
    cpu, card, igpu = info("c", "CPU", True), info("d", "GPU", False), info("i", "GPU", True)
    assert choose([cpu, card, igpu], with_cpu=False) is igpu
    assert choose([cpu, card], with_cpu=True) is card
    assert choose([cpu], with_cpu=True) is cpu
    with pytest.raises(DeviceError, match=r"no GPU among maker 1\.0 on c \(OpenCL on the CPU\)"):
        choose([cpu], with_cpu=False)
    with pytest.raises(DeviceError, match="no OpenCL device at all") as refused:
        choose([], with_cpu=True)
    assert refused.value.device == "igpu"


def test_the_listed_device_opens_by_name() -> None:
    device = open_opencl_device(with_cpu=True)
    assert device.identity == choose(DEVICES, with_cpu=True).identity
    assert (device.name, device.lanes) == ("igpu", ("igpu.compute",))
    assert device.copy_lanes == ("igpu.copy.in", "igpu.copy.out")
    assert not device.is_separate
    if device.info.kind == "CPU":
        assert device.identity.endswith("(OpenCL on the CPU)")
    else:
        assert "OpenCL on the CPU" not in device.identity
    device.close()


def test_without_pyopencl_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    monkeypatch.delitem(sys.modules, "aieflow.devices.opencl_driver")
    with pytest.raises(DeviceError, match=r"run `pip install 'aieflow\[igpu\]'`"):
        importlib.import_module("aieflow.devices.opencl_driver")


# Memory


def test_shared_memory_is_mapped_and_nothing_copied(opened: Opener) -> None:
    device = opened(zero_copy=True)
    work = Sum(device)
    work.run()
    assert (work.out == 3).all()
    assert (device.moved.transfers, device.moved.copied_nbytes) == (2, 0)


def test_the_probe_finds_what_the_driver_says(opened: Opener) -> None:
    """A CPU's memory is the host's; elsewhere at least the driver must say so."""
    device = opened()
    assert device.is_zero_copy <= device.info.is_unified
    if device.info.kind == "CPU":
        assert device.is_zero_copy


def test_memory_of_its_own_is_copied_and_counted(opened: Opener) -> None:
    device = opened(zero_copy=False)
    work = Sum(device)
    work.run()
    assert (work.out == 3).all()
    nbytes = work.memory.nbytes
    assert (device.moved.transfers, device.moved.copied_nbytes) == (2, 2 * nbytes)
    device.transfer(bytes_of(work.x), "in")
    assert (device.moved.transfers, device.moved.copied_nbytes) == (3, 2 * nbytes + 4 * COUNT)


def bytes_of(x: Array) -> Array:
    return x.view(np.uint8)


def test_a_forgotten_transfer_leaves_the_other_side_as_it_was(opened: Opener) -> None:
    work = Sum(opened(zero_copy=False))
    work.run()
    work.x[:] = 10
    work.call()
    work.finish()
    work.fetch()
    assert (work.out == 3).all()  # the device still had x = 1, and `out` came back whole
    assert (work.x == 1).all()  # as did the device's x
    work.x[:] = 10
    work.bring()
    work.call()
    work.finish()
    assert (work.out == 3).all()  # not fetched
    work.fetch()
    assert (work.out == 12).all()


def test_a_transfer_moves_its_region_only(opened: Opener) -> None:
    device = opened(zero_copy=False)
    work = Sum(device)
    work.run()
    work.x[:], work.y[:], work.out[:] = 10, 20, -1
    device.transfer(bytes_of(work.y), "in")
    work.call()
    work.finish()
    assert (work.out == -1).all()
    device.transfer(bytes_of(work.out), "out")
    assert (work.out == 21).all()  # the old x and the new y
    assert (work.x == 10).all()


def test_memory_must_be_adopted_aligned_and_apart(opened: Opener) -> None:
    device = opened()
    whole = np.zeros(4 * PAGE, np.uint8)
    start = -whole.ctypes.data % PAGE
    pages = whole[start : start + 2 * PAGE]
    with pytest.raises(DeviceError, match="adopted memory: adopt it first"):
        device.bind_transfer(pages, "in")
    with pytest.raises(DeviceError, match="is not page-aligned"):
        device.adopt(pages[64:])
    with pytest.raises(DeviceError, match="was not adopted"):
        device.disown(pages)
    device.adopt(pages)
    with pytest.raises(DeviceError, match="overlaps memory adopted before"):
        device.adopt(whole[start + PAGE : start + 3 * PAGE])
    with pytest.raises(DeviceError, match="adopt it first"):
        device.bind_transfer(whole[start + PAGE : start + 2 * PAGE + 1], "out")
    floats = pages[: 8 * 128].view(np.float32)
    operands = (floats[1:129], floats[1:129]), (floats[1:129],)
    with pytest.raises(DeviceError, match=r"operand at byte 4 .* multiple of \d+"):
        device.bind(add_node(128), Call(*operands, {}, pages[:0]))


def test_memory_adopted_twice_is_kept_until_it_was_disowned_twice(opened: Opener) -> None:
    device = opened()
    free = device.free_nbytes()
    buffer = device.allocate(10_000)
    assert buffer.data.ctypes.data % PAGE == 0
    assert device.free_nbytes() == free - 10_000
    device.adopt(buffer.data[:PAGE])  # inside what is adopted
    device.disown(buffer.data)
    device.transfer(buffer.data, "in")
    device.disown(buffer.data[:PAGE])
    assert device.free_nbytes() == free
    with pytest.raises(DeviceError, match="adopt it first"):
        device.bind_transfer(buffer.data, "in")


def test_too_large_a_buffer_is_refused_with_the_limit(opened: Opener) -> None:
    device = opened()
    limit = device.info.device.max_mem_alloc_size
    with pytest.raises(DeviceError, match=rf"{limit + 1} bytes is more than the {limit} "):
        device.allocate(limit + 1)


def test_more_than_the_memory_is_refused(opened: Opener) -> None:
    device = opened()
    device.info = replace(device.info, nbytes=1 << 20)
    device.allocate(1 << 19)
    with pytest.raises(DeviceError, match=f"of {1 << 20} bytes: {1 << 19} are free"):
        device.allocate(1 << 20)


def test_bound_calls_keep_what_they_need(opened: Opener) -> None:
    """The driver keeps neither buffers nor host memory for us, and reused memory shows."""
    device = opened()
    works = [Sum(device, 50_000) for _ in range(3)]
    for work in works:
        del work.memory
    gc.collect()
    noise = [np.full(150_000, 7, np.float32) for _ in range(6)]
    for work in works:
        work.run()
        assert (work.out == 3).all()
    assert all((x == 7).all() for x in noise)


# Compiled kernels


def compiling_is_forbidden(*_: object) -> None:
    raise AssertionError("compiled although the cache has it")


def test_compiled_kernels_are_kept(
    opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "new" / "cache"
    Sum(opened(cache=cache)).run()
    (file,) = cache.iterdir()
    monkeypatch.setattr(opencl_program.Programs, "_compile", compiling_is_forbidden)
    device = opened(cache=cache)
    work = Sum(device)
    work.run()
    assert (work.out == 3).all()
    assert device.notes == []
    with pytest.raises(AssertionError, match="compiled"):
        Sum(opened())
    assert list(cache.iterdir()) == [file]


@pytest.mark.parametrize("fault", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_file_is_made_again_and_noted_once(
    opened: Opener, tmp_path: Path, fault: str
) -> None:
    Sum(opened(cache=tmp_path)).run()
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    broken = {
        "cut": good[: len(good) // 2],
        "flipped": good[:-1] + bytes([good[-1] ^ 1]),
        "foreign": b"#!/bin/sh\n" * 10,
        "empty": b"",
    }[fault]
    file.write_bytes(broken)
    device = opened(cache=tmp_path)
    for _ in range(2):
        work = Sum(device)
        work.run()
        assert (work.out == 3).all()
    (note,) = device.notes
    assert file.name in note
    assert "is damaged: compiled again" in note
    again = opened(cache=tmp_path)
    Sum(again).run()
    assert again.notes == []
    assert list(tmp_path.iterdir()) == [file]


def test_a_binary_that_the_driver_refuses_is_made_again(opened: Opener, tmp_path: Path) -> None:
    """Whole, but no program: as after a change of drivers that the key does not show."""
    Sum(opened(cache=tmp_path)).run()
    (file,) = tmp_path.iterdir()
    junk = b"no program at all" * 20
    file.write_bytes(hashlib.sha256(junk).digest() + junk)
    device = opened(cache=tmp_path)
    work = Sum(device)
    work.run()
    assert (work.out == 3).all()
    (note,) = device.notes
    assert "was refused by the driver" in note


def test_a_folder_that_cannot_be_written_is_noted_once(opened: Opener, tmp_path: Path) -> None:
    def two_programs(node: Node) -> tuple[Launch, ...]:
        (launch,) = ADD.launches(node)
        return launch, replace(launch, constants=(("ANOTHER", 1),))

    (tmp_path / "file").touch()
    device = opened(cache=tmp_path / "file", kernels={"add": replace(ADD, launches=two_programs)})
    work = Sum(device)
    work.run()
    assert (work.out == 3).all()
    assert sum("cannot be kept" in note for note in device.notes) == 1


def test_constants_are_part_of_the_key(opened: Opener, tmp_path: Path) -> None:
    Sum(opened(cache=tmp_path)).run()
    Sum(opened(cache=tmp_path, fp64=False)).run()
    assert len(list(tmp_path.iterdir())) == 2


# Errors


def changed_add(**changes: Any) -> dict[str, OpenClKernel]:  # noqa: ANN401  # of a Launch
    """The sum's kernel with something else in its launch."""

    def launches(node: Node) -> tuple[Launch, ...]:
        return tuple(replace(launch, **changes) for launch in ADD.launches(node))

    return {"add": replace(ADD, launches=launches)}


def test_a_kernel_that_does_not_compile_shows_the_compilers_words(opened: Opener) -> None:
    device = opened(kernels=changed_add(constants=(("store", 3),)))
    with pytest.raises(DeviceError, match=r"node out: compiling pointwise\.cl") as refused:
        Sum(device)
    assert "BUILD_PROGRAM_FAILURE" in str(refused.value)
    assert "Build on" in str(refused.value)  # the log follows
    assert refused.value.device == "igpu"


def test_a_function_or_source_that_is_missing_is_named(opened: Opener) -> None:
    with pytest.raises(DeviceError, match=r"node out: nothing of pointwise\.cl: "):
        Sum(opened(kernels=changed_add(function="nothing")))
    with pytest.raises(DeviceError, match="no OpenCL source 'nothing'"):
        Sum(opened(kernels=changed_add(source="nothing")))


def test_a_launch_that_the_driver_refuses_names_the_node(opened: Opener) -> None:
    work = Sum(opened(kernels=changed_add(local_size=(7,))))
    with pytest.raises(DeviceError, match=r"node out: add: .*INVALID_WORK_GROUP_SIZE"):
        work.call()


def test_a_part_of_a_node_is_refused(opened: Opener) -> None:
    device = opened()
    x = device.allocate(512).data.view(np.float32)
    with pytest.raises(DeviceError, match="one of 2 parts"):
        device.bind(add_node(128), Call((x, x), (x,), {}, np.empty(0, np.uint8), 0, 2))


def test_closing_is_idempotent_and_ends_everything(opened: Opener) -> None:
    device = opened()
    work = Sum(device)
    work.run()
    device.close()
    device.close()
    for call in (
        work.call,
        work.finish,
        work.bring,
        lambda: device.allocate(1),
        lambda: Sum(device),
    ):
        with pytest.raises(DeviceError, match="was closed"):
            call()


# Time stamps


def test_spans_lie_between_enqueue_and_finish(opened: Opener) -> None:
    """
    host    | before   call … finish                | after
    device           [ sum ][ sum ]
    """
    device = opened()
    work = Sum(device, 1 << 20)
    work.run()
    assert device.spans() == []
    device.profile(True)
    before = time.perf_counter_ns()
    work.call()
    work.call()
    work.finish()
    after = time.perf_counter_ns()
    first, second = device.spans()
    error_ns = device.clock_error_ns
    assert 0 < error_ns < 1_000_000_000
    assert before - error_ns <= first.begin_ns < first.end_ns <= second.begin_ns
    assert second.begin_ns < second.end_ns <= after + error_ns
    assert first.node == add_node().name
    assert device.spans() == []
    device.profile(False)
    work.run()
    assert device.spans() == []
    assert (work.out == 3).all()


def test_a_span_covers_all_launches_of_a_node(opened: Opener) -> None:
    """The second launch alone, as a node of its own, ends when the first node's span does."""

    def twice(node: Node) -> tuple[Launch, ...]:
        return ADD.launches(node) * 2

    device = opened(kernels={"add": replace(ADD, launches=twice)})
    work = Sum(device, 1 << 20)
    device.profile(True)
    work.call()
    work.finish()
    (timed,) = (device._timed or {})["igpu.compute"]
    (span,) = device.spans()
    assert timed.first != timed.last
    assert span.end_ns - span.begin_ns == timed.last.profile.end - timed.first.profile.start


def test_the_workspace_is_an_operand(opened: Opener) -> None:
    """A kernel that writes its sum to a piece of the workspace instead of its output."""

    def into_workspace(node: Node) -> tuple[Launch, ...]:
        (launch,) = ADD.launches(node)
        x, y, _, size = launch.arguments
        return (replace(launch, arguments=(x, y, Operand("workspace", offset=256), size)),)

    device = opened(kernels={"add": replace(ADD, launches=into_workspace)})
    memory = device.allocate(PAGE).data
    x, out = memory[:256].view(np.float32), memory[256:512].view(np.float32)
    workspace = memory[1024 : 1024 + 512]
    x[:], out[:], workspace[:] = 1, -1, 0
    call = device.bind(add_node(64), Call((x, x), (out,), {}, workspace))
    finish = device.finish("igpu.compute")
    assert finish is not None
    device.transfer(memory, "in")
    call()
    finish()
    device.transfer(memory, "out")
    assert (workspace[256:].view(np.float32) == 2).all()
    assert (workspace[:256] == 0).all()
    assert (out == -1).all()
