"""Between row-major fp32 and the NPU's packed layouts, in one pass each, on one thread.

Packing rounds to bf16 (to nearest, ties to even; infinities stay, a NaN stays one, made quiet),
transposes where asked, puts elements in their micro-tiles and fills up with zeros. Unpacking puts
the fp32 tiles of C back in rows and adds a bias and what is there already. Both go tile by tile
through a small buffer in cache, in words of 4 bf16 or 2 fp32 values: sizes of micro-tiles are
multiples of 4. bf16 is stored as its bits, uint16.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.operand import is_same
from aieflow.ops.npu.layout import Layout, Range
from aieflow.ops.op import Array

QUAD = 4  # bf16 values in a word of 64 bits
PAIR = 2  # fp32 values in one
LINE_TILES = 16  # tiles whose rows are unpacked at a time
BLOCK_TILES = 4  # tiles that are packed at a time

ROUND = np.uint32(0x7FFF)
ONE = np.uint32(1)
HALF = np.uint32(16)
MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITE = np.uint32(0x7F800000)
QUIET = np.uint32(0x40)

EVEN = np.uint64(0x0000FFFF0000FFFF)  # lanes 0 and 2 of 4
ODD = np.uint64(0xFFFF0000FFFF0000)
LOW = np.uint64(0x00000000FFFFFFFF)
HIGH = np.uint64(0xFFFFFFFF00000000)
LANE = np.uint64(16)
LANES = np.uint64(32)


@compiled
def _round(source: Array, out: Array) -> None:
    # source: bits of fp32; out: bits of bf16. Everything stays in 32 bits, so that it vectorises.
    for i in range(source.size):
        bits = source[i]
        rounded = np.uint32(np.uint32(bits + ROUND) + ((bits >> HALF) & ONE)) >> HALF
        quiet = (bits >> HALF) | QUIET
        out[i] = np.uint16(quiet if np.uint32(bits & MAGNITUDE) > INFINITE else rounded)


@compiled
def _place(tile: Array, out: Array) -> None:
    # tile (rows, micro-tiles across, quads of a micro-tile's row); out (micro-tiles down, across,
    # rows of one, quads of one)
    for down in range(out.shape[0]):
        for row in range(out.shape[2]):
            line = tile[down * out.shape[2] + row]
            if out.shape[3] == 1:
                for across in range(out.shape[1]):
                    out[down, across, row, 0] = line[across, 0]
            elif out.shape[3] == 2:
                for across in range(out.shape[1]):
                    out[down, across, row, 0] = line[across, 0]
                    out[down, across, row, 1] = line[across, 1]
            else:
                for across in range(out.shape[1]):
                    for quad in range(out.shape[3]):
                        out[down, across, row, quad] = line[across, quad]


@compiled
def _place_transposed(tile: Array, out: Array) -> None:
    # tile (columns, quads down): the transposed tile; out as above. Blocks of 4 x 4 are transposed
    # in four words: first neighbouring lanes change places, then pairs of lanes.
    tall, wide = out.shape[2] // QUAD, out.shape[3]
    for down in range(out.shape[0]):
        for across in range(out.shape[1]):
            for quad in range(wide):
                left = (across * wide + quad) * QUAD
                for row in range(tall):
                    at = down * tall + row
                    a, b, c, d = (
                        tile[left, at],
                        tile[left + 1, at],
                        tile[left + 2, at],
                        tile[left + 3, at],
                    )
                    ab, cd = (a & EVEN) | ((b & EVEN) << LANE), (c & EVEN) | ((d & EVEN) << LANE)
                    out[down, across, QUAD * row, quad] = (ab & LOW) | (cd << LANES)
                    out[down, across, QUAD * row + 2, quad] = (ab >> LANES) | (cd & HIGH)
                    ab, cd = ((a & ODD) >> LANE) | (b & ODD), ((c & ODD) >> LANE) | (d & ODD)
                    out[down, across, QUAD * row + 1, quad] = (ab & LOW) | (cd << LANES)
                    out[down, across, QUAD * row + 3, quad] = (ab >> LANES) | (cd & HIGH)


@compiled
def _tile_index(
    i: int, j: int, row_order: tuple[int, int, int], column_order: tuple[int, int, int]
) -> int:
    row = i % row_order[0] * row_order[1] + i // row_order[0] * row_order[2]
    return row + j % column_order[0] * column_order[1] + j // column_order[0] * column_order[2]


@compiled
def _round_block(
    source: Array, block: Array, first: tuple[int, int], filled: tuple[int, int]
) -> None:
    # block (rows, columns) <- source from `first` on; zeros where it ends
    for row in range(block.shape[0]):
        if row < filled[0]:
            start = first[1]
            _round(source[first[0] + row, start : start + filled[1]], block[row, : filled[1]])
            block[row, filled[1] :] = 0
        else:
            block[row, :] = 0


@compiled
def _pack_rows(
    source: Array,
    out: Array,
    block: Array,
    quads: Array,
    origin: tuple[int, int],
    useful: tuple[int, int],
    units: tuple[int, int],
    tiles_across: int,
    row_order: tuple[int, int, int],
    column_order: tuple[int, int, int],
) -> None:
    # source (rows, columns): bits of fp32; out (tiles, and as above); block and quads are the same
    # memory, (rows of a tile, columns) and (rows of a tile, tiles, micro-tiles across, their quads)
    height, tiles = quads.shape[0], quads.shape[1]
    width = block.shape[1] // tiles
    blocks = (tiles_across + tiles - 1) // tiles
    for unit in range(units[0], units[1]):
        i, start = unit // blocks, unit % blocks * tiles
        rows = min(height, useful[0] - i * height)
        columns = max(0, min(tiles * width, useful[1] - start * width))
        first = (origin[0] + i * height, origin[1] + start * width)
        _round_block(source, block, first, (rows, columns))
        for j in range(start, min(start + tiles, tiles_across)):
            target = out[_tile_index(i, j, row_order, column_order)]
            _place(quads[:, j - start], target)


@compiled
def _pack_columns(
    source: Array,
    out: Array,
    block: Array,
    quads: Array,
    origin: tuple[int, int],
    useful: tuple[int, int],
    units: tuple[int, int],
    tiles_across: int,
    row_order: tuple[int, int, int],
    column_order: tuple[int, int, int],
) -> None:
    # source (columns, rows); block (columns of a tile, rows); quads (columns of a tile, tiles,
    # quads down); the rest as above
    width, tiles = quads.shape[0], quads.shape[1]
    height, tiles_down = block.shape[1] // tiles, out.shape[0] // tiles_across
    for unit in range(units[0], units[1]):
        start, j = unit // tiles_across * tiles, unit % tiles_across
        rows = max(0, min(tiles * height, useful[0] - start * height))
        columns = min(width, useful[1] - j * width)
        first = (origin[1] + j * width, origin[0] + start * height)
        _round_block(source, block, first, (columns, rows))
        for i in range(start, min(start + tiles, tiles_down)):
            target = out[_tile_index(i, j, row_order, column_order)]
            _place_transposed(quads[:, i - start], target)


@compiled
def _gather(band: Array, lines: Array) -> None:
    # band (micro-tiles across, rows of one, pairs of one) of a tile -> lines (rows, across, pairs)
    for row in range(band.shape[1]):
        line = lines[row]
        if band.shape[2] == 2:
            for across in range(band.shape[0]):
                line[across, 0] = band[across, row, 0]
                line[across, 1] = band[across, row, 1]
        else:
            for across in range(band.shape[0]):
                for pair in range(band.shape[2]):
                    line[across, pair] = band[across, row, pair]


@compiled
def _copy(x: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = x[i]


@compiled
def _add(x: Array, y: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] = x[i] + y[i]


@compiled
def _add_to(x: Array, out: Array) -> None:
    for i in range(out.size):
        out[i] += x[i]


@compiled
def _unpack(
    packed: Array,
    bias: Array,
    before: Array,
    out: Array,
    lines: Array,
    pairs: Array,
    origin: tuple[int, int],
    useful: tuple[int, int],
    units: tuple[int, int],
    row_order: tuple[int, int, int],
    column_order: tuple[int, int, int],
    has_bias: bool,
    mode: int,
) -> None:
    # packed (tiles, micro-tiles down, across, rows of one, pairs of one); out, before (rows,
    # columns); lines and pairs: the same memory, (rows of a micro-tile, columns) and (rows of a
    # micro-tile, tiles, micro-tiles across, pairs of one). What happens to `before` is said by
    # mode: 0 nothing, 1 it is added, 2 it is added and is out.
    micro, tiles = pairs.shape[0], pairs.shape[1]
    width = lines.shape[1] // tiles
    for unit in range(units[0], units[1]):
        i, down, top = unit // packed.shape[1], unit % packed.shape[1], unit * micro
        for start in range(0, (useful[1] + width - 1) // width, tiles):
            left, right = start * width, min((start + tiles) * width, useful[1])
            for j in range(start, (right + width - 1) // width):
                tile = packed[_tile_index(i, j, row_order, column_order)]
                _gather(tile[down], pairs[:, j - start])
            for k in range(min(micro, useful[0] - top)):
                row = origin[0] + top + k
                line = lines[k, : right - left]
                target = out[row, origin[1] + left : origin[1] + right]
                if has_bias:
                    _add_to(bias[left:right], line)
                if mode == 0:
                    _copy(line, target)
                elif mode == 1:
                    _add(line, before[row, origin[1] + left : origin[1] + right], target)
                else:
                    _add_to(line, target)


def pack_call(
    source: npt.NDArray[np.float32],
    out: npt.NDArray[np.uint16],
    layout: Layout,
    taken: Range,
    room: npt.NDArray[np.uint16],
    units: tuple[int, int] | None = None,
) -> Callable[[], None]:
    """The call that packs a range of `source` (a matrix, row-major) into the bf16 bits `out`.

    What the range leaves free in the layout becomes zero. `room` is memory of `block_nbytes`;
    `units` limits the work to some of `pack_units`.
    """
    down, across, rows, columns = _micro_tiles(layout)
    if taken.transpose:
        block = room.reshape(layout.tile_columns, -1)
        shape: tuple[int, ...] = (layout.tile_columns, -1, layout.tile_rows // QUAD)
    else:
        block = room.reshape(layout.tile_rows, -1)
        shape = (layout.tile_rows, -1, across, columns // QUAD)
    function = _pack_columns if taken.transpose else _pack_rows
    arguments = (
        source.view(np.uint32),
        out.view(np.uint64).reshape(-1, down, across, rows, columns // QUAD),
        block,
        block.view(np.uint64).reshape(shape),
        (taken.first_row, taken.first_column),
        (taken.rows, taken.columns),
        units or (0, pack_units(layout, taken)),
        layout.columns // layout.tile_columns,
        *_orders(layout),
    )

    def run() -> None:
        function(*arguments)

    return run


def pack_units(layout: Layout, taken: Range) -> int:
    """Blocks of tiles side by side in the source: the units in which `pack_call` divides."""
    down, across = layout.rows // layout.tile_rows, layout.columns // layout.tile_columns
    beside, others = (down, across) if taken.transpose else (across, down)
    return -(-beside // BLOCK_TILES) * others


def block_nbytes(layout: Layout) -> int:
    """Bytes of room that `pack_call` needs: some tiles that lie side by side in the source."""
    return BLOCK_TILES * 2 * layout.tile_rows * layout.tile_columns


def unpack_call(
    packed: npt.NDArray[np.float32],
    out: npt.NDArray[np.float32],
    layout: Layout,
    taken: Range,
    room: npt.NDArray[np.float32],
    bias: npt.NDArray[np.float32] | None = None,
    addend: npt.NDArray[np.float32] | None = None,
    units: tuple[int, int] | None = None,
) -> Callable[[], None]:
    """The call that puts a packed C into a range of `out` (a matrix, row-major).

    `bias` (of out's columns) and `addend` (of out's shape; may be its memory) are added. `room` is
    memory of `line_nbytes`; `units` limits the work to some of `unpack_units`.
    """
    down, across, rows, columns = _micro_tiles(layout)
    lines = room.reshape(rows, -1)
    first, last = taken.first_column, taken.first_column + taken.columns
    arguments = (
        packed.view(np.uint64).reshape(-1, down, across, rows, columns // PAIR),
        lines[0] if bias is None else bias[first:last],
        out if addend is None else addend,
        out,
        lines,
        lines.view(np.uint64).reshape(rows, -1, across, columns // PAIR),
        (taken.first_row, taken.first_column),
        (taken.rows, taken.columns),
        units or (0, unpack_units(layout, taken)),
        *_orders(layout),
        bias is not None,
        0 if addend is None else 2 if is_same(addend, out) else 1,
    )

    def run() -> None:
        _unpack(*arguments)

    return run


def unpack_units(layout: Layout, taken: Range) -> int:
    """Rows of micro-tiles that hold something: the units in which `unpack_call` divides."""
    return -(-taken.rows // layout.micro_rows)


def line_nbytes(layout: Layout) -> int:
    """Bytes of room that `unpack_call` needs."""
    return 4 * layout.micro_rows * layout.tile_columns * LINE_TILES


def _micro_tiles(layout: Layout) -> tuple[int, int, int, int]:
    """Micro-tiles down and across a tile, rows and columns of one."""
    rows, columns = layout.micro_rows, layout.micro_columns
    return layout.tile_rows // rows, layout.tile_columns // columns, rows, columns


def _orders(layout: Layout) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    return (
        (layout.row_lanes, layout.row_step, layout.row_stride),
        (layout.column_lanes, layout.column_step, layout.column_stride),
    )


def to_bfloat16(x: Array) -> npt.NDArray[np.uint16]:
    """Bits of x (fp32) rounded to bf16: what packing does, in plain numpy."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    with np.errstate(over="ignore"):  # only of NaN, which the other branch takes
        rounded = (bits + ROUND + ((bits >> HALF) & ONE)) >> HALF
    quiet = (bits >> HALF) | QUIET
    return np.where((bits & MAGNITUDE) > INFINITE, quiet, rounded).astype(np.uint16)


def from_bfloat16(bits: Array) -> npt.NDArray[np.float32]:
    """The fp32 values that bf16 bits stand for; exact."""
    return (bits.astype(np.uint32) << HALF).view(np.float32)
