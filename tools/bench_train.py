"""Measures training steps: seconds, rates, and the share of the time that is not in kernels.

The seconds are those of untraced training steps; the share outside kernels comes from traced ones
of the same executor, which alternate with them. The GEMM peak is measured before and after, and
the better of the two counts.
"""

import statistics
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from rich.console import Group
from rich.table import Table

from aieflow.devices.cpu import CpuDevice, measure_gemm_rate
from aieflow.gpt2.config import PRESETS, ModelConfig
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import Trainer
from aieflow.ops.op import Array
from aieflow.runtime.machine import Machine
from aieflow.tools.peer import Peer, PeerCase
from aieflow.tools.resident_memory import forget_peak, peak_nbytes


@dataclass(frozen=True, slots=True)
class PeerFigures:
    """What a peer took for the same training step; seconds are medians."""

    seconds: float
    seconds_min: float
    seconds_max: float
    ratio: float  # aieflow's seconds / the peer's
    memory_nbytes: int
    memory_ratio: float  # aieflow's memory / the peer's


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
    planned_nbytes: int
    memory_nbytes: int  # peak of the resident memory, less that before the model was made
    peers: dict[str, PeerFigures]
    ratio: float | None  # to the faster peer
    memory_ratio: float | None  # to the peer that takes less


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


def compile_kernels(device: CpuDevice) -> None:
    """Train a tiny model, so that what is measured next finds its kernels in memory."""
    model = ModelConfig(vocab_size=64, seq_len=16, layers=1, heads=2, channels=16)
    config = RunConfig(model=model, batch_size=2, seq_len=16, steps=1)
    with closing(Trainer(config, Machine((device,)))) as trainer:
        trainer.warm_up()
        trainer.initialise()
        trainer.step(0, RandomTokens(model.vocab_size))


def measure_training(
    device: CpuDevice,
    preset: str,
    batch_size: int,
    seq_len: int,
    rounds: int,
    peer_python: Path | None = None,
) -> TrainRow:
    """Time `rounds` untraced and as many traced training steps, on random tokens.

    With `peer_python`, the interpreter of PyTorch, its eager and its compiled training step take
    turns with ours. Raises InputError where they cannot be started.
    """
    config = RunConfig(
        model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len, steps=2 * rounds + 3, lr=1e-4
    )
    peak = measure_gemm_rate(device)
    compile_kernels(device)
    before = int(psutil.Process().memory_info().rss)
    forget_peak()
    trainer = Trainer(config, Machine((device,)))
    trainer.warm_up()
    trainer.initialise()
    sampler = RandomTokens(config.model.vocab_size)
    trainer.step(0, sampler)
    trainer.step(1, sampler, traced=True)
    memory = peak_nbytes() - before
    plain, traced, outside = [], [], []
    with ExitStack() as opened:
        opened.callback(trainer.close)
        peers: list[Peer] = []
        for is_compiled in (False, True) if peer_python is not None else ():
            sizes = (preset, batch_size, seq_len)
            case = PeerCase(peer_python or Path(), *sizes, len(device.lanes), is_compiled)
            peers.append(opened.enter_context(Peer(case)))
        for index in range(2, 2 * rounds + 2, 2):
            plain.append(_seconds(trainer, index, sampler))
            begin = time.perf_counter()
            trace = trainer.step(index + 1, sampler, traced=True).trace
            traced.append(time.perf_counter() - begin)
            assert trace is not None
            outside.append(trace.outside_kernels)
            for peer in peers:
                peer.step()
    peak = max(peak, measure_gemm_rate(device))
    median = statistics.median(plain)
    flops = trainer.plan.graph.flops
    figures = {peer.name: _figures(peer, median, memory) for peer in peers}
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
        planned_nbytes=trainer.planned_nbytes,
        memory_nbytes=memory,
        peers=figures,
        ratio=max((each.ratio for each in figures.values()), default=None),
        memory_ratio=max((each.memory_ratio for each in figures.values()), default=None),
    )


def _figures(peer: Peer, seconds: float, memory: int) -> PeerFigures:
    median = statistics.median(peer.seconds)
    return PeerFigures(
        median,
        min(peer.seconds),
        max(peer.seconds),
        seconds / median,
        peer.peak_nbytes,
        memory / peer.peak_nbytes,
    )


def _seconds(trainer: Trainer, index: int, sampler: RandomTokens) -> float:
    begin = time.perf_counter()
    trainer.step(index, sampler)
    return time.perf_counter() - begin


def training_table(rows: list[TrainRow]) -> Group:
    """The rows as tables for people: ours, then the peers'."""
    ours = Table(box=None, pad_edge=False)
    for heading in ("preset B x T", "ms", "min - max", "tokens/s", "GFLOP/s", "of peak", "outside"):
        ours.add_column(heading, justify="left" if "B x T" in heading else "right", no_wrap=True)
    theirs = Table(box=None, pad_edge=False)
    for heading in ("beside it", "ms", "min - max", "ours / theirs", "memory, ours / theirs"):
        theirs.add_column(heading, justify="left" if heading == "beside it" else "right")
    for row in rows:
        case = f"{row.preset} {row.batch_size} x {row.seq_len}"
        ours.add_row(
            case,
            *_times(row),
            f"{row.tokens_per_s:,.0f}",
            f"{row.gflops_per_s:.1f}",
            f"{row.share_of_peak:.0%}",
            f"{row.outside_kernels:.1%}",
        )
        for name, peer in row.peers.items():
            ratios = (f"{peer.ratio:.2f}", f"{peer.memory_ratio:.2f}")
            theirs.add_row(f"{case} {name}", *_times(peer), *ratios)
    return Group(ours, *([theirs] if theirs.row_count else []))


def _times(row: TrainRow | PeerFigures) -> tuple[str, str]:
    """Median, and spread, in milliseconds."""
    return (
        f"{row.seconds * 1e3:.1f}",
        f"{row.seconds_min * 1e3:.1f} - {row.seconds_max * 1e3:.1f}",
    )
