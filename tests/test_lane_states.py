"""Five states of each lane: hand-drawn runs, and sums that are exact for every plan."""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from aieflow.devices.fake import FakeDevice, random_graph
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.runtime.gap import LATE, NOTHING_LEFT, gap
from aieflow.runtime.lane_states import STATES, Piece, State, lane_pieces, shares, state_ns
from aieflow.runtime.outline import Outline, OutlinedStep, Recording, outline, recording
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import compile_plan
from aieflow.runtime.schedule import Schedule
from aieflow.runtime.timeline import Recorded, timeline
from aieflow.runtime.timeline_states import timeline_states
from aieflow.runtime.trace import Span, Trace
from aieflow.tools.trace_files import read_trace, write_trace

CAUSES = {"in": "npu in", "pack": "npu_pack", "save": "save"}


def drawn(wall_ns: int, *steps: tuple[str, str, int, int, tuple[int, ...]]) -> dict[str, list[str]]:
    """Each lane's pieces as `state start-end (step)`; of lane, work, start, end and waits."""
    made = tuple(
        OutlinedStep(lane, f"n{i}", work, CAUSES.get(work, f"nodes of {lane[:3]}"), waits, 0, 0)
        for i, (lane, work, _, _, waits) in enumerate(steps)
    )
    programs = {lane: [i for i, s in enumerate(made) if s.lane == lane] for lane, *_ in steps}
    told = Outline(made, {lane: tuple(program) for lane, program in programs.items()})
    times = Recording(wall_ns, tuple(s[2] for s in steps), tuple(s[3] for s in steps))
    return {
        lane: [f"{p.state} {p.start_ns}-{p.end_ns} {p.step}" for p in pieces]
        for lane, pieces in lane_pieces(told, times).items()
    }


def test_states_of_two_devices() -> None:
    """
    cpu.compute  .[ pack 1-4 ]                    [ last 12-14 ]..   wall 16
    npu.copy.in               .[ in 5-7 ]
    npu.compute                          [ gemm 8-11 ]
    """
    found = drawn(
        16,
        ("cpu.compute", "pack", 1, 4, ()),
        ("npu.copy.in", "in", 5, 7, (0,)),
        ("npu.compute", "matmul", 8, 11, (1,)),
        ("cpu.compute", "add", 12, 14, (2,)),
    )
    assert found["npu.copy.in"] == [
        *("overhead 0-1 0", "waiting_for_data 1-4 0", "overhead 4-5 1"),
        *("executing 5-7 1", "idle 7-16 None"),
    ]
    assert found["npu.compute"] == [
        *("overhead 0-1 0", "waiting_for_data 1-4 0", "overhead 4-5 1", "waiting_for_data 5-7 1"),
        *("overhead 7-8 2", "executing 8-11 2", "idle 11-16 None"),
    ]
    assert found["cpu.compute"] == [
        *("overhead 0-1 0", "executing 1-4 0", "overhead 4-5 1", "waiting_for_data 5-7 1"),
        *("overhead 7-8 2", "waiting_for_dependencies 8-11 2", "overhead 11-12 3"),
        *("executing 12-14 3", "idle 14-16 None"),
    ]


def test_the_last_of_several_waits_counts() -> None:
    """
    a  [ 0-9 ]
    b  [ 0-5 ]
    c  [0-1]         [ 9-10 ]  waits for both, and for a saved state
    d  [ save 0-3 ]
    """
    found = drawn(
        10,
        ("aaa", "add", 0, 9, ()),
        ("bbb", "add", 0, 5, ()),
        ("ccc", "add", 0, 1, ()),
        ("ddd", "save", 0, 3, ()),
        ("ccc", "add", 9, 10, (0, 1, 3)),
    )
    assert found["ccc"] == [
        *("executing 0-1 2", "waiting_for_dependencies 1-9 0", "executing 9-10 4"),
    ]
    assert found["ddd"] == ["executing 0-3 3", "idle 3-10 None"]


def test_a_lane_without_steps_is_idle() -> None:
    told = Outline((), {"cpu.compute.0": ()})
    (piece,) = lane_pieces(told, Recording(7, (), ()))["cpu.compute.0"]
    assert piece == Piece(0, 7, "idle")
    assert shares(state_ns([piece])) == dict.fromkeys(STATES, 0.0) | {"idle": 1.0}


def test_a_recording_is_refused_that_no_run_can_leave() -> None:
    for wall_ns, start, end in ((5, 2, 6), (5, 3, 2), (5, -1, 2)):
        with pytest.raises(ValueError, match=f"step 0 ran from {start} to {end} ns"):
            Recording(wall_ns, (start,), (end,))


@pytest.mark.parametrize("seed", range(30))
def test_the_states_of_every_lane_sum_to_the_wall_exactly(seed: int) -> None:
    """Random plans on two devices, run at random times; the account agrees with `runtime.gap`."""
    draw = random.Random(seed)
    trace = jittered(seed, draw)
    told, times = outline(trace.plan), recording(trace)
    lies = gap(trace)
    for lane, pieces in lane_pieces(told, times).items():
        ends = [0, *(piece.end_ns for piece in pieces)]
        assert [piece.start_ns for piece in pieces] == ends[:-1]  # they touch
        assert ends[-1] == times.wall_ns
        assert all(piece.start_ns < piece.end_ns for piece in pieces)
        assert all(first != second for first, second in pairwise(pieces))
        states = state_ns(pieces)
        assert sum(states.values()) == times.wall_ns  # integers: exact
        assert sum(shares(states).values()) == pytest.approx(1, abs=1e-12)  # five roundings
        # Seconds against nanoseconds: each end of each piece may be rounded by half of one.
        close = pytest.approx
        most = 1e-9 * (len(pieces) + 1)
        each = lies.lanes[lane]
        assert states["executing"] / 1e9 == close(each.busy_s, abs=most)
        assert states["overhead"] / 1e9 == close(each.idle.get(LATE, 0.0), abs=most)
        assert states["idle"] / 1e9 == close(each.idle.get(NOTHING_LEFT, 0.0), abs=most)
        nodes = sum(s for cause, s in each.idle.items() if cause.startswith("nodes of "))
        assert states["waiting_for_dependencies"] / 1e9 == close(nodes, abs=most)


def jittered(seed: int, draw: random.Random) -> Trace:
    """A run of a random plan in which steps take, and begin late by, random times."""
    graph = random_graph(random.Random(seed), nodes=25)
    fake, far = FakeDevice(lanes=2), FakeRemoteDevice("far")
    devices = {"fake": fake, "far": far}
    homes = tuple(draw.choice(("fake", "far")) for _ in graph.nodes)
    plan = place_on(graph, devices, Placement(), by_node=homes)
    starts: list[float] = []
    ends: list[float] = []
    free = dict.fromkeys(plan.lanes, 0.0)
    for step in plan.steps:
        ready = max((ends[wait] for wait in step.waits), default=0.0)
        starts.append(max(ready, free[step.lane]) + draw.choice((0.0, 1e-6, 3.7e-6)))
        ends.append(starts[-1] + draw.uniform(1e-6, 1e-3))
        free[step.lane] = ends[-1]
    spans = tuple(
        Span(step.index, step.lane, "drawn", starts[step.index], ends[step.index])
        for step in plan.steps
    )
    return Trace(plan, spans, max(ends) + draw.choice((0.0, 2e-5)))


def test_a_recording_is_right_to_the_nanosecond() -> None:
    trace = jittered(1, random.Random(1))
    spans = tuple(
        Span(each.step, each.lane, "drawn", (10 * each.step + 3) / 1e9, (10 * each.step + 9) / 1e9)
        for each in trace.spans
    )
    times = recording(Trace(trace.plan, spans[::-1], 1e-3))
    assert times.starts_ns == tuple(range(3, 10 * len(spans), 10))
    assert times.ends_ns == tuple(range(9, 10 * len(spans), 10))
    assert times.wall_ns == 1_000_000


def test_an_outline_tells_of_every_step() -> None:
    graph = random_graph(random.Random(3), nodes=12)
    fake = FakeDevice(lanes=2)
    placements = tuple(("fake.compute.0",) for _ in graph.nodes)
    schedule = Schedule("by hand", fake.lanes, placements)
    plan = compile_plan(graph, schedule, {"fake": fake.kernels})
    told = outline(plan)
    assert [step.name for step in told.steps] == [node.name for node in graph.nodes]
    assert sum(step.flops for step in told.steps) == graph.flops
    assert sum(step.nbytes for step in told.steps) == graph.nbytes
    assert not any(step.is_data for step in told.steps)
    assert told.before[:3] == (None, 0, 1)
    data = outline(plan, {graph.nodes[0].op.name})
    assert data.steps[0].is_data


@pytest.mark.parametrize("seed", range(6))
def test_a_trace_file_gives_the_same_states(seed: int, tmp_path: Path) -> None:
    """By plan and recording, and by what a database or a Chrome trace of the same runs says."""
    traces = [jittered(seed, random.Random(seed + more)) for more in (0, 50)]
    ops = {traces[0].plan.graph.nodes[0].op.name}  # as if they prepared operands
    expected: dict[str, dict[State, int]] = {}
    for trace in traces:
        for lane, pieces in lane_pieces(outline(trace.plan, ops), recording(trace)).items():
            sums = expected.setdefault(lane, dict.fromkeys(STATES, 0))
            for state, ns in state_ns(pieces).items():
                sums[state] += ns
    recorded = [Recorded(number, float(number), trace) for number, trace in enumerate(traces, 1)]
    write_trace(recorded, [tmp_path / "trace.sqlite", tmp_path / "trace.json"])
    found = timeline_states(read_trace(tmp_path / "trace.sqlite"), ops)
    assert found is not None
    assert {lane: sum(states.values()) for lane, states in found.items()} == {
        lane: pytest.approx(sum(states.values()), abs=4) for lane, states in expected.items()
    }
    for lane, states in expected.items():
        # Both ends of each span are rounded to a nanosecond, once from the run's own start.
        assert found[lane] == pytest.approx(states, abs=4 * len(traces[0].plan.steps))
    assert max(states["waiting_for_dependencies"] for states in expected.values()) > 1_000
    assert timeline_states(read_trace(tmp_path / "trace.json"), ops) == found


def test_a_trace_file_without_all_of_a_run_gives_no_states() -> None:
    trace = jittered(3, random.Random(3))
    cut = replace(trace, spans=tuple(span for span in trace.spans if span.step != 2))
    assert timeline_states(timeline([Recorded(1, 0.0, trace)])) is not None
    assert timeline_states(timeline([Recorded(1, 0.0, trace), Recorded(2, 1.0, cut)])) is None
    assert timeline_states(timeline([])) is None
