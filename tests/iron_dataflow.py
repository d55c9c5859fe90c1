"""Executes what `iron_recorder` recorded: tile by tile, with the buffers that the fifos have.

The sequence runs ahead of the data, as a controller does; data moves where there is room; a core
runs until it waits for a tile, for room, or at its barrier. The static part stays from one sequence
to the next, as on an array that keeps its xclbin, so a core that begins again with old parameters
is seen. Nothing here is fast, and nothing knows of GEMM but the two kernels.

- `DeadlockError`: nothing can move, and the sequence is not at its end.
- `HazardError`: a descriptor that is freed or taken while in use, a full task queue, tiles left.
- `RecordError`: a kernel given other tiles than it takes, parameters read before the barrier.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from iron_recorder import (
    SHIM_DESCRIPTORS,
    Barrier,
    Buffer,
    End,
    Finish,
    Group,
    Kernel,
    Link,
    Parameter,
    Pattern,
    Recorded,
    Recorder,
    Release,
    Transfer,
    Worker,
)
from iron_signatures import RecordError
from iron_structure import check_tiles

QUEUE_DEPTH = 4
Floats = npt.NDArray[np.float32]
Memory = list[npt.NDArray[Any]]  # by argument: bf16 bits as uint16, or float32
Micro = tuple[int, int]


class DeadlockError(Exception):
    """The array waits for something that never comes."""


class HazardError(Exception):
    """Hardware would write over something in use, or leave something behind."""


class _BlockedError(Exception):
    """A core waits at its barrier."""


@dataclass(frozen=True)
class Piece:
    """A tile on its way in: which elements of which buffer."""

    argument: int
    start: int
    inner: int  # which of the machine's index arrays


@dataclass(frozen=True)
class Slot:
    """A tile that a core holds: the place of its fifo among the arguments, and its number."""

    place: int
    serial: int
    shape: tuple[int, ...]


Step = tuple[str, Any]


class CoreEnd:
    """A fifo as the core's code sees it."""

    def __init__(self, place: int, end: End, steps: list[Step]) -> None:
        self.place, self.end, self.steps = place, end, steps
        self.released = self.held = 0

    def acquire(self, count: int) -> Slot:
        if count != 1:
            raise RecordError("these designs take one tile at a time")
        if not self.held:  # to acquire what is held gives the same again
            self.held = 1
            self.steps.append(("acquire", self.place))
        return Slot(self.place, self.released, self.end.fifo.kind.shape)

    def release(self, count: int) -> None:
        if count != self.held:
            raise RecordError(f"{self.end.fifo.name}: releases {count}, holds {self.held}")
        self.held = 0
        self.released += 1
        self.steps.append(("release", self.place))


class CoreParameters:
    def __init__(self, values: npt.NDArray[Any], core: "Core") -> None:
        self.values, self.core = values, core

    def __getitem__(self, index: int) -> int:
        if not self.core.has_waited:
            raise RecordError("a core reads its parameters before its barrier")
        return int(self.values[index])


class CoreBarrier:
    def __init__(self, core: "Core") -> None:
        self.core = core

    def wait_for_value(self, value: int) -> None:
        if self.core.barrier != value:
            raise _BlockedError
        self.core.has_waited = True  # the lock keeps its value

    def release_with_value(self, value: int) -> None:
        self.core.barrier += value


@dataclass(eq=False)
class Core:
    """One worker, as far as it has come."""

    worker: Worker
    parameters: npt.NDArray[Any]
    barrier: int
    steps: list[Step] = field(default_factory=list)
    at: int = 0
    has_waited: bool = False
    # by place of the argument: tiles that have arrived, or that are made and not yet taken away
    tiles: dict[int, deque[Any]] = field(default_factory=dict)
    making: dict[int, Floats] = field(default_factory=dict)

    def begin(self) -> bool:
        """Take the steps of the next round of the core's code; False where it waits."""
        steps: list[Step] = []
        self.has_waited = False

        def seen(place: int, argument: Any) -> Any:  # noqa: ANN401
            match argument:
                case End():
                    return CoreEnd(place, argument, steps)
                case Buffer():
                    return CoreParameters(self.parameters, self)
                case Barrier():
                    return CoreBarrier(self)
                case Kernel():
                    return lambda *slots: steps.append(("call", called(argument, slots)))
            return argument

        try:
            self.worker.core_fn(*(seen(i, a) for i, a in enumerate(self.worker.fn_args)))
        except _BlockedError:
            return False
        self.steps, self.at = steps, 0
        return bool(steps)


def called(kernel: Kernel, slots: tuple[Slot, ...]) -> tuple[Kernel, tuple[Slot, ...]]:
    given = tuple(slot.shape for slot in slots)
    if given != kernel.arguments:
        raise RecordError(f"{kernel.name} takes {kernel.arguments}, is given {given}")
    return kernel, slots


@dataclass(eq=False)
class Task:
    """A transfer on its way."""

    transfer: Transfer
    starts: npt.NDArray[Any]
    inner: int
    done: int = 0

    @property
    def is_done(self) -> bool:
        return self.done == len(self.starts)


class Machine:
    """An array set up with the static part of a program."""

    def __init__(self, recorded: Recorded) -> None:
        self.cores = [new_core(worker) for worker in recorded.workers]
        self.index_of: dict[tuple[Any, ...], int] = {}
        self.indices: list[npt.NDArray[Any]] = []
        self.decoded: dict[tuple[Piece, Micro, tuple[int, ...]], Floats] = {}
        self.memory: Memory = []
        self.log: dict[str, list[int]] = {}  # by fifo: the element at which each tile begins
        self.queues: dict[str, deque[Task]] = {}
        self.waiting: dict[str, deque[Any]] = {}  # tiles in memory tiles, by fifo
        self.links: dict[str, Link] = {}
        self.core_of: dict[End, tuple[Core, int]] = {}
        self.direct: dict[str, tuple[End, Core, int]] = {}  # fifos between a shim and a core
        for core in self.cores:
            for place, argument in enumerate(core.worker.fn_args):
                if isinstance(argument, End):
                    core.tiles[place] = deque()
                    self.core_of[argument] = (core, place)
                    self._find_link(argument)
        check_tiles(recorded, self.links)

    def _find_link(self, end: End) -> None:
        others = end.fifo.consumers if end.is_producer else [end.fifo.producer]
        for other in others:
            if other is not None and isinstance(other.owner, Recorder):
                self.direct[end.fifo.name] = (end, *self.core_of[end])
                continue
            if other is None or not isinstance(other.owner, Link):
                raise RecordError(f"{end.fifo.name}: nobody at its other side")
            link = other.owner
            shim_side = link.targets[0] if link.kind == "join" else link.sources[0]
            self.links[shim_side.name] = link
            for fifo in link.sources:
                self.waiting.setdefault(fifo.name, deque())

    def run(self, recorded: Recorded, memory: Memory) -> None:
        """The sequence of `recorded`, which may be another than the machine was made with."""
        self.memory, self.decoded, self.log = memory, {}, {}
        places = {
            argument: core
            for core, worker in zip(self.cores, recorded.workers, strict=True)
            for argument in worker.fn_args
            if isinstance(argument, Buffer | Barrier)
        }
        self.queues = {name: deque() for name in (*self.links, *self.direct)}
        events = deque(recorded.events)
        groups: dict[Group, list[Task]] = {}
        in_use: dict[int, int] = {}
        while events:
            moved = False
            while events and self._control(events[0], places, groups, in_use):
                events.popleft()
                moved = True
            moved |= self._move()
            if not moved:
                raise DeadlockError(f"nothing moves: {self._state(events[0])}")
        while self._move():
            pass
        left = [name for name, tiles in self.waiting.items() if tiles]
        left += [core.worker.fn_args[p].fifo.name for core in self.cores for p in core.tiles
                 if core.tiles[p]]  # fmt: skip
        if any(core.at < len(core.steps) for core in self.cores):
            raise HazardError("a core has begun again, with old parameters")
        if left:
            raise HazardError(f"tiles are left in {sorted(set(left))}")

    def _control(
        self,
        event: object,
        places: dict[Any, Core],
        groups: dict[Group, list[Task]],
        in_use: dict[int, int],
    ) -> bool:
        """Do what the sequence says next; False where it waits."""
        match event:
            case Parameter(buffer, index, value):
                places[buffer].parameters[index] = value
            case Release(barrier, value):
                places[barrier].barrier = value
            case Transfer():
                name, tile = event.end.fifo.name, event.end.tile
                assert tile is not None
                in_use[tile.col] = in_use.get(tile.col, 0) + 1
                if in_use[tile.col] > SHIM_DESCRIPTORS:
                    raise HazardError(f"shim {tile.col}: more than {SHIM_DESCRIPTORS} descriptors")
                if sum(not task.is_done for task in self.queues[name]) == QUEUE_DEPTH:
                    raise HazardError(f"{name}: more than {QUEUE_DEPTH} tasks in its queue")
                starts, inner = self._cut(event.tap, event.end.fifo.kind.size)
                task = Task(event, starts, inner)
                self.log.setdefault(name, []).extend(starts.tolist())
                self.queues[name].append(task)
                groups.setdefault(event.group, []).append(task)
            case Finish(group):
                tasks = groups.get(group, [])
                if any(task.transfer.wait and not task.is_done for task in tasks):
                    return False
                for task in tasks:
                    end = task.transfer.end
                    if not task.is_done:
                        raise HazardError(f"{end.fifo.name}: descriptor freed while in flight")
                    assert end.tile is not None
                    in_use[end.tile.col] -= 1
        return True

    def _cut(self, tap: Pattern, size: int) -> tuple[npt.NDArray[Any], int]:
        """Where each tile of a transfer begins, and which index array its elements have."""
        inner = 1
        for axis in reversed(range(len(tap.sizes))):
            part, rest = divmod(size, inner)
            if not rest and tap.sizes[axis] % part == 0:  # a tile is `part` of this dimension
                step = tap.strides[axis]
                outer = (
                    (*tap.sizes[:axis], tap.sizes[axis] // part),
                    (*tap.strides[:axis], part * step),
                )
                within = (part, *tap.sizes[axis + 1 :]), (step, *tap.strides[axis + 1 :])
                return grid(*outer) + tap.offset, self._index(*within)
            inner *= tap.sizes[axis]
        raise RecordError(f"pattern {tap.sizes} cuts tiles of {size} elements")

    def _index(self, sizes: tuple[int, ...], strides: tuple[int, ...]) -> int:
        key = (sizes, strides)
        if key not in self.index_of:
            self.index_of[key] = len(self.indices)
            self.indices.append(grid(sizes, strides))
        return self.index_of[key]

    def _move(self) -> bool:
        moved = False
        for name, link in self.links.items():
            if link.kind == "forward":
                moved |= self._fill(name, link) | self._broadcast(link)
        for core in self.cores:
            moved |= self._compute(core)
        for name, link in self.links.items():
            if link.kind == "join":
                moved |= self._join(link) | self._drain(name, link)
        for name, place in self.direct.items():
            moved |= self._pass(name, *place)
        return moved

    def _pass(self, name: str, end: End, core: Core, place: int) -> bool:
        """One tile between a shim and a core."""
        task, tiles = self._active(name), core.tiles[place]
        if task is None or (not tiles if end.is_producer else len(tiles) >= end.fifo.depth):
            return False
        argument, start = task.transfer.buffer.argument, int(task.starts[task.done])
        if end.is_producer:
            self.memory[argument][start + self.indices[task.inner]] = tiles.popleft()
        else:
            tiles.append(Piece(argument, start, task.inner))
        task.done += 1
        return True

    def _active(self, name: str) -> Task | None:
        tasks = self.queues[name]
        while tasks and tasks[0].is_done:
            tasks.popleft()
        return tasks[0] if tasks else None

    def _fill(self, name: str, link: Link) -> bool:
        tiles, task = self.waiting[name], self._active(name)
        if task is None or len(tiles) >= link.sources[0].depth:
            return False
        argument = task.transfer.buffer.argument
        tiles.append(Piece(argument, int(task.starts[task.done]), task.inner))
        task.done += 1
        return True

    def _broadcast(self, link: Link) -> bool:
        """One tile to all cores of a row or column, where each has room."""
        (fifo,) = link.targets
        tiles = self.waiting[link.sources[0].name]
        ends = [self.core_of[end] for end in fifo.consumers]
        if not tiles or any(len(core.tiles[place]) >= fifo.depth for core, place in ends):
            return False
        tile = tiles.popleft()
        for core, place in ends:
            core.tiles[place].append(tile)
        return True

    def _compute(self, core: Core) -> bool:
        moved = False
        while True:
            if core.at == len(core.steps) and not core.begin():
                return moved
            kind, what = core.steps[core.at]
            if kind == "call":
                self._call(core, *what)
            else:
                end: End = core.worker.fn_args[what]
                tiles = core.tiles[what]
                if kind == "acquire":
                    if end.is_producer and len(tiles) >= end.fifo.depth:
                        return moved
                    if not end.is_producer and not tiles:
                        return moved
                    if end.is_producer:  # what is in its memory nobody knows
                        core.making[what] = np.full(end.fifo.kind.shape, np.nan, np.float32)
                elif end.is_producer:
                    tiles.append(core.making.pop(what))
                else:
                    tiles.popleft()
            core.at += 1
            moved = True

    def _call(self, core: Core, kernel: Kernel, slots: tuple[Slot, ...]) -> None:
        out = slots[-1]
        if kernel.function is not None:
            pieces = [core.tiles[slot.place][0] for slot in slots[:-1]]
            core.making[out.place] = kernel.function(
                *(self.memory[p.argument][p.start + self.indices[p.inner]] for p in pieces)
            )
            return
        if len(slots) == 1:
            core.making[out.place][:] = 0
            return
        r, s, t = kernel.mac_dims
        left, right = (
            self._decode(core.tiles[slot.place][0], micro, slot.shape)
            for slot, micro in zip(slots[:2], ((r, s), (s, t)), strict=True)
        )
        core.making[out.place] += left @ right

    def _decode(self, piece: Piece, micro: Micro, shape: tuple[int, ...]) -> Floats:
        """A tile that lies in micro-tiles, as a matrix."""
        key = (piece, micro, shape)
        if key not in self.decoded:
            bits = self.memory[piece.argument][piece.start + self.indices[piece.inner]]
            values = (bits.astype(np.uint32) << 16).view(np.float32)
            (rows, columns), (down, across) = shape, micro
            tiles = values.reshape(rows // down, columns // across, down, across)
            self.decoded[key] = np.ascontiguousarray(tiles.transpose(0, 2, 1, 3)).reshape(shape)
        return self.decoded[key]

    def _join(self, link: Link) -> bool:
        moved = False
        for part in link.sources:
            assert part.producer is not None
            core, place = self.core_of[part.producer]
            if core.tiles[place] and len(self.waiting[part.name]) < link.targets[0].depth:
                self.waiting[part.name].append((core, core.tiles[place].popleft()))
                moved = True
        return moved

    def _drain(self, name: str, link: Link) -> bool:
        task = self._active(name)
        if task is None or not all(self.waiting[part.name] for part in link.sources):
            return False
        joined = np.empty(link.targets[0].kind.size, np.float32)
        for part, offset in zip(link.sources, link.offsets, strict=True):
            core, tile = self.waiting[part.name].popleft()
            joined[offset : offset + tile.size] = encoded(tile, micro_of(core))
        target = self.memory[task.transfer.buffer.argument]
        target[task.starts[task.done] + self.indices[task.inner]] = joined
        task.done += 1
        return True

    def _state(self, event: object) -> str:
        idle = [core for core in self.cores if core.at < len(core.steps)]
        doing = sorted({
            f"{core.steps[core.at][0]} {core.worker.fn_args[core.steps[core.at][1]].fifo.name}"
            for core in idle
        })  # fmt: skip
        return f"the sequence waits at {type(event).__name__}, cores at {doing or 'barriers'}"


def new_core(worker: Worker) -> Core:
    (parameters,) = (a.values.copy() for a in worker.fn_args if isinstance(a, Buffer))
    (barrier,) = (a.value for a in worker.fn_args if isinstance(a, Barrier))
    return Core(worker, parameters, barrier)


def micro_of(core: Core) -> Micro:
    (kernel,) = (a for a in core.worker.fn_args if isinstance(a, Kernel) and a.zero is not None)
    return kernel.mac_dims[0], kernel.mac_dims[2]


def encoded(tile: Floats, micro: Micro) -> Floats:
    """A matrix in micro-tiles, flat."""
    (rows, columns), (down, across) = tile.shape, micro
    tiles = tile.reshape(rows // down, down, columns // across, across)
    return tiles.transpose(0, 2, 1, 3).reshape(-1)


def grid(sizes: tuple[int, ...], strides: tuple[int, ...]) -> npt.NDArray[Any]:
    """The offset of every element of a pattern, in its order."""
    index = np.zeros(1, np.int64)
    for size, stride in zip(sizes, strides, strict=True):
        index = (index[:, None] + np.arange(size, dtype=np.int64) * stride).reshape(-1)
    return index
