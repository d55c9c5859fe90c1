"""The policy `best`: never worse than a trivial plan, near the optimum, always the same."""

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_costs import MadeUp, drawn_costs, fakes, step_cost

from aieflow.devices.base import Device
from aieflow.devices.fake import random_graph
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.errors import InputError, PlanError, ProfileError
from aieflow.ops.graph import Graph
from aieflow.ops.pointwise import GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.choice import Choices, choose
from aieflow.runtime.layout import compiled
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.policies.best import ROUNDS, Effort, Found
from aieflow.runtime.policies.fixed import COSTED
from aieflow.runtime.policies.objective import KINDS, Kind, Objective, kind_of
from aieflow.runtime.policies.sequence_search import STAGES, TRIAL
from aieflow.runtime.simulate import joules, simulate

LITTLE = Effort(estimated_nodes=2_000, simulated_nodes=400)


def decided(
    graphs: Mapping[int, Graph],
    devices: Mapping[str, Device],
    cost: MadeUp,
    objective: Objective | None = None,
    choices: Choices | None = None,
    policy: str = "best",
    effort: Effort = LITTLE,
) -> Found:
    return choose(
        graphs,
        devices,
        policy,
        {},
        3,
        step_cost(cost),
        objective or Objective(),
        choices or Choices(),
        effort,
    )


def simulated(
    graph: Graph, devices: Mapping[str, Device], cost: MadeUp, homes: Sequence[str]
) -> tuple[float, float]:
    """Seconds and joules of the plan in program order."""
    trace = simulate(compiled(graph, homes, devices, "test", 3), step_cost(cost))
    return trace.seconds, joules(trace, step_cost(cost))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_it_is_never_worse_than_a_trivial_plan(seed: int, kind: Kind) -> None:
    """Over random graphs and machines, for each objective; the cap lies between plans' watts."""
    draw = random.Random(seed)
    graph, devices = random_graph(draw, 12), fakes()
    cost = drawn_costs(draw, graph, devices)
    singles = [simulated(graph, devices, cost, [name] * len(graph.nodes)) for name in devices]
    watts = sorted(energy / seconds for seconds, energy in singles)
    objective = Objective(kind, cap_w=watts[1] if kind == "power-cap" else None)
    found = decided({1: graph}, devices, cost, objective)
    reached = objective.score(found.seconds, found.joules)
    assert reached <= min(objective.score(*each) for each in singles)


@pytest.mark.parametrize("seed", range(6))
def test_a_trivial_plan_is_simulated_or_proven_worse(seed: int) -> None:
    """What was left out is simulated here: it is no better, as its floor had said."""
    draw = random.Random(40 + seed)
    graph, devices = random_graph(draw, 12), fakes()
    cost = drawn_costs(draw, graph, devices)
    found = decided({1: graph}, devices, cost)
    for name in devices:
        (tried,) = (each for each in found.tried if each.policy == f"all on {name}")
        seconds, _ = simulated(graph, devices, cost, [name] * len(graph.nodes))
        assert tried.simulated_s == (None if tried.dropped else seconds)
        assert found.seconds <= seconds


def test_the_local_search_improves_on_the_lists() -> None:
    """Of ten machines, plans are better on some for it, by what the simulator says."""
    better = 0
    for seed in range(10):
        draw = random.Random(60 + seed)
        graph, devices = random_graph(draw, 14), fakes()
        cost = drawn_costs(draw, graph, devices)
        found = decided({1: graph}, devices, cost, effort=replace(LITTLE, changes=0))
        assert found.estimates <= 2 * (LITTLE.estimated_nodes // len(graph.nodes))
        better += found.policy.endswith("improved")
    assert better > 0


@pytest.mark.parametrize("seed", range(5))
def test_it_comes_within_five_percent_of_the_optimum(seed: int) -> None:
    """Of all 256 assignments of eight nodes to two devices, each in program order, simulated."""
    draw = random.Random(100 + seed)
    graph, devices = random_graph(draw, 8), fakes(2)
    cost = drawn_costs(draw, graph, devices)
    optimum = min(
        simulated(graph, devices, cost, homes)[0]
        for homes in itertools.product(devices, repeat=len(graph.nodes))
    )
    assert decided({1: graph}, devices, cost).seconds <= 1.05 * optimum


def test_what_it_says_is_what_the_plan_takes() -> None:
    draw = random.Random(3)
    graph, devices = random_graph(draw, 14), fakes()
    cost = drawn_costs(draw, graph, devices)
    for policy in COSTED:
        placement = Placement(policy, cost=step_cost(cost))
        found = decided({1: graph}, devices, cost, policy=policy)
        plan = place_on(graph, devices, replace(placement, decided={graph.name: found}))
        assert simulate(plan, step_cost(cost)).seconds == found.seconds
        assert place_on(graph, devices, placement).schedule.policy == policy


def test_the_same_inputs_give_the_same_plan() -> None:
    def once() -> tuple[object, ...]:
        draw = random.Random(9)
        graph, devices = random_graph(draw, 20), fakes()
        placement = Placement("best", cost=step_cost(drawn_costs(draw, graph, devices)))
        plan = place_on(graph, devices, placement)
        return plan.steps, plan.schedule, tuple(plan.memory.slots.items())

    assert once() == once()


def test_it_chooses_among_lowerings() -> None:
    """A device that is quick at all: one shard has the fewest nodes, each of one second."""
    graphs = {shards: training_step(PRESETS["mini"], 2, 16, shards=shards) for shards in (2, 1)}
    devices = fakes(1)
    found = decided(graphs, devices, MadeUp())
    assert found.shards == 1
    assert {each.shards for each in found.tried} == {1, 2}
    assert len(found.homes) == len(graphs[1].nodes)


@pytest.mark.parametrize("seed", range(4))
def test_a_lowering_that_is_chosen_is_searched_as_well_as_alone(seed: int) -> None:
    """What others cost is a short look at each: the effort is not divided among them."""
    draw = random.Random(seed)
    graphs, devices = {shards: random_graph(draw, 30) for shards in (1, 2, 4)}, fakes()
    cost = replace(drawn_costs(draw, graphs[1], devices), factor=1.0)
    effort = Effort(estimated_nodes=30_000, simulated_nodes=400, changes=500)
    of_all = decided(graphs, devices, cost, effort=effort)
    alone = decided({of_all.shards: graphs[of_all.shards]}, devices, cost, effort=effort)
    assert of_all.seconds <= alone.seconds
    each = 30_000 // 30 // (ROUNDS * effort.bases)  # estimates of one search of the first round
    assert of_all.estimates >= alone.estimates + 3 * each
    # 6 searches, a trial of their orders, and all changes of two
    assert alone.estimates >= 6 * each + 6 * (500 // TRIAL) + 2 * STAGES * (500 // STAGES)


@pytest.mark.parametrize(("factor", "is_searched"), [(1.1, True), (1.2, False)])
def test_orders_are_searched_where_devices_hardly_slow_each_other_down(
    factor: float, is_searched: bool
) -> None:
    """Three devices: each of two others slows by the factor. The search reckons with a mean."""
    draw = random.Random(11)
    graph, devices = random_graph(draw, 30), fakes()
    cost = replace(drawn_costs(draw, graph, devices), factor=factor)
    found = decided({1: graph}, devices, cost)
    assert any(each.policy.endswith("with its order") for each in found.tried) == is_searched


@pytest.mark.parametrize(("far_s", "used"), [(0.9, {"fake"}), (0.5, {"fake", "far"})])
def test_another_device_has_to_gain_what_foretelling_may_err_by(
    far_s: float, used: set[str]
) -> None:
    """Ten nodes of a second, one behind the other; far could do one of them: 1 % or 5 % less."""
    b = Builder("chain")
    x = b.feed("x", Spec((4, 8)))
    for number in range(10):
        (x,) = b.apply(GELU, [x], [f"n{number}"])
    seconds = {("far", f"n{number}"): 99.0 for number in range(10)} | {("far", "n5"): far_s}
    found = decided({1: b.finish([x])}, fakes(2), MadeUp(seconds))
    assert set(found.homes) == used


def test_energy_and_a_cap_choose_the_frugal_device() -> None:
    """far takes half the time at eight times the power: time wants it, energy and a cap do not."""
    graph, devices = random_graph(random.Random(4), 8), fakes(2)
    seconds = {("far", node.name): 0.5 for node in graph.nodes}
    seconds |= {("fake", node.name): 1.0 for node in graph.nodes}
    cost = MadeUp(seconds, watts={"far": 80.0, "fake": 10.0}, idle_w=1.0)
    fast = decided({1: graph}, devices, cost)
    frugal = decided({1: graph}, devices, cost, Objective("energy"))
    capped = decided({1: graph}, devices, cost, Objective("power-cap", cap_w=40.0))
    assert "far" in fast.homes
    assert set(frugal.homes) == {"fake"}
    assert capped.joules / capped.seconds <= 40.0 < fast.joules / fast.seconds
    assert fast.seconds < capped.seconds <= frugal.seconds


def test_candidates_without_memory_are_dropped() -> None:
    """far is much quicker, but has no memory: all stays on the host; without any, an error."""
    graph, cost = random_graph(random.Random(2), 8), MadeUp()
    quick = {("far", node.name): 0.01 for node in graph.nodes}
    devices = fakes(2, nbytes=64)
    found = decided({1: graph}, devices, MadeUp(quick))
    assert set(found.homes) == {"fake"}
    assert any("of memory" in each.dropped for each in found.tried)
    with pytest.raises(PlanError, match=r"far has 0\.00 MiB free"):
        decided({1: graph}, {"far": devices["far"]}, cost)


def test_ops_placed_by_hand_stay_there() -> None:
    graph, devices = training_step(PRESETS["mini"], 1, 8), fakes(2)
    quick = {("far", node.name): 0.01 for node in graph.nodes}
    placement = Placement("best", {"gelu": "fake"}, cost=step_cost(MadeUp(quick)))
    plan = place_on(graph, devices, placement)
    homes = {
        node.op.name: lanes[0].partition(".")[0]
        for node, lanes in zip(plan.graph.nodes, plan.schedule.placements, strict=True)
    }
    assert homes["gelu"] == "fake"
    assert "far" in homes.values()


def test_without_costs_it_says_what_to_run() -> None:
    graph = random_graph(random.Random(1), 4)
    with pytest.raises(ProfileError, match=r"--policy best .*: run `aieflow calibrate` first"):
        place_on(graph, fakes(), Placement("best"))


def test_objectives_are_checked() -> None:
    for wrong, fault in (
        ({"kind": "power-cap"}, "goes with --power-cap WATTS"),
        ({"cap_w": 3.0}, "goes with --power-cap WATTS"),
        ({"kind": "power-cap", "cap_w": -1.0}, "--power-cap -1.0: must be a finite number"),
    ):
        with pytest.raises(InputError, match=fault):
            Objective(**wrong)  # type: ignore[arg-type,unused-ignore]  # wrong on purpose
    with pytest.raises(InputError, match="--objective speed: must be one of time, energy"):
        kind_of("speed")


def test_a_schedule_is_kept_and_read_again(tmp_path: Path) -> None:
    graph, devices, cost = random_graph(random.Random(5), 10), fakes(), MadeUp(transfer=0.1)
    first = decided({1: graph}, devices, cost, choices=Choices(tmp_path))
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    # What is read is what was written, not found again: a change in the file shows.
    file.write_text(json.dumps({**json.loads(text), "estimates": 12345}))
    assert decided({1: graph}, devices, cost, choices=Choices(tmp_path)).estimates == 12345
    for other in (replace(cost, transfer=0.2), replace(cost, idle_w=1.0)):
        assert decided({1: graph}, devices, other, choices=Choices(tmp_path)).estimates != 12345
    by_energy = decided({1: graph}, devices, cost, Objective("energy"), Choices(tmp_path))
    assert by_energy.estimates != 12345
    assert len(list(tmp_path.iterdir())) == 4
    file.write_text(text)
    again = decided({1: graph}, devices, cost, choices=Choices(tmp_path))
    assert (again.homes, again.times, again.tried) == (first.homes, first.times, first.tried)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"format": 1}', '{"format": 99}', "null"])
def test_a_damaged_file_is_made_anew_and_said_once(tmp_path: Path, damage: str) -> None:
    graph, devices, cost = random_graph(random.Random(5), 6), fakes(2), MadeUp(transfer=0.1)
    decided({1: graph}, devices, cost, choices=Choices(tmp_path))
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    file.write_text(damage)
    choices = Choices(tmp_path)
    for _ in range(2):
        decided({1: graph}, devices, cost, choices=choices)
    (note,) = choices.notes
    assert "not a readable schedule" in note
    assert file.read_text() == text


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    choices = Choices(in_the_way / "folder")
    graph = random_graph(random.Random(5), 6)
    found = decided({1: graph}, fakes(2), MadeUp(), choices=choices)
    assert found.seconds > 0
    assert any("cannot be kept" in note for note in choices.notes)
