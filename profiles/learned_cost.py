"""A cost model, corrected by what a run has shown of late: see `profiles.history`.

Durations of nodes are those of the model that was there before, times what is learned of their
works. Links, contention and power stay as they were.
"""

from collections.abc import Collection

from aieflow.ops.graph import Node
from aieflow.ops.kernel import Kernels
from aieflow.profiles.cost import CostModel
from aieflow.profiles.history import Learned
from aieflow.profiles.work import work_of


class LearnedCost:
    """The corrected cost model; `kernels` are those that the devices have."""

    def __init__(self, base: CostModel, kernels: Kernels, learned: Learned) -> None:
        self._base, self._kernels, self.learned = base, kernels, learned
        self._seconds: dict[tuple[str, Node, int], float] = {}

    @property
    def name(self) -> str:
        """The machine and its power source."""
        return f"{self._base.name}, as of late"

    @property
    def idle_w(self) -> float:
        """Watts of the whole machine while nothing runs."""
        return self._base.idle_w

    def lanes(self, device: str) -> int:
        """How many compute lanes a device has."""
        return self._base.lanes(device)

    def lane_w(self, device: str) -> float:
        """Watts of one busy lane of a device on top of the idle power."""
        return self._base.lane_w(device)

    def node_s(self, device: str, node: Node, parts: int = 1) -> float:
        """Seconds of one of `parts` equal parts of a node on one lane of a device."""
        key = device, node, parts
        if key not in self._seconds:
            seconds = self._base.node_s(device, node, parts)
            kernel = self._kernels.get(device, {}).get(node.op.name)
            if kernel is not None:
                seconds *= self.learned.ratio(work_of(device, node, kernel, parts))
            self._seconds[key] = seconds
        return self._seconds[key]

    def work_s(self, device: str, op: str, flops: float, nbytes: float, parts: int = 1) -> float:
        """Seconds of so much work of an op on one lane, one of `parts` side by side."""
        learned = self.learned
        ratio = learned.ops.get((device, op), learned.devices.get(device, 1.0))
        return ratio * self._base.work_s(device, op, flops, nbytes, parts)

    def transfer_s(self, device: str, nbytes: float) -> float:
        """Seconds to bring bytes from the host's side to a device's, or back."""
        return self._base.transfer_s(device, nbytes)

    def copy_s(self, nbytes: float) -> float:
        """Seconds in which the host copies bytes from one place of its memory to another."""
        return self._base.copy_s(nbytes)

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """How many times longer a device takes while `others` are busy."""
        return self._base.slowdown(device, others)
