"""What the runtime knows of a device: its lanes, its kernels, its memory.

A device owns buffers and binds kernels to operands in them; who runs what when is decided by a
schedule, and the threads belong to the executor.

Every byte that a device can reach has an address in host memory, its *host side*. On the CPU that
is all there is. Other devices also have a *device side*, and a value that the one side has written
is on the other only after a transfer:

- an iGPU *adopts* host memory (states, arena) and works at the same addresses. Where it shares the
  computer's memory a transfer is a map and an unmap of zero bytes; elsewhere it copies.
- an NPU has *separate* memory: its operands lie in buffers that `allocate` made, in the layout of
  its kernels; pack and unpack nodes work on their host side, transfers are buffer syncs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, Kernel
from aieflow.ops.op import Array

Direction = Literal["in", "out"]  # to the device side, to the host side
# Begin and end of the work that calls began, in `perf_counter_ns`; to be asked once it is done.
Ran = Callable[[], tuple[int, int] | None]
Clock = Callable[[], Ran]  # of the calls since it was last asked
PAGE = 4096  # alignment of adopted memory, in bytes


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory on one device: `data` is the host side, uint8, its start aligned to 64 bytes."""

    device: str
    data: Array

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(self.data.nbytes)


@dataclass(slots=True)
class Moved:
    """What a device's transfers did since it was opened."""

    transfers: int = 0
    copied_nbytes: int = 0  # between two memories, or through a cache flush; a map copies nothing


class Device(ABC):
    """A place that runs nodes and owns memory."""

    @property
    @abstractmethod
    def name(self) -> str:
        """`cpu`, `igpu` or `npu`."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """What it is: chip and driver, with the word "emulated" where it is."""

    @property
    def is_emulated(self) -> bool:
        """True where no hardware does the work: its times are no hardware's."""
        return False

    @property
    @abstractmethod
    def lanes(self) -> tuple[str, ...]:
        """Names of the compute lanes, each served by one worker."""

    @property
    def copy_lanes(self) -> tuple[str, str] | None:
        """Names of the lanes for transfers in and out; None: the device works on the host side."""
        return None

    @property
    def is_separate(self) -> bool:
        """True if operands of its compute lanes lie in its own buffers instead of host memory."""
        return False

    @property
    @abstractmethod
    def kernels(self) -> Mapping[str, Kernel]:
        """The kernels this device runs, by name of the op."""

    @property
    def moved(self) -> Moved:
        """What its transfers did so far."""
        return Moved()

    @property
    def notes(self) -> Sequence[str]:
        """What a user may want to know of what happened so far, each once."""
        return ()

    @abstractmethod
    def allocate(self, nbytes: int) -> Buffer:
        """A new buffer; raises DeviceError when the device has no memory left."""

    def adopt(self, memory: Array) -> None:
        """Make host memory (uint8, page-aligned) reachable until `close`; raises DeviceError.

        Bytes start valid on the host side. A device that works on that side, or on buffers of its
        own alone, has nothing to do.
        """
        return

    def disown(self, memory: Array) -> None:
        """Forget memory that was adopted, if it was; nothing of it may be in use."""
        return

    @abstractmethod
    def free_nbytes(self) -> int:
        """Bytes that `allocate` can hand out now."""

    @abstractmethod
    def bind(self, node: Node, call: Call) -> Callable[[], None]:
        """The call that executes one part of a node; raises DeviceError, as the call itself may.

        On a compute lane it may return before the work is done: see `finish`.
        """

    def bind_transfer(self, region: Array, direction: Direction) -> Callable[[], None]:
        """The call that brings bytes of an adopted or allocated buffer to the other side.

        On a copy lane it may return before they are there: see `finish`. Raises DeviceError. Where
        both sides are one, as on a device without copy lanes, there is nothing to bring.
        """
        return lambda: None

    def transfer(self, region: Array, direction: Direction) -> None:
        """Bring bytes to the other side and wait until they are there; raises DeviceError."""
        self.bind_whole_transfer(region, direction)()

    def bind_whole_transfer(self, region: Array, direction: Direction) -> Callable[[], None]:
        """The call that brings bytes to the other side and waits until they are there.

        Raises DeviceError, as the call may.
        """
        bring = self.bind_transfer(region, direction)
        finish = self.copy_lanes and self.finish(self.copy_lanes[direction == "out"])
        if not finish:
            return bring

        def run() -> None:
            bring()
            finish()

        return run

    def finish(self, lane: str) -> Callable[[], None] | None:
        """The call that waits until all work begun on `lane` is done, where calls return before."""
        return None

    def profile(self, on: bool) -> Mapping[str, Clock]:
        """Begin or end to time work by the device's own clock; none may be under way.

        Gives a clock for each lane that has one. Asked after a call, it waits for nothing, so that
        work goes on as it does untimed; what it gives tells, once the work is done, when that ran:
        None if the call began none. Raises DeviceError, as the clock and its answer may.
        """
        return {}

    @abstractmethod
    def close(self) -> None:
        """Give back what the device holds; idempotent."""
