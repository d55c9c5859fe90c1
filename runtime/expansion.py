"""Expands nodes whose kernel is a chain: a product on the NPU becomes packs, products, unpacks.

Packed parameters are kept: where a chain packs a state, the packed form becomes a state itself,
*derived* from the first, shared by all who read it, and packed again right after the node that
updates the source. So weights are packed once after each optimizer update, not at each use.

What the host does in a chain (packs, unpacks) is the host's, on all its lanes, if it has a kernel
for it; else it stays with the device, on its copy lanes.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import ChainKernel, HostKernel, Kernel, Kernels
from aieflow.ops.op import Op


@dataclass(frozen=True, slots=True, eq=False)
class Expansion:
    """A graph without chains; `homes` names the device of each node."""

    graph: Graph
    homes: tuple[str, ...]
    derived: Mapping[str, Node]  # state -> the node that makes it anew from other states


class Expansions:
    """The expansions of one graph with as many nodes on a device as it can do, each made once."""

    def __init__(self, graph: Graph, kernels: Kernels) -> None:
        self.graph, self.kernels = graph, kernels
        self._held: dict[str, Expansion] = {}

    def on(self, device: str) -> Expansion:
        """Every node on `device`, or on the first that can do it; raises PlanError where none."""
        if device not in self._held:
            homes = [
                next((name for name in (device, *self.kernels) if self._can(name, node)), device)
                for node in self.graph.nodes
            ]
            self._held[device] = expand(self.graph, homes, self.kernels)
        return self._held[device]

    def _can(self, device: str, node: Node) -> bool:
        return node.op.name in self.kernels[device]


def expand(graph: Graph, homes: Sequence[str], kernels: Kernels) -> Expansion:
    """Expand every node whose kernel on its home is a chain; raises PlanError without a kernel."""
    nodes: list[Node] = []
    owners: list[str] = []
    for node, home in zip(graph.nodes, homes, strict=True):
        kernel = kernels.get(home, {}).get(node.op.name)
        if kernel is None:
            raise PlanError(
                f"{node.name}: no kernel of {node.op.name} on {home}: place it on another device"
            )
        chain = kernel.expand(node) if isinstance(kernel, ChainKernel) else (node,)
        nodes += chain
        owners += [home] * len(chain)
    if len(nodes) == len(graph.nodes):
        return Expansion(graph, tuple(homes), {})
    return _keep_packed(graph, nodes, owners, kernels)


def _keep_packed(
    graph: Graph, nodes: Sequence[Node], homes: Sequence[str], kernels: Kernels
) -> Expansion:
    states = set(graph.states)
    renewals = {home: _renewals(kernels[home]) for home in set(homes)}
    kept: dict[tuple[object, ...], Value] = {}  # what is packed, and how -> the derived state
    derived: dict[str, Node] = {}
    renamed: dict[Value, Value] = {}
    repacks: dict[Value, list[tuple[Node, str, Op]]] = {}  # source -> (pack, home, repack)
    body: list[tuple[Node, str]] = []
    for node, home in zip(nodes, homes, strict=True):
        again = renewals[home].get(node.op.name)
        if again is None or not states.issuperset(node.inputs):
            inputs = tuple(renamed.get(value, value) for value in node.inputs)
            body.append((Node(node.name, node.op, inputs, node.outputs, node.attrs), home))
            continue
        key = (home, node.op.name, node.inputs, tuple(sorted(node.attrs.items())))
        if key not in kept:
            source = node.inputs[0]
            # The same name in every graph that packs this state in this way.
            form = zlib.crc32(repr((home, node.op.name, key[3])).encode())
            name = f"{source.name}:packed.{form:08x}"
            state = Value(name, node.outputs[0].spec, "cache")
            kept[key] = state
            derived[name] = Node(f"pack {name}", node.op, node.inputs, (state,), node.attrs)
            repacks.setdefault(source, []).append((derived[name], home, again))
        renamed[node.outputs[0]] = kept[key]
    finished: list[tuple[Node, str]] = []
    for node, home in body:
        finished.append((node, home))
        for position, old in node.op.updates.items():
            for pack, where, again in repacks.get(node.inputs[old], ()):
                (state,) = pack.outputs
                value = Value(f"{state.name}'", state.spec, "cache")
                operands = (node.outputs[position], state)
                finished.append(
                    (Node(f"re{pack.name}", again, operands, (value,), pack.attrs), where)
                )
    expanded = Graph(
        graph.name,
        graph.feeds,
        (*graph.states, *kept.values()),
        tuple(node for node, _ in finished),
        graph.results,
    )
    expanded.check()
    return Expansion(
        expanded, tuple(_place(node, home, kernels) for node, home in finished), derived
    )


def _place(node: Node, owner: str, kernels: Kernels) -> str:
    """Where a node of `owner` runs: what the host does for a device, with the host if it can."""
    host = next(iter(kernels))
    is_conversion = isinstance(kernels[owner][node.op.name], HostKernel)
    return host if is_conversion and node.op.name in kernels[host] else owner


def _renewals(kernels: Mapping[str, Kernel]) -> dict[str, Op]:
    """The ops of a device whose results are kept, and by which op they are renewed."""
    chains = (kernel for kernel in kernels.values() if isinstance(kernel, ChainKernel))
    return {name: op for chain in chains for name, op in chain.renewals.items()}
