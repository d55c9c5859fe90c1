"""`aieflow profile`: what devices do in a training step, what waits for what, what would help.

Alone it runs some training steps and prints tables; with `--live` it shows a run while it goes on.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice, Rates, measure_rates
from aieflow.gpt2.run_config import RunConfig
from aieflow.ops.errors import AieflowError, InputError
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.runtime.account import account
from aieflow.runtime.gap import Gap, gap
from aieflow.runtime.what_if import WhatIf, what_if
from aieflow.tools.console import ERR, OUT
from aieflow.tools.device_rates import measure_device_rates
from aieflow.tools.live import Show, attached, mini_run, shown
from aieflow.tools.live_link import run_folder_of
from aieflow.tools.machine_options import Settings, settings_among
from aieflow.tools.machines import machine_of, opened_machine
from aieflow.tools.model_options import MODEL
from aieflow.tools.profile_diff import profile_diff
from aieflow.tools.profile_report import (
    Figures,
    diagnosis,
    figures_report,
    gains_report,
    outliers_report,
    path_report,
    work_report,
)
from aieflow.tools.profile_run import Profiled, Schedule, profiled
from aieflow.tools.profile_tables import (
    print_diagnosis,
    print_figures,
    print_lane_states,
    print_outliers,
    print_overhead,
    print_path,
    print_recording,
    print_works,
)
from aieflow.tools.run_options import new_config
from aieflow.tools.step_options import RUN_OPTIONS, STEP_OPTIONS, asked_among, with_options

WAIT, WARMUP, ACTIVE = 1, 2, 10  # training steps
RatesByDevice = dict[str, Rates]


@with_options({**STEP_OPTIONS, **RUN_OPTIONS})
def profile(
    given: Settings,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[gpt2 | diff A B]",
            help="The model (the default), or with --live RUN or PID; or two traces to compare.",
            show_default=False,
        ),
    ] = None,
    wait: Annotated[int, typer.Option(min=0, help="Training steps before all else.")] = WAIT,
    warmup: Annotated[int, typer.Option(min=0, help="Then those recorded and dropped.")] = WARMUP,
    active: Annotated[int, typer.Option(min=1, help="Then those recorded and counted.")] = ACTIVE,
    live: Annotated[
        bool,
        typer.Option(
            "--live", help="Show a run while it goes on: RUN or PID, or a run of its own without."
        ),
    ] = False,
    once: Annotated[
        bool, typer.Option("--once", help="With --live: print what there is to see, and end.")
    ] = False,
    peak: Annotated[
        bool, typer.Option(help="Measure what devices reach at most, for the shares of it.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --live one each second.")
    ] = False,
) -> None:
    """Show what devices do in a training step: where its time goes, and what would shorten it.

    Example: aieflow profile gpt2 --batch-size 4 --active 20
    """
    words = what or [MODEL]
    if words[0] == "diff" and not live:
        _compare(words[1:], given, as_json)
        return
    target, *more = words
    if more:
        raise InputError(f"profile {' '.join(words)}: {more[0]} is too much: give one of them")
    if live and target != MODEL:
        _require_nothing(given, f"--live {target} shows a run as it is")
        with attached(run_folder_of(target)) as link:
            shown(link, Show(once, as_json))
        return
    if target != MODEL:
        raise InputError(
            f"profile {target}: must be {MODEL}; to watch a run: aieflow profile --live {target}"
        )
    config = new_config(asked_among(given))
    if live and not once:
        with mini_run(given) as link:
            shown(link, Show(once, as_json))
        return
    _profile(config, settings_among(given), Schedule(wait, warmup, active), live, peak, as_json)


def _compare(files: Sequence[str], given: Settings, as_json: bool) -> None:
    if len(files) != 2:
        raise InputError("profile diff takes two traces: aieflow profile diff A.sqlite B.sqlite")
    _require_nothing(given, "profile diff compares two traces")
    profile_diff(Path(files[0]), Path(files[1]), as_json)


def _require_nothing(given: Settings, what: str) -> None:
    """Raise InputError where options of a training step would have no effect."""
    asked = sorted(name for name, value in given.items() if value not in (None, False))
    if asked:
        option = asked[0].replace("_", "-")
        raise InputError(f"{what}: --{option} would have no effect: leave it out")


def _profile(
    config: RunConfig,
    where: Settings,
    schedule: Schedule,
    is_short: bool,
    peak: bool,
    as_json: bool,
) -> None:
    begin = time.perf_counter()
    with opened_machine(machine_of(config), where) as machine:
        with _status() as tell:
            done = profiled(config, machine, schedule, tell)
        if is_short:
            _print_short(figures_of(done), as_json)
            return
        rates = _rates(machine.devices) if peak else {}
    if not as_json:
        print_profile(done, rates)
        return
    content = profile_report(done, rates)
    content["profiler"] = {
        "overhead": asdict(done.overhead),
        "sensor_reading_seconds": done.sensed.reading_s,
        "seconds": time.perf_counter() - begin,
    }
    OUT.out(json.dumps(content, indent=2), highlight=False)


def profile_report(done: Profiled, rates: RatesByDevice) -> dict[str, object]:
    """What `--json` prints of training steps, but for what profiling itself took."""
    figures, (found, path) = figures_of(done), _causes(done)
    works = [work_report(row, figures.account.runs, rates) for row in figures.account.works]
    return {
        **figures_report(figures),
        "ops": works,
        "critical_path": path_report(path),
        "outliers": outliers_report(done),
        "diagnosis": diagnosis(figures, found),
        "what_if": gains_report(found),
    }


def print_profile(done: Profiled, rates: RatesByDevice) -> None:
    """Print all that is said of training steps that were profiled."""
    figures, (found, path) = figures_of(done), _causes(done)
    print_figures(figures)
    print_works(figures, rates)
    print_lane_states(figures)
    print_path(path)
    print_outliers(outliers_report(done), len(done.recordings))
    print_diagnosis(figures, found)
    print_overhead(done.overhead, done.sensed)


def _causes(done: Profiled) -> tuple[WhatIf, Gap]:
    """What would shorten the training steps, and the last one's critical path."""
    trace = done.traces[-1]
    found = what_if(trace.plan, done.subject.outline, done.recordings)
    return found, gap(trace, CONVERSIONS)


def figures_of(done: Profiled) -> Figures:
    """The figures of training steps that were profiled in this process."""
    subject = done.subject
    foretold = subject.foretold
    steps_s = None if foretold is None else foretold.steps_s
    found = account(subject.outline, done.recordings, steps_s)
    return Figures(
        subject,
        found,
        done.seconds,
        done.moved_nbytes,
        done.overhead.median,
        done.sensed,
        done.resident_nbytes,
    )


def _print_short(figures: Figures, as_json: bool) -> None:
    if as_json:
        OUT.out(json.dumps(figures_report(figures), indent=2), highlight=False)
        return
    print_figures(figures)
    print_lane_states(figures)
    print_recording(figures)
    for sentence in diagnosis(figures):
        OUT.print(f"{'diagnosis':<11} {sentence}", markup=False)


def _rates(devices: tuple[Device, ...]) -> RatesByDevice:
    """What devices reach at most; those that are emulated or fail are left out."""
    found: RatesByDevice = {}
    for device in devices:
        if device.is_emulated or device.is_separate:
            continue
        with ERR.status(f"measuring the {device.name}"):
            try:
                if isinstance(device, CpuDevice):
                    found[device.name] = measure_rates(device)
                else:
                    found[device.name] = measure_device_rates(device)
            except AieflowError:
                continue
    return found


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    with ERR.status("opening devices") as status:
        yield status.update
