"""Which nodes are over before another begins, however fast each lane is.

A node comes after those whose values it reads, after the readers of what it overwrites, and after
the node before it in its *queue*: the compute lanes of a device, or one copy lane. What follows
from these is certain; a wait for anything else is a wait that the work itself does not ask for.
Queues are kept as a clock for each node: how many nodes of each queue are over when it begins.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from aieflow.ops.graph import Graph
from aieflow.runtime.schedule import device_of

Clocks = npt.NDArray[np.int64]


class Precedence:
    """Of the nodes of a graph, in program order, on their lanes."""

    def __init__(self, graph: Graph, placements: Sequence[tuple[str, ...]]) -> None:
        names = [lanes[0] if ".copy" in lanes[0] else device_of(lanes[0]) for lanes in placements]
        number = {name: place for place, name in enumerate(dict.fromkeys(names))}
        self._queue = [number[name] for name in names]
        self._place: list[int] = []  # of each node in its queue, from 1
        self.clocks: Clocks = np.zeros((len(names), len(number)), np.int64)  # before each node
        last: dict[int, int] = {}  # queue -> its last node so far
        for index, (queue, others) in enumerate(zip(self._queue, predecessors(graph), strict=True)):
            before = {*others, last[queue]} if queue in last else others
            clock = self.clocks[index]
            for other in before:
                np.maximum(clock, self.clocks[other], out=clock)
            for other in before:
                clock[self._queue[other]] = max(clock[self._queue[other]], self._place[other])
            self._place.append(int(self._place[last[queue]]) + 1 if queue in last else 1)
            last[queue] = index

    def after(self, nodes: Sequence[int]) -> npt.NDArray[np.int64]:
        """The least clock of a node that all of these come before."""
        clock = np.zeros(self.clocks.shape[1], np.int64)
        for node in nodes:
            clock[self._queue[node]] = max(clock[self._queue[node]], self._place[node])
        return clock

    def is_before(self, earlier: int, later: int) -> bool:
        """Whether one node is certainly over before another begins."""
        return bool(self.clocks[later, self._queue[earlier]] >= self._place[earlier])


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
