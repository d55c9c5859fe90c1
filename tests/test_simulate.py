"""Plans in virtual time: hand-drawn Gantts, and what holds of every plan."""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise

import pytest

from aieflow.devices.fake import FakeDevice, random_graph
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.ops.builder import Builder
from aieflow.ops.errors import PlanError
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.schedule import Schedule, device_of
from aieflow.runtime.simulate import joules, simulate
from aieflow.runtime.step_cost import StepWork
from aieflow.runtime.trace import Trace


@dataclass(frozen=True, slots=True)
class Scripted:
    """Seconds by a step's name; what has none takes `other` seconds. Factors by (device, other)."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    factors: Mapping[tuple[str, str], float] = field(default_factory=dict)
    other: float = 0.0
    watts: Mapping[str, float] = field(default_factory=dict)
    name: str = "made up"
    idle_w: float = 0.0

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        return tuple(
            StepWork(
                device_of(step.lane),
                self.seconds.get(plan.name_of(step), self.other) / step.parts,
                self.watts.get(device_of(step.lane), 0.0),
            )
            for step in plan.steps
        )

    def slowdown(self, device: str, others: Collection[str]) -> float:
        factor = 1.0
        for other in sorted(others):
            factor *= self.factors.get((device, other), 1.0)
        return factor


def spans(trace: Trace) -> dict[str, tuple[float, float]]:
    """Start and end by the step's name; of what takes no time, nothing."""
    return {
        trace.plan.name_of(trace.plan.steps[span.step]): (span.start_s, span.end_s)
        for span in trace.spans
        if span.end_s > span.start_s
    }


def diamond(lanes: int = 2) -> Plan:
    """p, then q and r side by side, then s of both."""
    b = Builder("diamond")
    (p,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["p"])
    (q,) = b.apply(GELU, [p], ["q"])
    (r,) = b.apply(GELU, [p], ["r"])
    (s,) = b.apply(ADD, [q, r], ["s"])
    device = FakeDevice(lanes=lanes)
    one, two = device.lanes
    schedule = Schedule("by hand", device.lanes, ((one,), (one,), (two,), (one,)))
    return compile_plan(b.finish([s]), schedule, {"fake": device.kernels})


def side_by_side(homes: tuple[str, ...]) -> Plan:
    """Independent nodes n0, n1, …, each on a device; transfers are there but take no time."""
    b = Builder("side by side")
    x = b.feed("x", Spec((4, 8)))
    outs = [b.apply(GELU, [x], [f"n{place}"])[0] for place in range(len(homes))]
    return place_on(b.finish(outs), three_devices(), Placement(), by_node=homes)


def three_devices() -> dict[str, FakeDevice]:
    return {
        "fake": FakeDevice(lanes=2),
        "far": FakeRemoteDevice("far"),
        "remote": FakeRemoteDevice("remote"),
    }


def test_a_diamond_on_two_lanes() -> None:
    """
    0  [p ][q   ]     [s]
    1      [r        ]
       0   2     5    8  9
    """
    trace = simulate(diamond(), Scripted({"p": 2, "q": 3, "r": 6, "s": 1}))
    assert spans(trace) == {"p": (0, 2), "q": (2, 5), "r": (2, 8), "s": (8, 9)}
    assert trace.seconds == 9
    assert [trace.busy_seconds(lane) for lane in trace.plan.lanes] == [6, 6]
    assert {span.executor for span in trace.spans} == {"made up: fake (simulated)"}
    assert trace.overlap is None  # nothing is copied


def test_a_transfer_runs_under_compute() -> None:
    """
    fake.compute.0  [ a    ][ b       ]
    far.copy.in             [ in a ]
    far.compute                    [ c  ]
    far.copy.out                        [out c]
                    0       4      6    9     10
    """
    b = Builder("overlap")
    (a,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["a"])
    (other,) = b.apply(GELU, [a], ["b"])
    (c,) = b.apply(GELU, [a], ["c"])
    plan = place_on(
        b.finish([other, c]),
        {"fake": FakeDevice(lanes=1), "far": FakeRemoteDevice("far")},
        Placement(),
        by_node=("fake", "fake", "far"),
    )
    trace = simulate(plan, Scripted({"a": 4, "b": 4, "in a": 2, "c": 3, "out c": 1}))
    assert spans(trace) == {
        "a": (0, 4),
        "b": (4, 8),
        "in a": (4, 6),
        "c": (6, 9),
        "out c": (9, 10),
    }
    assert trace.overlap == pytest.approx(2 / 3)


def test_two_devices_slow_each_other_down_while_both_are_busy() -> None:
    """
    Each takes twice as long beside the other. n1 has done its 2 s at 4; n0 has done 2 of its 4 s
    by then, and does the others alone.

    fake  [ n0, half speed ][ full ]
    far   [ n1, half speed ]
          0                4      6
    """
    cost = Scripted({"n0": 4, "n1": 2}, {("fake", "far"): 2, ("far", "fake"): 2})
    assert spans(simulate(side_by_side(("fake", "far")), cost)) == {"n0": (0, 6), "n1": (0, 4)}


def test_slowdowns_change_with_every_begin_and_end() -> None:
    """
    fake's two lanes do not disturb each other. Beside n2 each of them has a quarter of its speed,
    though far itself is not slowed down.

    0     [ n0: 1 s done by 4 ][ 2 s more ]
    1     [ n1: 1 s done by 4 ] (ends at 4)
    far   [ n2                ]
          0                   4           6
    """
    cost = Scripted({"n0": 3, "n1": 1, "n2": 4}, {("fake", "far"): 4})
    trace = simulate(side_by_side(("fake", "fake", "far")), cost)
    assert spans(trace) == {"n0": (0, 6), "n1": (0, 4), "n2": (0, 4)}


def test_three_devices_slow_down_by_the_product() -> None:
    """
    fake    [ n0: 1 s by 6 ][2 s: half][ 1 s ]
    far     [ n1           ]
    remote  [ n2                      ]
            0              6          10     11
    """
    factors = {("fake", "far"): 3, ("fake", "remote"): 2}
    cost = Scripted({"n0": 4, "n1": 6, "n2": 10}, factors)
    trace = simulate(side_by_side(("fake", "far", "remote")), cost)
    assert spans(trace) == {"n0": (0, 11), "n1": (0, 6), "n2": (0, 10)}


def test_energy_is_idle_power_throughout_and_active_power_while_busy() -> None:
    cost = Scripted(
        {"n0": 4, "n1": 2},
        {("fake", "far"): 2, ("far", "fake"): 2},
        watts={"fake": 10, "far": 1},
        idle_w=3,
    )
    trace = simulate(side_by_side(("fake", "far")), cost)
    assert joules(trace, cost) == 3 * 6 + 10 * 6 + 1 * 4


def test_steps_that_wait_for_each_other_are_refused() -> None:
    plan = diamond()
    knotted = tuple(replace(step, waits=(3,)) if step.index == 0 else step for step in plan.steps)
    with pytest.raises(PlanError, match="diamond: the steps of its plan wait for each other"):
        simulate(replace(plan, steps=knotted), Scripted(other=1))


def drawn(seed: int, contended: bool = True) -> tuple[Plan, Scripted]:
    """A random graph on random devices, with random costs of random zeros."""
    draw = random.Random(seed)
    graph = random_graph(draw, 14)
    around = three_devices()
    plan = place_on(
        graph, around, Placement(), by_node=[draw.choice(list(around)) for _ in graph.nodes]
    )
    seconds = {plan.name_of(step): draw.choice((0.0, draw.random(), 3.0)) for step in plan.steps}
    pairs = [(one, other) for one in around for other in around if one != other]
    factors = {pair: 1 + draw.random() for pair in pairs} if contended else {}
    return plan, Scripted(seconds, factors)


@pytest.mark.parametrize("seed", range(20))
def test_every_step_begins_as_soon_as_it_may(seed: int) -> None:
    """Not while its lane is busy, not before its waits have ended, and not a moment later."""
    plan, cost = drawn(seed)
    trace = simulate(plan, cost)
    assert [span.step for span in trace.spans] == list(range(len(plan.steps)))
    for program in plan.lanes.values():
        free_s = 0.0
        for index in program:
            span, waits = trace.spans[index], plan.steps[index].waits
            assert span.start_s == max([free_s, *(trace.spans[wait].end_s for wait in waits)])
            assert span.end_s >= span.start_s
            free_s = span.end_s
    assert trace.seconds == max(span.end_s for span in trace.spans)


@pytest.mark.parametrize("seed", range(20))
def test_no_run_is_shorter_than_its_busiest_lane_or_longest_path(seed: int) -> None:
    for contended in (False, True):
        plan, cost = drawn(seed, contended)
        works, trace = cost.of(plan), simulate(plan, cost)
        paths: list[float] = []
        for step in plan.steps:
            before = max((paths[wait] for wait in step.waits), default=0.0)
            paths.append(before + works[step.index].seconds)
        sums = [sum(works[index].seconds for index in program) for program in plan.lanes.values()]
        # Sums in another order than the simulator's.
        assert trace.seconds >= max(*paths, *sums) * (1 - 1e-12)
        for span, work in zip(trace.spans, works, strict=True):
            if not contended:  # times are then sums of durations, free of other rounding
                assert span.end_s == span.start_s + work.seconds


@pytest.mark.parametrize("seed", range(20))
def test_every_step_gets_its_work_done_at_the_rates_that_held(seed: int) -> None:
    """Between any two events, who is busy follows from the spans, and so does each rate."""
    plan, cost = drawn(seed)
    works, trace = cost.of(plan), simulate(plan, cost)
    events = sorted({time for span in trace.spans for time in (span.start_s, span.end_s)})
    done = [0.0] * len(works)
    for first, last in pairwise(events):
        at_work = [s.step for s in trace.spans if s.start_s <= first and last <= s.end_s]
        busy = {works[step].device for step in at_work}
        for step in at_work:
            device = works[step].device
            done[step] += (last - first) / cost.slowdown(device, busy - {device})
    # Differences of times up to some 100 s: rounding of 1e-14 each, over some hundred intervals.
    assert done == pytest.approx([work.seconds for work in works], abs=1e-10)


def test_the_same_plan_gives_the_same_trace() -> None:
    plan, cost = drawn(7)
    assert simulate(plan, cost).spans == simulate(plan, cost).spans
    again, _ = drawn(7)
    assert simulate(again, cost).spans == simulate(plan, cost).spans
