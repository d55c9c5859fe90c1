"""Improves an assignment step by step: groups of like nodes move to another device.

A group is all nodes of an op, of a role (one op in all layers), of a role in one layer or one slice
of the batch, or a single node. Moves are tried in the order of three simple forecasts, in turn: how
long the busiest lanes would then be busy, how much longer the nodes themselves would take, and how
much longer for each second by which the busiest lanes are relieved. A move that improves the
estimate is made, and those not tried yet are ordered anew; once all were tried and one was made,
all are tried again. Where no single move helps, pairs do of those that did least harm: the one may
take back what the other overloads. The search ends when no pair helps either, or its estimates are
used up; it draws no lots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array  # type: ignore[import-untyped]  # ships no types

from aieflow.runtime.policies.balance import is_lanes, lane_loads
from aieflow.runtime.policies.booking import span_s
from aieflow.runtime.policies.estimate import Estimate, Estimator
from aieflow.runtime.policies.objective import Objective
from aieflow.runtime.policies.tasks import Tasks

SINGLES = 256  # so many of the longest nodes may move alone
PAIRED = 32  # of the moves that did least harm
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Improved:
    """An assignment, its estimate, and how many estimates finding it took."""

    homes: tuple[int, ...]
    estimate: Estimate
    estimates: int


@dataclass(frozen=True, slots=True)
class Move:
    """Nodes that go to a device together."""

    nodes: tuple[int, ...]
    device: int


class LocalSearch:
    """The moves of one graph, and what they can be forecast by."""

    def __init__(self, tasks: Tasks, estimator: Estimator, objective: Objective) -> None:
        self._tasks, self._estimator, self._objective = tasks, estimator, objective
        self._moves = all_moves(tasks)
        self._costs = _Costs(tasks, self._moves)

    def improved(self, homes: Sequence[int], ranks: Sequence[float], estimates: int) -> Improved:
        """The best assignment found from `homes` with so many estimates, at least one."""
        now = np.array(homes, np.int64)
        held = self._estimator.estimate(now, ranks, with_starts=False)
        score = self._objective.score(held.seconds, held.joules)
        count, made = 1, True
        while made and count < estimates:
            made = False
            tried: dict[int, tuple[int, float]] = {}  # move -> score
            queue = self._costs.forecast(now, held)
            while queue and count < estimates:
                place = queue.pop()
                then = self._after(now, (place,))
                found = self._estimator.estimate(then, ranks, with_starts=False)
                count += 1
                tried[place] = self._objective.score(found.seconds, found.joules)
                if tried[place] < score:
                    now, held, score, made = then, found, tried[place], True
                    queue = [each for each in self._costs.forecast(now, held) if each not in tried]
            if made:
                continue
            mild = sorted(tried, key=lambda place: (tried[place], place))[:PAIRED]
            pairs = sorted(combinations(range(len(mild)), 2), key=sum)
            for pair in pairs:
                if count >= estimates:
                    break
                then = self._after(now, tuple(mild[each] for each in pair))
                found = self._estimator.estimate(then, ranks, with_starts=False)
                count += 1
                reached = self._objective.score(found.seconds, found.joules)
                if reached < score:
                    now, held, score, made = then, found, reached, True
                    break
        chosen = tuple(int(device) for device in now)
        return Improved(chosen, self._estimator.estimate(chosen, ranks), count)

    def _after(self, homes: Ints, places: Sequence[int]) -> Ints:
        then = homes.copy()
        for place in places:
            then[list(self._moves[place].nodes)] = self._moves[place].device
        return then


def all_moves(tasks: Tasks) -> tuple[Move, ...]:
    """Every group to every device that can do some of it, each set of nodes once."""
    groups: dict[str, list[int]] = {}
    for node, labels in enumerate(tasks.labels):
        for label in labels:
            groups.setdefault(label, []).append(node)
    spans = [
        min(span_s(tasks.pieces[node][device]) for device in tasks.able(node))
        for node in range(tasks.count)
    ]
    longest = sorted(range(tasks.count), key=lambda node: (-spans[node], node))[:SINGLES]
    sets = dict.fromkeys([tuple(nodes) for nodes in groups.values()])
    sets |= dict.fromkeys((node,) for node in longest)
    moves = [
        Move(able, device)
        for nodes in sets
        for device in range(len(tasks.devices))
        if (able := tuple(node for node in nodes if tasks.pieces[node][device]))
    ]
    return tuple(dict.fromkeys(moves))


class _Costs:
    """What nodes take of lanes on each device, and how long they are there."""

    def __init__(self, tasks: Tasks, moves: Sequence[Move]) -> None:
        lanes = [number for number in range(len(tasks.resources)) if is_lanes(tasks, number)]
        self._lanes = lanes
        self._widths = np.array([tasks.resources[each].width for each in lanes], np.float64)
        spans = np.array([[span_s(pieces) for pieces in row] for row in tasks.pieces])
        spans = spans.reshape(tasks.count, len(tasks.devices), 1)
        # What counts of a node: its share of each resource's line, and its seconds.
        self._costs = np.concatenate([lane_loads(tasks)[:, :, lanes] / self._widths, spans], axis=2)
        self._all = np.arange(tasks.count)
        starts = np.cumsum([0, *(len(move.nodes) for move in moves)])
        nodes = np.array([node for move in moves for node in move.nodes], np.int64)
        self._members = csr_array(
            (np.ones(len(nodes)), nodes, starts), shape=(len(moves), tasks.count)
        )
        devices = np.repeat([move.device for move in moves], np.diff(starts))
        self._nodes, self._devices, self._starts = nodes, devices, starts
        self._then = np.add.reduceat(self._costs[nodes, devices], starts[:-1], axis=0)

    def forecast(self, homes: Ints, held: Estimate) -> list[int]:
        """The places of moves that change something, the most promising last."""
        moved = np.add.reduceat(
            (homes[self._nodes] != self._devices).astype(int), self._starts[:-1]
        )
        change = self._then - self._members @ self._costs[self._all, homes]
        busy = np.array(held.busy_s)[self._lanes] / self._widths
        then, longer = busy + change[:, :-1], change[:, -1]
        busiest = int(np.argmax(busy))
        relief = -change[:, busiest]
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.where(relief > 0, longer / relief, np.inf)
        places = np.flatnonzero(moved)
        orders = [
            places[np.argsort(each[places], kind="stable")]
            for each in (then.max(axis=1), longer, price)
        ]
        return list(dict.fromkeys(np.stack(orders, axis=1).ravel().tolist()))[::-1]
