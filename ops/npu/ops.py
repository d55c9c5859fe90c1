"""The ops of a product on the NPU: pack the operands, multiply, unpack the result.

They stand in a graph where `expansion` has put them for a matmul. Packed values are flat; a node's
attributes tell their layout, so two packs of one value with equal attributes are the same value.
An NPU rounds what it multiplies to bf16; products are exact, sums are in fp32.
"""

from collections.abc import Mapping

import numpy as np

from aieflow.ops.npu.design import GemmDesign, GemmSize
from aieflow.ops.npu.generation import GENERATIONS
from aieflow.ops.npu.layout import Layout, Range, a_layout, b_layout, c_layout, gathered, scattered
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.op import Arrays, Attrs, Op, Specs, require
from aieflow.ops.spec import Spec

AXES_MAX = 4


def range_attrs(taken: Range) -> dict[str, int]:
    """A range as attributes of a node."""
    return {
        "used_rows": taken.rows,
        "used_columns": taken.columns,
        "first_row": taken.first_row,
        "first_column": taken.first_column,
        "transpose": int(taken.transpose),
    }


def range_of(attrs: Attrs) -> Range:
    """The range that a node's attributes describe."""
    return Range(
        int(attrs["used_rows"]),
        int(attrs["used_columns"]),
        int(attrs["first_row"]),
        int(attrs["first_column"]),
        bool(attrs["transpose"]),
    )


def shape_attrs(shape: tuple[int, ...]) -> dict[str, int]:
    """The shape of an unpacked result as attributes of a node."""
    return {f"axis_{index}": size for index, size in enumerate(shape)}


def shape_of(attrs: Attrs) -> tuple[int, ...]:
    """The shape that a node's attributes describe."""
    names = (f"axis_{index}" for index in range(AXES_MAX))
    return tuple(int(attrs[name]) for name in names if name in attrs)


def gemm_attrs(design: GemmDesign, size: GemmSize) -> dict[str, int]:
    """A product, not padded, and what of the design its layouts depend on, as attributes."""
    return {
        "M": size.M,
        "K": size.K,
        "N": size.N,
        "generation": design.generation.code,
        "m": design.m,
        "k": design.k,
        "n": design.n,
        "array_columns": design.columns,
    }


def gemm_size_of(attrs: Attrs) -> GemmSize:
    """The product that a node's attributes describe, not padded."""
    return GemmSize(int(attrs["M"]), int(attrs["K"]), int(attrs["N"]))


def gemm_design_of(attrs: Attrs) -> GemmDesign:
    """A design with the layouts that a node's attributes describe."""
    by_code = {generation.code: generation for generation in GENERATIONS.values()}
    return GemmDesign(
        by_code[int(attrs["generation"])],
        int(attrs["m"]),
        int(attrs["k"]),
        int(attrs["n"]),
        int(attrs["array_columns"]),
    )


def _check_range(taken: Range, rows: int, columns: int, layout: Layout) -> None:
    last = (taken.first_row + taken.rows, taken.first_column + taken.columns)
    require(last[0] <= rows and last[1] <= columns, f"takes up to {last} of {(rows, columns)}")
    require(
        taken.rows <= layout.rows and taken.columns <= layout.columns,
        f"takes {(taken.rows, taken.columns)}, more than the layout's "
        f"{(layout.rows, layout.columns)}",
    )


def _infer_pack(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) == 1, f"takes 1 operand, given {len(inputs)}")
    require(inputs[0].dtype == "float32", f"packs float32, given {inputs[0]}")
    layout, taken = Layout.of(attrs), range_of(attrs)
    rows, columns = inputs[0].rows, inputs[0].columns
    _check_range(taken, *((columns, rows) if taken.transpose else (rows, columns)), layout)
    return (Spec((layout.size,), "bfloat16"),)


def pack_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Bits of bf16 (uint16), flat; source (..., C) is a matrix of its last axis."""
    source, taken = inputs[0].reshape(-1, inputs[0].shape[-1]), range_of(attrs)
    matrix = source.T if taken.transpose else source
    rows = slice(taken.first_row, taken.first_row + taken.rows)
    columns = slice(taken.first_column, taken.first_column + taken.columns)
    return (scattered(Layout.of(attrs), to_bfloat16(matrix[rows, columns])),)


def _no_flops(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    return 0


def _moved_by_pack(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    """The range of the source, and all of the packed value."""
    taken = range_of(attrs)
    return inputs[0].storage.itemsize * taken.rows * taken.columns + outputs[0].nbytes


PACK = Op("npu_pack", _infer_pack, _no_flops, pack_reference, moves=_moved_by_pack)


def _infer_repack(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) == 2, f"takes 2 operands, given {len(inputs)}")
    (out,) = _infer_pack(inputs[:1], attrs)
    require(inputs[1] == out, f"repacks {inputs[1]}, its layout gives {out}")
    return (out,)


def repack_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """As `pack_reference`; the second operand, the packed value of before, gives its memory."""
    return pack_reference(inputs[:1], attrs)


REPACK = Op(
    "npu_repack",
    _infer_repack,
    _no_flops,
    repack_reference,
    updates={0: 1},
    moves=_moved_by_pack,
)


def _infer_gemm(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) == 2, f"takes 2 operands, given {len(inputs)}")
    design, size = gemm_design_of(attrs), gemm_size_of(attrs)
    for name, spec, layout in zip(
        "AB", inputs, (a_layout(design, size), b_layout(design, size)), strict=True
    ):
        expected = Spec((layout.size,), "bfloat16")
        require(spec == expected, f"packed {name} must be {expected}, given {spec}")
    return (Spec((c_layout(design, size).size,)),)


def gemm_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Packed A and B (bf16 bits) -> packed C (fp32); padding included."""
    design, size = gemm_design_of(attrs), gemm_size_of(attrs)
    a = from_bfloat16(gathered(a_layout(design, size), inputs[0]))
    b = from_bfloat16(gathered(b_layout(design, size), inputs[1]))
    with np.errstate(invalid="ignore", over="ignore"):  # infinities and NaN are the caller's
        c = a @ b
    return (scattered(c_layout(design, size), c),)


def _flops_gemm(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    return gemm_size_of(attrs).flops


GEMM = Op("npu_gemm", _infer_gemm, _flops_gemm, gemm_reference)


def unpack_operands(attrs: Attrs) -> tuple[int | None, int | None]:
    """The positions of the optional operands: (bias, what was there before)."""
    bias = 1 if attrs.get("bias") else None
    before = attrs.get("addend") or attrs.get("so_far")
    return bias, (2 if bias else 1) if before else None


def _infer_unpack(inputs: Specs, attrs: Attrs) -> Specs:
    bias, before = unpack_operands(attrs)
    expected = 1 + (bias is not None) + (before is not None)
    require(len(inputs) == expected, f"takes {expected} operands, given {len(inputs)}")
    require(
        not (attrs.get("addend") and attrs.get("so_far")),
        "takes an addend or an output so far, not both: an addend is both",
    )
    layout, taken = Layout.of(attrs), range_of(attrs)
    packed = Spec((layout.size,))
    require(inputs[0] == packed, f"packed C must be {packed}, given {inputs[0]}")
    out = Spec(shape_of(attrs))
    _check_range(taken, out.rows, out.columns, layout)
    if bias is not None:
        require(inputs[bias].shape == (out.columns,), f"bias must have shape ({out.columns},)")
    if before is not None:
        require(inputs[before] == out, f"what was before must be {out}, given {inputs[before]}")
    return (out,)


def unpack_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """The result, or a range of it, from packed C; bias and addend are added in the range.

    Elsewhere the result is the addend, or what was so far; where there is neither, later nodes fill
    it (here it is zero, a kernel leaves it as it was).
    """
    bias, before = unpack_operands(attrs)
    taken, shape = range_of(attrs), shape_of(attrs)
    rows = slice(taken.first_row, taken.first_row + taken.rows)
    columns = slice(taken.first_column, taken.first_column + taken.columns)
    out = np.zeros(shape, inputs[0].dtype) if before is None else inputs[before].copy()
    c = gathered(Layout.of(attrs), inputs[0])[: taken.rows, : taken.columns]
    if bias is not None:
        c = c + inputs[bias][columns]
    matrix = out.reshape(-1, shape[-1])
    if attrs.get("addend"):
        c = c + matrix[rows, columns]
    matrix[rows, columns] = c
    return (out,)


def _flops_unpack(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    taken = range_of(attrs)
    return taken.rows * taken.columns * (bool(attrs.get("bias")) + bool(attrs.get("addend")))


def _moved_by_unpack(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    """The range, read packed and written, and read where it is added to.

    What lies around the range is in place wherever a plan lets the result have its memory.
    """
    taken, bias = range_of(attrs), bool(attrs.get("bias"))
    passes = 3 if attrs.get("addend") else 2
    return outputs[0].storage.itemsize * taken.columns * (passes * taken.rows + bias)


UNPACK = Op(
    "npu_unpack",
    _infer_unpack,
    _flops_unpack,
    unpack_reference,
    may_overwrite={0: (2, 1)},
    moves=_moved_by_unpack,
)

OPS: Mapping[str, Op] = {op.name: op for op in (PACK, REPACK, GEMM, UNPACK)}
