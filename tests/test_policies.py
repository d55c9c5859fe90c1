"""The policy `cpu`: large nodes on all lanes, small ones whole and balanced."""

import itertools
from collections import Counter

import pytest

from aieflow.devices.fake import REFERENCE_KERNELS, FakeDevice
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.cpu.catalogue import KERNELS
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph
from aieflow.ops.pointwise import GELU
from aieflow.ops.spec import Spec
from aieflow.profiles.cost import RooflineCost
from aieflow.runtime.placement import place
from aieflow.runtime.policies.cpu import EDGE_S, cpu_schedule

LANES = ("fake.0", "fake.1")
# A node of n bytes takes n microseconds.
COST = RooflineCost(flops_per_s=1e30, bytes_per_s=1e6, launch_s=0.0)
EDGE_NBYTES = round(EDGE_S * 1e6)


def gelus(*shapes: tuple[int, int]) -> Graph:
    b = Builder("gelus")
    return b.finish(
        [b.apply(GELU, [b.feed(f"x{i}", Spec(shape))], ["y"])[0] for i, shape in enumerate(shapes)]
    )


def placements(graph: Graph, lanes: tuple[str, ...] = LANES) -> list[str]:
    """The lanes of each node by their last letters."""
    schedule = cpu_schedule(graph, REFERENCE_KERNELS, lanes, COST)
    schedule.check(graph)
    return ["".join(lane[-1] for lane in chosen) for chosen in schedule.placements]


def test_small_nodes_go_to_the_lane_with_the_least_work() -> None:
    """
    0   [ 16 bytes   ][ 8 ]
    1   [ 8 ][ 8 ][ 8 ]
    """
    assert placements(gelus((1, 2), (1, 1), (1, 1), (1, 1), (1, 1))) == ["0", "1", "1", "0", "1"]


def test_a_node_is_divided_when_that_saves_more_than_a_wait_costs() -> None:
    elements = EDGE_NBYTES // 4  # reading and writing so many takes two waits, halved one and one
    assert placements(gelus((elements, 1))) == ["0"]
    assert placements(gelus((elements + 1, 1))) == ["01"]


def test_divided_nodes_level_the_lanes() -> None:
    """
    0   [ 16  ]    [ divided ][ 8 ]
    1   [ 8 ]      [ divided ]     [ 8 ]
    """
    assert placements(gelus((1, 2), (1, 1), (400, 1), (1, 1), (1, 1))) == ["0", "1", "01", "0", "1"]


def test_what_does_not_divide_stays_whole() -> None:
    assert placements(gelus((1, 4000))) == ["0"]
    assert placements(gelus((4000, 1)), lanes=("fake.0",)) == ["0"]


def test_a_node_of_few_units_takes_as_many_lanes() -> None:
    """
    0   [ 8 ]
    1          [ divided ]
    2          [ divided ]
    """
    lanes = ("fake.0", "fake.1", "fake.2")
    assert placements(gelus((1, 1), (2, 4000)), lanes=lanes) == ["0", "12"]


def test_an_op_without_kernel() -> None:
    kernels = {name: kernel for name, kernel in REFERENCE_KERNELS.items() if name != "gelu"}
    with pytest.raises(PlanError, match=r"^y: the lanes fake.0, fake.1 run no gelu"):
        cpu_schedule(gelus((1, 1)), kernels, LANES, COST)


def test_mini_keeps_both_lanes_busy() -> None:
    device = FakeDevice(lanes=2, kernels=KERNELS)
    graph = training_step(PRESETS["mini"], 8, 128)
    plan = place(graph, device)
    flops = Counter[str]()
    for step in plan.steps:
        flops[step.lane] += plan.node_of(step).flops // step.parts
    assert max(flops.values()) < 0.55 * sum(flops.values())
    heavy = [step for step in plan.steps if plan.node_of(step).flops > 1e7]
    assert {step.parts for step in heavy} == {2}


def test_undivided_is_one_lane_in_program_order() -> None:
    device = FakeDevice(lanes=2, kernels=KERNELS)
    plan = place(training_step(PRESETS["mini"], 1, 16), device, divided=False)
    assert list(plan.lanes) == ["fake.compute.0"]
    assert plan.edges == 0
    assert [step.node for step in plan.steps] == list(range(len(plan.graph.nodes)))
    assert all(a < b for a, b in itertools.pairwise(plan.lanes["fake.compute.0"]))
