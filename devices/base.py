"""What the runtime knows of a device: its lanes, its kernels, its memory.

A device owns buffers and binds kernels to operands in them; who runs what when is decided by a
schedule, and the threads belong to the executor.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, Kernel
from aieflow.ops.op import Array


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory on one device: `data` is uint8, its start aligned to 64 bytes."""

    device: str
    data: Array

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(self.data.nbytes)


class Device(ABC):
    """A place that runs nodes and owns memory."""

    @property
    @abstractmethod
    def name(self) -> str:
        """`cpu`, `igpu` or `npu`."""

    @property
    @abstractmethod
    def lanes(self) -> tuple[str, ...]:
        """Names of the compute lanes, each served by one worker."""

    @property
    @abstractmethod
    def kernels(self) -> Mapping[str, Kernel]:
        """The kernels this device runs, by name of the op."""

    @abstractmethod
    def allocate(self, nbytes: int) -> Buffer:
        """A new buffer; raises DeviceError when the device has no memory left."""

    @abstractmethod
    def free_nbytes(self) -> int:
        """Bytes that `allocate` can hand out now."""

    @abstractmethod
    def bind(self, node: Node, kernel: Kernel, call: Call) -> Callable[[], None]:
        """The call that executes one part of a node; raises DeviceError."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the device holds; idempotent."""
