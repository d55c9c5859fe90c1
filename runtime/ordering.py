"""Puts the nodes of a graph in the order in which a scheduler means them to start.

Each lane runs its nodes in program order, so a schedule that overlaps devices needs an order that
does. Any order is legal in which a node comes after what it reads, and an update after all readers
of what it overwrites. Operands in a device's separate memory take turns in a few slots
(`runtime.memory`), so there a value is also written after the last reader of the one whose slot it
takes. Nodes that share an operand there follow each other, when the first of them is to start: its
slot is free for another the sooner. Numbers do not depend on the order: each value has one node and
fixed operands.
"""

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Value
from aieflow.runtime.precedence import predecessors


def ordered(
    graph: Graph, starts: Mapping[str, float], separate: Mapping[str, str], slots: int
) -> tuple[int, ...]:
    """The indices of the nodes in the order of their starts, by name; without one, early.

    `separate` names the device of each value that lies in separate memory, `slots` how many buffers
    an operand has there. Raises PlanError where the slots do not allow the order.
    """
    before = [set(each) for each in predecessors(graph)]
    times = [starts.get(node.name, 0.0) for node in graph.nodes]
    for later, earlier in _turns(graph, times, separate, slots):
        before[later].add(earlier)
    readers: list[list[int]] = [[] for _ in graph.nodes]
    missing = [len(each) for each in before]
    for index, each in enumerate(before):
        for other in each:
            readers[other].append(index)
    ready = [(times[index], index) for index, left in enumerate(missing) if not left]
    heapify(ready)
    order: list[int] = []
    while ready:
        _, index = heappop(ready)
        order.append(index)
        for reader in readers[index]:
            missing[reader] -= 1
            if not missing[reader]:
                heappush(ready, (times[reader], reader))
    if len(order) < len(graph.nodes):
        raise PlanError(
            f"{graph.name}: {slots} slots for each operand do not allow the order of the schedule: "
            "give more with --slots"
        )
    return tuple(order)


def reordered(graph: Graph, order: Sequence[int]) -> Graph:
    """The same graph with its nodes in another order, checked."""
    nodes = tuple(graph.nodes[index] for index in order)
    result = Graph(graph.name, graph.feeds, graph.states, nodes, graph.results)
    result.check()
    return result


def _turns(
    graph: Graph, times: Sequence[float], separate: Mapping[str, str], slots: int
) -> list[tuple[int, int]]:
    """Pairs (later, earlier) of nodes that the slots of separate memory demand."""
    states = graph.state_of
    rings: dict[tuple[str, str, int], list[Value]] = {}
    taken: set[Value] = set()
    inside = [
        index
        for index, node in enumerate(graph.nodes)
        if all(value.name in separate for value in (*node.inputs, *node.outputs))
    ]
    first_use: dict[Value, float] = {}  # of nodes that share an operand: they follow each other
    for index in inside:
        for value in graph.nodes[index].inputs:
            if value not in states:
                first_use[value] = min(first_use.get(value, times[index]), times[index])
    begins = {
        index: min([times[index], *(first_use.get(value, times[index]) for value in node.inputs)])
        for index, node in ((each, graph.nodes[each]) for each in inside)
    }
    in_order = sorted(inside, key=lambda each: (begins[each], times[each], each))
    for index in in_order:
        node = graph.nodes[index]
        for kind, values in (("in", node.inputs), ("out", node.outputs)):
            for position, value in enumerate(values):
                if value not in states and value not in taken:
                    taken.add(value)
                    rings.setdefault((separate[value.name], kind, position), []).append(value)
    turns = list(zip(in_order[1:], in_order, strict=False))
    for ring in rings.values():
        for earlier, later in zip(ring, ring[slots:], strict=False):
            last = graph.consumers.get(earlier, (graph.producer[earlier],))
            turns += [(graph.producer[later], reader) for reader in last]
    return turns
