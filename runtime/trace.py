"""What a run did: the span of every step, and the account of each lane's time.

Spans are recorded as nanoseconds in lists that exist before the run, and given names afterwards.
`runtime.timeline` makes of them what trace files hold.
"""

import math
from bisect import bisect_right
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
    def overlap(self) -> float:
        """Share of the copy lanes' time, transfers and conversions, that ran under compute.

        1 where nothing had to be copied.
        """
        copies = [span for span in self.spans if ".copy" in span.lane]
        total = sum(span.end_s - span.start_s for span in copies)
        if not total:
            return 1.0
        busy = _union(
            [(span.start_s, span.end_s) for span in self.spans if ".copy" not in span.lane]
        )
        hidden = 0.0
        for span in copies:
            first = max(0, bisect_right(busy, (span.start_s, math.inf)) - 1)
            for start, end in busy[first:]:
                if start >= span.end_s:
                    break
                hidden += max(0.0, min(end, span.end_s) - max(start, span.start_s))
        return hidden / total

    def seconds_by_op(self) -> dict[str, float]:
        """Lane seconds of each op and kind of transfer, largest first."""
        sums: dict[str, float] = {}
        for span in self.spans:
            op = self.plan.work_of(self.plan.steps[span.step])
            sums[op] = sums.get(op, 0.0) + span.end_s - span.start_s
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _union(intervals: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Disjoint intervals that cover the same, in order."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
