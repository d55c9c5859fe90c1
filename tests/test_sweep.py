"""`aieflow simulate --sweep`: ranges kept, draws of a seed, and the same as simulating by hand."""

import json
import random
from collections.abc import Callable
from typing import Protocol

import pytest

from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.profiles.figure import Figure
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.profiles.schema import MachineProfile
from aieflow.runtime.plan import Plan
from aieflow.runtime.simulate import joules, simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools import sweep as sweep_module
from aieflow.tools.model_options import model_from
from aieflow.tools.simulate import described, swept
from aieflow.tools.sweep import drawn, quantiles, sweep, telling, uncertain, with_values


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]

SIZES = ("--layers", 1, "--heads", 2, "--channels", 32, "--vocab-size", 64)
SMALL = (*SIZES, "--seq-len", 16, "--batch-size", 2)
MODEL = model_from(layers=1, heads=2, channels=32, seq_len=16, vocab_size=64)
CONFIG = RunConfig(model=MODEL, seq_len=16, batch_size=2, policy="gemm-on-npu")
PHOENIX = load_machine("phoenix")


def plans(profile: MachineProfile = PHOENIX) -> tuple[Plan, dict[str, Plan]]:
    graph, around = training_graph(CONFIG), described(CONFIG, profile)
    singles = {name: around.with_policy(name).plan(graph) for name in ("cpu", "igpu")}
    return around.plan(graph), singles


def by_hand(machine: MachineProfile, plan: Plan) -> tuple[float, float]:
    cost = MachineStepCost(MachineCost(machine))
    trace = simulate(plan, cost)
    return trace.seconds, joules(trace, cost)


def test_uncertain_figures_are_those_with_a_range() -> None:
    found = uncertain(PHOENIX)
    assert {"npu.gemm_flops_per_s", "cpu.core_memory_bytes_per_s", "links.npu.latency_s"} <= {
        *found
    }
    assert not {"igpu.memory_bytes_per_s", "npu.memory_nbytes", "cpu.lanes"} & {*found}
    for figure in found.values():
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.high


def test_a_sweep_is_what_simulating_by_hand_gives() -> None:
    plan, singles = plans()
    found = sweep(PHOENIX, plan, singles, draws=6)
    assert (found.given.seconds, found.given.joules) == by_hand(PHOENIX, plan)
    assert len(found.swings) == len(uncertain(PHOENIX))
    for swing in found.swings:
        for end, value in ((swing.low, swing.figure.low), (swing.high, swing.figure.high)):
            assert value is not None
            machine = PHOENIX.with_value(swing.path, value)
            assert (end.seconds, end.joules) == by_hand(machine, plan)
            assert end.single_s == {n: by_hand(machine, one)[0] for n, one in singles.items()}
            assert end.gain == min(end.single_s.values()) / end.seconds
    sizes = [swing.seconds for swing in found.swings]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0
    values = drawn(uncertain(PHOENIX), 6, 1)
    for outcome, each in zip(found.together, values, strict=True):
        assert outcome.seconds == by_hand(with_values(PHOENIX, each), plan)[0]
    assert len(found.every) == 1 + 2 * len(found.swings) + 6


def test_a_plan_made_anew_for_each_choice_can_always_be_the_best() -> None:
    plan, singles = plans()

    def fastest(machine: MachineProfile) -> Plan:
        return min((plan, *singles.values()), key=lambda one: by_hand(machine, one)[0])

    kept = sweep(PHOENIX, plan, singles, draws=8)
    anew = sweep(PHOENIX, plan, singles, draws=8, planner=fastest)
    assert all(outcome.gain >= 1 for outcome in anew.every)
    assert min(outcome.gain for outcome in kept.every) < 1
    for one, other in zip(
        kept.every[:1] + kept.together, anew.every[:1] + anew.together, strict=True
    ):
        assert other.seconds == min(one.seconds, *one.single_s.values())


def test_replan_plans_for_the_changed_figures(
    aieflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three figures are enough to change what heft decides; a fixed rule decides the same."""
    few = ("cpu.gemm_flops_per_s", "igpu.gemm_flops_per_s", "cpu.core_memory_bytes_per_s")
    ranges = {path: figure for path, figure in uncertain(PHOENIX).items() if path in few}
    monkeypatch.setattr(sweep_module, "uncertain", lambda machine: ranges)
    for policy, changes in (("heft", True), ("igpu", False)):
        reports = []
        for more in ((), ("--replan",)):
            options = (*SMALL, "--policy", policy, "--sweep", "--draws", 2, "--json", *more)
            result = aieflow("simulate", "--machine", "phoenix", *options)
            assert (result.code, result.err) == (0, "")
            reports.append(json.loads(result.out)["sweep"])
        kept, anew = reports
        assert kept["given"] == anew["given"]
        assert (anew["figures"] != kept["figures"]) is changes


def test_draws_are_corners_and_a_latin_hypercube() -> None:
    figures = {
        "a": Figure(3, "x", "assumed", 1, 16),
        "b": Figure(0, "x", "assumed", 0, 8),
        "c": Figure(5, "x", "assumed", 5, 6),
    }
    found = drawn(figures, 16, seed=4)
    assert found == drawn(figures, 16, seed=4)
    assert found != drawn(figures, 16, seed=5)
    corners, cube = found[:8], found[8:]
    for draw in corners:
        assert draw["a"] in (1, 16)
        assert draw["b"] in (0, 8)
    assert len({tuple(draw.values()) for draw in corners}) > 1
    # Eight pieces: of a by ratios, the eighth root of 16 each; of b by 1.
    assert sorted(int(draw["b"]) for draw in cube) == list(range(8))
    edges = [16 ** (place / 8) for place in range(9)]
    ordered = sorted(draw["a"] for draw in cube)
    assert all(
        low <= value <= high for low, value, high in zip(edges, ordered, edges[1:], strict=False)
    )


def test_figures_of_absent_devices_do_not_tell() -> None:
    _, singles = plans()
    draw = random.Random(1)
    told = 0
    for path, figure in uncertain(PHOENIX).items():
        assert figure.high is not None
        changed = PHOENIX.with_value(path, figure.high * draw.choice((1.0, 1.5)))
        for plan in singles.values():
            if telling(changed, plan) == telling(PHOENIX, plan):
                assert by_hand(changed, plan) == by_hand(PHOENIX, plan)
            else:
                told += 1
    assert told > 10


def test_quantiles() -> None:
    assert quantiles([5, 1, 3]) == {"least": 1, "p5": 1, "median": 3, "p95": 5, "most": 5}


def test_the_same_seed_gives_the_same_sweep() -> None:
    first, again, other = (swept(CONFIG, PHOENIX, 2, seed) for seed in (9, 9, 8))
    assert first == again
    assert first.together != other.together


def test_json_holds_every_figure(aieflow: Command) -> None:
    result = aieflow(
        "simulate", "--machine", "strix", *SMALL, "--sweep", "--draws", 4, "--seed", 3, "--json"
    )
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)["sweep"]
    assert report["simulated"] is True
    assert (report["draws"], report["seed"]) == (4, 3)
    assert {each["figure"] for each in report["figures"]} == {*uncertain(load_machine("strix"))}
    seconds = report["together"]["seconds"]
    assert 0 < seconds["least"] <= seconds["median"] <= seconds["most"]
    assert report["least_gain"] <= report["given"]["gain"] <= report["most_gain"]
    assert 0 <= report["behind_single"] <= 4


def test_the_table_says_that_it_is_simulated(aieflow: Command) -> None:
    result = aieflow("simulate", "--machine", "phoenix", *SMALL, "--sweep", "--draws", 2)
    assert (result.code, result.err) == (0, "")
    text = result.out[result.out.index("\nfigure ") :]
    assert "gain (all simulated)" in text
    lines = {line.split()[0]: line for line in text.splitlines() if line and line[0] != " "}
    assert lines["figures"].split()[1] == str(len(uncertain(PHOENIX)))
    for name in ("seconds", "joules", "gain", "conclusion"):
        assert lines[name].endswith("(simulated)")
    assert "gain over the fastest single device (as given: " in lines["conclusion"]


@pytest.mark.parametrize("draws", [0, 1, -3])
def test_too_few_draws_are_refused(aieflow: Command, draws: int) -> None:
    result = aieflow("simulate", "--machine", "phoenix", *SMALL, "--sweep", "--draws", draws)
    assert result.code == 2
