"""What a calibration found: rates and residuals as a table, a plot in text, and one in SVG."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from rich.table import Table

from aieflow.ops.matmul import MATMUL
from aieflow.profiles.fit import Curve, curve
from aieflow.profiles.measured import MeasuredProfile
from aieflow.profiles.measured_cost import (
    NO_WATTS,
    MeasuredCost,
    links,
    overheads,
    trusted,
)
from aieflow.profiles.samples import Samples
from aieflow.tools.calibration_visit import Seen

BAR = 40  # characters of the longest bar
COLOURS = {"cpu": "#1f77b4", "igpu": "#d62728", "npu": "#2ca02c"}
SIDE, MARGIN = 640, 70  # of the SVG, in pixels


@dataclass(frozen=True, slots=True)
class Row:
    """One op and kernel on one device."""

    device: str
    op: str
    kernel: str
    works: int
    launch_s: float
    flops_per_s: float | None  # None: FLOPs do not explain its time
    bytes_per_s: float | None
    median_error: float  # of the fit alone
    worst_error: float
    left_out_median: float | None  # of what is foretold of a work from all others
    left_out_worst: float | None


@dataclass(frozen=True, slots=True)
class Check:
    """A work measured again."""

    device: str
    op: str
    signature: str
    seconds: float  # now, the median
    known_s: float | None  # as measured before, where that was often enough
    foretold_s: float  # by the curve

    @property
    def error(self) -> float:
        """How far the model is off: 0.1 is 10 % too slow."""
        return (self.foretold_s if self.known_s is None else self.known_s) / self.seconds - 1


def curves(profile: MeasuredProfile) -> dict[tuple[str, str, str], Curve]:
    """The curve through all trusted works of each device, op and kernel."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    points = trusted(profile)
    for place, point in enumerate(points):
        work = point.work
        groups.setdefault((work.device, work.op, work.kernel), []).append(place)
    return {
        name: curve(
            [points[place].work for place in places],
            [points[place].samples.expected for place in places],
        )
        for name, places in groups.items()
    }


def rows(profile: MeasuredProfile) -> list[Row]:
    """Rates and residuals of every op and kernel on every device."""
    found: list[Row] = []
    for (device, op, kernel), each in curves(profile).items():
        line, fitted, left_out = each.line, each.residuals, each.left_out
        found.append(
            Row(
                device,
                op,
                kernel,
                len(each.works),
                line.launch_s,
                1 / line.s_per_flop if line.s_per_flop else None,
                1 / line.s_per_byte if line.s_per_byte else None,
                fitted.median,
                fitted.worst,
                None if left_out is None else left_out.median,
                None if left_out is None else left_out.worst,
            )
        )
    return found


def rates_table(profile: MeasuredProfile) -> Table:
    """Rates of ops, and what links, waits and neighbours cost."""
    table = _table("device", "op", "works", "us", "GFLOP/s", "GB/s", "fit off", "left out")
    for row in rows(profile):
        left_out = "-"
        if row.left_out_median is not None and row.left_out_worst is not None:
            left_out = f"{row.left_out_median:.1%} ({row.left_out_worst:.0%})"
        table.add_row(
            row.device,
            row.op,
            f"{row.works}",
            f"{1e6 * row.launch_s:.1f}",
            _giga(row.flops_per_s),
            _giga(row.bytes_per_s),
            f"{row.median_error:.1%} ({row.worst_error:.0%})",
            left_out,
        )
    table.caption = "us: launch or latency; off: median (worst); left out: foretold from the others"
    for (kind, device), link in links(profile).items():
        rate = _giga(1 / link.s_per_byte if link.s_per_byte else None)
        table.add_row(device, kind, "", f"{1e6 * link.latency_s:.1f}", "-", rate, "-", "-")
    return table


def overheads_table(profile: MeasuredProfile) -> Table:
    """What steps take beside their work, and how devices slow each other down."""
    table = _table("devices", "beside the work", "")
    beside = overheads(profile)
    for (devices, gap), each in beside.gaps.items():
        table.add_row(devices, f"gap before a step: {gap}", f"{1e6 * each.median_s:.1f} us")
    for devices, seconds in beside.run_s.items():
        table.add_row(devices, "a run, beyond its steps", f"{1e6 * seconds:.1f} us")
    for device, each in beside.untraced.items():
        table.add_row(device, "a step that is not noted", f"{1e6 * each.median_s:+.1f} us")
    for (kind, devices, _), samples in profile.series.items():
        if kind == "slowdown":
            one, other = devices.split(",")
            table.add_row(one, f"beside {other} it takes", f"{samples.median:.2f}x")
    return table


def checks(model: MeasuredCost, seen: Seen, op: str | None) -> list[Check]:
    """What was seen again beside what the model says of it."""
    found: list[Check] = []
    for work, seconds in seen.works.items():
        if op not in (None, work.op):
            continue
        point = model.profile.points.get(work.key)
        known = point.samples.expected if point and point.samples.is_trusted else None
        now_s = Samples(tuple(seconds)).expected
        found.append(
            Check(work.device, work.op, work.signature, now_s, known, model.foretold(work))
        )
    return found


def check_table(found: Sequence[Check]) -> Table:
    """How wrong the model is of each op: the sum of its times, and single works."""
    table = _table("device", "op", "works", "seconds now", "of all", "median", "worst", "by fit")
    names = dict.fromkeys((each.device, each.op) for each in found)
    for device, op in (*names, *dict.fromkeys((each.device, "all") for each in found)):
        own = [each for each in found if each.device == device and op in (each.op, "all")]
        now_s = sum(each.seconds for each in own)
        model_s = sum(each.seconds * (1 + each.error) for each in own)
        errors = [abs(each.error) for each in own]
        by_fit = statistics.median(abs(each.foretold_s / each.seconds - 1) for each in own)
        table.add_row(
            device,
            op,
            f"{len(own)}",
            f"{now_s:.4f}",
            f"{model_s / now_s - 1:+.1%}",
            f"{statistics.median(errors):.1%}",
            f"{max(errors):.1%}",
            f"{by_fit:.1%}",
        )
    table.caption = "the model against what was measured now; above 0: it says too much"
    return table


def document(
    profile: MeasuredProfile, file: Path, compared: Sequence[Check] = ()
) -> dict[str, object]:
    """What `--json` prints."""
    beside = overheads(profile)
    return {
        "profile": str(file),
        "devices": {
            name: {"lanes": profile.lanes[name], "fingerprint": dict(facts)}
            for name, facts in profile.fingerprints.items()
        },
        "works": len(profile.points),
        "trusted": len(trusted(profile)),
        "power": NO_WATTS,
        "rates": [asdict(row) for row in rows(profile)],
        "links": {f"{kind} {name}": asdict(link) for (kind, name), link in links(profile).items()},
        "gaps": {f"{names}: {gap}": s.median_s for (names, gap), s in beside.gaps.items()},
        "run_s": dict(beside.run_s),
        "untraced_s": {device: each.median_s for device, each in beside.untraced.items()},
        "slowdown": {
            devices.replace(",", " beside "): samples.median
            for (kind, devices, _), samples in profile.series.items()
            if kind == "slowdown"
        },
        "checks": [{**asdict(each), "error": each.error} for each in compared],
    }


def text_plot(profile: MeasuredProfile) -> str:
    """The rate of matrix products by their FLOPs, a bar for each power of four."""
    lines: list[str] = []
    best: dict[tuple[str, int], list[float]] = {}
    for point in trusted(profile):
        if point.work.op == MATMUL.name:
            size = round(math.log(max(1.0, point.work.flops), 4))
            rate = point.work.flops * point.work.parts / point.samples.expected
            best.setdefault((point.work.device, size), []).append(rate)
    top = max((max(rates) for rates in best.values()), default=1.0)
    lines.append("\nmatmul: GFLOP/s of the whole node, median and range, by FLOPs of a part")
    for (device, size), rates in sorted(best.items()):
        middle = statistics.median(rates)
        bar = "#" * max(1, round(BAR * middle / top))
        lines.append(
            f"{device:<5} {4.0**size:7.0e}  {bar:<{BAR}} {middle / 1e9:7.1f} "
            f"({min(rates) / 1e9:.1f} to {max(rates) / 1e9:.1f})"
        )
    return "\n".join(lines)


def write_svg(file: Path, profile: MeasuredProfile) -> None:
    """Each work's measured seconds against its fit, both axes logarithmic; raises OSError."""
    marks: list[tuple[float, float, str, str]] = []
    for (device, op, _), each in curves(profile).items():
        for work, seconds in zip(each.works, each.seconds, strict=True):
            fitted = each.line.seconds(work.flops, work.nbytes)
            marks.append((fitted, seconds, device, f"{device} {op} {work.signature}"))
    values = [value for mark in marks for value in mark[:2] if value > 0] or [1e-6, 1.0]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def place(seconds: float) -> float:
        share = (math.log10(max(seconds, 10.0**low)) - low) / max(1, high - low)
        return MARGIN + share * (SIDE - 2 * MARGIN)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE}" height="{SIDE}" '
        f'viewBox="0 0 {SIDE} {SIDE}" font-family="sans-serif" font-size="12">',
        f'<rect width="{SIDE}" height="{SIDE}" fill="white"/>',
        f'<text x="{SIDE / 2}" y="24" text-anchor="middle" font-size="15">'
        "seconds of works: measured against fit</text>",
        f'<text x="{SIDE / 2}" y="{SIDE - 16}" text-anchor="middle">fit, s</text>',
        f'<text x="16" y="{SIDE / 2}" text-anchor="middle" '
        f'transform="rotate(-90 16 {SIDE / 2})">measured, s</text>',
    ]
    for power in range(low, high + 1):
        at = place(10.0**power)
        ends = f'"{MARGIN}" y1="{SIDE - at}" x2="{SIDE - MARGIN}" y2="{SIDE - at}"'
        parts += [
            f'<line x1="{at}" y1="{MARGIN}" x2="{at}" y2="{SIDE - MARGIN}" stroke="#ddd"/>',
            f'<line x1={ends} stroke="#ddd"/>',
            f'<text x="{at}" y="{SIDE - MARGIN + 18}" text-anchor="middle">1e{power}</text>',
            f'<text x="{MARGIN - 6}" y="{SIDE - at + 4}" text-anchor="end">1e{power}</text>',
        ]
    first, last = place(10.0**low), place(10.0**high)
    parts.append(
        f'<line x1="{first}" y1="{SIDE - first}" x2="{last}" y2="{SIDE - last}" stroke="black"/>'
    )
    for fitted, seconds, device, title in marks:
        parts.append(
            f'<circle cx="{place(fitted):.1f}" cy="{SIDE - place(seconds):.1f}" r="3" '
            f'fill="{COLOURS.get(device, "black")}" fill-opacity="0.5">'
            f"<title>{escape(title)}: {seconds:.3g} s</title></circle>"
        )
    for row, device in enumerate(dict.fromkeys(mark[2] for mark in marks)):
        y = MARGIN + 18 * row
        parts.append(
            f'<circle cx="{MARGIN + 12}" cy="{y}" r="4" fill="{COLOURS.get(device, "black")}"/>'
            f'<text x="{MARGIN + 22}" y="{y + 4}">{escape(device)}</text>'
        )
    file.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for place, heading in enumerate(headings):
        is_text = place < 2
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=not is_text)
    return table


def _giga(rate: float | None) -> str:
    return "-" if rate is None else f"{rate / 1e9:,.1f}"
