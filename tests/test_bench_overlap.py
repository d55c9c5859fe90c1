"""What `bench overlap` makes of a trace: the ideal, and what is hidden."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from aieflow.devices.described import described_cpu, described_npu
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan
from aieflow.runtime.trace import Span, Trace
from aieflow.tools.bench_overlap import (
    OverlapRow,
    hidden_share,
    ideal_seconds,
    overlap_table,
    products_of,
)

CONFIG = RunConfig(model=PRESETS["mini"], batch_size=2, seq_len=16)


def plan() -> Plan:
    devices = {"cpu": described_cpu(1, 1 << 34), "npu": described_npu("npu1", 1, 1 << 34)}
    return place_on(products_of(CONFIG), devices, Placement("gemm-on-npu"))


def trace(*spans: tuple[str, float, float]) -> Trace:
    made = [Span(index, lane, "drawn", *times) for index, (lane, *times) in enumerate(spans)]
    return Trace(plan(), tuple(made), max(span.end_s for span in made))


def test_the_ideal_and_what_is_hidden() -> None:
    """
    cpu.compute.0  [ pack 0-2 ]      [ unpack 4-7   ]
    npu.copy.in          [1.5-2.5]
    npu.compute               [ 2-5     ][ 5.5-6 ]
    """
    drawn = trace(
        ("cpu.compute.0", 0, 2),
        ("npu.copy.in", 1.5, 2.5),
        ("npu.compute", 2, 5),
        ("npu.compute", 5.5, 6),
        ("cpu.compute.0", 4, 7),
    )
    assert ideal_seconds(drawn) == 5  # the CPU's lane
    assert hidden_share(drawn) == pytest.approx((0.5 + 1 + 0.5) / 6)
    assert hidden_share(trace(("npu.compute", 0, 1))) == 1


def test_the_graph_holds_the_products_of_a_training_step_and_packs_weights_no_more() -> None:
    graph = products_of(CONFIG)
    assert {node.op.name for node in graph.nodes} == {"matmul"}
    assert len(graph.nodes) == 3 * (4 * CONFIG.model.layers + 1)
    assert len(set(graph.states)) == 8 * CONFIG.model.layers + 1  # with biases
    packed = [node for node in plan().graph.nodes if node.op.name == "npu_pack"]
    assert packed
    assert not any(value.role == "parameter" for node in packed for value in node.inputs)


def test_the_table_fits_80_columns_and_is_cut_off_nowhere() -> None:
    row = OverlapRow(
        *("phoenix", 0.1, "124M", 4, 64, 2, 217),
        *(1.8304, 1.8161, 1.8492, 1.3003, 0.2124, 0.2125, 0.4634),
        host_lanes=1,
        emulated_ideal_s=1.3003,
        over_ideal=1.408,
        hidden=0.931,
    )
    shown = io.StringIO()
    console = Console(file=shown, width=80)
    console.print(overlap_table([row, replace(row, slots=3)]))
    title, head, *lines = (line.rstrip() for line in shown.getvalue().splitlines())
    assert "emulated" in title
    assert head.split() == [
        *("preset", "B", "x", "T", "NPU", "slots", "ms", "min", "-", "max"),
        *("compute", "CPU", "ideal", "over", "hidden"),
    ]
    figures = "0.1x {} 1830.4 1816.1 - 1849.2 1300.3 463.4 1300.3 1.41 93%"
    assert [" ".join(line.split()) for line in lines] == [
        f"124M 4 x 64 {figures.format(slots)}" for slots in (2, 3)
    ]
