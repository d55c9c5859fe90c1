"""The options of re-planning and of objectives in training, and what a run says of planning."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from made_up_costs import MadeUp, fakes, step_cost
from rich.console import Console
from short_run import CONFIG

from aieflow.gpt2.run_config import from_json, to_json
from aieflow.gpt2.trainer import Replanned
from aieflow.ops.errors import InputError
from aieflow.runtime.choice import Choices
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.policies.objective import Objective
from aieflow.runtime.replan import Replan
from aieflow.tools.machines import require_watts
from aieflow.tools.progress import TrainingProgress
from aieflow.tools.summary import print_notes


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]
SMALL = ("--layers", 1, "--heads", 2, "--channels", 16, "--seq-len", 8, "--batch-size", 2)


@pytest.mark.parametrize("command", ["train", "plan"])
@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--objective", "energy"), "--objective: policy cpu weighs no costs: give another"),
        (("--power-cap", 9), "--power-cap: policy cpu weighs no costs: give another"),
    ],
)
def test_an_objective_without_effect_is_refused(
    aieflow: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: tuple[object, ...],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = aieflow(command, "gpt2", *SMALL, *options)
    assert result.code == 2
    assert fault in " ".join(result.err.split())
    assert list(tmp_path.iterdir()) == []


def test_replan_is_kept_with_the_run(
    aieflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And may be told anew when the run goes on, as where it runs may."""
    monkeypatch.chdir(tmp_path)
    options = ("--vocab-size", 50257, "--steps", 1, "--eval-batches", 1, "--no-sample")
    result = aieflow("train", "gpt2", *SMALL, *options, "--replan", "off", "--out", "run")
    assert result.code == 0, result.err
    assert json.loads(Path("run/config.json").read_text())["replan"] == "off"
    assert aieflow("train", "gpt2", "--resume", "run", "--replan", "auto", "--no-sample").code == 0
    wrong = aieflow("train", "gpt2", *SMALL, "--replan", "now")
    assert wrong.code == 2
    assert "--replan" in wrong.err


def test_settings_of_objectives_survive_the_file() -> None:
    config = replace(CONFIG, objective="power-cap", power_cap_w=12.5, replan="off")
    assert from_json(to_json(config), Path("config.json")) == config
    wrong = to_json(config).replace("12.5", '"much"')
    with pytest.raises(InputError, match="power_cap_w = 'much': must be number or null"):
        from_json(wrong, Path("config.json"))
    with pytest.raises(InputError, match="--replan = never: must be auto or off"):
        replace(CONFIG, replan="never")  # type: ignore[arg-type]  # what a file could hold


def _machine(kind: str, idle_w: float) -> Machine:
    objective = Objective("energy") if kind == "energy" else Objective()
    cost = step_cost(MadeUp(idle_w=idle_w))
    return Machine(tuple(fakes(2).values()), Placement("best", cost=cost, objective=objective))


def test_energy_is_no_aim_where_no_watts_are_known() -> None:
    require_watts(_machine("time", 0.0))
    require_watts(_machine("energy", 3.0))
    with pytest.raises(InputError, match="--objective energy: watts are not known"):
        require_watts(_machine("energy", 0.0))


def test_what_planning_has_to_say_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    choices = Choices(notes=["schedule-1.json: not a readable schedule: it is made anew"])
    print_notes(Machine(tuple(fakes(2).values()), Placement("best", choices=choices)))
    assert "note        schedule-1.json: not a readable schedule" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("swapped", "training step 7: a new plan (cpu 1, igpu 2 to cpu 3), 25% less (simulated):"),
        ("kept", "training step 7: the plan is kept (cpu 1, igpu 2):"),
        ("reverted", "training step 7: back to the old plan (cpu 1, igpu 2 to cpu 3)"),
    ],
)
def test_progress_says_what_came_of_a_drift(outcome: str, said: str) -> None:
    console = Console(width=200, record=True, quiet=False, file=None)
    replan = Replan(
        outcome,  # type: ignore[arg-type]  # one of the three
        "a run takes 2 s, 1 s before",
        2.0,
        "cpu 1, igpu 2",
        "cpu 3",
        (1.0, 0.75),
        None if outcome == "kept" else (),
    )
    with console.capture() as captured:
        TrainingProgress(console, 10, 0).on_replan(Replanned(7, replan))
    assert said in captured.get()
    assert "a run takes 2 s, 1 s before" in captured.get()
