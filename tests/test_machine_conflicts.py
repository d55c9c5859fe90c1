"""Options that would have no effect beside each other are refused, each with what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]

SMALL = ("--layers", 1, "--heads", 2, "--channels", 16, "--seq-len", 8, "--batch-size", 2)
PHOENIX = ("--machine", "phoenix")

CONFLICTS = [
    (
        (*PHOENIX, "--xclbin", "nonsense"),
        "--xclbin nonsense: the NPU of --machine phoenix is emulated, with a design of its own: "
        "leave one of the two out",
    ),
    (
        ("--xclbin", "gemm.xclbin"),
        "--xclbin gemm.xclbin: is for the NPU, but the devices are cpu: leave it out, or add npu: "
        "--devices cpu,npu",
    ),
    (("--slots", 2), "--slots 2: is for the NPU, but the devices are cpu"),
    (
        ("--devices", "igpu", "--lanes", 2),
        "--lanes 2: is for the CPU, but the devices are igpu: leave it out, or add cpu: "
        "--devices cpu,igpu",
    ),
    ((*PHOENIX, "--allow-fp16"), "--allow-fp16: is for the iGPU, but the devices are cpu,npu"),
    (
        (*PHOENIX, "--devices", "cpu"),
        "--machine phoenix: is for the NPU, which alone is emulated, but the devices are cpu",
    ),
    (("--check-devices",), "--check-devices: the CPU is the only device"),
    (
        (*PHOENIX, "--check-devices", "--policy", "cpu"),
        "--check-devices: by --policy cpu no product runs on another device than the CPU",
    ),
    (
        (*PHOENIX, "--check-devices", "--place", "matmul=cpu"),
        "--check-devices: by --policy gemm-on-npu no product runs on another device than the CPU",
    ),
    (
        ("--devices", "igpu", "--check-devices"),
        "--check-devices: products of igpu are held against the CPU's: add it: --devices cpu,igpu",
    ),
    (
        ("--on-device-failure", "exclude"),
        "--on-device-failure exclude: without cpu no device is left: leave it out, or name others: "
        "--devices cpu,igpu",
    ),
    (
        ("--devices", "igpu", "--on-device-failure", "exclude"),
        "without igpu no device is left: leave it out, or name others: --devices cpu,igpu",
    ),
]


@pytest.mark.parametrize(("options", "fault"), CONFLICTS)
def test_what_would_have_no_effect_is_refused(
    aieflow: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = ["train"] if "--machine phoenix: is" in fault else ["train", "plan"]
    for command in commands:
        result = aieflow(command, "gpt2", *SMALL, *options)
        assert result.code == 2, result.err
        assert fault in " ".join(result.err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        (*PHOENIX, "--slots", 2, "--lanes", 2, "--on-device-failure", "exclude"),
        (*PHOENIX, "--check-devices"),
        (*PHOENIX, "--check-devices", "--policy", "cpu", "--place", "matmul=npu"),
        ("--on-device-failure", "stop", "--lanes", 1),
        ("--devices", "auto", "--check-devices", "--on-device-failure", "exclude", "--slots", 2),
    ],
)
def test_what_has_an_effect_is_not(aieflow: Command, options: tuple[object, ...]) -> None:
    result = aieflow("plan", "gpt2", *SMALL, *options, "--json")
    assert result.code == 0, result.err
    ops = {node["op"] for node in json.loads(result.out)["graph"]["nodes"]}
    assert ("matmul_check" in ops) == ("--check-devices" in options and "auto" not in options)


def test_a_run_goes_on_without_the_device_that_its_options_were_for(
    aieflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is given now counts: `--check-devices` cannot be taken back."""
    monkeypatch.chdir(tmp_path)  # the data's cache lies beside the run
    everything = (*PHOENIX, "--slots", 2, "--check-devices", "--on-device-failure", "exclude")
    begun = aieflow(
        *("train", "gpt2", *SMALL, *everything, "--out", "run", "--steps", 1, "--no-sample")
    )
    assert begun.code == 0, begun.err
    going_on = ("train", "gpt2", "--resume", "run", "--no-sample", "--devices", "cpu")
    assert aieflow(*going_on).code == 0
    refused = aieflow(*going_on, "--slots", 2)
    assert refused.code == 2
    assert "--slots 2: is for the NPU" in " ".join(refused.err.split())
    generating = ("generate", "--from", "run", "--tokens", 1, *PHOENIX)
    refused = aieflow(*generating, "--xclbin", "nonsense")
    assert refused.code == 2
    assert "--xclbin nonsense: the NPU of --machine phoenix" in " ".join(refused.err.split())
    assert aieflow(*generating).code == 0
