"""From a graph to a plan on devices: where each node runs, by a fixed rule or by what it costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aieflow.devices.base import Device
from aieflow.ops.check import MATMUL_CHECK
from aieflow.ops.errors import ProfileError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import Kernels
from aieflow.ops.matmul import MATMUL
from aieflow.ops.spec import Spec
from aieflow.runtime.choice import Choices, choose
from aieflow.runtime.layout import compiled
from aieflow.runtime.plan import Plan
from aieflow.runtime.policies.best import Effort, Found
from aieflow.runtime.policies.division import WHOLE, Division
from aieflow.runtime.policies.fixed import COSTED, homes
from aieflow.runtime.policies.objective import Objective
from aieflow.runtime.schedule import Times
from aieflow.runtime.step_cost import MachineStepCost


@dataclass(frozen=True, slots=True)
class Placement:
    """What decides where nodes run: a policy, ops placed by hand, slots for streamed operands.

    `cost` is what policies of `COSTED` weigh, for the sake of `objective`; `effort` is how much
    `best` may look at, `choices` keeps what they decided, `decided` holds what was decided for
    graphs already, by name.
    """

    policy: str = "cpu"
    places: Mapping[str, str] = field(default_factory=dict)  # op -> device
    slots: int = 3
    checks: bool = False  # hold products of other devices against the host's
    cost: MachineStepCost | None = None
    objective: Objective = field(default_factory=Objective)
    effort: Effort = field(default_factory=Effort)
    choices: Choices = field(default_factory=Choices, compare=False)
    decided: Mapping[str, Found] = field(default_factory=dict)
    division: Division = WHOLE  # of nodes over lanes, by a policy that weighs no costs


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
    updates. Raises PlanError for an op without a kernel, and ProfileError where a policy needs
    costs that nobody knows.
    """
    times: Times | None = None
    division = placement.division
    if by_node is None and placement.policy in COSTED:
        found = placement.decided.get(graph.name) or chosen({1: graph}, devices, placement)
        by_node, times, division = found.homes, found.times, found.division
    elif by_node is None:
        kernels: Kernels = {name: device.kernels for name, device in devices.items()}
        by_node = homes(graph, kernels, placement.policy, placement.places)
    if placement.checks:
        graph, by_node = _checked(graph, by_node, next(iter(devices)))
    return compiled(
        graph,
        by_node,
        devices,
        placement.policy,
        placement.slots,
        divided,
        times if divided else None,
        division,
    )


def chosen(
    graphs: Mapping[int, Graph], devices: Mapping[str, Device], placement: Placement
) -> Found:
    """What a policy of `COSTED` decides, among ways to lower a computation, by number of shards.

    Raises PlanError where nothing can be placed, and ProfileError without costs.
    """
    if placement.cost is None:
        raise ProfileError(
            f"--policy {placement.policy} weighs what nodes cost on each device, and nothing is "
            "known of that: run `aieflow calibrate` first"
        )
    return choose(
        graphs,
        devices,
        placement.policy,
        placement.places,
        placement.slots,
        placement.cost,
        placement.objective,
        placement.choices,
        placement.effort,
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
