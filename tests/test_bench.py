import json
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.spec import Spec
from aieflow.runtime.placement import place
from aieflow.tools import bench_gemm, bench_ops, bench_overhead
from aieflow.tools.bench_node import LoneNode, NodeCase, distinct_cases, values


class Result(Protocol):
    """What a command left."""

    code: int
    out: str
    err: str


class Command(Protocol):
    """The command line in this process."""

    def __call__(self, *arguments: object) -> Result: ...


SMALL = ("--preset", "mini", "--batch-size", "1", "--seq-len", "16", "--rounds", "1")
TWO_LANES = ("--lanes", "2")
B, T, C, V, LAYERS = 1, 16, 192, 1024, 4  # of the above


def gemm_rate(device: CpuDevice, rounds: int = 5) -> float:
    return len(device.lanes) * 1e9


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second is spent on this computer's rates or on letting threads fall asleep."""
    monkeypatch.setattr(bench_gemm, "measure_gemm_rate", gemm_rate)
    monkeypatch.setattr(bench_ops, "BANDWIDTH_SPEC", Spec((256, 64)))
    monkeypatch.setattr(bench_gemm, "SETTLE_S", 0)
    monkeypatch.setattr(bench_ops, "SETTLE_S", 0)


def run(aieflow: Command, tmp_path: Path, *arguments: object) -> tuple[str, dict[str, Any]]:
    """The printed table, and the saved object."""
    file = tmp_path / "figures.json"
    result = aieflow("bench", *arguments, *TWO_LANES, "--json", file)
    assert (result.code, result.err) == (0, f"saved {file}\n")
    return result.out, json.loads(file.read_text(encoding="utf-8"))


def small_cases(dropout: float = 0.0) -> list[NodeCase]:
    config = RunConfig(model=PRESETS["mini"], batch_size=B, seq_len=T, steps=1, dropout=dropout)
    with closing(CpuDevice(2)) as device:
        return distinct_cases(place(training_graph(config), device))


def test_gemm_times_every_product_of_a_training_step(aieflow: Command, tmp_path: Path) -> None:
    out, report = run(aieflow, tmp_path, "gemm", *SMALL)
    assert report["benchmark"] == "gemm"
    assert report["threads"] == 2
    assert report["rounds"] == 1
    assert set(report["versions"]) >= {"python", "aieflow", "numpy", "numba"}
    assert report["machine"]["cpu"]
    rows = {(row["weight"], row["product"]): row for row in report["rows"]}
    assert len(rows) == len(report["rows"]) == 15
    sizes = {
        "attn.c_attn": (C, 3 * C),
        "attn.c_proj": (C, C),
        "mlp.c_fc": (C, 4 * C),
        "mlp.c_proj": (4 * C, C),
    }
    for weight, (wide, out_) in sizes.items():
        shapes = {
            "forward": ("NN", T, out_, wide),
            "dX": ("NT", T, wide, out_),
            "dW": ("TN", wide, out_, T),
        }
        for product, shape in shapes.items():
            row = rows[weight, product]
            assert (row["transposition"], row["m"], row["n"], row["k"]) == shape
            assert row["count"] == LAYERS
    head = {
        "forward": ("NT", T, V, C),
        "dX": ("NN", T, C, V),
        "dW": ("TN", V, C, T),
    }
    for product, shape in head.items():
        row = rows["wte", product]
        assert (row["transposition"], row["m"], row["n"], row["k"]) == shape
        assert row["count"] == 1
    for row in report["rows"]:
        for way, peak in (("one_lane", 1), ("all_lanes", row["lanes"]), ("blas_threads", 2)):
            rate = row[way]
            assert 0 < rate["seconds_min"] <= rate["seconds"] <= rate["seconds_max"]
            flops = 2 * row["m"] * row["n"] * row["k"]
            assert rate["gflops_per_s"] == pytest.approx(flops / rate["seconds"] / 1e9)
            assert rate["share_of_peak"] == pytest.approx(rate["gflops_per_s"] / peak)
    lines = out.splitlines()
    assert sum("wte forward" in line and f"{T}x{V}x{C}" in line for line in lines) == 1
    assert lines[-1].startswith("all of them")
    assert f"{T} tokens" in lines[-1]
    assert max(map(len, lines)) <= 80


def test_ops_times_every_other_op(aieflow: Command, tmp_path: Path) -> None:
    out, report = run(aieflow, tmp_path, "ops", *SMALL)
    rows = report["rows"]
    counted = Counter(row["op"] for row in rows)
    expected = {case.node.op.name for case in small_cases()} - {"matmul"} | {"dropout"}
    assert set(counted) == expected
    assert max(counted.values()) <= bench_ops.KEPT
    for row in rows:
        for way in ("one_lane", "all_lanes"):
            assert 0 < row[way]["seconds_min"] <= row[way]["seconds"] <= row[way]["seconds_max"]
        assert row["nbytes"] > 0
        assert row["count"] > 0
        assert row["lanes"] in (1, 2)
        assert row["bytes_per_s"] == pytest.approx(row["nbytes"] / row["all_lanes"]["seconds"])
        share = row["bytes_per_s"] / row["bandwidth_bytes_per_s"]
        assert row["share_of_bandwidth"] == pytest.approx(share)
        assert (row["torch"], row["ratio"], row["torch_version"]) == (None, None, None)
    assert len({row["bandwidth_bytes_per_s"] for row in rows}) == 2  # of one lane, of two
    assert all(f"{row['op']} " in out for row in rows)
    assert max(map(len, out.splitlines())) <= 80


def test_bytes_of_an_embedding_are_those_of_the_rows_used() -> None:
    nodes = {case.node.op.name: case.node for case in small_cases()}
    rows = 4 * B * T * C
    assert bench_ops.least_nbytes(nodes["embedding"]) == 4 * B * T + 3 * rows
    assert bench_ops.least_nbytes(nodes["embedding_backward_tokens"]) == 4 * B * T + 3 * rows
    assert bench_ops.least_nbytes(nodes["gelu"]) == 2 * 4 * rows


PEER = """#!{python}
import json, sys
own_folder_first = sys.argv[1] != "-P"  # where our `profile` would hide Python's from PyTorch
print(json.dumps({{"version": "shadowed" if own_folder_first else "0.0"}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    seconds = None if asked["op"] == "mean" else 2.0 + asked["case"]
    print(json.dumps({{"seconds": seconds}}), flush=True)
"""


def interpreter(path: Path, text: str) -> Path:
    """A program that stands for the peer's Python: it gets the peer's script as an argument."""
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_ops_beside_a_peer(aieflow: Command, tmp_path: Path) -> None:
    python = interpreter(tmp_path / "python", PEER.format(python=sys.executable))
    peer = ("--peer", "torch", "--peer-python", python)
    out, report = run(aieflow, tmp_path, "ops", *SMALL, *peer)
    assert len(report["rows"]) > 10
    for case, row in enumerate(report["rows"]):
        assert row["torch_version"] == "0.0"
        if row["op"] == "mean":
            assert row["torch"] is None
            assert row["ratio"] is None
        else:
            assert row["torch"]["seconds"] == 2.0 + case
            assert row["ratio"] == row["all_lanes"]["seconds"] / (2.0 + case)
    (line,) = (line for line in out.splitlines() if line.startswith("attention "))
    case = [row["op"] for row in report["rows"]].index("attention")
    assert line.split()[-2] == f"{2000 + 1000 * case}.00"


def test_overhead_times_nodes_and_edges(
    aieflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_overhead, "NODES", 40)
    out, report = run(aieflow, tmp_path, "overhead", "--rounds", "2")
    facts = [
        (row["graph"], row["lanes"], row["nodes"], row["edges"], row["is_traced"], row["per"])
        for row in report["rows"]
    ]
    assert facts == [
        ("chain", 1, 40, 0, False, "node"),
        ("chain", 1, 40, 0, True, "node"),
        ("side by side", 2, 40, 0, False, "node"),
        ("side by side", 2, 40, 0, True, "node"),
        ("alternating chain", 2, 40, 39, False, "edge"),
        ("alternating chain", 2, 40, 39, True, "edge"),
    ]
    for row in report["rows"]:
        assert 0 < row["us_min"] <= row["us"] <= row["us_max"]
    assert [line.split("  ")[0] for line in out.splitlines()[1:]] == [
        str(row["graph"]) for row in report["rows"]
    ]
    assert max(map(len, out.splitlines())) <= 80


def test_overhead_of_one_lane_has_no_edges(
    aieflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_overhead, "NODES", 10)
    result = aieflow("bench", "overhead", "--rounds", "1", "--lanes", "1")
    assert result.code == 0
    assert "alternating" not in result.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "bench nothing: must be one of train, memory, "),
        (("gemm", "--rounds", "0"), "--rounds = 0: must be at least 1"),
        (("ops", "--rounds", "-3"), "--rounds = -3: must be at least 1"),
        (("gemm", "--preset", "tiny"), "--preset tiny: must be one of mini, "),
        (("ops", "--seq-len", "16"), "--batch-size and --seq-len go with a --preset"),
        (("overhead", "--preset", "mini"), "bench overhead: takes no --preset"),
        (("gemm", "--peer", "torch"), "--peer torch: goes with bench train and bench ops"),
    ],
)
def test_misuse_ends_in_a_message(
    aieflow: Command, arguments: tuple[str, ...], message: str
) -> None:
    result = aieflow("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert "Traceback" not in result.err


def test_a_peer_that_cannot_start_ends_in_a_message(aieflow: Command, tmp_path: Path) -> None:
    peer = ("bench", "ops", *SMALL, *TWO_LANES, "--peer", "torch", "--peer-python")
    result = aieflow(*peer, tmp_path / "absent")
    assert (result.code, result.out) == (2, "")
    assert f"--peer-python {tmp_path / 'absent'}: No such file or directory" in result.err
    result = aieflow(*peer, interpreter(tmp_path / "python", "#!/bin/sh\nexit 1\n"))
    assert (result.code, result.out) == (2, "")
    assert "--peer torch: " in result.err
    assert "pip install 'aieflow[bench]'" in result.err


def test_short_nodes_are_repeated() -> None:
    repeats = {case.node.op.name: case.repeats for case in small_cases()}
    assert repeats["gelu"] == 30
    config = RunConfig(model=PRESETS["124M"], batch_size=1, seq_len=256, steps=1)
    with closing(CpuDevice(2)) as device:
        large = distinct_cases(place(training_graph(config), device))
    flops = {case.node.flops: case.repeats for case in large if case.node.op.name == "matmul"}
    assert flops[2 * 256 * 768 * 50257] == 1
    assert flops[2 * 256 * 768 * 768] == 24


def test_nodes_that_differ_in_their_random_bits_are_one_case() -> None:
    counts = [case.count for case in small_cases(0.1) if case.node.op.name == "dropout"]
    assert sum(counts) == 2 + 4 * LAYERS  # of the embedding and two projections, forward, backward
    assert len(counts) == 3  # in place with and without an addend, and into new memory


def test_a_lone_node_computes_what_its_op_does_in_the_memory_that_the_plan_gives() -> None:
    cases = {
        (case.node.op.name, len(case.node.inputs), bool(case.node.attrs.get("transpose_a"))): case
        for case in small_cases()
    }
    for name, inputs, parts, in_place in (
        ("matmul", 3, 2, {}),
        ("gelu", 1, 1, {}),
        ("gelu_backward", 2, 1, {0: 1}),
        ("layernorm_backward", 6, 1, {0: 5}),
        ("cross_entropy_gradient", 2, 1, {1: 0}),
        ("adamw", 6, 2, {0: 0, 1: 2, 2: 3}),
    ):
        case = cases[name, inputs, False]
        assert case.in_place == in_place
        with closing(CpuDevice(2)) as device, closing(LoneNode(case, device, V)) as node:
            lanes = {each: node.executors[each].plan.steps[-1].lane for each in (True, False)}
            assert node.parts == parts
            last = device.lanes[parts - 1]
            assert lanes == {True: last, False: device.lanes[0]}
            for divided in (True, False):
                assert node.seconds(divided) > 0
                for output, value in enumerate(expected(node)):
                    np.testing.assert_allclose(node.outputs[output], value, rtol=2e-3, atol=2e-4)
                    source = in_place.get(output)
                    assert [np.shares_memory(node.outputs[output], x) for x in node.inputs] == [
                        place_ == source for place_ in range(len(node.inputs))
                    ]


def expected(node: LoneNode) -> tuple[np.ndarray[Any, Any], ...]:
    """What the reference makes of the values that a run begins with."""
    case = node.case
    inputs = [values(spec, V) for spec in case.node.input_specs]
    outputs: tuple[np.ndarray[Any, Any], ...] = ()
    for _ in range(case.repeats):
        outputs = case.node.op.reference(tuple(inputs), case.node.attrs)
        for output, source in case.in_place.items():
            inputs[source] = outputs[output]
    return outputs
