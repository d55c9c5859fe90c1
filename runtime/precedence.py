"""Which nodes are over before another begins, however fast each lane is.

A node comes after those whose values it reads, after the readers of what it overwrites, and after
the nodes before it on each of its lanes. What follows from these is certain, but that the parts of
one node end together; a wait for anything else is a wait that the work itself does not ask for.
Lanes are kept as a clock for each node: how many nodes of each lane are over when it begins.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aieflow.ops.graph import Graph

Clocks = npt.NDArray[np.int64]


class Precedence:
    """Of the nodes of a graph, in program order, on their lanes."""

    def __init__(self, graph: Graph, placements: Sequence[tuple[str, ...]]) -> None:
        names = dict.fromkeys(lane for lanes in placements for lane in lanes)
        number = {name: place for place, name in enumerate(names)}
        lanes_of = [np.array([number[lane] for lane in lanes]) for lanes in placements]
        self._lane = [int(lanes[0]) for lanes in lanes_of]  # of each node the first
        self._place: list[int] = []  # of each node on that lane, from 1
        self.clocks: Clocks = np.zeros((len(placements), len(number)), np.int64)  # before each node
        places: list[Clocks] = []  # of each node on all its lanes
        last = np.full(len(number), -1)  # of each lane the last node so far
        count = np.zeros(len(number), np.int64)
        for index, others in enumerate(predecessors(graph)):
            mine, clock = lanes_of[index], self.clocks[index]
            for other in {*others, *(int(each) for each in last[mine] if each >= 0)}:
                np.maximum(clock, self.clocks[other], out=clock)
                theirs = lanes_of[other]
                clock[theirs] = np.maximum(clock[theirs], places[other])
            count[mine] += 1
            last[mine] = index
            places.append(count[mine])
            self._place.append(int(places[-1][0]))

    def after(self, nodes: Sequence[int]) -> npt.NDArray[np.int64]:
        """The least clock of a node that all of these come before."""
        clock = np.zeros(self.clocks.shape[1], np.int64)
        for node in nodes:
            clock[self._lane[node]] = max(clock[self._lane[node]], self._place[node])
        return clock

    def is_before(self, earlier: int, later: int) -> bool:
        """Whether one node is certainly over before another begins."""
        return bool(self.clocks[later, self._lane[earlier]] >= self._place[earlier])


def predecessors(graph: Graph) -> tuple[tuple[int, ...], ...]:
    """For each node those that stand before it: what it reads of, readers of what it overwrites."""
    producer, consumers = graph.producer, graph.consumers
    found: list[tuple[int, ...]] = []
    for index, node in enumerate(graph.nodes):
        before = {producer[value] for value in node.inputs if value in producer}
        for position in node.op.updates.values():
            before.update(consumers[node.inputs[position]])
        found.append(tuple(sorted(before - {index})))
    return tuple(found)
