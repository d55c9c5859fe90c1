"""What `aieflow simulate --sweep` shows: a tornado table, and the range of the conclusion."""

from collections.abc import Callable, Sequence

from rich.table import Table

from aieflow.profiles.figure import Figure
from aieflow.tools.console import OUT
from aieflow.tools.folding import print_line
from aieflow.tools.forecast import print_table
from aieflow.tools.sweep import Outcome, Sweep, quantiles

SHOWN = 12  # figures in the table
LEAST = 1e-3  # of the seconds as given, that a swing in the table has


def sweep_report(found: Sweep, draws: int, seed: int) -> dict[str, object]:
    """A sweep as JSON: every figure, and what all together foretell."""
    return {
        "simulated": True,
        "draws": draws,
        "seed": seed,
        "given": _outcome(found.given),
        "figures": [
            {
                "figure": swing.path,
                "mark": swing.figure.mark,
                "value": swing.figure.value,
                "low": swing.figure.low,
                "high": swing.figure.high,
                "at_low": _outcome(swing.low),
                "at_high": _outcome(swing.high),
            }
            for swing in found.swings
        ],
        "together": {name: quantiles(_all(found.together, of)) for name, of in MEASURES.items()},
        "least_gain": min(outcome.gain for outcome in found.every),
        "most_gain": max(outcome.gain for outcome in found.every),
        "behind_single": sum(outcome.gain < 1 for outcome in found.together),
    }


def print_sweep(found: Sweep) -> None:
    """The figures that matter, the largest swing first, and the conclusion's range."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("figure")
    table.add_column("range")
    for heading in ("s a step", "J a step", "gain (all simulated)"):
        table.add_column(heading, justify="right", no_wrap=True)
    telling = [
        swing
        for swing in found.swings
        if swing.seconds > LEAST * found.given.seconds
        or swing.low.joules != swing.high.joules
        or swing.low.gain != swing.high.gain
    ]
    for swing in telling[:SHOWN]:
        low, high = swing.low, swing.high
        table.add_row(
            swing.path,
            _ends(swing.figure),
            f"{low.seconds:.4g} ... {high.seconds:.4g}",
            f"{low.joules:.3g} ... {high.joules:.3g}",
            f"{low.gain:.2f}x ... {high.gain:.2f}x",
        )
    print_table(table)
    lines = [f"{len(found.swings)} figures have a range, {len(telling)} of them tell here"]
    for of in MEASURES.values():
        ranges = quantiles(_all(found.together, of))
        lines.append(
            f"all drawn together, {len(found.together)} times: "
            + ", ".join(f"{which} {number:.4g}" for which, number in ranges.items())
            + " (simulated)"
        )
    behind = sum(outcome.gain < 1 for outcome in found.together)
    fastest = min(found.given.single_s, key=lambda device: found.given.single_s[device])
    lines.append(
        f"gain over the fastest single device (as given: {fastest}): {found.given.gain:.2f}x, "
        f"from {min(each.gain for each in found.every):.2f}x to "
        f"{max(each.gain for each in found.every):.2f}x; below 1x in {behind} of "
        f"{len(found.together)} draws (simulated)"
    )
    OUT.print()
    for name, line in zip(("figures", *MEASURES, "conclusion"), lines, strict=True):
        print_line(name, line)


MEASURES: dict[str, Callable[[Outcome], float]] = {
    "seconds": lambda outcome: outcome.seconds,
    "joules": lambda outcome: outcome.joules,
    "gain": lambda outcome: outcome.gain,
}


def _all(outcomes: Sequence[Outcome], of: Callable[[Outcome], float]) -> list[float]:
    return [of(outcome) for outcome in outcomes]


def _outcome(outcome: Outcome) -> dict[str, object]:
    return {
        "seconds": outcome.seconds,
        "joules": outcome.joules,
        "single_device_seconds": dict(outcome.single_s),
        "gain": outcome.gain,
    }


def _ends(figure: Figure) -> str:
    return f"{figure.low:g} ... {figure.high:g} ({figure.mark})"
