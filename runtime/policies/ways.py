"""More ways to do a node: on fewer of the host's lanes than a division gives to it.

A product that nobody waits for may have few lanes: it takes longer, and others find lanes beside
it. Whether that is worth it depends on what else there is to do, so a search decides it node by
node. For a search such a way is one more device: the host's once more, that does less.
"""

from collections.abc import Sequence
from dataclasses import replace

from aieflow.ops.graph import Graph
from aieflow.runtime.policies.division import Division
from aieflow.runtime.policies.step_layout import Ints
from aieflow.runtime.policies.tasks import Tasks

HOSTS = 0  # the number of the host's device


def with_ways(tasks: Tasks, fewer: Tasks) -> Tasks:
    """The tasks with one more device: the host's, for what it does on other lanes in `fewer`.

    `fewer` are the same graph's on the host's device, and maybe others. A node that may not be
    there, as it was placed by hand, has no such way. Raises ValueError where they are not.
    """
    rows = zip(tasks.pieces, fewer.pieces, strict=True)
    pieces = tuple(
        (*row, other[0] if row[HOSTS] and row[HOSTS] != other[0] else ()) for row, other in rows
    )
    more = tuple((*row, row[HOSTS]) for row in tasks.slowdowns)
    return replace(
        tasks,
        devices=(*tasks.devices, tasks.devices[HOSTS]),
        pieces=pieces,
        sides=(*tasks.sides, tasks.sides[HOSTS]),
        slowdowns=more * 2,  # the last device is never busy: the host's is
    )


def division_with(
    division: Division, graph: Graph, homes: Sequence[int] | Ints, way: int
) -> Division:
    """A division in which only nodes that are done in a way have lanes of their own."""
    taken = {node.name for node, home in zip(graph.nodes, homes, strict=True) if home == way}
    by_node = {name: lanes for name, lanes in division.by_node.items() if name in taken}
    return replace(division, by_node=by_node)
