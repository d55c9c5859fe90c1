"""What works took in a run of late, relative to what was foretold of them.

A row for each work (op, kernel, device, shapes, parts), with its latest few ratios of measured to
foretold seconds. Rows are made when a plan is taken up; to note a run is to write one number in
each row of the plan. What is believed of a row is the median, so that one interruption counts for
nothing.

`learned` is a copy for a cost model: of each work, and for works that were never run, of each op on
a device and of each device, as the mean weighed by the foretold seconds. For these means only what
the latest runs have shown counts, if they have shown anything of the device.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from aieflow.ops.op import Array
from aieflow.profiles.measured import WorkKey
from aieflow.profiles.work import Work

Name = TypeVar("Name", str, tuple[str, str])
KEPT = 5  # latest ratios of each work, and runs that count as recent


@dataclass(frozen=True, slots=True)
class Learned:
    """How many times longer than foretold things take; what is unknown is absent."""

    works: Mapping[WorkKey, float] = field(default_factory=dict)
    ops: Mapping[tuple[str, str], float] = field(default_factory=dict)  # by device and op
    devices: Mapping[str, float] = field(default_factory=dict)

    def ratio(self, work: Work) -> float:
        """Of a work: its own, else that of its op on its device, else of its device, else 1."""
        found = self.works.get(work.key)
        if found is None:
            found = self.ops.get((work.device, work.op))
        return self.devices.get(work.device, 1.0) if found is None else found

    def slowed(self, devices: Sequence[str], factor: float) -> "Learned":
        """The same, but all that some devices do takes `factor` times as long again."""
        works = {
            key: ratio * (factor if key[0] in devices else 1.0) for key, ratio in self.works.items()
        }
        ops = {
            key: ratio * (factor if key[0] in devices else 1.0) for key, ratio in self.ops.items()
        }
        others = {name: factor * self.devices.get(name, 1.0) for name in devices}
        return Learned(works, ops, {**self.devices, **others})


class History:
    """The ratios of every work that was run."""

    def __init__(self) -> None:
        self._row: dict[WorkKey, int] = {}
        self._works: list[Work] = []
        self._foretold_s: list[float] = []
        self._ratios: Array = np.zeros((0, KEPT))
        self._counts: Array = np.zeros(0, np.int64)  # of all runs
        self._latest: Array = np.zeros(0, np.int64)  # the number of the run that it was seen in
        self._runs = 0

    def rows(self, works: Sequence[Work], foretold_s: Sequence[float]) -> Array:
        """The row of each work, int64, for `note`; makes those that are missing."""
        for work, seconds in zip(works, foretold_s, strict=True):
            if work.key not in self._row:
                self._row[work.key] = len(self._works)
                self._works.append(work)
                self._foretold_s.append(seconds)
        more = len(self._works) - len(self._counts)
        self._ratios = np.concatenate([self._ratios, np.zeros((more, KEPT))])
        self._counts = np.concatenate([self._counts, np.zeros(more, np.int64)])
        self._latest = np.concatenate([self._latest, np.zeros(more, np.int64)])
        return np.array([self._row[work.key] for work in works], np.int64)

    def note(self, rows: Array, ratios: Array) -> None:
        """One run: a ratio, float64, for each of some rows, which must differ."""
        self._runs += 1
        self._ratios[rows, self._counts[rows] % KEPT] = ratios
        self._counts[rows] += 1
        self._latest[rows] = self._runs

    def forget(self, devices: Sequence[str]) -> None:
        """Let works of these devices count as never run."""
        for row, work in enumerate(self._works):
            if work.device in devices:
                self._counts[row] = 0

    def count(self, work: Work) -> int:
        """How often a work was noted."""
        row = self._row.get(work.key)
        return 0 if row is None else int(self._counts[row])

    def learned(self) -> Learned:
        """What is believed now."""
        known = [row for row, count in enumerate(self._counts) if count]
        median = {row: self._median(row) for row in known}
        recent = [row for row in known if self._latest[row] > self._runs - KEPT]
        shown = {self._works[row].device for row in recent}
        # What runs have not shown of late counts only where they show nothing of the device.
        counting = [row for row in known if row in recent or self._works[row].device not in shown]
        return Learned(
            {self._works[row].key: median[row] for row in counting},
            self._means(counting, median, lambda work: (work.device, work.op)),
            self._means(counting, median, lambda work: work.device),
        )

    def _median(self, row: int) -> float:
        kept = min(KEPT, int(self._counts[row]))
        return float(np.median(self._ratios[row, :kept]))

    def _means(
        self, rows: Sequence[int], median: Mapping[int, float], name: Callable[[Work], Name]
    ) -> dict[Name, float]:
        sums: dict[Name, tuple[float, float]] = {}
        for row in rows:
            key, foretold_s = name(self._works[row]), self._foretold_s[row]
            measured_s, total_s = sums.get(key, (0.0, 0.0))
            sums[key] = measured_s + median[row] * foretold_s, total_s + foretold_s
        return {key: measured / total for key, (measured, total) in sums.items() if total}
