"""What runs of plans on fake devices take in a test: made-up costs, which a script can change."""

from collections.abc import Collection
from dataclasses import dataclass, field

from made_up_costs import MadeUp

from aieflow.ops.graph import Node
from aieflow.runtime.plan import Plan
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.runtime.trace import Trace


@dataclass(slots=True)
class Truth:
    """A cost model whose devices take `factors` times as long as `base` says: change them."""

    base: MadeUp
    factors: dict[str, float] = field(default_factory=dict)
    traced: int = 0  # runs whose trace was asked for
    name: str = "the truth"
    idle_w: float = 0.0
    _traces: list[tuple[Plan, dict[str, float], Trace]] = field(default_factory=list)

    def lanes(self, device: str) -> int:
        return self.base.lanes(device)

    def lane_w(self, device: str) -> float:
        return self.base.lane_w(device)

    def node_s(self, device: str, node: Node, parts: int = 1) -> float:
        return self.factors.get(device, 1.0) * self.base.node_s(device, node, parts)

    def work_s(self, device: str, op: str, flops: float, nbytes: float, parts: int = 1) -> float:
        return self.base.work_s(device, op, flops, nbytes, parts)

    def transfer_s(self, device: str, nbytes: float) -> float:
        return self.base.transfer_s(device, nbytes)

    def copy_s(self, nbytes: float) -> float:
        return self.base.copy_s(nbytes)

    def slowdown(self, device: str, others: Collection[str]) -> float:
        return self.base.slowdown(device, others)

    def trace(self, plan: Plan) -> Trace:
        """The trace that a run leaves as things are now."""
        for known, factors, trace in self._traces:
            if known is plan and factors == self.factors:
                return trace
        trace = simulate(plan, MachineStepCost(self))
        self._traces.append((plan, dict(self.factors), trace))
        return trace

    def seen(self, plan: Plan, seconds: float, trace: Trace | None) -> tuple[float, Trace | None]:
        """For a `Replanner`: what a run took, in place of what was measured."""
        self.traced += trace is not None
        told = self.trace(plan)
        return told.seconds, told if trace is not None else None
