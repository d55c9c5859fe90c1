"""Lower bounds on the seconds of a graph's run: no schedule on the devices there are is shorter.

A bound holds for every assignment of the graph's nodes to devices that have a kernel for them, for
every order, and however nodes are divided over a device's lanes. It is of the graph as it stands:
one that is lowered with other shards is another graph. Transfers, conversions and contention are
left out, all of which only lengthen a run.

Of a node on a device two numbers are needed, each the least that any division into parts gives:

- `span_s`, seconds of its shortest part. Call the *end* of a node the end of its first part to end.
  Each part of a reader reads something that some part of the node wrote, so it begins after that
  end; hence end(reader) >= end(node) + span(reader), also where lanes run ahead of each other.
- `lane_s`, seconds of all its parts together. In a run of T seconds the lanes of a device have T
  seconds each, so the nodes that it does have lane_s of at most T times its lanes in all.

The *critical path* follows the first rule with every node on the device of its least span. The
*area and precedence* bound keeps both rules for nodes that are cut into shares x[node, device] >= 0
with sum 1, a linear program (the relaxation behind HLP: Amaris, Lucarelli, Mommessin and Trystram,
"Generic algorithms for scheduling applications on hybrid multi-core machines", Euro-Par 2017):

    minimise T over x, end, T
        end(j) >= end(i) + sum_d span[j, d] x[j, d]       for each j that reads of i
        T >= end(j)
        T lanes(d) >= sum_j lane_s[j, d] x[j, d]          for each device d

Every assignment is one of its points with all shares 0 or 1, so the least T is below every run's.
What is returned is not the solver's T, which is right to its tolerances only, but the value that
its multipliers prove: any nonnegative multipliers give a lower bound by weak duality, and these
give one that is as good as the T to rounding.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog  # type: ignore[import-untyped]  # ships no types
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node
from aieflow.ops.kernel import ChainKernel, HostKernel, Kernel, Kernels

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choice:
    """The least that a device needs for a node, however it is divided over its lanes."""

    span_s: float  # of its shortest part
    lane_s: float  # of all its parts


Choices = Sequence[Mapping[str, Choice]]  # of each node, by device
NodeSeconds = Callable[[str, Node, int], float]  # device, node, parts -> of one part on one lane


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds that no schedule undercuts."""

    critical_path_s: float
    area_s: float  # of area and precedence

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.critical_path_s, self.area_s)


def bound(graph: Graph, choices: Choices, lanes: Mapping[str, int]) -> Bound:
    """Both bounds, for devices with so many lanes each; raises PlanError where a node has none."""
    return Bound(critical_path(graph, choices), area_and_precedence(graph, choices, lanes))


def node_choices(
    graph: Graph, kernels: Kernels, lanes: Mapping[str, int], node_s: NodeSeconds
) -> tuple[dict[str, Choice], ...]:
    """What each node needs at least on each device that has a kernel for it.

    Of a chain of nodes those count that the device itself does; the host's may cost nothing here.
    """
    return tuple(
        {
            device: _choice(device, node, available, lanes[device], node_s)
            for device, available in kernels.items()
            if node.op.name in available
        }
        for node in graph.nodes
    )


def critical_path(graph: Graph, choices: Choices) -> float:
    """Seconds of the longest path with each node on the device that is fastest for it."""
    ends: list[float] = []
    for node, choice, before in zip(graph.nodes, choices, _before(graph), strict=True):
        span_s = min(each.span_s for each in _required(node, choice).values())
        ends.append(max((ends[other] for other in before), default=0.0) + span_s)
    return max(ends, default=0.0)


def area_and_precedence(graph: Graph, choices: Choices, lanes: Mapping[str, int]) -> float:
    """Seconds that the linear program above proves; raises PlanError if it has no solution."""
    if not graph.nodes:
        return 0.0
    program = _program(graph, choices, lanes)
    found = linprog(
        program.objective,
        program.upper,
        np.zeros(program.inequalities),
        program.equal,
        np.ones(len(graph.nodes)),
        bounds=np.stack([np.zeros_like(program.most), program.most], axis=1),
        method="highs",
    )
    if found.status != 0:
        raise PlanError(f"{graph.name}: no bound was found: {found.message}")
    # The right sides are 0 and 1, so this is what the multipliers prove: see the module's text.
    above = np.minimum(found.ineqlin.marginals, 0.0)
    shares = found.eqlin.marginals
    reduced = program.objective - program.upper.T @ above - program.equal.T @ shares
    proven = float(shares.sum() + (np.minimum(reduced, 0.0) * program.most).sum())
    return max(0.0, proven) * program.scale_s


@dataclass(frozen=True, slots=True)
class _Program:
    """Minimise objective @ v with upper @ v <= 0, equal @ v = 1, 0 <= v <= most.

    Variables are the shares, the end of each node, and T; times in units of `scale_s`.
    """

    objective: Floats
    upper: csr_array
    equal: csr_array
    inequalities: int  # rows of `upper`
    most: Floats
    scale_s: float


def _program(graph: Graph, choices: Choices, lanes: Mapping[str, int]) -> _Program:
    """One node after the other on its fastest device is a schedule: no time needs to be longer."""
    fastest = [
        min(each.span_s for each in _required(node, choice).values())
        for node, choice in zip(graph.nodes, choices, strict=True)
    ]
    slowest_lane = max(each.lane_s for choice in choices for each in choice.values())
    scale_s = critical_path(graph, choices) or slowest_lane or 1.0
    pairs = [(node, device) for node, choice in enumerate(choices) for device in choice]
    first_end = len(pairs)
    last = first_end + len(graph.nodes)  # T
    shares: list[list[int]] = [[] for _ in graph.nodes]
    for column, (node, _) in enumerate(pairs):
        shares[node].append(column)
    upper = _Rows(last + 1)
    for index, before in enumerate(_before(graph)):
        spans = [
            (column, choices[index][pairs[column][1]].span_s / scale_s) for column in shares[index]
        ]
        end = first_end + index
        for other in before:
            upper.add([*spans, (first_end + other, 1.0), (end, -1.0)])
        if not before:
            upper.add([*spans, (end, -1.0)])
        upper.add([(end, 1.0), (last, -1.0)])
    for device, count in lanes.items():
        used = [
            (column, choices[node][name].lane_s / scale_s / count)
            for column, (node, name) in enumerate(pairs)
            if name == device
        ]
        upper.add([*used, (last, -1.0)])
    equal = _Rows(last + 1)
    for columns in shares:
        equal.add([(column, 1.0) for column in columns])
    most = np.ones(last + 1)
    serial = sum(max(each.lane_s for each in choice.values()) for choice in choices)
    most[first_end:] = max(sum(fastest), serial) / scale_s
    objective = np.zeros(last + 1)
    objective[last] = 1.0
    return _Program(objective, upper.matrix(), equal.matrix(), upper.count, most, scale_s)


class _Rows:
    """A sparse matrix, written row by row."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._values: list[float] = []
        self._columns: list[int] = []
        self._starts = [0]

    def add(self, entries: Sequence[tuple[int, float]]) -> None:
        """One row: its columns and their values."""
        for column, value in entries:
            self._columns.append(column)
            self._values.append(value)
        self._starts.append(len(self._values))

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._starts) - 1

    def matrix(self) -> csr_array:
        """The rows so far."""
        shape = (self.count, self._width)
        return csr_array((self._values, self._columns, self._starts), shape=shape)


def _before(graph: Graph) -> Iterator[list[int]]:
    """For each node those that it reads of."""
    for node in graph.nodes:
        yield sorted({graph.producer[value] for value in node.inputs if value in graph.producer})


def _required(node: Node, choice: Mapping[str, Choice]) -> Mapping[str, Choice]:
    if not choice:
        raise PlanError(f"{node.name}: no device has a kernel of {node.op.name}")
    return choice


def _choice(
    device: str, node: Node, kernels: Mapping[str, Kernel], lanes: int, node_s: NodeSeconds
) -> Choice:
    kernel = kernels[node.op.name]
    if not isinstance(kernel, ChainKernel):
        most = min(lanes, kernel.split(node).units)
        seconds = {parts: node_s(device, node, parts) for parts in range(1, most + 1)}
        return Choice(min(seconds.values()), min(parts * s for parts, s in seconds.items()))
    links = [
        _choice(device, link, kernels, lanes, node_s)
        for link in kernel.expand(node)
        if not isinstance(kernels[link.op.name], HostKernel)
    ]
    lane_s = sum(link.lane_s for link in links)
    return Choice(max([lane_s / lanes, *(link.span_s for link in links)]), lane_s)
