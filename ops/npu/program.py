"""What an instruction stream tells the NPU's controller, in order: the meaning of its words.

The controller writes the runtime parameters of each core and releases its barrier, puts tasks into
the queues of the shims' DMA channels, and waits for completion tokens. Everything else (cores,
memory tiles, routes) is fixed by the xclbin. Tiles are (column, row): row 0 is the shim.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal, TypeAlias

from aieflow.ops.npu.generation import GRANULE_NBYTES, Generation

Direction = Literal["in", "out"]  # from host memory into the array (MM2S), out to it (S2MM)


@dataclass(frozen=True, slots=True)
class ParameterWrite:
    """Write a 32-bit word to `address` (bytes) of a core's data memory."""

    column: int
    row: int
    address: int
    value: int


@dataclass(frozen=True, slots=True)
class LockSet:
    """Set a lock of a core: its barrier, after which it reads its parameters and begins."""

    column: int
    row: int
    lock: int
    value: int


@dataclass(frozen=True, slots=True)
class TokenRoute:
    """Let a shim channel send its completion tokens as packets `packet` (a detail of routing)."""

    column: int
    direction: Direction
    channel: int
    packet: int


@dataclass(frozen=True, slots=True)
class DmaTask:
    """A buffer descriptor and its push onto a shim channel's queue.

    The channel streams (in) or fills (out) `repeat` passes. Pass p starts at byte `offset_nbytes` +
    4 (p mod `iterations`) `iteration_stride` of the host buffer that is argument `argument`, and
    visits granules (4 bytes) in `sizes` with `strides`, both outer to inner, in granules.
    """

    column: int
    direction: Direction
    channel: int
    descriptor: int  # BD number; must not be written again before the task is known to be done
    argument: int
    offset_nbytes: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    iterations: int = 1
    iteration_stride: int = 0
    repeat: int = 1
    has_token: bool = False  # on completion a token is sent, for which a `Sync` can wait

    @property
    def length(self) -> int:
        """Granules of one pass."""
        return prod(self.sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of all passes."""
        return self.length * self.repeat * GRANULE_NBYTES

    @property
    def is_linear(self) -> bool:
        """True if a pass visits consecutive granules."""
        expected = 1
        for size, stride in zip(reversed(self.sizes), reversed(self.strides), strict=True):
            if size > 1 and stride != expected:
                return False
            expected *= size
        return True

    @property
    def end_nbytes(self) -> int:
        """First byte of the buffer behind all that the task touches."""
        spans = zip(
            (*self.sizes, min(self.iterations, self.repeat)),
            (*self.strides, self.iteration_stride),
            strict=True,
        )
        last = sum((size - 1) * stride for size, stride in spans)
        return self.offset_nbytes + GRANULE_NBYTES * (last + 1)

    def pass_offsets(self) -> Iterator[int]:
        """The byte at which each pass starts."""
        for index in range(self.repeat):
            step = index % self.iterations * self.iteration_stride
            yield self.offset_nbytes + GRANULE_NBYTES * step


@dataclass(frozen=True, slots=True)
class Sync:
    """Wait for one completion token of a shim channel."""

    column: int
    direction: Direction
    channel: int


Command: TypeAlias = ParameterWrite | LockSet | TokenRoute | DmaTask | Sync


@dataclass(frozen=True, slots=True)
class Program:
    """An instruction stream, understood."""

    generation: Generation
    columns: int
    commands: tuple[Command, ...]
