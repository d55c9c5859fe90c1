import json

import pytest
import typer
from typer.testing import CliRunner

from aieflow.devices.cpu import CpuDevice, Rates, usable_cores
from aieflow.devices.registry import DEVICES, Finding, survey
from aieflow.tools import devices as command
from aieflow.tools.console import OUT

FOUND = (
    Finding(
        "cpu", True, "Some CPU [cores: eight]", {"cores": "2 usable", "BLAS": "openblas :x: 0.3"}
    ),
    Finding("igpu", False, "no OpenCL device yet", {"pyopencl": "not installed, " * 6}),
)
RATES = Rates(lanes=2, gemm_flops_per_s=210.26e9, bytes_per_s=26e9)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """The command on a terminal of 80 columns, with rates that were measured before."""
    monkeypatch.setattr(OUT, "width", 80)
    monkeypatch.setattr(command, "measure_rates", measured)
    made = typer.Typer(rich_markup_mode=None)
    made.command("devices")(command.devices)
    return made


def measured(device: CpuDevice) -> Rates:
    assert len(device.lanes) == usable_cores()
    return RATES


def never_measured(device: CpuDevice) -> Rates:
    raise AssertionError("measured though told not to")


def output(app: typer.Typer, *options: str) -> str:
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_the_table_names_each_device(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "survey", lambda: FOUND)
    lines = [line.rstrip() for line in output(app).splitlines()]
    assert lines == [
        "device  works",
        "cpu     yes    model      Some CPU [cores: eight]",
        "               cores      2 usable",
        "               BLAS       openblas :x: 0.3",
        "               GEMM       210.3 GFLOP/s, measured on 2 compute lanes (float32,",
        "                          1536 x 1536 on each)",
        "               bandwidth  26.0 GB/s, measured on 2 compute lanes (copy, read",
        "                          plus written)",
        "",
        "igpu    no     reason     no OpenCL device yet",
        "               pyopencl   not installed, not installed, not installed, not",
        "                          installed, not installed, not installed,",
    ]


def test_one_lane_is_one_lane(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "measure_rates", lambda device: Rates(1, 1e9, 1e9))
    assert "1.0 GB/s, measured on 1 compute lane (copy" in output(app)


def test_nothing_is_measured_when_told_not_to(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "measure_rates", never_measured)
    text = output(app, "--no-measure")
    assert "GEMM" not in text
    assert [word for word in DEVICES if word not in text] == []
    assert json.loads(output(app, "--no-measure", "--json"))["devices"][0]["measured"] is None


def test_json_holds_the_same(app: typer.Typer) -> None:
    document = json.loads(output(app, "--json"))
    assert list(document) == ["devices"]
    for shown, finding in zip(document["devices"], survey(), strict=True):
        assert shown["device"] == finding.device
        assert shown["works"] is finding.works
        assert shown["description"] == finding.description
        assert list(shown["facts"]) == list(finding.facts)
    assert document["devices"][0]["measured"] == {
        "lanes": 2,
        "gemm_flops_per_s": 210.26e9,
        "bytes_per_s": 26e9,
    }
    assert [shown["measured"] for shown in document["devices"][1:]] == [None, None]


def test_help_has_an_example(app: typer.Typer) -> None:
    text = output(app, "--help")
    assert "Example: aieflow devices --no-measure" in text
    assert "--json" in text
