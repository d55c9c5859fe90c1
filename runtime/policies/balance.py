"""An assignment that keeps all devices busy for the same time: where a search may begin.

Nodes of one role (one op in all layers and slices of the batch) are divided among devices in shares
that let the busiest lane be done as early as it can, nodes in no order: a small linear program,
with the times t[S] of `runtime.bounds` for devices that slow each other down. Then each role's
nodes, in program order, go to the device that lacks most of its share so far, so that devices have
work at any time. Where a node divides the run in two (`runtime.cut`), each phase is balanced on its
own. Transfers of single values are left out; those of a chain are in its pieces.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog  # type: ignore[import-untyped]  # ships no types

from aieflow.runtime.cut import cut
from aieflow.runtime.policies.tasks import Tasks, predecessors

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Balance:
    """The least time in which lanes get through all nodes in no order, and what follows from it."""

    seconds: float
    homes: tuple[int, ...]  # nodes go to devices in the shares that reach it
    penalties: Floats  # how much later all is done if node n goes to device d: [n, d]


def balance(tasks: Tasks, fixed: Sequence[int | None] | None = None) -> Balance:
    """The balance of a graph; `fixed` are the devices of nodes that have no choice."""
    loads = lane_loads(tasks)
    halves = _phases(tasks, loads)
    found = [_balanced(tasks, loads, nodes, fixed or [None] * tasks.count) for nodes in halves]
    homes = [0] * tasks.count
    penalties = np.full(loads.shape[:2], np.inf)
    for nodes, half in zip(halves, found, strict=True):
        for node in nodes:
            homes[node], penalties[node] = half.homes[node], half.penalties[node]
    return Balance(sum(half.seconds for half in found), tuple(homes), penalties)


def _phases(tasks: Tasks, loads: Floats) -> list[list[int]]:
    """All nodes, or those that a cut needs and all others."""
    able = np.array([[bool(pieces) for pieces in row] for row in tasks.pieces])
    least = np.where(able, loads.sum(axis=2), np.inf).min(axis=1, initial=np.inf)
    found = cut(predecessors(tasks), least.tolist())
    if found is None:
        return [list(range(tasks.count))]
    after = set(found.after)
    return [[n for n in range(tasks.count) if n not in after], sorted(after)]


def _balanced(
    tasks: Tasks, loads: Floats, nodes: Sequence[int], chosen: Sequence[int | None]
) -> Balance:
    """Of some nodes; those of others are of no account."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for node in nodes:
        labels = tasks.labels[node]
        only = chosen[node]
        able = tasks.able(node) if only is None else (only,)
        groups.setdefault((labels[min(1, len(labels) - 1)], able), []).append(node)
    homes = [0] * tasks.count
    members = [(able, nodes) for (_, able), nodes in groups.items()]
    seconds, shares, prices = _solved(tasks, loads, members)
    costs = loads @ prices
    penalties = np.full(costs.shape, np.inf)
    for (able, alike), share in zip(members, shares, strict=True):
        given = np.zeros(len(able))
        for number, node in enumerate(alike):
            place = int(np.argmax(share * (number + 1) - given))
            given[place] += 1
            homes[node] = able[place]
        for device in able:
            least = costs[np.ix_(alike, able)].min(axis=1)
            penalties[alike, device] = costs[alike, device] - least
    return Balance(seconds, tuple(homes), penalties)


def lane_loads(tasks: Tasks) -> Floats:
    """Seconds that node n on device d takes of each resource, all its lanes together: [n, d, r]."""
    loads = np.zeros((tasks.count, len(tasks.devices), len(tasks.resources)))
    for node, row in enumerate(tasks.pieces):
        for device, pieces in enumerate(row):
            for piece in pieces:
                if is_lanes(tasks, piece.resource):
                    loads[node, device, piece.resource] += piece.seconds * piece.parts
    return loads


def is_lanes(tasks: Tasks, resource: int) -> bool:
    """Whether a resource has a number of lanes to be shared."""
    return not tasks.resources[resource].is_slots and tasks.resources[resource].width is not None


def _solved(
    tasks: Tasks, loads: Floats, groups: Sequence[tuple[tuple[int, ...], list[int]]]
) -> tuple[float, list[Floats], Floats]:
    """The least seconds, the shares of each group's devices, and the price of each resource."""
    columns = sum(len(able) for able, _ in groups)
    sets, resources = len(tasks.slowdowns), len(tasks.resources)
    upper = np.zeros((resources, columns + sets))
    equal = np.zeros((len(groups), columns + sets))
    places = np.cumsum([0, *(len(able) for able, _ in groups)])
    for row, (able, nodes) in enumerate(groups):
        for column, device in enumerate(able, start=int(places[row])):
            upper[:, column] = loads[nodes, device].sum(axis=0)
            equal[row, column] = 1.0
    scale = upper.max(initial=0.0) or 1.0
    upper /= scale
    for number, resource in enumerate(tasks.resources):
        for busy in range(1, sets) if is_lanes(tasks, number) else ():
            if busy >> resource.device & 1:
                width = resource.width or 1
                upper[number, columns + busy] = -width / tasks.slowdowns[busy][resource.device]
    objective = np.concatenate([np.zeros(columns), np.ones(sets)])
    found = linprog(
        objective, upper, np.zeros(resources), equal, np.ones(len(groups)), method="highs-ds"
    )
    assert found.status == 0, found.message  # all on one device is a solution
    shares = np.split(np.asarray(found.x[:columns], np.float64), places[1:-1])
    return float(found.fun) * scale, shares, -np.asarray(found.ineqlin.marginals, np.float64)
