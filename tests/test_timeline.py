"""What a timeline says of runs: arrows by what they carry, counters by hand and in general."""

import doctest
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import pytest
from test_simulate import Scripted, diamond, side_by_side, three_devices
from traced_runs import cost, kernels, measured, simulated

from aieflow.ops.errors import ProfileError
from aieflow.runtime import protobuf, timeline_counters
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import StepCost, StepWork
from aieflow.runtime.timeline import MEMORY, Counter, Recorded, Timeline, arguments, timeline
from aieflow.runtime.timeline_counters import with_counters

S = 10**9  # ns
NBYTES = 4 * 8 * 4  # of every value of these graphs
WATTS = {"fake": 3.0}


def drawn(plan: Plan, costs: StepCost, start_s: float = 0.0) -> tuple[Timeline, dict[str, Counter]]:
    recorded = [Recorded(1, start_s, simulate(plan, costs))]
    found = with_counters(timeline(recorded, costs), recorded, costs)
    return found, {counter.name: counter for counter in found.counters}


def test_a_diamond() -> None:
    """
    0  [p ][q   ]     [s]    p lives until r has read it, q until s takes its memory over
    1      [r        ]
       0   2     5    8  9
    """
    costs = Scripted({"p": 2, "q": 3, "r": 6, "s": 1}, watts=WATTS, idle_w=5.0)
    plan = diamond()
    found, counters = drawn(plan, costs, start_s=100.0)
    assert [(each.source, each.target, each.values, each.nbytes) for each in found.arrows] == [
        (0, 2, "p", NBYTES),
        (2, 3, "r", NBYTES),
    ]
    assert [each.name for each in found.slices] == ["p", "q", "r", "s"]
    assert [each.start_ns for each in found.slices] == [0, 2 * S, 2 * S, 8 * S]
    assert (found.runs[0].start_ns, found.runs[0].end_ns) == (0, 9 * S)
    assert counters.keys() == {"memory", "power"}  # nothing is moved, and nothing waits for a lane
    fixed = plan.nbytes - plan.memory.arena_nbytes
    assert counters["memory"].samples == (
        (0, fixed + NBYTES),
        (2 * S, fixed + 3 * NBYTES),
        (8 * S, fixed + 2 * NBYTES),
        (9 * S, fixed),
    )
    watts = dict(counters["power"].samples)
    assert watts == {0: 8.0, 2 * S: 11.0, 5 * S: 8.0, 8 * S: 8.0, 9 * S: 0.0}


def test_ready_steps_and_bytes_in_flight() -> None:
    """
    far.copy.in   [in x]
    far.compute         [n0   ][n1      ]        n1 is ready as soon as x is there
    far.copy.out               [out n0  ][out n1]
                  0     1      3        6       8
    """
    plan = place_on(
        side_by_side(("far",) * 2).graph, three_devices(), Placement(), by_node=["far"] * 2
    )
    costs = Scripted({"in x": 1, "n0": 2, "n1": 3, "out n0": 3, "out n1": 2})
    _, counters = drawn(plan, costs)
    assert counters["ready steps"].samples == ((0, 0.0), (S, 1.0), (3 * S, 0.0), (8 * S, 0.0))
    flying = {0: 1.0, S: 0.0, 3 * S: 1.0, 6 * S: 1.0, 8 * S: 0.0}
    assert dict(counters["bytes in flight"].samples) == {
        at: count * NBYTES for at, count in flying.items()
    }


@pytest.mark.parametrize("recorded", [measured(), simulated()], ids=["measured", "simulated"])
def test_counters_of_any_run(recorded: list[Recorded]) -> None:
    """Times ascend; nothing is below 0; memory stays within the plan, and ends where it began."""
    found = with_counters(timeline(recorded, cost()), recorded, cost())
    plan = recorded[0].trace.plan
    fixed = plan.nbytes - plan.memory.arena_nbytes
    memory = next(each for each in found.counters if each.name == "memory")
    # Of a run of the graph's steps in any order the most is live when all lives meet; here at
    # least half of the arena is in use at some moment.
    assert max(value for _, value in memory.samples) <= plan.nbytes
    assert max(value for _, value in memory.samples) > fixed + plan.memory.arena_nbytes / 2
    by_time = dict(memory.samples)
    assert [by_time[run.end_ns] for run in found.runs] == [fixed] * len(found.runs)
    for counter in found.counters:
        assert all(before[0] <= after[0] for before, after in pairwise(counter.samples))
        assert all(value >= 0 for _, value in counter.samples)
        if counter.name != "memory":
            assert dict(counter.samples)[found.runs[-1].end_ns] == 0
    moved = [each for each in found.slices if each.op in ("in", "out", "save")]
    flying = [each for each in found.counters if each.name == "bytes in flight"]
    assert bool(moved) == bool(flying)
    # The area under the curve is bytes times seconds, of each transfer.
    for counter in flying:
        area = sum(value * (after - at) for (at, value), (after, _) in pairwise(counter.samples))
        assert area == pytest.approx(sum(each.nbytes * each.duration_ns for each in moved))


def test_arrows_carry_what_the_target_reads() -> None:
    recorded = simulated()
    found = timeline(recorded)
    kinds = set()
    for arrow in found.arrows:
        source, target = found.slices[arrow.source], found.slices[arrow.target]
        assert source.run == target.run
        kinds.add(source.op if source.op in ("in", "out", "save") else "node")
        plan = recorded[source.run].trace.plan
        steps = plan.steps[source.step], plan.steps[target.step]
        read = {value.name for value in plan.node_of(steps[1]).inputs} | {steps[1].value}
        assert arrow.values == MEMORY or set(arrow.values.split(", ")) <= read
        assert (arrow.values == MEMORY) == (arrow.nbytes == 0)
    assert {"in", "out", "node"} <= kinds
    carried = [arrow for arrow in found.arrows if arrow.values != MEMORY]
    assert len(carried) > len(found.arrows) / 2


def test_predictions_and_kernels() -> None:
    """A simulated step takes what was predicted, or more where another device slows it down."""
    found = timeline(simulated(), cost(), kernels())
    slower = 0
    for each in found.slices:
        assert each.predicted_ns is not None
        # a factor of 1.25 from each of three others (one does the transfers) at most; start, end
        # and prediction are rounded
        assert each.predicted_ns - 2 <= each.duration_ns <= each.predicted_ns * 1.25**3 + 2
        if each.duration_ns:
            assert each.error == each.predicted_ns / each.duration_ns - 1
        slower += each.duration_ns > each.predicted_ns * 1.2
    assert slower > 10
    products = [each for each in found.slices if each.op == "matmul"]
    assert {each.kernel for each in products} == {kernels()["far"]["matmul"].name}
    shown = arguments(found, products[0])
    assert shown["prediction_error"] == round(products[0].error or 0, 4)
    assert shown["flops"] == products[0].flops > 0


class NotCalibrated(Scripted):
    """A cost model that knows nothing."""

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        raise ProfileError("nothing is known")


def test_a_cost_model_that_knows_too_little_predicts_nothing() -> None:
    found, counters = drawn_with_nothing_known()
    assert all(each.predicted_ns is None for each in found.slices)
    assert "power" not in counters


def drawn_with_nothing_known() -> tuple[Timeline, dict[str, Counter]]:
    recorded = [Recorded(1, 0.0, simulate(diamond(), Scripted({}, other=1.0)))]
    unknown = NotCalibrated(idle_w=5.0)
    found = with_counters(timeline(recorded, unknown), recorded, unknown)
    return found, {counter.name: counter for counter in found.counters}


def test_a_plan_with_other_lanes_follows() -> None:
    """After a device was lost: its lanes stay, and have nothing more."""
    before = [replace(each, number=place) for place, each in enumerate(simulated())]
    after = [replace(each, number=5, start_s=1.0) for each in measured()[:1]]
    found = timeline([*before, *after])
    assert set(found.lanes) == {
        lane for each in (*before, *after) for lane in each.trace.plan.lanes
    }
    assert [run.number for run in found.runs] == [0, 1, 5]
    assert {each.executor for each in found.slices if each.run == 2} == {"fake"}


def test_no_runs_make_an_empty_timeline() -> None:
    assert with_counters(timeline([]), []) == Timeline((), (), (), ())


@pytest.mark.parametrize("module", [protobuf, timeline_counters])
def test_doctests(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert (failed, tried > 0) == (0, True)


def test_a_varint_is_unsigned() -> None:
    with pytest.raises(ValueError, match="-1: a varint is unsigned"):
        protobuf.varint(-1)
