"""What one sensor says: a value with where it is from, or none with the reason; never 0 for none.

Values come from small text files of the kernel. A file may be absent, closed to this user, refused
by its driver for the moment, or hold anything at all; each of these is a reading without a value.
Counters become rates between two readings of the same counter (`Rates`).
"""

import errno
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aieflow.devices.surroundings import Surroundings, read_text

LEAST_S = 0.1  # between two readings of a counter: the kernel's clock ticks are 0.01 s
ROOT_ONLY = "not readable: root only"


@dataclass(frozen=True, slots=True)
class Reading:
    """A value in the unit that its place's name has; None: `source` is the reason."""

    value: float | None
    source: str  # what was measured, and by what: "package, RAPL"


@dataclass(frozen=True, slots=True)
class DeviceReadings:
    """What is known of one device at one time."""

    power_w: Reading
    temperature_c: Reading
    clock_hz: Reading
    utilization: Reading  # a share: 1 is all of it, busy all the time

    @property
    def by_name(self) -> dict[str, Reading]:
        """All four, by the names above."""
        return {
            "power_w": self.power_w,
            "temperature_c": self.temperature_c,
            "clock_hz": self.clock_hz,
            "utilization": self.utilization,
        }


def absent(reason: str) -> Reading:
    """A reading without a value."""
    return Reading(None, reason)


def nothing(reason: str) -> DeviceReadings:
    """A device of which nothing is known, for one reason."""
    one = absent(reason)
    return DeviceReadings(one, one, one, one)


def first_of(readings: Sequence[Reading]) -> Reading:
    """The first that has a value; else the first one's reason, which is the one to mend."""
    return next((each for each in readings if each.value is not None), readings[0])


def why_unreadable(error: OSError) -> str:
    """Why a file of the kernel gave nothing."""
    if error.errno == errno.EACCES:
        return ROOT_ONLY
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "not there"
    words = os.strerror(error.errno) if error.errno is not None else str(error)
    return f"not told by the driver now: {words}"


def read_number(around: Surroundings, file: Path, source: str, scale: float = 1.0) -> Reading:
    """The number in a file by `scale`; no value, with path and reason, where there is none."""
    try:
        text = file.read_text(encoding="ascii", errors="replace").strip()
    except OSError as error:
        return absent(f"{around.shown(file)}: {why_unreadable(error)}")
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        return absent(f"{around.shown(file)}: holds {text[:20]!r}, no number")
    return Reading(value * scale, source)


def hwmon_called(around: Surroundings, names: Iterable[str]) -> Path | None:
    """The folder of the first hwmon with one of these names; numbers change from boot to boot."""
    found = {
        read_text(folder / "name").strip(): folder
        for folder in sorted(around.path("/sys/class/hwmon").glob("hwmon*"), reverse=True)
    }
    return next((found[name] for name in names if name in found), None)


def hwmon_of(device: Path) -> Path | None:
    """The folder of the hwmon that a driver has made for its device."""
    return next(iter(sorted((device / "hwmon").glob("hwmon*"))), None)


class Rates:
    """How fast counters grow, each by its name."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, float]] = {}

    def per_second(self, name: str, count: float, now_s: float) -> float | None:
        """Growth since the reading before; None for the first one, and too soon after it.

        None, too, where the counter has begun anew.
        """
        before_s, before = self._before.get(name, (now_s, count))
        if name in self._before and now_s - before_s < LEAST_S:
            return None
        self._before[name] = (now_s, count)
        if now_s <= before_s:
            return None
        grown = count - before
        return grown / (now_s - before_s) if grown >= 0 else None
