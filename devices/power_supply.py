"""What the computer runs on, mains or battery, and what it draws from a battery.

`/sys/class/power_supply` (kernel documentation, ABI/testing/sysfs-class-power). Batteries of mice
and the like have the scope "Device" and do not count.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aieflow.devices.readings import Reading, absent, read_number
from aieflow.devices.surroundings import Surroundings, read_text

Source = Literal["mains", "battery", "unknown"]
FOLDER = "/sys/class/power_supply"


@dataclass(frozen=True, slots=True)
class PowerSupply:
    """Where power comes from; the watts are the whole computer's, with screen and all."""

    source: Source  # unknown: there is no battery and no mains to tell it by
    battery_w: Reading


def power_supply(around: Surroundings) -> PowerSupply:
    """What the computer runs on now."""
    states: dict[Path, str] = {}  # of each battery
    online: list[bool] = []  # of each plug
    for folder in sorted(around.path(FOLDER).glob("*")):
        if read_text(folder / "scope").strip() == "Device":
            continue
        kind = read_text(folder / "type").strip()
        if kind == "Battery":
            states[folder] = read_text(folder / "status").strip()
        elif kind in ("Mains", "USB"):
            plugged = read_text(folder / "online").strip()
            online += [plugged == "1"] if plugged in ("0", "1") else []
    return PowerSupply(_source(online, set(states.values())), _battery_watts(around, states))


def _source(online: list[bool], states: set[str]) -> Source:
    if any(online):
        return "mains"  # also where it is too weak, and the battery is drawn from
    if "Discharging" in states or (online and states):
        return "battery"
    if states and states <= {"Charging", "Full", "Not charging"}:
        return "mains"  # that no plug tells of
    return "unknown"


def _battery_watts(around: Surroundings, states: dict[Path, str]) -> Reading:
    drawn = [folder for folder, state in states.items() if state == "Discharging"]
    if not drawn:
        return absent("no battery is drawn from" if states else f"no battery in {FOLDER}")
    total = 0.0
    names = ", ".join(folder.name for folder in drawn)
    source = f"the whole computer, battery {names}"
    for folder in drawn:
        watts = read_number(around, folder / "power_now", source, 1e-6)
        if watts.value is None:  # some batteries tell amperes instead
            amperes = read_number(around, folder / "current_now", source, 1e-6)
            volts = read_number(around, folder / "voltage_now", source, 1e-6)
            if amperes.value is None or volts.value is None:
                return watts
            total += abs(amperes.value * volts.value)
        else:
            total += abs(watts.value)  # negative while discharging, on some
    if not total:
        return absent(f"{source}: tells 0 W while it is drawn from")
    return Reading(total, source)
