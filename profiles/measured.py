"""What was measured on this computer: samples of works, links, waits and contention, by device.

Every device has a *fingerprint*, the facts on which its speed depends. What was measured under
another fingerprint is stale and is dropped when the profile is brought up to date. A `Series` is
anything measured that is no work, named by its kind and subject:

- `("in", "igpu", "65536")` a transfer to the device of so many bytes; "out" one back: alone, and
  the median of a run that has several
- `("copy", "cpu", "65536")` a copy within the host's memory
- `("gap", "cpu", "cpu.compute waits")` between the end of what a step of that kind of lane follows
  and its start, the mean of one run; "gaps" how many such steps that run had, "step" what its
  steps on compute lanes took; `("gap", "cpu", "untraced")` what a step takes more or less when
  nobody notes its span
- `("run", "cpu", "")` what a run takes beyond its steps
- `("slowdown", "cpu,igpu", "")` how many times longer the first takes beside the second
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from aieflow.profiles.samples import Samples
from aieflow.profiles.work import Work

Fingerprint = Mapping[str, str]
Series = tuple[str, str, str]  # kind, devices with commas, subject
MOST_OF_SERIES = 400  # samples of a series that are kept: they come from all training steps
WorkKey = tuple[str, str, str, int, str]


@dataclass(frozen=True, slots=True)
class Point:
    """A work and what it took, in seconds."""

    work: Work
    samples: Samples


@dataclass(frozen=True, slots=True)
class MeasuredProfile:
    """Everything measured; verbs below give changed copies."""

    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)  # by device
    lanes: Mapping[str, int] = field(default_factory=dict)  # by device
    points: Mapping[WorkKey, Point] = field(default_factory=dict)
    series: Mapping[Series, Samples] = field(default_factory=dict)

    @property
    def power(self) -> str:
        """The power source that all of it was measured on."""
        sources = {facts.get("power", "unknown") for facts in self.fingerprints.values()}
        return " and ".join(sorted(sources)) or "unknown"

    def changes(self, device: str, facts: Fingerprint) -> tuple[str, ...]:
        """How the device's fingerprint differs from `facts`; nothing where it was not measured."""
        known = self.fingerprints.get(device)
        if known is None:
            return ()
        return tuple(
            f"{name}: {known.get(name, 'absent')} then, {facts.get(name, 'absent')} now"
            for name in sorted({*known, *facts})
            if known.get(name) != facts.get(name)
        )

    def without(self, device: str, op: str | None = None) -> "MeasuredProfile":
        """The profile less what is known of a device, or of one op on it."""
        points = {
            key: point
            for key, point in self.points.items()
            if point.work.device != device or (op is not None and point.work.op != op)
        }
        if op is not None:
            return replace(self, points=points)
        return MeasuredProfile(
            {name: facts for name, facts in self.fingerprints.items() if name != device},
            {name: lanes for name, lanes in self.lanes.items() if name != device},
            points,
            {name: each for name, each in self.series.items() if device not in name[1].split(",")},
        )

    def with_device(self, device: str, facts: Fingerprint, lanes: int) -> "MeasuredProfile":
        """The profile with a device as it is now; what was measured of another one is dropped."""
        known = self.without(device) if self.changes(device, facts) else self
        return replace(
            known,
            fingerprints={**known.fingerprints, device: dict(facts)},
            lanes={**known.lanes, device: lanes},
        )

    def with_samples(
        self,
        works: Iterable[tuple[Work, tuple[float, ...]]] = (),
        series: Mapping[Series, tuple[float, ...]] | None = None,
    ) -> "MeasuredProfile":
        """The profile with more samples of works and series."""
        points, known = dict(self.points), dict(self.series)
        for work, values in works:
            point = points.get(work.key)
            samples = Samples(()) if point is None else point.samples
            points[work.key] = Point(work, samples.with_more(values))
        for name, values in (series or {}).items():
            known[name] = known.get(name, Samples(())).with_more(values, MOST_OF_SERIES)
        return replace(self, points=points, series=known)
