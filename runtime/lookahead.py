"""In which order nodes stand in a plan with an NPU: lanes run in order, so order is overlap.

Written product after product (packs, product, unpack), each unpack would hold up a lane of the host
until its product is done, and the next pack stands behind it: nothing would run under anything. So
the order is that of a run foretold by list scheduling (Graham 1966):

- A device does its nodes in program order, as its slots are used in turn. What it reads and writes
  is on its way for a while, in each direction one value after the other.
- The host works towards the devices' next nodes in their order: what leads to what a node reads,
  then what frees the slot that it writes, then what no device needs in this run. Where it would
  have to wait for the first of these, it does the first that fits into the pause.

What does not fit has to stand behind: lanes run in order, and what was put first holds up all that
comes after it. So the order is good at other rates, too.

The rates are typical ones of no machine in particular. They decide what is done while something
else is waited for, never what is computed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aieflow.ops.graph import Graph, Value
from aieflow.ops.kernel import HostKernel, Kernels
from aieflow.profiles.cost import TYPICAL_CORE, RooflineCost
from aieflow.runtime.expansion import Expansion
from aieflow.runtime.memory import rings
from aieflow.runtime.ordering import reordered
from aieflow.runtime.precedence import predecessors
from aieflow.runtime.transfer import HOST, Reach

# Of an NPU's array: GEMM in bf16, operands once, dispatch.
TYPICAL_ARRAY = RooflineCost(flops_per_s=1.5e12, bytes_per_s=20e9, launch_s=150e-6)
# Of a core that packs or unpacks in memory that no cache holds, and of a link to separate memory.
TYPICAL_CONVERSION = RooflineCost(flops_per_s=math.inf, bytes_per_s=3.5e9, launch_s=0.0)
TYPICAL_LINK = RooflineCost(flops_per_s=math.inf, bytes_per_s=8e9, launch_s=50e-6)


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
    """List scheduling: a lane for each device, for each direction to it, and one for all the host.

    Nodes are known by their indices in the graph.
    """

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
        self._link: list[tuple[str, str] | None] = []  # over which a node's outputs go
        self._sources: list[set[int]] = [set() for _ in before]  # of what comes over to a node
        for index, (home, node) in enumerate(zip(homes, graph.nodes, strict=True)):
            readers = {each for value in node.outputs for each in _readers(graph, value)}
            elsewhere = {each for each in readers if homes[each] != home}
            names = (home, *(homes[each] for each in elsewhere))
            far = [name for name in names if reach.get(name, Reach()).is_separate]
            is_sent = bool(elsewhere and far)
            self._link.append((far[0], "out" if home in far else "in") if is_sent else None)
            for each in elsewhere if is_sent else ():
                self._sources[each].add(index)
        self._after: list[list[int]] = [[] for _ in before]
        for index, earlier in enumerate(before):
            for each in earlier:
                self._after[each].append(index)
        self._missing = [len(earlier) for earlier in before]
        self._programs: dict[str, list[int]] = {}  # of the devices, the next node last
        for index in reversed(range(len(homes))):
            if self._is_remote[index]:
                self._programs.setdefault(homes[index], []).append(index)
        self._free_s: dict[object, float] = dict.fromkeys((HOST, *self._programs), 0.0)
        self._ends = [0.0] * len(before)
        self._arrivals = [0.0] * len(before)  # of outputs, where they are sent
        self._urgencies = self._all_urgencies()
        self._ready_s = [0.0] * len(before)
        self._entered: list[tuple[int, bool, int]] = []  # nodes of the host, to be compared
        self._order: list[int] = []

    def order(self) -> list[int]:
        """The nodes, each after all that it must follow."""
        for index in range(len(self._before)):
            self._enter(index)
        while len(self._order) < len(self._before):
            for device, program in self._programs.items():
                while program and not self._missing[program[-1]]:
                    self._start(program.pop(), device)
            if self._entered:
                entry = self._next()
                self._entered.remove(entry)
                self._start(entry[-1], HOST)
        return self._order

    def _next(self) -> tuple[int, bool, int]:
        """What the host does next: the most urgent, or what fits into the pause before it."""
        first, now_s = min(self._entered), self._free_s[HOST]
        pause_s = self._ready_s[first[-1]] - now_s
        if pause_s <= 0:
            return first
        fitting = [
            entry
            for entry in self._entered
            if self._ready_s[entry[-1]] <= now_s and self._seconds(entry[-1], HOST) <= pause_s
        ]
        if not fitting and first[0] == len(self._before):  # no device waits: none has to
            return min(self._entered, key=lambda entry: (self._ready_s[entry[-1]], entry))
        return min(fitting, default=first)

    def _all_urgencies(self) -> list[int]:
        """For each node the first of a device that must follow it, if only host nodes between."""
        none = len(self._before)
        found = [none] * none
        for index in reversed(range(none)):
            for each in self._after[index]:
                found[index] = min(found[index], each if self._is_remote[each] else found[each])
        return found

    def _start(self, index: int, lane: str) -> None:
        node = self._graph.nodes[index]
        begin = max(self._free_s[lane], self._ready_s[index])
        self._ends[index] = self._free_s[lane] = begin + self._seconds(index, lane)
        link = self._link[index]
        if link is not None:
            begin = max(self._free_s.get(link, 0.0), self._ends[index])
            nbytes = sum(value.spec.nbytes for value in node.outputs)
            self._arrivals[index] = self._free_s[link] = begin + TYPICAL_LINK.seconds(0, nbytes)
        self._order.append(index)
        for each in self._after[index]:
            self._missing[each] -= 1
            self._enter(each)

    def _enter(self, index: int) -> None:
        """Let a node start that nothing keeps from being foretold."""
        if self._missing[index]:
            return
        over = (self._ends[each] for each in self._before[index])
        come = (self._arrivals[each] for each in self._sources[index])
        self._ready_s[index] = max((*over, *come), default=0.0)
        if not self._is_remote[index]:
            entry = (self._urgencies[index], self._link[index] is None, index)
            self._entered.append(entry)

    def _seconds(self, index: int, lane: str) -> float:
        node = self._graph.nodes[index]
        if lane != HOST:
            return TYPICAL_ARRAY.seconds(node.flops, node.nbytes)
        converts = self._link[index] is not None or bool(self._sources[index])
        rate = TYPICAL_CONVERSION if converts else TYPICAL_CORE
        return rate.seconds(node.flops / self._host_lanes, node.nbytes / self._host_lanes)
