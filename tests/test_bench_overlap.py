"""What `bench overlap` makes of a trace: the ideal, and what is hidden."""

import pytest

from aieflow.devices.described import described_cpu, described_npu
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan
from aieflow.runtime.trace import Span, Trace
from aieflow.tools.bench_overlap import hidden_share, ideal_seconds, products_of

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
