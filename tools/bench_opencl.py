"""Measures the OpenCL device's matrix products against BLAS, core for core.

Each product of a training step runs on the OpenCL device, packing included, and in BLAS on one
thread, in turn. On a CPU under OpenCL what counts is processor time, summed over all threads, so
that the ratio says what a core does in either, however many there are; on a GPU it is wall time.
"""

import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.registry import cache_folder, open_device
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call
from aieflow.ops.matmul import MATMUL
from aieflow.ops.op import Array
from aieflow.runtime.binding import allocate_on
from aieflow.tools.bench_gemm import describe_product


@dataclass(frozen=True, slots=True)
class OpenClRow:
    """One product; seconds are medians, of processor time on a CPU under OpenCL."""

    device: str
    preset: str
    tokens: int
    product: str
    weight: str
    m: int
    n: int
    k: int
    seconds: float
    blas_seconds: float
    gflops_per_s: float
    share_of_blas: float  # median of the rounds' BLAS seconds / ours
    share_min: float
    share_max: float


def measure_opencl(
    device: CpuDevice, preset: str, batch_size: int, seq_len: int, rounds: int
) -> list[OpenClRow]:
    """Time every kind of product of the training step; `device` holds BLAS to one thread."""
    config = RunConfig(model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len)
    kinds: dict[object, Node] = {}
    for node in training_graph(config).nodes:
        if node.op is MATMUL:
            a, b = node.input_specs[:2]
            key = a.rows, a.columns, b.rows, b.columns, *_transposes(node)
            kinds.setdefault(key, node)
    with closing(open_device("igpu", cache=cache_folder())) as igpu:
        is_cpu = "OpenCL on the CPU" in igpu.identity
        clock = time.process_time if is_cpu else time.perf_counter
        return [
            _measure(igpu, node, preset, batch_size * seq_len, rounds, clock)
            for node in kinds.values()
        ]


def _measure(
    igpu: Device,
    node: Node,
    preset: str,
    tokens: int,
    rounds: int,
    clock: Callable[[], float],
) -> OpenClRow:
    bare = Node(node.name, MATMUL, node.inputs[:2], node.outputs, _transposing(node))
    rng = np.random.default_rng(0)
    operands: list[Array] = []
    owned: list[Array] = []
    for spec in (*bare.input_specs, *bare.output_specs):
        data = allocate_on(igpu, spec.nbytes)
        owned.append(data)
        array: Array = data.view(np.float32).reshape(-1, spec.columns)
        rng.standard_normal(out=array, dtype=np.float32)
        igpu.transfer(data, "in")
        operands.append(array)
    workspace = allocate_on(igpu, max(1, igpu.kernels["matmul"].workspace(bare)))
    call = Call((operands[0], operands[1]), (operands[2],), bare.attrs, workspace)
    begin, finish = igpu.bind(bare, call), igpu.finish(igpu.lanes[0])
    assert finish is not None
    a = operands[0].T if bare.attrs.get("transpose_a") else operands[0]
    b = operands[1].T if bare.attrs.get("transpose_b") else operands[1]
    out = np.empty_like(operands[2])
    ours, blas = [], []
    for _ in range(rounds + 1):
        start = clock()
        begin()
        finish()
        middle = clock()
        np.matmul(a, b, out=out)
        blas.append(clock() - middle)
        ours.append(middle - start)
    for data in (*owned, workspace):
        igpu.disown(data)
    ratios = [theirs / own for theirs, own in zip(blas[1:], ours[1:], strict=True)]
    product, weight = describe_product(node)
    seconds = statistics.median(ours[1:])
    return OpenClRow(
        igpu.identity,
        preset,
        tokens,
        product,
        weight,
        m=out.shape[0],
        n=out.shape[1],
        k=a.shape[1],
        seconds=seconds,
        blas_seconds=statistics.median(blas[1:]),
        gflops_per_s=bare.flops / seconds / 1e9,
        share_of_blas=statistics.median(ratios),
        share_min=min(ratios),
        share_max=max(ratios),
    )


def _transposes(node: Node) -> tuple[bool, bool]:
    return bool(node.attrs.get("transpose_a")), bool(node.attrs.get("transpose_b"))


def _transposing(node: Node) -> dict[str, int]:
    """The options of a node that its bare product keeps."""
    names = ("transpose_a", "transpose_b")
    return {name: 1 for name, on in zip(names, _transposes(node), strict=True) if on}


def opencl_table(rows: list[OpenClRow]) -> Table:
    """The rows as a table for people."""
    title = f"{rows[0].device}: GFLOP/s of one core, beside BLAS on one thread" if rows else ""
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading in ("product", "M x N x K", "GFLOP/s", "of BLAS", "min - max"):
        table.add_column(heading, justify="left" if heading == "product" else "right")
    for row in rows:
        table.add_row(
            f"{row.preset} {row.weight} {row.product}",
            f"{row.m} x {row.n} x {row.k}",
            f"{row.gflops_per_s:.1f}",
            f"{row.share_of_blas:.2f}",
            f"{row.share_min:.2f} - {row.share_max:.2f}",
        )
    return table
