"""From a graph to a plan on devices: where each node runs, its chains expanded, steps laid out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aieflow.devices.base import Device
from aieflow.ops.check import MATMUL_CHECK
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import Kernels
from aieflow.ops.matmul import MATMUL
from aieflow.ops.spec import Spec
from aieflow.profiles.cost import TYPICAL_CORE
from aieflow.runtime.expansion import expand
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.policies.cpu import schedule_lanes
from aieflow.runtime.policies.fixed import homes
from aieflow.runtime.transfer import reaches


@dataclass(frozen=True, slots=True)
class Placement:
    """What decides where nodes run: a policy, ops placed by hand, slots for streamed operands."""

    policy: str = "cpu"
    places: Mapping[str, str] = field(default_factory=dict)  # op -> device
    slots: int = 3
    checks: bool = False  # hold products of other devices against the host's


def place(graph: Graph, device: Device, divided: bool = True) -> Plan:
    """The plan of `graph` on one device; with `divided` False, undivided nodes on one lane.

    Raises PlanError for an op without a kernel.
    """
    return place_on(graph, {device.name: device}, Placement(), divided)


def place_on(
    graph: Graph,
    devices: Mapping[str, Device],
    placement: Placement,
    divided: bool = True,
    by_node: Sequence[str] | None = None,
) -> Plan:
    """The plan of `graph` on `devices`, by name, the host's first.

    With `divided` False, undivided nodes on one lane of a device. `by_node` names each node's
    device instead of `placement`. Where several devices run, a plan saves the states that it
    updates. Raises PlanError for an op without a kernel.
    """
    kernels: Kernels = {name: device.kernels for name, device in devices.items()}
    if by_node is None:
        by_node = homes(graph, kernels, placement.policy, placement.places)
    if placement.checks:
        graph, by_node = _checked(graph, by_node, next(iter(devices)))
    expansion = expand(graph, by_node, kernels)
    reach = reaches(devices)
    used = [name for name in devices if name in set(expansion.homes)]
    lanes = {name: devices[name].lanes[: None if divided else 1] for name in used}
    schedule = schedule_lanes(
        placement.policy, expansion.graph, expansion.homes, kernels, lanes, reach, TYPICAL_CORE
    )
    return compile_plan(
        expansion.graph,
        schedule,
        kernels,
        reach,
        derived=expansion.derived,
        slots=placement.slots,
        saves=any(reach[name].copy_lanes is not None for name in used),
    )


def _checked(graph: Graph, by_node: Sequence[str], host: str) -> tuple[Graph, list[str]]:
    """The graph with a check on the host after each matrix product of another device."""
    nodes: list[Node] = []
    places: list[str] = []
    for node, home in zip(graph.nodes, by_node, strict=True):
        nodes.append(node)
        places.append(home)
        if node.op is MATMUL and home != host:
            name = f"{node.name}:check"
            deviation = Value(name, Spec((1,)))
            operands = (*node.inputs, *node.outputs)
            nodes.append(Node(name, MATMUL_CHECK, operands, (deviation,), node.attrs))
            places.append(host)
    checked = Graph(graph.name, graph.feeds, graph.states, tuple(nodes), graph.results)
    checked.check()
    return checked, places
