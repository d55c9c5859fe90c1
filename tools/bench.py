"""`aieflow bench NAME`: the benchmarks behind each claim; prints a table and saves JSON."""

import json
import platform
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import RenderableType

from aieflow.devices.cpu import CpuDevice
from aieflow.devices.registry import survey
from aieflow.gpt2.config import PRESETS
from aieflow.ops.errors import InputError
from aieflow.tools.bench_gemm import gemm_table, measure_gemm
from aieflow.tools.bench_memory import measure_memory, memory_table
from aieflow.tools.bench_opencl import measure_opencl, opencl_table
from aieflow.tools.bench_ops import measure_ops, ops_table
from aieflow.tools.bench_overhead import measure_overhead, overhead_table
from aieflow.tools.bench_overlap import measure_overlap, overlap_table
from aieflow.tools.bench_scaling import measure_scaling, scaling_table
from aieflow.tools.bench_train import measure_training, training_table
from aieflow.tools.console import ERR, OUT
from aieflow.tools.model_options import BatchSize, Lanes, Preset, SeqLen

Case = tuple[str, int, int]  # preset, B, T
Report = tuple[list[dict[str, object]], RenderableType]  # rows, and the table of them


@dataclass(frozen=True, slots=True)
class Asked:
    """What a benchmark is to measure, and on what."""

    device: CpuDevice
    cases: tuple[Case, ...]
    rounds: int
    peer_python: Path | None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How one benchmark is run, and its cases where none are given; none: it has no model."""

    run: Callable[[Asked], Report]
    cases: tuple[Case, ...]
    has_peer: bool = False


def _train(asked: Asked) -> Report:
    rows = [
        measure_training(asked.device, *case, asked.rounds, asked.peer_python)
        for case in asked.cases
    ]
    return [asdict(row) for row in rows], training_table(rows)


def _memory(asked: Asked) -> Report:
    rows = [measure_memory(asked.device, *case) for case in asked.cases]
    return [asdict(row) for row in rows], memory_table(rows)


def _gemm(asked: Asked) -> Report:
    rows = [row for case in asked.cases for row in measure_gemm(asked.device, *case, asked.rounds)]
    return [asdict(row) for row in rows], gemm_table(rows)


def _ops(asked: Asked) -> Report:
    rows = [
        row
        for case in asked.cases
        for row in measure_ops(asked.device, *case, asked.rounds, asked.peer_python)
    ]
    return [asdict(row) for row in rows], ops_table(rows)


def _scaling(asked: Asked) -> Report:
    lanes = len(asked.device.lanes)
    rows = [row for case in asked.cases for row in measure_scaling(lanes, *case, asked.rounds)]
    return [asdict(row) for row in rows], scaling_table(rows)


def _opencl(asked: Asked) -> Report:
    rows = [
        row for case in asked.cases for row in measure_opencl(asked.device, *case, asked.rounds)
    ]
    return [asdict(row) for row in rows], opencl_table(rows)


def _overlap(asked: Asked) -> Report:
    rows = [
        row for case in asked.cases for row in measure_overlap(asked.device, *case, asked.rounds)
    ]
    return [asdict(row) for row in rows], overlap_table(rows)


def _overhead(asked: Asked) -> Report:
    rows = measure_overhead(asked.device, asked.rounds)
    return [asdict(row) for row in rows], overhead_table(rows)


CASES = (("mini", 8, 128), ("124M", 4, 64))
LONGER_CASES = (*CASES, ("124M", 4, 256), ("124M", 2, 1024))
BENCHMARKS: Mapping[str, Benchmark] = {
    "train": Benchmark(_train, LONGER_CASES, has_peer=True),
    "memory": Benchmark(_memory, CASES),
    "scaling": Benchmark(_scaling, CASES),
    "gemm": Benchmark(_gemm, (("124M", 1, 256), ("124M", 4, 256))),
    "ops": Benchmark(_ops, (("124M", 4, 256),), has_peer=True),
    "overhead": Benchmark(_overhead, ()),
    "opencl": Benchmark(_opencl, (("124M", 4, 256),)),
    "overlap": Benchmark(_overlap, (("124M", 4, 64),)),
}


def bench(
    name: Annotated[str, typer.Argument(help=f"Which benchmark: {', '.join(BENCHMARKS)}.")],
    preset: Preset = None,
    batch_size: BatchSize = None,
    seq_len: SeqLen = None,
    rounds: Annotated[int, typer.Option(help="Timed rounds.")] = 7,
    lanes: Lanes = None,
    peer: Annotated[
        Literal["torch"] | None, typer.Option(help="Also measure PyTorch, in turn with ours.")
    ] = None,
    peer_python: Annotated[
        Path | None, typer.Option(help="The peer's Python; default: this one.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also save the figures as JSON.")
    ] = None,
) -> None:
    """Measure on this computer what the documents claim, or the same of one --preset.

    Example: aieflow bench train --preset 124M --batch-size 4 --seq-len 64
    """
    if name not in BENCHMARKS:
        raise InputError(f"bench {name}: must be one of {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[name]
    if rounds < 1:
        raise InputError(f"--rounds = {rounds}: must be at least 1")
    if peer is not None and not benchmark.has_peer:
        names = [each for each, known in BENCHMARKS.items() if known.has_peer]
        raise InputError(f"--peer {peer}: goes with bench {' and bench '.join(names)}")
    python = (peer_python or Path(sys.executable)) if peer is not None else None
    (cpu,) = survey(names=("cpu",))
    with closing(CpuDevice(lanes)) as device:
        threads = len(device.lanes)
        cases = _cases(name, preset, batch_size, seq_len)
        with ERR.status(f"measuring {', '.join(case[0] for case in cases) or name}"):
            rows, table = benchmark.run(Asked(device, cases, rounds, python))
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
    name: str, preset: str | None, batch_size: int | None, seq_len: int | None
) -> tuple[Case, ...]:
    usual = BENCHMARKS[name].cases
    if not usual and (preset or batch_size or seq_len):
        raise InputError(f"bench {name}: takes no --preset, --batch-size or --seq-len")
    if preset is None:
        if batch_size is not None or seq_len is not None:
            raise InputError("--batch-size and --seq-len go with a --preset")
        return usual
    if preset not in PRESETS:
        raise InputError(f"--preset {preset}: must be one of {', '.join(PRESETS)}")
    B, T = next(((b, t) for known, b, t in usual if known == preset), (1, 64))
    return ((preset, batch_size or B, seq_len or T),)
