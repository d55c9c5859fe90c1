"""Described machines: the shipped files, what is refused in a file, and one figure changed."""

import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib.resources import files
from itertools import permutations
from pathlib import Path
from typing import get_args

import pytest

from aieflow.ops.errors import InputError
from aieflow.profiles.figure import FILE_MARKS, Figure, lengthened, scaled
from aieflow.profiles.machine_file import load_machine, machine_names
from aieflow.profiles.schema import POWERS, DeviceName

NAMES = ("phoenix", "phoenix-paper", "strix")
PHOENIX = files("aieflow.profiles.machines").joinpath("phoenix.toml").read_text(encoding="utf-8")

# What running on battery changes; everything else must stay.
SCALED = {
    *(
        f"{device}.{rate}"
        for device in ("cpu", "igpu", "npu")
        for rate in ("gemm_flops_per_s", "memory_bytes_per_s", "active_w")
    ),
    *(f"{device}.other_flops_per_s" for device in ("cpu", "igpu")),
    "cpu.core_memory_bytes_per_s",
    "links.igpu.bytes_per_s",
    "links.npu.bytes_per_s",
}


def figure_tables(table: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted path and table of every figure in a TOML file."""
    for key, entry in table.items():
        if isinstance(entry, dict):
            if "value" in entry:
                yield prefix + key, entry
            else:
                yield from figure_tables(entry, f"{prefix}{key}.")


def edited(*edits: tuple[str, str]) -> str:
    """Phoenix' file with some text exchanged, each at the only place where it stands."""
    text = PHOENIX
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def refusal(folder: Path, text: str | bytes) -> str:
    """The one message with which a file of this text is refused."""
    file = folder / "mine.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        load_machine(file)
    return str(caught.value)


# --- the shipped files


def test_the_shipped_machines_are_found_by_name() -> None:
    assert machine_names() == NAMES
    assert [load_machine(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_source_mark_and_range(name: str, power: str) -> None:
    machine = load_machine(name, power)
    assert machine.power == power
    figures = dict(machine.figures())
    assert len(figures) == 44
    for path, figure in figures.items():
        assert figure.mark in FILE_MARKS, path
        key = re.split(r"[\s,;:]", figure.source)[0]
        assert key in machine.sources or figure.mark == "assumed", path
        assert math.isfinite(figure.value), path
        if figure.mark == "assumed":
            assert "unknown" in figure.source, path
            assert figure.low is not None, path
        if figure.low is not None and figure.high is not None:
            assert figure.low <= figure.value <= figure.high, path
        else:
            assert figure.low is figure.high is None, path


def test_no_figure_of_a_file_is_left_unread() -> None:
    in_file = dict(figure_tables(tomllib.loads(PHOENIX)))
    factors = [path for path in in_file if path.startswith("battery.")]
    assert len(factors) == 7
    read = dict(load_machine("phoenix").figures())
    assert set(read) == set(in_file) - set(factors)
    for path, figure in read.items():
        table = in_file[path]
        assert isinstance(table, dict)
        assert [getattr(figure, each.name) for each in fields(Figure)] == [
            table.get(each.name) for each in fields(Figure)
        ], path


@pytest.mark.parametrize("name", NAMES)
def test_battery_scales_rates_and_active_power_alone(name: str) -> None:
    mains, battery = (dict(load_machine(name, power).figures()) for power in POWERS)
    shipped = files("aieflow.profiles.machines")
    with_base = [
        tomllib.loads(shipped.joinpath(f"{file}.toml").read_text(encoding="utf-8"))
        for file in ("phoenix", name)
    ]
    factor = {
        key: entry["value"] for document in with_base for key, entry in document["battery"].items()
    }
    for path, figure in mains.items():
        if path.endswith("_dispatch_s") and "npu_dispatch_s" in factor:
            continue  # longer: see below
        if path not in SCALED:
            assert battery[path] == figure
            continue
        kind = path.split(".")[0]
        if path.endswith("bytes_per_s"):
            kind = "memory"
        by = factor[f"{kind}_active_w" if path.endswith("_w") else f"{kind}_rate"]
        assert battery[path].value == figure.value * by, path
    assert battery["cpu.gemm_flops_per_s"].source.startswith(mains["cpu.gemm_flops_per_s"].source)
    assert "on battery" in battery["cpu.gemm_flops_per_s"].source


def test_a_product_has_both_ranges_and_the_less_sure_mark() -> None:
    rate = Figure(10.0, "A: table", "measured", 8.0, 12.0)
    half = Figure(0.5, "unknown: guessed", "assumed", 0.25, 0.75)
    product = scaled(rate, half, "on battery")
    assert product == Figure(
        5.0, "A: table; x 0.5 on battery (unknown: guessed)", "assumed", 2.0, 9.0
    )
    sure = scaled(Figure(10.0, "A: table", "measured"), Figure(0.5, "B: text", "vendor"), "so")
    assert (sure.mark, sure.low, sure.high) == ("inferred", None, None)
    assert scaled(rate, Figure(1.0, "B: text", "vendor"), "so") is rate


def test_a_sum_has_both_ranges_and_the_less_sure_mark() -> None:
    dispatch = Figure(1.0, "A: table", "measured", 0.5, 2.0)
    more = lengthened(dispatch, Figure(3.0, "B: step", "fitted", 0.0, 4.0), "on battery")
    source = "A: table; + 3 on battery (B: step)"
    assert more == Figure(4.0, source, "fitted", 0.5, 6.0)
    guessed = Figure(3.0, "unknown", "assumed", 0.0, 4.0)
    assert lengthened(more, guessed, "so").mark == "assumed"


def test_only_a_file_that_says_so_has_slower_commands_on_battery() -> None:
    """By what is fitted to the paper's step; the other machines have no such figure."""
    for name in machine_names():
        mains, battery = (load_machine(name, power).npu for power in POWERS)
        extra = battery.first_dispatch_s.value - mains.first_dispatch_s.value
        assert battery.further_dispatch_s.value - mains.further_dispatch_s.value == pytest.approx(
            extra, abs=1e-12
        )
        assert (extra > 0) == (name == "phoenix-paper")
        assert (battery.first_dispatch_s.mark == "fitted") == (name == "phoenix-paper")
        assert mains.first_dispatch_s.mark != "fitted"


def test_contention_is_looked_up_by_the_two_devices() -> None:
    contention = load_machine("strix").contention
    for device, other in permutations(get_args(DeviceName), 2):
        assert contention.slowdown(device, other) is getattr(contention, f"{device}_beside_{other}")
    assert contention.slowdown("npu", "igpu").value == 1.104


# --- what is refused

FAULTS = {
    "not TOML": (("[cpu.lanes]", "[cpu.lanes"), ["not valid TOML", "line"]),
    "another version": (("schema = 1", "schema = 2"), ["schema = 2", "reads schema = 1"]),
    "no version": (("schema = 1", ""), ["has no schema", "schema = 1"]),
    "no name": (('name = "phoenix"', ""), ["name is missing", "add it"]),
    "an empty text": (('name = "phoenix"', 'name = " "'), ["name = ' '", "not empty"]),
    "a text that is a number": (("provenance = ", "provenance = 7 # "), ["provenance = 7", "text"]),
    "an unknown section": (("[sources]", "[gpu]\n[sources]"), ["gpu = {}", "did you mean igpu?"]),
    "a misspelt figure": (
        ("[cpu.gemm_flops_per_s]", "[cpu.gemm_flop_per_s]"),
        ["cpu.gemm_flop_per_s = {", "unknown key; did you mean gemm_flops_per_s?"],
    ),
    "a figure that is a number": (
        ('generation = "npu1"', 'generation = "npu1"\nlane = 1'),
        ["npu.lane = 1", "unknown key; did you mean lanes?"],
    ),
    "a figure without a value": (
        ("value = 3.4e-3", ""),
        ["npu.reconfiguration_s.value is missing"],
    ),
    "a misspelt key of a figure": (
        ("value = 3.4e-3", "valeu = 3.4e-3"),
        ["npu.reconfiguration_s.valeu = 0.0034", "did you mean value?"],
    ),
    "a figure without a mark": (
        ('value = 5.0\nmark = "vendor"', "value = 5.0"),
        ["npu.idle_before_sleep_s.mark is missing"],
    ),
    "a figure without a source": (
        ('source = "XD: HWCTX_MAX_CMDS"', ""),
        ["npu.commands_in_flight.source is missing"],
    ),
    "a source that is nobody": (
        ('source = "XD: HWCTX_MAX_CMDS"', 'source = "XDNA: HWCTX_MAX_CMDS"'),
        ["npu.commands_in_flight.source", "'XDNA', which is no key of [sources]; did you mean XD?"],
    ),
    "an unknown mark": (
        ('value = 5.0\nmark = "vendor"', 'value = 5.0\nmark = "guessed"'),
        ["npu.idle_before_sleep_s.mark = 'guessed'", "measured, vendor, inferred, fitted, assumed"],
    ),
    "a mark kept for what-ifs": (
        ('value = 5.0\nmark = "vendor"', 'value = 5.0\nmark = "varied"'),
        ["npu.idle_before_sleep_s.mark = 'varied'", "must be one of"],
    ),
    "a value that is a text": (
        ("value = 3.4e-3", 'value = "3.4 ms"'),
        ["npu.reconfiguration_s.value = '3.4 ms'", "not a number"],
    ),
    "a value that is a flag": (
        ("value = 3.4e-3", "value = true"),
        ["npu.reconfiguration_s.value = True", "not a number"],
    ),
    "a negative time": (
        ("value = 3.4e-3", "value = -3.4e-3"),
        ["npu.reconfiguration_s.value = -0.0034", "0 or more"],
    ),
    "an infinite value": (
        ("value = 3.4e-3", "value = inf"),
        ["npu.reconfiguration_s.value = inf", "finite"],
    ),
    "not a number": (
        ('high = 3.4e-3\nmark = "measured"', 'high = nan\nmark = "measured"'),
        ["npu.reconfiguration_s.high = nan", "finite"],
    ),
    "too large an integer": (
        ("value = 3.4e-3", f"value = {10**400}"),
        ["npu.reconfiguration_s.value = 1000", "finite"],
    ),
    "a rate of zero": (
        ("value = 1.644e12\nlow = 1.3e12", "value = 0\nlow = 0"),
        ["npu.gemm_flops_per_s.value = 0", "above 0"],
    ),
    "half a lane": (
        ('value = 8\nmark = "vendor"', 'value = 7.5\nmark = "vendor"'),
        ["cpu.lanes.value = 7.5", "whole number"],
    ),
    "no lane": (
        ('value = 8\nmark = "vendor"', 'value = 0\nmark = "vendor"'),
        ["cpu.lanes.value = 0", "1 or more"],
    ),
    "a device that gains from company": (
        ("value = 1.104", "value = 0.9"),
        ["contention.npu_beside_igpu.value = 0.9", "1 or more"],
    ),
    "noise above all": (("value = 0.03", "value = 3"), ["noise.npu.value = 3", "between 0 and 1"]),
    "a value outside its range": (
        ("value = 1.644e12", "value = 1.644e9"),
        ["npu.gemm_flops_per_s.value = 1644000000.0", "range 1.3e+12 to 2.07e+12: correct"],
    ),
    "half a range": (
        ("low = 1.3e12", ""),
        ["npu.gemm_flops_per_s.high = 2070000000000.0", "add low"],
    ),
    "a range upside down": (
        ("low = 1.3e12", "low = 3e12"),
        ["npu.gemm_flops_per_s.low", "above high = 2.07e+12: exchange"],
    ),
    "assumed without a range": (
        ("low = 7e9\nhigh = 40e9\n", ""),
        ["cpu.core_memory_bytes_per_s.mark = 'assumed'", "add low and high"],
    ),
    "assumed as if it were known": (
        ("unknown on this chip: three quarters", "SB: three quarters"),
        ["cpu.core_memory_bytes_per_s.source = 'SB: three quarters", '"unknown"'],
    ),
    "another generation": (
        ('generation = "npu1"', 'generation = "npu4"'),
        ["npu.generation = 'npu4'", "'npu1' or 'npu2'"],
    ),
    "a flag that is a number": (
        ("is_shared = true", "is_shared = 1"),
        ["links.igpu.is_shared = 1", "true or false"],
    ),
    "no battery": (
        (PHOENIX[PHOENIX.index("[battery.cpu_rate]") :], ""),
        ["battery is missing", "base"],
    ),
    "a battery without a factor": (
        ("[battery.npu_rate]", "[battery.npu_speed]"),
        ["battery.npu_speed = {", "is an unknown key (known here: cpu_rate, "],
    ),
}


@pytest.mark.parametrize(("edit", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_refused_with_its_place_and_remedy(
    tmp_path: Path, edit: tuple[str, str], expected: list[str]
) -> None:
    message = refusal(tmp_path, edited(edit))
    assert str(tmp_path / "mine.toml") in message
    for words in expected:
        assert words in message
    assert "\n" not in message
    assert len(message) < 700


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    assert "not valid TOML" in refusal(tmp_path, b"name = '\xff'")
    assert "not valid TOML" in refusal(tmp_path, "x = " + "[" * 100_000)


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match=re.escape(str(path))) as caught:
            load_machine(path)
        assert "phoenix, phoenix-paper, strix" in str(caught.value)
    with pytest.raises(InputError, match=r"machine file none\.toml: No such file"):
        load_machine("none.toml")  # by its ending a path


def test_an_unknown_name_or_power_says_what_there_is() -> None:
    with pytest.raises(InputError) as caught:
        load_machine("phenix")
    message = str(caught.value)
    assert "no machine is called 'phenix'; did you mean phoenix?" in message
    assert "phoenix, phoenix-paper, strix" in message
    with pytest.raises(InputError, match="power = 'solar': must be mains or battery"):
        load_machine("strix", "solar")


# --- a file with a base

OWN = """schema = 1
base = "phoenix"
name = "mine"
provenance = "my laptop"
[sources]
ME = "measured on my laptop"
[npu.first_dispatch_s]
value = 90e-6
mark = "measured"
source = "ME: median of 1000"
"""


def test_a_base_gives_what_the_file_does_not_say(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    mine, phoenix = load_machine(file), load_machine("phoenix")
    assert (mine.name, mine.provenance, mine.chip) == ("mine", "my laptop", phoenix.chip)
    assert mine.npu.first_dispatch_s == Figure(90e-6, "ME: median of 1000", "measured")
    changed = {
        path
        for (path, own), (_, theirs) in zip(mine.figures(), phoenix.figures(), strict=True)
        if own != theirs
    }
    assert changed == {"npu.first_dispatch_s"}
    assert mine.sources == {**phoenix.sources, "ME": "measured on my laptop"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"phoenix"', '"phenix"', "base = 'phenix': must be a shipped machine"),
        ('"phoenix"', "[1]", "base = [1]: must be a shipped machine"),
        ('name = "mine"', "", "name is missing"),  # it is not phoenix any more
        ("value = 90e-6", "low = 1e-6", "npu.first_dispatch_s.value is missing"),  # figures whole
        ("[npu.first_dispatch_s]", "[npu.dispatch_s]", "npu.dispatch_s = {"),
        ("[npu.first_dispatch_s]", "[npu]", "npu.value = 9e-05: is an unknown key"),
        ('ME = "measured on my laptop"', "ME = 3", "sources.ME = 3: must be a text"),
        ("[sources]", "[[sources]]", "sources = [{"),
        ("[sources]", "igpu = 5\n[sources]", "igpu = 5: must be a table, [igpu]"),
        ("[sources]", "[links]\nnpu = 5\n[sources]", "links.npu = 5: must be a table"),
        ("[sources]", "[cpu]\nlanes = 5\n[sources]", "cpu.lanes = 5: must be a table with value"),
    ],
)
def test_a_fault_beside_a_base_is_refused(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    assert OWN.count(old) == 1
    message = refusal(tmp_path, OWN.replace(old, new))
    assert str(tmp_path / "mine.toml") in message
    assert expected in message


# --- one figure changed


def test_with_value_changes_one_figure_and_says_so() -> None:
    machine = load_machine("phoenix")
    slower = machine.with_value("npu.gemm_flops_per_s", "0.5x")
    assert slower.npu.gemm_flops_per_s.value == 0.5 * 1.644e12
    assert slower.npu.gemm_flops_per_s.mark == "varied"
    assert "varied from 1.644e+12 (inferred; IR" in slower.npu.gemm_flops_per_s.source
    others = [(path, figure) for path, figure in slower.figures() if path != "npu.gemm_flops_per_s"]
    assert others == [
        (path, figure) for path, figure in machine.figures() if path != "npu.gemm_flops_per_s"
    ]
    assert machine == load_machine("phoenix")  # as it was
    nested = machine.with_value("links.npu.latency_s", 0).with_value("cpu.lanes", "16")
    assert (nested.links.npu.latency_s.value, nested.cpu.lanes.value) == (0, 16)


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("npu.gemm_flop_per_s", "2x", "npu.gemm_flop_per_s is no figure of machine phoenix; did"),
        ("npu.gemm_flop_per_s", "2x", "mean npu.gemm_flops_per_s?"),
        ("x", 1, "x is no figure of machine phoenix; there are cpu.lanes, "),
        ("npu", 1, "npu is no figure"),
        ("npu.generation", "npu2", "npu.generation is no figure"),
        ("npu.gemm_flops_per_s", "fast", "'fast': give a number, or a factor such as 0.5x"),
        ("npu.gemm_flops_per_s", "x", "'x': give a number"),
        ("npu.gemm_flops_per_s", 0, "npu.gemm_flops_per_s = 0 gives 0: must be a finite number ab"),
        ("npu.gemm_flops_per_s", "-1x", "= -1x gives -1.644e+12: must be"),
        ("npu.gemm_flops_per_s", math.inf, "= inf gives inf: must be a finite"),
        ("npu.first_dispatch_s", "nan", "= nan gives nan: must be a finite"),
        ("npu.lanes", "0.5x", "npu.lanes = 0.5x gives 0.5: must be a whole number"),
    ],
)
def test_with_value_refuses(path: str, value: str | float, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_machine("phoenix").with_value(path, value)
    assert expected in str(caught.value)
