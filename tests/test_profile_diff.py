"""What differs between two traces: sums by hand, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command
from traced_runs import measured, simulated

from aieflow.runtime.timeline import Run, Slice, Timeline, timeline
from aieflow.runtime.trace_difference import Amount, difference
from aieflow.tools.trace_files import write_trace

MS = 10**6  # ns


def piece(run: int, lane: str, op: str, start_ns: int, end_ns: int) -> Slice:
    return Slice(
        run=run,
        step=0,
        lane=lane,
        name=op,
        op=op,
        part=0,
        parts=1,
        start_ns=start_ns,
        end_ns=end_ns,
        executor="fake",
        kernel="",
        inputs=(),
        outputs=(),
        flops=0,
        nbytes=0,
        predicted_ns=None,
    )


# Two training steps of 10 and 20 ms on one lane, and one of 12 ms on two.
BEFORE = Timeline(
    (Run(1, 0, 10 * MS, "g", "cpu"), Run(2, 10 * MS, 30 * MS, "g", "cpu")),
    ("cpu.compute.0",),
    (
        piece(0, "cpu.compute.0", "matmul", 0, 6 * MS),
        piece(0, "cpu.compute.0", "add", 6 * MS, 7 * MS),
        piece(1, "cpu.compute.0", "matmul", 10 * MS, 20 * MS),
        piece(1, "cpu.compute.0", "add", 20 * MS, 21 * MS),
    ),
    (),
)
AFTER = Timeline(
    (Run(1, 0, 12 * MS, "g", "best"),),
    ("cpu.compute.0", "npu.compute"),
    (
        piece(0, "npu.compute", "matmul", 0, 3 * MS),
        piece(0, "cpu.compute.0", "add", 3 * MS, 4 * MS),
        piece(0, "cpu.compute.0", "add", 4 * MS, 6 * MS),
    ),
    (),
)


def test_sums_are_of_one_training_step() -> None:
    found = difference(BEFORE, AFTER)
    assert (found.before_runs, found.after_runs) == (2, 1)
    assert (found.before_s, found.after_s) == (0.015, 0.012)
    assert found.ratio == pytest.approx(0.8)
    ops = {(each.op, each.device): each for each in found.ops}
    assert [*ops] == [("matmul", "cpu"), ("matmul", "npu"), ("add", "cpu")]  # largest change first
    assert ops["matmul", "cpu"].before == Amount(1.0, 0.008, 0.008)
    assert ops["matmul", "cpu"].after == Amount()
    assert ops["matmul", "npu"].after == Amount(1.0, 0.003, 0.003)
    assert ops["add", "cpu"].before == Amount(1.0, 0.001, 0.001)
    assert ops["add", "cpu"].after == Amount(2.0, 0.0015, 0.003)
    assert [each.gain_s for each in found.ops] == pytest.approx([-0.008, 0.003, 0.002])
    lanes = {each.lane: each for each in found.lanes}
    cpu, npu = lanes["cpu.compute.0"], lanes["npu.compute"]
    assert cpu.before_s == pytest.approx(0.009)
    assert cpu.after_s == pytest.approx(0.003)
    assert cpu.before_share == pytest.approx(18 / 30)
    assert cpu.after_share == pytest.approx(3 / 12)
    assert npu.before_s is None
    assert npu.before_share is None
    assert npu.after_s == 0.003
    assert npu.after_share == pytest.approx(3 / 12)


def test_a_trace_differs_in_nothing_from_itself() -> None:
    one = timeline(simulated())
    found = difference(one, one)
    assert found.ratio == 1
    assert {each.gain_s for each in found.ops} == {0.0}
    assert all(each.before == each.after for each in found.ops)
    assert all(each.before_s == each.after_s for each in found.lanes)


def test_nothing_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="without runs"):
        difference(BEFORE, replace(AFTER, runs=()))


def test_the_command(aieflow: Command, tmp_path: Path) -> None:
    one, two = tmp_path / "one.sqlite", tmp_path / "two.json.gz"
    write_trace(simulated(), [one])
    write_trace(measured(), [two])
    result = aieflow("profile", "diff", one, two)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    for start in ("before ", "after ", "ran on ", "change "):
        assert any(line.startswith(start) for line in lines), start
    assert "made up: far (simulated)" in result.out  # which of them is no measurement
    assert sum("others" in line for line in lines) == 1
    report = json.loads(aieflow("profile", "diff", one, two, "--json").out)
    expected = difference(timeline(simulated()), timeline(measured()))
    assert report["before"] == {"training_steps": 2, "seconds": expected.before_s}
    # Measured times differ from run to run: which op changed most does, too.
    assert {(each["op"], each["device"]) for each in report["ops"]} == {
        (each.op, each.device) for each in expected.ops
    }
    assert {each["name"] for each in report["lanes"]} == {each.lane for each in expected.lanes}
    assert report["executors"][1] == ["fake"]


def test_what_cannot_be_compared_is_refused(aieflow: Command, tmp_path: Path) -> None:
    full, empty = tmp_path / "full.sqlite", tmp_path / "empty.sqlite"
    write_trace(simulated(), [full])
    write_trace([], [empty])
    faults = {empty: "holds no training step", tmp_path / "gone.json": "cannot be read"}
    for path, fault in faults.items():
        result = aieflow("profile", "diff", full, path)
        assert (result.code, result.out) == (2, "")
        assert fault in " ".join(result.err.split())
