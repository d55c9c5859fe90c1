"""The policy `cpu`: everything on the CPU's compute lanes, large nodes on all of them.

A node is divided over all lanes (or as many as it has parts for) when that is predicted to save
more than a wait between lanes costs; a small node goes whole to the lane with the least work.
"""

from collections.abc import Mapping

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph
from aieflow.ops.kernel import Kernel
from aieflow.profiles.cost import RooflineCost
from aieflow.runtime.schedule import Schedule

EDGE_S = 20e-6  # predicted cost of lanes meeting at a divided node


def cpu_schedule(
    graph: Graph, kernels: Mapping[str, Kernel], lanes: tuple[str, ...], cost: RooflineCost
) -> Schedule:
    """Place every node of `graph`; raises PlanError for an op without a kernel."""
    load = dict.fromkeys(lanes, 0.0)
    placements: list[tuple[str, ...]] = []
    for node in graph.nodes:
        kernel = kernels.get(node.op.name)
        if kernel is None:
            raise PlanError(f"{node.name}: the lanes {', '.join(lanes)} run no {node.op.name}")
        parts = min(len(lanes), kernel.split(node).units)
        whole = cost.seconds(node.flops, node.nbytes)
        divided = cost.seconds(node.flops / parts, node.nbytes / parts) + EDGE_S
        free_first = sorted(lanes, key=lambda name: load[name])  # stable: ties keep lane order
        if parts > 1 and divided < whole:
            chosen = tuple(lane for lane in lanes if lane in free_first[:parts])
            end = max(load[lane] for lane in chosen) + divided
        else:
            chosen = (free_first[0],)
            end = load[free_first[0]] + whole
        placements.append(chosen)
        load.update(dict.fromkeys(chosen, end))
    return Schedule("cpu", lanes, tuple(placements))
