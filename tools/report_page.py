"""The page of a report: one HTML text that holds its style, its script and its data.

It reads nothing else: a policy in its head forbids the browser to. Tables and sums are plain HTML
and stand there without a script; curves, Gantt and graph are drawn by `report.js`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True, slots=True)
class Page:
    """What a report says; all texts are plain and are escaped here."""

    title: str
    subtitle: str
    marks: Sequence[str]  # what is simulated or emulated
    tiles: Mapping[str, str]  # heading -> figure
    events: Sequence[str]
    charts: Sequence[Mapping[str, object]]
    trace: Mapping[str, object] | None
    trace_mark: str  # "simulated" or "emulated" where the trace's times are
    metrics_mark: str  # the same of the metrics' times
    energy: str  # what joules are of; where there are none, why, and where they are told
    no_trace: str  # why there is none, and how to get one
    ops: Sequence[Sequence[str]]  # a table, its headings first
    lanes: Sequence[Sequence[str]]
    model: Sequence[Mapping[str, object]]
    no_model: str
    graph: Mapping[str, object] | None


HEADINGS = {"loss": "Loss", "speed": "Throughput, tokens/s", "energy": "Joules a training step"}
KEYS = (
    "Drag to move; Ctrl and wheel, two fingers, double-click or + - 0 to zoom; point at a thing "
    "to read about it."
)


def page_text(page: Page) -> str:
    """The HTML of a page."""
    here = files("aieflow.tools")
    style = here.joinpath("report.css").read_text(encoding="utf-8")
    script = here.joinpath("report.js").read_text(encoding="utf-8")
    data = {
        "charts": page.charts,
        "trace": page.trace,
        "model": page.model,
        "times_are": page.trace_mark or "measured",
        "graph": page.graph,
    }
    # "</" would end the element, "<!--" begin a comment in it.
    content = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    body = "\n".join(
        [
            _header(page),
            _charts(page),
            _gantt(page),
            _table(
                _marked("Ops by device", page.trace_mark),
                page.ops,
                "Of one training step, all lanes together.",
            ),
            _model(page),
            _graph(page),
        ]
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(page.title)}</title>
<style>
{style}</style>
</head>
<body>
{body}
<div id="tip" role="status" hidden></div>
<noscript><p class="note">Curves, timeline and graph need JavaScript.</p></noscript>
<script type="application/json" id="data">{content}</script>
<script>
{script}</script>
</body>
</html>
"""


def _header(page: Page) -> str:
    marks = "".join(f'<span class="mark">{escape(mark)}</span>' for mark in page.marks)
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(figure)}</b></div>'
        for name, figure in page.tiles.items()
    )
    events = "".join(f"<p>{escape(event)}</p>" for event in page.events)
    happened = f"<section><h2>Events</h2>{events}</section>" if events else ""
    return (
        f'<h1>{escape(page.title)}</h1><p class="note">{escape(page.subtitle)}</p>'
        f"{f'<p>{marks}</p>' if marks else ''}"
        f'<div class="tiles">{tiles}</div>{happened}'
    )


def _charts(page: Page) -> str:
    found: list[str] = []
    for chart in page.charts:
        place = str(chart["id"])
        series = chart["series"]
        assert isinstance(series, list)
        names = "".join(
            f'<span><i style="background:var(--c-{one["colour"]})"></i>{escape(one["name"])}</span>'
            for one in series
        )
        legend = f'<div class="legend">{names}</div>' if len(series) > 1 else ""
        found.append(
            f"<section><h2>{_heading(page, place)}</h2>{legend}"
            f'<svg id="{place}" role="img" aria-label="{HEADINGS[place]} by training step"></svg>'
            "</section>"
        )
    if not any(chart["id"] == "energy" for chart in page.charts):
        found.append(
            f'<section><h2>{HEADINGS["energy"]}</h2><p class="note">{escape(page.energy)}</p>'
            "</section>"
        )
    return f'<div class="charts">{"".join(found)}</div>'


def _heading(page: Page, place: str) -> str:
    if place == "loss":
        return HEADINGS[place]
    heading = _marked(HEADINGS[place], page.metrics_mark)
    return f"{heading}: {escape(page.energy)}" if place == "energy" else heading


def _marked(heading: str, mark: str) -> str:
    return f"{heading} ({mark})" if mark else heading


def _gantt(page: Page) -> str:
    if page.trace is None:
        return (
            '<section><h2>Training step by lane</h2><p class="note">'
            f"{escape(page.no_trace)}</p></section>"
        )
    return (
        f"<section><h2>{_marked('Training step by lane', page.trace_mark)}</h2>"
        '<div class="bar"><select id="run" aria-label="Training step"></select>'
        f'{_buttons("gantt")}</div><div class="legend" id="gantt-legend"></div>'
        '<canvas id="gantt" tabindex="0" role="img" aria-label="What each lane did"></canvas>'
        f'<p class="note">{KEYS} Lines lead to what a step waited for, and to what waited for it.'
        "</p></section>"
        f"<section><h2>{_marked('Device use over this training step', page.trace_mark)}</h2>"
        '<div class="legend" id="use-legend"></div>'
        '<svg id="use" role="img" aria-label="Device use over time"></svg>'
        '<p class="note">Share of a device\'s compute lanes that execute a step.</p></section>'
        + _table(_marked("Lanes", page.trace_mark), page.lanes, "Over the training steps traced.")
    )


def _model(page: Page) -> str:
    if page.trace is None:
        return ""
    if not page.model:
        return f'<section><h2>Cost model</h2><p class="note">{escape(page.no_model)}</p></section>'
    return (
        f"<section><h2>Cost model: predicted against {page.trace_mark or 'measured'}</h2>"
        '<svg id="model" role="img" aria-label="Predicted time against that of the trace" '
        'style="height:320px"></svg><p class="note">A dot for each kind of work: medians. What is '
        "predicted is for no other device busy; what lies above the line took longer.</p></section>"
    )


def _graph(page: Page) -> str:
    if page.graph is None:
        return ""
    return (
        f'<section><h2>Graph of a training step</h2><div class="bar">{_buttons("graph")}</div>'
        '<div class="legend" id="graph-legend"></div>'
        '<canvas id="graph" tabindex="0" role="img" aria-label="The graph" style="height:380px">'
        f'</canvas><p class="note">{KEYS} What a node reads stands to its left.</p></section>'
    )


def _buttons(place: str) -> str:
    kinds = (("in", "Zoom in", "+"), ("out", "Zoom out", "\N{MINUS SIGN}"), ("all", "Fit", "Fit"))
    return "".join(
        f'<button id="{place}-{kind}" type="button" aria-label="{label}">{sign}</button>'
        for kind, label, sign in kinds
    )


def _table(heading: str, rows: Sequence[Sequence[str]], note: str) -> str:
    if len(rows) < 2:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:]
    )
    return (
        f'<section><h2>{heading}</h2><p class="note">{note}</p><div class="wide"><table><thead>'
        f"<tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )
