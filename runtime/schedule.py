"""A schedule: who runs what. For each node of a graph the lanes that do it, one part each.

Each lane runs its nodes in program order, so the placements are the whole decision.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph

Times = Mapping[str, tuple[float, float]]  # of nodes by name: when they begin and end, in seconds


@dataclass(frozen=True, slots=True)
class Schedule:
    """`placements[i]` names the lanes that do node i, in the order of the parts."""

    policy: str
    lanes: tuple[str, ...]
    placements: tuple[tuple[str, ...], ...]

    def check(self, graph: Graph) -> None:
        """Raise PlanError unless every node is placed on lanes that exist, each at most once."""
        if len(self.placements) != len(graph.nodes):
            raise PlanError(
                f"schedule {self.policy} places {len(self.placements)} nodes, "
                f"{graph.name} has {len(graph.nodes)}"
            )
        known = set(self.lanes)
        for node, lanes in zip(graph.nodes, self.placements, strict=True):
            if not lanes:
                raise PlanError(f"schedule {self.policy} places {node.name} on no lane")
            if len(set(lanes)) != len(lanes) or not known.issuperset(lanes):
                raise PlanError(
                    f"schedule {self.policy} places {node.name} on {lanes}; "
                    f"lanes are {', '.join(self.lanes)}, each once at most"
                )


def device_of(lane: str) -> str:
    """The device that a lane belongs to.

    >>> device_of("cpu.compute.1")
    'cpu'
    """
    return lane.partition(".")[0]
