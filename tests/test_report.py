"""`aieflow report`: what the page holds, and that it asks nobody for anything."""

import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from traced_runs import cost, simulated

from aieflow.runtime.timeline import timeline
from aieflow.runtime.timeline_counters import with_counters
from aieflow.tools.report_content import (
    POINTS,
    busy_shares,
    curve,
    model_points,
    op_times,
    read_metrics,
    trace_data,
)
from aieflow.tools.trace_files import write_trace

TINY = ("--layers", 1, "--heads", 2, "--channels", 16, "--seq-len", 16, "--batch-size", 2)
SHORT = (*TINY, "--steps", 6, "--eval-every", 3, "--no-sample")


class Read(HTMLParser):
    """The elements of a page, their texts, and whatever could make a browser fetch something."""

    FETCHED = ("src", "href", "srcset", "data", "action", "poster", "background", "ping", "cite")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(f"{tag}#{dict(attrs).get('id') or ''}")

    def handle_endtag(self, tag: str) -> None:
        while self.open and not self.open.pop().startswith(f"{tag}#"):
            pass

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        self.texts[where] = self.texts.get(where, "") + data

    @property
    def references(self) -> list[str]:
        """What would be fetched: attributes of elements, and addresses in style and script."""
        found = [
            f"<{tag} {name}={attrs[name]}>"
            for tag, attrs in self.tags
            for name in self.FETCHED
            if name in attrs
        ]
        found += [f"<{tag}>" for tag, _ in self.tags if tag in ("link", "iframe", "object", "base")]
        texts = "\n".join(
            text for where, text in self.texts.items() if where in ("style#", "script#")
        )
        # The name of SVG is an address that nobody fetches.
        texts = texts.replace("http://www.w3.org/2000/svg", "")
        calls = r"(?i)\burl\(|@import|https?:|//\w+\.\w|\bfetch\(|XMLHttpRequest|WebSocket|import\("
        found += re.findall(calls + r"|sendBeacon|EventSource|\.src\b|Worker\(", texts)
        return found

    @property
    def data(self) -> Mapping[str, Any]:
        found = json.loads(self.texts["script#data"])
        assert isinstance(found, dict)
        return found


@pytest.fixture
def run(aieflow: Command, tmp_path: Path) -> Path:
    """A short run whose training steps were traced."""
    folder = tmp_path / "a <b> run"
    trace = tmp_path / "trace.json"
    result = aieflow("train", "gpt2", *SHORT, "--out", folder, "--trace", trace)
    assert result.code == 0, result.err
    return folder


def page(aieflow: Command, run: Path, *options: object) -> Read:
    result = aieflow("report", run, *options)
    assert (result.code, result.err) == (0, "")
    file = Path(result.out.split(maxsplit=1)[1].strip())
    return Read(file.read_text(encoding="utf-8"))


def test_the_page_of_a_run(aieflow: Command, run: Path) -> None:
    read = page(aieflow, run)
    assert read.references == []
    (policy,) = (
        attrs["content"] or "" for tag, attrs in read.tags if attrs.get("http-equiv") is not None
    )
    assert policy.startswith("default-src 'none'; ")
    assert "http" not in policy
    data = read.data
    loss = next(chart for chart in data["charts"] if chart["id"] == "loss")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    training, validation = (series["points"] for series in loss["series"])
    assert training == [[line["training_step"], line["loss"]] for line in lines if "loss" in line]
    assert [x for x, _ in validation] == [3, 6]
    assert [one["number"] for one in data["trace"]["runs"]] == [2, 3, 4, 5, 6]
    plan = json.loads((run / "plan.json").read_text())
    assert len(data["graph"]["nodes"]) == plan["totals"]["nodes"]
    assert {len(one["slices"]) for one in data["trace"]["runs"]} == {plan["totals"]["steps"]}
    ids = {attrs.get("id") for _, attrs in read.tags}
    assert {"loss", "speed", "gantt", "run", "use", "graph", "gantt-in", "tip"} <= ids
    # What the script looks up by name is there.
    script = read.texts["script#"]
    asked = set(re.findall(r'\$\("([a-z-]+)"\)', script))
    assert asked <= ids | {"model"}, asked - ids
    assert "a <b> run" in read.texts["h1#"]  # escaped in the file
    assert "devices cpu, policy cpu" in "".join(read.texts.values())
    assert "n/a: no meter was read. `aieflow train --energy`" in "".join(read.texts.values())
    assert "6 of 6" in "".join(read.texts.values())


def test_joules_are_named_by_their_meter(aieflow: Command, run: Path) -> None:
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        if "loss" in line:
            line |= {"joules": 2.5 * line["training_step"], "joules_source": "package <RAPL>"}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = page(aieflow, run)
    chart = next(chart for chart in read.data["charts"] if chart["id"] == "energy")
    assert chart["series"][0]["points"] == [[float(n), 2.5 * n] for n in range(1, 7)]
    texts = "".join(read.texts.values())
    assert "Joules a training step: package <RAPL>" in texts
    assert "median joules a training step" in texts
    assert "8.75" in read.texts["b#"]  # of 2.5 to 15
    assert "no meter was read" not in texts
    assert read.references == []


def test_names_cannot_break_out_of_the_page(aieflow: Command, run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        evil = "</script><script>alert(1)</script><!--<img src=x>"
        file.write(json.dumps({"training_step": 6, "excluded_device": "npu", "reason": evil}))
    plan = run / "plan.json"
    plan.write_text(plan.read_text().replace('"h.0.ln_1"', json.dumps("</script><b>x")))
    read = page(aieflow, run)
    assert read.references == []
    assert [tag for tag, _ in read.tags].count("script") == 2
    assert "img" not in {tag for tag, _ in read.tags}
    assert "</script><b>x" in {node[0] for node in read.data["graph"]["nodes"]}


def test_a_run_that_was_not_traced_says_how(aieflow: Command, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert aieflow("train", "gpt2", *SHORT, "--out", folder).code == 0
    out = tmp_path / "page.html"
    read = page(aieflow, folder, "--out", out)
    assert out.is_file()
    assert not (folder / "report.html").exists()
    assert read.data["trace"] is None
    assert "n/a: no training step was traced" in "".join(read.texts.values())
    assert "canvas" in {tag for tag, _ in read.tags}  # the graph needs no trace


def test_a_simulated_trace_is_called_so(aieflow: Command, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "simulated.sqlite"
    write_trace(simulated(), [file], cost())
    read = page(aieflow, run, "--trace", file)
    text = read.texts
    assert read.data["times_are"] == "simulated"  # what the drawing of the cost model says of times
    assert "measured" not in text["script#"].replace("one.measured", "")
    headings = text["h2#"]
    for heading in ("Training step by lane", "Lanes", "Ops by device", "Device use over this"):
        assert re.search(rf"{heading}[^()]*\(simulated\)", headings), heading
    assert "Cost model: predicted against simulated" in headings
    assert "timeline: made up: far (simulated)" in text["span#"]


def test_what_is_no_run_is_refused(aieflow: Command, tmp_path: Path, run: Path) -> None:
    (run / "trace.sqlite").write_bytes(b"damaged")
    faults: dict[tuple[object, ...], str] = {
        (tmp_path / "gone",): "is no run: give a folder that `aieflow train` made",
        (run,): "is no database of a trace",
        (run, "--trace", tmp_path / "x.pftrace"): "a trace is read or written as",
    }
    for options, fault in faults.items():
        result = aieflow("report", *options)
        assert (result.code, result.out) == (2, "")
        assert fault in " ".join(result.err.split())
    (run / "trace.sqlite").unlink()
    result = aieflow("report", run, "--out", tmp_path / "gone" / "page.html")
    assert result.code == 2
    assert "cannot be written: No such file or directory" in " ".join(result.err.split())


def test_metrics_with_torn_and_foreign_lines(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"training_step": 1, "loss": 2.5, "emulated": "npu"}\n[1]\nnot JSON\n'
        '{"training_step": 1, "validation_loss": null}\n{"training_step": 1, "reason": "x"}\n'
        '{"training_step": 2, "loss"'
    )
    found = read_metrics(file)
    assert [line["loss"] for line in found.steps] == [2.5]
    assert (len(found.evaluations), len(found.events)) == (1, 1)
    assert found.emulated == ("npu",)
    assert read_metrics(tmp_path / "gone.jsonl").steps == ()


def test_a_long_curve_is_averaged() -> None:
    lines = [{"training_step": step, "loss": float(step % 2)} for step in range(4 * POINTS)]
    points = curve(lines, "loss")
    assert len(points) == POINTS
    assert {y for _, y in points} == {0.5}
    assert points[0] == (1.5, 0.5)
    missing: list[dict[str, float | None]] = [
        {"training_step": 1, "loss": None},
        {"training_step": 2, "loss": float("nan")},
    ]
    assert curve(missing, "loss") == []


def test_the_gantt_has_every_step_and_arrow() -> None:
    recorded = simulated()
    full = with_counters(timeline(recorded), recorded)
    data: Any = trace_data(full)
    assert [one["wall"] for one in data["runs"]] == [run.end_ns - run.start_ns for run in full.runs]
    drawn = [
        (data["lanes"][lane], start + run.start_ns, duration, data["names"][name], data["ops"][op])
        for one, run in zip(data["runs"], full.runs, strict=True)
        for lane, start, duration, name, op, _, _, _ in one["slices"]
    ]
    assert drawn == [
        (each.lane, each.start_ns, each.duration_ns, each.name, each.op) for each in full.slices
    ]
    assert sum(len(one["arrows"]) for one in data["runs"]) == len(full.arrows)
    steps = {each[7] for each in data["runs"][0]["slices"]}
    assert all({source, target} <= steps for source, target, _ in data["runs"][0]["arrows"])
    families = dict(zip(data["ops"], data["families"], strict=True))
    assert (families["in"], families["matmul"], families["mean"]) == ("transfer", "matmul", "other")


def test_sums_by_op_and_lane() -> None:
    full = timeline(simulated(), cost())
    times = op_times(full)
    busy_s = sum(each.duration_ns for each in full.slices) / 1e9 / len(full.runs)
    assert sum(each.seconds for each in times) == pytest.approx(busy_s)
    assert sum(each.share for each in times) == pytest.approx(1)
    assert [each.seconds for each in times] == sorted((e.seconds for e in times), reverse=True)
    # Contention makes steps longer than predicted, by 1.25 for each of three others (one does the
    # transfers) at most: 1 / 1.25^3 - 1 = -0.488; times of some ns are rounded.
    assert all(-0.49 < (each.error or 0) < 0.02 for each in times if each.median_s > 1e-7)
    shares = busy_shares(full)
    assert shares.keys() == set(full.lanes)
    wall_s = sum(each.trace.seconds for each in simulated())
    assert sum(shares.values()) * wall_s == pytest.approx(busy_s * len(full.runs), rel=1e-4)
    points = model_points(full)
    assert {(one["op"], one["device"]) for one in points} == {
        (each.op, each.device) for each in times if each.median_s
    }
