"""`aieflow profile diff A B`: what one trace has other than another.

For each op and device, each lane and the whole: what a training step took before and takes now.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from aieflow.ops.errors import InputError
from aieflow.runtime.timeline import Timeline
from aieflow.runtime.trace_difference import Amount, Difference, difference
from aieflow.tools.console import OUT
from aieflow.tools.forecast import print_table
from aieflow.tools.trace_files import read_trace

SHOWN = 20  # ops
NOT_THERE = "-"


def profile_diff(before: Path, after: Path, as_json: bool) -> None:
    """Compare two traces: wall time, ops by device, lanes; all for one training step.

    Traces are FILE.sqlite or FILE.json[.gz]; raises InputError for one that cannot be read.
    """
    traces = [_read(path) for path in (before, after)]
    found = difference(*traces)
    if as_json:
        OUT.out(json.dumps(diff_report(found, traces), indent=2), highlight=False)
        return
    for name, line in _lines(found, (before, after), traces).items():
        OUT.print(f"{name:<11} {line}", markup=False, emoji=False)
    print_table(_op_table(found, SHOWN))
    print_table(_lane_table(found))


def diff_report(found: Difference, traces: Sequence[Timeline]) -> dict[str, object]:
    """What `--json` prints: seconds of a training step; changes are of the second trace."""
    return {
        "before": {"training_steps": found.before_runs, "seconds": found.before_s},
        "after": {"training_steps": found.after_runs, "seconds": found.after_s},
        "executors": [list(trace.executors) for trace in traces],
        "ratio": found.ratio,
        "ops": [
            {
                "op": each.op,
                "device": each.device,
                "before": _amount(each.before),
                "after": _amount(each.after),
                "gain_seconds": each.gain_s,
            }
            for each in found.ops
        ],
        "lanes": [
            {
                "name": each.lane,
                "before_busy_seconds": each.before_s,
                "after_busy_seconds": each.after_s,
                "before_share": each.before_share,
                "after_share": each.after_share,
            }
            for each in found.lanes
        ],
    }


def _read(path: Path) -> Timeline:
    trace = read_trace(path)
    if not trace.runs:
        raise InputError(f"{path}: holds no training step: record one with --trace")
    return trace


def _amount(each: Amount) -> dict[str, float]:
    return {"count": each.count, "median_seconds": each.median_s, "lane_seconds": each.seconds}


def _lines(found: Difference, paths: Sequence[Path], traces: Sequence[Timeline]) -> dict[str, str]:
    names = ("before", "after")
    runs, seconds = (found.before_runs, found.after_runs), (found.before_s, found.after_s)
    lines = {
        name: f"{s * 1e3:,.3f} ms a training step (median of {count}), {path}"
        for name, count, s, path in zip(names, runs, seconds, paths, strict=True)
    }
    lines |= {
        f"ran on{' now' * place}": ", ".join(trace.executors) for place, trace in enumerate(traces)
    }
    lines["change"] = f"{_change(*seconds)} ({found.ratio:.3f}x)"
    return lines


def _op_table(found: Difference, top: int) -> Table:
    table = _table("op", "device", "count", "median µs", "lane ms", "now", "change", "by ms")
    for each in found.ops[:top]:
        before, after = each.before, each.after
        table.add_row(
            Text(each.op),
            each.device,
            _both(f"{before.count:g}", f"{after.count:g}"),
            _both(f"{before.median_s * 1e6:,.1f}", f"{after.median_s * 1e6:,.1f}"),
            f"{before.seconds * 1e3:,.3f}",
            f"{after.seconds * 1e3:,.3f}",
            _change(before.seconds, after.seconds),
            f"{each.gain_s * 1e3:+,.3f}",
        )
    rest = found.ops[top:]
    if rest:
        gain_s = sum(each.gain_s for each in rest)
        table.add_row(f"{len(rest)} others", *[""] * 6, f"{gain_s * 1e3:+,.3f}")
    return table


def _lane_table(found: Difference) -> Table:
    table = _table("lane", "busy ms", "now", "share", "now")
    for each in found.lanes:
        table.add_row(
            each.lane,
            *(NOT_THERE if s is None else f"{s * 1e3:,.3f}" for s in (each.before_s, each.after_s)),
            *(
                NOT_THERE if share is None else f"{share:.1%}"
                for share in (each.before_share, each.after_share)
            ),
        )
    return table


def _both(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def _change(before: float, after: float) -> str:
    if not before:
        return "new" if after else "same"
    change = f"{after / before - 1:+.1%}"
    return "same" if change in ("+0.0%", "-0.0%") else change


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
