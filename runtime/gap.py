"""Where the time of a run went that its bound does not have: idle lanes, transfers in the open.

A step *follows* others: the one before it on its lane, and those it waits for. The last of them to
end is why it did not start earlier. From any moment at which a lane is idle, that chain leads back
through time without a hole: what its next step waits for was running, or was waiting in turn for
something that was. So each moment of a lane is put down to the work that the chain shows there:

- "nodes of DEVICE": computing, on another lane of the same device or on another device;
- an op, such as "npu_pack": a conversion; "DEVICE in", "DEVICE out": a transfer; "save";
- "nothing left" after a lane's last step;
- "late" from a cause's end until what follows it starts: never in a simulated run.

Busy seconds and these add up to the run, lane by lane. The same chain from the step that ends last
back to the start is the run's *critical path*: to make anything else faster gains nothing.

A transfer or conversion is *exposed* while no compute lane has anything to do but conversions.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.schedule import device_of
from aieflow.runtime.trace import Cover, Span, Trace

NOTHING_LEFT = "nothing left"
LATE = "late"
Idle = Mapping[str, float]  # seconds by cause, largest first


@dataclass(frozen=True, slots=True)
class LaneTime:
    """What one lane did with the seconds of a run: busy and idle add up to it."""

    busy_s: float
    idle: Idle


@dataclass(frozen=True, slots=True)
class Exposed:
    """A transfer or conversion that ran while nothing was computed, all its parts together."""

    name: str
    work: str  # its op, "DEVICE in", "DEVICE out" or "save"
    seconds: float


@dataclass(frozen=True, slots=True)
class Gap:
    """Where the seconds of a run lie. Mappings are by cause, largest first."""

    seconds: float
    lanes: Mapping[str, LaneTime]
    exposed: tuple[Exposed, ...]  # largest first
    path: tuple[int, ...]  # steps of the critical path, first to last
    path_seconds: Idle  # by device and op, and "late"

    @property
    def exposed_s(self) -> float:
        """Lane seconds of all transfers and conversions that nothing hid."""
        return math.fsum(each.seconds for each in self.exposed)


def gap(trace: Trace, conversions: Collection[str] = ()) -> Gap:
    """Where the time of a run lies; `conversions` are ops that prepare operands, on any lane."""
    plan = trace.plan
    spans = _by_step(trace)
    last_of = _followed(plan, spans)
    path = _path(trace, spans, last_of)
    lanes = {
        lane: _lane_time(plan, program, spans, last_of, trace.seconds, conversions)
        for lane, program in plan.lanes.items()
    }
    return Gap(
        trace.seconds,
        lanes,
        _exposed(trace, conversions),
        path,
        _path_seconds(plan, path, spans, trace.seconds, conversions),
    )


def cause_of(plan: Plan, step: Step, conversions: Collection[str] = ()) -> str:
    """What a lane that waits for a step is said to wait for."""
    if step.kind == "save":
        return "save"
    if step.kind != "node":
        return f"{device_of(step.lane)} {step.kind}"
    op = plan.node_of(step).op.name
    if op in conversions or ".copy" in step.lane:
        return op
    return f"nodes of {device_of(step.lane)}"


def _by_step(trace: Trace) -> Sequence[Span]:
    spans = sorted(trace.spans, key=lambda span: span.step)
    assert [span.step for span in spans] == list(range(len(trace.plan.steps)))
    return spans


def _followed(plan: Plan, spans: Sequence[Span]) -> list[int | None]:
    """For each step the last to end of those that it follows; of equals one it waits for."""
    followed: list[int | None] = [None] * len(spans)
    before: dict[str, int] = {}  # lane -> its last step so far
    for program in plan.lanes.values():
        for index in program:
            step = plan.steps[index]
            found = before.get(step.lane)
            for wait in step.waits:
                if found is None or spans[wait].end_s >= spans[found].end_s:
                    found = wait
            followed[index] = found
            before[step.lane] = index
    return followed


def _lane_time(
    plan: Plan,
    program: Sequence[int],
    spans: Sequence[Span],
    last_of: Sequence[int | None],
    seconds: float,
    conversions: Collection[str],
) -> LaneTime:
    idle: dict[str, float] = defaultdict(float)
    free_s = 0.0
    for index in program:
        start_s, cause = spans[index].start_s, last_of[index]
        while start_s > free_s:
            if cause is None or spans[cause].end_s <= free_s:
                idle[LATE] += start_s - free_s
                break
            span = spans[cause]
            if span.end_s < start_s:
                idle[LATE] += start_s - span.end_s
                start_s = span.end_s
            if span.start_s < start_s:
                begin_s = max(free_s, span.start_s)
                idle[cause_of(plan, plan.steps[cause], conversions)] += start_s - begin_s
                start_s = begin_s
            cause = last_of[cause]
        free_s = spans[index].end_s
    if free_s < seconds:
        idle[NOTHING_LEFT] += seconds - free_s
    busy_s = math.fsum(spans[index].end_s - spans[index].start_s for index in program)
    return LaneTime(busy_s, _largest_first(idle))


def _path(trace: Trace, spans: Sequence[Span], last_of: Sequence[int | None]) -> tuple[int, ...]:
    """From the step that ends last back to one that follows none."""
    path: list[int] = []
    step = max(range(len(spans)), key=lambda index: spans[index].end_s) if spans else None
    while step is not None:
        path.append(step)
        step = last_of[step]
    return tuple(reversed(path))


def _path_seconds(
    plan: Plan,
    path: Sequence[int],
    spans: Sequence[Span],
    seconds: float,
    conversions: Collection[str],
) -> Idle:
    sums: dict[str, float] = defaultdict(float)
    now_s = 0.0
    for index in path:
        span, step = spans[index], plan.steps[index]
        cause = cause_of(plan, step, conversions)
        is_node = cause.startswith("nodes of ")
        work = f"{device_of(step.lane)} {plan.work_of(step)}" if is_node else cause
        if span.start_s > now_s:
            sums[LATE] += span.start_s - now_s
        sums[work] += span.end_s - max(now_s, span.start_s)
        now_s = max(now_s, span.end_s)
    if seconds > now_s:
        sums[LATE] += seconds - now_s
    return _largest_first(sums)


def _exposed(trace: Trace, conversions: Collection[str]) -> tuple[Exposed, ...]:
    plan = trace.plan
    nodes: list[Span] = []
    others: list[Span] = []
    for span in trace.spans:
        cause = cause_of(plan, plan.steps[span.step], conversions)
        (nodes if cause.startswith("nodes of ") else others).append(span)
    computing = Cover((span.start_s, span.end_s) for span in nodes)
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for span in others:
        step = plan.steps[span.step]
        hidden_s = computing.of(span.start_s, span.end_s)
        key = plan.name_of(step), cause_of(plan, step, conversions)
        sums[key] += span.end_s - span.start_s - hidden_s
    found = [Exposed(name, work, s) for (name, work), s in sums.items() if s > 0]
    return tuple(sorted(found, key=lambda each: (-each.seconds, each.name, each.work)))


def _largest_first(sums: Mapping[str, float]) -> Idle:
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))
