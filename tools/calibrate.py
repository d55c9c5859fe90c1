"""`aieflow calibrate`: measures this computer, so that plans can be foretold and compared."""

import json
import math
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from aieflow.devices.base import Device
from aieflow.devices.registry import DEVICES, cache_folder, open_device, survey
from aieflow.ops.catalogue import OPS
from aieflow.ops.errors import InputError, ProfileError
from aieflow.profiles.measured import MeasuredProfile
from aieflow.profiles.measured_cost import NO_WATTS, MeasuredCost
from aieflow.profiles.schema import suggestion
from aieflow.profiles.store import read_profile, write_profile
from aieflow.runtime.machine import Machine
from aieflow.tools.calibration import (
    QUICK_RUNS,
    QUICK_SAMPLES,
    Job,
    calibrate_devices,
    jobs_for,
    trusted_share,
)
from aieflow.tools.calibration import Progress as Done
from aieflow.tools.calibration_report import (
    Check,
    check_table,
    checks,
    document,
    overheads_table,
    rates_table,
    text_plot,
    write_svg,
)
from aieflow.tools.calibration_visit import Pool, visit
from aieflow.tools.computer_profile import fingerprints, profile_file
from aieflow.tools.console import ERR, OUT
from aieflow.tools.npu_here import built_xclbin

AUTO = "auto"
QUICK_S = 100.0  # after which no visit begins: two minutes in all
CHECKED = 3  # training steps that `--check` runs on each device
LINE_EVERY_S = 5.0  # between plain lines
WRITE_EVERY_S = 1.0  # at least, between two writings of the file


def calibrate(
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer shapes and samples, in under two minutes.")
    ] = False,
    devices: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(DEVICES)}, several with commas; default: all that work."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Measure this one of them alone.")
    ] = None,
    op: Annotated[str | None, typer.Option(metavar="OP", help="Measure one op alone.")] = None,
    anew: Annotated[
        bool, typer.Option("--anew", help="Forget first what is known of what is measured.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Measure a random sample again: how wrong is it?")
    ] = False,
    seed: Annotated[int, typer.Option(help="Which sample --check takes.")] = 1,
    show: Annotated[bool, typer.Option("--show", help="Show what is known; measure nothing.")] = (
        False
    ),
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw what is known into an SVG file.")
    ] = None,
    lanes: Annotated[int | None, typer.Option(help="CPU lanes; default: one for each core.")] = (
        None
    ),
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The profile; default: the computer's own.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Measure how long ops, transfers and waits take on this computer, and keep it.

    Only what is missing or stale is measured; stop it with Ctrl-C and it goes on the next time.

    Example: aieflow calibrate --quick
    """
    file = profile or profile_file()
    if check and (show or quick or anew):
        raise InputError("--check measures nothing new: leave --show, --quick and --anew out")
    if show and (quick or anew):
        raise InputError("--show measures nothing: leave --quick and --anew out")
    if op is not None and op not in OPS:
        raise InputError(f"--op {op}: no op is called that{suggestion(op, OPS)}")
    if plot is not None and plot.suffix != ".svg":
        raise InputError(f"--plot {plot}: must end with .svg")
    known = read_profile(file)
    compared: list[Check] = []
    if show:
        if known is None:
            raise ProfileError(f"{file}: nothing was calibrated yet: run `aieflow calibrate`")
    else:
        names = _names(devices, device)
        with _opened(names, lanes) as opened:
            if check:
                known = _current(known, opened)
                compared = _check(known, opened, device, op, seed)
            else:
                known = _measure(known, opened, file, device, op, quick, anew)
    assert known is not None
    if plot is not None:
        _write_plot(plot, known)
    if as_json:
        OUT.out(json.dumps(document(known, file, compared), indent=2), highlight=False)
        return
    if compared:
        OUT.print(check_table(compared))
        return
    _print(known, file, show)
    if plot is not None:
        OUT.print(f"plot     {plot}", markup=False)


def _names(devices: str | None, device: str | None) -> tuple[str, ...]:
    """The devices to open, the CPU first."""
    found = {finding.device: finding for finding in survey()}
    if devices is None or devices == AUTO:
        chosen = {name for name, finding in found.items() if finding.is_automatic} - {"npu"}
    else:
        chosen = {name.strip() for name in devices.split(",")}
    if device is not None and devices is None:
        chosen |= {device}
    for option, names in (("--devices", chosen), ("--device", {device} - {None})):
        for name in names:
            if name not in DEVICES:
                meant = suggestion(str(name), DEVICES)
                raise InputError(f"{option} {name}: there are {', '.join(DEVICES)}{meant}")
    if device is not None and device not in chosen:
        raise InputError(f"--device {device}: is none of --devices {devices}: add it there")
    return tuple(name for name in DEVICES if name in chosen)


@contextmanager
def _opened(names: tuple[str, ...], lanes: int | None) -> Iterator[dict[str, Device]]:
    with ExitStack() as stack:
        opened: dict[str, Device] = {}
        for name in names:
            opened[name] = open_device(
                name,
                lanes if name == "cpu" else None,
                cache=cache_folder(),
                xclbin=built_xclbin() if name == "npu" else None,
            )
            stack.callback(opened[name].close)
        yield opened


def _current(known: MeasuredProfile | None, opened: dict[str, Device]) -> MeasuredProfile:
    """The profile less what is stale; raises ProfileError where nothing is left of a device."""
    profile = known or MeasuredProfile()
    for name, facts in fingerprints(opened.values()).items():
        profile = profile.with_device(name, facts, len(opened[name].lanes))
        if not any(point.work.device == name for point in profile.points.values()):
            raise ProfileError(
                f"{name} is not calibrated as it is now: run `aieflow calibrate --device {name}`"
            )
    return profile


def _measure(
    known: MeasuredProfile | None,
    opened: dict[str, Device],
    file: Path,
    device: str | None,
    op: str | None,
    quick: bool,
    anew: bool,
) -> MeasuredProfile:
    """Bring the profile up to date, and its file with it."""
    begin = time.monotonic()
    profile = known or MeasuredProfile()
    for name, facts in fingerprints(opened.values()).items():
        changes = profile.changes(name, facts)
        if changes:
            ERR.print(f"{name} is measured anew: {'; '.join(changes)}", markup=False)
        if anew and device in (None, name):
            profile = profile.without(name, op)
        profile = profile.with_device(name, facts, len(opened[name].lanes))
    saver = _Saver(file, profile)
    with ERR.status("planning training steps"):
        jobs = jobs_for(opened, device, quick)
    if op is not None and not any(work.op == op for job in jobs for work in job.works.values()):
        raise InputError(f"--op {op}: no graph that calibration runs has it: leave it out")
    with _shown() as shown:

        def report(now: MeasuredProfile, done: Done) -> None:
            saver.take(now)
            shown.report(done)

        try:
            until = begin + QUICK_S if quick else math.inf
            profile = calibrate_devices(
                profile, opened, jobs, report, quick=quick, op=op, until=until
            )
            saver.take(profile)
        finally:  # also on Ctrl-C: what was measured is not measured again
            saver.write()
    trusted, count = trusted_share(profile)
    if quick and any(job.missing(profile, QUICK_SAMPLES, op) > 0 for job in jobs):
        ERR.print(
            f"time is up, with {trusted} of {count} works measured often enough: the same command "
            "goes on from here",
            markup=False,
        )
    for name, each in opened.items():
        for note in each.notes:
            ERR.print(f"{name}: {note}", markup=False)
    return profile


def _check(
    profile: MeasuredProfile,
    opened: dict[str, Device],
    device: str | None,
    op: str | None,
    seed: int,
) -> list[Check]:
    """Run a sample of training steps again and compare."""
    model = MeasuredCost(profile, {name: each.kernels for name, each in opened.items()})
    rng = random.Random(seed)
    pool = Pool(Machine(tuple(opened.values())))
    found: list[Check] = []
    jobs = [job for job in jobs_for(opened, device, quick=False) if _is_known(job, profile)]
    try:
        for name in opened:
            own = [job for job in jobs if job.devices == name]
            for job in rng.sample(own, min(CHECKED, len(own))):
                with ERR.status(f"measuring {job.name}"):
                    seen = visit(
                        job.machine, job.plan, job.case.config, pool, job.works, QUICK_RUNS
                    )
                found += checks(model, seen, op)
    finally:
        pool.close()
    if not found:
        raise ProfileError("nothing of this was calibrated: run `aieflow calibrate`")
    return found


def _is_known(job: Job, profile: MeasuredProfile) -> bool:
    """True if all works of a job were measured."""
    return bool(job.works) and all(work.key in profile.points for work in job.works.values())


@dataclass(slots=True)
class _Saver:
    """Writes the latest profile, but not for every visit."""

    file: Path
    profile: MeasuredProfile
    written: MeasuredProfile | None = None
    at: float = -math.inf

    def take(self, profile: MeasuredProfile) -> None:
        self.profile = profile
        if time.monotonic() - self.at >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        if self.written is not self.profile:
            write_profile(self.profile, self.file)
            self.written, self.at = self.profile, time.monotonic()


@dataclass(slots=True)
class _Shown:
    """A bar on a terminal, plain lines elsewhere."""

    bar: Progress
    task: TaskID
    began: float = field(default_factory=time.monotonic)
    line_at: float = -math.inf

    def report(self, done: Done) -> None:
        now = time.monotonic()
        left_s = (now - self.began) * (done.total - done.done) / done.done
        share = done.done / done.total
        eta = f"{int(left_s // 60)}:{int(left_s % 60):02}"
        if ERR.is_terminal:
            self.bar.update(self.task, completed=share, what=done.what, eta=eta)
        elif now - self.line_at >= LINE_EVERY_S or done.done >= done.total:
            self.line_at = now
            ERR.print(f"{share:4.0%}  {done.what}  ETA {eta}", markup=False)


@contextmanager
def _shown() -> Iterator[_Shown]:
    bar = Progress(
        TextColumn("calibrating"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("ETA {task.fields[eta]}"),
        TextColumn("{task.fields[what]}", markup=False),
        console=ERR,
        transient=True,
        expand=True,
        disable=not ERR.is_terminal,
    )
    task = bar.add_task("", total=1.0, what="", eta="-:--")
    with bar:
        yield _Shown(bar, task)


def _print(profile: MeasuredProfile, file: Path, with_plot: bool) -> None:
    trusted, count = trusted_share(profile)
    OUT.print(f"profile  {file}", markup=False)
    for name, facts in profile.fingerprints.items():
        OUT.print(
            f"{name:<8} {facts.get('model', 'unknown')}, lanes {profile.lanes[name]}, "
            f"power source {facts.get('power', 'unknown')}",
            markup=False,
        )
    OUT.print(f"works    {count} measured, {trusted} of them often enough to be trusted")
    OUT.print(f"power    {NO_WATTS}\n")
    OUT.print(rates_table(profile))
    OUT.print()
    OUT.print(overheads_table(profile))
    if with_plot:
        OUT.print(text_plot(profile), markup=False)


def _write_plot(file: Path, profile: MeasuredProfile) -> None:
    try:
        write_svg(file, profile)
    except OSError as error:
        raise InputError(f"--plot {file}: cannot be written: {error.strerror}") from None
