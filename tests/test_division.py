"""Over how many lanes nodes are divided, and which lanes those are."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from made_up_costs import MadeUp, fakes

from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph
from aieflow.ops.kernel import Kernels
from aieflow.ops.pointwise import GELU
from aieflow.ops.spec import Spec
from aieflow.profiles.figure import Figure
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.choice import Choices, tasks_on
from aieflow.runtime.expansion import Expansions
from aieflow.runtime.layout import compiled
from aieflow.runtime.placement import Placement, chosen, place_on
from aieflow.runtime.policies.best import QUICK
from aieflow.runtime.policies.division import WHOLE, Division, divisions, lean
from aieflow.runtime.policies.estimate import Estimator
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.simulate import described_devices

GRAPH = training_step(replace(PRESETS["mini"], layers=1), 2, 16, shards=2)


def tried(graph: Graph, core_bytes_per_s: float | None = None) -> tuple[Division, ...]:
    """Of a Phoenix, one core of which has this bandwidth."""
    profile = load_machine("phoenix")
    if core_bytes_per_s is not None:
        given = Figure(core_bytes_per_s, "unknown: this test", "assumed")
        profile = replace(profile, cpu=replace(profile.cpu, core_memory_bytes_per_s=given))
    devices = {device.name: device for device in described_devices(profile)}
    kernels: Kernels = {name: device.kernels for name, device in devices.items()}
    lanes = {name: device.lanes for name, device in devices.items()}
    return divisions(Expansions(graph, kernels), lanes, MachineCost(profile).node_s)


def test_the_most_lanes_of_a_node() -> None:
    nodes = {node.name: node for node in GRAPH.nodes}
    some = [nodes[name] for name in ("h.0.gelu", "h.0.fc", "h.0.mlp")]
    assert [node.op.name for node in some] == ["gelu", "matmul", "matmul"]
    division = Division(4, {"gelu": 6}, {"h.0.mlp": 2})
    assert [WHOLE.most(node, 8) for node in some] == [8, 8, 8]
    assert [division.most(node, 8) for node in some] == [6, 4, 2]
    assert [division.most(node, 1) for node in some] == [1, 1, 1]


def test_products_for_gradients_of_weights_may_have_fewer_lanes() -> None:
    found = lean(Division(4, {"npu_pack": 2}), GRAPH)
    assert (found.lanes, found.by_op, set(found.by_node.values())) == (4, {"npu_pack": 2}, {2})
    products = {node.name for node in GRAPH.nodes if node.op.name == "matmul"}
    assert set(found.by_node) == {name for name in products if ".weight" in name}
    assert lean(WHOLE, GRAPH) == WHOLE


def test_half_of_the_lanes_is_tried_and_packs_have_as_many_as_memory_serves() -> None:
    """Two cores of 30 GB/s have the whole of Phoenix's 55; of 7 GB/s each it takes seven."""
    whole, half = tried(GRAPH)
    assert whole == WHOLE
    assert half == Division(4, dict.fromkeys(("npu_pack", "npu_unpack", "npu_repack"), 2))
    _, slow = tried(GRAPH, 7e9)
    assert min(slow.by_op.values()) >= 7


def test_few_lanes_or_one_device_are_not_halved() -> None:
    devices = fakes(2)
    kernels: Kernels = {name: device.kernels for name, device in devices.items()}
    lanes = {name: device.lanes for name, device in devices.items()}
    expansions = Expansions(GRAPH, kernels)
    assert divisions(expansions, lanes, MadeUp().node_s) == (WHOLE,)  # two lanes
    alone = {"fake": tuple(f"fake.compute.{lane}" for lane in range(8))}
    assert divisions(expansions, alone, MadeUp().node_s) == (WHOLE,)


def test_who_runs_side_by_side_is_on_lanes_of_its_own() -> None:
    """a and b at once on half of the lanes each; c goes on where a lane was left first."""
    b = Builder("side by side")
    x = b.feed("x", Spec((256, 256)))
    results = [b.apply(GELU, [x], [name])[0] for name in ("a", "b", "c")]
    devices = {device.name: device for device in described_devices(load_machine("phoenix"))}
    times = {"a": (0.0, 3.0), "b": (0.0, 1.0), "c": (1.0, 2.0)}
    plan = compiled(
        b.finish(results), ["cpu"] * 3, devices, "test", 3, times=times, division=Division(4)
    )
    first, second, third = plan.schedule.placements
    assert len(first) == len(second) == len(third) == 4
    assert set(first).isdisjoint(second)
    assert third == second


@pytest.mark.parametrize("division", [WHOLE, Division(4, {"npu_pack": 2, "npu_unpack": 2})])
def test_a_plan_takes_what_was_estimated(division: Division) -> None:
    """Shards that devices do in turn, on a Phoenix: plans add under a hundredth (simulated)."""
    profile = load_machine("phoenix")
    devices = {device.name: device for device in described_devices(profile)}
    graph = training_step(replace(PRESETS["124M"], layers=2), 8, 64, shards=4)
    cost = MachineCost(profile)
    tasks = tasks_on(graph, devices, cost, division=division)
    homes = tuple(
        able[node % len(able)] for node, able in enumerate(map(tasks.able, range(tasks.count)))
    )
    ranks = [-float(node) for node in range(tasks.count)]
    held = Estimator(tasks).estimate(homes, ranks)
    plan = compiled(
        graph, tasks.named(homes), devices, "test", 3, times=held.times, division=division
    )
    assert simulate(plan, MachineStepCost(cost)).seconds == pytest.approx(held.seconds, rel=0.01)


def test_what_was_decided_is_followed_and_kept(tmp_path: Path) -> None:
    """Four shards on a Phoenix share its cores; the plan takes what the decision says."""
    devices = {device.name: device for device in described_devices(load_machine("phoenix"))}
    graph = training_step(replace(PRESETS["124M"], layers=2), 8, 128, shards=4)
    cost = MachineStepCost(MachineCost(load_machine("phoenix")))
    placement = Placement("best", cost=cost, effort=QUICK, choices=Choices(tmp_path))
    found = chosen({4: graph}, devices, placement)
    assert found.division.lanes == 4
    assert {each.most_lanes for each in found.tried} == {None, 4}
    read = chosen({4: graph}, devices, replace(placement, choices=Choices(tmp_path)))
    assert asdict(read) == asdict(found)
    plan = place_on(graph, devices, replace(placement, decided={graph.name: read}))
    assert simulate(plan, cost).seconds == found.seconds
    on_host = [lanes for lanes in plan.schedule.placements if lanes[0].startswith("cpu.")]
    assert {len(lanes) for lanes in on_host} == {1, 2, 4}
