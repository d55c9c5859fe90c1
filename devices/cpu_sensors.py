"""What is known of the CPU while it works: watts, degrees, clock, how busy its cores are.

- watts: RAPL's domain of the cores, else that of the package
- degrees: the hwmon of its driver (k10temp on AMD, coretemp on Intel), by label
- clock: cpufreq's of each core, weighted by how busy each was: idle cores say nothing of a step
- busy: /proc/stat, all cores and all programs of the computer
"""

from pathlib import Path

from aieflow.devices.readings import (
    DeviceReadings,
    Rates,
    Reading,
    absent,
    first_of,
    hwmon_called,
    read_number,
)
from aieflow.devices.surroundings import Surroundings, read_text

THERMAL = ("k10temp", "zenpower", "coretemp", "cpu_thermal")  # drivers, by name of their hwmon
LABELS = ("Tdie", "Tctl", "Package id 0")  # of the whole die, best first
# In /proc/stat: of user, nice, system, idle, iowait, irq, softirq, steal (guests count as user).
COUNTED, IDLE = 8, (3, 4)
TWO_NEEDED = "/proc/stat: two readings a tenth of a second apart are needed"


class CpuSensors:
    """The CPU's sensors."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._rates = Rates()

    def read(self, now_s: float, package_w: Reading, cores_w: Reading) -> DeviceReadings:
        """What they say now; watts are given, by RAPL (`devices.rapl`)."""
        busy = self._busy(now_s)
        everywhere = busy.pop("cpu", None)
        use = (
            absent(TWO_NEEDED)
            if everywhere is None
            else Reading(everywhere, "all cores and programs, /proc/stat")
        )
        return DeviceReadings(
            first_of((cores_w, package_w)), self._temperature(), self._clock(busy), use
        )

    def _busy(self, now_s: float) -> dict[str, float]:
        """The busy share of each core by the name that /proc/stat has for it; "cpu" of all."""
        found = {}
        for line in read_text(self._around.path("/proc/stat")).splitlines():
            if not line.startswith("cpu"):
                continue
            name, *fields = line.split()
            if not all(field.isdecimal() for field in fields):
                continue
            ticks = [int(field) for field in fields[:COUNTED]]
            if len(ticks) <= max(IDLE):
                continue
            idle = sum(ticks[place] for place in IDLE)
            all_per_s = self._rates.per_second(name, sum(ticks), now_s)
            idle_per_s = self._rates.per_second(f"{name} idle", idle, now_s)
            if all_per_s and idle_per_s is not None:
                found[name] = min(1.0, max(0.0, 1 - idle_per_s / all_per_s))
        return found

    def _clock(self, busy: dict[str, float]) -> Reading:
        folder = self._around.path("/sys/devices/system/cpu")
        files = sorted(folder.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
        if not files:
            return absent("no cpufreq: the clock is not shown, as in most virtual machines")
        source = "cores by how busy they are, cpufreq" if busy else "mean of the cores, cpufreq"
        readings = [(_core(file), read_number(self._around, file, source, 1e3)) for file in files]
        known = [(name, each.value) for name, each in readings if each.value]
        if not known:
            return first_of([each for _, each in readings])
        weights = [busy.get(name, 0.0) for name, _ in known]
        if not sum(weights):
            weights = [1.0] * len(known)
        clocks = [value for _, value in known]
        mean = sum(w * hz for w, hz in zip(weights, clocks, strict=True)) / sum(weights)
        return Reading(mean, source)

    def _temperature(self) -> Reading:
        folder = hwmon_called(self._around, THERMAL)
        if folder is None:
            return absent(f"no hwmon of the CPU ({', '.join(THERMAL)}), as in virtual machines")
        driver = read_text(folder / "name").strip()
        inputs = sorted(folder.glob("temp*_input"))
        labels = {
            read_text(folder / file.name.replace("_input", "_label")).strip(): file
            for file in reversed(inputs)
        }
        label = next((each for each in LABELS if each in labels), next(iter(labels), ""))
        if not inputs:
            return absent(f"{self._around.shown(folder)}: {driver} has no temperature")
        source = f"{driver} {label}".strip()
        return read_number(self._around, labels[label], source, 1e-3)


def _core(file: Path) -> str:
    """The core of a file of cpufreq, as /proc/stat names it."""
    return file.parent.parent.name
