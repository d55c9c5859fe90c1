"""A timeline in Chrome's trace event format, which chrome://tracing and Perfetto open.

A track (`tid`) for each lane, in the plan's order; complete events (`X`) for slices, flow events
(`s`, `f`) for arrows, counter events (`C`). Times are microseconds with three decimals, which are
whole nanoseconds; `otherData` lists the runs. The format's description: Trace Event Format, Google.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aieflow.ops.errors import InputError
from aieflow.runtime.timeline import Arrow, Counter, Run, Slice, Timeline, arguments

PROCESS = 0
TRACK = {"pid": PROCESS, "ph": "M"}


def write_chrome(timeline: Timeline, path: Path) -> None:
    """Write a timeline as JSON, compressed where the name ends in `.gz`; raises OSError."""
    document = {
        "traceEvents": list(_events(timeline)),
        "displayTimeUnit": "ms",
        "otherData": {"runs": [asdict(run) for run in timeline.runs]},
    }
    content = (json.dumps(document, separators=(",", ":")) + "\n").encode()
    # No time of writing in it: the same timeline gives the same bytes.
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_chrome(path: Path) -> Timeline:
    """The timeline that a file of `write_chrome` holds; raises InputError for another."""
    try:
        content = path.read_bytes()
        document = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
        runs = tuple(Run(**run) for run in document["otherData"]["runs"])
        events = document["traceEvents"]
        names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
        place = {run.number: number for number, run in enumerate(runs)}
        slices = [_slice(event, place, names) for event in events if event["ph"] == "X"]
        arrows, counters = _arrows_of(events), _counters_of(events)
    except (OSError, EOFError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path}: is no trace of aieflow ({error!r}): give one of --trace FILE.json"
        ) from None
    return Timeline(runs, tuple(names), tuple(slices), arrows, counters)


def _arrows_of(events: Sequence[dict[str, Any]]) -> tuple[Arrow, ...]:
    """The arrows, by their numbers; both ends of each stand behind their slices."""
    place = -1
    ends: dict[str, dict[int, tuple[int, dict[str, Any]]]] = {"s": {}, "f": {}}
    for event in events:
        if event["ph"] == "X":
            place += 1
        elif event["ph"] in ends:
            ends[event["ph"]][event["id"]] = place, event
    sources, targets = ends["s"], ends["f"]
    if sources.keys() != targets.keys():
        raise ValueError("an arrow has one end")
    return tuple(
        Arrow(source, targets[number][0], event["name"], event["args"]["nbytes"])
        for number, (source, event) in sorted(sources.items())
    )


def _counters_of(events: Sequence[dict[str, Any]]) -> tuple[Counter, ...]:
    """The counters, each with its one unit."""
    samples: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for event in events:
        if event["ph"] == "C":
            ((unit, value),) = event["args"].items()
            samples.setdefault((event["name"], unit), []).append((round(event["ts"] * 1e3), value))
    return tuple(Counter(*key, tuple(found)) for key, found in samples.items())


def _slice(event: dict[str, Any], place: Mapping[int, int], names: list[str]) -> Slice:
    shown = event["args"]
    part, parts = map(int, shown["part"].split(" of "))
    inputs, outputs = (tuple(filter(None, shown[key].split("; "))) for key in ("inputs", "outputs"))
    predicted_us = shown.get("predicted_us")
    return Slice(
        run=place[shown["training_step"]],
        step=shown["step"],
        lane=names[event["tid"]],
        name=event["name"],
        op=event["cat"],
        part=part - 1,
        parts=parts,
        start_ns=round(event["ts"] * 1e3),
        end_ns=round(event["ts"] * 1e3) + round(event["dur"] * 1e3),
        executor=shown["executor"],
        kernel=shown.get("kernel", ""),
        inputs=inputs,
        outputs=outputs,
        flops=shown["flops"],
        nbytes=shown["nbytes"],
        predicted_ns=None if predicted_us is None else round(predicted_us * 1e3),
    )


def _events(timeline: Timeline) -> Iterator[dict[str, object]]:
    track = {lane: number for number, lane in enumerate(timeline.lanes)}
    yield {**TRACK, "name": "process_name", "args": {"name": "aieflow"}}
    for lane, number in track.items():
        yield {**TRACK, "tid": number, "name": "thread_name", "args": {"name": lane}}
        yield {**TRACK, "tid": number, "name": "thread_sort_index", "args": {"sort_index": number}}
    yield from _slices(timeline, track)
    for counter in timeline.counters:
        for at_ns, value in counter.samples:
            shown = {"pid": PROCESS, "ph": "C", "name": counter.name, "ts": at_ns / 1e3}
            yield {**shown, "args": {counter.unit: value}}


def _slices(timeline: Timeline, track: Mapping[str, int]) -> Iterator[dict[str, object]]:
    """Each slice with the ends of its arrows behind it.

    Readers hang an arrow on the slice that is open when they come to it, by time and then by the
    order of the file: so it leaves a nanosecond before the slice ends, where the next may begin.
    """
    ends: dict[int, list[tuple[str, int, Arrow]]] = {}
    for number, arrow in enumerate(timeline.arrows):
        ends.setdefault(arrow.source, []).append(("s", number, arrow))
        ends.setdefault(arrow.target, []).append(("f", number, arrow))
    for place, each in enumerate(timeline.slices):
        where = {"pid": PROCESS, "tid": track[each.lane]}
        yield {
            **where,
            "ph": "X",
            "name": each.name,
            "cat": each.op,
            "ts": each.start_ns / 1e3,
            "dur": each.duration_ns / 1e3,
            "args": arguments(timeline, each),
        }
        for phase, number, arrow in ends.get(place, ()):
            flow = {**where, "ph": phase, "name": arrow.values, "cat": "wait", "id": number}
            if phase == "s":
                leaves = max(each.start_ns, each.end_ns - 1) / 1e3
                yield {**flow, "ts": leaves, "args": {"nbytes": arrow.nbytes}}
            else:
                yield {**flow, "bp": "e", "ts": each.start_ns / 1e3}
