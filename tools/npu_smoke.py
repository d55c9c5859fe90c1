"""The smoke test of an NPU: does it compute, how long is a command, how fast is a sync.

It takes about a second, needs one design, and says "emulated" where no hardware is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from aieflow.devices.npu import NpuDevice
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node, Value
from aieflow.ops.kernel import Call
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.design import GemmDesign, GemmSize
from aieflow.ops.npu.expansion import expand_matmul
from aieflow.ops.npu.ops import GEMM
from aieflow.ops.op import Array
from aieflow.ops.spec import Spec

SIZE = GemmSize(1024, 768, 768)  # one of GPT-2's products
CALLS = 50  # of the smallest product, for the latency
SYNC_NBYTES = 16 << 20
SYNCS = 10


@dataclass(frozen=True, slots=True)
class SmokeTest:
    """What was measured."""

    identity: str
    is_emulated: bool
    size: tuple[int, int, int]  # of the product that was held against numpy
    product_s: float  # of its commands alone
    command_s: float  # median, of the smallest product
    slowest_command_s: float
    in_bytes_per_s: float
    out_bytes_per_s: float


def smoke_test(device: NpuDevice, design: GemmDesign, size: GemmSize = SIZE) -> SmokeTest:
    """Compute and measure; raises DeviceError where a product is wrong, or the NPU fails."""
    draw = np.random.default_rng(1)
    # whole numbers so small that bf16 holds them and every sum is exact in fp32
    a, b = (draw.integers(-7, 8, shape).astype(np.float32) for shape in _shapes(size))
    product = _Product(device, design, size)
    product_s = product.compute(a, b)
    wrong = np.argwhere(product.arrays["c"] != a @ b)
    if len(wrong):
        place = tuple(int(index) for index in wrong[0])
        raise DeviceError(
            f"npu: a product of {size.M}x{size.K}x{size.N} is wrong in {len(wrong)} of "
            f"{size.M * size.N} elements, first at {place}: build the design again (`aieflow npu "
            "clean`, `aieflow npu build`), and report it as docs/npu.md says"
        )
    smallest = _Product(device, design, design.granule)
    ones = [np.ones(shape, np.float32) for shape in _shapes(design.granule)]
    times = [smallest.compute(*ones) for _ in range(CALLS)]
    memory = device.allocate(SYNC_NBYTES).data
    rates = []
    for direction in ("in", "out"):
        sync = device.bind_transfer(memory, "in" if direction == "in" else "out")
        rates.append(SYNC_NBYTES / median(_seconds(sync) for _ in range(SYNCS)))
    return SmokeTest(
        device.identity,
        device.is_emulated,
        (size.M, size.K, size.N),
        product_s,
        median(times),
        max(times),
        rates[0],
        rates[1],
    )


def describe(found: SmokeTest) -> tuple[str, ...]:
    """Lines that can be pasted into a report."""
    M, K, N = found.size
    rate = 2 * M * K * N / found.product_s / 1e12
    where = " (emulated: these are no figures of hardware)" if found.is_emulated else ""
    return (
        f"smoke test on {found.identity}{where}",
        f"  product {M}x{K}x{N}: equal to numpy's, {1e3 * found.product_s:.2f} ms, "
        f"{rate:.2f} TFLOP/s",
        f"  smallest command: median of {CALLS} {1e6 * found.command_s:,.0f} us, slowest "
        f"{1e6 * found.slowest_command_s:,.0f} us",
        f"  sync: {found.in_bytes_per_s / 1e9:.2f} GB/s in, {found.out_bytes_per_s / 1e9:.2f} "
        "GB/s out",
    )


def _shapes(size: GemmSize) -> tuple[tuple[int, int], tuple[int, int]]:
    return (size.M, size.K), (size.K, size.N)


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class _Product:
    """A matmul as a plan would run it: its nodes with the transfers between."""

    def __init__(self, device: NpuDevice, design: GemmDesign, size: GemmSize) -> None:
        a, b = (Value(name, Spec(shape)) for name, shape in zip("ab", _shapes(size), strict=True))
        out = Value("c", Spec((size.M, size.N)))
        self.arrays: dict[str, Array] = {}
        self._calls: list[tuple[bool, Callable[[], None]]] = []  # whether it is the array's
        for node in expand_matmul(Node("product", MATMUL, (a, b), (out,), {}), design):
            for value in (*node.inputs, *node.outputs):
                self._place(device, value)
            inputs, outputs = (
                tuple(self.arrays[value.name] for value in values)
                for values in (node.inputs, node.outputs)
            )
            room = np.empty(device.kernels[node.op.name].workspace(node), np.uint8)
            call = device.bind(node, Call(inputs, outputs, node.attrs, room))
            if node.op is not GEMM:
                self._calls.append((False, call))
                continue
            self._calls += [(False, device.bind_transfer(x, "in")) for x in inputs]
            self._calls.append((True, call))
            self._calls += [(False, device.bind_transfer(x, "out")) for x in outputs]

    def _place(self, device: NpuDevice, value: Value) -> None:
        if value.name not in self.arrays:
            nbytes = value.spec.nbytes
            is_host = value.name in ("a", "b", "c")
            memory = np.zeros(nbytes, np.uint8) if is_host else device.allocate(nbytes).data
            self.arrays[value.name] = memory.view(value.spec.storage).reshape(value.spec.shape)

    def compute(self, a: Array, b: Array) -> float:
        """Run all; the seconds that the array's commands took."""
        self.arrays["a"][:], self.arrays["b"][:] = a, b
        total = 0.0
        for is_command, call in self._calls:
            seconds = _seconds(call)
            total += seconds if is_command else 0.0
        return total
