"""Readings of sensors in words: short ones for a row, and reasons for those that are absent."""

from collections.abc import Mapping, Sequence

from aieflow.devices.readings import DeviceReadings, Reading
from aieflow.tools.sensor_log import Sensed

UNITS: Mapping[str, str] = {
    "utilization": "%",
    "power_w": "W",
    "temperature_c": "°C",
    "clock_hz": "GHz",
}
SCALES: Mapping[str, float] = {"utilization": 100.0, "clock_hz": 1e-9}
DECIMALS: Mapping[str, int] = {"power_w": 1, "clock_hz": 2}
WIDTHS: Mapping[str, int] = {"utilization": 5, "power_w": 7, "temperature_c": 6, "clock_hz": 8}
WITH_OTHERS = "with all other programs"  # what a meter of the package measures
COLUMNS = sum(WIDTHS.values()) + len(WIDTHS)  # of `in_columns`


def amount(quantity: str, reading: Reading) -> str:
    """A reading with its unit.

    >>> amount("clock_hz", Reading(4.1e9, "")), amount("power_w", Reading(None, "no meter"))
    ('4.10 GHz', 'n/a W')
    """
    if reading.value is None:
        return f"n/a {UNITS[quantity]}"
    value = reading.value * SCALES.get(quantity, 1.0)
    return f"{value:.{DECIMALS.get(quantity, 0)}f} {UNITS[quantity]}"


def in_columns(readings: DeviceReadings) -> str:
    """How busy, W, °C, clock: columns that stand below each other."""
    found = readings.by_name
    return "".join(f" {amount(name, found[name]):>{width}}" for name, width in WIDTHS.items())


def in_words(readings: DeviceReadings) -> str:
    """The same as a part of a line."""
    found = readings.by_name
    return "busy " + "  ".join(amount(name, found[name]) for name in WIDTHS)


def joules_text(joules: Reading) -> str:
    """`4.21 (package, RAPL)` or `n/a`."""
    return "n/a" if joules.value is None else f"{joules.value:.3g} ({joules.source})"


def no_hardware(emulated: Sequence[str]) -> str:
    """Why there are no joules of training steps with emulated devices."""
    return f"{', '.join(emulated)} emulated: joules are no hardware's"


def sources(sensed: Sensed) -> list[str]:
    """Of each device what was measured by what, and why what is absent is so."""
    lines = []
    for device, readings in sensed.devices.items():
        told: dict[tuple[bool, str], list[str]] = {}
        for quantity, reading in readings.by_name.items():
            key = reading.value is None, reading.source
            told.setdefault(key, []).append(UNITS[quantity])
        for (is_absent, source), units in told.items():
            mark = "n/a: " if is_absent else ""
            lines.append(f"{mark}{device} {', '.join(units)}: {source}")
    return lines
