"""Improves an assignment by many small changes, each judged by an estimate.

Nodes move alone, or with others of a group: all nodes of an op, of a role (one op in all layers),
of a role in one layer or one slice of the batch, or of a slice. The loop is machine code: see
`climb`.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from aieflow.runtime.policies.climb import (
    ENERGY,
    ENERGY_DELAY,
    POWER_CAP,
    TIME,
    climb,
)
from aieflow.runtime.policies.estimate import Estimate, Estimator, order_of
from aieflow.runtime.policies.flat import laid
from aieflow.runtime.policies.objective import Kind, Objective
from aieflow.runtime.policies.tasks import Tasks

AIMS: dict[Kind, int] = {
    "time": TIME,
    "energy": ENERGY,
    "energy-delay": ENERGY_DELAY,
    "power-cap": POWER_CAP,
}


@dataclass(frozen=True, slots=True, eq=False)
class Improved:
    """An assignment, its estimate, and how many estimates finding it took."""

    homes: tuple[int, ...]
    estimate: Estimate
    estimates: int


class LocalSearch:
    """The changes of one graph."""

    def __init__(self, tasks: Tasks, estimator: Estimator, objective: Objective) -> None:
        self._tasks, self._estimator, self._objective = tasks, estimator, objective
        groups = groups_of(tasks)
        self._starts = np.cumsum([0, *map(len, groups)], dtype=np.int64)
        self._members = np.array([node for group in groups for node in group], np.int64)

    def improved(self, homes: Sequence[int], ranks: Sequence[float], estimates: int) -> Improved:
        """The best assignment found from `homes` with so many estimates, at least one."""
        (found,) = self.all_improved([(homes, ranks)], estimates, threads=1)
        return found

    def all_improved(
        self,
        bases: Sequence[tuple[Sequence[int], Sequence[float]]],
        estimates: int,
        threads: int,
    ) -> list[Improved]:
        """The best assignments found from several, with their ranks, in so many threads.

        Each has so many estimates; none knows of the others, so the number of threads changes
        nothing but the time that it takes.
        """
        estimate = self._estimator.estimate
        if len(self._estimator.flat.movable) == 0 or estimates < 2:
            return [Improved(tuple(homes), estimate(homes, ranks), 1) for homes, ranks in bases]
        for homes, _ in bases:
            laid(self._estimator.flat, homes)  # makes room, before any begins
        with ThreadPoolExecutor(max_workers=min(threads, len(bases))) as pool:
            found = list(pool.map(lambda base: self._climbed(base[0], base[1], estimates), bases))
        return [
            Improved(homes, estimate(homes, ranks), estimates)
            for homes, (_, ranks) in zip(found, bases, strict=True)
        ]

    def _climbed(
        self, homes: Sequence[int], ranks: Sequence[float], estimates: int
    ) -> tuple[int, ...]:
        tasks, flat, objective = self._tasks, self._estimator.flat, self._objective
        found = climb(
            np.array(homes, np.int64),
            order_of(ranks),
            estimates,
            AIMS[objective.kind],
            objective.cap_w or 0.0,
            np.array([each.watts for each in tasks.resources], np.float64),
            tasks.idle_w,
            flat.able,
            flat.movable,
            (self._starts, self._members),
            flat.risks,
            *flat.rows,
            flat.lanes,
            flat.most_steps,
            2 * flat.room,
        )
        return tuple(int(device) for device in found)


def groups_of(tasks: Tasks) -> tuple[tuple[int, ...], ...]:
    """Nodes in program order that share a label, two at least; each set of nodes once."""
    groups: dict[str, list[int]] = {}
    for node, labels in enumerate(tasks.labels):
        for label in labels:
            groups.setdefault(label, []).append(node)
    return tuple(dict.fromkeys(tuple(nodes) for nodes in groups.values() if len(nodes) > 1))
