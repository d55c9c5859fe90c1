"""The options that say where a program runs: what is refused, and what reaches the plan."""

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


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (("--devices", "gpu"), "--devices gpu: 'gpu' is none of cpu, igpu, npu, auto: did you"),
        (("--devices", "cpu,,npu"), "--devices cpu,,npu: '' is none of"),
        (("--devices", "cpu,cpu"), "--devices cpu,cpu: cpu stands there twice"),
        (
            ("--policy", "gem-on-npu"),
            "--policy gem-on-npu: must be one of cpu, igpu, gemm-on-npu, heft, peft, dmda, best: d",
        ),
        (("--place", "matmul"), "--place matmul: 'matmul' is not OP=DEVICE"),
        (("--place", "matmull=cpu"), "no op is called 'matmull': did you mean matmul?"),
        (("--place", "matmul=npu"), "'npu' is none of the devices, which are cpu: add it with"),
        (
            ("--machine", "phoenix", "--place", "layernorm=npu"),
            "--place layernorm=npu: npu has no kernel for layernorm; cpu has",
        ),
        (("--machine", "fenix"), "phoenix"),
        (("--machine", "phoenix", "--devices", "npu"), "--devices npu: no kernel of attention,"),
        (("--slots", 0), "--slots = 0: must be at least 1"),
        (("--shards", 3), "--shards = 3: --batch-size 2 does not divide by it"),
        (("--devices", "npu"), "npu: needs a design: `--xclbin FILE` names one"),
        (("--devices", "npu", "--xclbin", "none.xclbin"), "none.xclbin"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "train"])
def test_misuse_is_refused_before_anything_is_written(
    aieflow: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: tuple[object, ...],
    fault: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = aieflow(command, "gpt2", *SMALL, *options)
    assert result.code == 2, result.err
    assert fault in " ".join(result.err.split())
    assert "Traceback" not in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_plan_for_a_described_machine_names_its_lanes(aieflow: Command) -> None:
    result = aieflow("plan", "gpt2", *SMALL, "--machine", "phoenix", "--json")
    assert result.code == 0, result.err
    plan = json.loads(result.out)
    lanes = {lane["name"]: lane["steps"] for lane in plan["plan"]["lanes"]}
    assert {"npu.compute", "npu.copy.in", "npu.copy.out", "host.copy"} <= set(lanes)
    kinds = {step.get("kind", "node") for steps in lanes.values() for step in steps}
    assert kinds == {"node", "in", "out"}
    assert plan["plan"]["policy"] == "gemm-on-npu"
    assert plan["memory"]["accounts"]["packed"] > 0


def test_slots_and_shards_reach_the_plan(aieflow: Command) -> None:
    made = {}
    for slots in (1, 3):
        options = ("--machine", "phoenix", "--slots", slots, "--shards", 2)
        plan = json.loads(aieflow("plan", "gpt2", *SMALL, *options, "--json").out)
        spaces = {slot["space"] for slot in plan["memory"]["slots"].values()}
        made[slots] = {space for space in spaces if space.startswith("npu.in0")}
        assert "shard.1.tokens" in {feed["name"] for feed in plan["graph"]["feeds"]}
    assert made == {1: {"npu.in0.0"}, 3: {"npu.in0.0", "npu.in0.1", "npu.in0.2"}}


def test_ops_are_placed_by_hand(aieflow: Command) -> None:
    options = ("--machine", "phoenix", "--policy", "cpu", "--place", "matmul=npu")
    by_hand = json.loads(aieflow("plan", "gpt2", *SMALL, *options, "--json").out)
    by_rule = json.loads(aieflow("plan", "gpt2", *SMALL, "--machine", "phoenix", "--json").out)
    assert by_hand["plan"]["lanes"] == by_rule["plan"]["lanes"]
    none = json.loads(aieflow("plan", "gpt2", *SMALL, *options[:4], "--json").out)
    assert not any(lane["name"].startswith("npu") for lane in none["plan"]["lanes"])
