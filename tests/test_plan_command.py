import json
import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import networkx
import pytest
import typer
from typer.testing import CliRunner

from aieflow.devices.base import Buffer
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.registry import open_device
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.errors import InputError, ProfileError
from aieflow.runtime.export import dot_text, json_text
from aieflow.runtime.placement import place
from aieflow.runtime.plan import Plan
from aieflow.tools.check_resume import COMMAND
from aieflow.tools.console import OUT
from aieflow.tools.model_options import model_from
from aieflow.tools.plan import plan
from aieflow.tools.run_options import asked_for, new_config


class Result(Protocol):
    code: int
    out: str
    err: str


SMALL = ("--layers", "2", "--heads", "2", "--channels", "128", "--vocab-size", "67")
TWO_LANES = ("--lanes", "2")


def small_plan(lanes: int = 2, **settings: int | float) -> Plan:
    sizes = {"layers": 2, "heads": 2, "channels": 128, "vocab_size": 67}
    config = new_config(asked_for(None, None, {**sizes, **settings}))
    with closing(open_device("cpu", lanes)) as device:
        return place(training_graph(config), device)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The command on a terminal of 80 columns."""
    monkeypatch.setattr(OUT, "width", 80)
    made = typer.Typer(rich_markup_mode=None)
    made.command("plan")(plan)
    return made


def output(app: typer.Typer, *options: str) -> str:
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.stderr == ""
    return result.stdout


def rows(text: str, first: str) -> dict[str, list[str]]:
    """The table whose heading begins with `first`: cells by the text of the first column."""
    lines = text[text.index(f"\n{first} ") + 1 :].split("\n\n")[0].splitlines()[1:]
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_the_summary_of_the_default_model(app: typer.Typer) -> None:
    text = output(app, "gpt2", *TWO_LANES)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[:3] == [
        "model       GPT-2: L=4 H=6 C=192 V=1024, at most 128 tokens",
        "parameters  2,001,024",
        "batch       B=8 T=128: 1,024 tokens in a training step",
    ]
    assert re.fullmatch(
        r"planning    \d+\.\d\d s \(graph \d+\.\d\d, plan \d+\.\d\d\)",
        next(line for line in lines if line.startswith("planning")),
    )
    assert max(map(len, lines)) <= 80


def test_the_summary_adds_up_to_the_plan(app: typer.Typer) -> None:
    text = output(app, "gpt2", *SMALL, *TWO_LANES, "--batch-size", "3", "--seq-len", "64")
    made = small_plan(batch_size=3, seq_len=64)
    graph, placements = made.graph, made.schedule.placements
    divided = [node.op.name for node, on in zip(graph.nodes, placements, strict=True) if on[1:]]
    assert (
        f"batch       B=3 T=64: 192 tokens in a training step\ngraph       {len(graph.nodes)} "
        in text
    )
    assert (
        f"plan        {len(made.steps)} steps on 2 lanes, {made.edges} waits between lanes, "
        f"{len(divided)} nodes divided\n" in text
    )
    assert divided
    ops = rows(text, "op")
    names = [node.op.name for node in graph.nodes]
    assert set(ops) == set(names)
    for op, (count, parted, gflop, _, megabytes) in ops.items():
        nodes = [node for node in graph.nodes if node.op.name == op]
        assert (int(count), int(parted)) == (len(nodes), divided.count(op))
        assert gflop == f"{sum(node.flops for node in nodes) / 1e9:,.3f}"
        assert megabytes == f"{sum(node.nbytes for node in nodes) / 1e6:,.1f}"
    assert next(iter(ops)) == "matmul"
    shares = [float(row[3].rstrip("%")) for row in ops.values()]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=1)
    memory = rows(text, "memory at the peak")
    assert list(memory)[-2:] == ["total", "free on this computer"]
    assert memory["total"] == [f"{made.nbytes / 1e6:,.2f}"]
    assert memory["parameters"][0] == f"{made.memory.accounts['parameters'] / 1e6:,.2f}"
    assert memory["gradients"][0] == f"{made.memory.accounts['gradients'] / 1e6:,.2f}"
    assert memory["workspaces"][0] == f"{sum(made.workspace.values()) / 1e6:,.2f}"
    assert "cache" not in memory
    lanes = rows(text, "lane")
    assert list(lanes) == ["cpu.compute.0", "cpu.compute.1"]
    assert [int(row[0]) for row in lanes.values()] == [len(p) for p in made.lanes.values()]
    assert sum(int(row[2]) for row in lanes.values()) == made.edges
    assert [int(row[1]) for row in lanes.values()] == [len(divided)] * 2


def test_one_lane_waits_for_nobody(app: typer.Typer) -> None:
    text = output(app, "gpt2", *SMALL, "--lanes", "1")
    assert " steps on 1 lane, 0 waits between lanes, 0 nodes divided" in text


def test_options_reach_the_plan(app: typer.Typer) -> None:
    options = ("--batch-size", "2", "--grad-accumulation", "3", "--dropout", "0.1")
    text = output(app, "gpt2", *SMALL, *options, "--grad-clip", "0", *TWO_LANES)
    assert "B=2 T=128 x 3 passes: 768 tokens in a training step" in text
    assert rows(text, "op")["dropout"][0] == str(3 * (1 + 2 * 2) * 2)  # forward and backward
    made = json.loads(output(app, "gpt2", *SMALL, "--grad-clip", "0.5", "--json"))
    clips = [n["attrs"] for n in made["graph"]["nodes"] if n["op"] == "clip_factor"]
    assert clips == [{"max_norm": 0.5}]


def test_full_shows_every_node_slot_and_step(app: typer.Typer) -> None:
    made = small_plan()
    text = output(app, "gpt2", *SMALL, *TWO_LANES, "--full")
    assert f"\n{made.graph}\n" in text
    lines = set(text.splitlines())
    for value in made.graph.values:
        slot = made.memory.slots[value]
        assert f"  %{value.name}: {slot.nbytes} bytes at {slot.offset} of {slot.space}" in lines
    programs = text[text.index("\nlane cpu.compute.0\n") :]
    for step in made.steps:
        part = f" part {step.part + 1} of {step.parts}" if step.parts > 1 else ""
        waits = f" waits for {', '.join(map(str, step.waits))}" if step.waits else ""
        assert f"\n  {step.index:5d}  {made.node_of(step).name}{part}{waits}\n" in programs
    assert made.edges > 0
    assert " part 2 of 2 waits for " in programs


def test_json_is_the_plan_and_nothing_else(app: typer.Typer) -> None:
    assert output(app, "gpt2", *SMALL, *TWO_LANES, "--json") == json_text(small_plan())


def test_drawings_are_written(app: typer.Typer, tmp_path: Path) -> None:
    dot, graphml = tmp_path / "step.dot", tmp_path / "[b].graphml"
    text = output(app, "gpt2", *SMALL, *TWO_LANES, "--dot", str(dot), "--graphml", str(graphml))
    assert text.endswith(f"\ndot         {dot}\ngraphml     {graphml}\n")
    assert dot.read_text(encoding="utf-8") == dot_text(small_plan())
    assert len(networkx.read_graphml(graphml)) == len(small_plan().graph.nodes)
    text = output(app, "gpt2", *SMALL, *TWO_LANES, "--json", "--dot", str(tmp_path / "again.dot"))
    assert json.loads(text)
    assert (tmp_path / "again.dot").read_bytes() == dot.read_bytes()


def test_the_largest_preset_is_planned_without_its_memory(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(device: CpuDevice, nbytes: int) -> Buffer:
        raise AssertionError(f"asked for {nbytes} bytes")

    monkeypatch.setattr(CpuDevice, "allocate", refuse)
    text = output(app, "gpt2", "--preset", "xl", "--lanes", "1")
    assert "parameters  1,557,611,200\n" in text
    assert rows(text, "memory at the peak")["moments"][0] == "12,460.89"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("gpt3",), "plan gpt3: must be gpt2: aieflow plan gpt2"),
        (
            ("gpt2", "--preset", "huge"),
            "--preset huge: must be one of mini, 124M, medium, large, xl",
        ),
        (("gpt2", "--heads", "5"), "channels = 192 is not a multiple of heads = 5: "),
        (("gpt2", "--batch-size", "0"), "--batch-size = 0: must be at least 1"),
        (("gpt2", "--grad-accumulation", "0"), "--grad-accumulation = 0: must be at least 1"),
        (("gpt2", "--dropout", "1"), "--dropout = 1.0: must lie in [0, 1)"),
        (("gpt2", "--grad-clip", "-1"), "--grad-clip = -1.0: must be a finite number"),
        (("gpt2", "--lanes", "0"), "--lanes = 0: must be from 1 to "),
    ],
)
def test_misuse_is_an_input_error(app: typer.Typer, options: tuple[str, ...], message: str) -> None:
    error = CliRunner().invoke(app, options).exception
    assert isinstance(error, InputError)
    assert str(error).startswith(message)


ON_PHOENIX = ("gpt2", *SMALL, "--machine", "phoenix", "--policy", "gemm-on-npu", "--bound")


def test_bound_is_what_simulate_foretells(app: typer.Typer, aieflow: Callable[..., Result]) -> None:
    """The plan shown is the described machine's own, all devices and lanes that it has."""
    report = json.loads(output(app, *ON_PHOENIX, "--json"))
    assert report.pop("machine") == "phoenix on mains"
    found = aieflow("simulate", *ON_PHOENIX[:-1], "--json")
    simulated = json.loads(found.out)
    assert report == {name: simulated[name] for name in report}
    assert report["simulated"] is True
    assert report["bound_ratio"] == pytest.approx(report["seconds"] / report["bound_seconds"])
    assert report["bound_ratio"] >= 1


def test_bound_is_printed_below_the_plan(app: typer.Typer) -> None:
    report = json.loads(output(app, *ON_PHOENIX, "--json"))
    text = output(app, *ON_PHOENIX)
    below = text[text.index("\nforetold ") :]
    assert below.startswith("\nforetold    for phoenix on mains (simulated)\n")
    assert f"\nbound       {report['bound_seconds']:.4g} s at least" in below
    assert f"{report['bound_ratio']:.2f}x (simulated)\n" in below
    waits = rows(text, "lane           idle")
    assert {*waits} == {*report["lanes"]}
    assert "nodes of" in waits["npu.compute"][1]
    lanes = rows(text, "lane")
    assert [int(row[0]) for row in lanes.values()]
    assert "free on phoenix on mains" in rows(text, "memory at the peak")
    assert "path " in below


def test_bound_needs_a_calibration_or_a_described_machine(app: typer.Typer) -> None:
    error = CliRunner().invoke(app, ("gpt2", *SMALL, "--bound")).exception
    assert isinstance(error, ProfileError)
    assert "no calibration of cpu: run `aieflow calibrate --device cpu`, or name a described " in (
        str(error)
    )
    assert "--machine phoenix" in str(error)


@pytest.mark.parametrize("option", ["--dot", "--graphml"])
def test_a_file_that_cannot_be_written_is_named(
    app: typer.Typer, tmp_path: Path, option: str
) -> None:
    file = tmp_path / "absent" / "step"
    error = CliRunner().invoke(app, ("gpt2", *SMALL, option, str(file))).exception
    assert isinstance(error, InputError)
    assert str(error) == f"{option} {file}: cannot be written: No such file or directory"


def test_help_has_an_example(app: typer.Typer) -> None:
    text = output(app, "--help")
    assert "Example: aieflow plan gpt2 --preset 124M --batch-size 4 --dot step.dot" in text
    assert "mini, 124M, medium, large, xl; default: mini." in text


def test_a_model_is_a_preset_with_other_sizes() -> None:
    assert model_from() == PRESETS["mini"]
    assert model_from("xl") == PRESETS["xl"]
    changed = model_from("124M", 1, 2, 8, 16, 99)
    assert changed == replace(
        PRESETS["124M"], layers=1, heads=2, channels=8, seq_len=16, vocab_size=99
    )


@pytest.mark.parametrize(
    ("preset", "heads", "message"),
    [
        ("tiny", None, "--preset tiny: must be one of mini, 124M, medium, large, xl"),
        ("", None, "--preset : must be one of mini, 124M, medium, large, xl"),
        ("mini", 7, "channels = 192 is not a multiple of heads = 7"),
        (None, 0, "heads = 0: must be at least 1"),
    ],
)
def test_a_model_that_cannot_be_is_refused(
    preset: str | None, heads: int | None, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        model_from(preset, heads=heads)
    assert str(caught.value).startswith(message)


def test_a_full_disk_under_the_output_gives_one_message() -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*COMMAND, "plan", "gpt2"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (ended.returncode, ended.stderr) == (1, "error: No space left on device\n")
