import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice, Rates, usable_cores
from aieflow.devices.fake import FakeDevice
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.devices.registry import DEVICES, survey
from aieflow.devices.surroundings import Finding
from aieflow.ops.errors import DeviceError, PlanError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call
from aieflow.tools import devices as command
from aieflow.tools.console import OUT
from aieflow.tools.device_rates import measure_device_rates

FOUND = (
    Finding(
        "cpu", True, "Some CPU [cores: eight]", {"cores": "2 usable", "BLAS": "openblas :x: 0.3"}
    ),
    Finding("igpu", True, "Radeon", {"platform": "rusticl", "driver": "25.2"}),
    Finding("npu", False, "no pyxrt", {"pyxrt": "not installed, " * 6}),
)
RATES = Rates(lanes=2, gemm_flops_per_s=210.26e9, bytes_per_s=26e9)
IGPU_RATES = Rates(lanes=1, gemm_flops_per_s=3500e9, bytes_per_s=98.6e9)


class WrongDevice(FakeDevice):
    """Computes something else than asked."""

    def bind(self, node: Node, call: Call) -> Callable[[], None]:
        return lambda: call.outputs[0].fill(0.0)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> typer.Typer:
    """The command on a terminal of 80 columns, with rates that were measured before."""
    monkeypatch.setattr(OUT, "width", 80)
    monkeypatch.setattr(command, "measure_rates", measured)
    monkeypatch.setattr(command, "measure_device_rates", lambda device: IGPU_RATES)
    monkeypatch.setattr(command, "open_device", lambda name, cache: FakeRemoteDevice(name))
    monkeypatch.setattr(command, "cache_folder", lambda: tmp_path / "kernels")
    made = typer.Typer(rich_markup_mode=None)
    made.command("devices")(command.devices)
    return made


def measured(device: CpuDevice) -> Rates:
    assert len(device.lanes) == usable_cores()
    return RATES


def never_measured(device: Device) -> Rates:
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
        "igpu    yes    model      Radeon",
        "               platform   rusticl",
        "               driver     25.2",
        "               GEMM       3,500.0 GFLOP/s, measured on 1 compute lane (float32,",
        "                          1536 x 1536)",
        "               bandwidth  98.6 GB/s, measured on 1 compute lane (sum of two",
        "                          arrays, read plus written)",
        "",
        "npu     no     reason     no pyxrt",
        "               pyxrt      not installed, not installed, not installed, not",
        "                          installed, not installed, not installed,",
    ]


def test_one_lane_is_one_lane(app: typer.Typer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "survey", lambda: FOUND[:1])
    monkeypatch.setattr(command, "measure_rates", lambda device: Rates(1, 1e9, 1e9))
    assert "1.0 GB/s, measured on 1 compute lane (copy" in output(app)


def test_nothing_is_measured_when_told_not_to(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "survey", lambda: FOUND)
    monkeypatch.setattr(command, "measure_rates", never_measured)
    monkeypatch.setattr(command, "measure_device_rates", never_measured)
    text = output(app, "--no-measure")
    assert "GEMM" not in text
    assert [word for word in DEVICES if word not in text] == []
    for shown in json.loads(output(app, "--no-measure", "--json"))["devices"]:
        assert (shown["measured"], shown["not_measured"]) == (None, None)


def test_a_device_that_cannot_be_measured_does_not_hide_the_others(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(device: Device) -> Rates:
        raise DeviceError(f"{device.name}: OUT_OF_RESOURCES")

    npu = Finding("npu", True, "Strix", {})
    monkeypatch.setattr(command, "survey", lambda: (*FOUND[:2], npu))
    monkeypatch.setattr(command, "measure_device_rates", fail)
    text = output(app)
    assert "GEMM          210.3 GFLOP/s" in text
    assert "not measured  igpu: OUT_OF_RESOURCES" in text
    assert "not measured  what an NPU computes depends on its design" in text
    cpu, igpu, npu_shown = json.loads(output(app, "--json"))["devices"]
    assert cpu["measured"]["lanes"] == 2
    assert (igpu["measured"], igpu["not_measured"]) == (None, "igpu: OUT_OF_RESOURCES")
    assert npu_shown["not_measured"].startswith("what an NPU computes")


def test_json_holds_the_same(app: typer.Typer) -> None:
    document = json.loads(output(app, "--json"))
    assert list(document) == ["devices"]
    for shown, finding in zip(document["devices"], survey(), strict=True):
        assert shown["device"] == finding.device
        assert shown["works"] is finding.works
        assert shown["is_automatic"] is finding.is_automatic
        assert shown["description"] == finding.description
        assert list(shown["facts"]) == list(finding.facts)
    assert document["devices"][0]["measured"] == {
        "lanes": 2,
        "gemm_flops_per_s": 210.26e9,
        "bytes_per_s": 26e9,
    }


@pytest.mark.opencl
def test_opencl_is_shown_and_measured_for_true(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PoCL or a GPU, through the command, with less work; the CPU's own rates are made up."""
    from aieflow.devices.registry import open_device

    (found,) = survey(names=("igpu",))
    if not found.works:
        pytest.skip(found.description)
    monkeypatch.setattr(command, "open_device", open_device)
    quick = partial(measure_device_rates, rounds=2, size=256, nbytes=1 << 20)
    monkeypatch.setattr(command, "measure_device_rates", quick)
    shown = json.loads(output(app, "--json"))["devices"][1]
    assert (shown["works"], shown["description"]) == (True, found.description)
    assert {"platform", "driver", "version", "type", "memory", "hardware"} <= set(shown["facts"])
    assert shown["is_automatic"] == (shown["facts"]["type"] == "GPU")
    assert shown["not_measured"] is None
    # Far outside of what any computer reaches: seconds, FLOPs or bytes were mistaken.
    assert 1e8 < shown["measured"]["gemm_flops_per_s"] < 1e15
    assert 1e8 < shown["measured"]["bytes_per_s"] < 1e14
    assert shown["measured"]["lanes"] == 1
    assert [file.suffix for file in (tmp_path / "kernels").iterdir()] != []


def test_a_node_is_timed_on_the_device_without_the_transfers() -> None:
    """Work counted as in the ops' own accounts; operands are moved once, results every time."""
    device = FakeRemoteDevice("far")
    rates = measure_device_rates(device, rounds=3, size=64, nbytes=4096)
    assert rates.lanes == 1
    assert rates.gemm_flops_per_s > 0
    assert rates.bytes_per_s > 0
    assert [name for name, _ in device.calls] == ["out"] * 8  # warm and three rounds, twice
    # matmul: operands in, then its result out of each run; likewise the sum
    matmul, add = 64 * 64 * 4, 4096
    assert device.moved.copied_nbytes == (2 + 4) * matmul + (2 + 4) * add


@pytest.mark.parametrize("device", [FakeDevice(lanes=1), FakeRemoteDevice("far")])
def test_rates_are_work_by_time(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are known: 2 ms for each node; as much for each transfer, which is not counted."""
    from aieflow.runtime import worker

    ticks = iter(range(0, 10**9, 2_000_000))
    monkeypatch.setattr(worker, "perf_counter_ns", lambda: next(ticks))
    rates = measure_device_rates(device, rounds=2, size=32, nbytes=1 << 12)
    assert rates.gemm_flops_per_s == pytest.approx(2 * 32**3 / 2e-3)
    assert rates.bytes_per_s == pytest.approx(3 * (1 << 12) / 2e-3)


def test_the_cpu_is_measured_by_the_same_nodes() -> None:
    with closing(CpuDevice(2)) as device:
        rates = measure_device_rates(device, rounds=1, size=64, nbytes=1 << 16)
    assert rates.lanes == 2
    assert np.isfinite([rates.gemm_flops_per_s, rates.bytes_per_s]).all()


def test_a_device_that_computes_wrong_has_no_rate() -> None:
    with pytest.raises(DeviceError, match=r"computes matmul wrong, by up to .*: update its driver"):
        measure_device_rates(WrongDevice(lanes=1), rounds=1, size=16, nbytes=4096)


def test_a_device_without_the_kernels_has_no_rate() -> None:
    with pytest.raises(PlanError, match="matmul"):
        measure_device_rates(FakeRemoteDevice("far", {}), rounds=1, size=16, nbytes=4096)


def test_help_has_an_example(app: typer.Typer) -> None:
    text = output(app, "--help")
    assert "Example: aieflow devices --no-measure" in text
    assert "--json" in text
