"""Counters of a timeline: quantities that follow from the spans of a run and its plan.

- "ready steps": what may start and has not: from the end of the last of the steps that a step waits
  for, and of the nodes and transfers that give it what it reads, until it starts. 0 for long: too
  little that can be done side by side.
- "bytes in flight": of transfers that are under way.
- "memory": all that a run has, less those places of the arena in which nothing lives: a value lives
  from the start of the node that defines it to the end of the last step that reads it.
- "power": with a cost model that knows watts: idle power, and that of each busy lane. It is the
  model's, not a meter's.

A counter that is 0 throughout is left out.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from aieflow.runtime.memory import ARENA
from aieflow.runtime.plan import Plan
from aieflow.runtime.schedule import device_of
from aieflow.runtime.step_cost import StepCost
from aieflow.runtime.timeline import Counter, Recorded, Timeline, works_of
from aieflow.runtime.trace import nanoseconds
from aieflow.runtime.transfer import HOST

Samples = list[tuple[int, float]]
Times = Sequence[tuple[int, int]]  # start and end (ns) of each step
UNITS = {"ready steps": "steps", "bytes in flight": "bytes", "memory": "bytes", "power": "watts"}


def with_counters(
    timeline: Timeline, recorded: Sequence[Recorded], cost: StepCost | None = None
) -> Timeline:
    """The timeline of these very runs with its counters."""
    samples: dict[str, Samples] = {name: [] for name in UNITS}
    first_s = min((each.start_s for each in recorded), default=0.0)
    for run, each in zip(timeline.runs, recorded, strict=True):
        plan, trace = each.trace.plan, each.trace
        if len(trace.spans) != len(plan.steps):
            continue  # of a run cut short nothing can be counted
        start_s = each.start_s - first_s
        times = [(0, 0)] * len(plan.steps)
        for span in trace.spans:
            times[span.step] = (
                nanoseconds(start_s + span.start_s),
                nanoseconds(start_s + span.end_s),
            )
        span_ns = run.start_ns, run.end_ns
        samples["ready steps"] += _level(_waiting(plan, times, run.start_ns), span_ns)
        samples["bytes in flight"] += _level(_moving(plan, times), span_ns)
        samples["memory"] += _memory(plan, times, span_ns)
        works = works_of(plan, cost)
        if cost is not None and works is not None and cost.idle_w:
            drawn = [
                (start, end, work.watts) for (start, end), work in zip(times, works, strict=True)
            ]
            samples["power"] += _level([(*span_ns, cost.idle_w), *drawn], span_ns)
    counters = tuple(
        Counter(name, UNITS[name], tuple(each))
        for name, each in samples.items()
        if any(value for _, value in each)
    )
    return replace(timeline, counters=counters)


def _level(intervals: Iterable[tuple[int, int, float]], span_ns: tuple[int, int]) -> Samples:
    """The sum of the amounts whose interval covers each moment, from the run's start; 0 at its end.

    >>> _level([(2, 5, 1.0), (3, 9, 2.0)], (0, 10))
    [(0, 0.0), (2, 1.0), (3, 3.0), (5, 2.0), (9, 0.0), (10, 0.0)]
    """
    changes: dict[int, list[float]] = {at: [] for at in span_ns}
    for start, end, amount in intervals:
        if end > start:
            changes.setdefault(start, []).append(amount)
            changes.setdefault(end, []).append(-amount)
    level, found = 0.0, Samples()
    for at in sorted(changes):
        level += sum(changes[at])
        found.append((at, round(level, 9) + 0.0))
    return found


def _waiting(plan: Plan, times: Times, begin_ns: int) -> Iterable[tuple[int, int, float]]:
    """For each step from when to when it could have run and did not."""
    sides = {device_of(lane) for lane in plan.lanes if ".copy" in lane} - {HOST}
    ended: dict[str, int] = {}  # value -> when what defines it has ended
    arrived: dict[tuple[str, str], int] = {}  # value and side -> when it was brought there
    for step in plan.steps:
        node, device = plan.node_of(step), device_of(step.lane)
        start_ns, end_ns = times[step.index]
        side = device if device in sides and ".copy" not in step.lane else HOST
        reads = [value.name for value in node.inputs] if step.kind == "node" else [step.value]
        after = [ended[name] for name in reads if name in ended]
        after += [arrived[name, side] for name in reads if (name, side) in arrived]
        ready_ns = max((begin_ns, *after, *(times[wait][1] for wait in step.waits)))
        yield min(ready_ns, start_ns), start_ns, 1.0
        if step.kind == "node":
            for value in node.outputs:
                ended[value.name] = max(end_ns, ended.get(value.name, 0))
        elif step.kind != "save":
            arrived[step.value, device if step.kind == "in" else HOST] = end_ns


def _moving(plan: Plan, times: Times) -> Iterable[tuple[int, int, float]]:
    nbytes = {value.name: value.spec.nbytes for value in plan.graph.values}
    for step in plan.steps:
        if step.kind != "node":
            yield (*times[step.index], float(nbytes[step.value]))


def _memory(plan: Plan, times: Times, span_ns: tuple[int, int]) -> Samples:
    lives = _lives(plan, times, span_ns)
    # The arena, cut at the borders of slots: a piece is in use while any value there lives.
    borders = np.unique([edge for low, high, _, _ in lives for edge in (low, high)])
    sizes: npt.NDArray[np.int64] = np.diff(borders)
    users = np.zeros(len(sizes), np.int64)
    fixed = plan.nbytes - plan.memory.arena_nbytes
    events: list[tuple[int, int, int, int]] = []
    for low, high, start_ns, end_ns in lives:
        first, last = (int(np.searchsorted(borders, edge)) for edge in (low, high))
        events += [(start_ns, 1, first, last), (end_ns, -1, first, last)]
    used, found = 0, dict[int, float]()
    for at, change, first, last in sorted(events):
        before = users[first:last] > 0
        users[first:last] += change
        used += int((((users[first:last] > 0) ^ before) * sizes[first:last]).sum()) * change
        found[at] = float(fixed + used)
    for at in span_ns:
        found.setdefault(at, float(fixed))
    return sorted(found.items())


def _lives(plan: Plan, times: Times, span_ns: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """First and last byte in the arena of each value there, and when it lives."""
    begins: dict[str, int] = {}
    ends: dict[str, int] = {}
    for step in plan.steps:
        node, (start_ns, end_ns) = plan.node_of(step), times[step.index]
        names = [value.name for value in node.inputs] if step.kind == "node" else [step.value]
        if step.kind == "node":
            for value in node.outputs:
                begins[value.name] = min(start_ns, begins.get(value.name, start_ns))
                names.append(value.name)
        for name in names:
            ends[name] = max(end_ns, ends.get(name, 0))
    for value in plan.graph.results:
        ends[value.name] = span_ns[1]
    found: list[tuple[int, int, int, int]] = []
    for value in plan.graph.values:
        slot = plan.memory.slots[value]
        if slot.space == ARENA and value.name in begins and slot.nbytes:
            low, high = slot.offset, slot.offset + slot.nbytes
            found.append((low, high, begins[value.name], ends[value.name]))
    return found
