"""Runs a plan in virtual time: the executor's rule, and a cost model in place of devices.

`RunState` says which steps may start; here every lane starts its next step the moment it may. So
the trace is what a run would leave whose steps take what the model says, and waits cost nothing.

While several devices are busy they slow each other down. So each device has a clock of *work*, in
seconds that its steps would take alone: it advances at rate 1 while the others are idle, and slower
beside them. A step ends when that clock has advanced by the step's duration; when the set of busy
devices changes, rates change, and with them the times of all ends that are still to come. A step
that began under other rates keeps what it has done.

Events are handled in the order (time, lane, step): same plan, same costs, same trace.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from aieflow.ops.errors import PlanError
from aieflow.runtime.plan import Plan
from aieflow.runtime.state import RunState
from aieflow.runtime.step_cost import StepCost, StepWork
from aieflow.runtime.trace import Span, Trace


def simulate(plan: Plan, cost: StepCost) -> Trace:
    """The trace that a run of `plan` is foretold to leave; its executors are called "simulated".

    Raises PlanError for a plan whose steps wait for each other.
    """
    works = cost.of(plan)
    starts, ends = _simulated(plan, cost, works)
    spans = tuple(
        Span(
            step.index,
            step.lane,
            f"{cost.name}: {works[step.index].device} (simulated)",
            starts[step.index],
            ends[step.index],
        )
        for step in plan.steps
    )
    return Trace(plan, spans, max(ends, default=0.0))


def joules(trace: Trace, cost: StepCost) -> float:
    """The energy of a simulated run: idle power throughout, active power while steps run.

    A step that is slowed down by another device draws its power for as long as it takes.
    """
    works = cost.of(trace.plan)
    active = sum((span.end_s - span.start_s) * works[span.step].watts for span in trace.spans)
    return cost.idle_w * trace.seconds + active


def _simulated(
    plan: Plan, cost: StepCost, works: tuple[StepWork, ...]
) -> tuple[list[float], list[float]]:
    """When each step starts and ends."""
    order = {lane: place for place, lane in enumerate(plan.lanes)}
    clocks = {work.device: _WorkClock() for work in sorted(works, key=lambda work: work.device)}
    starts, ends = [0.0] * len(works), [0.0] * len(works)
    state = RunState(plan)
    now, ready = 0.0, state.ready()
    before: list[str] = []
    while True:
        for step in ready:
            state.start(step.index)
            starts[step.index] = now
            work = works[step.index]
            clocks[work.device].add(now, work.seconds, order[step.lane], step.index)
        busy = [device for device, clock in clocks.items() if clock.pending]
        if not busy:
            break
        if busy != before:
            for device in busy:
                others = [other for other in busy if other != device]
                clocks[device].set_rate(now, 1 / cost.slowdown(device, others))
            before = busy
        time, _, index = min(clocks[device].next_end() for device in busy)
        now = max(now, time)  # rounding must not turn time back
        heappop(clocks[works[index].device].pending)
        ends[index] = now
        ready = state.finish(index)
    if not state.is_done:
        raise PlanError(f"{plan.graph.name}: the steps of its plan wait for each other")
    return starts, ends


@dataclass(slots=True)
class _WorkClock:
    """How far one device is with its work, and where on that clock its running steps end.

    The time of a point is anchored where the rate changed last: under a rate of 1 throughout, work
    and time are the same numbers, free of rounding.
    """

    rate: float = 1.0
    anchor_s: float = 0.0
    anchor_work_s: float = 0.0
    pending: list[tuple[float, int, int]] = field(default_factory=list)  # (end, lane, step)

    def add(self, now: float, seconds: float, lane: int, step: int) -> None:
        """Note that a step of `seconds` of work starts."""
        heappush(self.pending, (self._work_s(now) + seconds, lane, step))

    def set_rate(self, now: float, rate: float) -> None:
        """From now on, advance by `rate` in each second."""
        if rate != self.rate:
            self.anchor_s, self.anchor_work_s, self.rate = now, self._work_s(now), rate

    def next_end(self) -> tuple[float, int, int]:
        """When the first of the running steps ends if no rate changes, its lane and its index."""
        work_s, lane, step = self.pending[0]
        return self.anchor_s + (work_s - self.anchor_work_s) / self.rate, lane, step

    def _work_s(self, now: float) -> float:
        return self.anchor_work_s + (now - self.anchor_s) * self.rate
