"""What a traced run of a plan says of works: how long each took, relative to what was foretold.

The plan is simulated once, so that a work that runs beside another device is expected to take as
much longer as the cost model says of the two: what is learned is its duration alone. Of a divided
node the longest part counts, and like nodes are one work. After that a traced run costs a few
passes over arrays.
"""

from collections.abc import Mapping

import numpy as np

from aieflow.ops.kernel import Kernels
from aieflow.ops.op import Array
from aieflow.profiles.history import History
from aieflow.profiles.work import Work, work_of
from aieflow.runtime.plan import Plan
from aieflow.runtime.schedule import device_of
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.runtime.trace import Trace


def works_in(plan: Plan, kernels: Kernels) -> dict[int, Work]:
    """The work of each node of a plan on compute lanes, by the node's index."""
    found: dict[int, Work] = {}
    for step in plan.steps:
        if step.kind == "node" and ".compute" in step.lane and step.node not in found:
            device, node = device_of(step.lane), plan.node_of(step)
            kernel = kernels[device][node.op.name]
            found[step.node] = work_of(device, node, kernel, step.parts)
    return found


class Observed:
    """A plan whose runs are noted in a history; raises ProfileError for a work without cost."""

    def __init__(
        self, plan: Plan, cost: MachineStepCost, kernels: Kernels, history: History
    ) -> None:
        self.plan = plan
        self._history = history
        foretold = simulate(plan, cost)
        self.foretold_s = foretold.seconds
        factors = _factors([work.seconds for work in cost.of(plan)], foretold)
        works = works_in(plan, kernels)
        steps = [step for step in plan.steps if step.kind == "node" and step.node in works]
        steps = [step for step in steps if ".compute" in step.lane]
        alone_s = [
            cost.machine.node_s(device_of(step.lane), plan.node_of(step), step.parts)
            for step in steps
        ]
        self.devices = frozenset(device_of(step.lane) for step in steps)
        self._steps = np.array([step.index for step in steps], np.int64)
        nodes = np.array([step.node for step in steps], np.int64)
        # Parts of a node stand together in a plan.
        self._firsts = np.flatnonzero(np.diff(nodes, prepend=-1))
        order = [int(node) for node in nodes[self._firsts]]
        rows: dict[Work, int] = {}
        self._row_of = np.array(
            [rows.setdefault(works[node], len(rows)) for node in order], np.int64
        )
        seconds = [each * factors[step.index] for each, step in zip(alone_s, steps, strict=True)]
        self._expected_s = np.maximum(self._per_work(np.array(seconds)), 1e-12)
        self._rows = history.rows(list(rows), [float(each) for each in self._expected_s])

    def note(self, trace: Trace) -> None:
        """Enter one traced run of the plan into the history."""
        durations = np.fromiter((span.end_s - span.start_s for span in trace.spans), np.float64)
        measured_s = self._per_work(durations[self._steps])
        self._history.note(self._rows, measured_s / self._expected_s)

    def _per_work(self, seconds: Array) -> Array:
        """Seconds of each work, of all its nodes together, from those of each step."""
        longest = np.maximum.reduceat(seconds, self._firsts)
        return np.bincount(self._row_of, longest)


def _factors(alone_s: list[float], foretold: Trace) -> Mapping[int, float]:
    """How many times longer steps are foretold to take beside other devices."""
    return {
        span.step: (span.end_s - span.start_s) / seconds if seconds else 1.0
        for span, seconds in zip(foretold.spans, alone_s, strict=True)
    }
