"""Which states a run keeps a copy of: those that a failure could leave changed.

A run that fails must leave every state as it was. Only what other devices take part in may fail
(nodes, transfers) and checks of what they computed; the host's own kernels do not. So a state whose
update comes after all of that needs no copy: once it begins, nothing is left that could fail. That
holds for AdamW on the host where gradients are clipped, since their norm waits for the last
product; without clipping AdamW follows each gradient at once, and states are copied.
"""

from collections.abc import Mapping, Sequence

from aieflow.ops.check import MATMUL_CHECK
from aieflow.ops.graph import Graph, Value
from aieflow.runtime.schedule import device_of
from aieflow.runtime.transfer import HOST, Reach, side_of


def endangered(
    graph: Graph,
    placements: Sequence[tuple[str, ...]],
    reach: Mapping[str, Reach],
    updated: Sequence[Value],
) -> tuple[Value, ...]:
    """Those of the states `updated` that a run may have changed before it fails."""
    sides = [side_of(lanes[0], reach) for lanes in placements]

    def is_elsewhere(value: Value, side: str) -> bool:
        return value in graph.producer and sides[graph.producer[value]] != side

    last = {state: value for value, state in graph.state_of.items()}
    if any(is_elsewhere(last.get(value, value), HOST) for value in (*updated, *graph.results)):
        return tuple(updated)  # they are brought to the host at the end
    fallible, before = 0, [0] * len(graph.nodes)  # sets of nodes, one bit each
    first: dict[Value, int] = {}  # state -> the node that updates it first
    for index, node in enumerate(graph.nodes):
        for value in node.inputs:
            if value in graph.producer:
                earlier = graph.producer[value]
                before[index] |= before[earlier] | 1 << earlier
        if (
            reach.get(device_of(placements[index][0]), Reach()).copy_lanes is not None
            or node.op is MATMUL_CHECK
            or any(is_elsewhere(value, sides[index]) for value in node.inputs)
        ):
            fallible |= 1 << index
        for position in node.op.updates:
            first.setdefault(graph.state_of[node.outputs[position]], index)
    return tuple(state for state in updated if fallible & ~before[first[state]])
