"""What the shims' DMA tasks move on the emulated array, and what its controller is told.

A stream is what goes through one channel in one direction, task after task, pass by pass. What the
hardware would do with a bad program cannot be known; here the array waits for ever (`StallError`),
or faults where it would touch memory beyond its buffers (`BadAccessError`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from aieflow.ops.npu.generation import GRANULE_NBYTES
from aieflow.ops.npu.program import DmaTask, LockSet, ParameterWrite, Program, Sync

Bytes = npt.NDArray[np.uint8]
Granules = npt.NDArray[np.uint32]
Channel = tuple[int, str, int]  # column, direction, number
Core = tuple[int, int]  # column, row


class StallError(Exception):
    """The array waits for something that never comes."""


class BadAccessError(Exception):
    """A DMA would leave its buffer."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What goes through one channel in one direction."""

    tasks: tuple[DmaTask, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all passes of all tasks."""
        return sum(task.nbytes for task in self.tasks)


@dataclass(frozen=True, slots=True)
class Commanded:
    """What a program says, once all its commands are read."""

    parameters: tuple[int, ...]  # of every core
    queued: dict[Channel, list[DmaTask]]
    waited: Mapping[Channel, int]  # tasks of a channel that some token ends

    def take(self, channel: Channel) -> Stream:
        """The tasks of a channel; `expect_empty` no longer sees them."""
        return Stream(tuple(self.queued.pop(channel, ())))

    def awaited(self, stream: Stream, channel: Channel) -> Stream:
        """What nobody waits for may be on its way when the command ends: it is left undone."""
        return Stream(stream.tasks[: self.waited.get(channel, 0)])

    def expect_empty(self) -> None:
        """Raise StallError where a channel was not taken."""
        if self.queued:
            raise StallError(
                f"tasks on channels that the design does not use: {sorted(self.queued)}"
            )


class Work(Protocol):
    """A program, understood."""

    @property
    def outputs(self) -> tuple[DmaTask, ...]:
        """The tasks that write to memory."""
        ...


def write_zeros(work: Work, memory: Mapping[int, Bytes]) -> None:
    """What an array does that was set up for another generation: zeros, and no error."""
    stream = Stream(work.outputs)
    drain(np.zeros(stream.nbytes // GRANULE_NBYTES, np.uint32), stream, memory)


def commanded(
    program: Program, cores: Sequence[Core], addresses: Sequence[int], lock: int
) -> Commanded:
    """Read a program's commands in order; raises StallError where the array would not move on."""
    written: dict[Core, dict[int, int]] = {core: {} for core in cores}
    released: set[Core] = set()
    queued: dict[Channel, list[DmaTask]] = {}
    waited: dict[Channel, int] = {}
    for command in program.commands:
        if isinstance(command, ParameterWrite):
            written.setdefault((command.column, command.row), {})[command.address] = command.value
        elif isinstance(command, LockSet):
            if command.lock == lock and command.value == 1:
                released.add((command.column, command.row))
        elif isinstance(command, DmaTask):
            channel = (command.column, command.direction, command.channel)
            queued.setdefault(channel, []).append(command)
        elif isinstance(command, Sync):
            channel = (command.column, command.direction, command.channel)
            waited[channel] = _after_next_token(queued.get(channel, []), waited.get(channel, 0))
    if not released.issuperset(cores):
        raise StallError(f"{len(set(cores) - released)} cores wait at their barriers")
    found = {tuple(written[core].get(address, 0) for address in addresses) for core in cores}
    if len(found) != 1:
        raise StallError(f"cores were given different parameters: {sorted(found)}")
    parameters = found.pop()
    if min(parameters) < 1:
        raise StallError(f"cores were given no work: parameters {parameters}")
    return Commanded(parameters, queued, waited)


def _after_next_token(tasks: Sequence[DmaTask], first: int) -> int:
    """The place behind the next task from `first` on that sends a token."""
    for place in range(first, len(tasks)):
        if tasks[place].has_token:
            return place + 1
    raise StallError("the controller waits for a token that no task sends")


def expect(stream: Stream, nbytes: int, channel: Channel) -> None:
    """Raise StallError unless a stream moves as many bytes as the cores take or give."""
    if stream.nbytes != nbytes:
        raise StallError(f"stream {channel} moves {stream.nbytes} bytes, the cores take {nbytes}")


def offsets(task: DmaTask, passes: int) -> list[int]:
    """The bytes at which the first passes of a task start."""
    return [offset for offset, _ in zip(task.pass_offsets(), range(passes), strict=False)]


def one_pass(task: DmaTask, offset: int, memory: Mapping[int, Bytes]) -> Granules:
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


def granules_of(stream: Stream, memory: Mapping[int, Bytes]) -> Granules:
    """All that goes through a stream, in order; raises BadAccessError."""
    pieces = [
        one_pass(task, offset, memory) for task in stream.tasks for offset in task.pass_offsets()
    ]
    return np.concatenate(pieces) if pieces else np.zeros(0, np.uint32)


def drain(granules: Granules, stream: Stream, memory: Mapping[int, Bytes]) -> None:
    """Write a stream to where its tasks say."""
    first = 0
    for task in stream.tasks:
        target = _granules(task, memory)
        for offset in task.pass_offsets():
            piece = granules[first : first + task.length]
            _strided(target[offset // GRANULE_NBYTES :], task)[...] = piece.reshape(task.sizes)
            first += task.length
