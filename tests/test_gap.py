"""Where the seconds of a run lie: hand-drawn Gantts, and sums that add up for every plan."""

import math
import random
from itertools import pairwise

import pytest

from aieflow.devices.fake import FakeDevice, random_graph
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.gap import Exposed, Gap, gap
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.schedule import Schedule
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import StepWork
from aieflow.runtime.trace import Span, Trace


class Scripted:
    """Seconds by a step's name, and nothing else."""

    name = "made up"
    idle_w = 0.0

    def __init__(self, seconds: dict[str, float], slowed: bool = False) -> None:
        self._seconds, self._slowed = seconds, slowed

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        return tuple(
            StepWork(step.lane.partition(".")[0], self._seconds.get(plan.name_of(step), 0.0))
            for step in plan.steps
        )

    def slowdown(self, device: str, others: object) -> float:
        return 1.5 if self._slowed else 1.0


def there_and_back() -> tuple[Graph, tuple[str, ...]]:
    """a on the host, b of a far away, c of b on the host; d on the host, of nothing."""
    b = Builder("there and back")
    x = b.feed("x", Spec((4, 8)))
    (first,) = b.apply(GELU, [x], ["a"])
    (other,) = b.apply(GELU, [x], ["d"])
    (far,) = b.apply(GELU, [first], ["b"])
    (last,) = b.apply(GELU, [far], ["c"])
    return b.finish([last, other]), ("fake", "fake", "far", "fake")


def drawn_gap(seconds: dict[str, float], lanes: int = 1) -> Gap:
    graph, homes = there_and_back()
    devices = {"fake": FakeDevice(lanes=lanes), "far": FakeRemoteDevice("far")}
    plan = place_on(graph, devices, Placement(), by_node=homes)
    return gap(simulate(plan, Scripted(seconds)))


def test_each_idle_second_is_put_down_to_what_ran_meanwhile() -> None:
    """
    fake.compute.0  [a ][d]                 [c]
    far.copy.in         [in a   ]
    far.compute                 [ b ]
    far.copy.out                    [ out b ]
                    0   2  3    4   6       9 10
    """
    found = drawn_gap({"a": 2, "d": 1, "in a": 2, "b": 2, "out b": 3, "c": 1})
    assert found.seconds == 10
    lanes = {lane: (each.busy_s, dict(each.idle)) for lane, each in found.lanes.items()}
    assert lanes["fake.compute.0"] == (4, {"far out": 3, "nodes of far": 2, "far in": 1})
    assert lanes["far.compute"] == (2, {"nothing left": 4, "far in": 2, "nodes of fake": 2})
    assert lanes["far.copy.in"] == (2, {"nothing left": 6, "nodes of fake": 2})
    assert lanes["far.copy.out"] == (
        3,
        {"far in": 2, "nodes of fake": 2, "nodes of far": 2, "nothing left": 1},
    )
    # in a runs beside d for one of its two seconds, out b beside nothing
    assert found.exposed == (Exposed("out b", "far out", 3), Exposed("in a", "far in", 1))
    assert found.exposed_s == 4
    assert dict(found.path_seconds) == {
        "fake gelu": 3,
        "far out": 3,
        "far gelu": 2,
        "far in": 2,
    }
    assert len(found.path) == 5


def test_another_lane_of_the_same_device_is_a_cause() -> None:
    """
    0  [p ][q   ]     [s]
    1      [r        ]
       0   2     5    8  9
    """
    b = Builder("diamond")
    (p,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["p"])
    (q,) = b.apply(GELU, [p], ["q"])
    (r,) = b.apply(GELU, [p], ["r"])
    (s,) = b.apply(ADD, [q, r], ["s"])
    device = FakeDevice(lanes=2)
    one, two = device.lanes
    schedule = Schedule("by hand", device.lanes, ((one,), (one,), (two,), (one,)))
    plan = compile_plan(b.finish([s]), schedule, {"fake": device.kernels})
    found = gap(simulate(plan, Scripted({"p": 2, "q": 3, "r": 6, "s": 1})))
    assert {lane: (each.busy_s, dict(each.idle)) for lane, each in found.lanes.items()} == {
        one: (6, {"nodes of fake": 3}),
        two: (6, {"nodes of fake": 2, "nothing left": 1}),
    }
    assert dict(found.path_seconds) == {"fake gelu": 8, "fake add": 1}
    assert [plan.name_of(plan.steps[step]) for step in found.path] == ["p", "r", "s"]


def test_a_measured_run_has_late_starts() -> None:
    """A step that starts 0.5 s after what it follows, and a run that ends 1 s after its steps."""
    graph, homes = there_and_back()
    devices = {"fake": FakeDevice(lanes=1), "far": FakeRemoteDevice("far")}
    plan = place_on(graph, devices, Placement(), by_node=homes)
    spans: list[Span] = []
    now = 0.0
    for step in plan.steps:
        spans.append(Span(step.index, step.lane, "measured", now + 0.5, now + 1.5))
        now += 1.5
    found = gap(Trace(plan, tuple(spans), now + 1))
    assert found.path_seconds["late"] == pytest.approx(found.seconds - len(found.path))
    for lane, each in found.lanes.items():
        assert each.idle.get("late", 0) > 0 or not plan.lanes[lane]
        assert each.busy_s + math.fsum(each.idle.values()) == pytest.approx(found.seconds)


def test_an_empty_lane_has_nothing_left() -> None:
    graph, _ = there_and_back()
    devices = {"fake": FakeDevice(lanes=2)}
    plan = place_on(graph, devices, Placement(), by_node=["fake"] * 4)
    found = gap(simulate(plan, Scripted({"a": 1, "b": 1, "c": 1, "d": 0})))
    assert [dict(each.idle).get("nothing left", 0) + each.busy_s for each in found.lanes.values()]
    assert math.fsum(each.busy_s for each in found.lanes.values()) == 3
    assert found.exposed == ()


def drawn(seed: int) -> Trace:
    """A random graph on random devices; some steps take no time, devices slow each other down."""
    draw = random.Random(seed)
    graph = random_graph(draw, 14)
    around = {
        "fake": FakeDevice(lanes=2),
        "far": FakeRemoteDevice("far"),
        "remote": FakeRemoteDevice("remote"),
    }
    plan = place_on(
        graph, around, Placement(), by_node=[draw.choice(list(around)) for _ in graph.nodes]
    )
    seconds = {plan.name_of(step): draw.choice((0.0, draw.random(), 3.0)) for step in plan.steps}
    return simulate(plan, Scripted(seconds, slowed=draw.random() < 0.5))


@pytest.mark.parametrize("seed", range(40))
def test_busy_and_idle_add_up_to_the_run_on_every_lane(seed: int) -> None:
    """To rounding: a sum of differences of at most some hundred times."""
    trace = drawn(seed)
    found = gap(trace, CONVERSIONS)
    assert found.lanes.keys() == trace.plan.lanes.keys()
    for lane, each in found.lanes.items():
        assert each.busy_s == pytest.approx(trace.busy_seconds(lane), rel=1e-12, abs=1e-12)
        total = each.busy_s + math.fsum(each.idle.values())
        assert total == pytest.approx(trace.seconds, rel=1e-12, abs=1e-12)
        assert all(seconds > 0 for seconds in each.idle.values())
        assert "late" not in each.idle
    assert math.fsum(found.path_seconds.values()) == pytest.approx(trace.seconds, rel=1e-12)
    assert "late" not in found.path_seconds


@pytest.mark.parametrize("seed", range(40))
def test_a_cause_was_running_while_the_lane_was_idle(seed: int) -> None:
    """No cause has more seconds than its steps were running in the lane's idle time."""
    trace = drawn(seed)
    plan = trace.plan
    for lane, each in gap(trace).lanes.items():
        own = [span for span in trace.spans if span.lane == lane]
        for cause, seconds in each.idle.items():
            if cause == "nothing left":
                last = max((span.end_s for span in own), default=0.0)
                assert seconds == pytest.approx(trace.seconds - last)
                continue
            running = [
                (span.start_s, span.end_s)
                for span in trace.spans
                if span.lane != lane and cause.startswith(_called(plan, span))
            ]
            idle_then = sum(end - start for start, end in running)
            assert seconds <= idle_then * (1 + 1e-12)


def _called(plan: Plan, span: Span) -> str:
    step = plan.steps[span.step]
    device = span.lane.partition(".")[0]
    return (
        f"nodes of {device}"
        if step.kind == "node"
        else ("save" if step.kind == "save" else f"{device} {step.kind}")
    )


@pytest.mark.parametrize("seed", range(20))
def test_exposed_seconds_are_what_overlap_leaves(seed: int) -> None:
    """Without conversions on compute lanes both measure the same."""
    trace = drawn(seed)
    copies = [span for span in trace.spans if ".copy" in span.lane]
    total = sum(span.end_s - span.start_s for span in copies)
    assert trace.overlap is not None
    assert gap(trace).exposed_s == pytest.approx((1 - trace.overlap) * total, abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_the_path_is_a_chain_without_a_hole(seed: int) -> None:
    trace = drawn(seed)
    path = gap(trace).path
    spans = trace.spans
    assert spans[path[0]].start_s == 0
    assert spans[path[-1]].end_s == trace.seconds
    for before, after in pairwise(path):
        assert spans[before].end_s == spans[after].start_s
        step = trace.plan.steps[after]
        program = trace.plan.lanes[step.lane]
        place = program.index(after)
        assert before in step.waits or (place and program[place - 1] == before)
