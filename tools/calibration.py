"""Brings the profile of this computer up to date: what is missing or stale is measured and kept.

The training steps of the grid take turns in rounds, so that a computer whose speed drifts is as
fast for one as for another. Where time is short they do so in groups: first a few small ones that
hold every op, so that all are known however slow the computer is, then the others, small ones
first. After every visit the profile is handed out, to be written: whoever starts again after Ctrl-C
or a kill goes on from there.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from aieflow.devices.base import Device
from aieflow.ops.kernel import Kernels
from aieflow.ops.matmul import MATMUL
from aieflow.profiles.measured import MeasuredProfile
from aieflow.profiles.samples import TRUSTED
from aieflow.profiles.work import Work
from aieflow.runtime.machine import Machine
from aieflow.runtime.observed import works_in
from aieflow.runtime.placement import Placement
from aieflow.runtime.plan import Plan
from aieflow.runtime.policies.division import WHOLE, Division, halved
from aieflow.tools.calibration_grid import Case, cases
from aieflow.tools.calibration_links import measure_links, measure_slowdown
from aieflow.tools.calibration_visit import Pool, Seen, visit

QUICK_RUNS, FULL_RUNS = 5, 5  # noted runs of a visit
QUICK_SAMPLES, FULL_SAMPLES = TRUSTED, 2 * TRUSTED  # of every work
LINK_ROUNDS, PAIR_ROUNDS = 20, 6
GROUP = 12  # training steps that take turns where time is short
# Splits between the CPU and another device that calibration runs: policy, ops on the CPU.
MIXED_ON_CPU = (MATMUL.name,)
MIXED_ON_OTHER = ("gelu", "gelu_backward", "layernorm")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A training step on one device, or on several to see what crossing between them costs."""

    name: str
    case: Case
    machine: Machine
    plan: Plan
    works: Mapping[int, Work]  # by node; none where several devices disturb each other

    @property
    def devices(self) -> str:
        """The names of the devices that compute, with commas."""
        return ",".join(
            sorted({lane.partition(".")[0] for lane in self.plan.lanes if ".compute" in lane})
        )

    def missing(self, profile: MeasuredProfile, wanted: int, op: str | None) -> int:
        """How many samples the least known of its works still needs."""
        if not self.works:
            runs = profile.series.get(("run", self.devices, self.name))
            return wanted - (0 if runs is None else runs.count)
        counts = [
            0 if (point := profile.points.get(work.key)) is None else point.samples.count
            for work in self.works.values()
            if op in (None, work.op)
        ]
        return wanted - min(counts, default=wanted)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a calibration is, in the FLOPs of the visits that it takes."""

    done: float
    total: float
    what: str  # was visited last


Report = Callable[[MeasuredProfile, Progress], None]


def jobs_for(devices: Mapping[str, Device], only: str | None, quick: bool) -> list[Job]:
    """The training steps to be run, each on each device, `only` one of them where it says so."""
    kernels: Kernels = {name: device.kernels for name, device in devices.items()}
    found: list[Job] = []
    for case in cases(quick):
        graph = case.graph
        for name, device in devices.items():
            if only in (None, name) and all(node.op.name in device.kernels for node in graph.nodes):
                for title, division in _divisions(case, device, len(devices) > 1, quick).items():
                    machine = Machine((device,), Placement(name, division=division))
                    plan = machine.plan(graph)
                    works = works_in(plan, kernels)
                    found.append(Job(f"{case.name} on {name}{title}", case, machine, plan, works))
        if only is None and case.is_mixed and {"cpu", "igpu"} <= devices.keys():
            pair = (devices["cpu"], devices["igpu"])
            for placement in (
                Placement("igpu", dict.fromkeys(MIXED_ON_CPU, "cpu")),
                Placement("cpu", dict.fromkeys(MIXED_ON_OTHER, "igpu")),
            ):
                machine = Machine(pair, placement)
                name = f"{case.name} on both, {placement.policy} first"
                found.append(Job(name, case, machine, machine.plan(graph), {}))
    return found


def _divisions(case: Case, device: Device, has_others: bool, quick: bool) -> Mapping[str, Division]:
    """How nodes are divided over a device's lanes, and what a job's name says of that."""
    half = halved(len(device.lanes))
    if half == WHOLE or not has_others or quick or case.kind != "training":
        return {"": WHOLE}
    return {"": WHOLE, ", half of its lanes a node": half}


def calibrate_devices(
    profile: MeasuredProfile,
    devices: Mapping[str, Device],
    jobs: list[Job],
    report: Report,
    *,
    quick: bool = False,
    op: str | None = None,
    until: float = math.inf,
    runs: int | None = None,
    wanted: int | None = None,
) -> MeasuredProfile:
    """The profile with what was missing; `report` gets it after every visit.

    `wanted` samples of each work are taken (default: by `quick`), `op` measures one op alone,
    and no visit begins after `until` (`time.monotonic`). Raises DeviceError.
    """
    wanted = wanted or (QUICK_SAMPLES if quick else FULL_SAMPLES)
    runs = runs or (QUICK_RUNS if quick else FULL_RUNS)
    if op is None:
        profile = _with_links(profile, dict(devices))
    pool = Pool(Machine(tuple(devices.values())))
    try:
        total = sum(_flops(job) * _visits(job, profile, wanted, op, runs) for job in jobs)
        done = 0.0
        for job in _turns(jobs, math.ceil(wanted / runs), quick):
            if job.missing(profile, wanted, op) > 0 and time.monotonic() <= until:
                seen = visit(job.machine, job.plan, job.case.config, pool, job.works, runs)
                profile = with_seen(profile, seen, job, op)
                done += _flops(job)
                report(profile, Progress(done, max(total, done), job.name))
    finally:
        pool.close()
    return _with_pairs(profile, dict(devices)) if op is None else profile


def _turns(jobs: list[Job], rounds: int, quick: bool) -> Iterator[Job]:
    """The jobs, each in every round; where it is to be quick, group after group."""
    groups = [jobs]
    if quick:
        by_size = sorted(jobs, key=_flops)  # stable
        first = _covering(by_size)
        rest = [job for job in by_size if job not in first]
        groups = [first, *(rest[at : at + GROUP] for at in range(0, len(rest), GROUP))]
    for group in groups:
        for _ in range(rounds):
            yield from group


def _covering(jobs: list[Job]) -> list[Job]:
    """Those that hold an op on a device which none before them holds."""
    known: set[tuple[str, str]] = set()
    found: list[Job] = []
    for job in jobs:
        held = {(work.device, work.op) for work in job.works.values()}
        if not held <= known:
            known |= held
            found.append(job)
    return found


def with_seen(
    profile: MeasuredProfile, seen: Seen, job: Job, op: str | None = None
) -> MeasuredProfile:
    """The profile with what one visit measured."""
    works = [(work, tuple(each)) for work, each in seen.works.items() if op in (None, work.op)]
    if op is not None:
        return profile.with_samples(works)
    series = {name: tuple(each) for name, each in seen.series.items()}
    if not job.works:  # so that it is known how often this split was run
        series["run", job.devices, job.name] = series["run", job.devices, ""]
    return profile.with_samples(works, series)


def _visits(job: Job, profile: MeasuredProfile, wanted: int, op: str | None, runs: int) -> int:
    return max(0, math.ceil(job.missing(profile, wanted, op) / runs))


def _flops(job: Job) -> float:
    return float(job.plan.graph.flops)


def _with_links(profile: MeasuredProfile, devices: dict[str, Device]) -> MeasuredProfile:
    """The profile with links, where some are missing."""
    home = next(iter(devices))
    needed = [("copy", home)] + [
        (way, name)
        for name, device in devices.items()
        if device.copy_lanes is not None
        for way in ("in", "out")
    ]
    known = {(kind, name) for (kind, name, _), each in profile.series.items() if each.is_trusted}
    if not known.issuperset(needed):
        profile = profile.with_samples(series=measure_links(devices, LINK_ROUNDS))
    return profile


def _with_pairs(profile: MeasuredProfile, devices: dict[str, Device]) -> MeasuredProfile:
    """The profile with how the host and each other device slow each other down."""
    home, *others = devices
    for other in others:
        pair = (home, other)
        if ("slowdown", f"{home},{other}", "") not in profile.series:
            profile = profile.with_samples(series=measure_slowdown(devices, pair, PAIR_ROUNDS))
    return profile


def trusted_share(profile: MeasuredProfile) -> tuple[int, int]:
    """How many works have enough samples, and how many there are."""
    points = profile.points.values()
    return sum(point.samples.count >= TRUSTED for point in points), len(points)
