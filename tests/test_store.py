"""The measured profile on disk: exact, whole at any moment, and an error where it is not ours."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command

from aieflow.ops.errors import InputError
from aieflow.profiles.measured import MOST_OF_SERIES, MeasuredProfile
from aieflow.profiles.store import FORMAT_KEY, read_profile, write_profile
from aieflow.profiles.work import Work

WORK = Work("cpu", "gelu", "rows", 2, "1", "float32[4, 8] -> float32[4, 8]", 128.0, 128.0, (32, 32))


def filled() -> MeasuredProfile:
    facts = {"model": "Some CPU", "power": "mains"}
    return (
        MeasuredProfile()
        .with_device("cpu", facts, 2)
        .with_device("igpu", {"model": "Some GPU", "power": "mains"}, 1)
        .with_samples(
            [(WORK, (1.5e-5, 1.6e-5)), (replace(WORK, device="igpu", parts=1), (3e-6,))],
            {
                ("gap", "cpu", "cpu.compute waits"): (1.25e-5,),
                ("gaps", "cpu", "cpu.compute waits"): (31.0,),
                ("step", "cpu", "cpu.compute waits"): (2e-4,),
                ("slowdown", "cpu,igpu", ""): (2.0,),
            },
        )
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "new" / "profile.json"
    assert read_profile(file) is None
    write_profile(filled(), file)
    assert read_profile(file) == filled()
    assert [each.name for each in file.parent.iterdir()] == ["profile.json"]


def test_the_old_file_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "profile.json"
    write_profile(filled(), file)
    before = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"profile.json: the profile cannot be written: No space"):
        write_profile(filled().without("cpu"), file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    """The text of a profile file after a change to its content."""
    file = Path("profile.json")
    content = json.loads(text_of(file))
    change(content)
    return json.dumps(content)


def text_of(file: Path) -> str:
    from aieflow.profiles import store

    return store._text(filled())


FAULTS: list[tuple[str, str]] = [
    ("", "not a usable profile"),
    ("[1, 2", "not a usable profile"),
    ("[]", FORMAT_KEY),
    ('{"model": "gpt2"}', FORMAT_KEY),
    (changed(lambda c: c.update({FORMAT_KEY: 1})), "is 1, this version reads 3"),
    (changed(lambda c: c.pop("devices")), "devices must be an object"),
    (changed(lambda c: c["devices"]["cpu"].pop("lanes")), r"devices.cpu.lanes = None"),
    (changed(lambda c: c["devices"]["cpu"].update(lanes=0)), "must be at least 1"),
    (changed(lambda c: c["devices"]["cpu"]["fingerprint"].update(model=3)), "must be a text"),
    (changed(lambda c: c.update(points={})), "points must be a list"),
    (changed(lambda c: c["points"].append(3)), r"points\[2\] must be an object"),
    (changed(lambda c: c["points"][0].pop("op")), r"points\[0\].op = None: must be a text"),
    (changed(lambda c: c["points"][0].update(device="gpu")), "'gpu' is none of its devices"),
    (changed(lambda c: c["points"][0].update(flops="many")), "'many': must be a number"),
    (changed(lambda c: c["points"][0].update(flops=-1)), "must be at least 0"),
    (changed(lambda c: c["points"][0].update(nbytes=True)), "True: must be a number"),
    (changed(lambda c: c["points"][0].update(sizes=[])), "must be a list of sizes"),
    (changed(lambda c: c["points"][0].update(samples_ns=[])), "at least one sample"),
    (changed(lambda c: c["points"][0].update(samples_ns=[0])), "must be at least 1"),
    (changed(lambda c: c["points"][0].update(samples_ns=[float("nan")])), "must be a number"),
    (changed(lambda c: c["series"][0].update(samples=None)), r"series\[0\].samples must be a list"),
    (changed(lambda c: c["series"][0].update(kind=None)), r"series\[0\].kind = None"),
    (changed(lambda c: c["series"].pop(1)), "'cpu.compute waits' of cpu lacks a 'gaps'"),
    (changed(lambda c: c["series"][-1]["samples"].append(1)), "lacks a 'step' for each gap"),
    ("[" * 100_000, "not a usable profile"),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_what_is_no_profile_is_an_error_with_its_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "profile.json"
    file.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_profile(file)
    assert str(file) in str(caught.value)
    assert "aieflow calibrate" in str(caught.value)
    assert file.read_text() == text


def test_a_binary_file_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="it holds no text"):
        read_profile(file)


def test_the_command_says_so_and_ends_with_2(tmp_path: Path, aieflow: Command) -> None:
    file = tmp_path / "profile.json"
    file.write_text('{"loss": 3}')
    for options in ((), ("--show",), ("--check",)):
        result = aieflow("calibrate", "--profile", file, *options)
        assert result.code == 2
        assert "remove or rename it" in result.err.replace("\n", " ")
    assert file.read_text() == '{"loss": 3}'


def test_a_changed_device_is_stale() -> None:
    profile = filled()
    facts = profile.fingerprints["cpu"]
    assert profile.changes("cpu", facts) == ()
    assert profile.changes("npu", facts) == ()
    newer = {**facts, "power": "battery", "BLAS": "new"}
    assert profile.changes("cpu", newer) == (
        "BLAS: absent then, new now",
        "power: mains then, battery now",
    )
    fresh = profile.with_device("cpu", newer, 2)
    assert [point.work.device for point in fresh.points.values()] == ["igpu"]
    assert fresh.series == {}  # each of them was the CPU's, or a pair's
    assert fresh.fingerprints["cpu"] == newer
    assert profile.with_device("cpu", facts, 2) == profile


def test_one_op_can_be_forgotten() -> None:
    profile = filled()
    assert profile.without("cpu", "matmul") == profile
    left = profile.without("cpu", "gelu")
    assert [point.work.device for point in left.points.values()] == ["igpu"]
    assert left.series == profile.series
    assert left.fingerprints == profile.fingerprints


def test_a_series_keeps_its_latest() -> None:
    name = ("gap", "cpu", "cpu.compute waits")
    more = filled().with_samples(series={name: (2.0,) * MOST_OF_SERIES})
    assert set(more.series[name].values) == {2.0}
