"""Runs training steps to be profiled: some to settle, then pairs with and without recording.

Weights are the seed's, tokens are random: what is computed is a training step's, and no run's
folder is needed. Every recorded training step is followed by one that is not, so what recording
costs is measured beside what it shows.
"""

import statistics
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import psutil

from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.sampler import IdArray
from aieflow.gpt2.trainer import StepRecord, Trainer
from aieflow.ops.errors import ProfileError
from aieflow.runtime.machine import Machine
from aieflow.runtime.outline import Recording, recording
from aieflow.runtime.trace import Trace
from aieflow.tools.profile_subject import Subject, device_lines, subject_of
from aieflow.tools.sensor_log import Sensed, sensor_log


@dataclass(frozen=True, slots=True)
class Schedule:
    """Training steps: `wait` are not recorded, `warmup` recorded and dropped, `active` counted."""

    wait: int
    warmup: int
    active: int


@dataclass(frozen=True, slots=True)
class Overhead:
    """What recording costs, as a share of a training step: median and quartiles of pairs."""

    median: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Profiled:
    """What was recorded; one entry of each tuple for each active training step."""

    subject: Subject
    records: tuple[StepRecord, ...]
    recordings: tuple[Recording, ...]
    traces: tuple[Trace, ...]
    plain_s: tuple[float, ...]  # seconds of the training steps between, which were not recorded
    moved_nbytes: float  # of one training step, by transfers
    resident_nbytes: int  # of this process, after them
    sensed: Sensed  # while active training steps ran, with those between

    @property
    def seconds(self) -> float:
        """The median training step that was recorded."""
        return statistics.median(record.seconds for record in self.records)

    @property
    def overhead(self) -> Overhead:
        """By what share recording lengthens a training step, by pairs of neighbours."""
        pairs = zip(self.records, self.plain_s, strict=True)
        ratios = [record.seconds / plain - 1 for record, plain in pairs]
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        return Overhead(float(median), float(low), float(high), len(ratios))


@dataclass(frozen=True, slots=True)
class _RandomTokens:
    vocab_size: int
    seed: int

    def fill(
        self, training_step: int, micro_batch: int, tokens_out: IdArray, targets_out: IdArray
    ) -> None:
        """Tokens and targets that nothing connects."""
        # tokens_out (B, T), targets_out (B, T)
        rng = np.random.default_rng((self.seed, training_step, micro_batch))
        tokens_out[...] = rng.integers(0, self.vocab_size, tokens_out.shape)
        targets_out[...] = rng.integers(0, self.vocab_size, targets_out.shape)


def profiled(
    config: RunConfig,
    machine: Machine,
    schedule: Schedule,
    tell: Callable[[str], None] = lambda text: None,
) -> Profiled:
    """Run and record; `tell` hears what goes on. Raises what a `Trainer` raises.

    And ProfileError where a device fails and the plan changes meanwhile.
    """
    tell("planning")
    with closing(Trainer(replace(config, replan="off"), machine)) as trainer:
        tell("compiling kernels (kept for the next time)")
        trainer.warm_up()
        trainer.initialise()
        sampler = _RandomTokens(config.model.vocab_size, config.seed)
        done = 0

        def step(is_recorded: bool) -> StepRecord:
            nonlocal done
            tell(f"training step {done + 1}")
            record = trainer.step(done, sampler, is_recorded)
            done += 1
            return record

        for _ in range(schedule.wait):
            step(False)
        for _ in range(schedule.warmup):
            step(True)
        plan = trainer.plan
        records: list[StepRecord] = []
        plain_s: list[float] = []
        before = _moved(trainer.machine)
        with sensor_log(device_lines(trainer.machine)) as log:
            for _ in range(schedule.active):
                records.append(step(True))
                plain_s.append(step(False).seconds)
        resident = psutil.Process().memory_info().rss
        moved = (_moved(trainer.machine) - before) / (2 * schedule.active)
        if trainer.plan is not plan:
            lost = "; ".join(each.reason for each in trainer.exclusions)
            raise ProfileError(f"the plan changed while it was profiled ({lost}): profile again")
        tell("accounting")
        traces = tuple(record.trace for record in records if record.trace is not None)
        return Profiled(
            subject_of(trainer),
            tuple(records),
            tuple(map(recording, traces)),
            traces,
            tuple(plain_s),
            moved,
            resident,
            log.sensed(),
        )


def _moved(machine: Machine) -> int:
    return sum(device.moved.copied_nbytes for device in machine.devices)
