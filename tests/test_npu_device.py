"""The NPU device over the emulated XRT: products, transfers, memory, waiting, closing."""

import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from aieflow.devices.npu import NpuDevice, poll
from aieflow.devices.xclbin import emulated_xclbin, write_xclbin
from aieflow.devices.xrt import PENDING
from aieflow.devices.xrt_emulator import (
    BufferType,
    EmulatedContext,
    EmulatedDevice,
    EmulatedKernel,
    EmulatedUuid,
    XrtEmulator,
)
from aieflow.devices.xrt_emulator_buffers import EmulatedBuffer
from aieflow.devices.xrt_emulator_clock import Latencies
from aieflow.devices.xrt_emulator_commands import EmulatedRun
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node, Value
from aieflow.ops.kernel import Call
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.design import DESIGNS, GemmDesign
from aieflow.ops.npu.expansion import expand_matmul
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.op import Array
from aieflow.ops.spec import Spec

NPU1, NPU2 = DESIGNS["npu1"], DESIGNS["npu2"]
T = TypeVar("T")


@pytest.fixture
def xrt() -> XrtEmulator:
    return XrtEmulator(NPU1.generation)


def open_npu(
    path: Path,
    xrt: XrtEmulator,
    design: GemmDesign = NPU1,
    *,
    content: GemmDesign | None = None,
    deadline_s: float = 60.0,
    memory_nbytes: int = 1 << 30,
) -> NpuDevice:
    """A device whose xclbin holds `content` (default: the design)."""
    file = path / "gemm.xclbin"
    write_xclbin(file, emulated_xclbin(content or design))
    return NpuDevice(xrt, file, design, deadline_s=deadline_s, memory_nbytes=memory_nbytes)


def matmul_node(M: int, K: int, N: int) -> Node:
    a, b = Value("a", Spec((M, K))), Value("b", Spec((K, N)))
    return Node("product", MATMUL, (a, b), (Value("c", Spec((M, N))),), {})


class Product:
    """A matmul on the device, as a plan would run it: its nodes with the transfers between."""

    def __init__(self, device: NpuDevice, design: GemmDesign, M: int, K: int, N: int) -> None:
        self.arrays: dict[str, Array] = {}  # by value: host memory, or a host side
        self.calls: list[tuple[str, Callable[[], None]]] = []
        for node in expand_matmul(matmul_node(M, K, N), design):
            kernel = device.kernels[node.op.name]
            workspace = np.empty(kernel.workspace(node), np.uint8)
            for value in (*node.inputs, *node.outputs):
                self._place(device, value)
            inputs = tuple(self.arrays[value.name] for value in node.inputs)
            outputs = tuple(self.arrays[value.name] for value in node.outputs)
            kind = node.op.name.removeprefix("npu_")
            is_gemm = kind == "gemm"
            for x in inputs if is_gemm else ():
                self.calls.append(("in", device.bind_transfer(x, "in")))
            self.calls.append(
                (kind, device.bind(node, Call(inputs, outputs, node.attrs, workspace)))
            )
            for x in outputs if is_gemm else ():
                self.calls.append(("out", device.bind_transfer(x, "out")))

    def _place(self, device: NpuDevice, value: Value) -> None:
        if value.name in self.arrays:
            return
        spec = value.spec
        is_packed = value.name not in ("a", "b", "c")
        memory = device.allocate(spec.nbytes).data if is_packed else np.zeros(spec.nbytes, np.uint8)
        self.arrays[value.name] = memory.view(spec.storage).reshape(spec.shape)

    def compute(self, a: Array, b: Array, leave_out: str = "") -> Array:
        """Run all calls but those of the kind `leave_out`; return C."""
        self.arrays["a"][:], self.arrays["b"][:] = a, b
        for kind, call in self.calls:
            if kind != leave_out:
                call()
        return self.arrays["c"].copy()


def integers(M: int, K: int, N: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return (
        rng.integers(-9, 10, (M, K)).astype(np.float32),
        rng.integers(-9, 10, (K, N)).astype(np.float32),
    )


# --- what it computes


@pytest.mark.parametrize("design", [NPU1, NPU2], ids=["npu1", "npu2"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (256, 64, 128), (300, 130, 500), (64, 9000, 32)])
def test_products_of_integers_are_exact(
    tmp_path: Path, design: GemmDesign, shape: tuple[int, int, int]
) -> None:
    """Also padded ones, and one whose inner size is cut in two products."""
    device = open_npu(tmp_path, XrtEmulator(design.generation), design)
    a, b = integers(*shape)
    assert np.array_equal(Product(device, design, *shape).compute(a, b), a @ b)


def test_products_of_reals_are_those_of_bf16(tmp_path: Path, xrt: XrtEmulator) -> None:
    M, K, N = 200, 333, 150
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    c = Product(open_npu(tmp_path, xrt), NPU1, M, K, N).compute(a, b)
    near = [from_bfloat16(to_bfloat16(x)).astype(np.float64) for x in (a, b)]
    # fp32 sums of exact products, in any order: K u of the sum of magnitudes, u = 2^-24.
    mass = np.abs(near[0]) @ np.abs(near[1])
    assert np.all(np.abs(c - near[0] @ near[1]) <= K * 2.0**-24 * mass)
    # Rounding both operands to bf16 (u = 2^-9 each) errs by at most (2 u + u^2) of it; and does.
    exact = a.astype(np.float64) @ b.astype(np.float64)
    mass = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    error = np.abs(c - exact)
    assert np.all(error <= (2 * 2.0**-9 + 2.0**-18 + K * 2.0**-24) * mass)
    assert error.max() > K * 2.0**-24 * mass.max()


def test_a_product_runs_again_with_new_operands(tmp_path: Path, xrt: XrtEmulator) -> None:
    device = open_npu(tmp_path, xrt)
    product = Product(device, NPU1, 100, 100, 100)
    buffers = xrt.memory.live_buffers
    for seed in range(3):
        a, b = integers(100, 100, 100, seed)
        assert np.array_equal(product.compute(a, b), a @ b)
    assert xrt.memory.live_buffers == buffers


def test_instructions_are_made_once_for_a_padded_size(tmp_path: Path, xrt: XrtEmulator) -> None:
    device = open_npu(tmp_path, xrt)
    syncs = xrt.clock.counts["sync.in"]
    products = [Product(device, NPU1, *shape) for shape in ((300, 70, 9), (400, 100, 60))]
    assert xrt.clock.counts["sync.in"] == syncs + 1  # both pad to 512 x 128 x 128
    a, b = integers(300, 70, 9)
    assert np.array_equal(products[0].compute(a, b), a @ b)


@pytest.mark.parametrize("left_out", ["in", "out"])
def test_without_its_syncs_a_product_is_that_of_before(
    tmp_path: Path, xrt: XrtEmulator, left_out: str
) -> None:
    product = Product(open_npu(tmp_path, xrt), NPU1, 256, 64, 128)
    a, b = integers(256, 64, 128)
    first = product.compute(a, b)
    assert np.array_equal(product.compute(2 * a, b, leave_out=left_out), first)
    assert np.array_equal(product.compute(2 * a, b), 2 * first)


def test_operands_may_lie_within_a_larger_buffer(tmp_path: Path, xrt: XrtEmulator) -> None:
    device = open_npu(tmp_path, xrt)
    node = expand_matmul(matmul_node(256, 64, 128), NPU1)[2]
    arena = device.allocate(1 << 20).data
    offsets, nbytes = (64, 65536, 262144), (2 * 256 * 64, 2 * 64 * 128, 4 * 256 * 128)
    a, b, c = (arena[at : at + size] for at, size in zip(offsets, nbytes, strict=True))
    a.view(np.uint16)[:] = b.view(np.uint16)[:] = 0x3F80
    inputs, outputs = (a.view(np.uint16), b.view(np.uint16)), (c.view(np.float32),)
    call = device.bind(node, Call(inputs, outputs, node.attrs, np.empty(0, np.uint8)))
    device.bind_transfer(arena[:262144], "in")()
    call()
    device.bind_transfer(c, "out")()
    assert np.all(c.view(np.float32) == 64)
    assert np.all(arena[262144 + nbytes[2] :] == 0xFF)  # what no one wrote


# --- what it says of itself


def test_a_device_describes_itself(tmp_path: Path, xrt: XrtEmulator) -> None:
    device = open_npu(tmp_path, xrt)
    assert device.name == "npu"
    assert device.lanes == ("npu.compute",)
    assert device.copy_lanes == ("npu.copy.in", "npu.copy.out")
    assert device.is_separate
    assert device.finish("npu.compute") is None
    assert "emulated" in device.identity
    assert "Phoenix" in device.identity
    assert set(device.kernels) == {"npu_pack", "npu_repack", "npu_gemm", "npu_unpack", "matmul"}


def test_transfers_are_counted(tmp_path: Path, xrt: XrtEmulator) -> None:
    device = open_npu(tmp_path, xrt)
    memory = device.allocate(1000).data
    transfers = [device.bind_transfer(memory[64:164], way) for way in ("in", "out", "in")]
    assert (device.moved.transfers, device.moved.copied_nbytes) == (0, 0)
    for transfer in transfers:
        transfer()
    assert (device.moved.transfers, device.moved.copied_nbytes) == (3, 300)


def test_a_transfer_moves_its_region_alone(tmp_path: Path, xrt: XrtEmulator) -> None:
    device = open_npu(tmp_path, xrt)
    memory = device.allocate(256).data
    memory[:] = 1
    device.bind_transfer(memory[64:128], "in")()
    memory[:] = 2
    device.bind_transfer(memory, "out")()
    assert memory.tolist() == [255] * 64 + [1] * 64 + [255] * 128


def test_memory_is_accounted_and_given_back(tmp_path: Path, xrt: XrtEmulator) -> None:
    device = open_npu(tmp_path, xrt, memory_nbytes=1 << 20)
    assert device.free_nbytes() == 1 << 20
    buffer = device.allocate(1 << 19)
    assert buffer.device == "npu"
    assert buffer.nbytes == 1 << 19
    assert buffer.data.ctypes.data % 64 == 0
    assert device.free_nbytes() == 1 << 19
    view = buffer.data[10:20]
    with pytest.raises(DeviceError, match=r"524289 bytes: 524288 are left.*ulimit -l unlimited"):
        device.allocate((1 << 19) + 1)
    del buffer
    assert device.free_nbytes() == 1 << 19  # the view keeps it
    del view
    assert device.free_nbytes() == 1 << 20


# --- waiting and closing


class Counting:
    """A run that completes after a number of polls."""

    def __init__(self, polls: int) -> None:
        self.left = polls

    def set_arg(self, index: int, value: object, /) -> None: ...

    def start(self) -> None: ...

    def state(self) -> int:
        self.left -= 1
        return 4 if self.left < 0 else 3


@pytest.mark.parametrize(("polls", "pauses"), [(0, 0), (19, 0), (20, 1), (22, 3), (60, 41)])
def test_polling_spins_first_and_then_pauses_longer_and_longer(
    monkeypatch: pytest.MonkeyPatch, polls: int, pauses: int
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert poll(Counting(polls), 1e9) == 4
    assert len(slept) == pauses
    assert slept == sorted(slept)
    assert all(20e-6 <= pause <= 1e-3 for pause in slept)
    assert pauses < 20 or slept[-1] == 1e-3


def test_polling_sleeps_through_most_of_what_the_command_took_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("aieflow.devices.npu.time.sleep", slept.append)
    assert poll(Counting(23), 1e9, 2e-3) == 4
    assert slept == pytest.approx([1.8e-3, 20e-6, 30e-6, 45e-6])


def test_polling_ends_at_the_deadline() -> None:
    assert poll(Counting(10**9), 0.0) in PENDING


def test_a_call_lets_other_threads_run(tmp_path: Path) -> None:
    """While a paced command runs, another thread gets through a rendezvous with this one's call."""
    xrt = XrtEmulator(NPU1.generation, Latencies(dispatch_s=0.05), "paced")
    product = Product(open_npu(tmp_path, xrt), NPU1, 1, 1, 1)
    gemm = dict(product.calls)["gemm"]
    ticks: list[float] = []
    ended = threading.Event()

    def tick() -> None:
        while not ended.is_set():
            ticks.append(xrt.clock.now())

    thread = threading.Thread(target=tick)
    thread.start()
    begun = xrt.clock.now()
    gemm()
    end = xrt.clock.now()
    ended.set()
    thread.join()
    assert end - begun >= 0.05
    assert sum(begun < t < end for t in ticks) > 10


class Watched(XrtEmulator):
    """Notes the order in which its objects are given back."""

    def __init__(self) -> None:
        super().__init__(NPU1.generation)
        self.freed: list[str] = []
        self.bo = WatchedBuffers(self)

    def watch(self, thing: T, name: str) -> T:
        weakref.finalize(thing, self.freed.append, name)
        return thing

    def device(self, index: int) -> EmulatedDevice:
        return self.watch(super().device(index), "device")

    def hw_context(self, device: EmulatedDevice, uuid: EmulatedUuid) -> EmulatedContext:
        return self.watch(super().hw_context(device, uuid), "context")

    def kernel(self, context: EmulatedContext, name: str) -> EmulatedKernel:
        return self.watch(super().kernel(context, name), "kernel")

    def run(self, kernel: EmulatedKernel) -> EmulatedRun:
        return self.watch(super().run(kernel), "run")


class WatchedBuffers(BufferType):
    """Tells buffers for instructions from those for data."""

    def __init__(self, emulator: Watched) -> None:
        super().__init__(emulator)
        self._watch = emulator.watch

    def __call__(self, *arguments: object) -> EmulatedBuffer:
        name = "instructions" if self.cacheable in arguments else "buffer"
        return self._watch(super().__call__(*arguments), name)


def test_closing_gives_everything_back_in_order(tmp_path: Path) -> None:
    threads = threading.active_count()
    xrt = Watched()
    device = open_npu(tmp_path, xrt)
    assert xrt.freed == ["run", "buffer", "buffer", "buffer"]  # of the check
    xrt.freed.clear()
    product = Product(device, NPU1, 300, 64, 128)
    a, b = integers(300, 64, 128)
    assert np.array_equal(product.compute(a, b), a @ b)
    assert (xrt.open_contexts, xrt.memory.live_buffers) == (1, 5)
    device.close()
    # The check had a size of its own.
    order = ["run", *["instructions"] * 2, *["buffer"] * 3, "kernel", "context", "device"]
    assert xrt.freed == order
    assert (xrt.open_contexts, xrt.memory.live_buffers) == (0, 0)
    assert threading.active_count() == threads
    device.close()  # again
    calls: tuple[Callable[[], object], ...] = (
        lambda: device.allocate(1),
        device.free_nbytes,
        dict(product.calls)["gemm"],
        dict(product.calls)["in"],
        lambda: device.bind_transfer(a, "in"),
    )
    for call in calls:
        with pytest.raises(DeviceError, match="the device is closed: open it again"):
            call()


def test_an_error_that_is_kept_keeps_no_run(tmp_path: Path) -> None:
    xrt = Watched()
    device = open_npu(tmp_path, xrt)
    product = Product(device, NPU1, 256, 64, 128)
    xrt.freed.clear()
    xrt.fail("execution", 1, "error")
    with pytest.raises(DeviceError, match="ERROR") as error:
        product.compute(*integers(256, 64, 128))
    device.close()
    assert error.tb is not None
    assert xrt.freed[0] == "run"
