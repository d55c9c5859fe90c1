"""The emulated array: what one instruction stream does to the memory its arguments name.

Streams are made of what the shims' DMA tasks move, pass by pass; the cores take tiles off them and
multiply: bf16 operands, fp32 sums. A *panel* is the K/k tiles that go into one tile of C. Work is
done in GEMMs as large as the streams allow: all rows of cores of a column, and all consecutive
tiles of C for which the panel of A stays the same, at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from aieflow.devices.xrt_emulator_moves import (
    Bytes,
    Channel,
    Granules,
    StallError,
    Stream,
    commanded,
    drain,
    expect,
    offsets,
    one_pass,
)
from aieflow.ops.npu.design import (
    A_CHANNEL,
    C_CHANNEL,
    IN_NBYTES,
    OUT_NBYTES,
    PARAMETERS,
    GemmDesign,
)
from aieflow.ops.npu.program import DmaTask, Program

Halves = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Work:
    """A program, ready to run on the design that the array was set up with."""

    design: GemmDesign
    tiles: int  # of C, for each core
    inner: int  # products for each of them
    a: tuple[Stream, ...]  # by row of cores
    b: tuple[Stream, ...]  # by column
    c: tuple[Stream, ...]  # by column; only what the program waits for
    flops: int
    nbytes: int  # that the DMAs move

    @property
    def outputs(self) -> tuple[DmaTask, ...]:
        """The tasks that write to memory."""
        return tuple(task for stream in self.c for task in stream.tasks)


def prepare(program: Program, design: GemmDesign) -> Work:
    """Read a program's commands in order; raises StallError where the array would not move on."""
    cores = [
        (column, design.generation.first_core_row + row)
        for column in range(design.columns)
        for row in range(design.rows)
    ]
    addresses = [design.parameters_address + 4 * index for index in range(PARAMETERS)]
    said = commanded(program, cores, addresses, design.barrier_lock)
    tiles, inner = said.parameters
    stream = said.take
    a = tuple(stream((design.carrier(row), "in", A_CHANNEL)) for row in range(design.rows))
    b = tuple(stream((column, "in", design.b_channel(column))) for column in range(design.columns))
    c = []
    for column in range(design.columns):
        channel: Channel = (column, "out", C_CHANNEL)
        all_tasks = stream(channel)
        expect(all_tasks, tiles * design.rows * design.m * design.n * OUT_NBYTES, channel)
        c.append(said.awaited(all_tasks, channel))
    for row, one in enumerate(a):
        expect(one, tiles * inner * design.m * design.k * IN_NBYTES, (row, "in", A_CHANNEL))
    for column, one in enumerate(b):
        channel = (column, "in", design.b_channel(column))
        expect(one, tiles * inner * design.k * design.n * IN_NBYTES, channel)
    said.expect_empty()
    return Work(
        design,
        tiles,
        inner,
        a,
        b,
        tuple(c),
        flops=2 * tiles * inner * len(cores) * design.m * design.k * design.n,
        nbytes=sum(one.nbytes for one in (*a, *b, *c)),
    )


def execute(work: Work, memory: Mapping[int, Bytes]) -> None:
    """Do the work on the device sides of the buffers; raises BadAccessError and StallError."""
    design = work.design
    r, s, t = design.micro_tile.r, design.micro_tile.s, design.micro_tile.t
    m, k, n = design.m // r, design.k // s, design.n // t  # in micro-tiles
    rows = [
        _panels(stream, work.inner * design.m * design.k * IN_NBYTES, memory) for stream in work.a
    ]
    # (panel, K/k, m/r, k/s, r, s) -> (panel, m, K), the rows of cores one below the other
    panels_a = [
        _widened(
            panels.reshape(-1, work.inner, m, k, r, s).transpose(0, 2, 4, 1, 3, 5),
        ).reshape(-1, design.m, work.inner * design.k)
        for panels, _ in rows
    ]
    orders_a = list(zip(*(order for _, order in rows), strict=True))
    for column, stream in enumerate(work.b):
        panels, order_b = _panels(stream, work.inner * design.k * design.n * IN_NBYTES, memory)
        # (panel, K/k, k/s, n/t, s, t) -> (K, panel, n)
        panels_b = _widened(
            panels.reshape(-1, work.inner, k, n, s, t).transpose(1, 2, 4, 0, 3, 5)
        ).reshape(work.inner * design.k, -1, design.n)
        # (tile, row of cores, m/r, n/t, r, t), as the memory tile joins them
        out = np.empty((work.tiles, design.rows, m, n, r, t), np.float32)
        for panel_a, group in groupby(range(work.tiles), key=orders_a.__getitem__):
            tiles = list(group)
            wanted = [order_b[tile] for tile in tiles]
            left = np.concatenate([a[i] for a, i in zip(panels_a, panel_a, strict=True)])
            right = panels_b[:, _selection(wanted)].reshape(len(panels_b), -1)
            product = np.matmul(left, right)
            out[tiles[0] : tiles[-1] + 1] = product.reshape(
                design.rows, m, r, len(tiles), n, t
            ).transpose(3, 0, 1, 4, 2, 5)
        drain(out.reshape(-1).view(np.uint32), work.c[column], memory)


def _selection(places: list[int]) -> slice | list[int]:
    """An index of `places`; consecutive ones need no copy."""
    first, last = places[0], places[-1] + 1
    return slice(first, last) if places == list(range(first, last)) else places


def _panels(stream: Stream, nbytes: int, memory: Mapping[int, Bytes]) -> tuple[Halves, list[int]]:
    """The different panels of a stream, and which of them follow each other in it."""
    pieces: list[Granules] = []
    order: list[int] = []
    count = 0
    for task in stream.tasks:
        passes = task.repeat if task.iteration_stride else 1
        task_pieces = [one_pass(task, offset, memory) for offset in offsets(task, passes)]
        pieces += task_pieces
        here = sum(piece.nbytes for piece in task_pieces)
        if here % nbytes:
            raise StallError(f"a task of {here} bytes is no whole number of panels of {nbytes}")
        panels = here // nbytes
        order += list(range(count, count + panels)) * (task.repeat // passes)
        count += panels
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return joined.view(np.uint16).reshape(-1, nbytes // IN_NBYTES), order


def _widened(bits: Halves) -> Floats:
    """bf16 bits, in any order of axes, as contiguous float32 of the same shape: exact."""
    wide = np.zeros((*bits.shape, 2), np.uint16)
    wide[..., 1] = bits  # the high half of each float32: hosts of these NPUs are little-endian
    return wide.view(np.float32)[..., 0]
