"""Predicts how long a node takes on a device: what a cost model is, and the simplest one.

`RooflineCost` is the roofline (Williams et al. 2009): launch + the longer of FLOPs at the compute
rate and bytes at the memory bandwidth.

>>> RooflineCost(flops_per_s=50e9, bytes_per_s=10e9, launch_s=5e-6).seconds(flops=1e9, nbytes=1e6)
0.020005
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from aieflow.ops.graph import Node


class CostModel(Protocol):
    """Seconds and watts of everything that steps of a plan do, on one machine.

    Durations are those of one lane while no other device is busy.
    """

    @property
    def name(self) -> str:
        """The machine and its power source."""
        ...

    @property
    def idle_w(self) -> float:
        """Watts of the whole machine while nothing runs; 0 where nobody knows."""
        ...

    def lanes(self, device: str) -> int:
        """How many compute lanes a device has."""
        ...

    def lane_w(self, device: str) -> float:
        """Watts of one busy lane of a device on top of the idle power; 0 where nobody knows."""
        ...

    def node_s(self, device: str, node: Node, parts: int = 1) -> float:
        """Seconds of one of `parts` equal parts of a node on one lane of a device."""
        ...

    def work_s(self, device: str, op: str, flops: float, nbytes: float, parts: int = 1) -> float:
        """Seconds of so much work of an op on one lane, one of `parts` side by side."""
        ...

    def transfer_s(self, device: str, nbytes: float) -> float:
        """Seconds to bring bytes from the host's side to a device's, or back."""
        ...

    def copy_s(self, nbytes: float) -> float:
        """Seconds in which the host copies bytes from one place of its memory to another."""
        ...

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """How many times longer a device takes while `others` are busy; itself does not count."""
        ...


@dataclass(frozen=True, slots=True)
class RooflineCost:
    """Rates of one lane of a device."""

    flops_per_s: float
    bytes_per_s: float
    launch_s: float

    def seconds(self, flops: float, nbytes: float) -> float:
        """Predicted seconds of a node with that many FLOPs and bytes on one lane."""
        return self.launch_s + max(flops / self.flops_per_s, nbytes / self.bytes_per_s)


# Of one core of today's processors, not of this computer: enough to tell large nodes from small.
TYPICAL_CORE = RooflineCost(flops_per_s=60e9, bytes_per_s=10e9, launch_s=5e-6)
