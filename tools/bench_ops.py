"""Measures every op of a training step but the products: time, traffic, and PyTorch's time.

Bytes are the least that an op must move: each operand once, of tables the rows that tokens name.
They are held against memory's bandwidth, the best of x += y on large tensors in each round; what
lies in cache goes faster. Ops that only a training step with dropout has are taken from such a
one. Of the cases of an op (shapes, options) those that move most in a training step are kept.
"""

import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node
from aieflow.ops.pointwise import ADD
from aieflow.ops.spec import Spec
from aieflow.runtime.placement import place
from aieflow.tools.bench_node import SETTLE_S, LoneNode, NodeCase, distinct_cases, seconds_of
from aieflow.tools.peer import PeerProcess

KEPT = 2  # cases of each op
DROPOUT = 0.1
BANDWIDTH_SPEC = Spec((32768, 1024))  # 134 MB
TABLE_ROWS = {"embedding": 0, "embedding_backward_tokens": 1}  # op -> the input like the rows used


@dataclass(frozen=True, slots=True)
class OpTime:
    """Seconds of one way of doing an op."""

    seconds: float  # median
    seconds_min: float
    seconds_max: float


@dataclass(frozen=True, slots=True)
class OpRow:
    """One op on operands of one kind."""

    preset: str
    op: str
    shape: tuple[int, ...]  # of the largest operand but tables
    inputs: tuple[str, ...]
    count: int  # in one training step
    lanes: int  # that the training step divides it over
    nbytes: int  # the least that it moves
    flops: int
    one_lane: OpTime
    all_lanes: OpTime
    bytes_per_s: float  # on all lanes
    bandwidth_bytes_per_s: float  # of memory, on as many lanes
    share_of_bandwidth: float
    gflops_per_s: float
    torch_version: str | None
    torch: OpTime | None
    ratio: float | None  # all_lanes to torch


class TorchOps(PeerProcess):
    """PyTorch in a child process, which times an op when asked; a context manager."""

    def __init__(self, python: Path, threads: int) -> None:
        super().__init__(python, "peer_ops.py", ["--threads", threads])

    def seconds(self, number: int, case: NodeCase, integers_below: int) -> float | None:
        """Seconds of PyTorch's equivalent of a case, the median of as many repeats as ours.

        None where it has none. Cases are told apart by their numbers.
        """
        node = case.node
        asked = {
            "case": number,
            "repeats": case.repeats,
            "op": node.op.name,
            "inputs": [(spec.shape, spec.dtype) for spec in node.input_specs],
            "attrs": dict(node.attrs),
            "integers_below": integers_below,
        }
        seconds = self.ask(json.dumps(asked))["seconds"]
        return None if seconds is None else float(seconds)


def measure_ops(
    device: CpuDevice,
    preset: str,
    batch_size: int,
    seq_len: int,
    rounds: int,
    peer_python: Path | None = None,
) -> list[OpRow]:
    """Time the ops of the training step of B sequences of T tokens.

    With `peer_python`, the interpreter of PyTorch, its ops take turns with ours, round by round.
    Raises InputError where it cannot be started.
    """
    config = RunConfig(model=PRESETS[preset], batch_size=batch_size, seq_len=seq_len, steps=1)
    cases = op_cases(config, device)
    vocab_size = config.model.vocab_size
    bandwidth = {False: 0.0, True: 0.0}
    with ExitStack() as opened:
        peer = None
        if peer_python is not None:
            peer = opened.enter_context(TorchOps(peer_python, len(device.lanes)))
        nodes = [LoneNode(case, device, vocab_size) for case in cases]
        for node in nodes:
            opened.callback(node.close)
        memory = LoneNode(_bandwidth_case(), device, vocab_size)
        opened.callback(memory.close)
        ours: list[list[tuple[float, float]]] = [[] for _ in cases]
        theirs: list[list[float]] = [[] for _ in cases]
        for index in range(rounds + 1):  # the first warms up
            for divided in bandwidth:
                reached = memory.case.node.nbytes / memory.seconds(divided)
                bandwidth[divided] = max(bandwidth[divided], reached)
            for seconds, pairs in zip(seconds_of(nodes), ours, strict=True):
                if index:
                    pairs.append(seconds)
            if peer is not None:
                for number, (case, taken) in enumerate(zip(cases, theirs, strict=True)):
                    answer = peer.seconds(number, case, vocab_size)
                    if index and answer is not None:
                        taken.append(answer)
                time.sleep(SETTLE_S)
    version = None if peer is None else peer.version
    return [
        _row(preset, case, node.parts, seconds, bandwidth[node.parts > 1], version, taken)
        for case, node, seconds, taken in zip(cases, nodes, ours, theirs, strict=True)
    ]


def op_cases(config: RunConfig, device: CpuDevice) -> list[NodeCase]:
    """The cases that are timed, those of one op together."""
    plain = distinct_cases(place(training_graph(config), device))
    dropped = distinct_cases(place(training_graph(replace(config, dropout=DROPOUT)), device))
    known = {case.node.op.name for case in plain} | {"matmul"}
    cases = [case for case in plain if case.node.op.name != "matmul"]
    cases += [case for case in dropped if case.node.op.name not in known]
    by_op: dict[str, list[NodeCase]] = {}
    for case in cases:
        by_op.setdefault(case.node.op.name, []).append(case)
    kept: list[NodeCase] = []
    for group in by_op.values():
        kept += sorted(group, key=lambda case: -case.count * least_nbytes(case.node))[:KEPT]
    return kept


def least_nbytes(node: Node) -> int:
    """Bytes that a node must move: every operand once, of tables the rows used."""
    at = TABLE_ROWS.get(node.op.name)
    if at is None:
        return node.nbytes
    rows = node.input_specs[at].nbytes
    if node.op.name == "embedding":
        return rows + 3 * node.output_specs[0].nbytes  # token and position rows, and their sum
    has_addend = len(node.inputs) == 3
    return node.input_specs[0].nbytes + (3 * rows if has_addend else node.output_specs[0].nbytes)


def _bandwidth_case() -> NodeCase:
    """A sum in place on tensors that no cache holds: all its traffic counts, unlike a copy's."""
    builder = Builder("bandwidth")
    inputs = [builder.feed(name, BANDWIDTH_SPEC) for name in "xy"]
    builder.apply(ADD, inputs, ["sum"])
    return NodeCase(builder.nodes[0], 0, {0: 0})


def _shape(node: Node) -> tuple[int, ...]:
    specs = (*node.input_specs, *node.output_specs)
    if node.op.name == "embedding":
        return node.output_specs[0].shape
    if node.op.name in TABLE_ROWS:
        return node.input_specs[TABLE_ROWS[node.op.name]].shape
    return max(specs, key=lambda spec: spec.size).shape


def _time(seconds: Sequence[float]) -> OpTime:
    return OpTime(statistics.median(seconds), min(seconds), max(seconds))


def _row(
    preset: str,
    case: NodeCase,
    parts: int,
    ours: Sequence[tuple[float, float]],
    bandwidth: float,
    version: str | None,
    theirs: Sequence[float],
) -> OpRow:
    node = case.node
    one, both = zip(*ours, strict=True)
    nbytes, median = least_nbytes(node), statistics.median(both)
    peer = _time(theirs) if theirs else None
    return OpRow(
        preset,
        node.op.name,
        _shape(node),
        tuple(str(spec) for spec in node.input_specs),
        case.count,
        parts,
        nbytes,
        node.flops,
        one_lane=_time(one),
        all_lanes=_time(both),
        bytes_per_s=nbytes / median,
        bandwidth_bytes_per_s=bandwidth,
        share_of_bandwidth=nbytes / median / bandwidth,
        gflops_per_s=node.flops / median / 1e9,
        torch_version=version,
        torch=peer,
        ratio=None if peer is None else median / peer.seconds,
    )


def ops_table(rows: Sequence[OpRow]) -> Table:
    """The rows as a table for people; times in milliseconds."""
    table = Table("ms", box=None, pad_edge=False, collapse_padding=True)
    headings = ("operand", "1\nlane", "all\nlanes", "GB/s", "of\nmemory", "torch", "ratio")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.op,
            "x".join(map(str, row.shape)),
            _ms(row.one_lane),
            _ms(row.all_lanes),
            f"{row.bytes_per_s / 1e9:.1f}",
            f"{row.share_of_bandwidth:.0%}",
            "-" if row.torch is None else _ms(row.torch),
            "-" if row.ratio is None else f"{row.ratio:.2f}",
        )
    return table


def _ms(taken: OpTime) -> str:
    return f"{taken.seconds * 1e3:.2f}"
