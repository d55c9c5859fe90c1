"""Trace files: each kind holds every step once, no overlap on a track, arrows that resolve."""

import gzip
import itertools
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as schema
from test_simulate import Scripted, diamond
from traced_runs import cost, kernels, measured, simulated

from aieflow.devices.fake import FakeDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.errors import InputError
from aieflow.runtime.placement import place
from aieflow.runtime.simulate import simulate
from aieflow.runtime.timeline import Recorded, Timeline, timeline
from aieflow.runtime.timeline_counters import with_counters
from aieflow.runtime.trace import Span, Trace
from aieflow.runtime.trace_database import SCHEMA
from aieflow.tools.trace_files import read_trace, require_trace_file, write_trace

# (track, name, start ns, end ns) of each slice; (track, start ns) of both ends of each arrow.
Slices = list[tuple[str, str, int, int]]
Arrows = list[tuple[tuple[str, int], tuple[str, int]]]


@pytest.fixture(params=["measured", "simulated"])
def recorded(request: pytest.FixtureRequest) -> list[Recorded]:
    return measured() if request.param == "measured" else simulated()


def made(recorded: list[Recorded]) -> Timeline:
    return with_counters(timeline(recorded, cost(), kernels()), recorded, cost())


def require_whole(recorded: list[Recorded], slices: Slices, arrows: Arrows) -> None:
    """Every step of every run once, in its place; no overlap on a track; every arrow resolves."""
    first_s = recorded[0].start_s
    assert sorted(slices) == sorted(
        (
            span.lane,
            each.trace.plan.name_of(each.trace.plan.steps[span.step]),
            round((each.start_s - first_s + span.start_s) * 1e9),
            round((each.start_s - first_s + span.end_s) * 1e9),
        )
        for each in recorded
        for span in each.trace.spans
    )
    assert len(slices) == sum(len(each.trace.plan.steps) for each in recorded) > 80
    by_track: dict[str, Slices] = {}
    for each in sorted(slices, key=lambda each: each[2:]):
        by_track.setdefault(each[0], []).append(each)
    assert len(by_track) > 1
    for track in by_track.values():
        assert all(before[3] <= after[2] for before, after in itertools.pairwise(track))
    ends = {(track, start): end for track, _, start, end in slices}
    assert len(arrows) == sum(each.trace.plan.edges for each in recorded) > 40
    for source, target in arrows:
        assert source[0] != target[0]
        assert ends[source] <= target[1]
        assert target in ends


def nanoseconds(microseconds: float) -> int:
    found = round(microseconds * 1e3)
    assert abs(microseconds * 1e3 - found) < 1e-3  # whole nanoseconds, but for float rounding
    return found


def chrome_arrows(events: list[dict[str, Any]]) -> Arrows:
    """As Perfetto's importer hangs them: on the slice last opened on the track, in stable order."""
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    topmost: dict[str, dict[str, Any]] = {}
    sources: dict[int, tuple[str, int]] = {}
    arrows: Arrows = []
    timed = [event for event in events if event["ph"] in ("X", "s", "f")]
    for event in sorted(timed, key=lambda event: nanoseconds(event["ts"])):
        track = tracks[event["tid"]]
        if event["ph"] == "X":
            topmost[track] = event
            continue
        begin, long = (nanoseconds(topmost[track][key]) for key in ("ts", "dur"))
        # inside, as the format has it; what takes no time has no inside
        assert begin <= nanoseconds(event["ts"]) < begin + max(1, long)
        if event["ph"] == "s":
            assert event["id"] not in sources
            sources[event["id"]] = (track, begin)
        else:
            assert event["bp"] == "e"
            arrows.append((sources.pop(event["id"]), (track, begin)))
    assert not sources
    return arrows


def test_chrome(recorded: list[Recorded], tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(recorded, [path], cost(), kernels())
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "s", "f", "C"}
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(tracks.values()) == list(recorded[0].trace.plan.lanes)
    spans = [event for event in events if event["ph"] == "X"]
    slices = [
        (tracks[e["tid"]], e["name"], nanoseconds(e["ts"]), nanoseconds(e["ts"] + e["dur"]))
        for e in spans
    ]
    require_whole(recorded, slices, chrome_arrows(events))
    counted = {e["name"]: list(e["args"]) for e in events if e["ph"] == "C"}
    assert counted == {each.name: [each.unit] for each in made(recorded).counters}


def test_perfetto(recorded: list[Recorded], tmp_path: Path) -> None:
    """Read by Perfetto's own schema, as its trace processor does: names by their numbers."""
    path = tmp_path / "trace.pftrace"
    write_trace(recorded, [path], cost(), kernels())
    packets = schema.Trace.FromString(path.read_bytes()).packet
    assert {packet.trusted_packet_sequence_id for packet in packets} == {1}
    assert packets[0].sequence_flags == schema.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
    interned = packets[0].interned_data
    names = {each.iid: each.name for each in interned.event_names}
    keys = {each.iid: each.name for each in interned.debug_annotation_names}
    texts = {each.iid: each.str.decode() for each in interned.debug_annotation_string_values}
    tracks = {
        packet.track_descriptor.uuid: packet.track_descriptor
        for packet in packets
        if packet.HasField("track_descriptor")
    }
    process = next(uuid for uuid, each in tracks.items() if each.HasField("process"))
    children = [each for each in tracks.values() if each.uuid != process]
    assert {each.parent_uuid for each in children} == {process}
    assert [each.sibling_order_rank for each in children] == list(range(len(children)))
    expected = made(recorded)
    assert [each.name for each in children] == [
        *expected.lanes,
        *(counter.name for counter in expected.counters),
    ]

    open_slices: dict[int, tuple[str, int]] = {}
    slices: Slices = []
    sources: dict[int, tuple[str, int]] = {}
    arrows: Arrows = []
    samples: dict[str, list[tuple[int, float]]] = {}
    arguments: list[dict[str, Any]] = []
    last_ns = 0
    for packet in packets:
        if not packet.HasField("track_event"):
            continue
        event, at_ns = packet.track_event, packet.timestamp
        assert at_ns >= last_ns
        last_ns, track = at_ns, tracks[event.track_uuid].name
        if event.type == schema.TrackEvent.TYPE_COUNTER:
            assert tracks[event.track_uuid].HasField("counter")
            samples.setdefault(track, []).append((at_ns, event.double_counter_value))
        elif event.type == schema.TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in open_slices
            assert packet.sequence_flags == schema.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
            open_slices[event.track_uuid] = (names[event.name_iid], at_ns)
            for flow in event.flow_ids:
                assert flow not in sources
                sources[flow] = (track, at_ns)
            arrows += [(sources.pop(flow), (track, at_ns)) for flow in event.terminating_flow_ids]
            arguments.append(
                {
                    keys[each.name_iid]: texts[each.string_value_iid]
                    if each.string_value_iid
                    else each.uint_value or each.double_value
                    for each in event.debug_annotations
                }
            )
        else:
            assert event.type == schema.TrackEvent.TYPE_SLICE_END
            name, start_ns = open_slices.pop(event.track_uuid)
            slices.append((track, name, start_ns, at_ns))
    assert (open_slices, sources) == ({}, {})
    require_whole(recorded, slices, arrows)
    assert samples == {each.name: list(each.samples) for each in expected.counters}
    products = [each for each in arguments if each["op"] == "matmul"]
    assert {"training_step", "part", "executor", "kernel", "predicted_us"} <= products[0].keys()
    assert all(each["inputs"].startswith("float32[") and each["flops"] > 0 for each in products)


def test_perfetto_keeps_the_order_of_steps_that_take_no_time(tmp_path: Path) -> None:
    """All at the same moment: an arrow still leaves before it arrives, and tracks still nest."""
    path = tmp_path / "trace.pftrace"
    recorded = [Recorded(1, 0.0, simulate(diamond(), Scripted({})))]
    write_trace(recorded, [path])
    packets = schema.Trace.FromString(path.read_bytes()).packet
    events = [packet.track_event for packet in packets if packet.HasField("track_event")]
    left: set[int] = set()
    open_tracks: set[int] = set()
    for event in events:
        if event.type == schema.TrackEvent.TYPE_SLICE_BEGIN:
            assert event.track_uuid not in open_tracks
            assert left.issuperset(event.terminating_flow_ids)
            open_tracks.add(event.track_uuid)
            left.update(event.flow_ids)
        elif event.type == schema.TrackEvent.TYPE_SLICE_END:
            open_tracks.remove(event.track_uuid)
    assert (len(left), open_tracks) == (2, set())


def test_chrome_arrows_of_steps_that_touch_leave_their_own(tmp_path: Path) -> None:
    """
    one  [ p  ][ q  ][ s  ]     the arrow from p leads to r, and q begins where p ends
    two        [ r  ]
    """
    path = tmp_path / "trace.json"
    for seconds in (1e-6, 0.0):  # and where all is at one moment
        trace = simulate(diamond(), Scripted(dict.fromkeys("pqrs", seconds)))
        write_trace([Recorded(1, 0.0, trace)], [path])
        made_of = timeline([Recorded(1, 0.0, trace)])
        expected = [
            (made_of.slices[one.source], made_of.slices[one.target]) for one in made_of.arrows
        ]
        arrows = chrome_arrows(json.loads(path.read_text())["traceEvents"])
        assert arrows == [
            ((source.lane, source.start_ns), (target.lane, target.start_ns))
            for source, target in expected
        ]
        assert len(arrows) == 2


def test_database(recorded: list[Recorded], tmp_path: Path) -> None:
    path = tmp_path / "trace.sqlite"
    path.write_text("what was there before")
    write_trace(recorded, [path], cost(), kernels())
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        slices = database.execute(
            "SELECT lane.name, slice.name, start_ns, end_ns FROM slice JOIN lane USING (lane)"
        ).fetchall()
        arrows = database.execute(
            "SELECT a.name, s.start_ns, b.name, t.start_ns FROM arrow "
            "JOIN slice AS s ON s.slice = source JOIN slice AS t ON t.slice = target "
            "JOIN lane AS a ON a.lane = s.lane JOIN lane AS b ON b.lane = t.lane"
        ).fetchall()
        steps = database.execute("SELECT training_step FROM run ORDER BY run").fetchall()
    require_whole(recorded, slices, [((a, s), (b, t)) for a, s, b, t in arrows])
    assert [number for (number,) in steps] == [each.number for each in recorded]
    assert read_trace(path) == made(recorded)


def test_the_schema_is_the_documented_one() -> None:
    """Version 1, column for column: a change breaks the queries of those who read the files."""
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(SCHEMA)
        columns = {
            table: " ".join(name for _, name, *_ in database.execute(f"PRAGMA table_info({table})"))
            for (table,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        }
    assert columns == {
        "run": "run training_step start_ns end_ns graph policy",
        "lane": "lane name device",
        "slice": "slice run lane step name op part parts start_ns end_ns executor kernel inputs "
        "outputs flops nbytes predicted_ns",
        "arrow": "source target carries nbytes",
        "counter": "counter name unit",
        "sample": "counter time_ns value",
    }
    manual = (Path(__file__).parent.parent / "docs" / "trace-files.md").read_text()
    for table, names in columns.items():
        (row,) = (line for line in manual.splitlines() if line.startswith(f"| `{table}` |"))
        assert all(f"`{name}`" in row for name in names.split()), table


def test_json_is_read_back_whole(recorded: list[Recorded], tmp_path: Path) -> None:
    plain, packed = tmp_path / "trace.json", tmp_path / "trace.json.gz"
    write_trace(recorded, [plain, packed], cost(), kernels())
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    assert read_trace(plain) == read_trace(packed) == made(recorded)


def test_an_arrow_with_one_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(simulated(), [path])
    document = json.loads(path.read_text())
    events = document["traceEvents"]
    events.remove(next(event for event in events if event["ph"] == "f"))
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="an arrow has one end"):
        read_trace(path)


def test_without_a_cost_model_nothing_is_predicted(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(measured(), [path])
    events = json.loads(path.read_text())["traceEvents"]
    spans = [event["args"] for event in events if event["ph"] == "X"]
    assert spans
    assert not any({"predicted_us", "prediction_error", "kernel"} & each.keys() for each in spans)
    assert "power" not in {event["name"] for event in events}


@pytest.mark.parametrize("name", ["trace.json", "trace.pftrace", "trace.sqlite", "trace.json.gz"])
def test_the_same_runs_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    contents = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_trace(simulated(), [tmp_path / folder / name], cost(), kernels())
        contents.append((tmp_path / folder / name).read_bytes())
    assert contents[0] == contents[1]


def test_rounding_makes_no_overlap() -> None:
    """Steps that follow each other without a gap, at times that are no whole nanoseconds."""
    config = ModelConfig(vocab_size=19, seq_len=8, layers=1, heads=2, channels=8)
    plan = place(training_step(config, 2, 8), FakeDevice(lanes=1))
    ((lane, program),) = plan.lanes.items()
    times = [place * 1.63e-9 for place in range(len(program) + 1)]
    spans = tuple(
        Span(step, lane, "fake", start, end)
        for step, (start, end) in zip(program, itertools.pairwise(times), strict=True)
    )
    recorded = [Recorded(at, 0.1234567891234 * at, Trace(plan, spans, times[-1])) for at in (1, 2)]
    slices = timeline(recorded).slices
    assert len(slices) == 2 * len(spans) > 20
    assert all(before.end_ns <= after.start_ns for before, after in itertools.pairwise(slices))
    assert len({each.start_ns for each in slices}) == len(slices)


def test_a_kind_that_is_not_known_is_refused(tmp_path: Path) -> None:
    for name in ("trace.txt", "json", "trace.pftrace.gz"):
        with pytest.raises(InputError, match=r"written as \.json, \.json\.gz, \.pftrace"):
            require_trace_file(tmp_path / name)
    with pytest.raises(InputError, match="does not exist"):
        require_trace_file(tmp_path / "absent" / "trace.json")
    with pytest.raises(InputError, match="is a folder"):
        require_trace_file(tmp_path)


FOREIGN = {
    "gone.sqlite": (None, "cannot be read: No such file"),
    "gone.json": (None, "cannot be read: "),
    "text.sqlite": (b"no database at all", "is no database of a trace"),
    "text.json": (b"[]", "is no trace of aieflow"),
    "other.json": (b'{"traceEvents": []}', "is no trace of aieflow"),
    "torn.json.gz": (b"\x1f\x8b\x08", "cannot be read: "),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_file_that_is_no_trace_is_refused(name: str, tmp_path: Path) -> None:
    content, fault = FOREIGN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_trace(tmp_path / name)
    assert fault in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_database_of_others_or_of_another_version_is_refused(tmp_path: Path) -> None:
    other, newer = tmp_path / "other.sqlite", tmp_path / "newer.sqlite"
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE slice (name TEXT)")
    with pytest.raises(InputError, match="is no trace of aieflow"):
        read_trace(other)
    write_trace(simulated(), [newer])
    with closing(sqlite3.connect(newer)) as database:
        database.execute("PRAGMA user_version = 2")
    with pytest.raises(InputError, match="has version 2 of the schema"):
        read_trace(newer)
