"""Joules of training steps: counters of made-up computers, read beside runs that spend energy."""

import doctest
import json
from collections.abc import Mapping
from pathlib import Path

import laptops
import pytest
from conftest import Command
from laptops import RAPL, around, locked, write

from aieflow.gpt2.energy import Energy
from aieflow.gpt2.run_folder import open_run
from aieflow.ops.op import Array
from aieflow.runtime.executor import Executor
from aieflow.runtime.trace import Trace
from aieflow.tools import energy_meter, train
from aieflow.tools.energy_meter import EnergyMeter, energy_text

RANGE_UJ = 65_532_610_987  # where the counters of `laptops` wrap
SPENT_UJ = 125_000  # by each run of a plan: 125 W even if one took no more than a millisecond
TINY = ("--layers", 1, "--heads", 2, "--channels", 16, "--seq-len", 16, "--batch-size", 2)
QUICK = (*TINY, "--steps", 4, "--eval-every", 2, "--no-sample", "--energy")
NEAR = 1e-6  # relative: joules are differences of counters of 65,532 J in float64


class _Computer:
    """A computer whose packages spend as much as is said."""

    def __init__(self, root: Path, *counters_uj: int) -> None:
        self.root = root
        self.counters_uj = list(counters_uj)
        self.show()

    def show(self) -> None:
        for counter_uj, add in zip(
            self.counters_uj, (laptops.rapl, laptops.second_package), strict=False
        ):
            add(self.root, counter_uj)

    def spend(self, *amounts_uj: int) -> None:
        spent = zip(self.counters_uj, amounts_uj, strict=True)
        self.counters_uj = [(counter + amount) % RANGE_UJ for counter, amount in spent]
        self.show()


def meter(root: Path, emulated: tuple[str, ...] = ()) -> EnergyMeter:
    """A meter by whose clock a second passes between two readings."""
    seconds = iter(range(1000))
    return EnergyMeter(around(root), emulated, lambda: float(next(seconds)))


def measured(one: EnergyMeter, computer: _Computer, *amounts_uj: int) -> Energy:
    one.begin()
    computer.spend(*amounts_uj)
    return one.end()


def test_a_training_step_has_what_is_spent_in_it(tmp_path: Path) -> None:
    """Counter   [ 2 J ]   40 J   [ 1 J, over its end ]   [ nothing ]"""
    computer = _Computer(tmp_path, RANGE_UJ - 42_500_000)
    one = meter(tmp_path)
    assert one.outlook() == "package, RAPL, with all other programs"
    first = measured(one, computer, 2_000_000)
    assert (first.joules, first.source) == (pytest.approx(2.0, rel=NEAR), "package, RAPL")
    computer.spend(40_000_000)  # as an evaluation would
    assert measured(one, computer, 1_000_000).joules == pytest.approx(1.0, rel=NEAR)
    assert computer.counters_uj == [500_000]
    still = Energy(None, "package, RAPL: its counter stands still")
    assert measured(one, computer, 0) == still  # not 0 J


def test_packages_are_added(tmp_path: Path) -> None:
    computer = _Computer(tmp_path, 5_000_000, RANGE_UJ - 1)
    found = measured(meter(tmp_path), computer, 1_500_000, 2_000_000)
    assert found.joules == pytest.approx(3.5, rel=NEAR)


def test_a_counter_that_is_roots_can_be_opened_meanwhile() -> None:
    with laptops.open_folder() as root:
        computer = _Computer(root, 0)
        one = meter(root)
        why = "/sys/class/powercap/intel-rapl:0/energy_uj: not readable: root only"
        why += " (root may open it: chmod a+r)"
        with locked(root / RAPL / "energy_uj"):
            assert one.outlook() == f"n/a: {why}"
            one.begin()
            assert one.end() == Energy(None, why)
        (root / RAPL / "energy_uj").chmod(0o644)
        assert measured(one, computer, 3_000_000).joules == pytest.approx(3.0, rel=NEAR)


def test_a_computer_without_counters(tmp_path: Path) -> None:
    laptops.virtual_machine(tmp_path)
    laptops.battery(tmp_path, plugged=False)
    one = meter(tmp_path)
    why = "no RAPL: nothing called intel-rapl in /sys/class/powercap, as in most virtual machines"
    assert one.outlook() == (
        f"n/a: {why}; watts of amdgpu or of a battery do not tell a single training step"
    )
    one.begin()
    assert one.end() == Energy(None, why)


def test_joules_beside_an_emulated_device_are_none(tmp_path: Path) -> None:
    computer = _Computer(tmp_path, 0)
    one = meter(tmp_path, ("npu",))
    why = "npu emulated: joules are no hardware's"
    assert one.outlook() == f"n/a: {why}"
    assert measured(one, computer, 3_000_000) == Energy(None, why)


def test_the_sum_of_training_steps_in_words() -> None:
    assert doctest.testmod(energy_meter).failed == 0
    some = [Energy(1.0, "package, RAPL"), Energy(None, "gone"), Energy(3.0, "package, RAPL")]
    assert energy_text(some) == (
        "2 J a training step (median of 2 of 3), 4 J in all of these: package, RAPL, "
        "with all other programs"
    )


@pytest.fixture
def computer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Computer:
    """A computer whose package spends as much in each run of a plan; its counter soon wraps."""
    found = _Computer(tmp_path / "root", RANGE_UJ - 6 * SPENT_UJ)
    run = Executor.run

    def spend(self: Executor, feeds: Mapping[str, Array], traced: bool = False) -> Trace | None:
        trace = run(self, feeds, traced)
        found.spend(SPENT_UJ)
        return trace

    monkeypatch.setattr(Executor, "run", spend)
    monkeypatch.setattr(train, "here", lambda: around(found.root))
    return found


def training_steps(run: Path) -> list[Mapping[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def energy_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("energy ")]


def test_a_run_tells_the_joules_of_its_training_steps(
    aieflow: Command, computer: _Computer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = aieflow("train", "gpt2", *QUICK, "--out", out)
    assert result.code == 0, result.err
    assert computer.counters_uj[0] < RANGE_UJ // 2  # it has wrapped
    lines = training_steps(out)
    # 0.125 J each, though evaluations spend some, too
    assert [line["joules"] for line in lines] == [pytest.approx(0.125, rel=NEAR)] * 4
    assert {line["joules_source"] for line in lines} == {"package, RAPL"}
    package = "package, RAPL, with all other programs"
    assert energy_lines(result.err) == [f"energy      {package}"]
    assert energy_lines(result.out) == [
        f"energy      0.125 J a training step (median), 0.5 J in all: {package}"
    ]
    assert aieflow("report", out).code == 0
    page = (out / "report.html").read_text()
    assert "Joules a training step: package, RAPL<" in page
    tile = page.index("median joules a training step")
    assert "0.125" in page[tile - 60 : tile + 60]
    assert "energy" not in (out / "config.json").read_text()
    again = aieflow("train", "gpt2", "--resume", out, "--energy", "--no-sample")
    assert again.code == 0, again.err  # nothing is left to do
    assert energy_lines(again.out) == []
    assert open_run(out).latest == open_run(out).checkpoint(4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "/sys/class/powercap/intel-rapl:0/energy_uj: holds 'garbage', no number"),
        (("--machine", "phoenix", "--place", "matmul=npu"), "npu emulated: joules are no hardw"),
    ],
)
def test_a_run_without_joules_says_why_and_goes_on(
    aieflow: Command,
    computer: _Computer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    options: tuple[str, ...],
    why: str,
) -> None:
    if not options:
        monkeypatch.setattr(computer, "show", lambda: None)
        write(computer.root, {f"{RAPL}/energy_uj": "garbage"})
    out = tmp_path / "run"
    result = aieflow("train", "gpt2", *QUICK, *options, "--out", out)
    assert result.code == 0, result.err
    for text in (result.err, result.out):
        (line,) = energy_lines(text)
        assert line.startswith(f"energy      n/a: {why}")
    lines = training_steps(out)
    assert len(lines) == 4
    for line in lines:
        assert line["joules"] is None
        assert str(line["joules_source"]).startswith(why)
    assert aieflow("report", out).code == 0
    page = (out / "report.html").read_text()
    assert page.count('id="energy"') == 0  # no empty curve
    assert f"n/a: {why.split(chr(39))[0]}" in page
    assert "no meter was read" not in page


def test_a_report_counts_training_steps_without_joules(
    aieflow: Command, computer: _Computer, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert aieflow("train", "gpt2", *QUICK, "--out", out).code == 0
    file = out / "metrics.jsonl"
    first, rest = file.read_text().split("\n", 1)
    changed = json.loads(first) | {"joules": None, "joules_source": "it slept"}
    file.write_text(f"{json.dumps(changed)}\n{rest}")
    assert aieflow("report", out).code == 0
    words = "package, RAPL; 1 of 4 training steps n/a: it slept"
    assert f"Joules a training step: {words}<" in (out / "report.html").read_text()


def test_without_the_option_no_meter_is_read(
    aieflow: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(train, "here", lambda: pytest.fail("asked"))
    out = tmp_path / "run"
    options = [each for each in QUICK if each != "--energy"]
    result = aieflow("train", "gpt2", *options, "--out", out)
    assert result.code == 0, result.err
    assert energy_lines(result.out + result.err) == []
    assert not any("joules" in line for line in training_steps(out))
