"""The training loop: training steps, evaluations, checkpoints, metrics, in one fixed order.

All that happens is told to a `Watcher`; nothing is printed here. The loop keeps no state of its
own but the number of training steps completed, so a run that goes on from a checkpoint repeats the
very bits of one that never stopped.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from aieflow.gpt2.checkpoint import (
    TokenizerWriter,
    TrainingState,
    load_moments,
    load_training_state,
    save_checkpoint,
)
from aieflow.gpt2.data import TokenData
from aieflow.gpt2.durable import replace_file
from aieflow.gpt2.energy import Meter
from aieflow.gpt2.metrics import MetricsLog, open_metrics
from aieflow.gpt2.pretrained import load_parameters
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import RunFolder
from aieflow.gpt2.sampler import RandomSampler, Sampler, SequentialSampler, validation_batches
from aieflow.gpt2.trainer import Exclusion, Replanned, StepRecord, Trainer
from aieflow.ops.errors import DeviceError, InputError, TrainingError
from aieflow.runtime.export import json_text
from aieflow.runtime.plan import Plan


class Watcher(Protocol):
    """What is told while a run goes on."""

    def on_training_step(self, record: StepRecord) -> None:
        """A training step is complete."""

    def on_evaluation(self, training_step: int, validation_loss: float) -> None:
        """The validation loss after so many training steps is known."""

    def on_checkpoint(self, path: Path) -> None:
        """A checkpoint is whole."""

    def on_exclusion(self, exclusion: Exclusion) -> None:
        """A device has failed, and the run goes on without it."""

    def on_replan(self, replanned: Replanned) -> None:
        """Training steps have drifted, and this came of it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a run stood when the loop ended."""

    state: TrainingState
    last: StepRecord | None  # None when nothing was left to do
    is_complete: bool  # False when it was asked to stop before


def make_sampler(config: RunConfig, data: TokenData) -> Sampler:
    """The sampler that a run's settings ask for; raises InputError when the data are too short."""
    if config.sampling == "sequential":
        return SequentialSampler(
            data.train, config.batch_size, config.seq_len, config.grad_accumulation
        )
    return RandomSampler(data.train, config.batch_size, config.seq_len, config.seed)


def restore(run: RunFolder, trainer: Trainer, data: TokenData, init: Path | None) -> TrainingState:
    """Fill the trainer: from the run's latest checkpoint, else from `init`, else from the seed.

    Raises InputError for files that are damaged or do not fit, and where `data` are not those that
    the run was trained on.
    """
    latest = run.latest
    if latest is not None:
        state = load_training_state(latest)
        if state.data_identity != data.identity:
            raise InputError(
                f"{run.path}: {run.config.data or 'the built-in text'} is not what this run was "
                f"trained on until training step {state.training_step}, its content has changed: "
                f"put the old content back, or train on the new one with --init {latest}"
            )
        load_parameters(latest, run.config.model, trainer.parameters)
        load_moments(latest, trainer.moments)
        return state
    if init is not None:
        load_parameters(init, run.config.model, trainer.parameters)
    else:
        trainer.initialise()
    return TrainingState(training_step=0, data_identity=data.identity)


@dataclass(slots=True)
class _Loop:
    run: RunFolder
    trainer: Trainer
    data: TokenData
    state: TrainingState
    write_tokenizer: TokenizerWriter | None
    end_of_text: int | None
    watcher: Watcher
    metrics: MetricsLog
    meter: Meter | None
    saved: int | None = None  # the training step of the newest checkpoint made here
    evaluated: int | None = None
    told: int = 0  # exclusions
    told_replans: int = 0

    def tell_exclusions(self) -> None:
        """Enter devices that the run has lost since the last call."""
        for exclusion in self.trainer.exclusions[self.told :]:
            self.told += 1
            self.metrics.append(
                {
                    "training_step": exclusion.training_step,
                    "excluded_device": exclusion.device,
                    "reason": exclusion.reason,
                }
            )
            self.watcher.on_exclusion(exclusion)

    def tell_replans(self) -> None:
        """Enter what came of drifts since the last call."""
        for replanned in self.trainer.replans[self.told_replans :]:
            self.told_replans += 1
            replan = replanned.replan
            old_s, new_s = replan.foretold_s or (None, None)
            self.metrics.append(
                {
                    "training_step": replanned.training_step,
                    "replan": replan.outcome,
                    "reason": replan.reason,
                    "from": replan.before,
                    "to": replan.after,
                    "predicted_seconds_before": old_s,
                    "predicted_seconds": new_s,
                }
            )
            if replan.plans is not None:
                _write_plan(self.run, replan.plans[0])
            self.watcher.on_replan(replanned)

    def evaluate(self) -> None:
        config, data = self.run.config, self.data
        if data.validation is None or self.evaluated == self.state.training_step:
            return
        batches = validation_batches(
            data.validation, config.batch_size, config.seq_len, config.eval_batches
        )
        loss = self.trainer.evaluate(batches)
        self.tell_exclusions()
        best = self.state.best_validation_loss
        self.state = replace(
            self.state,
            validation_loss=loss,
            best_validation_loss=loss if best is None else min(best, loss),
        )
        self.evaluated = self.state.training_step
        self.metrics.append({"training_step": self.evaluated, "validation_loss": loss})
        self.watcher.on_evaluation(self.evaluated, loss)

    @property
    def is_evaluated(self) -> bool:
        return self.evaluated == self.state.training_step

    def save(self) -> None:
        if self.saved == self.state.training_step:
            return
        self.trainer.require_finite()
        path = save_checkpoint(
            self.run,
            self.state,
            self.trainer.parameters,
            self.trainer.moments,
            write_tokenizer=self.write_tokenizer,
            end_of_text=self.end_of_text,
        )
        self.saved = self.state.training_step
        self.watcher.on_checkpoint(path)

    def step(self, sampler: Sampler, traced: bool) -> StepRecord:
        config = self.run.config
        emulated = self.trainer.machine.emulated  # before: one that fails has spent time, too
        record = self.trainer.step(self.state.training_step, sampler, traced, self.meter)
        self.tell_exclusions()
        self.tell_replans()
        tokens = config.batch_size * config.grad_accumulation * config.seq_len
        self.state = replace(
            self.state,
            training_step=record.training_step,
            tokens_seen=self.state.tokens_seen + tokens,
        )
        line: dict[str, int | float | str | None] = {
            "training_step": record.training_step,
            "loss": record.loss,
            "lr": record.lr,
            "grad_norm": record.grad_norm,
            "seconds": record.seconds,
            "tokens_per_s": record.tokens_per_s,
        }
        if record.energy is not None:
            line |= {"joules": record.energy.joules, "joules_source": record.energy.source}
        if emulated:  # then seconds are the emulation's
            line["emulated"] = ", ".join(emulated)
        self.metrics.append(line)
        self.watcher.on_training_step(record)
        return record


def train(
    run: RunFolder,
    trainer: Trainer,
    data: TokenData,
    state: TrainingState,
    watcher: Watcher,
    *,
    write_tokenizer: TokenizerWriter | None = None,
    end_of_text: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    traced: Callable[[], bool] = lambda: False,
    meter: Meter | None = None,
) -> Outcome:
    """Train from `state` to the end of the run, or until `should_stop` after a training step.

    Before each training step `traced` says whether its spans are to be recorded; with a `meter` the
    metrics tell the joules of each training step alone. Ends with an
    evaluation and a checkpoint; when stopped early, with a checkpoint. Raises
    TrainingError that names the last checkpoint when a loss, the gradients' norm or a parameter to
    be saved is not finite, InputError when a disk is full: what was saved before stays whole. When
    a device fails and is not to be excluded, saves a checkpoint of the training steps completed and
    raises DeviceError that names it.
    """
    config = run.config
    sampler = make_sampler(config, data)
    _write_plan(run, trainer.plan)  # of all devices; the metrics say which were lost
    last: StepRecord | None = None
    with open_metrics(run, state.training_step) as metrics:
        saved = state.training_step if run.latest is not None else None
        loop = _Loop(
            run, trainer, data, state, write_tokenizer, end_of_text, watcher, metrics, meter, saved
        )
        if state.training_step and state.validation_loss is None:
            if _is_due(config, state.training_step):
                loop.evaluate()
                loop.saved = None
                loop.save()
        elif state.training_step:
            loop.evaluated = state.training_step
        while loop.state.training_step < config.steps:
            try:
                last = loop.step(sampler, traced())
                done = loop.state.training_step
                is_complete = done == config.steps
                if _is_due(config, done):
                    loop.evaluate()
                if is_complete or (config.checkpoint_every and done % config.checkpoint_every == 0):
                    loop.save()
                if not is_complete and should_stop():
                    loop.save()
                    return Outcome(loop.state, last, is_complete=False)
            except DeviceError as error:
                if not trainer.plan.keeps_states:  # nothing gives the states back as they were
                    raise
                if _is_due(config, loop.state.training_step) and not loop.is_evaluated:
                    # so that the run evaluates first when it goes on
                    loop.state = replace(loop.state, validation_loss=None)
                loop.save()
                without = ""
                if error.device in trainer.machine.expendable:
                    without = ", or without the device by adding --on-device-failure exclude"
                raise DeviceError(
                    f"{error}; the run is saved: go on with --resume {run.path}{without}",
                    error.device,
                ) from error
            except TrainingError as error:
                kept = run.latest
                where = f"the last checkpoint is {kept}" if kept else "there is no checkpoint yet"
                raise TrainingError(f"{error}; {where}") from None
    return Outcome(loop.state, last, is_complete=True)


def _is_due(config: RunConfig, done: int) -> bool:
    """Whether an evaluation follows so many training steps."""
    return done == config.steps or bool(config.eval_every and done % config.eval_every == 0)


def _write_plan(run: RunFolder, plan: Plan) -> None:
    try:
        replace_file(run.plan_file, json_text(plan).encode())
    except OSError as error:
        raise InputError(
            f"{run.plan_file}: cannot be written: {error.strerror}: make room, then go on with "
            f"--resume {run.path}"
        ) from None
