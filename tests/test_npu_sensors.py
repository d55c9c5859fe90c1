"""The NPU's ioctl, by fakes that write the kernel's own layout, and what is read where it refuses.

The bytes are laid out by hand from `include/uapi/drm/amdxdna_accel.h`, not by our own structs.
"""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import laptops
import pytest
from laptops import NPU, PID, around, assert_reads, client, locked, write

from aieflow.devices.amdxdna import CLOCKS, GET_INFO, REQUEST, SENSOR, query_sensors
from aieflow.devices.npu_sensors import REFUSED, NpuSensors
from aieflow.devices.readings import DeviceReadings, Reading

Record = tuple[str, int, str, int, int]  # label, input, units, unitm, type
POWER, COLUMN, TEMPERATURE = 0, 1, 2
STRIX: tuple[Record, ...] = (
    ("Total Power", 1870, "mW", -3, POWER),
    ("Temperature", 52, "C", 0, TEMPERATURE),
    *((f"Column {n} Utilization", 10 * n, "%", 0, COLUMN) for n in range(8)),
)
OLD: tuple[Record, ...] = STRIX[:1]  # of the first drivers with sensors


def packed(record: Record) -> bytes:
    """168 bytes: label 64, input, max, average, highest, status 64, units 16, unitm, type, 6."""
    label, value, units, unitm, kind = record
    numbers = value.to_bytes(4, "little") + bytes(12)
    tail = unitm.to_bytes(1, "little", signed=True) + kind.to_bytes(1, "little") + bytes(6)
    return (
        label.encode().ljust(64, b"\0")
        + numbers
        + bytes(64)
        + units.encode().ljust(16, b"\0")
        + tail
    )


def clocks(mp_mhz: int, h_mhz: int) -> bytes:
    """Twice: name 16, MHz, pad 4."""
    return b"".join(
        name.ljust(16, b"\0") + mhz.to_bytes(4, "little") + bytes(4)
        for name, mhz in ((b"MP-NPU Clock", mp_mhz), (b"H Clock", h_mhz))
    )


class Driver:
    """Answers GET_INFO as the kernel's driver does; what is an error number is raised."""

    def __init__(self, sensors: Sequence[Record] | int, clock: tuple[int, int] | int) -> None:
        self.sensors, self.clock = sensors, clock
        self.asked: list[int] = []
        self.opened: int | None = None  # the file that it was asked through

    def __call__(self, descriptor: int, request: int, argument: bytearray) -> int:
        self.opened = os.fstat(descriptor).st_ino  # is open
        assert request == 0xC0106447
        param, nbytes = (int.from_bytes(argument[at : at + 4], "little") for at in (0, 4))
        address = int.from_bytes(argument[8:16], "little")
        self.asked.append(param)
        answer = {4: self.sensors, 3: self.clock}[param]
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        if param == 3:
            mp_mhz, h_mhz = self.clock if isinstance(self.clock, tuple) else (0, 0)
            ctypes.memmove(address, clocks(mp_mhz, h_mhz)[:nbytes], min(nbytes, 48))
            return 0  # the size stays as it was
        assert not isinstance(self.sensors, int)
        records = [packed(each) for each in self.sensors][: nbytes // 168]
        ctypes.memmove(address, b"".join(records), 168 * len(records))
        argument[4:8] = (168 * len(records)).to_bytes(4, "little")
        return 0


def read(root: Path, driver: Driver) -> DeviceReadings:
    sensors = NpuSensors(around(root), PID, driver)
    try:
        return sensors.read(1.0)
    finally:
        sensors.close()


def test_layouts_are_the_kernels() -> None:
    assert (GET_INFO.size, SENSOR.size, CLOCKS.size) == (16, 168, 48)
    assert REQUEST == 0xC0106447


def test_a_strix_tells_everything(tmp_path: Path) -> None:
    laptops.strix(tmp_path)
    found = read(tmp_path, Driver(STRIX, (1267, 1800)))
    assert_reads(found.power_w, 1.87, "the NPU, amdxdna")
    assert found.temperature_c == Reading(52.0, "the NPU, amdxdna")
    assert_reads(found.utilization, 0.35, "mean of its columns (8), amdxdna")
    assert found.clock_hz == Reading(1.8e9, "H clock as set, amdxdna")


def test_a_phoenix_refuses_and_is_not_asked_again(tmp_path: Path) -> None:
    laptops.phoenix(tmp_path)
    driver = Driver(errno.EOPNOTSUPP, (400, 1000))
    sensors = NpuSensors(around(tmp_path), PID, driver)
    for now_s in (1.0, 2.0, 3.0):
        found = sensors.read(now_s)
        assert found.power_w == found.temperature_c == Reading(None, REFUSED)
        assert found.utilization == Reading(None, REFUSED)
        assert found.clock_hz.value == 1e9
    sensors.close()
    assert driver.asked == [4, 3, 3, 3]


def test_where_the_ioctl_refuses_hwmon_and_fdinfo_stand_in(tmp_path: Path) -> None:
    laptops.strix(tmp_path)
    sensors = NpuSensors(around(tmp_path), PID, Driver(errno.EINVAL, errno.EINVAL))

    def worked(ns: int) -> None:
        fields: dict[str, str | int] = {
            "driver": "amdxdna_accel_driver",
            "client-id": 106,
            "pdev": "0000:c5:00.1",
            "engine-amdxdna_accel_driver": f"{ns} ns",
        }
        client(tmp_path, 9, "/dev/accel/accel0", fields)

    worked(0)
    sensors.read(1.0)
    worked(250_000_000)
    found = sensors.read(2.0)
    sensors.close()
    assert_reads(found.power_w, 1.9, "the NPU, amdxdna power1_input")
    assert found.temperature_c == Reading(47.0, "the NPU, amdxdna temp1_input")
    assert_reads(found.utilization, 0.25, "this process, fdinfo drm-engine-amdxdna_accel_driver")
    assert found.clock_hz == Reading(None, REFUSED)


@pytest.mark.parametrize("unknown", [0xFFFFFFFF, 0xFFFF])
def test_what_the_platform_did_not_tell_is_absent(tmp_path: Path, unknown: int) -> None:
    """Drivers of 2025 say UINT32_MAX for watts that they do not know."""
    laptops.phoenix(tmp_path)
    label, _, *rest = STRIX[0]
    found = read(tmp_path, Driver([(label, unknown, *rest)], (0, 0)))  # type: ignore[list-item]
    assert found.power_w == Reading(None, "the NPU's driver tells no power")
    assert found.clock_hz == Reading(None, "the NPU's clock is off, or not told")


def test_an_idle_npu_is_busy_for_nothing_and_that_is_known(tmp_path: Path) -> None:
    laptops.strix(tmp_path)
    idle = [("Column 0 Utilization", 0, "%", 0, COLUMN)]
    assert read(tmp_path, Driver(idle, (1, 1))).utilization == Reading(
        0.0, "mean of its columns (1), amdxdna"
    )


def test_an_old_driver_tells_watts_alone_and_a_new_one_more_than_is_known(tmp_path: Path) -> None:
    laptops.phoenix(tmp_path)
    found = read(tmp_path, Driver(OLD, (1, 1)))
    assert found.power_w.value == pytest.approx(1.87)
    assert found.temperature_c == Reading(None, "the NPU's driver tells no temperature")
    newer = [*STRIX, ("Voltage", 900, "mV", -3, 3)]
    with (tmp_path / "dev/accel/accel0").open() as node:
        assert len(query_sensors(Driver(newer, 1), node.fileno())) == len(STRIX)


def test_an_npu_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    laptops.phoenix(tmp_path)
    driver = Driver(STRIX, (400, 1000))
    sensors = NpuSensors(around(tmp_path), PID, driver)
    assert sensors.read(1.0).power_w.value == pytest.approx(1.87)
    driver.sensors = driver.clock = errno.ENODEV
    assert sensors.read(2.0).power_w == Reading(None, "the NPU's driver: No such device")
    shutil.rmtree(tmp_path / "dev/accel")
    assert sensors.read(3.0).power_w == Reading(None, "no NPU in /dev/accel")
    write(tmp_path, {"dev/accel/accel0": ""})
    driver.sensors, driver.clock = STRIX, (400, 1000)
    assert sensors.read(4.0).power_w.value == pytest.approx(1.87)
    assert driver.opened == (tmp_path / "dev/accel/accel0").stat().st_ino
    sensors.close()
    sensors.close()


def test_a_node_that_is_closed_to_the_user_names_the_remedy() -> None:
    with laptops.open_folder() as root:
        laptops.phoenix(root)
        with locked(root / "dev/accel/accel0"):
            found = read(root, Driver(STRIX, (1, 1)))
        assert found.power_w.value is None
        assert found.power_w.source.startswith("you may not open the NPU: join the group render")


@pytest.mark.parametrize("path", [f"{NPU}/hwmon/hwmon9/power1_input"])
@pytest.mark.parametrize("content", ["", "-", "garbage"])
def test_garbage_in_its_hwmon(tmp_path: Path, path: str, content: str) -> None:
    laptops.strix(tmp_path)
    write(tmp_path, {path: content})
    found = read(tmp_path, Driver(errno.EOPNOTSUPP, errno.EOPNOTSUPP))
    assert found.power_w == Reading(None, REFUSED)
    assert found.temperature_c.value == 47.0


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    laptops.strix(tmp_path)
    count: Callable[[], int] = lambda: len(list(Path("/proc/self/fd").iterdir()))  # noqa: E731
    before = count()
    for _ in range(5):
        read(tmp_path, Driver(STRIX, (1, 1)))
    assert count() == before
