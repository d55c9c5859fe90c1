"""Measures what a node and an edge between lanes cost, by nodes that do nothing.

Three graphs of empty nodes: a chain on one lane (the cost of a node), nodes side by side on all
lanes without edges, and a chain whose nodes alternate between two lanes (the cost of an edge).
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from rich.table import Table

from aieflow.devices.base import Buffer, Device
from aieflow.devices.cpu import CpuDevice
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph, Node
from aieflow.ops.kernel import Call, HostKernel
from aieflow.ops.op import Op
from aieflow.ops.spec import Spec
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.plan import compile_plan
from aieflow.runtime.schedule import Schedule

NODES = 10_000
ONE = Spec((1,))


def _nothing() -> None:
    """The whole work of an empty node."""


# It updates a state, so that many nodes need no place in the arena.
EMPTY = Op(
    "empty",
    lambda inputs, attrs: inputs,
    lambda inputs, outputs, attrs: 0,
    lambda inputs, attrs: inputs,
    updates={0: 0},
)
EMPTY_KERNEL = HostKernel("nothing", EMPTY, lambda call: _nothing)


class EmptyDevice(Device):
    """The CPU's lanes and memory, with a kernel for empty nodes alone."""

    def __init__(self, cpu: CpuDevice) -> None:
        self._cpu = cpu

    @property
    def name(self) -> str:
        """`cpu`."""
        return self._cpu.name

    @property
    def identity(self) -> str:
        """The CPU's."""
        return self._cpu.identity

    @property
    def lanes(self) -> tuple[str, ...]:
        """The CPU's."""
        return self._cpu.lanes

    @property
    def kernels(self) -> Mapping[str, HostKernel]:
        """The one that does nothing."""
        return {EMPTY.name: EMPTY_KERNEL}

    def allocate(self, nbytes: int) -> Buffer:
        """Host memory."""
        return self._cpu.allocate(nbytes)

    def free_nbytes(self) -> int:
        """The CPU's."""
        return self._cpu.free_nbytes()

    def bind(self, node: Node, call: Call) -> Callable[[], None]:
        """The call that does nothing."""
        return EMPTY_KERNEL.bind(call)

    def close(self) -> None:
        """Nothing: the CPU is its owner's to close."""


@dataclass(frozen=True, slots=True)
class OverheadRow:
    """One graph of empty nodes, traced or not; microseconds are those of a node or of an edge."""

    graph: str
    lanes: int
    nodes: int
    edges: int
    is_traced: bool
    per: str  # what the microseconds are divided by: node or edge
    us: float  # median
    us_min: float
    us_max: float


def measure_overhead(device: CpuDevice, rounds: int) -> list[OverheadRow]:
    """Time `rounds` runs of each graph, traced and not, in turn; needs two lanes for edges."""
    empty = EmptyDevice(device)
    lanes = device.lanes
    graphs = {"chain": (_chain(), lanes[:1]), "side by side": (_side_by_side(), lanes)}
    if len(lanes) > 1:
        graphs["alternating chain"] = (_chain(), lanes[:2])
    with ExitStack() as opened:
        executors = {
            name: opened.enter_context(_open(graph, empty, chosen))
            for name, (graph, chosen) in graphs.items()
        }
        seconds: dict[tuple[str, bool], list[float]] = {}
        for index in range(rounds + 1):  # the first warms up
            for name, executor in executors.items():
                for is_traced in (False, True):
                    taken = _seconds(executor, is_traced)
                    if index:
                        seconds.setdefault((name, is_traced), []).append(taken)
        return [
            _row(name, executors[name], is_traced, values)
            for (name, is_traced), values in seconds.items()
        ]


def _chain() -> Graph:
    builder = Builder("chain of empty nodes")
    value = builder.state("start", ONE, "cache")
    for place in range(NODES):
        (value,) = builder.apply(EMPTY, [value], [f"link.{place}"])
    return builder.finish([value])


def _side_by_side() -> Graph:
    builder = Builder("empty nodes side by side")
    for place in range(NODES):
        builder.apply(EMPTY, [builder.state(f"start.{place}", ONE, "cache")], [f"side.{place}"])
    return builder.finish([])


def _open(graph: Graph, device: Device, lanes: tuple[str, ...]) -> Executor:
    """An executor that takes the lanes in turn, node by node."""
    placements = tuple((lanes[index % len(lanes)],) for index in range(len(graph.nodes)))
    schedule = Schedule("in turn", lanes, placements)
    plan = compile_plan(graph, schedule, {device.name: device.kernels})
    return Executor(plan, {device.name: device}, allocate_states(graph, device))


def _seconds(executor: Executor, is_traced: bool) -> float:
    begin = time.perf_counter()
    executor.run({}, is_traced)
    return time.perf_counter() - begin


def _row(name: str, executor: Executor, is_traced: bool, seconds: Sequence[float]) -> OverheadRow:
    plan = executor.plan
    count = plan.edges or len(plan.steps)
    us = [1e6 * each / count for each in seconds]
    return OverheadRow(
        name,
        len(plan.lanes),
        len(plan.steps),
        plan.edges,
        is_traced,
        per="edge" if plan.edges else "node",
        us=statistics.median(us),
        us_min=min(us),
        us_max=max(us),
    )


def overhead_table(rows: Sequence[OverheadRow]) -> Table:
    """The rows as a table for people."""
    table = Table("empty nodes", box=None, pad_edge=False)
    for heading in ("lanes", "nodes", "edges", "trace", "us", "min - max", "for each"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.graph,
            f"{row.lanes}",
            f"{row.nodes:,}",
            f"{row.edges:,}",
            "on" if row.is_traced else "off",
            f"{row.us:.2f}",
            f"{row.us_min:.2f} - {row.us_max:.2f}",
            row.per,
        )
    return table
