"""Measures how a training step gets faster with more lanes: a trainer for each number, in turn."""

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass

from rich.table import Table

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import Trainer
from aieflow.runtime.machine import Machine
from aieflow.tools.bench_train import RandomTokens


@dataclass(frozen=True, slots=True)
class ScalingRow:
    """The figures of one number of lanes; seconds are those of a training step."""

    preset: str
    batch_size: int
    seq_len: int
    lanes: int
    seconds: float  # median
    seconds_min: float
    seconds_max: float
    speedup: float  # over one lane
    efficiency: float  # speed-up / lanes


def measure_scaling(
    lanes: int, preset: str, batch_size: int, seq_len: int, rounds: int
) -> list[ScalingRow]:
    """Time `rounds` training steps on 1, 2, 4, … and `lanes` lanes, in turn."""
    counts = sorted({1 << power for power in range(lanes.bit_length())} & set(range(lanes)))
    counts.append(lanes)
    config = RunConfig(
        model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len, steps=rounds + 2, lr=1e-4
    )
    sampler = RandomTokens(config.model.vocab_size)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    with ExitStack() as opened:
        trainers: dict[int, Trainer] = {}
        for count in counts:
            device = CpuDevice(count)
            opened.callback(device.close)
            trainers[count] = Trainer(config, Machine((device,)))
            opened.callback(trainers[count].close)
            trainers[count].warm_up()
            trainers[count].initialise()
            trainers[count].step(0, sampler)
        for index in range(1, rounds + 1):
            for count, trainer in trainers.items():
                begin = time.perf_counter()
                trainer.step(index, sampler)
                seconds[count].append(time.perf_counter() - begin)
    medians = {count: statistics.median(each) for count, each in seconds.items()}
    return [
        ScalingRow(
            preset,
            batch_size,
            seq_len,
            count,
            medians[count],
            min(each),
            max(each),
            medians[1] / medians[count],
            medians[1] / medians[count] / count,
        )
        for count, each in seconds.items()
    ]


def scaling_table(rows: list[ScalingRow]) -> Table:
    """The rows as a table for people."""
    table = Table(box=None, pad_edge=False)
    for heading in ("preset B x T", "lanes", "ms", "min - max", "speed-up", "efficiency"):
        table.add_column(heading, justify="left" if "B x T" in heading else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.preset} {row.batch_size} x {row.seq_len}",
            str(row.lanes),
            f"{row.seconds * 1e3:.1f}",
            f"{row.seconds_min * 1e3:.1f} - {row.seconds_max * 1e3:.1f}",
            f"{row.speedup:.2f}",
            f"{row.efficiency:.0%}",
        )
    return table
