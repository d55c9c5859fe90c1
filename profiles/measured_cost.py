"""Predicts seconds on this computer from what `aieflow calibrate` measured.

A node is looked up as its work (`profiles.work`): where that was measured often enough, it takes
what was measured; else what the curve through the op's measured works foretells (`profiles.fit`),
which is made of works of the same variant and number of parts where there are enough of them.

Watts are 0: no meter of this computer is read. So joules are not foretold.
"""

from collections.abc import Collection
from dataclasses import dataclass

from aieflow.ops.errors import ProfileError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Kernels
from aieflow.profiles.fit import LEAST_FOR_VARIANT, Curve, Fit, curve, fit
from aieflow.profiles.measured import MeasuredProfile, Point
from aieflow.profiles.overhead import UNTRACED, Overheads, PerStep
from aieflow.profiles.samples import Samples
from aieflow.profiles.work import Work, work_of

NO_WATTS = "watts are not known: no power meter is read"
Group = tuple[str, str, str, int | None, str | None]  # device, op, kernel, parts, variant


@dataclass(frozen=True, slots=True)
class Link:
    """Seconds of a transfer or copy: latency, and bytes at a rate."""

    latency_s: float
    s_per_byte: float

    def seconds(self, nbytes: float) -> float:
        """What so many bytes take."""
        return self.latency_s + self.s_per_byte * nbytes


class MeasuredCost:
    """The cost model of this computer; `kernels` are those that the devices have now."""

    def __init__(self, profile: MeasuredProfile, kernels: Kernels) -> None:
        self.profile = profile
        self._kernels = kernels
        self._seconds: dict[tuple[str, Node, int], float] = {}
        self._curves: dict[Group, Curve | None] = {}
        self._lines: dict[tuple[str, str], Fit] = {}
        self._links = links(profile)

    @property
    def name(self) -> str:
        """The words "this computer", and its power source."""
        return f"this computer on {self.profile.power} power"

    @property
    def idle_w(self) -> float:
        """0: see `NO_WATTS`."""
        return 0.0

    @property
    def overheads(self) -> Overheads:
        """What steps take beside their work."""
        return overheads(self.profile)

    def lanes(self, device: str) -> int:
        """How many compute lanes a device has; raises ProfileError for one not calibrated."""
        if device not in self.profile.lanes:
            raise missing(device)
        return self.profile.lanes[device]

    def lane_w(self, device: str) -> float:
        """0: see `NO_WATTS`."""
        return 0.0

    def node_s(self, device: str, node: Node, parts: int = 1) -> float:
        """Seconds of the longest of `parts` parts of a node; raises ProfileError."""
        key = device, node, parts
        if key not in self._seconds:
            kernel = self._kernels.get(device, {}).get(node.op.name)
            if kernel is None:
                raise missing(device, node.op.name)
            self._seconds[key] = self.seconds(work_of(device, node, kernel, parts))
        return self._seconds[key]

    def seconds(self, work: Work) -> float:
        """Seconds of a work: as measured, or foretold; raises ProfileError."""
        point = self.profile.points.get(work.key)
        if point is not None and point.samples.is_trusted:
            return point.samples.expected
        return self.foretold(work)

    def foretold(self, work: Work) -> float:
        """Seconds of a work by its curve, measured or not; raises ProfileError."""
        for parts, variant in ((work.parts, work.variant), (work.parts, None), (None, None)):
            found = self.curve((work.device, work.op, work.kernel, parts, variant))
            is_last = parts is None
            if found is not None and (is_last or len(found.works) >= LEAST_FOR_VARIANT):
                return found.predict(work)
        raise missing(work.device, work.op)

    def curve(self, group: Group) -> Curve | None:
        """The curve through the trusted works of a group; None where there are none."""
        if group not in self._curves:
            points = [point for point in trusted(self.profile) if _is_in(point, group)]
            self._curves[group] = (
                curve([one.work for one in points], [one.samples.expected for one in points])
                if points
                else None
            )
        return self._curves[group]

    def work_s(self, device: str, op: str, flops: float, nbytes: float, parts: int = 1) -> float:
        """Seconds of so much work of an op, by the fit through all its works; ProfileError."""
        if (device, op) not in self._lines:
            rows = [
                (point.work.flops, point.work.nbytes, point.samples.expected)
                for point in trusted(self.profile)
                if (point.work.device, point.work.op) == (device, op)
            ]
            if not rows:
                raise missing(device, op)
            self._lines[device, op] = fit(rows)
        return self._lines[device, op].seconds(flops, nbytes)

    def transfer_s(self, device: str, nbytes: float) -> float:
        """Seconds of a transfer, the mean of both directions; raises ProfileError."""
        both = [self._links.get((way, device)) for way in ("in", "out")]
        known = [link.seconds(nbytes) for link in both if link is not None]
        if not known:
            raise missing(device)
        return sum(known) / len(known)

    def copy_s(self, nbytes: float) -> float:
        """Seconds in which the host copies bytes within its memory; raises ProfileError."""
        link = next((link for (kind, _), link in self._links.items() if kind == "copy"), None)
        if link is None:
            raise missing("cpu")
        return link.seconds(nbytes)

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """How many times longer a device takes beside others, as pairs did; 1 where unknown."""
        factor = 1.0
        for other in sorted(set(others) - {device}):
            samples = self.profile.series.get(("slowdown", f"{device},{other}", ""))
            factor *= 1.0 if samples is None else max(1.0, samples.median)
        return factor


def trusted(profile: MeasuredProfile) -> list[Point]:
    """The points with enough samples, in the order of their keys."""
    return [point for _, point in sorted(profile.points.items()) if point.samples.is_trusted]


def links(profile: MeasuredProfile) -> dict[tuple[str, str], Link]:
    """What transfers and copies take, by kind ("in", "out", "copy") and device."""
    rows: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for (kind, device, subject), samples in sorted(profile.series.items()):
        if kind in ("in", "out", "copy"):
            rows.setdefault((kind, device), []).append((0.0, float(subject), samples.expected))
    found: dict[tuple[str, str], Link] = {}
    for name, each in rows.items():
        line = fit(each)
        found[name] = Link(line.launch_s, line.s_per_byte)
    return found


def overheads(profile: MeasuredProfile) -> Overheads:
    """What steps take beside their work, as measured."""
    known: dict[str, dict[tuple[str, str], Samples]] = {}
    for (kind, devices, subject), samples in sorted(profile.series.items()):
        known.setdefault(kind, {})[devices, subject] = samples
    beside = {
        name: PerStep(
            tuple(
                zip(
                    known["gaps"][name].values,
                    known["step"][name].values,
                    samples.values,
                    strict=True,
                )
            )
        )
        for name, samples in known.get("gap", {}).items()
    }
    return Overheads(
        {devices: samples.median for (devices, _), samples in known.get("run", {}).items()},
        {name: each for name, each in beside.items() if name[1] != UNTRACED},
        {device: each for (device, kind), each in beside.items() if kind == UNTRACED},
    )


def missing(device: str, op: str | None = None) -> ProfileError:
    """The error of what was not calibrated, with the command that does it."""
    what = f"no calibration of {op} on {device}" if op else f"no calibration of {device}"
    option = f" --op {op}" if op else ""
    return ProfileError(f"{what}: run `aieflow calibrate --device {device}{option}`")


def _is_in(point: Point, group: Group) -> bool:
    work = point.work
    device, op, kernel, parts, variant = group
    return (
        (work.device, work.op, work.kernel) == (device, op, kernel)
        and parts in (None, work.parts)
        and variant in (None, work.variant)
    )
