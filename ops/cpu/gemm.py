"""C = A B + first + second in fp32, by tiles that stay in registers: our own product.

The loops are those of Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication"
(ACM TOMS 34, 2008), less the outermost: K goes by blocks; of A a block of rows is packed for the
second-level cache; B goes by panels as wide as a tile, each packed once and then multiplied by all
of A's block. While one panel is multiplied, the memory of the next is prefetched a line at a time.

Every sum has one order, which hangs on K alone: however a product is divided, its bits are the
same.
"""

from typing import NamedTuple

import numpy as np

from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.operand import address
from aieflow.ops.cpu.vector import (
    FLOAT,
    LANES,
    LINE,
    NUMBER,
    TILE_COLUMNS,
    TILE_ROWS,
    UNROLLED,
    copy_tile_column,
    copy_tile_row,
    multiply_tile,
    transpose_block,
    transpose_to_panels,
)
from aieflow.ops.op import Array

BLOCK_INNER = 384  # of K; times TILE_COLUMNS floats is a panel of B
BLOCK_ROWS = 512  # of A: 768 KiB packed, within the second-level cache


@compiled
def pack_rows(
    a: Array, is_transposed: bool, first: int, rows: int, start: int, inner: int, packed: Array
) -> None:
    """Pack rows of A, a (M, K) or transposed (K, M), to panels (K, TILE_ROWS).

    Zeros stand where K is short of a turn, and in missing rows, whose sums nobody reads: what lies
    there may be subnormal numbers, which some processors multiply slowly.
    """
    padded = -(-inner // UNROLLED) * UNROLLED
    panel = padded * TILE_ROWS
    base, step = a.ctypes.data, a.shape[1]
    target = packed.ctypes.data
    panels = -(-rows // TILE_ROWS)
    if is_transposed:
        done, steps = rows // TILE_ROWS, inner  # panels that are whole; of each, steps along K
        for q in range(done):
            source = base + FLOAT * (start * step + first + q * TILE_ROWS)
            for k in range(inner):
                place = target + FLOAT * (q * panel + k * TILE_ROWS)
                copy_tile_column(source + FLOAT * k * step, place)
    else:
        done, steps = rows // LANES * 2, inner // LANES * LANES
        for q in range(0, done, 2):
            source = base + FLOAT * ((first + q * TILE_ROWS) * step + start)
            for k in range(0, steps, LANES):
                upper = target + FLOAT * (q * panel + k * TILE_ROWS)
                transpose_to_panels(source + FLOAT * k, step, upper, upper + FLOAT * panel)
    for q in range(panels):
        height = min(TILE_ROWS, rows - q * TILE_ROWS)
        top = first + q * TILE_ROWS
        for k in range(steps if q < done else 0, inner):
            place = q * panel + k * TILE_ROWS
            for i in range(height):
                packed[place + i] = (
                    a[start + k, top + i] if is_transposed else a[top + i, start + k]
                )
            for i in range(height, TILE_ROWS):
                packed[place + i] = 0
        for place in range(q * panel + inner * TILE_ROWS, (q + 1) * panel):
            packed[place] = 0


@compiled
def pack_columns(
    b: Array, is_transposed: bool, first: int, columns: int, start: int, inner: int, panel: Array
) -> None:
    """Pack columns of B, b (K, N) or transposed (N, K), to a panel (K, TILE_COLUMNS), likewise."""
    base, step = b.ctypes.data, b.shape[1]
    target = panel.ctypes.data
    steps = 0  # along K that are done
    if columns == TILE_COLUMNS and is_transposed:
        steps = inner // LANES * LANES
        source = base + FLOAT * (first * step + start)
        for j in range(0, TILE_COLUMNS, LANES):
            for k in range(0, steps, LANES):
                place = target + FLOAT * (k * TILE_COLUMNS + j)
                transpose_block(source + FLOAT * (j * step + k), step, place, TILE_COLUMNS)
    elif columns == TILE_COLUMNS:
        steps = inner
        source = base + FLOAT * (start * step + first)
        for k in range(inner):
            copy_tile_row(source + FLOAT * k * step, target + FLOAT * k * TILE_COLUMNS)
    for k in range(steps, inner):
        place = k * TILE_COLUMNS
        for j in range(columns):
            panel[place + j] = b[first + j, start + k] if is_transposed else b[start + k, first + j]
        for j in range(columns, TILE_COLUMNS):
            panel[place + j] = 0
    padded = -(-inner // UNROLLED) * UNROLLED
    for place in range(inner * TILE_COLUMNS, padded * TILE_COLUMNS):
        panel[place] = 0


@compiled
def lines_of_panel(step: int, is_transposed: bool, inner: int, lines: Array) -> int:
    """Write where the cache lines of a panel of B begin, in bytes from its first; how many."""
    rows = TILE_COLUMNS if is_transposed else inner
    across = -(-inner // LANES) if is_transposed else TILE_COLUMNS // LANES
    for row in range(rows):
        for line in range(across):
            lines[row * across + line] = FLOAT * row * step + LINE * line
    return rows * across


@compiled
def lines_of_tile(step: int, lines: Array) -> None:
    """Write where the cache lines of a tile of C begin, in bytes from its first; repeat one."""
    across = TILE_COLUMNS // LANES
    for index in range(lines.size):
        line = min(index, TILE_ROWS * across - 1)
        lines[index] = FLOAT * (line // across) * step + LINE * (line % across)


class Sources(NamedTuple):
    """What is added to a product; absent ones are arrays of any content."""

    bias: Array  # (N,)
    addend: Array  # (M, N), or the output itself
    has_bias: bool
    has_addend: bool


class Workspace(NamedTuple):
    """Memory of one product at a time."""

    packed: Array  # float32, a block of A
    panel: Array  # float32, of B
    tile: Array  # float32, one that sticks out of C
    lines_b: Array  # int64, see `lines_of_panel`
    lines_c: Array  # int64, see `lines_of_tile`


def workspace_nbytes(rows: int, inner: int) -> int:
    """Bytes of workspace of a product with so many rows of C and so long a K."""
    return sum(_workspace_nbytes(rows, inner)) + LINE  # to begin at a cache line


def workspace(memory: Array, rows: int, inner: int) -> Workspace:
    """`workspace_nbytes` bytes of memory (uint8) as `multiply` takes them."""
    views: list[Array] = []
    first = -address(memory) % LINE
    for nbytes in _workspace_nbytes(rows, inner):
        views.append(memory[first : first + nbytes])
        first += nbytes
    packed, panel, tile = (view.view(np.float32) for view in views[:3])
    lines_b, lines_c = (view.view(np.int64) for view in views[3:])
    return Workspace(packed, panel, tile, lines_b, lines_c)


def _workspace_nbytes(rows: int, inner: int) -> tuple[int, ...]:
    rows = min(BLOCK_ROWS, -(-rows // TILE_ROWS) * TILE_ROWS)
    inner = min(BLOCK_INNER, -(-inner // LANES) * LANES)
    panel = FLOAT * inner * TILE_COLUMNS
    tile = FLOAT * TILE_ROWS * TILE_COLUMNS
    return FLOAT * rows * inner, panel, tile, NUMBER * panel // LINE, NUMBER * inner // UNROLLED


@compiled
def multiply(
    out: Array,
    a: Array,
    b: Array,
    transposed: tuple[bool, bool],
    block: tuple[int, int, int, int],
    sources: Sources,
    memory: Workspace,
) -> None:
    """Compute one block [first, last) of rows and columns of out (M, N) = A B + sources.

    All matrices are float32 and contiguous; out overlaps no operand but, wholly, the addend.
    """
    first_row, last_row, first_column, last_column = block
    transpose_a, transpose_b = transposed
    K = a.shape[0] if transpose_a else a.shape[1]
    c, ldc, ldb = out.ctypes.data, out.shape[1], b.shape[1]
    lines_of_tile(ldc, memory.lines_c)
    blocks = -(-K // BLOCK_INNER)
    size = -(-K // (blocks * LANES)) * LANES  # of all blocks of K but the last
    for start in range(0, K, size):
        inner = min(size, K - start)
        lines = lines_of_panel(ldb, transpose_b, inner, memory.lines_b)
        for top in range(first_row, last_row, BLOCK_ROWS):
            bottom = min(top + BLOCK_ROWS, last_row)
            pack_rows(a, transpose_a, top, bottom - top, start, inner, memory.packed)
            for left in range(first_column, last_column, TILE_COLUMNS):
                columns = min(TILE_COLUMNS, last_column - left)
                pack_columns(b, transpose_b, left, columns, start, inner, memory.panel)
                beside = left + TILE_COLUMNS  # the next panel; after the last, the first once more
                beside = beside if beside < last_column else first_column
                place = beside * ldb + start if transpose_b else start * ldb + beside
                ahead_b = b.ctypes.data + FLOAT * place
                _multiply_panel(
                    out,
                    (top, bottom, left, columns),
                    inner,
                    start == 0,
                    sources,
                    memory,
                    (ahead_b, lines, c + FLOAT * (top * ldc + beside)),
                )


@compiled
def _multiply_panel(
    out: Array,
    block: tuple[int, int, int, int],
    inner: int,
    is_first: bool,
    sources: Sources,
    memory: Workspace,
    ahead: tuple[int, int, int],
) -> None:
    """Add to one panel of out what one block of K brings; the first brings the sources, too."""
    top, bottom, left, columns = block
    ahead_b, lines, ahead_c_beside = ahead
    ldc = out.shape[1]
    padded = -(-inner // UNROLLED) * UNROLLED
    turns = padded // UNROLLED
    has_bias = is_first and sources.has_bias
    has_addend = is_first and sources.has_addend
    tile, panel, lines_c = memory.tile.ctypes.data, memory.panel.ctypes.data, memory.lines_c.ctypes
    for index in range(-(-(bottom - top) // TILE_ROWS)):
        row = top + index * TILE_ROWS
        height = min(TILE_ROWS, bottom - row)
        at_a = memory.packed.ctypes.data + FLOAT * index * padded * TILE_ROWS
        at_c = out.ctypes.data + FLOAT * (row * ldc + left)
        lines_b = memory.lines_b.ctypes.data + NUMBER * min(index * turns, lines - turns)
        ahead_c = at_c + FLOAT * TILE_ROWS * ldc if row + TILE_ROWS < bottom else ahead_c_beside
        is_whole = height == TILE_ROWS and columns == TILE_COLUMNS
        target, ld_target = (at_c, ldc) if is_whole else (tile, TILE_COLUMNS)
        first, ld_first, second = 0, ldc, 0
        if is_whole and not is_first:
            first = at_c
        elif is_whole:
            if has_addend:
                first = sources.addend.ctypes.data + FLOAT * (row * ldc + left)
            if has_bias:
                second, first = first, sources.bias.ctypes.data + FLOAT * left
                ld_first = 0
        multiply_tile(
            *(padded, at_a, panel, target, ld_target, first, ld_first, second, ldc),
            *(ahead_b, lines_b, ahead_c, lines_c.data),
        )
        if is_whole:
            continue
        for i in range(height):
            for j in range(columns):
                total = memory.tile[i * TILE_COLUMNS + j]
                if not is_first:
                    total += out[row + i, left + j]
                if has_bias:
                    total += sources.bias[left + j]
                if has_addend:
                    total += sources.addend[row + i, left + j]
                out[row + i, left + j] = total
