"""Measures every matrix product of a training step, against the GEMM peak and BLAS's own threads.

A round runs each product on one lane and on all lanes, then each once more by `np.matmul` with
BLAS's own threads (the product alone: what aieflow adds to it, bias and residual, is left out). The
peaks are measured anew in each round; the best counts.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from threadpoolctl import threadpool_limits

from aieflow.devices.cpu import CpuDevice, measure_gemm_rate
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.graph import Node
from aieflow.runtime.placement import place
from aieflow.tools.bench_node import (
    SETTLE_S,
    LoneNode,
    NodeCase,
    distinct_cases,
    seconds_of,
)

PEAK_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class GemmRate:
    """What one way of doing a product took and reached."""

    seconds: float  # median
    seconds_min: float
    seconds_max: float
    gflops_per_s: float  # at the median
    share_of_peak: float  # of the peak of as many lanes


@dataclass(frozen=True, slots=True)
class GemmRow:
    """One product of a training step."""

    preset: str
    tokens: int
    product: str  # forward, dX or dW
    weight: str
    has_addend: bool  # a residual, or what a gradient was so far
    transposition: str  # of the operands: NN, NT, TN
    m: int
    n: int
    k: int
    count: int  # in one training step
    lanes: int  # that the training step divides it over
    one_lane: GemmRate
    all_lanes: GemmRate
    blas_threads: GemmRate
    gemm_peak_gflops_per_s: float  # of all lanes
    gemm_peak_of_one_lane_gflops_per_s: float

    @property
    def flops(self) -> int:
        """Floating-point operations of the product."""
        return 2 * self.m * self.n * self.k


def measure_gemm(
    device: CpuDevice, preset: str, batch_size: int, seq_len: int, rounds: int
) -> list[GemmRow]:
    """Time every distinct product of the training step of B sequences of T tokens."""
    config = RunConfig(model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len, steps=1)
    plan = place(training_graph(config), device)
    cases = [case for case in distinct_cases(plan) if case.node.op.name == "matmul"]
    peaks: list[tuple[float, float]] = []
    with ExitStack() as opened:
        nodes = [LoneNode(case, device, config.model.vocab_size) for case in cases]
        for node in nodes:
            opened.callback(node.close)
        kinds = ("one", "all", "blas")
        seconds: list[dict[str, list[float]]] = [{kind: [] for kind in kinds} for _ in cases]
        for index in range(rounds + 1):  # the first warms up
            with closing(CpuDevice(1)) as single:
                peak_of_one = measure_gemm_rate(single, PEAK_ROUNDS)
            peaks.append((peak_of_one, measure_gemm_rate(device, PEAK_ROUNDS)))
            for (one_s, all_s), taken in zip(seconds_of(nodes), seconds, strict=True):
                taken["one"].append(one_s)
                taken["all"].append(all_s)
            with threadpool_limits(len(device.lanes), user_api="blas"):
                for node, taken in zip(nodes, seconds, strict=True):
                    taken["blas"].append(_blas_seconds(node))
            time.sleep(SETTLE_S)
            if index == 0:
                for taken in seconds:
                    for values in taken.values():
                        values.clear()
    one, both = (max(column) for column in zip(*peaks, strict=True))
    rows = zip(cases, nodes, seconds, strict=True)
    return [
        _row(preset, batch_size * seq_len, case, node.parts, taken, one, both)
        for case, node, taken in rows
    ]


def _blas_seconds(alone: LoneNode) -> float:
    node = alone.case.node
    a, b = (x.reshape(-1, x.shape[-1]) for x in alone.inputs[:2])
    a = a.T if node.attrs.get("transpose_a") else a
    b = b.T if node.attrs.get("transpose_b") else b
    out = alone.outputs[0].reshape(len(a), -1)
    taken: list[float] = []
    for _ in range(alone.case.repeats):
        begin = time.perf_counter()
        np.matmul(a, b, out=out)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _row(
    preset: str,
    tokens: int,
    case: NodeCase,
    parts: int,
    seconds: dict[str, list[float]],
    peak_of_one: float,
    peak: float,
) -> GemmRow:
    node = case.node
    product, weight = describe_product(node)
    a, out = node.input_specs[0], node.output_specs[0]
    is_transposed = [bool(node.attrs.get(name)) for name in ("transpose_a", "transpose_b")]

    def rate(kind: str, peak: float) -> GemmRate:
        values = seconds[kind]
        median = statistics.median(values)
        flops_per_s = node.flops / median
        return GemmRate(
            median, min(values), max(values), flops_per_s / 1e9, share_of_peak=flops_per_s / peak
        )

    return GemmRow(
        preset,
        tokens,
        product,
        weight,
        bool(node.attrs.get("addend")),
        "".join("T" if transposed else "N" for transposed in is_transposed),
        out.rows,
        out.columns,
        a.rows if is_transposed[0] else a.columns,
        case.count,
        parts,
        one_lane=rate("one", peak_of_one),
        all_lanes=rate("all", peak if parts > 1 else peak_of_one),
        blas_threads=rate("blas", peak),
        gemm_peak_gflops_per_s=peak / 1e9,
        gemm_peak_of_one_lane_gflops_per_s=peak_of_one / 1e9,
    )


def describe_product(node: Node) -> tuple[str, str]:
    """Which product of a linear layer a node is, and the layer's weight without its block."""
    output = node.outputs[0].name
    if node.attrs.get("transpose_a"):
        product, weight = "dW", output.removeprefix("d:")
    else:
        product = "dX" if output.startswith("d:") else "forward"
        weight = node.inputs[1].name
    parts = weight.partition("#")[0].removesuffix(".weight").split(".")
    return product, ".".join(parts[2:] if parts[0] == "h" else parts)


def gemm_table(rows: Sequence[GemmRow]) -> Table:
    """The rows as a table for people: GFLOP/s, and sums over a training step."""
    table = Table("GFLOP/s", box=None, pad_edge=False, collapse_padding=True)
    headings = ("M x N x K", "", "1\nlane", "of\npeak", "all\nlanes", "min-\nmax", "of\npeak")
    for heading in (*headings, "BLAS\nthreads"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tokens in dict.fromkeys(row.tokens for row in rows):
        group = [row for row in rows if row.tokens == tokens]
        for row in group:
            one, both = row.one_lane, row.all_lanes
            least, most = (row.flops / s / 1e9 for s in (both.seconds_max, both.seconds_min))
            added = " +=" if row.has_addend and row.product != "forward" else ""
            table.add_row(
                f"{row.weight} {row.product}{added}",
                f"{row.m}x{row.n}x{row.k}",
                row.transposition,
                f"{one.gflops_per_s:.1f}",
                f"{one.share_of_peak:.0%}",
                f"{both.gflops_per_s:.1f}",
                f"{least:.0f}-{most:.0f}",
                f"{both.share_of_peak:.0%}",
                f"{row.blas_threads.gflops_per_s:.1f}",
            )
        table.add_row(*_sums(group), end_section=True)
    return table


def _sums(rows: Sequence[GemmRow]) -> list[str]:
    """All products of a training step together; the peak in the place of a spread."""
    flops = sum(row.count * row.flops for row in rows)
    first = rows[0]
    peak_of_one, peak = first.gemm_peak_of_one_lane_gflops_per_s, first.gemm_peak_gflops_per_s

    def reached(rates: Sequence[GemmRate]) -> float:
        times = zip(rows, rates, strict=True)
        return flops / sum(row.count * rate.seconds for row, rate in times) / 1e9

    one = reached([row.one_lane for row in rows])
    both = reached([row.all_lanes for row in rows])
    return [
        "all of them",
        f"{first.tokens} tokens",
        "",
        f"{one:.1f}",
        f"{one / peak_of_one:.0%}",
        f"{both:.1f}",
        f"of {peak:.0f}",
        f"{both / peak:.0%}",
        f"{reached([row.blas_threads for row in rows]):.1f}",
    ]
