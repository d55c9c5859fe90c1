"""Over how many lanes of its device a node is divided, at most.

One node on all lanes ends soonest. But where several devices work, and nodes of several shards are
ready, a device that does two nodes side by side, each on half of its lanes, pays half as many
launches, and nobody waits behind a long node. Products for gradients of weights have time until
parameters are updated, and may have half of that. Packs and unpacks are bound by memory, and a few
cores have all of its bandwidth: more lanes make them no shorter, and are missed elsewhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from aieflow.ops.graph import Graph, Node
from aieflow.ops.matmul import MATMUL
from aieflow.runtime.expansion import Expansions
from aieflow.runtime.needs import NodeSeconds

LEAST_HALVED = 4  # lanes of a device, of which one node may have half
SLACK = 1.1  # times what a conversion takes at least: fewer lanes may take so long


@dataclass(frozen=True, slots=True)
class Division:
    """The most lanes of a node: `lanes`, or what its op or the node has; None: all there are."""

    lanes: int | None = None
    by_op: Mapping[str, int] = field(default_factory=dict)
    by_node: Mapping[str, int] = field(default_factory=dict)

    def most(self, node: Node, lanes: int) -> int:
        """Of a node, on a device with so many."""
        of_op = self.by_op.get(node.op.name, self.lanes or lanes)
        return min(lanes, self.by_node.get(node.name, of_op))


WHOLE = Division()


def halved(lanes: int) -> Division:
    """Half of so many lanes at most to each node; all where there are few.

    >>> halved(12).lanes, halved(3).lanes
    (6, None)
    """
    return Division(lanes // 2) if lanes >= LEAST_HALVED else WHOLE


def lean(division: Division, graph: Graph) -> Division:
    """The same with half as many lanes for each product that gives a gradient of weights."""
    if division.lanes is None:
        return division
    products = [node for node in graph.nodes if node.op.name == MATMUL.name]
    late = [node.name for node in products if node.outputs[0].role == "gradient"]
    return replace(division, by_node=dict.fromkeys(late, max(1, division.lanes // 2)))


def divisions(
    expansions: Expansions, lanes: Mapping[str, Sequence[str]], node_s: NodeSeconds
) -> tuple[Division, ...]:
    """Those worth a try: all lanes to each node; beside other devices, half of the host's.

    `lanes` are of the devices, the host's first.
    """
    host, *others = lanes
    count, half = len(lanes[host]), halved(len(lanes[host]))
    if half == WHOLE or not others:
        return (WHOLE,)
    least: dict[str, int] = {}
    for node in _conversions(expansions, host, others):
        seconds = [node_s(host, node, parts) for parts in range(1, count + 1)]
        fewest = next(n for n, each in enumerate(seconds, 1) if each <= SLACK * min(seconds))
        least[node.op.name] = max(fewest, least.get(node.op.name, 1))
    return (WHOLE, replace(half, by_op=least))


def _conversions(expansions: Expansions, host: str, others: Sequence[str]) -> Iterator[Node]:
    """What the host does for other devices, one of each kind and size."""
    own = {node.op.name for node in expansions.graph.nodes}
    seen: set[tuple[object, ...]] = set()
    for device in others:
        expansion = expansions.on(device)
        for node, home in zip(expansion.graph.nodes, expansion.homes, strict=True):
            key = (node.op.name, node.input_specs, node.output_specs)
            if home == host and node.op.name not in own and key not in seen:
                seen.add(key)
                yield node
