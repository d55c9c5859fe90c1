"""The roomy arena: no lane waits for memory alone, and nothing is overwritten too early."""

import random
from collections.abc import Mapping

import pytest
from made_up_costs import MadeUp, drawn_costs, fakes, step_cost

from aieflow.devices.base import Device
from aieflow.devices.fake import random_graph
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.layout import compiled
from aieflow.runtime.memory import ARENA, MemoryPlan, plan_memory
from aieflow.runtime.precedence import Precedence
from aieflow.runtime.simulate import simulate

FAR, NEAR, BESIDE = ("far.compute",), ("fake.compute.0",), ("fake.compute.1",)


def never(index: int, output: int, source: int) -> bool:
    return False


def always(index: int, output: int, source: int) -> bool:
    return True


def two_chains() -> Graph:
    """a, b on one device and c, d on the other, one after the other in program order."""
    b = Builder("two chains")
    x = b.feed("x", Spec((64, 64)))
    (a,) = b.apply(GELU, [x], ["a"])
    (second,) = b.apply(GELU, [a], ["b"])
    (c,) = b.apply(GELU, [x], ["c"])
    (d,) = b.apply(GELU, [c], ["d"])
    return b.finish([second, d])


def overlaps(memory: MemoryPlan, graph: Graph, one: str, other: str) -> bool:
    by_name = {value.name: memory.slots[value] for value in graph.values}
    a, b = by_name[one], by_name[other]
    assert a.space == b.space == ARENA
    return a.offset < b.offset + b.nbytes and b.offset < a.offset + a.nbytes


def test_bytes_of_another_lane_are_left_alone() -> None:
    """c takes a's bytes where it comes after b anyway, and others where b may still be running."""
    graph = two_chains()
    placements = [NEAR, NEAR, FAR, FAR]
    assert overlaps(plan_memory(graph, never), graph, "a", "c")
    roomy = plan_memory(graph, never, roomy_on=placements)
    assert not overlaps(roomy, graph, "a", "c")
    assert overlaps(plan_memory(graph, never, roomy_on=[NEAR] * 4), graph, "a", "c")
    # the same on two lanes of one device, which nodes share
    beside = plan_memory(graph, never, roomy_on=[NEAR, NEAR, BESIDE, BESIDE])
    assert not overlaps(beside, graph, "a", "c")
    both = plan_memory(graph, never, roomy_on=[NEAR, (*NEAR, *BESIDE), BESIDE, BESIDE])
    assert overlaps(both, graph, "a", "c")


def test_a_reader_elsewhere_keeps_an_output_from_taking_over() -> None:
    """slow reads a, too, on the other device: sum may not write over it before."""
    b = Builder("shared")
    x = b.feed("x", Spec((64, 64)))
    (a,) = b.apply(GELU, [x], ["a"])
    (slow,) = b.apply(GELU, [a], ["slow"])
    (end,) = b.apply(ADD, [a, x], ["sum"])
    graph = b.finish([slow, end])
    assert overlaps(plan_memory(graph, always), graph, "a", "sum")
    roomy = plan_memory(graph, always, roomy_on=[NEAR, FAR, NEAR])
    assert not overlaps(roomy, graph, "a", "sum")


def test_on_one_device_it_is_as_tight_as_ever() -> None:
    """A training step of the mini preset: the same places, byte for byte."""
    graph = training_step(PRESETS["mini"], 2, 16, shards=2)
    tight = plan_memory(graph, always)
    roomy = plan_memory(graph, always, roomy_on=[NEAR] * len(graph.nodes))
    assert roomy == tight


@pytest.mark.parametrize("seed", range(12))
def test_values_share_bytes_only_in_a_certain_order(seed: int) -> None:
    """For all pairs of values of random graphs on random devices, by a search of all paths."""
    draw = random.Random(seed)
    graph = random_graph(draw, 20)
    lanes = (NEAR, BESIDE, (*NEAR, *BESIDE), FAR, ("remote.compute",))
    placements = [draw.choice(lanes) for _ in graph.nodes]
    memory = plan_memory(graph, always, roomy_on=placements)
    after: list[set[int]] = []  # by node: all that come before it, found step by step
    for index, node in enumerate(graph.nodes):
        direct = {graph.producer[value] for value in node.inputs if value in graph.producer}
        for position in node.op.updates.values():
            direct.update(set(graph.consumers[node.inputs[position]]) - {index})
        mine = set(placements[index])
        direct.update(other for other in range(index) if not mine.isdisjoint(placements[other]))
        after.append(direct.union(*(after[other] for other in direct)))
    precedence = Precedence(graph, placements)
    assert [
        {other for other in range(index) if precedence.is_before(other, index)}
        for index in range(len(graph.nodes))
    ] == after
    inside = [value for value in graph.producer if memory.slots[value].space == ARENA]
    for value in inside:
        for other in inside:
            first, second = graph.producer[value], graph.producer[other]
            if first >= second or not overlaps(memory, graph, value.name, other.name):
                continue
            users = {first, *graph.consumers.get(value, ())}
            assert all(user == second or user in after[second] for user in users)


def seconds(
    graph: Graph, devices: Mapping[str, Device], cost: MadeUp, homes: list[str]
) -> tuple[float, int]:
    plan = compiled(graph, homes, devices, "test", 3)
    return simulate(plan, step_cost(cost)).seconds, plan.memory.arena_nbytes


def test_where_memory_is_short_the_arena_is_tight() -> None:
    """Devices with just less than the roomy arena takes: a plan all the same, and a smaller one."""
    shrunk = 0
    for seed in range(8):
        draw = random.Random(seed)
        graph = random_graph(draw, 24)
        homes = [draw.choice(("fake", "far")) for _ in graph.nodes]
        cost = drawn_costs(draw, graph, fakes(2))
        _, roomy = seconds(graph, fakes(2), cost, homes)
        plan = compiled(graph, homes, fakes(2), "test", 3)
        accounts = plan.memory.accounts
        needed = plan.nbytes - accounts["packed"] - accounts["saved"]
        _, tight = seconds(graph, fakes(2, nbytes=needed - 1), cost, homes)
        assert tight <= roomy
        shrunk += tight < roomy
    assert shrunk > 0
