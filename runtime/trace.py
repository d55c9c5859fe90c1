"""What a run did: the span of every step, and the account of each lane's time.

Spans are recorded as nanoseconds in lists that exist before the run, and given names afterwards.
`write_chrome` makes a JSON file that chrome://tracing and Perfetto open: a track for each lane, an
arrow for each wait between lanes.
"""

import json
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from aieflow.ops.graph import Value
from aieflow.runtime.plan import Plan, Step


@dataclass(frozen=True, slots=True)
class Span:
    """The interval in which one step was executed."""

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


def write_chrome(traces: list[tuple[float, Trace]], path: Path) -> None:
    """Write runs, each with its start in seconds, as Chrome trace events; raises OSError."""
    events: list[dict[str, object]] = []
    # A run that loses a device has another plan from then on, with other lanes.
    lanes = dict.fromkeys(lane for _, trace in traces for lane in trace.plan.lanes)
    track = {lane: number for number, lane in enumerate(lanes)}
    events += _names(track)
    for start_s, trace in traces:
        events += _events(start_s, trace, track)
    document = {"traceEvents": events, "displayTimeUnit": "ms"}
    path.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")


def _names(tracks: Mapping[str, int]) -> Iterator[dict[str, object]]:
    yield {"ph": "M", "pid": 0, "name": "process_name", "args": {"name": "aieflow"}}
    for lane, track in tracks.items():
        yield {"ph": "M", "pid": 0, "tid": track, "name": "thread_name", "args": {"name": lane}}


def _events(start_s: float, trace: Trace, track: Mapping[str, int]) -> Iterator[dict[str, object]]:
    plan = trace.plan
    values = {value.name: value for value in plan.graph.values}
    end_of = {span.step: _microseconds(start_s + span.end_s) for span in trace.spans}
    for span in trace.spans:
        step = plan.steps[span.step]
        begin = _microseconds(start_s + span.start_s)
        common = {"pid": 0, "tid": track[span.lane]}
        yield {
            **common,
            "ph": "X",
            "name": plan.name_of(step),
            "cat": plan.work_of(step),
            "ts": begin,
            "dur": round(end_of[span.step] - begin, 3),
            "args": {**_arguments(plan, step, values), "executor": span.executor},
        }
        for wait in step.waits:
            flow = {"pid": 0, "name": "wait", "cat": "wait", "id": f"{start_s}:{wait}:{step.index}"}
            source = track[plan.steps[wait].lane]
            yield {**flow, "ph": "s", "tid": source, "ts": end_of[wait]}
            yield {**flow, "ph": "f", "bp": "e", "tid": track[span.lane], "ts": begin}


def _arguments(plan: Plan, step: Step, values: Mapping[str, Value]) -> dict[str, object]:
    node = plan.node_of(step)
    if step.kind != "node":
        value = values[step.value]
        return {"value": str(value.spec), "nbytes": value.spec.nbytes, "for": node.name}
    return {
        "op": node.op.name,
        "inputs": [str(spec) for spec in node.input_specs],
        "outputs": [str(spec) for spec in node.output_specs],
        "part": f"{step.part + 1} of {step.parts}",
        "flops": node.flops // step.parts,
        "nbytes": node.nbytes // step.parts,
    }


def _microseconds(seconds: float) -> float:
    """Whole nanoseconds, written in microseconds: the unit of Chrome's format."""
    return round(seconds * 1e6, 3)
