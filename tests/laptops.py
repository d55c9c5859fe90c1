"""Computers as their kernels show them in files: two laptops, a desktop, a virtual machine.

Names and units of files are those of Linux' drivers; amounts are round, to be told apart.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_survey import add_driver, add_file, add_gpu, never_asked

from aieflow.devices.readings import Reading
from aieflow.devices.surroundings import Surroundings

NOBODY = 65534
HWMON = "sys/class/hwmon"
CARD = "sys/class/drm/renderD128/device"
NPU = "sys/class/accel/accel0/device"
RAPL = "sys/class/powercap/intel-rapl:0"
SUPPLY = "sys/class/power_supply"
PID = 4711


def around(root: Path) -> Surroundings:
    return Surroundings(
        root,
        {},
        is_installed=lambda module: False,
        is_accessible=lambda file: True,
        opencl=never_asked,
        python=(3, 12),
        locked_nbytes=None,
    )


def write(root: Path, files: Mapping[str, str | int]) -> None:
    for path, content in files.items():
        add_file(root, path, f"{content}\n")


def stat(root: Path, *cores: tuple[int, int]) -> None:
    """Busy and idle ticks of each core; the first line of /proc/stat is their sum."""
    rows = [("", *map(sum, zip(*cores, strict=True))), *((i, *c) for i, c in enumerate(cores))]
    lines = [f"cpu{name} {busy} 0 0 {idle} 0 0 0 0 0 0" for name, busy, idle in rows]
    write(root, {"proc/stat": "\n".join([*lines, "intr 1 2 3", "ctxt 99"])})


def hwmons(root: Path, *folders: Mapping[str, str | int], first: int = 0) -> None:
    """hwmon folders, each with a `name`; their numbers begin with `first`."""
    for number, files in enumerate(folders, first):
        write(root, {f"{HWMON}/hwmon{number}/{name}": each for name, each in files.items()})


def cpu(root: Path, clocks_khz: tuple[int, ...] = (4_000_000, 1_000_000)) -> None:
    for core, khz in enumerate(clocks_khz):
        write(root, {f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq": khz})
    stat(root, *((100, 100) for _ in clocks_khz))


def rapl(root: Path, package_uj: int = 0, core_uj: int | None = 0) -> None:
    zones: dict[str, tuple[str, int | None]] = {
        "": ("package-0", package_uj),
        ":0": ("core", core_uj),
    }
    for zone, (name, energy_uj) in zones.items():
        if energy_uj is not None:
            write(
                root,
                {
                    f"{RAPL}{zone}/name": name,
                    f"{RAPL}{zone}/energy_uj": energy_uj,
                    f"{RAPL}{zone}/max_energy_range_uj": 65_532_610_987,
                },
            )


def second_package(root: Path, package_uj: int, range_uj: int | None = 65_532_610_987) -> None:
    """The other socket of a server; without a range its counter does not say where it wraps."""
    zone = RAPL.replace("rapl:0", "rapl:1")
    write(root, {f"{zone}/name": "package-1", f"{zone}/energy_uj": package_uj})
    if range_uj is not None:
        write(root, {f"{zone}/max_energy_range_uj": range_uj})


def radeon(root: Path, hwmon: int, power: str = "power1_average", is_apu: bool = True) -> None:
    """An amdgpu; the folder of its hwmon lies below its device."""
    add_gpu(root)
    folder = f"{CARD}/hwmon/hwmon{hwmon}"
    write(root, {f"{CARD}/gpu_busy_percent": 37, f"{folder}/name": "amdgpu"})
    write(root, {f"{folder}/temp1_input": 51_000, f"{folder}/temp1_label": "edge"})
    write(root, {f"{folder}/{power}": 28_123_000, f"{folder}/freq1_input": 2_700_000_000})
    if is_apu:
        write(root, {f"{folder}/in1_label": "vddnb", f"{folder}/in1_input": 800})


def npu(root: Path) -> None:
    add_file(root, "dev/accel/accel0")
    add_driver(root, "sys/class/accel/accel0", "amdxdna")


def battery(root: Path, plugged: bool, by_current: bool = False) -> None:
    write(root, {f"{SUPPLY}/AC0/type": "Mains", f"{SUPPLY}/AC0/online": int(plugged)})
    status = "Not charging" if plugged else "Discharging"
    write(root, {f"{SUPPLY}/BAT0/type": "Battery", f"{SUPPLY}/BAT0/status": status})
    if by_current:
        write(root, {f"{SUPPLY}/BAT0/current_now": 2_000_000})
        write(root, {f"{SUPPLY}/BAT0/voltage_now": 15_500_000})
    else:
        write(root, {f"{SUPPLY}/BAT0/power_now": 23_400_000})


def phoenix(root: Path, plugged: bool = True, first: int = 0) -> None:
    """A Ryzen 7 7840HS with a Radeon 780M; RAPL is root's, see `locked`."""
    cpu(root)
    rapl(root, 1_000_000)
    radeon(root, first + 1)
    npu(root)
    battery(root, plugged)
    hwmons(
        root,
        {"name": "nvme", "temp1_input": 33_850, "temp1_label": "Composite"},
        {"name": "acpitz", "temp1_input": 20_000},
        {"name": "k10temp", "temp1_input": 71_500, "temp1_label": "Tctl"},
        first=first,
    )


def strix(root: Path, plugged: bool = True) -> None:
    """A Ryzen AI 9 HX 370 with a Radeon 890M, and an NPU that tells; RAPL was opened to all."""
    cpu(root, (5_000_000, 3_000_000, 2_000_000))
    rapl(root, 5_000_000, 2_000_000)
    radeon(root, 7, power="power1_input")
    npu(root)
    write(root, {f"{NPU}/hwmon/hwmon9/name": "amdxdna", f"{NPU}/hwmon/hwmon9/temp1_input": 47_000})
    write(root, {f"{NPU}/hwmon/hwmon9/power1_input": 1_900_000})
    battery(root, plugged, by_current=True)
    write(root, {f"{SUPPLY}/hidpp_battery_0/type": "Battery"})
    write(root, {f"{SUPPLY}/hidpp_battery_0/scope": "Device"})
    write(root, {f"{SUPPLY}/hidpp_battery_0/status": "Discharging"})
    hwmons(root, {"name": "k10temp", "temp1_input": 80_000, "temp1_label": "Tctl"}, first=3)


def desktop(root: Path) -> None:
    """One of Intel's: no battery, no NPU, no GPU that is known."""
    cpu(root)
    rapl(root, 0, None)
    again = RAPL.replace("intel-rapl", "intel-rapl-mmio")  # the same package by another way
    write(root, {f"{again}/name": "package-0", f"{again}/energy_uj": 1})
    hwmons(
        root,
        {"name": "coretemp", "temp2_input": 60_000, "temp2_label": "Core 0"},
        {"name": "nct6798", "temp1_input": 35_000, "temp1_label": "SYSTIN"},
    )
    write(root, {f"{HWMON}/hwmon0/temp1_input": 64_000})
    write(root, {f"{HWMON}/hwmon0/temp1_label": "Package id 0"})


def virtual_machine(root: Path) -> None:
    """Two cores, and no sensor at all."""
    stat(root, (100, 100), (100, 100))
    (root / SUPPLY).mkdir(parents=True)


def client(
    root: Path, descriptor: int, node: str, fields: Mapping[str, str | int], pid: int = PID
) -> None:
    """A device that a process has open, with what DRM tells of its use."""
    entry = root / f"proc/{pid}/fd/{descriptor}"
    entry.parent.mkdir(parents=True, exist_ok=True)
    if not entry.is_symlink():
        entry.symlink_to(node)
    text = "pos:\t0\nflags:\t02100002\n"
    text += "".join(f"drm-{key}:\t{value}\n" for key, value in fields.items())
    write(root, {f"proc/{pid}/fdinfo/{descriptor}": text})


def assert_reads(reading: Reading, value: float, source: str) -> None:
    """To a millionth: amounts are made of few roundings."""
    assert (reading.value, reading.source) == (pytest.approx(value), source)


@contextmanager
def locked(*files: Path) -> Iterator[None]:
    """These files are root's alone, and this process is not root."""
    for file in files:
        file.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if was_root:
            os.seteuid(0)


@contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter: pytest's own are closed."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
