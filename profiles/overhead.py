"""What a step takes beside its work: until it begins, and because its span is noted.

A *gap* lies between the end of what a step follows (its lane's last step, and those it waits for)
and its start. It depends on the kind of lane and on what the step waits for: nothing, a lane of its
own device, or one of another device. It depends on the plan, too: a lane that slept for longer
takes longer to wake, and a copy that follows many others finds its lane awake. So gaps are those of
the measured plans that are most like the one in question, by how many gaps of the kind they have
and by how long their steps are.

The first step of a lane begins with the run; what that takes is `run_s`. Spans are noted in a
traced run, which may take longer than another: a device without a clock of its own is waited for
after every step, and noting keeps cores busy that could compute. So a step of an untraced run takes
more, or less (`untraced`): as in the runs of plans like it, too.

What is known of the same devices together goes before what is known of others.

>>> known = Overheads(gaps={("cpu", "cpu.compute waits"): PerStep(((95, 1e-4, 2e-5),))})
>>> beside = known.of("cpu", {"cpu.compute waits": 80}, 2e-4)
>>> beside.seconds(1e-3, "cpu.compute.0", ["cpu.compute.1"], is_first=False)
0.00102
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aieflow.profiles.samples import weighted_mean, weighted_median

LEAST_SHARE = 0.1  # of a measured span that a step of an untraced run takes at least
TAIL_MADS = 8.0  # from the median: a lane that wakes late now and then is no disturbance
UNTRACED = "untraced"  # in place of a gap's kind: what a step takes more if its span is not noted
LIKE = 2.0  # the factor between plans, in gaps or in seconds, within which they are much alike


@dataclass(frozen=True, slots=True)
class PerStep:
    """What steps take beside their work, of one kind, as it was in at least one run."""

    runs: tuple[tuple[float, float, float], ...]  # how many, mean seconds of a step, and beside it

    @property
    def median_s(self) -> float:
        """Seconds beside a step's work, the median of the runs."""
        return weighted_median((gap_s, 1.0) for *_, gap_s in self.runs)

    def seconds(self, count: float, step_s: float) -> float:
        """Those of a plan with so many, whose steps take so long: of runs like it."""
        distances = [
            _distance(count, many) ** 2 + _distance(step_s, each_s) ** 2
            for many, each_s, _ in self.runs
        ]
        least = min(distances)
        rows = (
            (gap_s, math.exp((least - distance) / 2))
            for (*_, gap_s), distance in zip(self.runs, distances, strict=True)
        )
        return weighted_mean(rows, TAIL_MADS)


@dataclass(frozen=True, slots=True)
class PlanOverheads:
    """Seconds beside the work of one plan's steps; 0 where unknown."""

    run_s: float
    gap_s: Mapping[str, float]  # by `gap_kind`
    untraced_s: Mapping[str, float]  # by the device of the step

    def seconds(self, work_s: float, lane: str, after: Sequence[str], is_first: bool) -> float:
        """What a step on `lane` takes that waits for steps on the lanes `after`."""
        begins = is_first and not after
        seconds = work_s + (self.run_s if begins else self.gap_s.get(gap_kind(lane, after), 0.0))
        if ".compute" not in lane:
            return seconds
        noted = self.untraced_s.get(lane.partition(".")[0], 0.0)
        return max(LEAST_SHARE * work_s, seconds + noted)


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds beside the work of steps, by devices (names with commas); 0 where unknown."""

    run_s: Mapping[str, float] = field(default_factory=dict)
    gaps: Mapping[tuple[str, str], PerStep] = field(default_factory=dict)  # and by `gap_kind`
    untraced: Mapping[str, PerStep] = field(default_factory=dict)  # by the device of the step

    def of(self, devices: str, counts: Mapping[str, int], step_s: float) -> PlanOverheads:
        """Those of a plan whose compute lanes are those of `devices`.

        `counts` has how many gaps of each kind it has, `step_s` the mean seconds of a step on its
        compute lanes.
        """
        found: dict[str, float] = {}
        for kind, count in counts.items():
            own = self.gaps.get((devices, kind))
            known = [each for (_, other), each in self.gaps.items() if other == kind]
            known = known if own is None else [own]
            found[kind] = max((each.seconds(count, step_s) for each in known), default=0.0)
        run_s = self.run_s.get(devices, max(self.run_s.values(), default=0.0))
        untraced_s = {
            device: each.seconds(_computing(device, counts), step_s)
            for device, each in self.untraced.items()
        }
        return PlanOverheads(run_s, found, untraced_s)


NO_OVERHEADS = Overheads()


def gap_kind(lane: str, after: Sequence[str]) -> str:
    """The kind of a gap: the lane without its number, and what its step waits for.

    >>> gap_kind("cpu.compute.1", []), gap_kind("igpu.copy.in", ["cpu.compute.0"])
    ('cpu.compute goes on', 'igpu.copy crosses')
    """
    device = lane.partition(".")[0]
    others = {other.partition(".")[0] for other in after}
    what = "goes on" if not after else "waits" if others == {device} else "crosses"
    return f"{'.'.join(lane.split('.')[:2])} {what}"


def _computing(device: str, counts: Mapping[str, int]) -> int:
    """How many gaps lie before steps on a device's compute lanes."""
    return sum(many for kind, many in counts.items() if kind.startswith(f"{device}.compute "))


def _distance(one: float, other: float) -> float:
    """How often one must be taken times `LIKE` to get the other; at least a nanosecond each."""
    return math.log(max(one, 1e-9) / max(other, 1e-9)) / math.log(LIKE)
