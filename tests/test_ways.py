"""Nodes that may be done in more ways than on each device: on fewer lanes of the host's."""

from dataclasses import replace

import numpy as np
import pytest

from aieflow.devices.base import Device
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.choice import tasks_on
from aieflow.runtime.layout import compiled
from aieflow.runtime.placement import Placement, chosen, place_on
from aieflow.runtime.policies.best import QUICK
from aieflow.runtime.policies.division import Division, lean
from aieflow.runtime.policies.estimate import Estimator
from aieflow.runtime.policies.heft import upward_ranks
from aieflow.runtime.policies.sequence_search import STAGES, TRIAL, SequenceSearch
from aieflow.runtime.policies.tasks import Tasks
from aieflow.runtime.policies.ways import division_with, with_ways
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.simulate import described_devices

GRAPH = training_step(replace(PRESETS["124M"], layers=2), 8, 64, shards=4)
HALF = Division(4, {"npu_pack": 2, "npu_unpack": 2})
COST = MachineCost(load_machine("phoenix"))
WAY = 3  # beyond cpu, igpu and npu


def devices() -> dict[str, Device]:
    return {each.name: each for each in described_devices(load_machine("phoenix"))}


@pytest.fixture(scope="module")
def tasks() -> Tasks:
    here = devices()
    fewer = tasks_on(GRAPH, {"cpu": here["cpu"]}, COST, division=lean(HALF, GRAPH))
    return with_ways(tasks_on(GRAPH, here, COST, division=HALF), fewer)


def test_a_way_takes_half_of_the_lanes_and_twice_as_long(tasks: Tasks) -> None:
    """Twice but for the launch, which each lane pays once: 5 us."""
    late = set(lean(HALF, GRAPH).by_node)
    assert tasks.devices == ("cpu", "igpu", "npu", "cpu")
    for node, row in zip(GRAPH.nodes, tasks.pieces, strict=True):
        assert bool(row[WAY]) == (node.name in late)
        if row[WAY]:
            (usual,), (piece,) = row[0], row[WAY]
            assert (usual.parts, piece.parts, piece.resource) == (4, 2, usual.resource)
            assert piece.reads == usual.reads
            assert piece.seconds - 5e-6 == pytest.approx(2 * (usual.seconds - 5e-6))


def test_a_node_that_may_not_be_on_the_host_has_no_way_there(tasks: Tasks) -> None:
    plain = tasks_on(GRAPH, devices(), COST, division=HALF)
    away = replace(plain, pieces=tuple(((), *row[1:]) for row in plain.pieces))
    fewer = tasks_on(GRAPH, {"cpu": devices()["cpu"]}, COST, division=lean(HALF, GRAPH))
    assert not any(row[WAY] for row in with_ways(away, fewer).pieces)


def test_a_plan_takes_what_its_order_does_in_ways_of_its_own(tasks: Tasks) -> None:
    """Every second node on the iGPU, or in its way; plans add under 1 % (simulated)."""
    estimator = Estimator(tasks)
    homes = [(0, WAY if row[WAY] else 1)[node % 2] for node, row in enumerate(tasks.pieces)]
    division = division_with(lean(HALF, GRAPH), GRAPH, homes, WAY)
    taken = [node.name for node, home in zip(GRAPH.nodes, homes, strict=True) if home == WAY]
    assert len(taken) > 10
    assert set(division.by_node) == set(taken)
    search = SequenceSearch(tasks, estimator)
    ordered = search.contended(search.listed(homes, upward_ranks(tasks)))
    plan = compiled(
        GRAPH,
        tasks.named(homes),
        devices(),
        "test",
        3,
        times=search.times(ordered),
        division=division,
    )
    lanes = dict(zip((n.name for n in plan.graph.nodes), plan.schedule.placements, strict=True))
    assert {len(lanes[name]) for name in taken} == {2}
    assert simulate(plan, MachineStepCost(COST)).seconds == pytest.approx(ordered.seconds, rel=0.01)


def test_a_search_takes_ways_and_the_plan_follows() -> None:
    """On a Phoenix some products have a quarter of the cores; the plan is what was simulated."""
    cost = MachineStepCost(COST)
    placement = Placement("best", cost=cost, effort=QUICK)
    found = chosen({4: GRAPH}, devices(), placement)
    assert set(found.division.by_node.values()) == {2}
    homes = dict(zip((node.name for node in GRAPH.nodes), found.homes, strict=True))
    assert {homes[name] for name in found.division.by_node} == {"cpu"}
    plan = place_on(GRAPH, devices(), replace(placement, decided={GRAPH.name: found}))
    assert simulate(plan, cost).seconds == found.seconds


def test_several_orders_become_one_whatever_the_threads(tasks: Tasks) -> None:
    search = SequenceSearch(tasks, Estimator(tasks))
    ranks = upward_ranks(tasks)
    chances = np.random.default_rng(5)
    able = [[each for each in tasks.able(node) if each != WAY] for node in range(tasks.count)]
    listed = [search.listed([int(chances.choice(each)) for each in able], ranks) for _ in range(3)]
    one, many = (search.best_of(listed, 4_000, threads) for threads in (1, 3))
    assert one.number == many.number
    assert one.ordered.seconds == many.ordered.seconds
    assert one.ordered.order.tolist() == many.ordered.order.tolist()
    assert one.ordered.seconds < min(search.contended(each).seconds for each in listed)
    assert one.changes == 3 * (4_000 // TRIAL) + 2 * STAGES * (4_000 // STAGES)
