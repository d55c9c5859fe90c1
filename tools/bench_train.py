"""Measures training steps: seconds, rates, and the share of the time that is not in kernels.

The seconds are those of untraced training steps; the share outside kernels comes from traced ones
of the same executor, which alternate with them. The GEMM peak is measured before and after, and
the better of the two counts.
"""

import statistics
import time
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from aieflow.devices.cpu import CpuDevice, measure_rates
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import Trainer
from aieflow.ops.op import Array
from aieflow.runtime.machine import Machine


@dataclass(frozen=True, slots=True)
class TrainRow:
    """The figures of one case; seconds are those of a training step."""

    preset: str
    batch_size: int
    seq_len: int
    seconds: float  # median
    seconds_min: float
    seconds_max: float
    seconds_traced: float  # median of the traced ones
    tokens_per_s: float
    gflops_per_s: float
    gemm_peak_gflops_per_s: float
    share_of_peak: float
    outside_kernels: float  # share of the lanes' time
    steps: int
    edges: int
    planned_mb: float


@dataclass(frozen=True, slots=True)
class RandomTokens:
    """A sampler of random tokens, the same for every training step."""

    vocab_size: int

    def fill(
        self, training_step: int, micro_batch: int, tokens_out: Array, targets_out: Array
    ) -> None:
        """Write tokens and targets int32 (B, T)."""
        rng = np.random.default_rng((training_step, micro_batch))
        tokens_out[...] = rng.integers(0, self.vocab_size, tokens_out.shape)
        targets_out[...] = rng.integers(0, self.vocab_size, targets_out.shape)


def measure_training(
    device: CpuDevice, preset: str, batch_size: int, seq_len: int, rounds: int
) -> TrainRow:
    """Time `rounds` untraced and as many traced training steps, on random tokens."""
    config = RunConfig(
        model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len, steps=2 * rounds + 3, lr=1e-4
    )
    peak = measure_rates(device).gemm_flops_per_s
    trainer = Trainer(config, Machine(device))
    trainer.warm_up()
    trainer.initialise()
    sampler = RandomTokens(config.model.vocab_size)
    trainer.step(0, sampler)
    trainer.step(1, sampler, traced=True)
    plain, traced, outside = [], [], []
    for index in range(2, 2 * rounds + 2, 2):
        plain.append(_seconds(trainer, index, sampler))
        begin = time.perf_counter()
        trace = trainer.step(index + 1, sampler, traced=True).trace
        traced.append(time.perf_counter() - begin)
        assert trace is not None
        outside.append(trace.outside_kernels)
    trainer.close()
    peak = max(peak, measure_rates(device).gemm_flops_per_s)
    median = statistics.median(plain)
    flops = trainer.plan.graph.flops
    return TrainRow(
        preset,
        batch_size,
        seq_len,
        seconds=median,
        seconds_min=min(plain),
        seconds_max=max(plain),
        seconds_traced=statistics.median(traced),
        tokens_per_s=batch_size * seq_len / median,
        gflops_per_s=flops / median / 1e9,
        gemm_peak_gflops_per_s=peak / 1e9,
        share_of_peak=flops / median / peak,
        outside_kernels=statistics.median(outside),
        steps=len(trainer.plan.steps),
        edges=trainer.plan.edges,
        planned_mb=trainer.planned_nbytes / 1e6,
    )


def _seconds(trainer: Trainer, index: int, sampler: RandomTokens) -> float:
    begin = time.perf_counter()
    trainer.step(index, sampler)
    return time.perf_counter() - begin


def training_table(rows: list[TrainRow]) -> Table:
    """The rows as a table for people."""
    table = Table("preset B x T", box=None, pad_edge=False)
    for heading in ("ms", "min - max", "tokens/s", "GFLOP/s", "of peak", "not in kernels"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.preset} {row.batch_size} x {row.seq_len}",
            f"{row.seconds * 1e3:.1f}",
            f"{row.seconds_min * 1e3:.1f} - {row.seconds_max * 1e3:.1f}",
            f"{row.tokens_per_s:,.0f}",
            f"{row.gflops_per_s:.1f}",
            f"{row.share_of_peak:.0%}",
            f"{row.outside_kernels:.1%}",
        )
    return table
