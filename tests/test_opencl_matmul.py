"""The OpenCL matrix product: every variant against float64, and in each way to lay memory.

The bound on an error is that of a sum of n = K + 2 terms in fp32, whatever its order (Higham,
"Accuracy and Stability of Numerical Algorithms", section 3.1): n u / (1 - n u) times the sum of the
terms' magnitudes, u = 2^-24; the two beyond K are bias and addend. With 16-bit storage each operand
is off by 2^-11 of itself, or by 2^-25 where it is below 2^-14, before the sum.

Operands lie in one adopted arena whose bytes are NaN, so what a kernel should not read shows, and
what it should not write is NaN afterwards.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from aieflow.devices.base import PAGE
from aieflow.ops import matmul as matmul_op
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call
from aieflow.ops.matmul import matmul_reference
from aieflow.ops.op import Array
from aieflow.ops.opencl import matmul
from aieflow.ops.opencl.matmul import launches, matmul_kernel, workspace
from aieflow.ops.opencl.variants import (
    CPU_VARIANTS,
    GPU_VARIANTS,
    VARIANTS,
    GpuVariant,
    Product,
    Variant,
    product_of,
)
from aieflow.ops.spec import Spec

try:
    from aieflow.devices.opencl import OpenClDevice
    from aieflow.devices.opencl_driver import list_devices
except Exception as error:  # pyopencl is missing, or its library
    pytest.skip(str(error), allow_module_level=True)

DEVICES = list_devices()
pytestmark = [
    pytest.mark.opencl,
    pytest.mark.skipif(not DEVICES, reason="no OpenCL driver has a device: install PoCL"),
]
U = 2.0**-24
GAP = 256  # between operands in the arena
TRANSPOSITIONS = tuple(itertools.product((False, True), repeat=2))


def node_of(product: Product, bias: bool = False, addend: bool = False) -> Node:
    M, N, K = product.M, product.N, product.K
    builder = Builder("case")
    values = [
        builder.state("a", Spec((K, M) if product.transpose_a else (M, K)), "parameter"),
        builder.state("b", Spec((N, K) if product.transpose_b else (K, N)), "parameter"),
    ]
    if bias:
        values.append(builder.state("bias", Spec((N,)), "parameter"))
    if addend:
        values.append(builder.state("addend", Spec((M, N)), "parameter"))
    attrs = {"transpose_a": product.transpose_a, "transpose_b": product.transpose_b}
    builder.apply(matmul_op.MATMUL, values, ["out"], attrs | {"bias": bias, "addend": addend})
    return builder.nodes[-1]


def draw(product: Product, bias: bool = False, addend: bool = False, seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    specs = node_of(product, bias, addend).input_specs
    return [rng.standard_normal(spec.shape, dtype=np.float32) for spec in specs]


class Runner:
    """Runs single products on one device, all of whose memory is an arena of NaN."""

    def __init__(self) -> None:
        self._forced: dict[Node, Variant] = {}
        kernel = matmul_kernel(lambda node: self._forced[node])
        self._kernel = kernel
        self._device = OpenClDevice(DEVICES[0].device, kernels={kernel.op.name: kernel})

    def __call__(
        self, node: Node, variant: Variant, inputs: list[Array], over: int | None = None
    ) -> Array:
        """The output; `over` is the input whose memory it takes. Checks what lies around it."""
        self._forced[node] = variant
        out = np.full(node.output_specs[0].shape, np.nan, np.float32)
        space = np.full(max(1, self._kernel.workspace(node)), 0xFF, np.uint8)
        given = [*inputs, out, space]
        starts = list(
            itertools.accumulate((-(-x.nbytes // GAP) * GAP + GAP for x in given), initial=GAP)
        )
        memory = self._device.allocate(-(-starts[-1] // PAGE) * PAGE).data
        memory[:] = 0xFF
        placed = [
            memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
            for start, x in zip(starts, given, strict=False)
        ]
        for target, x in zip(placed, given, strict=True):
            target[...] = x
        *operands, out, space = placed
        if over is not None:
            out = operands[over].reshape(out.shape)
        before = memory.copy()
        self._device.transfer(memory, "in")
        self._device.bind(node, Call(tuple(operands), (out,), node.attrs, space))()
        finish = self._device.finish("igpu.compute")
        assert finish is not None
        finish()
        self._device.transfer(memory, "out")
        result: Array = out.copy()
        for own in (out, space):  # every other byte is as it was
            offset = own.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
            before[offset : offset + own.nbytes] = memory[offset : offset + own.nbytes]
        np.testing.assert_array_equal(memory, before)
        self._device.disown(memory)
        return result

    def close(self) -> None:
        self._device.close()


@pytest.fixture(scope="module")
def run() -> Iterator[Runner]:
    runner = Runner()
    yield runner
    runner.close()


def magnitude(inputs: list[Array], node: Node) -> Array:
    """The sum of the terms' magnitudes of each element."""
    (out,) = matmul_reference(tuple(abs(x.astype(np.float64)) for x in inputs), node.attrs)
    return out


def check(node: Node, inputs: list[Array], got: Array, half: bool = False) -> None:
    wide = [x.astype(np.float64) for x in inputs]
    (expected,) = matmul_reference(tuple(wide), node.attrs)
    terms = product_of(node).K + 2
    assert terms * U < 0.01
    bound = terms * U / (1 - terms * U) * magnitude(inputs, node)
    if half:
        # |a'b' - ab| <= |a| db + |b| da + da db, and fp32 sums the rounded operands
        off = [np.maximum(2.0**-11 * abs(x), 2.0**-25) for x in wide[:2]]
        wider = [abs(x) + delta for x, delta in zip(wide[:2], off, strict=True)]
        attrs = {key: node.attrs[key] for key in ("transpose_a", "transpose_b")}
        (rounded,) = matmul_reference(tuple(wider), attrs)
        (exact,) = matmul_reference(tuple(abs(x) for x in wide[:2]), attrs)
        bound = 1.01 * bound + (rounded - exact)
    assert not np.isnan(got).any()
    excess = abs(got - expected) - bound
    assert excess.max() <= 0, f"{excess.max():.3g} over the bound"


# Shapes around the edges of a tile, whole tiles, and one element.
def shapes(variant: Variant) -> list[tuple[int, int, int]]:
    rows, columns = variant.rows, variant.columns
    return [(1, 1, 1), (rows + 1, columns - 1, 17), (2 * rows - 1, columns, 52)]


@pytest.mark.parametrize(
    ("transpose_a", "transpose_b", "has_extras"),
    [*((*both, False) for both in TRANSPOSITIONS), (False, False, True)],
    ids=["nn", "nt", "tn", "tt", "nn-bias-addend"],
)
@pytest.mark.parametrize(
    "variant", [*CPU_VARIANTS, GPU_VARIANTS[-1]], ids=lambda variant: variant.name
)
def test_products_are_right(
    run: Runner, variant: Variant, transpose_a: bool, transpose_b: bool, has_extras: bool
) -> None:
    for seed, (M, N, K) in enumerate(shapes(variant)):
        product = Product(M, N, K, transpose_a, transpose_b)
        node = node_of(product, has_extras, has_extras)
        inputs = draw(product, has_extras, has_extras, seed)
        check(node, inputs, run(node, variant, inputs))
        if has_extras:
            in_place = run(node, variant, inputs, over=3)
            np.testing.assert_array_equal(in_place, run(node, variant, inputs))


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(one, id=one.name, marks=[pytest.mark.slow] if turn % 5 in (1, 2, 3) else [])
        for turn, one in enumerate(v for v in VARIANTS if v not in CPU_VARIANTS)
    ],
)
def test_every_gpu_variant_is_right(run: Runner, variant: GpuVariant) -> None:
    """In one of the transpositions each: all variants share their text."""
    transpose_a, transpose_b = TRANSPOSITIONS[VARIANTS.index(variant) % 4]
    product = Product(variant.rows + 3, variant.columns + 6, 40, transpose_a, transpose_b)
    node, inputs = node_of(product, addend=True), draw(product, addend=True)
    check(node, inputs, run(node, variant, inputs, over=2), variant.half)


@pytest.mark.parametrize("variant", [CPU_VARIANTS[0], GPU_VARIANTS[-1]], ids=lambda v: v.name)
@pytest.mark.parametrize("extra", ["bias", "addend"])
def test_one_row_may_take_the_memory_of_what_is_added(
    run: Runner, variant: Variant, extra: str
) -> None:
    product = Product(1, 70, 33)
    is_bias = extra == "bias"
    node, inputs = node_of(product, is_bias, not is_bias), draw(product, is_bias, not is_bias)
    check(node, inputs, run(node, variant, inputs, over=2))


def test_random_shapes_are_right(run: Runner) -> None:
    rng = np.random.default_rng(3)
    for _ in range(40):
        M, N, K = (int(size) for size in rng.integers(1, [90, 130, 500]))
        product = Product(M, N, K, bool(rng.integers(2)), bool(rng.integers(2)))
        node, inputs = node_of(product), draw(product, seed=M)
        check(node, inputs, run(node, CPU_VARIANTS[0], inputs))


@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (True, True)])
def test_large_products_go_by_blocks(
    run: Runner, monkeypatch: pytest.MonkeyPatch, transpose_a: bool, transpose_b: bool
) -> None:
    """Several blocks along each axis, with short ones at the ends, as if operands were large."""
    monkeypatch.setattr(matmul, "MOST_INNER", 48)
    monkeypatch.setattr(matmul, "MOST_A", 48 * 128)
    monkeypatch.setattr(matmul, "MOST_B", 48 * 96)
    variant = CPU_VARIANTS[0]
    product = Product(270, 200, 130, transpose_a, transpose_b)
    node, inputs = node_of(product, True, True), draw(product, True, True)
    functions = [launch.function for launch in launches(node, variant)]
    # along K in 3 blocks of at most 48, 3 of rows, 3 of columns
    assert functions.count("pack_a") == 9
    assert functions.count("pack_b") == functions.count("multiply_panels") == 27
    assert workspace(node, variant) == 4 * 48 * (128 + 96)
    check(node, inputs, run(node, variant, inputs, over=3))


def test_blocks_bound_the_workspace() -> None:
    """The head of GPT-2 124M: 154 MB of weights, packed 20 MiB at a time at most."""
    for product in (
        Product(1024, 50257, 768, transpose_b=True),
        Product(1024, 768, 50257),
        Product(50257, 768, 1024, transpose_a=True),
    ):
        node = node_of(product)
        assert max(workspace(node, variant) for variant in CPU_VARIANTS) <= 20 << 20


def test_what_is_not_finite_stays_in_its_row_and_column(run: Runner) -> None:
    product = Product(20, 60, 21)
    inputs = draw(product)
    inputs[0][3, 20], inputs[1][5, 59] = np.inf, np.nan
    for variant in (CPU_VARIANTS[0], GPU_VARIANTS[-1]):
        got = run(node_of(product), variant, inputs)
        is_touched = np.zeros((20, 60), bool)
        is_touched[3] = is_touched[:, 59] = True
        np.testing.assert_array_equal(~np.isfinite(got), is_touched)


def test_small_numbers_lose_what_is_stated_in_16_bits(run: Runner) -> None:
    """Numbers of 2^-26 to 2^-10: below 2^-14 a 16-bit float has fewer bits, below 2^-25 none."""
    product = Product(33, 41, 23)
    rng = np.random.default_rng(4)
    inputs = [
        (x * 2.0 ** rng.integers(-26, -10, x.shape)).astype(np.float32) for x in draw(product)
    ]
    node = node_of(product)
    half = replace(GPU_VARIANTS[-1], half=True)
    got = run(node, half, inputs)
    check(node, inputs, got, half=True)
    with pytest.raises(AssertionError, match="over the bound"):  # it did round
        check(node, inputs, got)


def test_16_bits_are_rounded_to_nearest(run: Runner) -> None:
    """3 of 4 parts of the way between two 16-bit floats, also where there are no four together."""
    half = replace(GPU_VARIANTS[-1], half=True)
    for count in (3, 4):
        above = np.full((count, 1), 1 + 0.75 * 2.0**-10, np.float32)
        got = run(node_of(Product(count, 1, 1)), half, [above, np.ones((1, 1), np.float32)])
        np.testing.assert_array_equal(got, 1 + 2.0**-10)


def test_the_same_node_gives_the_same_bits(run: Runner) -> None:
    product = Product(100, 90, 700)
    inputs = draw(product)
    for variant in (CPU_VARIANTS[0], GPU_VARIANTS[-1]):
        first, second = (run(node_of(product), variant, inputs) for _ in range(2))
        np.testing.assert_array_equal(first, second)
