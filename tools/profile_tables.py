"""Prints a profile: by op and device, by lane, the critical path, what would help."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from aieflow.devices.cpu import Rates
from aieflow.runtime.gap import LATE, Gap
from aieflow.runtime.lane_states import STATES, shares
from aieflow.runtime.outliers import LEAST_RUNS, SHARE, TIMES
from aieflow.runtime.what_if import WhatIf
from aieflow.tools.console import OUT
from aieflow.tools.forecast import print_table
from aieflow.tools.profile_report import (
    Figures,
    diagnosis,
    gain_words,
    memory_words,
    work_report,
)
from aieflow.tools.profile_run import Overhead
from aieflow.tools.sensor_log import EVERY_S, Sensed
from aieflow.tools.sensor_text import WITH_OTHERS, in_words, sources

MOST_ROWS = 24  # of the table by op
SHOWN = 5  # parts of the critical path, gains
HEADINGS = {
    "executing": "executing",
    "waiting_for_data": "waits for data",
    "waiting_for_dependencies": "for dependencies",
    "overhead": "overhead",
    "idle": "idle",
}


def print_figures(figures: Figures) -> None:
    """The training step in a few lines."""
    subject = figures.subject
    predicted = f"n/a: {subject.reason}"
    if figures.predicted_s is not None and figures.error is not None:
        predicted = (
            f"{figures.predicted_s * 1e3:,.2f} ms (simulated): measured is {figures.error:+.1%}; "
            f"{figures.bound_ratio:.2f}x of the bound"
        )
    overlap, joules = figures.account.overlap, figures.joules
    lines = {
        "model": subject.model,
        "devices": "; ".join(f"{each.name}: {each.identity}" for each in subject.devices),
        "policy": subject.policy,
        "step": f"{figures.seconds * 1e3:,.2f} ms, the median of {figures.account.runs} training "
        f"steps; {figures.tokens_per_s:,.0f} tokens/s, {figures.gflops_per_s:,.1f} GFLOP/s",
        **(
            {"emulated": f"{', '.join(subject.emulated)}: these are the emulation's times"}
            if subject.emulated
            else {}
        ),
        "predicted": predicted,
        "overlap": "n/a: nothing is transferred"
        if overlap is None
        else f"{overlap:.1%} of what copy lanes do under compute",
        "moved": f"{figures.moved_nbytes / 1e6:,.3f} MB by transfers in each training step",
        "memory": memory_words(figures),
        "joules": f"n/a: {joules.source}"
        if joules.value is None
        else f"{joules.value:.4g} in each training step: {joules.source}, {WITH_OTHERS}",
    }
    for name, line in lines.items():
        _line(name, line)
    _print_sensors(figures.sensed)


def _print_sensors(sensed: Sensed) -> None:
    """What the sensors said in the mean, then of each by what, or why it is absent."""
    heading = "sensors"
    for name, readings in sensed.devices.items():
        _line(heading, f"{name}: {in_words(readings)}")
        heading = ""
    for text in sources(sensed):
        _line("", text)
    if sensed.power_source != "unknown":
        drawn = sensed.battery_w.value
        watts = "" if drawn is None else f", {drawn:.1f} W from {sensed.battery_w.source}"
        _line("power", f"{sensed.power_source}{watts}")


def print_works(figures: Figures, rates: Mapping[str, Rates]) -> None:
    """The table by op and device."""
    account = figures.account
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in ("device", "op"):
        table.add_column(heading, no_wrap=True)
    for heading in ("count", "median µs", "share", "to model", "GB/s", "GFLOP/s", "of peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in account.works[:MOST_ROWS]:
        found = work_report(row, account.runs, rates)
        table.add_row(
            row.device,
            row.work,
            f"{found['count']}",
            f"{row.median_s * 1e6:,.1f}",
            f"{row.share:.1%}",
            _percent(found["model_error"], "+.0%"),
            f"{row.bytes_per_s / 1e9:.2f}",
            f"{row.flops_per_s / 1e9:.1f}",
            _percent(found["share_of_peak"], ".0%"),
        )
    print_table(table)
    if len(account.works) > MOST_ROWS:
        OUT.print(f"and {len(account.works) - MOST_ROWS} more, with --json", markup=False)


def print_lane_states(figures: Figures) -> None:
    """The table by lane; its shares sum to the wall."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("lane", no_wrap=True)
    for state in STATES:
        table.add_column(HEADINGS[state], justify="right", no_wrap=True)
    for heading in ("steps/s", "GB/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    wall_s = figures.account.wall_ns / 1e9
    for lane in figures.account.lanes:
        states = shares(lane.states)
        table.add_row(
            lane.lane,
            *(f"{states[state]:.1%}" for state in STATES),
            f"{lane.steps / wall_s:,.0f}",
            f"{lane.nbytes / wall_s / 1e9:.2f}",
        )
    print_table(table)


def print_path(found: Gap) -> None:
    """The critical path of one training step."""
    parts = [("overhead" if name == LATE else name, s) for name, s in found.path_seconds.items()]
    text = ", ".join(f"{name} {s / found.seconds:.1%}" for name, s in parts[:SHOWN])
    rest = sum(s for _, s in parts[SHOWN:])
    others = f", others {rest / found.seconds:.1%}" if rest else ""
    OUT.print()
    _line(
        "path", f"the last training step's critical path, {len(found.path)} steps: {text}{others}"
    )


def print_outliers(found: Sequence[Mapping[str, Any]], runs: int) -> None:
    """Steps that took far longer than usual."""
    heading = "outliers"
    for each in found[:SHOWN]:
        _line(
            heading,
            f"{each['name']} on {each['lane']} took {each['seconds'] * 1e3:,.2f} ms in training "
            f"step {each['training_step']}, its median is {each['median_seconds'] * 1e3:,.2f} ms",
        )
        heading = ""
    if len(found) > SHOWN:
        _line("", f"and {len(found) - SHOWN} more, with --json")
    if runs < LEAST_RUNS:
        _line(heading, f"n/a: of {runs} training steps none can be told; it takes {LEAST_RUNS}")
    elif not found:
        _line(
            heading, f"none: no step took {TIMES:g} times its median, and {SHARE:.0%} of a run more"
        )


def print_diagnosis(figures: Figures, found: WhatIf) -> None:
    """What limits it, and what would be gained."""
    heading = "diagnosis"
    for sentence in diagnosis(figures):
        _line(heading, sentence)
        heading = ""
    heading = "what if"
    for gain in found.gains[:SHOWN]:
        _line(heading, f"{gain_words(gain)}: {gain.ratio - 1:+.1%} (simulated)")
        heading = ""
    error = found.replay_s / found.measured_s - 1
    _line("", f"(a replay of what was measured is {error:+.1%} off the measured run)")


def print_recording(figures: Figures) -> None:
    """What recording takes, where training steps without it are known, too."""
    share = figures.recording_share
    text = "n/a: too few training steps were seen without it"
    if share is not None:
        text = f"lengthens a training step by {share:+.1%}"
    _line("recording", text)


def print_overhead(found: Overhead, sensed: Sensed) -> None:
    """What the profiler itself costs."""
    _line(
        "overhead",
        f"recording lengthens a training step by {found.median:+.1%} (median of {found.pairs} "
        f"pairs with and without; half of them from {found.low:+.1%} to {found.high:+.1%})",
    )
    if sensed.reading_s is not None:
        _line(
            "",
            f"sensors are read each {EVERY_S:g} s beside it, {sensed.readings} times in all: "
            f"{sensed.reading_s * 1e3:.2f} ms each",
        )


def _line(heading: str, text: str) -> None:
    OUT.print(f"{heading:<11} {text}", markup=False, emoji=False)


def _percent(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, float) else "-"
