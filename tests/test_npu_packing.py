"""Packing and unpacking, bit for bit, against plain numpy; special values, ranges, shares."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aieflow.ops.graph import Node, Value
from aieflow.ops.kernel import Call, HostKernel
from aieflow.ops.npu.design import GemmDesign, GemmSize
from aieflow.ops.npu.generation import NPU1, NPU2
from aieflow.ops.npu.kernels import PACK_KERNEL, REPACK_KERNEL, UNPACK_KERNEL
from aieflow.ops.npu.layout import Layout, Range, a_layout, b_layout, c_layout, gathered, positions
from aieflow.ops.npu.ops import range_attrs, shape_attrs
from aieflow.ops.npu.packing import from_bfloat16, pack_units, to_bfloat16, unpack_units
from aieflow.ops.op import Array, Arrays
from aieflow.ops.spec import Spec

GUARD = 64
DESIGNS = (
    GemmDesign(NPU1, 16, 16, 32, columns=4),
    GemmDesign(NPU2, 8, 8, 32, columns=8),
    # micro-tiles of 3 words, the general loop
    GemmDesign(
        replace(NPU1, micro_tile=replace(NPU1.micro_tile, r=8, s=12, t=12)), 16, 24, 24, columns=4
    ),
)


def bits(*values: int) -> npt.NDArray[np.float32]:
    return np.array(values, np.uint32).view(np.float32)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (0x3F800000, 0x3F80),  # 1
        (0x3F808000, 0x3F80),  # halfway, even below
        (0x3F818000, 0x3F82),  # halfway, even above
        (0x3F808001, 0x3F81),  # just above halfway
        (0x3F807FFF, 0x3F80),  # just below halfway
        (0xBF818000, 0xBF82),  # ties do not look at the sign
        (0x00000000, 0x0000),
        (0x80000000, 0x8000),  # -0 stays
        (0x00000001, 0x0000),  # the smallest denormal vanishes
        (0x00008000, 0x0000),  # denormal, halfway to the smallest of bf16
        (0x00018000, 0x0002),  # denormal, halfway, to even
        (0x007FFFFF, 0x0080),  # the largest denormal becomes normal
        (0x7F7FFFFF, 0x7F80),  # the largest value rounds to infinity
        (0x7F7F7FFF, 0x7F7F),  # the largest that does not
        (0x7F800000, 0x7F80),  # infinities stay
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7FC0),  # a NaN whose bits would be cut off stays one
        (0xFF800001, 0xFFC0),
        (0x7FC12345, 0x7FC1),  # what fits of a NaN's bits stays
        (0x7FFFFFFF, 0x7FFF),  # rounding up would make it -0
        (0xFFFFFFFF, 0xFFFF),
    ],
)
def test_rounding(given_: int, expected: int) -> None:
    assert to_bfloat16(bits(given_)) == expected
    layout = a_layout(DESIGNS[0], GemmSize(1, 9, 1))
    for transpose in (False, True):
        source = np.full((9, 1) if transpose else (1, 9), bits(given_), np.float32)
        packed = run_pack(source, layout, Range(1, 9, transpose=transpose))
        assert (gathered(layout, packed)[0, :9] == expected).all()


def test_rounding_is_to_the_nearest() -> None:
    """Against float64: no other bf16 value is nearer, and at a tie the chosen one is even."""
    x = np.random.default_rng(1).standard_normal(4096).astype(np.float32)
    x[::4] = (x[::4].view(np.uint32) & 0xFFFF8000 | 0x8000).view(np.float32)  # ties
    chosen = to_bfloat16(x)
    off = np.abs(from_bfloat16(chosen).astype(np.float64) - x)
    for step in (-1, 1):
        other = np.abs(from_bfloat16(chosen + np.uint16(step % 2**16)).astype(np.float64) - x)
        assert (off <= other).all()
        assert (chosen[off == other] % 2 == 0).all()
    assert np.array_equal(to_bfloat16(from_bfloat16(chosen)), chosen)


def call_parts(
    kernel: HostKernel, inputs: Arrays, out: Array, attrs: dict[str, int], parts: int
) -> Array:
    specs = [Spec(x.shape, "bfloat16" if x.dtype == np.uint16 else "float32") for x in inputs]
    node = Node(
        "node",
        kernel.op,
        tuple(Value(f"x{index}", spec) for index, spec in enumerate(specs)),
        tuple(Value("y", spec) for spec in kernel.op.infer(tuple(specs), attrs)),
        attrs,
    )
    assert kernel.split(node).units >= 1
    nbytes = kernel.workspace(node)
    for part in range(parts):
        workspace = np.full(nbytes + GUARD, 0xFF, np.uint8)
        kernel.bind(Call(inputs, (out,), attrs, workspace[:nbytes], part, parts))()
        assert (workspace[nbytes:] == 0xFF).all()
    return out


def run_pack(
    source: npt.NDArray[np.float32], layout: Layout, taken: Range, parts: int = 1
) -> Array:
    attrs = {**layout.attrs, **range_attrs(taken)}
    before = source.copy()
    guarded = np.full(layout.size + GUARD, 0xABCD, np.uint16)
    call_parts(PACK_KERNEL, (source,), guarded[: layout.size], attrs, parts)
    assert (guarded[layout.size :] == 0xABCD).all()
    assert np.array_equal(source.view(np.uint32), before.view(np.uint32))
    (expected,) = PACK_KERNEL.op.reference((source,), attrs)
    assert np.array_equal(guarded[: layout.size], expected)
    return guarded[: layout.size]


def any_bits(random: np.random.Generator, *shape: int) -> npt.NDArray[np.float32]:
    """Every kind of fp32: also denormals, infinities and NaN."""
    values = random.integers(0, 2**32, shape, np.uint32)
    values[random.random(shape) < 0.1] |= 0x7F800000
    values[random.random(shape) < 0.1] &= 0x807FFFFF
    return values.view(np.float32)


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: str(d.micro_tile))
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("operand", [a_layout, b_layout])
@pytest.mark.parametrize("shape", [(1, 1), (64, 128), (65, 129), (150, 300), (3, 700), (513, 5)])
def test_packing(
    design: GemmDesign, transpose: bool, operand: object, shape: tuple[int, int]
) -> None:
    random = np.random.default_rng(shape[0])
    rows, columns = shape
    size = GemmSize(rows, columns, 1) if operand is a_layout else GemmSize(1, rows, columns)
    layout = (a_layout if operand is a_layout else b_layout)(design, size)
    whole = any_bits(random, *((columns, rows) if transpose else shape))
    packed = run_pack(whole, layout, Range(rows, columns, transpose=transpose))
    padded = gathered(layout, packed)
    assert not padded[rows:].any()
    assert not padded[:, columns:].any()
    for parts in (2, 3, 7):
        assert np.array_equal(
            run_pack(whole, layout, Range(rows, columns, transpose=transpose), parts), packed
        )
    # the same as a range of something larger, which is full of what must not be touched
    larger = np.full((whole.shape[0] + 9, whole.shape[1] + 6), np.nan, np.float32)
    larger[5:-4, 3:-3] = whole
    first = (3, 5) if transpose else (5, 3)
    taken = Range(rows, columns, *first, transpose)
    assert np.array_equal(run_pack(larger, layout, taken, 2), packed)


def test_conversions_of_a_small_batch_divide_over_many_lanes() -> None:
    """256 tokens of 768: four rows of tiles only, yet 12 units to pack and 64 to unpack."""
    size, design = GemmSize(256, 768, 768), GemmDesign(NPU1, 64, 64, 32, columns=4)
    for layout, transpose, units in (
        (a_layout(design, size), False, 4 * 3),
        (a_layout(design, size), True, 12),
        (b_layout(design, size), False, 12 * 6),
        (b_layout(design, size), True, 24 * 3),
    ):
        taken = Range(layout.rows, layout.columns, transpose=transpose)
        assert pack_units(layout, taken) == units
    assert unpack_units(c_layout(design, size), Range(256, 768)) == 64


def test_a_source_of_three_axes_is_a_matrix_of_its_last() -> None:
    layout = a_layout(DESIGNS[0], GemmSize(6, 10, 1))
    source = np.random.default_rng(0).standard_normal((2, 3, 10)).astype(np.float32)
    packed = run_pack(source, layout, Range(6, 10))
    assert np.array_equal(packed, run_pack(source.reshape(6, 10), layout, Range(6, 10)))


def test_repacking_takes_the_old_memory() -> None:
    layout = b_layout(DESIGNS[0], GemmSize(1, 40, 50))
    attrs = {**layout.attrs, **range_attrs(Range(40, 50))}
    new = np.random.default_rng(0).standard_normal((40, 50)).astype(np.float32)
    old = np.full(layout.size, 0xFFFF, np.uint16)
    out = call_parts(REPACK_KERNEL, (new, old), old, attrs, 2)
    assert REPACK_KERNEL.op.updates == {0: 1}
    assert np.array_equal(out, run_pack(new, layout, Range(40, 50)))


@pytest.mark.parametrize("design", DESIGNS, ids=lambda d: str(d.micro_tile))
@pytest.mark.parametrize("operand", [a_layout, b_layout, c_layout])
def test_a_layout_has_a_place_for_every_element(design: GemmDesign, operand: object) -> None:
    layout_of = {id(f): f for f in (a_layout, b_layout, c_layout)}[id(operand)]
    layout = layout_of(design, GemmSize(150, 50, 300))
    assert np.array_equal(np.sort(positions(layout), axis=None), np.arange(layout.size))
    assert Layout.of({**layout.attrs, "other": 1}) == layout


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_unpacking(data: st.DataObject) -> None:
    design = data.draw(st.sampled_from(DESIGNS))
    rows, columns = data.draw(st.integers(1, 150)), data.draw(st.integers(1, 700))
    above, left = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
    below, right = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 5))
    has_bias = data.draw(st.booleans())
    before = data.draw(st.sampled_from(("", "addend", "so_far")))
    in_place, parts = data.draw(st.booleans()), data.draw(st.integers(1, 4))
    random = np.random.default_rng(rows * columns)
    layout = c_layout(design, GemmSize(rows, 1, columns))
    taken = Range(rows, columns, above, left)
    shape = (above + rows + below, left + columns + right)
    attrs = {**layout.attrs, **range_attrs(taken), **shape_attrs(shape), "bias": int(has_bias)}
    inputs: list[Array] = [random.standard_normal(layout.size).astype(np.float32)]
    if has_bias:
        inputs.append(random.standard_normal(shape[1]).astype(np.float32))
    if before:
        inputs.append(random.standard_normal(shape).astype(np.float32))
        attrs[before] = 1
    (expected,) = UNPACK_KERNEL.op.reference(tuple(inputs), attrs)
    out = inputs[-1] if before and in_place else np.full(shape, np.nan, np.float32)
    call_parts(UNPACK_KERNEL, tuple(inputs), out, attrs, parts)
    inside = np.zeros(shape, bool)
    inside[above : above + rows, left : left + columns] = True
    assert np.array_equal(out[inside], expected[inside])
    if before:
        assert np.array_equal(out, expected)
    else:
        assert np.isnan(out[~inside]).all()
