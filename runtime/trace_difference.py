"""What differs between two traces: wall time, ops by device, lanes.

Everything is for one run (a training step), so that traces of different length compare. An op's
seconds are those of its lanes together; `median_s` is of one slice.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from aieflow.runtime.timeline import Slice, Timeline


@dataclass(frozen=True, slots=True)
class Amount:
    """What one trace has of something, for one run; zeros where it has nothing."""

    count: float = 0.0  # slices
    median_s: float = 0.0  # of one slice
    seconds: float = 0.0  # of all


NOTHING = Amount()


@dataclass(frozen=True, slots=True)
class OpDifference:
    """One op (or kind of transfer) on one device."""

    op: str
    device: str
    before: Amount
    after: Amount

    @property
    def gain_s(self) -> float:
        """Lane seconds of a run that the second trace has more; below 0: fewer."""
        return self.after.seconds - self.before.seconds


@dataclass(frozen=True, slots=True)
class LaneDifference:
    """One lane: seconds busy in a run, and their share of it; None where it has no such lane."""

    lane: str
    before_s: float | None
    after_s: float | None
    before_share: float | None
    after_share: float | None


@dataclass(frozen=True, slots=True)
class Difference:
    """What the second trace has other than the first."""

    before_runs: int
    after_runs: int
    before_s: float  # median wall time of a run
    after_s: float
    ops: tuple[OpDifference, ...]  # the largest change of seconds first
    lanes: tuple[LaneDifference, ...]

    @property
    def ratio(self) -> float:
        """How many times longer the second takes."""
        return self.after_s / self.before_s


def difference(before: Timeline, after: Timeline) -> Difference:
    """Compare two traces, each of at least one run; raises ValueError for one without."""
    if not before.runs or not after.runs:
        raise ValueError("a trace without runs cannot be compared")
    first, second = (_amounts(each, lambda one: (one.op, one.device)) for each in (before, after))
    ops = [
        OpDifference(*key, first.get(key, NOTHING), second.get(key, NOTHING))
        for key in first.keys() | second.keys()
    ]
    ops.sort(key=lambda each: (-abs(each.gain_s), each.op, each.device))
    walls = [_wall_s(each) for each in (before, after)]
    busy = [_amounts(each, lambda one: one.lane) for each in (before, after)]
    lanes = []
    for lane in dict.fromkeys((*before.lanes, *after.lanes)):
        seconds = [
            amounts.get(lane, NOTHING).seconds if lane in trace.lanes else None
            for amounts, trace in zip(busy, (before, after), strict=True)
        ]
        shares = [
            None if s is None else s * len(trace.runs) / _walls_s(trace)
            for s, trace in zip(seconds, (before, after), strict=True)
        ]
        lanes.append(LaneDifference(lane, seconds[0], seconds[1], shares[0], shares[1]))
    return Difference(
        len(before.runs), len(after.runs), walls[0], walls[1], tuple(ops), tuple(lanes)
    )


Key = TypeVar("Key", bound=Hashable)


def _amounts(trace: Timeline, key: Callable[[Slice], Key]) -> Mapping[Key, Amount]:
    groups: dict[Key, list[float]] = defaultdict(list)
    for each in trace.slices:
        groups[key(each)].append(each.duration_ns / 1e9)
    runs = len(trace.runs)
    return {
        name: Amount(len(seconds) / runs, median(seconds), sum(seconds) / runs)
        for name, seconds in groups.items()
    }


def _walls_s(trace: Timeline) -> float:
    return max(sum(run.end_ns - run.start_ns for run in trace.runs), 1) / 1e9


def _wall_s(trace: Timeline) -> float:
    return max(median(run.end_ns - run.start_ns for run in trace.runs), 1) / 1e9
