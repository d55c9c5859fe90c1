"""A device for tests with a memory side of its own, which holds what transfers brought there.

It has copies of all memory that it adopts or allocates, filled with NaN (as float32). Nodes on its
compute lane work on the copies, only `bind_transfer` moves bytes, so a transfer that is missing
shows as a wrong number. With `is_separate` its nodes run on what it allocated itself, and nodes on
its copy lanes on the host's side. Transfers can be told to fail.
"""

from collections.abc import Callable, Mapping

import numpy as np

from aieflow.devices.base import Buffer, Direction, Moved
from aieflow.devices.fake import REFERENCE_KERNELS, Action, FakeDevice
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel
from aieflow.ops.op import Array


class FakeRemoteDevice(FakeDevice):
    """A `FakeDevice` called `name`, with one compute lane, two copy lanes and incoherent memory."""

    def __init__(
        self,
        name: str = "far",
        kernels: Mapping[str, HostKernel] = REFERENCE_KERNELS,
        nbytes: int = 1 << 30,
        is_separate: bool = False,
    ) -> None:
        super().__init__(1, kernels, nbytes)
        self._called = name
        self._apart = is_separate
        self._extents: list[tuple[Array, Array]] = []  # host side, device side
        self._moved = Moved()
        self._transfers_left: int | None = None

    @property
    def name(self) -> str:
        """As given."""
        return self._called

    @property
    def identity(self) -> str:
        """Its name."""
        return self._called

    @property
    def lanes(self) -> tuple[str, ...]:
        """One compute lane."""
        return (f"{self._called}.compute",)

    @property
    def copy_lanes(self) -> tuple[str, str]:
        """One for each direction."""
        return f"{self._called}.copy.in", f"{self._called}.copy.out"

    @property
    def is_separate(self) -> bool:
        """As given."""
        return self._apart

    @property
    def moved(self) -> Moved:
        """What transfers copied."""
        return self._moved

    def allocate(self, nbytes: int) -> Buffer:
        """Host memory with a device side."""
        buffer = super().allocate(nbytes)
        self.adopt(buffer.data)
        return Buffer(self.name, buffer.data)

    def adopt(self, memory: Array) -> None:
        """Make a device side, NaN throughout."""
        self._extents.append((memory, np.full(memory.nbytes, 0xFF, np.uint8)))

    def disown(self, memory: Array) -> None:
        """Forget the device side."""
        self._extents = [each for each in self._extents if each[0] is not memory]

    @property
    def adopted(self) -> int:
        """How many extents it knows."""
        return len(self._extents)

    def bind(self, node: Node, call: Call) -> Action:
        """Bind to the device side; with separate memory, nodes that touch the host's to that."""
        operands = (*call.inputs, *call.outputs)
        if self._apart and any(self._side(each) is None for each in operands):
            return super().bind(node, call)
        far = Call(
            tuple(self._far(each) for each in call.inputs),
            tuple(self._far(each) for each in call.outputs),
            call.attrs,
            call.workspace,
            call.part,
            call.parts,
        )
        return super().bind(node, far)

    def bind_transfer(self, region: Array, direction: Direction) -> Callable[[], None]:
        """Copy the bytes of a region to the other side."""
        far = self._far(region)
        source, target = (region, far) if direction == "in" else (far, region)

        def run() -> None:
            if self._transfers_left is not None:
                self._transfers_left -= 1
                if self._transfers_left < 0:
                    raise DeviceError(f"{self.name}: transfer {direction} failed")
            np.copyto(target, source)
            self._moved.transfers += 1
            self._moved.copied_nbytes += region.nbytes

        return run

    def fail_transfers(self, after: int | None) -> None:
        """Let all transfers but the next `after` fail; None: none."""
        self._transfers_left = after

    def _side(self, array: Array) -> Array | None:
        start = array.ctypes.data
        for host, far in self._extents:
            first = host.ctypes.data
            if first <= start and start + array.nbytes <= first + host.nbytes:
                raw = far[start - first : start - first + array.nbytes]
                return raw.view(array.dtype).reshape(array.shape)
        return None

    def _far(self, array: Array) -> Array:
        side = self._side(array)
        if side is None:
            raise DeviceError(f"{self.name}: memory at {array.ctypes.data:#x} was never adopted")
        return side
