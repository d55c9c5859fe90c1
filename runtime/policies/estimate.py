"""What an assignment of nodes to devices would take: a list schedule in virtual time, node by node.

Whenever a lane is free, the ready piece of highest rank starts (ties: in program order). Devices
that are busy together slow each other down, as in `runtime.simulate`. Unlike there, lanes follow no
fixed order, a divided node's lanes start together, and memory makes nobody wait: this is the quick
judgement, to be made many hundreds of times; what is chosen by it is compiled and simulated. So it
runs as machine code (`step_layout`, `virtual_run`), on tables made once (`flat`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from aieflow.ops.errors import PlanError
from aieflow.runtime.policies.flat import Flat, Laid, flat_of, laid
from aieflow.runtime.policies.step_layout import (
    END,
    PARTS,
    PIECE,
    RESOURCE,
    Floats,
    Ints,
    longest,
)
from aieflow.runtime.policies.tasks import Tasks
from aieflow.runtime.policies.virtual_run import run
from aieflow.runtime.schedule import Times


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """What an assignment takes, and when the nodes of its expanded graph begin and end."""

    seconds: float
    joules: float
    times: Times  # empty where nobody asked for them
    busy_s: tuple[float, ...]  # of each resource, all lanes together


class Estimator:
    """Estimates of many assignments of one graph."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks, self._flat = tasks, flat_of(tasks)

    @property
    def flat(self) -> Flat:
        """The tables as arrays."""
        return self._flat

    def estimate(
        self, homes: Sequence[int] | Ints, ranks: Sequence[float], with_times: bool = True
    ) -> Estimate:
        """What it takes with node n on device `homes[n]`; raises PlanError for a circle."""
        tasks, flat = self._tasks, self._flat
        steps, started, ended = self.listed(homes, ranks)
        seconds = float(ended.max(initial=0.0))
        busy = np.zeros(len(tasks.resources))
        np.add.at(busy, steps.steps[RESOURCE], (ended - started) * steps.steps[PARTS])
        active = sum(
            taken * each.watts for taken, each in zip(busy.tolist(), tasks.resources, strict=True)
        )
        times: dict[str, tuple[float, float]] = {}
        if with_times:
            names = [
                flat.pieces[piece].name if piece != END else "" for piece in steps.steps[PIECE]
            ]
            spans = zip(started.tolist(), ended.tolist(), strict=True)
            times = {name: span for name, span in zip(names, spans, strict=True) if name}
        return Estimate(seconds, active + tasks.idle_w * seconds, times, tuple(busy.tolist()))

    def listed(
        self, homes: Sequence[int] | Ints, ranks: Sequence[float]
    ) -> tuple[Laid, Floats, Floats]:
        """The steps of an assignment, and when each starts and ends, in seconds.

        Raises PlanError for a circle.
        """
        steps = laid(self._flat, homes)
        count = len(steps.seconds)
        started, ended = np.zeros(count), np.zeros(count)
        done = run(
            steps.steps,
            steps.seconds,
            steps.next_of,
            steps.links,
            order_of(ranks),
            *self._flat.lanes,
            started,
            ended,
            np.zeros(count, np.int64),
        )
        if done < count:
            name = self._tasks.name
            raise PlanError(f"{name}: nodes wait for each other: {done} of {count} ran")
        return steps, started, ended

    def floor(self, homes: Sequence[int]) -> tuple[float, float]:
        """Seconds and joules that no run with these homes undercuts: see `floor`."""
        tasks = self._tasks
        steps = laid(self._flat, homes, saves=False)
        found = longest(
            len(tasks.resources), steps.steps, steps.seconds, steps.next_of, steps.links
        )
        *loads, path = found.tolist()
        rows = list(zip(loads, tasks.resources, strict=True))
        seconds = max([path, *(load / each.width for load, each in rows if each.width)])
        return seconds, sum(load * each.watts for load, each in rows) + tasks.idle_w * seconds


def order_of(ranks: Sequence[float]) -> Ints:
    """The place of each node by its rank, 0 the highest; equal ranks share a place."""
    _, order = np.unique(-np.asarray(ranks, np.float64), return_inverse=True)
    return order.astype(np.int64)


def estimate(tasks: Tasks, homes: Sequence[int], ranks: Sequence[float]) -> Estimate:
    """What it takes with node n on device `homes[n]`; raises PlanError for a circle of nodes."""
    return Estimator(tasks).estimate(homes, ranks)


def floor(tasks: Tasks, homes: Sequence[int]) -> tuple[float, float]:
    """Seconds and joules that no run with these homes undercuts: busiest lanes, longest path.

    Copies of states are left out.
    """
    return Estimator(tasks).floor(homes)
