"""How the NPU's host buffers are laid out: tiles in the order in which the DMAs stream them.

A packed matrix is a sequence of tiles; a tile is a sequence of micro-tiles, row by row; a
micro-tile is row-major. The three operands differ in their tiles' order alone, which one rule
describes: a tile's place is the sum of what its row and its column count, and index i of either
counts (i mod lanes) step + (i div lanes) stride. See `design` for why the orders are these.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aieflow.ops.npu.design import (
    GemmDesign,
    GemmSize,
    column_blocks,
    inner_tiles,
    row_blocks,
)
from aieflow.ops.op import Array


@dataclass(frozen=True, slots=True)
class Range:
    """What of a row-major matrix (of its transpose, if so) is in a packed one."""

    rows: int
    columns: int
    first_row: int = 0
    first_column: int = 0
    transpose: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes are in elements, steps in tiles; `rows` and `columns` are padded."""

    rows: int
    columns: int
    tile_rows: int
    tile_columns: int
    micro_rows: int
    micro_columns: int
    row_lanes: int
    row_step: int
    row_stride: int
    column_lanes: int
    column_step: int
    column_stride: int

    @property
    def size(self) -> int:
        """Elements of the packed matrix."""
        return self.rows * self.columns

    @property
    def attrs(self) -> dict[str, int]:
        """The layout as attributes of a node."""
        return {name: getattr(self, name) for name in FIELDS}

    @staticmethod
    def of(attrs: Mapping[str, int | float]) -> "Layout":
        """The layout that a node's attributes describe; raises KeyError."""
        return Layout(**{name: int(attrs[name]) for name in FIELDS})


FIELDS = tuple(Layout.__dataclass_fields__)


def a_layout(design: GemmDesign, size: GemmSize) -> Layout:
    """Of A (M, K); does not depend on N."""
    padded = design.padded(size)
    r, s = design.micro_tile.r, design.micro_tile.s
    inner = inner_tiles(design, size)
    return Layout(padded.M, padded.K, design.m, design.k, r, s, 1, 0, inner, 1, 0, 1)


def b_layout(design: GemmDesign, size: GemmSize) -> Layout:
    """Of B (K, N); does not depend on M."""
    padded = design.padded(size)
    s, t = design.micro_tile.s, design.micro_tile.t
    inner = inner_tiles(design, size)
    lane = column_blocks(design, size) * inner
    return Layout(
        padded.K, padded.N, design.k, design.n, s, t, 1, 0, 1, design.columns, lane, inner
    )


def c_layout(design: GemmDesign, size: GemmSize) -> Layout:
    """Of C (M, N)."""
    padded = design.padded(size)
    r, t = design.micro_tile.r, design.micro_tile.t
    band = column_blocks(design, size) * design.rows
    return Layout(
        padded.M,
        padded.N,
        design.m,
        design.n,
        r,
        t,
        design.rows,
        1,
        band,
        design.columns,
        row_blocks(design, size) * band,
        design.rows,
    )


def scattered(layout: Layout, matrix: Array) -> Array:
    """The packed form, flat, of a matrix that starts at the first element; the rest is zero."""
    packed = np.zeros(layout.size, matrix.dtype)
    packed[positions(layout)[: matrix.shape[0], : matrix.shape[1]]] = matrix
    return packed


def gathered(layout: Layout, packed: Array) -> Array:
    """The padded matrix (rows, columns) that a packed one, flat, holds."""
    return np.asarray(packed[positions(layout)])


def positions(layout: Layout) -> npt.NDArray[np.int64]:
    """For each element of the padded matrix, (rows, columns), its index in the packed one."""
    row, column = np.arange(layout.rows)[:, None], np.arange(layout.columns)[None, :]
    i, j = row // layout.tile_rows, column // layout.tile_columns
    tile = i % layout.row_lanes * layout.row_step + i // layout.row_lanes * layout.row_stride
    tile = tile + j % layout.column_lanes * layout.column_step
    tile = tile + j // layout.column_lanes * layout.column_stride
    row, column = row % layout.tile_rows, column % layout.tile_columns
    micro = row // layout.micro_rows * (layout.tile_columns // layout.micro_columns)
    micro = micro + column // layout.micro_columns
    row, column = row % layout.micro_rows, column % layout.micro_columns
    place = tile * (layout.tile_rows * layout.tile_columns)
    place = place + micro * (layout.micro_rows * layout.micro_columns)
    return np.asarray(place + row * layout.micro_columns + column, np.int64)
