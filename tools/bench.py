"""`aieflow bench NAME`: the benchmarks behind each claim; prints a table and saves JSON."""

import json
import platform
from contextlib import closing
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from aieflow.devices.cpu import CpuDevice
from aieflow.devices.registry import survey
from aieflow.gpt2.config import PRESETS
from aieflow.ops.errors import InputError
from aieflow.tools.bench_memory import measure_memory, memory_table
from aieflow.tools.bench_train import measure_training, training_table
from aieflow.tools.console import ERR, OUT
from aieflow.tools.model_options import BatchSize, Lanes, Preset, SeqLen

BENCHMARKS = ("train", "memory")
CASES = (("mini", 8, 128), ("124M", 4, 64))  # preset, B, T


def bench(
    name: Annotated[str, typer.Argument(help=f"Which benchmark: {', '.join(BENCHMARKS)}.")],
    preset: Preset = None,
    batch_size: BatchSize = None,
    seq_len: SeqLen = None,
    rounds: Annotated[int, typer.Option(help="Timed training steps of each kind.")] = 7,
    lanes: Lanes = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also save the figures as JSON.")
    ] = None,
) -> None:
    """Measure on this computer what the documents claim: mini and 124M, or one --preset.

    Example: aieflow bench train --preset 124M --batch-size 4 --seq-len 64
    """
    if name not in BENCHMARKS:
        raise InputError(f"bench {name}: must be one of {', '.join(BENCHMARKS)}")
    if rounds < 1:
        raise InputError(f"--rounds = {rounds}: must be at least 1")
    cpu = survey()[0]
    rows: list[dict[str, object]] = []
    with closing(CpuDevice(lanes)) as device:
        threads = len(device.lanes)
        cases = _cases(preset, batch_size, seq_len)
        with ERR.status(f"measuring {', '.join(case[0] for case in cases)}"):
            if name == "train":
                training = [measure_training(device, *case, rounds) for case in cases]
                rows, table = [asdict(row) for row in training], training_table(training)
            else:
                memory = [measure_memory(device, *case) for case in cases]
                rows, table = [asdict(row) for row in memory], memory_table(memory)
    OUT.print(table)
    if json_file is not None:
        report = {
            "benchmark": name,
            "machine": {"cpu": cpu.description, **cpu.facts},
            "versions": {
                "python": platform.python_version(),
                **{each: version(each) for each in ("aieflow", "numpy", "numba")},
            },
            "threads": threads,
            "rounds": rounds,
            "rows": rows,
        }
        try:
            json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"--json {json_file}: cannot be written: {error.strerror}") from None
        ERR.print(f"saved {json_file}")


def _cases(
    preset: str | None, batch_size: int | None, seq_len: int | None
) -> tuple[tuple[str, int, int], ...]:
    if preset is None:
        if batch_size is not None or seq_len is not None:
            raise InputError("--batch-size and --seq-len go with a --preset")
        return CASES
    if preset not in PRESETS:
        raise InputError(f"--preset {preset}: must be one of {', '.join(PRESETS)}")
    B, T = {known: (b, t) for known, b, t in CASES}.get(preset, (1, 64))
    return ((preset, batch_size or B, seq_len or T),)
