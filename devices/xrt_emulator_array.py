"""The emulated array: what one instruction stream does to the memory its arguments name.

Streams are made of what the shims' DMA tasks move, pass by pass; the cores take tiles off them and
multiply: bf16 operands, fp32 sums. A *panel* is the K/k tiles that go into one tile of C. Work is
done in GEMMs as large as the streams allow: all rows of cores of a column, and all consecutive
tiles of C for which the panel of A stays the same, at once.

What the hardware would do with a bad stream cannot be known; here the array waits for ever
(`StallError`), or faults where it would touch memory beyond its buffers (`BadAccessError`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from aieflow.ops.npu.design import (
    A_CHANNEL,
    C_CHANNEL,
    IN_NBYTES,
    OUT_NBYTES,
    PARAMETERS,
    GemmDesign,
)
from aieflow.ops.npu.generation import GRANULE_NBYTES
from aieflow.ops.npu.program import DmaTask, LockSet, ParameterWrite, Program, Sync

Bytes = npt.NDArray[np.uint8]
Granules = npt.NDArray[np.uint32]
Halves = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Channel = tuple[int, str, int]  # column, direction, number


class StallError(Exception):
    """The array waits for something that never comes."""


class BadAccessError(Exception):
    """A DMA would leave its buffer."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """What goes through one channel in one direction."""

    tasks: tuple[DmaTask, ...]

    @property
    def nbytes(self) -> int:
        return sum(task.nbytes for task in self.tasks)


@dataclass(frozen=True, slots=True)
class Work:
    """A program, ready to run on the design that the array was set up with."""

    design: GemmDesign
    tiles: int  # of C, for each core
    inner: int  # products for each of them
    a: tuple[_Stream, ...]  # by row of cores
    b: tuple[_Stream, ...]  # by column
    c: tuple[_Stream, ...]  # by column; only what the program waits for
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
    written: dict[tuple[int, int], dict[int, int]] = {core: {} for core in cores}
    released: set[tuple[int, int]] = set()
    queued: dict[Channel, list[DmaTask]] = {}
    waited: dict[Channel, int] = {}
    for command in program.commands:
        if isinstance(command, ParameterWrite):
            written.setdefault((command.column, command.row), {})[command.address] = command.value
        elif isinstance(command, LockSet):
            if command.lock == design.barrier_lock and command.value == 1:
                released.add((command.column, command.row))
        elif isinstance(command, DmaTask):
            queued.setdefault((command.column, command.direction, command.channel), []).append(
                command
            )
        elif isinstance(command, Sync):
            channel = (command.column, command.direction, command.channel)
            waited[channel] = _after_next_token(queued.get(channel, []), waited.get(channel, 0))
    if not released.issuperset(cores):
        raise StallError(f"{len(set(cores) - released)} cores wait at their barriers")
    addresses = [design.parameters_address + 4 * index for index in range(PARAMETERS)]
    found = {tuple(written[core].get(address, 0) for address in addresses) for core in cores}
    if len(found) != 1:
        raise StallError(f"cores were given different parameters: {sorted(found)}")
    tiles, inner = found.pop()
    if tiles < 1 or inner < 1:
        raise StallError(f"cores were given no work: {tiles} tiles of {inner} products")

    def stream(channel: Channel) -> _Stream:
        return _Stream(tuple(queued.pop(channel, ())))

    a = tuple(stream((design.carrier(row), "in", A_CHANNEL)) for row in range(design.rows))
    b = tuple(stream((column, "in", design.b_channel(column))) for column in range(design.columns))
    c = []
    for column in range(design.columns):
        channel = (column, "out", C_CHANNEL)
        all_tasks = stream(channel)
        _expect(all_tasks, tiles * design.rows * design.m * design.n * OUT_NBYTES, channel)
        # What nobody waits for may still be on its way when the command ends: it is left undone.
        c.append(_Stream(all_tasks.tasks[: waited.get(channel, 0)]))
    for row, one in enumerate(a):
        _expect(one, tiles * inner * design.m * design.k * IN_NBYTES, (row, "in", A_CHANNEL))
    for column, one in enumerate(b):
        channel = (column, "in", design.b_channel(column))
        _expect(one, tiles * inner * design.k * design.n * IN_NBYTES, channel)
    if queued:
        raise StallError(f"tasks on channels that the design does not use: {sorted(queued)}")
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


def _after_next_token(tasks: Sequence[DmaTask], first: int) -> int:
    """The place behind the next task from `first` on that sends a token."""
    for place in range(first, len(tasks)):
        if tasks[place].has_token:
            return place + 1
    raise StallError("the controller waits for a token that no task sends")


def _expect(stream: _Stream, nbytes: int, channel: Channel) -> None:
    if stream.nbytes != nbytes:
        raise StallError(f"stream {channel} moves {stream.nbytes} bytes, the cores take {nbytes}")


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
        _drain(out.reshape(-1).view(np.uint32), work.c[column], memory)


def write_zeros(work: Work, memory: Mapping[int, Bytes]) -> None:
    """What an array does that was set up for another generation: zeros, and no error."""
    for stream in work.c:
        _drain(np.zeros(stream.nbytes // GRANULE_NBYTES, np.uint32), stream, memory)


def _selection(places: list[int]) -> slice | list[int]:
    """An index of `places`; consecutive ones need no copy."""
    first, last = places[0], places[-1] + 1
    return slice(first, last) if places == list(range(first, last)) else places


def _panels(stream: _Stream, nbytes: int, memory: Mapping[int, Bytes]) -> tuple[Halves, list[int]]:
    """The different panels of a stream, and which of them follow each other in it."""
    pieces: list[Granules] = []
    order: list[int] = []
    count = 0
    for task in stream.tasks:
        passes = task.repeat if task.iteration_stride else 1
        task_pieces = [_pass(task, offset, memory) for offset in _offsets(task, passes)]
        pieces += task_pieces
        here = sum(piece.nbytes for piece in task_pieces)
        if here % nbytes:
            raise StallError(f"a task of {here} bytes is no whole number of panels of {nbytes}")
        panels = here // nbytes
        order += list(range(count, count + panels)) * (task.repeat // passes)
        count += panels
    joined = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    return joined.view(np.uint16).reshape(-1, nbytes // IN_NBYTES), order


def _offsets(task: DmaTask, passes: int) -> list[int]:
    return [offset for offset, _ in zip(task.pass_offsets(), range(passes), strict=False)]


def _pass(task: DmaTask, offset: int, memory: Mapping[int, Bytes]) -> Granules:
    """The granules that one pass visits, in its order; a view where it is linear."""
    granules = _granules(task, memory)[offset // GRANULE_NBYTES :]
    if task.is_linear:
        return granules[: task.length]
    return _strided(granules, task).reshape(-1)


def _strided(granules: Granules, task: DmaTask) -> Granules:
    return np.lib.stride_tricks.as_strided(
        granules, task.sizes, tuple(GRANULE_NBYTES * stride for stride in task.strides)
    )


def _granules(task: DmaTask, memory: Mapping[int, Bytes]) -> Granules:
    if task.argument not in memory:
        raise BadAccessError(f"buffer argument {task.argument} was not set")
    data = memory[task.argument]
    if task.offset_nbytes < 0 or task.end_nbytes > data.nbytes:
        raise BadAccessError(
            f"a DMA touches byte {task.end_nbytes - 1} of a buffer of {data.nbytes} bytes"
        )
    return data[: data.nbytes // GRANULE_NBYTES * GRANULE_NBYTES].view(np.uint32)


def _drain(granules: Granules, stream: _Stream, memory: Mapping[int, Bytes]) -> None:
    """Write a stream to where its tasks say."""
    first = 0
    for task in stream.tasks:
        target = _granules(task, memory)
        for offset in task.pass_offsets():
            piece = granules[first : first + task.length]
            _strided(target[offset // GRANULE_NBYTES :], task)[...] = piece.reshape(task.sizes)
            first += task.length


def _widened(bits: Halves) -> Floats:
    """bf16 bits, in any order of axes, as contiguous float32 of the same shape: exact."""
    wide = np.zeros((*bits.shape, 2), np.uint16)
    wide[..., 1] = bits  # the high half of each float32: hosts of these NPUs are little-endian
    return wide.view(np.float32)[..., 0]
