"""Matrix products, by our own tiles or through BLAS, and column sums.

Products of some size go by tiles (`gemm`) on processors with AVX-512, and wherever there is no
BLAS; all others go through BLAS. What is added to a product (bias, addend) needs no temporary:
tiles add it as they write, and for BLAS it is written into the output first (beta = 1). A product
of many rows is divided by rows, so that a lane goes on with its own rows of a tensor. One of few
rows is divided by columns: B is packed anew in each part, and so each packs its own columns only.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from aieflow.ops import matmul
from aieflow.ops.cpu import blas, gemm
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.operand import NO_FLOATS, address, flat, idle, is_same, matrix
from aieflow.ops.cpu.vector import FLOAT, TILE_COLUMNS, has_wide_registers
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split
from aieflow.ops.matmul import matmul_operands
from aieflow.ops.op import Array, Attrs

FEW_ROWS = 512  # up to here a product is divided by columns, unless A is transposed
LEAST_TILED_ROWS = 64  # below, packing B costs more than tiles bring
ZERO, ONE = np.float32(0), np.float32(1)


def _split_matmul(node: Node) -> Split:
    out = node.output_specs[0]
    _, addend = matmul_operands(node.attrs)
    if _is_by_columns(out.rows, node.attrs):
        # Columns are no leading rows; but a part reads the addend only where it writes.
        alike = frozenset({addend} if addend is not None else ())
        return Split(-(-out.columns // TILE_COLUMNS), alike=alike)
    inputs = {addend} if addend is not None else set()
    if not node.attrs.get("transpose_a"):
        inputs.add(0)
    return Split(out.rows, frozenset(inputs), frozenset({0}))


def _is_by_columns(rows: int, attrs: Attrs) -> bool:
    return rows <= FEW_ROWS and not attrs.get("transpose_a")


def is_by_tiles(rows: int) -> bool:
    """Whether a product of so many rows goes by our own tiles here."""
    return not blas.load() or (rows >= LEAST_TILED_ROWS and has_wide_registers())


def _workspace_matmul(node: Node) -> int:
    rows, a = node.output_specs[0].rows, node.input_specs[0]
    inner = a.rows if node.attrs.get("transpose_a") else a.columns
    return gemm.workspace_nbytes(rows, inner) if is_by_tiles(rows) else 0


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """One part's operands: the block of out (M, N) that it computes, A, B, and what is added."""

    out: Array
    a: Array
    b: Array
    transposed: tuple[bool, bool]
    block: tuple[int, int, int, int]  # rows and columns [first, last)
    bias: Array | None  # (N,)
    addend: Array | None  # (M, N)

    @property
    def is_empty(self) -> bool:
        """Whether this part has nothing to do."""
        first_row, last_row, first, last = self.block
        return first_row == last_row or first == last


def product_of(call: Call) -> Product:
    """The operands of one part of a product."""
    out = matrix(call.outputs[0])
    M, N = out.shape
    first_row, last_row, first, last = 0, M, 0, N
    if _is_by_columns(M, call.attrs):
        first, last = (min(N, TILE_COLUMNS * unit) for unit in call.share(-(-N // TILE_COLUMNS)))
    else:
        first_row, last_row = call.share(M)
    at_bias, at_addend = matmul_operands(call.attrs)
    bias = flat(call.inputs[at_bias]) if at_bias is not None else None
    addend = matrix(call.inputs[at_addend]) if at_addend is not None else None
    if bias is not None and is_same(bias, out):  # possible where M is 1: the two are alike
        start = bias.reshape(1, N)
        bias = None if addend is None else flat(addend)
        addend = start
    transposed = bool(call.attrs.get("transpose_a")), bool(call.attrs.get("transpose_b"))
    block = (first_row, last_row, first, last)
    a, b = matrix(call.inputs[0]), matrix(call.inputs[1])
    return Product(out, a, b, transposed, block, bias, addend)


def _bind_matmul(call: Call) -> Callable[[], None]:
    product = product_of(call)
    if product.is_empty:
        return idle
    if is_by_tiles(len(product.out)):
        return bind_tiles(product, call.workspace)
    return bind_blas(product)


def bind_tiles(product: Product, workspace: Array) -> Callable[[], None]:
    """A call that computes one part by our own tiles; workspace: `gemm.workspace_nbytes`."""
    bias, addend = product.bias, product.addend
    sources = gemm.Sources(
        NO_FLOATS if bias is None else bias,
        NO_FLOATS.reshape(1, 1) if addend is None else addend,
        bias is not None,
        addend is not None,
    )
    inner = product.a.shape[0 if product.transposed[0] else 1]
    memory = gemm.workspace(workspace, len(product.out), inner)

    def run() -> None:
        gemm.multiply(
            product.out, product.a, product.b, product.transposed, product.block, sources, memory
        )

    return run


@compiled
def _blas_product(
    out: Array,
    bias: Array,
    addend: Array,
    has: tuple[bool, bool, bool],
    block: tuple[int, int, int, int],
    operands: tuple[int, int, int, bool, int, int, bool],
) -> None:
    # out, addend (M, N), bias (N,); rows and columns of the block; K, a, lda, ta, b, ldb, tb
    has_bias, has_addend, is_in_place = has
    first_row, last_row, first, last = block
    inner, a, lda, transpose_a, b, ldb, transpose_b = operands
    if has_bias or (has_addend and not is_in_place):
        shared = bias[first:last]
        for i in range(first_row, last_row):
            row = out[i, first:last]
            if has_addend and not is_in_place:
                added = addend[i, first:last]
                if has_bias:
                    for j in range(row.size):
                        row[j] = added[j] + shared[j]
                else:
                    for j in range(row.size):
                        row[j] = added[j]
            elif has_addend:
                for j in range(row.size):
                    row[j] += shared[j]
            else:
                for j in range(row.size):
                    row[j] = shared[j]
    columns = out.shape[1]
    c = out.ctypes.data + 4 * (first_row * columns + first)
    beta = ONE if has_bias or has_addend else ZERO
    rows, width = last_row - first_row, last - first
    blas.sgemm(transpose_a, transpose_b, rows, width, inner, ONE, a, lda, b, ldb, beta, c, columns)


def bind_blas(product: Product) -> Callable[[], None]:
    """A call that computes one part through BLAS; needs `blas.load`."""
    out, a, b, bias, addend = product.out, product.a, product.b, product.bias, product.addend
    transpose_a, transpose_b = product.transposed
    first_row, _, first, _ = product.block
    lda, ldb = a.shape[1], b.shape[1]
    inner = a.shape[0] if transpose_a else lda
    a_address = address(a) + FLOAT * first_row * (1 if transpose_a else lda)
    b_address = address(b) + FLOAT * first * (ldb if transpose_b else 1)
    is_in_place = addend is not None and is_same(addend, out)
    has = (bias is not None, addend is not None, is_in_place)
    some_bias = NO_FLOATS if bias is None else bias
    some_addend = NO_FLOATS.reshape(1, 1) if addend is None else addend
    operands = (inner, a_address, lda, transpose_a, b_address, ldb, transpose_b)

    def run() -> None:
        _blas_product(product.out, some_bias, some_addend, has, product.block, operands)

    return run


MATMUL = HostKernel("gemm", matmul.MATMUL, _bind_matmul, _split_matmul, _workspace_matmul)


def _split_column_sum(node: Node) -> Split:
    inputs = frozenset({1} if len(node.inputs) == 2 else ())
    return Split(node.output_specs[0].size, inputs, frozenset({0}))


@compiled
def _column_sum(x: Array, out: Array, addend: Array, mode: int, first: int) -> None:
    # x (M, N), out, addend (columns first ... of N,); mode 0: no addend, 1: addend, 2: out is it
    rows, columns = x.shape[0], out.size
    if mode == 0:
        for j in range(columns):
            out[j] = ZERO
    elif mode == 1:
        for j in range(columns):
            out[j] = addend[j]
    paired = rows - rows % 4
    for i in range(0, paired, 4):
        r0, r1 = x[i, first : first + columns], x[i + 1, first : first + columns]
        r2, r3 = x[i + 2, first : first + columns], x[i + 3, first : first + columns]
        for j in range(columns):
            out[j] += (r0[j] + r1[j]) + (r2[j] + r3[j])
    for i in range(paired, rows):
        r0 = x[i, first : first + columns]
        for j in range(columns):
            out[j] += r0[j]


def _bind_column_sum(call: Call) -> Callable[[], None]:
    out = flat(call.outputs[0])
    first, last = call.share(out.size)
    if first == last:
        return idle
    x = matrix(call.inputs[0])
    addend = flat(call.inputs[1])[first:last] if len(call.inputs) == 2 else NO_FLOATS
    out = out[first:last]
    mode = 0 if len(call.inputs) == 1 else 2 if is_same(addend, out) else 1

    def run() -> None:
        _column_sum(x, out, addend, mode, first)

    return run


COLUMN_SUM = HostKernel("loop", matmul.COLUMN_SUM, _bind_column_sum, _split_column_sum)
