"""Matrix products through BLAS, and column sums.

What is added to a product (bias, addend) is written into the output first, and BLAS adds the
product to it (beta = 1): no temporary array. A product of many rows is divided by rows, so that a
lane goes on with its own rows of a tensor. One of few rows is divided by columns: BLAS packs B
anew in each call, and so each part packs its own columns only.
"""

from collections.abc import Callable

import numpy as np

from aieflow.ops import matmul
from aieflow.ops.cpu import blas
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.operand import NO_FLOATS, address, flat, floats, idle, is_same, matrix
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split
from aieflow.ops.matmul import matmul_operands
from aieflow.ops.op import Array

FEW_ROWS = 512  # up to here a product is divided by columns, unless A is transposed
STRIP = 16  # columns that stay together: a cache line
FLOAT = 4  # bytes
PLAIN_ROWS = 256  # rows of the temporary block where NumPy multiplies instead of BLAS
ZERO, ONE = np.float32(0), np.float32(1)


def _split_matmul(node: Node) -> Split:
    out = node.output_specs[0]
    _, addend = matmul_operands(node.attrs)
    if _is_by_columns(out.rows, bool(node.attrs.get("transpose_a"))):
        # Columns are no leading rows; but a part reads the addend only where it writes.
        alike = frozenset({addend} if addend is not None else ())
        return Split(-(-out.columns // STRIP), alike=alike)
    inputs = {addend} if addend is not None else set()
    if not node.attrs.get("transpose_a"):
        inputs.add(0)
    return Split(out.rows, frozenset(inputs), frozenset({0}))


def _is_by_columns(rows: int, transpose_a: bool) -> bool:
    return rows <= FEW_ROWS and not transpose_a


def _workspace_matmul(node: Node) -> int:
    out = node.output_specs[0]
    return 0 if blas.load() else FLOAT * min(out.rows, PLAIN_ROWS) * out.columns


@compiled
def _product(
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


def bind_matmul(call: Call, through_blas: bool = True) -> Callable[[], None]:
    """Bind a product; without BLAS it goes through np.matmul and a temporary block."""
    out = matrix(call.outputs[0])
    M, N = out.shape
    first_row, last_row, first, last = 0, M, 0, N
    if _is_by_columns(M, bool(call.attrs.get("transpose_a"))):
        first, last = (min(N, STRIP * strip) for strip in call.share(-(-N // STRIP)))
    else:
        first_row, last_row = call.share(M)
    if first_row == last_row or first == last:
        return idle
    a, b = matrix(call.inputs[0]), matrix(call.inputs[1])
    transpose_a = bool(call.attrs.get("transpose_a"))
    transpose_b = bool(call.attrs.get("transpose_b"))
    at_bias, at_addend = matmul_operands(call.attrs)
    bias = flat(call.inputs[at_bias]) if at_bias is not None else None
    addend = matrix(call.inputs[at_addend]) if at_addend is not None else None
    if bias is not None and is_same(bias, out):  # possible where M is 1: the two are alike
        start = bias.reshape(1, N)
        bias = None if addend is None else flat(addend)
        addend = start
    if not (through_blas and blas.load()):
        a_block = a[:, first_row:last_row].T if transpose_a else a[first_row:last_row]
        b_block = b[first:last].T if transpose_b else b[:, first:last]
        temporary = floats(call.workspace, min(M, PLAIN_ROWS) * (last - first))
        place = (slice(first_row, last_row), slice(first, last))
        return _bind_numpy(
            a_block,
            b_block,
            out[place],
            None if bias is None else bias[first:last],
            None if addend is None else addend[place],
            temporary.reshape(-1, last - first),
        )
    lda, ldb = a.shape[1], b.shape[1]
    inner = a.shape[0] if transpose_a else lda
    a_address = address(a) + FLOAT * first_row * (1 if transpose_a else lda)
    b_address = address(b) + FLOAT * first * (ldb if transpose_b else 1)
    is_in_place = addend is not None and is_same(addend, out)
    has = (bias is not None, addend is not None, is_in_place)
    bias = NO_FLOATS if bias is None else bias
    addend = NO_FLOATS.reshape(1, 1) if addend is None else addend
    block = (first_row, last_row, first, last)
    operands = (inner, a_address, lda, transpose_a, b_address, ldb, transpose_b)

    def run(alive: tuple[Array, Array] = (a, b)) -> None:
        _product(out, bias, addend, has, block, operands)

    return run


def _bind_numpy(
    a: Array, b: Array, out: Array, bias: Array | None, addend: Array | None, temporary: Array
) -> Callable[[], None]:
    def run() -> None:
        for first in range(0, len(out), PLAIN_ROWS):
            rows = slice(first, first + PLAIN_ROWS)
            target = out[rows] if addend is None else temporary[: len(out[rows])]
            np.matmul(a[rows], b, out=target)
            if addend is not None:
                np.add(target, addend[rows], out=out[rows])
            if bias is not None:
                np.add(out[rows], bias, out=out[rows])

    return run


MATMUL = HostKernel("blas", matmul.MATMUL, bind_matmul, _split_matmul, _workspace_matmul)


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
