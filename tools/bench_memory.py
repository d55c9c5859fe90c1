"""Measures what a training step takes of the computer's memory, against what its plan promised.

The process's resident memory counts, from before the model is made to its peak over some training
steps: the kernels are compiled before, on a tiny model.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.table import Table

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import PRESETS, ModelConfig
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import Trainer
from aieflow.ops.errors import DeviceError
from aieflow.runtime.machine import Machine
from aieflow.tools.bench_train import RandomTokens

TINY = ModelConfig(vocab_size=64, seq_len=16, layers=1, heads=2, channels=16)


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
    """Train three training steps and read the peak; raises DeviceError where it cannot be read."""
    _train(RunConfig(model=TINY, batch_size=2, seq_len=16, steps=1), device, 1)
    before = int(psutil.Process().memory_info().rss)
    _forget_peak()
    config = RunConfig(model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len, steps=3)
    trainer = _train(config, device, 3)
    measured = _peak() - before
    planned = trainer.planned_nbytes
    accounts = dict(trainer.plan.memory.accounts)
    return MemoryRow(
        preset, batch_size, seq_len, planned, measured, measured / planned, before, accounts
    )


def _train(config: RunConfig, device: CpuDevice, count: int) -> Trainer:
    trainer = Trainer(config, Machine(device))
    trainer.warm_up()
    trainer.initialise()
    for index in range(count):
        trainer.step(index, RandomTokens(config.model.vocab_size))
    trainer.close()
    return trainer


def _forget_peak() -> None:
    """Let the kernel count the peak of the resident memory anew (proc(5), clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise DeviceError(f"cpu: the peak memory cannot be measured here: {error}") from None


def _peak() -> int:
    """Bytes of the largest resident memory since `_forget_peak`."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise DeviceError("cpu: the peak memory cannot be measured here: no VmHWM in /proc/self/status")


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
