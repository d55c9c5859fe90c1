"""Which lanes do a node, once its device is known: large nodes go to several of them.

A node is divided over all compute lanes of its device, or as many as it has parts for and a
`Division` allows, when that is predicted to save more than a wait between lanes costs; a small node
goes whole to the lane with the least work. Where it is known when nodes are to run, they have the
lanes that are free longest. Packs and unpacks are nodes of the host like others. Where it has no
kernels for them, a pack has its device's lane for transfers in and an unpack the lane for transfers
out.
"""

from collections.abc import Mapping, Sequence

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import HostKernel, Kernel, Kernels
from aieflow.profiles.cost import RooflineCost
from aieflow.runtime.policies.division import WHOLE, Division
from aieflow.runtime.schedule import Schedule, Times, device_of
from aieflow.runtime.transfer import SAVE_LANE, Reach

EDGE_S = 20e-6  # predicted cost of lanes meeting at a divided node


def cpu_schedule(
    graph: Graph, kernels: Mapping[str, Kernel], lanes: tuple[str, ...], cost: RooflineCost
) -> Schedule:
    """The policy `cpu`: every node on lanes of one device; raises PlanError without a kernel."""
    device = device_of(lanes[0])
    homes = [device] * len(graph.nodes)
    return schedule_lanes("cpu", graph, homes, {device: kernels}, {device: lanes}, {}, cost)


def schedule_lanes(
    policy: str,
    graph: Graph,
    homes: Sequence[str],
    kernels: Kernels,
    lanes: Mapping[str, tuple[str, ...]],
    reach: Mapping[str, Reach],
    cost: RooflineCost,
    division: Division = WHOLE,
    times: Times | None = None,
) -> Schedule:
    """Place each node of `graph` on compute or copy lanes of its home.

    `times` says when nodes are to begin and to end, of those that it holds. Raises PlanError for an
    op without a kernel there.
    """
    load = {lane: 0.0 for names in lanes.values() for lane in names}
    placements: list[tuple[str, ...]] = []
    on_device: set[Value] = set()  # what compute lanes of separate devices have written
    for node, home in zip(graph.nodes, homes, strict=True):
        kernel = kernels.get(home, {}).get(node.op.name)
        if kernel is None:
            names = ", ".join(lanes.get(home, (home,)))
            raise PlanError(f"{node.name}: the lanes {names} run no {node.op.name}")
        around = reach.get(home, Reach())
        if around.is_separate and around.copy_lanes is not None:
            if isinstance(kernel, HostKernel):
                is_unpack = not on_device.isdisjoint(node.inputs)
                placements.append((around.copy_lanes[int(is_unpack)],))
                continue
            on_device.update(node.outputs)
        most = division.most(node, len(lanes[home]))
        end_s = times[node.name][1] if times and node.name in times else None
        placements.append(_divide(node, kernel, lanes[home], most, load, cost, end_s))
    copy_lanes = [lane for name in lanes for lane in reach.get(name, Reach()).copy_lanes or ()]
    copy_lanes += [SAVE_LANE] if copy_lanes else []
    compute_lanes = [lane for each in lanes.values() for lane in each]
    return Schedule(policy, (*compute_lanes, *copy_lanes), tuple(placements))


def _divide(
    node: Node,
    kernel: Kernel,
    lanes: tuple[str, ...],
    most: int,
    load: dict[str, float],
    cost: RooflineCost,
    end_s: float | None,
) -> tuple[str, ...]:
    """The lanes of one node; adds to their load, or sets it to when the node is to end."""
    parts = min(most, kernel.split(node).units)
    flops, nbytes = node.flops, node.nbytes
    whole = cost.seconds(flops, nbytes)
    divided = cost.seconds(flops / parts, nbytes / parts) + EDGE_S
    free_first = sorted(lanes, key=lambda name: load[name])  # stable: ties keep lane order
    if parts > 1 and divided < whole:
        chosen = tuple(lane for lane in lanes if lane in free_first[:parts])
        end = max(load[lane] for lane in chosen) + divided
    else:
        chosen = (free_first[0],)
        end = load[free_first[0]] + whole
    load.update(dict.fromkeys(chosen, end if end_s is None else end_s))
    return chosen
