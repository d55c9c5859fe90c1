"""The words of an instruction stream: a `Program` as uint32, and back.

The format is the transaction (TXN) of AMD's NPU firmware in version 0.1: a header of 4 words, then
operations, each with its code in the first word. A register's address is column << 25 | row << 20 |
offset. A DMA task takes three operations: a block write of the 8 words of a buffer descriptor, a
patch that makes the host buffer's address plus an offset its address, and a write to the channel's
task queue. Bit fields as in mlir-aie (AIEDmaToNpu.cpp, AIETargetNPU.cpp, AIETargetModel.cpp): sizes
are stored as they are, strides and the number of iterations less one; where all of a pass lies
together, all sizes are 0 and the length alone counts.

Words made here were not run on hardware; the tests compare them with words that mlir-aie prints.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from aieflow.ops.errors import InputError, PlanError
from aieflow.ops.npu.design import GemmDesign, GemmSize, gemm_program
from aieflow.ops.npu.generation import GENERATIONS, Generation
from aieflow.ops.npu.program import (
    Command,
    Direction,
    DmaTask,
    LockSet,
    ParameterWrite,
    Program,
    Sync,
    TokenRoute,
)

Words = npt.NDArray[np.uint32]

MAJOR, MINOR = 0, 1
HEADER_WORDS = 4
WRITE, BLOCK_WRITE, MASK_WRITE, SYNC, PATCH = 0, 1, 3, 128, 129
OPERATION_WORDS = {WRITE: 6, BLOCK_WRITE: 12, MASK_WRITE: 7, SYNC: 4, PATCH: 12}

# Registers of a shim, and of a core's memory module.
DESCRIPTORS, DESCRIPTOR_NBYTES, DESCRIPTOR_WORDS = 0x1D000, 0x20, 8
CHANNELS = {"out": 0x1D200, "in": 0x1D210}  # control; the task queue is 4 bytes behind
CHANNEL_NBYTES = 8
LOCKS, LOCK_NBYTES = 0x1F000, 0x10

DIRECTIONS: dict[Direction, int] = {"out": 0, "in": 1}  # S2MM, MM2S
BURST_256 = 2 << 30
CACHE_UPSIZE = 2 << 24  # lets the network on chip join accesses
VALID = 1 << 25
TOKEN_MASK = 0x1F00
TOKEN = 1 << 31
# What may be set in each word of a descriptor: no packets, no chains, no locks.
DESCRIPTOR_MASKS = (0xFFFFFFFF, 0, 0, 0x3FFFFFFF, 0xFFFFFFFF, 0x0F0FFFFF, 0x03FFFFFF, VALID)


def encode(design: GemmDesign, size: GemmSize) -> Words:
    """The stream that computes one product with the design's xclbin.

    Raises PlanError where a value does not fit its field; see `checker` for the other limits.
    """
    return encode_program(gemm_program(design, size))


def encode_program(program: Program) -> Words:
    """The words of a program; raises PlanError where a value does not fit its field."""
    generation = program.generation
    words: list[int] = []
    count = 0
    for command in program.commands:
        operations = _operations(command)
        count += len(operations)
        words += [word for operation in operations for word in operation]
    header = [
        generation.array_rows << 24 | generation.code << 16 | MINOR << 8 | MAJOR,
        (generation.first_core_row - 1) << 8 | program.columns,
        count,
        4 * (HEADER_WORDS + len(words)),
    ]
    return np.array(header + words, np.uint32)


def _operations(command: Command) -> list[list[int]]:
    match command:
        case ParameterWrite(column, row, address, value):
            return [_write(_address(column, row, address), value)]
        case LockSet(column, row, lock, value):
            return [_write(_address(column, row, LOCKS + LOCK_NBYTES * lock), value)]
        case TokenRoute(column, direction, channel, packet):
            address = _channel(column, direction, channel)
            value = _bits("token packet", packet, 5, 8)
            return [[MASK_WRITE, 0, address, 0, value, TOKEN_MASK, 4 * 7]]
        case Sync(column, direction, channel):
            place = column << 16 | DIRECTIONS[direction]
            return [[SYNC, 4 * 4, place, channel << 24 | 1 << 16 | 1 << 8]]
        case DmaTask():
            return _task_operations(command)


def _task_operations(task: DmaTask) -> list[list[int]]:
    descriptor = _bits("descriptor", task.descriptor, 4)
    place = _address(task.column, 0, DESCRIPTORS + DESCRIPTOR_NBYTES * descriptor)
    patch = [PATCH, 4 * 12, 0, 0, 0, 0, place + 4, 0, task.argument, 0]
    patch += [_bits("byte offset", task.offset_nbytes, 32), 0]
    push = descriptor | _bits("repeat", task.repeat - 1, 8, 16) | (TOKEN if task.has_token else 0)
    queue = _channel(task.column, task.direction, task.channel) + 4
    block = [BLOCK_WRITE, 0, place, 4 * 12, *_descriptor_words(task)]
    return [block, patch, _write(queue, push)]


def _descriptor_words(task: DmaTask) -> list[int]:
    sizes: tuple[int, ...] = (0, 0, 0)  # outer to inner, as a linear pass has them
    strides: tuple[int, ...] = (1, 1, 1)
    if not task.is_linear:
        missing = 3 - len(task.sizes)
        sizes = (1,) * missing + task.sizes
        strides = (1,) * missing + task.strides
    iteration = 0
    if task.iterations > 1:
        iteration = _bits("iterations", task.iterations - 1, 6, 20)
        iteration |= _bits("iteration stride", task.iteration_stride - 1, 20)
    return [
        _bits("length", task.length, 32),
        0,
        0,
        _bits("d0 size", sizes[2], 10, 20) | _bits("d0 stride", strides[2] - 1, 20),
        BURST_256 | _bits("d1 size", sizes[1], 10, 20) | _bits("d1 stride", strides[1] - 1, 20),
        CACHE_UPSIZE | _bits("d2 stride", strides[0] - 1, 20),
        iteration,
        VALID,
    ]


def _bits(name: str, value: int, width: int, shift: int = 0) -> int:
    if not 0 <= value < 1 << width:
        raise PlanError(f"{name} {value} does not fit a field of {width} bits of the instructions")
    return value << shift


def _write(address: int, value: int) -> list[int]:
    return [WRITE, 0, address, 0, _bits("value", value, 32), 4 * 6]


def _address(column: int, row: int, offset: int) -> int:
    return column << 25 | row << 20 | offset


def _channel(column: int, direction: Direction, channel: int) -> int:
    return _address(column, 0, CHANNELS[direction] + CHANNEL_NBYTES * channel)


def decode(words: Words) -> Program:
    """The program that a stream holds; raises InputError, naming the word, where it is none."""
    if words.dtype != np.uint32 or words.ndim != 1:
        raise InputError(f"instructions are uint32 words, given {words.dtype}{list(words.shape)}")
    stream = [int(word) for word in words]
    generation, columns, count = _decode_header(stream)
    decoder = _Decoder(stream, generation, columns)
    readers: dict[int, Callable[[int], None]] = {
        WRITE: decoder.write,
        BLOCK_WRITE: decoder.block_write,
        MASK_WRITE: decoder.mask_write,
        SYNC: decoder.sync,
        PATCH: decoder.patch,
    }
    place = HEADER_WORDS
    found = 0
    while place < len(stream):
        code = stream[place] & 0xFF
        if stream[place] != code or code not in readers:
            raise _fault(stream, place, f"is no operation; known are {sorted(readers)}")
        if place + OPERATION_WORDS[code] > len(stream):
            raise _fault(stream, place, f"begins an operation of {OPERATION_WORDS[code]} words")
        readers[code](place)
        place += OPERATION_WORDS[code]
        found += 1
    if found != count:
        raise _fault(stream, 2, f"counts {count} operations; {found} follow")
    return Program(generation, columns, tuple(decoder.commands))


def _decode_header(stream: list[int]) -> tuple[Generation, int, int]:
    if len(stream) < HEADER_WORDS:
        raise InputError(f"instructions have {len(stream)} words, fewer than their header")
    version = stream[0] & 0xFFFF
    if version != MINOR << 8 | MAJOR:
        raise _fault(stream, 0, f"says version {version & 255}.{version >> 8}; known is 0.1")
    code = stream[0] >> 16 & 0xFF
    known = {generation.code: generation for generation in GENERATIONS.values()}
    if code not in known:
        raise _fault(stream, 0, f"says NPU generation {code}; known are {sorted(known)}")
    generation = known[code]
    if stream[0] >> 24 != generation.array_rows:
        raise _fault(stream, 0, f"says {stream[0] >> 24} rows, not {generation.array_rows}")
    columns = stream[1] & 0xFF
    if not 1 <= columns <= generation.columns or stream[1] >> 8 != generation.first_core_row - 1:
        raise _fault(stream, 1, f"says {columns} columns, {stream[1] >> 8} rows of memory tiles")
    if stream[3] != 4 * len(stream):
        raise _fault(stream, 3, f"says {stream[3]} bytes; there are {4 * len(stream)}")
    return generation, columns, stream[2]


def _fault(stream: list[int], place: int, message: str) -> InputError:
    return InputError(f"instructions: word {place} ({stream[place]:#010x}) {message}")


@dataclass(slots=True)
class _Descriptor:
    """A buffer descriptor as written, and the patch of its address."""

    words: list[int]
    argument: int | None = None
    offset_nbytes: int = 0


@dataclass(slots=True)
class _Decoder:
    """Reads operations one by one into commands."""

    stream: list[int]
    generation: Generation
    columns: int
    commands: list[Command] = field(default_factory=list)
    descriptors: dict[tuple[int, int], _Descriptor] = field(default_factory=dict)

    def write(self, place: int) -> None:
        """A parameter, a lock or a task queue."""
        self._expect_zero(place + 1, place + 3)
        self._expect_size(place + 5, WRITE)
        column, row, offset = self._tile(place + 2)
        value = self.stream[place + 4]
        if row >= self.generation.first_core_row:
            lock, rest = divmod(offset - LOCKS, LOCK_NBYTES)
            if offset < self.generation.l1_nbytes:
                if offset % 4:
                    raise _fault(self.stream, place + 2, "addresses no whole word")
                self.commands.append(ParameterWrite(column, row, offset, value))
            elif 0 <= lock < self.generation.locks and not rest:
                self.commands.append(LockSet(column, row, lock, value))
            else:
                raise _fault(self.stream, place + 2, f"addresses {offset:#x} of a core")
            return
        direction, channel = self._channel_of(place + 2, row, offset - 4)
        self.commands.append(self._task(place + 4, column, direction, channel))

    def block_write(self, place: int) -> None:
        """A buffer descriptor of a shim."""
        self._expect_zero(place + 1)
        self._expect_size(place + 3, BLOCK_WRITE)
        column, descriptor = self._descriptor_of(place + 2, 0)
        words = self.stream[place + 4 : place + 4 + DESCRIPTOR_WORDS]
        for index, mask in enumerate(DESCRIPTOR_MASKS):
            if words[index] & ~mask:
                raise _fault(self.stream, place + 4 + index, "sets what no task of ours has")
        if words[7] != VALID:
            raise _fault(self.stream, place + 11, "ends a descriptor that is not valid")
        self.descriptors[column, descriptor] = _Descriptor(words)

    def patch(self, place: int) -> None:
        """The address of a buffer descriptor, which was written before."""
        self._expect_size(place + 1, PATCH)
        self._expect_zero(*(place + index for index in (2, 3, 4, 5, 7, 9, 11)))
        column, number = self._descriptor_of(place + 6, 4)
        if (column, number) not in self.descriptors:
            raise _fault(self.stream, place + 6, "patches a descriptor that was not written")
        descriptor = self.descriptors[column, number]
        descriptor.argument = self.stream[place + 8]
        descriptor.offset_nbytes = self.stream[place + 10]

    def mask_write(self, place: int) -> None:
        """The route of a channel's tokens."""
        self._expect_zero(place + 1, place + 3)
        self._expect_size(place + 6, MASK_WRITE)
        column, row, offset = self._tile(place + 2)
        direction, channel = self._channel_of(place + 2, row, offset)
        value = self.stream[place + 4]
        if self.stream[place + 5] != TOKEN_MASK or value & ~TOKEN_MASK:
            raise _fault(self.stream, place + 4, "is masked for something else than tokens")
        self.commands.append(TokenRoute(column, direction, channel, value >> 8))

    def sync(self, place: int) -> None:
        """A wait for one token of one shim."""
        self._expect_size(place + 1, SYNC)
        where, what = self.stream[place + 2], self.stream[place + 3]
        column, row, direction = where >> 16, where >> 8 & 0xFF, where & 0xFF
        if column >= self.columns or row or direction > 1:
            raise _fault(self.stream, place + 2, f"waits at column {column}, row {row}")
        channel = what >> 24
        if what & 0xFFFFFF != 1 << 16 | 1 << 8 or channel > 1:
            raise _fault(self.stream, place + 3, "waits for several tiles or an unknown channel")
        self.commands.append(Sync(column, "in" if direction else "out", channel))

    def _task(self, place: int, column: int, direction: Direction, channel: int) -> DmaTask:
        push = self.stream[place]
        number = push & 0xF
        if push & ~(TOKEN | 0xFF << 16 | 0xF):
            raise _fault(self.stream, place, "pushes a task with unknown bits")
        descriptor = self.descriptors.get((column, number))
        if descriptor is None or descriptor.argument is None:
            raise _fault(self.stream, place, f"pushes descriptor {number}, which has no address")
        length, words = descriptor.words[0], descriptor.words
        d0, d1 = words[3] >> 20, words[4] >> 20 & 0x3FF
        steps = tuple(1 + (words[index] & 0xFFFFF) for index in (5, 4, 3))
        sizes: tuple[int, ...] = (length,)
        strides: tuple[int, ...] = (1,)
        if d0 or d1:
            if not d0 or not d1 or length % (d0 * d1):
                raise _fault(self.stream, place, f"pushes {length} granules in rows of {d0} x {d1}")
            sizes, strides = _trimmed((length // (d0 * d1), d1, d0), steps)
        elif steps != (1, 1, 1):
            raise _fault(self.stream, place, f"pushes a linear task with strides {steps}")
        if not length:
            raise _fault(self.stream, place, "pushes a task of no length")
        iterations = 1 + (words[6] >> 20)
        return DmaTask(
            column,
            direction,
            channel,
            number,
            descriptor.argument,
            descriptor.offset_nbytes,
            sizes,
            strides,
            iterations,
            1 + (words[6] & 0xFFFFF) if iterations > 1 else 0,
            1 + (push >> 16 & 0xFF),
            bool(push & TOKEN),
        )

    def _tile(self, place: int) -> tuple[int, int, int]:
        address = self.stream[place]
        column, row, offset = address >> 25, address >> 20 & 0x1F, address & 0xFFFFF
        if column >= self.columns or row >= self.generation.array_rows:
            raise _fault(self.stream, place, f"addresses column {column}, row {row}")
        return column, row, offset

    def _descriptor_of(self, place: int, start: int) -> tuple[int, int]:
        column, row, offset = self._tile(place)
        number, rest = divmod(offset - DESCRIPTORS - start, DESCRIPTOR_NBYTES)
        if row or rest or not 0 <= number < self.generation.shim.descriptors:
            raise _fault(self.stream, place, "addresses no buffer descriptor of a shim")
        return column, number

    def _channel_of(self, place: int, row: int, offset: int) -> tuple[Direction, int]:
        for direction in DIRECTIONS:
            channel, rest = divmod(offset - CHANNELS[direction], CHANNEL_NBYTES)
            if not row and not rest and 0 <= channel <= 1:
                return direction, channel
        raise _fault(self.stream, place, "addresses no DMA channel of a shim")

    def _expect_zero(self, *places: int) -> None:
        for place in places:
            if self.stream[place]:
                raise _fault(self.stream, place, "is not 0, as it should be")

    def _expect_size(self, place: int, code: int) -> None:
        if self.stream[place] != 4 * OPERATION_WORDS[code]:
            nbytes = 4 * OPERATION_WORDS[code]
            raise _fault(self.stream, place, f"is not the operation's size, {nbytes} bytes")


def _trimmed(
    sizes: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    while len(sizes) > 1 and sizes[0] == 1:
        sizes, strides = sizes[1:], strides[1:]
    return sizes, strides
