"""Sensors read beside a profile: means, threads, and how they are shown; fakes for the sensors."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Command
from laptops import assert_reads
from live_run import linked, live_run, until
from test_live_view import PROCESS, watched

from aieflow.devices.power_supply import PowerSupply
from aieflow.devices.readings import DeviceReadings, Reading, absent, nothing
from aieflow.devices.sensors import Sensors, Snapshot
from aieflow.tools import live as live_command
from aieflow.tools import live_feed
from aieflow.tools.live_view import Look, one_line, picture
from aieflow.tools.profile_report import Figures, figures_report
from aieflow.tools.profile_subject import DeviceLine
from aieflow.tools.sensor_log import Sensed, SensorLog, mean, sensor_log
from aieflow.tools.sensor_text import COLUMNS, amount, in_columns, sources

HOT = DeviceReadings(
    Reading(15.25, "cores, RAPL"),
    Reading(71.5, "k10temp Tctl"),
    Reading(4.123e9, "cpufreq"),
    Reading(0.934, "/proc/stat"),
)
METERED = Reading(40.0, "package, RAPL")
SENSED = Sensed({"fake": HOT, "far": nothing("it has none")}, METERED, readings=4)


class Script:
    """Sensors that say what they are told to, a snapshot at a time; the last one stays."""

    def __init__(self, *watts: float | None) -> None:
        self.watts = list(watts)
        self.reads = 0
        self.is_closed = False
        self.enough = threading.Event()

    def read(self, now_s: float) -> Snapshot:
        assert not self.is_closed
        found = self.watts[min(self.reads, len(self.watts) - 1)]
        self.reads += 1
        if self.reads >= len(self.watts):
            self.enough.set()
        power = absent("gone") if found is None else Reading(found, "package, RAPL")
        supply = PowerSupply("battery", Reading(23.0, "the whole computer"))
        return Snapshot({"cpu": replace(HOT, power_w=power)}, power, supply)

    def close(self) -> None:
        self.is_closed = True


def ticking(*times_s: float) -> Iterator[float]:
    """A clock that is asked twice for each reading, which takes a millisecond."""
    for now_s in times_s:
        yield now_s
        yield now_s + 0.001


def test_a_mean_is_by_time() -> None:
    # 10 W stand for no time, for it was the first; 20 W for 1 s, 40 W for 3 s
    times = ticking(5.0, 6.0, 9.0)
    log = SensorLog(Script(10.0, 20.0, 40.0), {"npu": "emulated"}, clock=times.__next__)
    assert log.sensed().devices == {"npu": nothing("emulated")}
    for _ in range(3):
        log.read()
    found = log.sensed()
    assert_reads(found.package_w, 35.0, "package, RAPL")
    assert found.devices["cpu"].power_w.value == pytest.approx(35.0)
    assert found.devices["cpu"].temperature_c.value == pytest.approx(71.5)
    assert found.devices["npu"].power_w == Reading(None, "emulated")
    assert (found.readings, found.power_source) == (3, "battery")
    assert found.battery_w.value == pytest.approx(23.0)
    assert found.reading_s == pytest.approx(0.001)
    assert found.of("host") == found.of("cpu")  # what copies states runs on the host
    assert found.of("tpu").power_w.value is None


def test_the_latest_readings_alone_and_those_with_a_value() -> None:
    log = SensorLog(Script(10.0, 20.0, None), latest=2, clock=ticking(1, 2, 3, 4).__next__)
    for _ in range(3):
        log.read()
    assert log.sensed().package_w == Reading(20.0, "package, RAPL")
    log.read()
    assert log.sensed().package_w == Reading(None, "gone")
    assert mean([]).value is None
    assert mean([(0.0, Reading(3.0, "a"))]).value == 3.0


def test_a_thread_reads_until_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aieflow.tools.sensor_log.EVERY_S", 0.001)
    script = Script(*[1.0] * 20)
    with SensorLog(script) as log:
        assert script.enough.wait(20)
        assert not script.is_closed
    assert script.is_closed
    reads = script.reads
    assert log.sensed().readings == reads >= 21  # the last one when it was left
    assert "aieflow sensors" not in {thread.name for thread in threading.enumerate()}


def test_devices_without_sensors_say_so() -> None:
    lines = [
        DeviceLine("cpu", "cpu", False),
        DeviceLine("igpu", "pocl (OpenCL on the CPU)", False),
        DeviceLine("npu", "emulated", True),
        DeviceLine("far", "a fake", False),
    ]
    log = sensor_log(lines)
    log.read()
    found = {name: each.power_w.source for name, each in log.sensed().devices.items()}
    assert list(found) == ["cpu", "igpu", "npu", "far"]
    assert found["igpu"] == "OpenCL on the CPU: it has those of the CPU"
    assert found["npu"] == "emulated: no hardware works there"
    assert found["far"] == "it has no sensors that are known"


def figures(is_emulated: bool = False, sensed: Sensed = SENSED) -> Figures:
    found = watched(is_emulated=is_emulated).figures()
    assert found is not None
    return replace(found, sensed=sensed)


def test_joules_are_watts_by_seconds() -> None:
    found = figures()
    assert_reads(found.joules, 40.0 * found.seconds, "package, RAPL")
    assert figures(sensed=Sensed()).joules == Reading(None, "no sensor was read")
    assert figures(is_emulated=True).joules == Reading(
        None, "far emulated: joules are no hardware's"
    )


def test_a_report_has_values_with_sources_and_null_with_reasons() -> None:
    found = figures_report(figures())
    assert found["joules"] == pytest.approx(40.0 * figures().seconds)
    assert found["joules_source"] == "package, RAPL"
    lanes = found["lanes"]
    assert isinstance(lanes, list)
    hot = {"power_w": 15.25, "temperature_c": 71.5, "clock_hz": 4.123e9, "utilization": 0.934}
    for lane in lanes:
        own = {name: lane[name] for name in hot}
        assert own == (hot if lane["device"] == "fake" else dict.fromkeys(hot))
    assert {lane["device"] for lane in lanes} == {"fake", "far", "host"}
    told = found["sensors"]
    assert isinstance(told, dict)
    assert told["devices"]["far"]["power_w"] == {"value": None, "source": "it has none"}
    assert told["devices"]["fake"]["power_w"] == {"value": 15.25, "source": "cores, RAPL"}


def text(width: int, height: int, look: Look | None = None, is_emulated: bool = False) -> str:
    process = replace(PROCESS, sensed=SENSED)
    seen = watched(is_emulated=is_emulated)
    lines = picture(seen, process, look or Look(), width, height)
    assert all(line.cell_len <= width for line in lines)
    return "\n".join(line.plain for line in lines)


@pytest.mark.parametrize(
    ("width", "height"), [(80, 24), (109, 30), (110, 30), (120, 40), (200, 60)]
)
def test_the_live_view_shows_them_at_every_width(width: int, height: int) -> None:
    """Up to 109 columns a line for each device, from 110 on in the rows of its lanes."""
    shown = text(width, height)
    assert f"J/step {40.0 * figures().seconds:.3g} (package, RAPL)" in shown  # whole
    lines = shown.splitlines()
    rows = [line for line in lines if line.startswith("fake.compute") and "GB/s" in line]
    assert rows
    for row in rows:
        assert (in_columns(HOT) in row) == (width >= 110)
        assert ("15.2 W" in row) == (width >= 110)
    line = "fake           busy 93 %  15.2 W  72 °C  4.12 GHz"
    assert (line in shown) == (width < 110)
    assert ("far            busy n/a %  n/a W  n/a °C  n/a GHz" in shown) == (width < 110)


def test_help_says_by_what_and_why_not() -> None:
    told = " ".join(text(200, 60, Look(shows_help=True)).split())
    for part in (
        "fake W: cores, RAPL",
        "fake °C: k10temp Tctl",
        "n/a: far W, °C, GHz, %: it has none",
        "J/step: package, RAPL",
    ):
        assert part in told
    assert "n/a: J/step: far emulated" in " ".join(
        text(200, 60, Look(shows_help=True), is_emulated=True).split()
    )


def test_one_line_and_words() -> None:
    line = one_line(watched(), figures())
    assert "fake busy 93 %  15.2 W  72 °C  4.12 GHz" in line
    assert "far busy n/a %  n/a W  n/a °C  n/a GHz" in line
    assert "(package, RAPL)" in line
    assert len(in_columns(HOT)) == len(in_columns(nothing("x"))) == COLUMNS
    assert amount("power_w", Reading(0.0, "x")) == "0.0 W"  # a reading of 0 is one
    assert sources(SENSED)[-1] == "n/a: far W, °C, GHz, %: it has none"


def never(self: Sensors, now_s: float) -> Snapshot:
    raise AssertionError("a training read sensors")


def test_training_reads_no_sensor_watched_or_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, aieflow: Command
) -> None:
    monkeypatch.setattr(Sensors, "read", never)
    monkeypatch.setattr(live_feed, "RECORDED_EVERY_S", 0.0)
    with live_run(tmp_path) as run, linked(tmp_path) as link:
        run.recorded(link)
        assert "aieflow sensors" not in {thread.name for thread in threading.enumerate()}
    tiny = ("--layers", 1, "--heads", 2, "--channels", 16, "--seq-len", 16, "--batch-size", 2)
    result = aieflow("train", "gpt2", *tiny, "--steps", 2, "--no-sample", "--out", tmp_path / "r")
    assert result.code == 0, result.err


def test_a_watcher_reads_those_of_what_it_watches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[tuple[str, ...]] = []

    def log(devices: tuple[DeviceLine, ...], pid: int | None, latest: int) -> SensorLog:
        made.append(tuple(each.name for each in devices))
        return SensorLog(Script(7.0), latest=latest)

    monkeypatch.setattr(live_command, "sensor_log", log)
    with live_run(tmp_path) as run, linked(tmp_path) as link, live_command._Sensing() as sensing:
        run.recorded(link)
        until(link, lambda: sensing.now(link.watched).readings > 0)
        assert sensing.now(link.watched).package_w.value == 7.0
        assert made == [("cpu",)]
        subject = link.watched.subject
        assert subject is not None
        lost = (*subject.devices, DeviceLine("npu", "x", False))
        link.watched.subject = replace(subject, devices=lost)
        sensing.now(link.watched)
        assert made == [("cpu",), ("cpu", "npu")]
    assert "aieflow sensors" not in {thread.name for thread in threading.enumerate()}
