"""Policies that weigh costs, in training runs and in commands."""

import json
import random
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

import pytest
from made_up_costs import MadeUp, drawn_costs, fakes, step_cost
from short_run import CONFIG

from aieflow.gpt2.trainer import Trainer, training_graph
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.policies.fixed import COSTED
from aieflow.tools.bench_train import RandomTokens

SIZES = ("--layers", 1, "--heads", 2, "--channels", 64, "--vocab-size", 128)
SMALL = ("gpt2", *SIZES, "--seq-len", 32, "--batch-size", 2)
ON_PHOENIX = ("simulate", *SMALL, "--machine", "phoenix")


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


def losses(machine: Machine) -> list[float]:
    sampler = RandomTokens(CONFIG.model.vocab_size)
    with closing(Trainer(CONFIG, machine)) as trainer:
        trainer.warm_up()
        trainer.initialise()
        return [trainer.step(index, sampler).loss for index in range(3)]


@pytest.mark.parametrize("policy", COSTED)
def test_losses_do_not_depend_on_the_policy(policy: str) -> None:
    """The same kernels in another order, on three devices: the same bits."""
    devices = fakes()
    names = {node.name: node for node in training_graph(CONFIG).nodes}
    cost = drawn_costs(random.Random(8), training_graph(CONFIG), devices)
    machine = Machine(tuple(devices.values()), Placement(policy, cost=step_cost(cost)))
    plan = machine.plan(training_graph(CONFIG))
    used = {lane.partition(".")[0] for lane in plan.lanes}
    assert len(names) == len(plan.graph.nodes)
    assert {"fake", "far"} <= used
    assert [node.name for node in plan.graph.nodes] != list(names)  # in another order
    alone = Machine(tuple(fakes(1).values()), Placement("cpu"))
    assert losses(machine) == losses(alone)


def test_a_run_goes_on_with_what_is_left() -> None:
    """Without a device, the policy decides anew among the others."""
    devices = fakes()
    quick = {("remote", node.name): 0.001 for node in training_graph(CONFIG).nodes}
    placement = Placement("best", cost=step_cost(MadeUp(quick)))
    machine = Machine(tuple(devices.values()), placement)
    assert "remote.compute" in machine.plan(training_graph(CONFIG)).lanes
    left = machine.without("remote")
    assert left.placement.policy == "best"
    assert "remote.compute" not in left.plan(training_graph(CONFIG)).lanes


def searched(aieflow: Command, *options: object) -> dict[str, object]:
    result = aieflow(*ON_PHOENIX, "--policy", "best", *options, "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert isinstance(report, dict)
    return report


def test_simulate_says_what_was_tried_and_gained(aieflow: Command) -> None:
    report = searched(aieflow)
    search = report["search"]
    assert isinstance(search, dict)
    assert report["shards"] == search["shards"]
    shards = {each["shards"] for each in search["tried"]}
    assert shards == {1, 2}  # as the batch of 2 allows
    assert {each["most_lanes"] for each in search["tried"]} == {None, 4}  # of eight
    assert search["most_lanes"] in (None, 4)
    simulated = [each["simulated_seconds"] for each in search["tried"]]
    assert report["seconds"] == min(each for each in simulated if each is not None)
    assert search["gained_seconds"] >= 0
    one = searched(aieflow, "--shards", 1)["search"]
    assert isinstance(one, dict)
    assert {each["shards"] for each in one["tried"]} == {1}
    printed = aieflow(*ON_PHOENIX, "--policy", "best").out
    assert "chosen " in printed
    assert ("a node on 4 lanes at most" in printed) == (search["most_lanes"] == 4)
    assert "for each second of planning" in printed


def test_simulate_takes_an_objective(aieflow: Command) -> None:
    least = searched(aieflow)
    frugal = searched(aieflow, "--objective", "energy")
    for one, other, figure in ((least, frugal, "seconds"), (frugal, least, "joules")):
        better, worse = one[figure], other[figure]
        assert isinstance(better, float)
        assert isinstance(worse, float)
        assert better <= worse


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--policy", "cpu", "--objective", "energy"), "--objective: policy cpu weighs no costs"),
        (("--policy", "cpu", "--power-cap", 9), "--power-cap: policy cpu weighs no costs"),
        (("--policy", "best", "--objective", "power-cap"), "goes with --power-cap WATTS"),
        (("--policy", "best", "--objective", "speed"), "--objective speed: must be one of time,"),
    ],
)
def test_objectives_without_sense_are_refused(
    aieflow: Command, options: tuple[object, ...], fault: str
) -> None:
    result = aieflow(*ON_PHOENIX, *options)
    assert (result.code, result.out) == (2, "")
    assert fault in " ".join(result.err.split())


def test_without_a_calibration_it_says_how_to_make_one(aieflow: Command) -> None:
    result = aieflow("plan", *SMALL, "--policy", "best")
    assert (result.code, result.out) == (2, "")
    assert "run `aieflow calibrate" in " ".join(result.err.split())
