"""What is read of sensors on computers that tests make up, whole, damaged and changing."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import laptops
import pytest
from laptops import (
    CARD,
    HWMON,
    PID,
    RAPL,
    SUPPLY,
    around,
    assert_reads,
    client,
    locked,
    stat,
    write,
)

from aieflow.devices.amdxdna import Ioctl
from aieflow.devices.drm_usage import DrmUsage
from aieflow.devices.npu_sensors import NpuSensors
from aieflow.devices.power_supply import power_supply
from aieflow.devices.rapl import PACKAGE, EnergyCounters, domains
from aieflow.devices.readings import Rates, Reading, read_number, why_unreadable
from aieflow.devices.sensors import Sensors, Snapshot

ALL = ("cpu", "igpu", "npu")
EXACT = 1e-9  # relative: values are made of few roundings


def refuse(descriptor: int, request: int, argument: bytearray) -> int:
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def sensors(root: Path, ioctl: Ioctl = refuse) -> Sensors:
    place = around(root)
    return Sensors(place, ALL, PID, NpuSensors(place, PID, ioctl))


def twice(root: Path, between: Callable[[], None] = lambda: None) -> Snapshot:
    """What sensors say two seconds after they were first read."""
    found = sensors(root)
    found.read(10.0)
    between()
    snapshot = found.read(12.0)
    found.close()
    return snapshot


def test_a_phoenix_laptop_on_mains(tmp_path: Path) -> None:
    laptops.phoenix(tmp_path)
    # Of 100 ticks each, core 0 was busy for 80 and core 1 for 20: of all 200 for 100.
    found = twice(tmp_path, lambda: stat(tmp_path, (180, 120), (120, 180)))
    cpu, igpu = found.devices["cpu"], found.devices["igpu"]
    assert cpu.utilization == Reading(0.5, "all cores and programs, /proc/stat")
    # 0.8 of the busy time at 4 GHz, 0.2 at 1 GHz
    assert cpu.clock_hz.value == pytest.approx(3.4e9, rel=EXACT)
    assert cpu.temperature_c == Reading(71.5, "k10temp Tctl")
    assert_reads(igpu.power_w, 28.123, "package, amdgpu power1_average")
    assert igpu.temperature_c == Reading(51.0, "amdgpu edge")
    assert igpu.clock_hz == Reading(2.7e9, "shaders, amdgpu freq1")
    assert_reads(igpu.utilization, 0.37, "all programs, amdgpu")
    assert found.supply.source == "mains"
    assert found.supply.battery_w == Reading(None, "no battery is drawn from")


def test_where_rapl_is_roots_the_gpu_tells_the_package() -> None:
    with laptops.open_folder() as root:
        laptops.phoenix(root)
        with locked(root / RAPL / "energy_uj", root / f"{RAPL}:0/energy_uj"):
            found = twice(root)
        why = "/sys/class/powercap/intel-rapl:0:0/energy_uj: not readable: root only"
        why += " (root may open it: chmod a+r)"
        assert found.devices["cpu"].power_w == Reading(None, why)
        assert_reads(found.package_w, 28.123, "package, amdgpu power1_average")


def test_a_strix_laptop_on_battery(tmp_path: Path) -> None:
    laptops.strix(tmp_path, plugged=False)
    found = twice(tmp_path, lambda: laptops.rapl(tmp_path, 95_000_000, 32_000_000))
    # 90 J of the package and 30 J of its cores in 2 s
    assert_reads(found.package_w, 45.0, "package, RAPL")
    assert_reads(found.devices["cpu"].power_w, 15.0, "cores, RAPL")
    # 2 A at 15.5 V
    assert_reads(found.supply.battery_w, 31.0, "the whole computer, battery BAT0")
    assert found.supply.source == "battery"
    # busy for no tick: cores count alike
    assert found.devices["cpu"].clock_hz.value == pytest.approx(10e9 / 3, rel=EXACT)
    assert found.devices["igpu"].power_w.source == "package, amdgpu power1_input"


def test_a_desktop_without_battery_gpu_or_npu(tmp_path: Path) -> None:
    laptops.desktop(tmp_path)

    def worked() -> None:
        laptops.rapl(tmp_path, 130_000_000, None)
        write(tmp_path, {f"{RAPL.replace('rapl', 'rapl-mmio')}/energy_uj": 130_000_000})

    found = twice(tmp_path, worked)
    cpu = found.devices["cpu"]
    assert cpu.power_w == found.package_w
    assert_reads(cpu.power_w, 65.0, "package, RAPL")
    assert cpu.temperature_c == Reading(64.0, "coretemp Package id 0")
    assert found.supply.source == "unknown"
    assert {each.value for each in found.devices["igpu"].by_name.values()} == {None}
    assert {each.value for each in found.devices["npu"].by_name.values()} == {None}
    assert found.devices["npu"].power_w.source == "no NPU in /dev/accel"


def test_a_virtual_machine_has_reasons_instead(tmp_path: Path) -> None:
    laptops.virtual_machine(tmp_path)
    found = twice(tmp_path, lambda: stat(tmp_path, (200, 100), (200, 100)))
    readings = found.devices["cpu"].by_name
    assert readings.pop("utilization").value == 1.0
    for reading in (*readings.values(), found.package_w, found.supply.battery_w):
        assert reading.value is None
        assert len(reading.source) > 10
    assert found.package_w.source.startswith("no RAPL: nothing called intel-rapl")


@pytest.mark.parametrize("first", [0, 4, 9])
def test_numbers_of_hwmon_do_not_matter(tmp_path: Path, first: int) -> None:
    laptops.phoenix(tmp_path, first=first)  # from 9 on, hwmon10 stands before hwmon9
    found = twice(tmp_path)
    assert found.devices["cpu"].temperature_c == Reading(71.5, "k10temp Tctl")
    assert found.devices["igpu"].temperature_c.value == 51.0


def test_the_first_reading_has_no_rates(tmp_path: Path) -> None:
    laptops.strix(tmp_path)
    found = sensors(tmp_path)
    for now_s in (5.0, 5.09):  # the second too soon after it
        snapshot = found.read(now_s)
        use = snapshot.devices["cpu"].utilization
        assert use.value is None
        assert "two readings" in use.source
        why = snapshot.devices["cpu"].power_w.source
        assert why == "cores, RAPL: two readings of its counter are needed"
        assert snapshot.devices["cpu"].temperature_c.value == 80.0
    stat(tmp_path, (150, 150), (150, 150), (150, 150))
    assert found.read(5.25).devices["cpu"].utilization.value == 0.5


@pytest.mark.parametrize("text", ["", "garbage", "nan", "inf", "12 13", "\0\xff", "9" * 400])
@pytest.mark.parametrize(
    ("path", "device", "quantity"),
    [
        (f"{HWMON}/hwmon2/temp1_input", "cpu", "temperature_c"),
        (f"{RAPL}:0/energy_uj", "cpu", "power_w"),
        (f"{CARD}/hwmon/hwmon1/temp1_input", "igpu", "temperature_c"),
        (f"{CARD}/hwmon/hwmon1/power1_average", "igpu", "power_w"),
        (f"{CARD}/hwmon/hwmon1/freq1_input", "igpu", "clock_hz"),
        (f"{CARD}/gpu_busy_percent", "igpu", "utilization"),
    ],
)
def test_garbage_is_no_reading_and_spoils_no_other(
    tmp_path: Path, path: str, device: str, quantity: str, text: str
) -> None:
    laptops.phoenix(tmp_path)
    laptops.rapl(tmp_path, 1_000_000, None)  # so that no domain stands in for the other
    if "rapl" in path:
        laptops.rapl(tmp_path, 1_000_000, 1_000_000)
        shutil.rmtree(tmp_path / RAPL)

    def later() -> None:
        stat(tmp_path, (200, 100), (200, 100))
        write(tmp_path, {path: text})

    found = twice(tmp_path, later)
    damaged = found.devices[device].by_name[quantity]
    assert damaged.value is None
    assert f"/{path}: holds " in damaged.source
    assert found.devices["cpu"].utilization.value == 1.0
    whole = [name for name, each in found.devices["igpu"].by_name.items() if each.value is not None]
    assert len(whole) == (3 if device == "igpu" else 4)


@pytest.mark.parametrize(
    "text", ["", "cpu", "cpu a b c d", "cpu 1 2", "\0", "cpu0 1 1 1 1 1 1 1 1"]
)
def test_garbage_in_stat(tmp_path: Path, text: str) -> None:
    laptops.phoenix(tmp_path)
    use = twice(tmp_path, lambda: write(tmp_path, {"proc/stat": text})).devices["cpu"].utilization
    assert use.value is None


def test_a_sensor_that_vanishes_and_comes_back(tmp_path: Path) -> None:
    laptops.strix(tmp_path)
    found = sensors(tmp_path)
    assert found.read(1.0).devices["igpu"].temperature_c.value == 51.0
    for path in (f"{CARD}/hwmon", f"{HWMON}/hwmon3", "sys/class/powercap", "proc/stat"):
        target = tmp_path / path
        target.unlink() if target.is_file() else shutil.rmtree(target)
    gone = found.read(2.0)
    assert {each.value for each in gone.devices["igpu"].by_name.values()} == {None, 0.37}
    cpu = gone.devices["cpu"]
    assert (cpu.temperature_c.value, cpu.power_w.value, cpu.utilization.value) == (None,) * 3
    laptops.rapl(tmp_path, 50_000_000, 60_000_000)
    laptops.hwmons(tmp_path, {"name": "k10temp", "temp1_input": 81_000}, first=12)
    back = found.read(3.0)
    assert back.devices["cpu"].temperature_c == Reading(81.0, "k10temp")
    # 45 J since second 1, when the counter was read last
    assert back.package_w.value == pytest.approx((50 - 5) / 2)


def test_counters_that_wrap_and_counters_that_begin_anew(tmp_path: Path) -> None:
    laptops.strix(tmp_path)
    laptops.rapl(tmp_path, 65_532_000_000, 65_500_000_000)
    # 0.610987 J to the end and 39.389013 J after it, in 2 s; the cores stand still
    found = twice(tmp_path, lambda: laptops.rapl(tmp_path, 39_389_013, 65_500_000_000))
    assert found.package_w.value == pytest.approx(20.0)
    laptops.rapl(tmp_path, 20_000_000_000, 65_500_000_000)
    found = twice(tmp_path, lambda: laptops.rapl(tmp_path, 0, 65_500_000_000))
    # 45 kJ in 2 s is no wrap: it was reset, as after sleep; then the GPU's meter stands in
    assert found.package_w.source == "package, amdgpu power1_input"
    assert found.devices["cpu"].power_w == Reading(None, "cores, RAPL: its counter stands still")


def test_joules_from_one_reading_to_the_next(tmp_path: Path) -> None:
    """Counters in J: package-0 wraps at 65,532.610987, package-1 stands still at first."""
    laptops.rapl(tmp_path, 65_532_000_000)
    laptops.second_package(tmp_path, 7_000_000, None)
    counters = EnergyCounters(around(tmp_path), PACKAGE)
    packages, cores = domains(around(tmp_path))
    assert [len(packages), len(cores)] == [2, 1]

    def joules(now_s: float) -> Reading:
        return counters.joules(packages, now_s)

    assert joules(1.0) == Reading(None, "package, RAPL: two readings of its counter are needed")
    laptops.rapl(tmp_path, 65_532_500_000)
    assert_reads(joules(1.001), 0.5, PACKAGE)  # a millisecond is enough for joules
    laptops.rapl(tmp_path, 889_013)
    laptops.second_package(tmp_path, 9_000_000, None)
    assert_reads(joules(2.0), 0.110987 + 0.889013 + 2.0, PACKAGE)
    assert joules(3.0) == Reading(None, "package, RAPL: its counter stands still")
    laptops.rapl(tmp_path, 90_000_000)
    laptops.second_package(tmp_path, 8_999_999, None)  # back, and no range: it did not wrap
    assert joules(4.0) == Reading(None, "package, RAPL: its counter began anew")
    (tmp_path / RAPL / "energy_uj").unlink()
    assert joules(5.0) == Reading(None, "/sys/class/powercap/intel-rapl:0/energy_uj: not there")
    laptops.rapl(tmp_path, 95_000_000)
    assert "two readings" in joules(6.0).source
    laptops.rapl(tmp_path, 96_000_000)
    laptops.second_package(tmp_path, 9_999_999, None)
    assert_reads(joules(7.0), 2.0, PACKAGE)
    assert "two readings" in joules(7.0).source  # no time has passed


def test_nothing_is_asked_of_devices_that_a_run_does_not_use(tmp_path: Path) -> None:
    laptops.strix(tmp_path)
    asked: list[int] = []

    def note(descriptor: int, request: int, argument: bytearray) -> int:
        asked.append(request)
        return 0

    place = around(tmp_path)
    found = Sensors(place, ("cpu",), PID, NpuSensors(place, PID, note))
    assert list(found.read(1.0).devices) == ["cpu"]
    assert asked == []
    found.close()


def test_watts_of_a_card_are_no_packages(tmp_path: Path) -> None:
    laptops.radeon(tmp_path, 0, is_apu=False)
    found = twice(tmp_path)
    assert found.devices["igpu"].power_w.source == "the card, amdgpu power1_average"
    assert found.package_w.value is None


def test_of_two_gpus_the_one_on_the_package_is_meant(tmp_path: Path) -> None:
    laptops.radeon(tmp_path, 5)
    card = "sys/class/drm/renderD127/device"
    laptops.add_file(tmp_path, "dev/dri/renderD127")
    laptops.add_driver(tmp_path, "sys/class/drm/renderD127", "amdgpu")
    write(tmp_path, {f"{card}/hwmon/hwmon0/power1_average": 99_000_000})
    assert twice(tmp_path).devices["igpu"].power_w.value == pytest.approx(28.123)


def test_a_meter_that_tells_nothing_while_work_is_done(tmp_path: Path) -> None:
    laptops.radeon(tmp_path, 5)
    write(tmp_path, {f"{CARD}/hwmon/hwmon5/power1_average": 0})
    write(tmp_path, {f"{CARD}/hwmon/hwmon5/freq1_input": 0})
    igpu = twice(tmp_path).devices["igpu"]
    assert igpu.power_w == Reading(None, "package, amdgpu power1_average: tells 0 W")
    assert igpu.clock_hz == Reading(None, "the GPU's clock is off")


def usage(root: Path, engines: tuple[str, ...] = ("gfx", "compute")) -> DrmUsage:
    return DrmUsage(around(root), PID, ("amdgpu",), engines)


def engine(number: int, gfx: int, compute: int, driver: str = "amdgpu") -> dict[str, str | int]:
    return {
        "driver": driver,
        "client-id": number,
        "pdev": "0000:c4:00.0",
        "engine-gfx": f"{gfx} ns",
        "engine-compute": f"{compute} ns",
    }


def test_what_a_process_uses_of_a_gpu(tmp_path: Path) -> None:
    node = "/dev/dri/renderD128"
    found = usage(tmp_path)
    assert found.read(0.0).source == f"/proc/{PID}/fdinfo: not there"

    def opened(ns: int) -> None:
        client(tmp_path, 5, node, engine(1, 100, ns))
        client(tmp_path, 6, node, engine(1, 100, ns))  # the same, by dup
        client(tmp_path, 7, node, engine(2, 0, ns // 2))
        client(tmp_path, 8, node, engine(3, 9 * ns, 9 * ns, "i915"))
        client(tmp_path, 9, "/home/me/renderD128", engine(4, 9 * ns, 9 * ns))
        client(tmp_path, 5, node, engine(1, 9 * ns, 9 * ns), pid=1)

    opened(1_000_000)
    assert "two readings" in found.read(1.0).source
    opened(401_000_000)
    # 0.4 s and 0.2 s of compute in 1 s
    assert_reads(found.read(2.0), 0.6, "this process, fdinfo drm-engine-compute")
    (tmp_path / f"proc/{PID}/fd/7").unlink()
    client(tmp_path, 5, node, engine(1, 100, 501_000_000))
    client(tmp_path, 6, node, engine(1, 100, 501_000_000))
    assert found.read(3.0).value == pytest.approx(0.1, abs=1e-6)


def test_a_driver_that_counts_no_time(tmp_path: Path) -> None:
    client(tmp_path, 5, "/dev/dri/renderD128", {"driver": "amdgpu", "engine-gfx": "much"})
    assert "does not count" in usage(tmp_path).read(1.0).source
    client(tmp_path, 5, "/dev/dri/renderD128", {"driver": "i915", "engine-gfx": "5 ns"})
    assert "the process has no amdgpu open" in usage(tmp_path).read(1.0).source


def test_the_process_of_another_user() -> None:
    with laptops.open_folder() as root:
        client(root, 5, "/dev/dri/renderD128", engine(1, 1, 1))
        with locked(root / f"proc/{PID}/fd"):
            assert usage(root).read(1.0).source == f"/proc/{PID}/fdinfo: not readable: root only"


@pytest.mark.parametrize(
    ("files", "source"),
    [
        ({}, "unknown"),
        ({"AC/type": "Mains", "AC/online": 1}, "mains"),
        ({"AC/type": "Mains", "AC/online": 0}, "unknown"),
        ({"BAT0/type": "Battery", "BAT0/status": "Discharging"}, "battery"),
        ({"BAT0/type": "Battery", "BAT0/status": "Full"}, "mains"),
        ({"BAT0/type": "Battery", "BAT0/status": "Unknown"}, "unknown"),
        ({"BAT0/type": "Battery", "BAT0/status": "garbage"}, "unknown"),
        ({"BAT0/type": "Battery"}, "unknown"),
        (
            {"BAT0/type": "Battery", "BAT0/status": "Charging", "C1/type": "USB", "C1/online": 1},
            "mains",
        ),
        (
            {"BAT0/type": "Battery", "BAT0/status": "Full", "C1/type": "Mains", "C1/online": 0},
            "battery",
        ),
        (
            {
                **{"BAT0/type": "Battery", "BAT0/status": "Discharging", "BAT0/scope": "Device"},
                **{"AC/type": "Mains", "AC/online": "?"},
            },
            "unknown",
        ),
    ],
)
def test_mains_or_battery(tmp_path: Path, files: dict[str, str | int], source: str) -> None:
    write(tmp_path, {f"{SUPPLY}/{name}": each for name, each in files.items()})
    assert power_supply(around(tmp_path)).source == source


def test_watts_of_a_battery(tmp_path: Path) -> None:
    laptops.battery(tmp_path, plugged=False)
    assert power_supply(around(tmp_path)).battery_w.value == pytest.approx(23.4)
    write(tmp_path, {f"{SUPPLY}/BAT0/power_now": -23_400_000})
    assert power_supply(around(tmp_path)).battery_w.value == pytest.approx(23.4)
    write(tmp_path, {f"{SUPPLY}/BAT0/power_now": 0})
    assert power_supply(around(tmp_path)).battery_w.value is None
    (tmp_path / f"{SUPPLY}/BAT0/power_now").unlink()
    why = power_supply(around(tmp_path)).battery_w.source
    assert why == "/sys/class/power_supply/BAT0/power_now: not there"


def test_rates_of_counters() -> None:
    rates = Rates()
    assert rates.per_second("a", 10, 0.0) is None
    assert rates.per_second("b", 0, 1.0) is None
    assert rates.per_second("a", 12, 0.05) is None  # too soon, and not forgotten:
    assert rates.per_second("a", 20, 2.0) == 5.0
    assert rates.per_second("a", 9, 3.0) is None  # began anew
    assert rates.per_second("a", 9, 7.0) == 0.0
    assert rates.per_second("b", 8, 5.0) == 2.0


def test_why_a_file_gives_nothing(tmp_path: Path) -> None:
    assert why_unreadable(PermissionError(errno.EACCES, "x")) == "not readable: root only"
    # amdgpu says so while the card sleeps
    assert "Operation not permitted" in why_unreadable(PermissionError(errno.EPERM, "x"))
    (tmp_path / "sys").mkdir()
    why = read_number(around(tmp_path), tmp_path / "sys", "x").source
    assert why == "/sys: not told by the driver now: Is a directory"
