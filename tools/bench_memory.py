"""Measures what a training step takes of the computer's memory, against what its plan promised.

The process's resident memory counts, from before the model is made to its peak over some training
steps: the kernels are compiled before, on a tiny model.
"""

from contextlib import closing
from dataclasses import dataclass

import psutil
from rich.table import Table

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import Trainer
from aieflow.runtime.machine import Machine
from aieflow.tools.bench_train import RandomTokens, compile_kernels
from aieflow.tools.resident_memory import forget_peak, peak_nbytes


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """The figures of one case, in bytes."""

    preset: str
    batch_size: int
    seq_len: int
    planned: int
    measured: int  # peak of the resident memory, less that before the model was made
    ratio: float  # measured / planned
    before: int  # interpreter, libraries, compiled kernels
    accounts: dict[str, int]  # of the plan, at its peak


def measure_memory(device: CpuDevice, preset: str, batch_size: int, seq_len: int) -> MemoryRow:
    """Do three training steps and read the peak; raises DeviceError where it cannot be read."""
    compile_kernels(device)
    before = int(psutil.Process().memory_info().rss)
    forget_peak()
    config = RunConfig(model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len, steps=3)
    with closing(Trainer(config, Machine((device,)))) as trainer:
        trainer.warm_up()
        trainer.initialise()
        for index in range(config.steps):
            trainer.step(index, RandomTokens(config.model.vocab_size))
        measured = peak_nbytes() - before
        planned = trainer.planned_nbytes
        accounts = dict(trainer.plan.memory.accounts)
    return MemoryRow(
        preset, batch_size, seq_len, planned, measured, measured / planned, before, accounts
    )


def memory_table(rows: list[MemoryRow]) -> Table:
    """The rows as a table for people."""
    table = Table("MB", box=None, pad_edge=False)
    for heading in ("planned", "measured", "ratio", "before", "of the plan"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            f"{row.preset} {row.batch_size} x {row.seq_len}",
            f"{row.planned / 1e6:,.0f}",
            f"{row.measured / 1e6:,.0f}",
            f"{row.ratio:.3f}",
            f"{row.before / 1e6:,.0f}",
            ", ".join(f"{name} {n / 1e6:,.0f}" for name, n in row.accounts.items() if n >= 1e5),
        )
    return table
