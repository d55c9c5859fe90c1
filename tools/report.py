"""`aieflow report RUN`: one HTML file on a run, to be opened without a network.

Its curves come from the run's metrics, its graph from the plan, its timeline and tables of ops from
a trace: the run's own, which training with `--trace FILE` leaves, or one that is named.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aieflow.gpt2.durable import replace_file
from aieflow.gpt2.run_folder import RunFolder, holds_run, open_run
from aieflow.ops.errors import InputError
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.runtime.lane_states import STATES, shares
from aieflow.runtime.schedule import device_of
from aieflow.runtime.timeline import Timeline
from aieflow.runtime.timeline_states import timeline_states
from aieflow.tools.console import OUT
from aieflow.tools.profile_tables import HEADINGS
from aieflow.tools.report_content import (
    Metrics,
    OpTime,
    busy_shares,
    charts,
    graph_data,
    joules_sources,
    middle,
    model_points,
    op_times,
    read_metrics,
    read_plan,
    trace_data,
)
from aieflow.tools.report_page import Page, page_text
from aieflow.tools.trace_files import read_trace

NAME = "report.html"
UNKNOWN = "n/a"
NO_TRACE = (
    "n/a: no training step was traced. Train with --trace FILE, or name a trace with "
    "`aieflow report RUN --trace FILE`."
)
NO_ENERGY = (
    "n/a: no meter was read. `aieflow train --energy` measures the joules of each training step, "
    "where the processor has a counter that its user may read; `aieflow profile` those of the "
    "median training step, where it has any meter of the package."
)
NO_MODEL = (
    "n/a: the trace holds no predictions, for this computer was not calibrated when it was "
    "written. Run `aieflow calibrate`, then trace again."
)


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Default: {NAME} in the run's folder.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A trace, .sqlite or .json[.gz]; default: the run's own."
        ),
    ] = None,
) -> None:
    """Write one HTML file on a run: curves, timeline, device use, cost model, graph.

    Example: aieflow report runs/gpt2-001
    """
    if not holds_run(run):
        raise InputError(f"{run}: is no run: give a folder that `aieflow train` made")
    folder = open_run(run)
    if trace is None and folder.trace_file.is_file():
        trace = folder.trace_file
    text = report_text(folder, None if trace is None else read_trace(trace))
    file = folder.path / NAME if out is None else out
    try:
        replace_file(file, text.encode())
    except OSError as error:
        raise InputError(
            f"{file}: cannot be written: {error.strerror}: give another --out"
        ) from None
    OUT.print(f"report      {file}", markup=False, emoji=False)


def report_text(run: RunFolder, trace: Timeline | None) -> str:
    """The page on a run and a trace of it; raises InputError for files that are damaged."""
    metrics, plan = read_metrics(run.metrics_file), read_plan(run.plan_file)
    config, model = run.config, run.config.model
    found = None if trace is None else trace_data(trace)
    placed = f", policy {plan['plan']['policy']}" if plan else ""
    title = f"GPT-2 training run {run.path.absolute().name}"
    subtitle = (
        f"L={model.layers} H={model.heads} C={model.channels} V={model.vocab_size}, "
        f"B={config.batch_size} T={config.seq_len}, shards {config.shards}, "
        f"devices {', '.join(_devices(plan)) or UNKNOWN}{placed}"
    )
    times = [] if trace is None else op_times(trace)
    return page_text(
        Page(
            title=title,
            subtitle=subtitle,
            marks=_marks(metrics, trace),
            tiles=_tiles(run, metrics, None if plan is None else plan["memory"]["nbytes"]),
            events=[
                f"Training step {line['training_step']}: "
                + ", ".join(f"{key} {line[key]}" for key in line if key != "training_step")
                for line in metrics.events
            ],
            charts=charts(metrics),
            trace=found,
            trace_mark=_mark(() if trace is None else trace.executors),
            metrics_mark="emulated" if metrics.emulated else "",
            energy=joules_sources(metrics) or NO_ENERGY,
            no_trace=NO_TRACE,
            ops=_op_rows(times),
            lanes=[] if trace is None else _lane_rows(trace),
            model=[] if trace is None else model_points(trace),
            no_model=NO_MODEL,
            graph=None if plan is None else graph_data(plan),
        )
    )


def _devices(plan: Mapping[str, Any] | None) -> list[str]:
    """The devices whose lanes compute in a plan, as `plan.json` has it."""
    lanes = [lane["name"] for lane in plan["plan"]["lanes"]] if plan else []
    return list(dict.fromkeys(device_of(lane) for lane in lanes if ".compute" in lane))


def _marks(metrics: Metrics, trace: Timeline | None) -> list[str]:
    """What of the page is no hardware's."""
    marks = [f"emulated: {names}: its times are the emulation's" for names in metrics.emulated]
    executors = () if trace is None else trace.executors
    return marks + [f"timeline: {name}" for name in executors if _mark((name,))]


def _mark(executors: Sequence[str]) -> str:
    """What the times of a trace are, by the identities of those that executed it."""
    words = {"simulated": "simulated", "emulat": "emulated"}
    found = [word for part, word in words.items() if any(part in name for name in executors)]
    return " and ".join(found)


def _tiles(run: RunFolder, metrics: Metrics, nbytes: int | None) -> dict[str, str]:
    steps, evaluations = metrics.steps, metrics.evaluations
    losses = [line["validation_loss"] for line in evaluations]
    known = [float(loss) for loss in losses if loss is not None]
    seconds, speed = middle(steps, "seconds"), middle(steps, "tokens_per_s")
    emulated = " (emulated)" if metrics.emulated else ""
    joules = middle(steps, "joules")
    energy = (
        {} if joules is None else {f"median joules a training step{emulated}": f"{joules:,.4g}"}
    )
    loss = steps[-1]["loss"] if steps else None
    return {
        "training steps": f"{len(steps):,} of {run.config.steps:,}",
        "last training loss": UNKNOWN if loss is None else f"{loss:.4f}",
        "best validation loss": f"{min(known):.4f}" if known else UNKNOWN,
        f"median training step{emulated}": UNKNOWN
        if seconds is None
        else f"{seconds * 1e3:,.4g} ms",
        f"median tokens/s{emulated}": UNKNOWN if speed is None else f"{speed:,.0f}",
        **energy,
        "parameters": f"{run.config.model.parameters:,}",
        "memory planned": UNKNOWN if nbytes is None else f"{nbytes / 1e6:,.1f} MB",
    }


def _op_rows(times: Sequence[OpTime]) -> list[list[str]]:
    head = ["op", "device", "count", "ms", "share", "median µs", "GFLOP/s", "model ms", "error"]
    rows = [
        [
            *(each.op, each.device, f"{each.count:g}", f"{each.seconds * 1e3:,.3f}"),
            *(f"{each.share:.1%}", f"{each.median_s * 1e6:,.1f}"),
            "" if each.flops_per_s is None else f"{each.flops_per_s / 1e9:,.1f}",
            UNKNOWN if each.predicted_s is None else f"{each.predicted_s * 1e3:,.3f}",
            UNKNOWN if each.error is None else f"{each.error:+.1%}",
        ]
        for each in times
    ]
    return [head, *rows]


def _lane_rows(trace: Timeline) -> list[list[str]]:
    runs = max(len(trace.runs), 1)
    counts = dict.fromkeys(trace.lanes, 0)
    for each in trace.slices:
        counts[each.lane] += 1
    states = timeline_states(trace, CONVERSIONS)
    if states is None:  # nothing says what waited for what
        shown = {lane: [f"{share:.1%}"] for lane, share in busy_shares(trace).items()}
        return [
            ["lane", "steps", "executing"],
            *([lane, f"{counts[lane] / runs:g}", *cells] for lane, cells in shown.items()),
        ]
    return [
        ["lane", "steps", *(HEADINGS[state] for state in STATES)],
        *(
            [lane, f"{counts[lane] / runs:g}", *(f"{share:.1%}" for share in shares(ns).values())]
            for lane, ns in states.items()
        ),
    ]
