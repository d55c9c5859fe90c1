"""What a run did: the span of every step, and the account of each lane's time.

Spans are recorded as nanoseconds in lists that exist before the run, and given names afterwards.
`runtime.timeline` makes of them what trace files hold.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

from aieflow.runtime.plan import Plan


@dataclass(frozen=True, slots=True)
class Span:
    """The interval in which one step was executed, by its device's clock where that has one."""

    step: int
    lane: str
    executor: str  # identity of what executed it
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Trace:
    """The spans of one run of a plan, in the order of the plan's steps; times from its start."""

    plan: Plan
    spans: tuple[Span, ...]
    seconds: float  # wall time of the run

    def busy_seconds(self, lane: str) -> float:
        """Seconds in which a lane executed kernels."""
        return sum(span.end_s - span.start_s for span in self.spans if span.lane == lane)

    @property
    def outside_kernels(self) -> float:
        """Share of the lanes' wall time that was not spent in kernels."""
        lanes = self.plan.lanes
        busy = sum(self.busy_seconds(lane) for lane in lanes)
        return 1 - busy / (self.seconds * len(lanes)) if self.seconds else 0.0

    @property
    def overlap(self) -> float | None:
        """Share of the copy lanes' time, transfers and conversions, that ran under compute.

        None where nothing had to be copied.
        """
        hidden, total = overlapped(
            [(span.start_s, span.end_s) for span in self.spans if ".copy" in span.lane],
            [(span.start_s, span.end_s) for span in self.spans if ".copy" not in span.lane],
        )
        return hidden / total if total else None

    def seconds_by_op(self) -> dict[str, float]:
        """Lane seconds of each op and kind of transfer, largest first."""
        sums: dict[str, float] = {}
        for span in self.spans:
            op = self.plan.work_of(self.plan.steps[span.step])
            sums[op] = sums.get(op, 0.0) + span.end_s - span.start_s
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


def nanoseconds(seconds: float) -> int:
    """Seconds as whole nanoseconds, the nearest."""
    return round(seconds * 1e9)


class Cover:
    """The time that some intervals cover, each moment once; exact for integers."""

    def __init__(self, intervals: Iterable[tuple[float, float]]) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []
        self._before: list[float] = []  # covered by all earlier intervals
        for start, end in sorted(intervals):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], end)
                continue
            so_far = self._before[-1] + self._ends[-1] - self._starts[-1] if self._ends else 0
            self._before.append(so_far)
            self._starts.append(start)
            self._ends.append(end)

    def of(self, start: float, end: float) -> float:
        """How much of an interval is covered, in the unit of the times."""
        return self._until(end) - self._until(start)

    def _until(self, time: float) -> float:
        place = bisect_right(self._starts, time) - 1
        if place < 0:
            return 0
        return self._before[place] + min(time, self._ends[place]) - self._starts[place]


def overlapped(
    intervals: Iterable[tuple[float, float]], cover: Iterable[tuple[float, float]]
) -> tuple[float, float]:
    """How much of some intervals lies under a cover, and all of them, in the unit of their times.

    Each interval counts, also where it overlaps another; a moment is covered once or not. Exact for
    integers.

    >>> overlapped([(0, 4), (2, 6)], [(3, 5), (4, 7)])
    (4, 8)
    """
    covered = Cover(cover)
    hidden: float = 0
    total: float = 0
    for start, end in intervals:
        total += end - start
        hidden += covered.of(start, end)
    return hidden, total
