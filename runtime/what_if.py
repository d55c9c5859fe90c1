"""What a run would gain if some of its work took no time, or half: told by the simulator.

A measured run is replayed in virtual time: each step takes what it took, and begins as long after
all that it follows as it did. Unchanged, that gives the run itself, to be shown beside every gain.
It is done with the runs whose length is nearest to the median, and of the gains the median counts.
Contention is in the measured spans and stays there: what a step gains when another disappears, and
runs no longer disturbed, is not foretold.
"""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aieflow.runtime.outline import Outline, Recording
from aieflow.runtime.plan import Plan
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import StepWork

Change = Literal["without", "half"]
MOST_WORKS = 6  # of each kind that are tried, the largest
REPLAYED = 3  # runs


@dataclass(frozen=True, slots=True)
class Gain:
    """What the run would take if one thing were otherwise; all simulated."""

    change: Change
    device: str
    work: str  # an op, a kind of transfer, or "overhead" on all lanes
    seconds: float
    ratio: float  # to the replay: 0.96 is 4 % less


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A replay and the gains that it foretells, largest first."""

    measured_s: float  # median of the runs that are replayed
    replay_s: float  # simulated
    gains: tuple[Gain, ...]


@dataclass(frozen=True, slots=True)
class _Scripted:
    """A `StepCost` of given seconds."""

    works: tuple[StepWork, ...]
    name: str = "replay of measured spans"
    idle_w: float = 0.0

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        """As given."""
        assert len(plan.steps) == len(self.works)
        return self.works

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """1: what was measured has it already."""
        return 1.0


def what_if(plan: Plan, outline: Outline, recordings: Sequence[Recording]) -> WhatIf:
    """What would be gained; `recordings` are of at least one run of the plan."""
    median_ns = statistics.median(each.wall_ns for each in recordings)
    nearest = sorted(recordings, key=lambda each: abs(each.wall_ns - median_ns))[:REPLAYED]
    replays = [_Replay(plan, outline, each) for each in nearest]
    unchanged = [1.0] * len(outline.steps)
    replay_s = [replay.seconds(unchanged) for replay in replays]

    def gain(
        change: Change, key: tuple[str, str], factors: Sequence[float], delay: float = 1.0
    ) -> Gain:
        seconds = [replay.seconds(factors, delay) for replay in replays]
        ratios = [new / old for new, old in zip(seconds, replay_s, strict=True)]
        return Gain(change, *key, statistics.median(seconds), statistics.median(ratios))

    gains = [gain("without", ("every lane", "overhead"), unchanged, delay=0.0)]
    for change, factor, groups in _changes(outline, nearest[0]):
        for key in groups:
            chosen = frozenset(groups[key])
            factors = [factor if i in chosen else 1.0 for i in range(len(outline.steps))]
            gains.append(gain(change, key, factors))
    return WhatIf(
        statistics.median(each.wall_ns for each in nearest) / 1e9,
        statistics.median(replay_s),
        tuple(sorted(gains, key=lambda gain: (gain.ratio, gain.device, gain.work))),
    )


class _Replay:
    """One run, ready to be replayed with other seconds."""

    def __init__(self, plan: Plan, outline: Outline, recording: Recording) -> None:
        self._plan = plan
        self._devices = [step.device for step in outline.steps]
        starts, ends = recording.starts_ns, recording.ends_ns
        self._spans_s = [(end - start) / 1e9 for start, end in zip(starts, ends, strict=True)]
        self._delays_s: list[float] = []
        for start, step, before in zip(starts, outline.steps, outline.before, strict=True):
            follows = [*step.waits, *([] if before is None else [before])]
            ready = max((ends[index] for index in follows), default=0)
            self._delays_s.append(max(0, start - ready) / 1e9)
        self._tail_s = (recording.wall_ns - max(ends, default=0)) / 1e9

    def seconds(self, factors: Sequence[float], delay: float = 1.0) -> float:
        """The length of the run with every span and every delay times a factor."""
        times = zip(self._devices, self._spans_s, factors, self._delays_s, strict=True)
        works = tuple(
            StepWork(device, span_s * factor + delay_s * delay)
            for device, span_s, factor, delay_s in times
        )
        return simulate(self._plan, _Scripted(works)).seconds + self._tail_s * delay


Groups = Mapping[tuple[str, str], list[int]]  # (device, work) -> its steps


def _changes(outline: Outline, recording: Recording) -> tuple[tuple[Change, float, Groups], ...]:
    """What is tried: no transfers and conversions of a kind; half the seconds of an op."""
    moved: dict[tuple[str, str], list[int]] = {}
    computed: dict[tuple[str, str], list[int]] = {}
    for index, step in enumerate(outline.steps):
        (moved if step.is_data else computed).setdefault((step.device, step.work), []).append(index)

    def ns(steps: Sequence[int]) -> int:
        return sum(recording.ends_ns[i] - recording.starts_ns[i] for i in steps)

    def largest(groups: Groups) -> Groups:
        ranked = sorted(groups, key=lambda key: (-ns(groups[key]), key))
        return {key: groups[key] for key in ranked[:MOST_WORKS]}

    return ("without", 0.0, largest(moved)), ("half", 0.5, largest(computed))
