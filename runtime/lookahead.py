"""In which order nodes stand in a plan with an NPU: lanes run in order, so order is overlap.

Written product after product (packs, product, unpack), each unpack would hold up a lane of the host
until its product is done, and the next pack stands behind it: nothing would run under anything. So
the order is that of a run foretold by list scheduling (Graham 1966):

- A device does its nodes in program order, as its slots are used in turn.
- The host does what a device reads before all else, as soon as there is a slot for it; apart from
  that the first node, in program order, of those that wait for nothing at that moment.

A node is overtaken only while it has to wait, so values live little longer than in program order.

The rates are typical ones of no machine in particular. They decide what is done while something
else is waited for, never what is computed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush

from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import HostKernel, Kernels
from aieflow.profiles.cost import TYPICAL_CORE, RooflineCost
from aieflow.runtime.expansion import Expansion
from aieflow.runtime.memory import rings
from aieflow.runtime.ordering import reordered
from aieflow.runtime.precedence import predecessors
from aieflow.runtime.transfer import HOST, Reach

# Of an NPU's array: GEMM in bf16, operands once, dispatch.
TYPICAL_ARRAY = RooflineCost(flops_per_s=1.5e12, bytes_per_s=20e9, launch_s=150e-6)


def look_ahead(
    expansion: Expansion, kernels: Kernels, reach: Mapping[str, Reach], host_lanes: int, slots: int
) -> Expansion:
    """The expansion with its nodes in the order in which they are foretold to start.

    `host_lanes` share the host's work, `slots` are those of each streamed operand. Nothing changes
    without a device of separate memory, where conversions are left to copy lanes, which wait for
    one direction alone, and where program order itself needs more slots.
    """
    graph, homes = expansion.graph, expansion.homes
    separate = {name for name in set(homes) if reach.get(name, Reach()).is_separate}
    remote = [node for node, home in zip(graph.nodes, homes, strict=True) if home in separate]
    converters = {
        name
        for home in separate
        for name, kernel in kernels[home].items()
        if isinstance(kernel, HostKernel)
    }
    if not remote or any(node.op.name in converters for node in remote):
        return expansion
    before = _with_turns(graph, homes, separate, slots)
    if any(earlier >= index for index, each in enumerate(before) for earlier in each):
        return expansion
    run = _ForetoldRun(graph, homes, before, reach, host_lanes)
    order = run.order()
    places = tuple(homes[index] for index in order)
    return replace(expansion, graph=reordered(graph, order), homes=places)


def _with_turns(
    graph: Graph, homes: Sequence[str], separate: set[str], slots: int
) -> list[set[int]]:
    """For each node those that stand before it, those that must free its slots among them."""
    before = [set(each) for each in predecessors(graph)]
    apart = {
        value: home
        for node, home in zip(graph.nodes, homes, strict=True)
        if home in separate
        for value in (*node.inputs, *node.outputs)
    }
    for members in rings(graph, apart).values():
        for value, successor in zip(members, members[slots:], strict=False):
            before[graph.producer[successor]].update(_readers(graph, value))
    return before


def _readers(graph: Graph, value: Value) -> tuple[int, ...]:
    return graph.consumers.get(value, ())


class _ForetoldRun:
    """List scheduling: one lane for each device, and one for all of the host's together."""

    def __init__(
        self,
        graph: Graph,
        homes: Sequence[str],
        before: Sequence[set[int]],
        reach: Mapping[str, Reach],
        host_lanes: int,
    ) -> None:
        self._graph, self._before, self._host_lanes = graph, before, host_lanes
        self._is_remote = [reach.get(home, Reach()).copy_lanes is not None for home in homes]
        self._feeds = [  # what a device reads
            any(self._is_remote[each] for value in node.outputs for each in _readers(graph, value))
            for node in graph.nodes
        ]
        self._after: list[list[int]] = [[] for _ in before]
        for index, earlier in enumerate(before):
            for each in earlier:
                self._after[each].append(index)
        self._missing = [len(earlier) for earlier in before]
        self._programs: dict[str, list[int]] = {}  # of the devices, the next node last
        for index in reversed(range(len(homes))):
            if self._is_remote[index]:
                self._programs.setdefault(homes[index], []).append(index)
        self._free_s = dict.fromkeys((HOST, *self._programs), 0.0)
        self._ends = [0.0] * len(before)
        self._waiting: list[tuple[float, int]] = []  # the host's nodes, by when they may start
        self._able: list[tuple[bool, int]] = []  # those that may start now, best first
        self._order: list[int] = []

    def order(self) -> list[int]:
        """The nodes, each after all that it must follow."""
        for index in range(len(self._before)):
            self._enter(index)
        while len(self._order) < len(self._before):
            for device, program in self._programs.items():
                while program and not self._missing[program[-1]]:
                    self._start(program.pop(), device)
            while self._waiting and self._waiting[0][0] <= self._free_s[HOST]:
                _, index = heappop(self._waiting)
                heappush(self._able, (not self._feeds[index], index))
            if self._able:
                self._start(heappop(self._able)[1], HOST)
            elif self._waiting:
                self._free_s[HOST] = self._waiting[0][0]
        return self._order

    def _start(self, index: int, lane: str) -> None:
        begin = max(self._free_s[lane], self._ready_s(index))
        seconds = self._seconds(self._graph.nodes[index], lane)
        self._ends[index] = self._free_s[lane] = begin + seconds
        self._order.append(index)
        for each in self._after[index]:
            self._missing[each] -= 1
            self._enter(each)

    def _enter(self, index: int) -> None:
        """Let the host know of a node of its own that nothing keeps from being foretold."""
        if not self._missing[index] and not self._is_remote[index]:
            heappush(self._waiting, (self._ready_s(index), index))

    def _ready_s(self, index: int) -> float:
        return max((self._ends[each] for each in self._before[index]), default=0.0)

    def _seconds(self, node: Node, lane: str) -> float:
        if lane != HOST:
            return TYPICAL_ARRAY.seconds(node.flops, node.nbytes)
        lanes = self._host_lanes
        return TYPICAL_CORE.seconds(node.flops / lanes, node.nbytes / lanes)
