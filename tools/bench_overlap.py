"""Measures how far transfers hide behind compute on an emulated NPU, with one, two or three slots.

The graph holds every matrix product of a training step, as independent nodes: their operands are
there, their results are dropped. So nothing but slots and lanes decides what runs beside what.
Weights lie packed on the NPU; activations and gradients are packed, synced, and their products
synced back and unpacked, by this computer's CPU and in wall time. The NPU is emulated and paced:
its commands and syncs take as long as the described machine's, and multiply nothing, for that would
take the CPU from the packing.

The ideal is the busiest lane of all: the NPU's, one of the two for syncs, or one of the CPU's. What
is hidden is the share of all syncs, packs and unpacks during which the NPU computes.
"""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph, Value
from aieflow.ops.matmul import MATMUL
from aieflow.ops.op import Array
from aieflow.ops.spec import Spec
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.schedule import device_of
from aieflow.runtime.trace import Trace, overlapped
from aieflow.tools.emulation import emulated_xrt, open_emulated_npu

SLOTS = (1, 2, 3)
NPU = "npu.compute"
MACHINE = "phoenix"
RATES = (1.0, 0.1)  # of the described NPU's GEMM; at the second compute takes longer than transfers


@dataclass(frozen=True, slots=True)
class OverlapRow:
    """The figures of one number of slots; seconds are medians of one run of all products."""

    machine: str  # described; its NPU is emulated and paced
    npu_rate: float  # its GEMM rate is so many times the described one
    preset: str
    batch_size: int
    seq_len: int
    slots: int
    products: int
    emulated_seconds: float  # wall
    emulated_seconds_min: float
    emulated_seconds_max: float
    emulated_compute_s: float  # of the lane npu.compute: commands
    emulated_in_s: float  # of the lane npu.copy.in: syncs
    emulated_out_s: float  # of the lane npu.copy.out: syncs
    host_s: float  # of the CPU's busiest lane: packs and unpacks
    host_lanes: int
    emulated_ideal_s: float  # the longest of the four
    over_ideal: float  # emulated_seconds / emulated_ideal_s
    hidden: float  # share of syncs, packs and unpacks that ran while the NPU computed


def products_of(config: RunConfig) -> Graph:
    """The matrix products of a training step, each on its own."""
    builder = Builder(f"products of a training step, B={config.batch_size}, T={config.seq_len}")
    given: dict[str, Value] = {}

    def operand(value: Value, place: int) -> Value:
        if value.role == "parameter":
            if value.name not in given:
                given[value.name] = builder.state(value.name, value.spec, "parameter")
            return given[value.name]
        name = f"operand.{place}.{'x'.join(map(str, value.spec.shape))}"
        if name not in given:
            given[name] = builder.feed(name, Spec(value.spec.shape))
        return given[name]

    for node in training_graph(config).nodes:
        if node.op is MATMUL:
            operands = [operand(value, place) for place, value in enumerate(node.inputs)]
            builder.apply(MATMUL, operands, [node.outputs[0].name], node.attrs)
    return builder.finish([])


def measure_overlap(
    device: CpuDevice, preset: str, batch_size: int, seq_len: int, rounds: int
) -> list[OverlapRow]:
    """Run all products `rounds` times with each number of slots, in turn, at each rate."""
    return [
        row for rate in RATES for row in _measure(device, preset, batch_size, seq_len, rounds, rate)
    ]


def _measure(
    device: CpuDevice, preset: str, batch_size: int, seq_len: int, rounds: int, rate: float
) -> list[OverlapRow]:
    config = RunConfig(model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len)
    graph = products_of(config)
    profile = load_machine(MACHINE).with_value("npu.gemm_flops_per_s", f"{rate}x")
    emulator = emulated_xrt(profile, "paced")
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        value.name: rng.standard_normal(value.spec.shape, np.float32) for value in graph.feeds
    }
    traces: dict[int, list[Trace]] = {slots: [] for slots in SLOTS}
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_emulated_npu(profile, Path(folder), emulator)) as npu,
    ):
        emulator.array.multiplies = False
        devices = {device.name: device, npu.name: npu}
        states = allocate_states(graph, devices)
        for slots in SLOTS * (1 + rounds):
            plan = place_on(graph, devices, Placement("gemm-on-npu", slots=slots))
            with Executor(plan, devices, states) as executor:
                executor.run(feeds)
                trace = executor.run(feeds, traced=True)
            assert trace is not None
            traces[slots].append(trace)
    return [
        _row((preset, batch_size, seq_len), rate, slots, len(graph.nodes), each[1:])
        for slots, each in traces.items()
    ]


def _row(
    case: tuple[str, int, int], rate: float, slots: int, products: int, traces: list[Trace]
) -> OverlapRow:
    def median(figure: Callable[[Trace], float]) -> float:
        return statistics.median(map(figure, traces))

    seconds = [trace.seconds for trace in traces]
    return OverlapRow(
        MACHINE,
        rate,
        *case,
        slots,
        products,
        statistics.median(seconds),
        min(seconds),
        max(seconds),
        emulated_compute_s=median(lambda trace: trace.busy_seconds(NPU)),
        emulated_in_s=median(lambda trace: trace.busy_seconds("npu.copy.in")),
        emulated_out_s=median(lambda trace: trace.busy_seconds("npu.copy.out")),
        host_s=median(lambda trace: max(map(trace.busy_seconds, _host_lanes(trace)))),
        host_lanes=len(_host_lanes(traces[0])),
        emulated_ideal_s=median(ideal_seconds),
        over_ideal=median(lambda trace: trace.seconds / ideal_seconds(trace)),
        hidden=median(hidden_share),
    )


def ideal_seconds(trace: Trace) -> float:
    """The seconds of the busiest lane."""
    return max(map(trace.busy_seconds, trace.plan.lanes))


def hidden_share(trace: Trace) -> float:
    """The share of all other lanes' seconds during which the NPU computes; 1 of nothing."""
    hidden, total = overlapped(
        [(span.start_s, span.end_s) for span in trace.spans if span.lane != NPU],
        [(span.start_s, span.end_s) for span in trace.spans if span.lane == NPU],
    )
    return hidden / total if total else 1.0


def _host_lanes(trace: Trace) -> list[str]:
    return [lane for lane in trace.plan.lanes if device_of(lane) == "cpu"]


def overlap_table(rows: list[OverlapRow]) -> Table:
    """The rows as a table for people, of 80 columns; `--json` has the lanes for syncs, too."""
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title="ms; NPU emulated and paced; packs and unpacks are this computer's",
        title_justify="left",
    )
    headings = ("preset B x T", "NPU", "slots", "ms", "min - max", "compute", "CPU", "ideal")
    for heading in (*headings, "over", "hidden"):
        table.add_column(heading, justify="left" if "B x T" in heading else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.preset} {row.batch_size} x {row.seq_len}",
            f"{row.npu_rate:g}x",
            str(row.slots),
            f"{row.emulated_seconds * 1e3:.1f}",
            f"{row.emulated_seconds_min * 1e3:.1f} - {row.emulated_seconds_max * 1e3:.1f}",
            *(
                f"{each * 1e3:.1f}"
                for each in (row.emulated_compute_s, row.host_s, row.emulated_ideal_s)
            ),
            f"{row.over_ideal:.2f}",
            f"{row.hidden:.0%}",
        )
    return table
