"""`aieflow simulate`: described devices, what is printed, what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.described import described_cpu, described_igpu, described_npu
from aieflow.devices.npu import NpuDevice
from aieflow.devices.registry import DEVICES
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.cpu.catalogue import KERNELS
from aieflow.ops.errors import DeviceError
from aieflow.ops.kernel import Call
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.transfer import Reach, reaches
from aieflow.tools.emulation import open_emulated_npu
from aieflow.tools.simulate import described_devices, simulated


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]

SIZES = ("--layers", 1, "--heads", 2, "--channels", 64, "--vocab-size", 128)
SMALL = (*SIZES, "--seq-len", 32, "--batch-size", 2)
ON_PHOENIX = ("simulate", "gpt2", "--machine", "phoenix", *SMALL)


def found(aieflow: Command, *options: object) -> dict[str, object]:
    result = aieflow(*ON_PHOENIX, *options, "--json")
    assert (result.code, result.err) == (0, "")
    report = json.loads(result.out)
    assert isinstance(report, dict)
    return report


def seconds(aieflow: Command, *options: object) -> float:
    value = found(aieflow, *options)["seconds"]
    assert isinstance(value, float)
    return value


def test_described_devices_plan_like_the_real_ones(tmp_path: Path) -> None:
    """The emulated NPU and this computer's CPU give the same plan, step for step."""
    profile = load_machine("phoenix")
    graph = training_graph(
        RunConfig(model=PRESETS["mini"], seq_len=16, batch_size=2, grad_accumulation=2)
    )
    npu = open_emulated_npu(profile, tmp_path)
    real: dict[str, Device] = {"cpu": CpuDevice(8), "npu": npu}
    try:
        assert isinstance(npu, NpuDevice)
        stand_ins = {device.name: device for device in described_devices(profile)}
        assert tuple(stand_ins) == DEVICES
        expected = place_on(graph, real, Placement("gemm-on-npu"))
        plan = place_on(graph, stand_ins, Placement("gemm-on-npu"))
        assert plan.steps == expected.steps
        assert plan.lanes == expected.lanes
        assert plan.nbytes == expected.nbytes
    finally:
        for device in real.values():
            device.close()


def test_described_devices_say_what_the_profile_says() -> None:
    for name, lanes in (("phoenix", 8), ("strix", 12)):
        cpu, igpu, npu = described_devices(load_machine(name))
        assert len(cpu.lanes) == lanes
        assert (igpu.lanes, npu.lanes) == (("igpu.compute",), ("npu.compute",))
        assert cpu.kernels == {**KERNELS, **CONVERSIONS}
        assert "matmul" in npu.kernels
        assert cpu.free_nbytes() == 32 << 30
        assert reaches({"cpu": cpu, "igpu": igpu, "npu": npu}) == {
            "cpu": Reach(),
            "igpu": Reach(("igpu.copy.in", "igpu.copy.out")),
            "npu": Reach(("npu.copy.in", "npu.copy.out"), is_separate=True),
        }
    assert described_igpu(2, 1).lanes == ("igpu.compute.0", "igpu.compute.1")


def test_described_devices_run_nothing() -> None:
    graph = training_graph(RunConfig(model=PRESETS["mini"], seq_len=16, batch_size=2))
    for device in (described_cpu(1, 1), described_igpu(1, 1), described_npu("npu2", 1, 1)):
        assert device.is_emulated
        assert "described" in device.identity
        with pytest.raises(DeviceError, match=f"{device.name} is described and allocates no"):
            device.allocate(1)
        call = Call((), (), {}, workspace=KERNELS)  # type: ignore[arg-type]  # never looked at
        with pytest.raises(DeviceError, match=f"{device.name} is described and cannot run"):
            device.bind(graph.nodes[0], call)
        device.close()


def test_json_is_one_object_that_says_it_is_simulated(aieflow: Command) -> None:
    report = found(aieflow, "--policy", "gemm-on-npu")
    assert report["simulated"] is True
    assert (report["machine"], report["power"]) == ("phoenix", "mains")
    numbers = {key: value for key, value in report.items() if isinstance(value, float)}
    total = numbers["seconds"]
    assert numbers["tokens_per_s"] == pytest.approx(2 * 32 / total)
    assert numbers["bound_ratio"] == pytest.approx(total / numbers["bound_seconds"])
    assert numbers["bound_ratio"] >= 1
    assert 0 < numbers["critical_path_seconds"] <= numbers["bound_seconds"] * (1 + 1e-9)
    assert 0 <= numbers["overlap"] <= 1
    # Idle power alone at least, and at most all devices and two more cores (copy lanes) at work.
    assert 15 * total < numbers["joules"] < (15 + 31 * 11 / 8 + 10 + 2.88) * total
    lanes = report["lanes"]
    assert isinstance(lanes, dict)
    assert {"cpu.compute.7", "npu.compute", "npu.copy.in", "npu.copy.out", "host.copy"} <= {*lanes}
    assert all(0 <= share <= 1 for share in lanes.values())
    by_op = report["lane_seconds_by_op"]
    assert isinstance(by_op, dict)
    assert sum(by_op.values()) == pytest.approx(total * sum(lanes.values()))
    assert found(aieflow, "--policy", "gemm-on-npu") == report


def test_every_printed_figure_is_called_simulated(aieflow: Command, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    result = aieflow(*ON_PHOENIX, "--policy", "gemm-on-npu", "--trace", file)
    assert (result.code, result.err) == (0, "")
    figures = [
        line
        for line in result.out.splitlines()
        if re.search(r"\d (s|J|W|tokens/s|GFLOP/s)\b|\d%", line)
        and not re.match(r"\S+\.\S+ +\d", line)  # a row of the table
        and not line.startswith(("machine", "figures", "batch"))
    ]
    assert len(figures) == 6
    for name in ("exposed", "the most", "path"):
        (line,) = (line for line in result.out.splitlines() if line.startswith(f"{name} "))
        assert line.endswith("(simulated)")
    assert all("(simulated)" in line for line in figures), figures
    assert re.search(r"lane +steps +busy s \(simulated\) +share \(simulated\)", result.out)
    events = json.loads(file.read_text())["traceEvents"]
    executors = {each["args"]["executor"] for each in events if each["ph"] == "X"}
    assert executors == {f"phoenix on mains: {name} (simulated)" for name in ("cpu", "npu")}


def test_json_says_where_the_gap_lies(aieflow: Command) -> None:
    report = found(aieflow, "--policy", "gemm-on-npu")
    gap, lanes, total = report["gap"], report["lanes"], report["seconds"]
    assert isinstance(gap, dict)
    assert isinstance(lanes, dict)
    assert isinstance(total, float)
    assert gap["lanes"].keys() == lanes.keys()
    for lane, each in gap["lanes"].items():
        assert each["busy_seconds"] == pytest.approx(lanes[lane] * total)
        idle = sum(each["idle_seconds"].values())
        assert each["busy_seconds"] + idle == pytest.approx(total, rel=1e-12)
    assert "nodes of cpu" in gap["lanes"]["npu.compute"]["idle_seconds"]
    assert "npu_pack" in gap["lanes"]["npu.compute"]["idle_seconds"]
    assert sum(gap["path_seconds"].values()) == pytest.approx(total, rel=1e-12)
    assert gap["exposed_seconds"] > 0
    seconds = [each["seconds"] for each in gap["exposed"]]
    assert len(seconds) == 10
    assert seconds == sorted(seconds, reverse=True)
    assert sum(seconds) <= gap["exposed_seconds"]


def test_the_model_may_be_left_out(aieflow: Command) -> None:
    result = aieflow("simulate", "--machine", "phoenix", *SMALL, "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == found(aieflow)


def test_devices_places_and_lanes_reach_the_plan(aieflow: Command) -> None:
    lanes = found(aieflow, "--devices", "cpu,igpu", "--policy", "cpu", "--lanes", 2)["lanes"]
    assert isinstance(lanes, dict)
    assert [lane for lane in lanes if lane.startswith("cpu")] == ["cpu.compute.0", "cpu.compute.1"]
    assert not any(lane.startswith("npu") for lane in lanes)
    by_hand = found(aieflow, "--policy", "cpu", "--place", "gelu=igpu")["lanes"]
    assert isinstance(by_hand, dict)
    assert by_hand["igpu.compute"] > 0
    assert seconds(aieflow, "--policy", "cpu", "--lanes", 1) > seconds(aieflow, "--policy", "cpu")
    # With fewer devices there is less to choose from: no bound gets lower.
    least = [found(aieflow, "--devices", names)["bound_seconds"] for names in ("cpu", "cpu,npu")]
    every = found(aieflow)["bound_seconds"]
    assert all(isinstance(each, float) for each in (*least, every))
    assert every <= least[1] * (1 + 1e-9) <= least[0] * (1 + 2e-9)  # type: ignore[operator]  # floats


def test_figures_can_be_varied(aieflow: Command) -> None:
    npu = ("--policy", "gemm-on-npu")
    base = seconds(aieflow, *npu)
    assert seconds(aieflow, *npu, "--vary", "npu.first_dispatch_s=10x") > base
    assert seconds(aieflow, *npu, "--vary", "npu.gemm_flops_per_s=1x") == base
    both = ("--vary", "cpu.memory_bytes_per_s=2x", "--vary", "npu.first_dispatch_s=0")
    assert seconds(aieflow, *npu, *both) < base
    report = found(aieflow, *both)
    assert report["varied"] == [both[1], both[3]]
    marks = report["marks"]
    assert isinstance(marks, dict)
    assert marks["varied"] == 2
    # What the CPU alone does, no NPU can speed up.
    alone = ("--policy", "cpu")
    assert seconds(aieflow, *alone, "--vary", "npu.first_dispatch_s=0") == seconds(aieflow, *alone)


def test_battery_is_slower_and_named(aieflow: Command) -> None:
    assert seconds(aieflow, "--power", "battery") > seconds(aieflow)
    assert found(aieflow, "--power", "battery")["power"] == "battery"
    assert "phoenix on battery, described: " in aieflow(*ON_PHOENIX, "--power", "battery").out


def test_a_plan_without_transfers_says_so(aieflow: Command) -> None:
    text = aieflow(*ON_PHOENIX, "--policy", "cpu").out
    assert "overlap     nothing is transferred (simulated)" in text


def test_no_device_of_this_computer_is_opened(
    aieflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(CpuDevice, "__init__", refuse)
    monkeypatch.setattr(NpuDevice, "__init__", refuse)
    for policy in ("cpu", "igpu", "gemm-on-npu"):
        assert seconds(aieflow, "--policy", policy) > 0


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("gpt3", "--machine", "phoenix"), "simulate gpt3: must be gpt2"),
        (("gpt2",), "simulate needs --machine: one of phoenix, phoenix-paper, strix, or FILE"),
        (("gpt2", "--machine", "fenix"), "phoenix"),
        (("gpt2", "--machine", "phoenix", "--power", "sun"), "--power sun: must be mains or batt"),
        (
            ("gpt2", "--machine", "phoenix", "--policy", "gem-on-npu"),
            "did you mean gemm-on-npu?",
        ),
        (
            ("gpt2", "--machine", "phoenix", "--vary", "npu.rate"),
            "--vary npu.rate: not FIGURE=VALUE",
        ),
        (
            ("gpt2", "--machine", "phoenix", "--vary", "npu.gem_flops_per_s=2x"),
            "--vary npu.gem_flops_per_s=2x: npu.gem_flops_per_s is no figure of machine phoenix; "
            "did you mean npu.gemm_flops",
        ),
        (
            ("gpt2", "--machine", "phoenix", "--vary", "npu.gemm_flops_per_s=-1"),
            "npu.gemm_flops_per_s = -1 gives -1: must be a finite number above 0",
        ),
        (
            ("gpt2", "--machine", "phoenix", "--vary", "cpu.lanes=fast"),
            "cpu.lanes = 'fast': give a number, or a factor such as 0.5x",
        ),
        (("gpt2", "--machine", "phoenix", "--slots", "0"), "--slots = 0: must be at least 1"),
        (
            ("--machine", "phoenix", "--lanes", "9"),
            "--lanes = 9: must be from 1 to 8, the lanes of phoenix",
        ),
        (("--machine", "phoenix", "--lanes", "0"), "--lanes = 0: must be from 1 to 8"),
        (("--machine", "phoenix", "--devices", "cpu,tpu"), "--devices cpu,tpu: 'tpu' is none of"),
        (
            ("--machine", "phoenix", "--devices", "cpu", "--policy", "gemm-on-npu"),
            "--policy gemm-on-npu: npu is none of the devices, which are cpu",
        ),
        (
            ("--machine", "phoenix", "--devices", "cpu", "--place", "matmul=npu"),
            "--place matmul=npu: 'npu' is none of the devices",
        ),
        (
            ("--machine", "phoenix", "--place", "gelu=npu"),
            "--place gelu=npu: npu has no kernel for gelu",
        ),
        (("--machine", "phoenix", "--devices", "npu"), "--devices npu: no kernel of "),
    ],
)
def test_misuse_is_refused(aieflow: Command, options: tuple[object, ...], fault: str) -> None:
    result = aieflow("simulate", *options)
    assert (result.code, result.out) == (2, "")
    assert fault in " ".join(result.err.split())


def test_a_trace_that_cannot_be_written_is_refused(aieflow: Command, tmp_path: Path) -> None:
    result = aieflow(*ON_PHOENIX, "--trace", tmp_path / "absent" / "trace.json")
    assert result.code == 2
    assert "cannot be written: No such file or directory" in " ".join(result.err.split())


def test_a_model_that_does_not_fit_is_refused(aieflow: Command) -> None:
    result = aieflow(*ON_PHOENIX, "--vary", "cpu.memory_nbytes=1000000")
    assert (result.code, result.out) == (1, "")
    assert "of memory" in result.err
    assert "cpu has 0.95 MiB free" in " ".join(result.err.split())


def test_help_has_an_example(aieflow: Command) -> None:
    result = aieflow("simulate", "--help")
    assert result.code == 0
    assert "Example: aieflow simulate gpt2 --machine phoenix" in " ".join(result.out.split())


def test_the_papers_cpu_step_comes_out_of_the_whole_way() -> None:
    """145 GFLOP/s on mains, 95 on battery, of which phoenix-paper's CPU was inferred.

    Planned, divided over eight lanes and simulated, launches and undivided nodes included: 2 %. The
    paper's step sets all gradients to zero first, ours need not.
    """
    config = RunConfig(model=PRESETS["124M"], seq_len=64, batch_size=4, policy="cpu")
    flops = 6 * config.model.parameters * 256
    for power, gflops_per_s in (("mains", 145), ("battery", 95)):
        machine = load_machine("phoenix-paper", power)
        zeroed_s = 4 * config.model.parameters / machine.cpu.memory_bytes_per_s.value
        seconds = simulated(config, machine).trace.seconds + zeroed_s
        assert flops / seconds / 1e9 == pytest.approx(gflops_per_s, rel=0.02)
