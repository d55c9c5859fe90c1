"""The training loop: what happens when, what is kept, and that stopping leaves no trace."""

import errno
import json
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.checkpoint import TrainingState, load_training_state
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.data import TokenData
from aieflow.gpt2.energy import Energy, Meter
from aieflow.gpt2.run_config import RunConfig, learning_rate
from aieflow.gpt2.run_folder import RunFolder, create_run
from aieflow.gpt2.safetensors_file import write_tensors
from aieflow.gpt2.train import Outcome, restore, train
from aieflow.gpt2.trainer import Exclusion, Replanned, StepRecord, Trainer
from aieflow.ops.errors import InputError, TrainingError
from aieflow.ops.op import Array
from aieflow.runtime.machine import Machine

TINY = ModelConfig(vocab_size=64, seq_len=16, layers=1, heads=2, channels=16)
CONFIG = RunConfig(
    model=TINY,
    seq_len=16,
    batch_size=2,
    steps=7,
    lr=1e-2,
    warmup=2,
    eval_every=2,
    eval_batches=2,
    checkpoint_every=3,
)
TOKENS = np.random.default_rng(3).integers(0, 64, 500).astype(np.uint16)
DATA = TokenData(TOKENS[:400], TOKENS[400:], 500, None, "these tokens")


class _Recorder:
    """Writes down what it is told; can do something before it is told of a training step."""

    def __init__(self, before: Callable[[int], None] = lambda step: None) -> None:
        self.events: list[str] = []
        self.before = before

    def on_training_step(self, record: StepRecord) -> None:
        self.before(record.training_step)
        self.events.append(f"step {record.training_step}")

    def on_evaluation(self, training_step: int, validation_loss: float) -> None:
        self.events.append(f"evaluation {training_step}")

    def on_checkpoint(self, path: Path) -> None:
        self.events.append(path.name)

    def on_exclusion(self, exclusion: Exclusion) -> None:
        self.events.append(f"without {exclusion.device}")

    def on_replan(self, replanned: Replanned) -> None:
        self.events.append(f"{replanned.replan.outcome} {replanned.training_step}")


class _Meter:
    """Writes down when it is read; 1.5 J for each training step, unknown for the third."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.begun = 0

    def begin(self) -> None:
        self.begun += 1
        self.events.append("begin")

    def end(self) -> Energy:
        self.events.append("end")
        return Energy(None, "it slept") if self.begun == 3 else Energy(1.5, "a made-up meter")


class _Session:
    """One process's worth of a run: opened, restored, trained."""

    def __init__(self, run: RunFolder, data: TokenData = DATA) -> None:
        self.run, self.data = run, data
        self.recorder = _Recorder()
        self.parameters: dict[str, Array] = {}
        self.stop_after = -1
        self.spoil: Callable[[Trainer, int], None] = lambda trainer, step: None
        self.meter: Meter | None = None

    def train(self) -> Outcome:
        with (
            closing(CpuDevice(2)) as device,
            closing(Trainer(self.run.config, Machine((device,)))) as trainer,
        ):
            trainer.warm_up()
            state = restore(self.run, trainer, self.data, None)
            self.recorder.before = lambda step: self.spoil(trainer, step)
            outcome = train(
                self.run,
                trainer,
                self.data,
                state,
                self.recorder,
                should_stop=lambda: f"step {self.stop_after}" in self.recorder.events,
                meter=self.meter,
            )
            self.parameters = {name: array.copy() for name, array in trainer.parameters.items()}
        return outcome


def _lines(run: RunFolder) -> list[dict[str, float]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def _timeless(run: RunFolder) -> list[dict[str, float]]:
    clocks = {"seconds", "tokens_per_s"}
    return [{k: v for k, v in line.items() if k not in clocks} for line in _lines(run)]


def _run(tmp_path: Path, config: RunConfig = CONFIG) -> RunFolder:
    return create_run(tmp_path / "run", config)


def test_what_happens_when(tmp_path: Path) -> None:
    session = _Session(_run(tmp_path))
    outcome = session.train()
    assert session.recorder.events == [
        *("step 1", "step 2", "evaluation 2", "step 3", "step-3", "step 4", "evaluation 4"),
        *("step 5", "step 6", "evaluation 6", "step-6", "step 7", "evaluation 7", "step-7"),
    ]
    assert outcome.is_complete
    assert session.run.training_steps() == [6, 7]
    assert session.run.latest == session.run.checkpoint(7)
    state = load_training_state(session.run.checkpoint(7))
    assert state == outcome.state
    assert (state.training_step, state.tokens_seen) == (7, 7 * 2 * 16)
    losses = [line["validation_loss"] for line in _lines(session.run) if "validation_loss" in line]
    assert state.validation_loss == losses[-1]
    assert state.best_validation_loss == min(losses)


def test_zero_means_only_at_the_end(tmp_path: Path) -> None:
    session = _Session(_run(tmp_path, replace(CONFIG, steps=3, eval_every=0, checkpoint_every=0)))
    session.train()
    assert session.recorder.events == ["step 1", "step 2", "step 3", "evaluation 3", "step-3"]


def test_without_validation_data_nothing_is_evaluated(tmp_path: Path) -> None:
    data = replace(DATA, validation=None)
    session = _Session(_run(tmp_path, replace(CONFIG, steps=2)), data)
    assert session.train().state.validation_loss is None
    assert session.recorder.events == ["step 1", "step 2", "step-2"]


def test_a_meter_measures_training_steps_alone(tmp_path: Path) -> None:
    session = _Session(_run(tmp_path, replace(CONFIG, steps=4)))
    session.meter = _Meter(session.recorder.events)
    session.train()
    assert session.recorder.events == [
        *("begin", "end", "step 1", "begin", "end", "step 2", "evaluation 2"),
        *("begin", "end", "step 3", "step-3", "begin", "end", "step 4", "evaluation 4", "step-4"),
    ]
    lines = [line for line in _lines(session.run) if "loss" in line]
    assert [line["joules"] for line in lines] == [1.5, 1.5, None, 1.5]
    assert [line["joules_source"] for line in lines] == [
        *("a made-up meter", "a made-up meter", "it slept", "a made-up meter")
    ]
    others = [line for line in _lines(session.run) if "loss" not in line]
    assert len(others) == 2
    assert not any("joules" in line for line in others)


def test_without_a_meter_metrics_have_no_joules(tmp_path: Path) -> None:
    session = _Session(_run(tmp_path, replace(CONFIG, steps=1)))
    session.train()
    assert [sorted(line) for line in _lines(session.run)] == [
        ["grad_norm", "loss", "lr", "seconds", "tokens_per_s", "training_step"],
        ["training_step", "validation_loss"],
    ]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_metrics_hold_the_rate_of_each_training_step(
    tmp_path: Path, schedule: Literal["constant", "cosine"]
) -> None:
    config = replace(CONFIG, lr_schedule=schedule)
    run = _run(tmp_path, config)
    _Session(run).train()
    steps = [line for line in _lines(run) if "loss" in line]
    keys = ["training_step", "loss", "lr", "grad_norm", "seconds", "tokens_per_s"]
    assert [list(line) for line in steps] == [keys] * 7
    assert [line["training_step"] for line in steps] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["lr"] for line in steps] == [learning_rate(config, index) for index in range(7)]
    assert [line["lr"] for line in steps[:3]] == pytest.approx([5e-3, 1e-2, 1e-2])
    assert (steps[-1]["lr"] == 1e-2) is (schedule == "constant")


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    whole = _Session(create_run(tmp_path / "whole", replace(CONFIG, dropout=0.1)))
    whole.train()
    run = _run(tmp_path, replace(CONFIG, dropout=0.1))
    first = _Session(run)
    first.stop_after = stop_after
    assert not first.train().is_complete
    assert run.latest == run.checkpoint(stop_after)
    second = _Session(run)
    assert second.train().is_complete
    assert _timeless(run) == _timeless(whole.run)
    for name, array in whole.parameters.items():
        assert np.array_equal(second.parameters[name], array), name
    for name in ("model.safetensors", "optimizer.safetensors", "training_state.json"):
        checkpoints = [each.run.checkpoint(7) / name for each in (whole, second)]
        assert checkpoints[0].read_bytes() == checkpoints[1].read_bytes()


def test_a_stop_after_the_last_training_step_is_no_stop(tmp_path: Path) -> None:
    session = _Session(_run(tmp_path))
    session.stop_after = 7
    assert session.train().is_complete


def test_a_complete_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _Session(run).train()
    lines = _lines(run)
    session = _Session(run)
    outcome = session.train()
    assert outcome.is_complete
    assert outcome.last is None
    assert session.recorder.events == []
    assert _lines(run) == lines


def test_changed_data_are_refused(tmp_path: Path) -> None:
    run = _run(tmp_path)
    session = _Session(run)
    session.stop_after = 4
    session.train()
    before = run.metrics_file.read_bytes()
    message = (
        f"{run.path}: the built-in text is not what .* until training step 4, .* --init .*/step-4"
    )
    with pytest.raises(InputError, match=message):
        _Session(run, replace(DATA, identity="others")).train()
    assert run.metrics_file.read_bytes() == before


def _poison(trainer: Trainer, step: int) -> None:
    if step == 4:
        trainer.parameters["wpe.weight"][...] = np.nan


@pytest.mark.parametrize(
    ("config", "message", "kept"),
    [
        (CONFIG, "the validation loss is nan", [3]),
        (replace(CONFIG, eval_every=0), "training step 5: the loss is nan", [3]),
        (
            replace(CONFIG, eval_every=0, checkpoint_every=4),
            r"parameter wpe\.weight is not finite",
            [],
        ),
    ],
)
def test_what_is_not_finite_never_gets_into_a_checkpoint(
    tmp_path: Path, config: RunConfig, message: str, kept: list[int]
) -> None:
    run = _run(tmp_path, config)
    session = _Session(run)
    session.spoil = _poison
    where = f"the last checkpoint is {run.checkpoint(3)}" if kept else "there is no checkpoint yet"
    with pytest.raises(TrainingError, match=f"{message}.*; {where}$"):
        session.train()
    assert run.training_steps() == kept
    assert _Session(run).train().is_complete


def test_a_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path)
    session = _Session(run)

    def write_until_full(*arguments: object) -> None:
        if run.training_steps():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_tensors(*arguments)  # type: ignore[arg-type]  # handed through

    monkeypatch.setattr("aieflow.gpt2.checkpoint.write_tensors", write_until_full)
    with pytest.raises(InputError, match=r"step-6: the disk is full: .* \(step-3 is whole\)"):
        session.train()
    monkeypatch.undo()
    assert run.training_steps() == [3]
    again = _Session(run)
    assert again.train().is_complete
    assert again.recorder.events[0] == "step 4"


def test_sequential_sampling_reads_in_llmc_order(tmp_path: Path) -> None:
    """With a rate near 0 the weights stay, so a loss tells which tokens were read."""
    config = replace(
        CONFIG, sampling="sequential", lr=1e-30, warmup=0, weight_decay=0.0, eval_every=0
    )
    run = _run(tmp_path, config)
    _Session(run).train()
    losses = [line["loss"] for line in _lines(run) if "loss" in line]
    B, T = config.batch_size, config.seq_len
    with closing(CpuDevice(2)) as device, closing(Trainer(config, Machine((device,)))) as trainer:
        trainer.initialise()
        for s, loss in enumerate(losses):
            rows = [DATA.train[(s * B + b) * T :][: T + 1].astype(np.int32) for b in range(B)]
            batch = np.array(rows)
            expected = trainer.evaluate([(batch[:, :-1], batch[:, 1:])])
            assert loss == pytest.approx(expected, rel=1e-6)
    assert len(set(losses)) == 7


def test_state_keeps_the_identity_of_the_data(tmp_path: Path) -> None:
    run = _run(tmp_path, replace(CONFIG, steps=1))
    assert _Session(run).train().state.data_identity == "these tokens"
    assert load_training_state(run.checkpoint(1)).data_identity == "these tokens"
    assert TrainingState(training_step=0).data_identity is None
