"""Energy by RAPL: counters of the processor, one for each power domain; watts are their rate.

Linux' powercap shows them, Intel's and AMD's alike (kernel documentation, power/powercap). Since
CVE-2020-8694 they are root's alone unless an administrator has opened them. The counters go on
about once a millisecond, and wrap; more than one wrap between two readings is not noticed: a range
of 65 kJ lasts for 20 minutes at 54 W.
"""

import math
from pathlib import Path

from aieflow.devices.readings import LEAST_S, ROOT_ONLY, Reading, absent, read_number
from aieflow.devices.surroundings import Surroundings, read_text

MOST_W = 2000.0  # of all packages: more is a counter that began anew, not one that wrapped
FOLDER = "/sys/class/powercap"
ABSENT = f"no RAPL: nothing called intel-rapl in {FOLDER}, as in most virtual machines"
PACKAGE = "package, RAPL"


def domains(around: Surroundings) -> tuple[list[Path], list[Path]]:
    """The folders of all packages, and of all groups of cores."""
    # intel-rapl-mmio:0 is the same package once more
    zones = sorted(around.path(FOLDER).glob("intel-rapl:*"))
    names = [(zone, read_text(zone / "name").strip()) for zone in zones]
    packages = [zone for zone, name in names if name.startswith("package")]
    return packages, [zone for zone, name in names if name == "core"]


class EnergyCounters:
    """Counters of one kind of domain, as joules from one reading to the next."""

    def __init__(self, around: Surroundings, source: str) -> None:
        self._around = around
        self._source = source
        self._before: dict[Path, float] = {}  # J, of those that were readable at `_before_s`
        self._before_s: float | None = None

    def joules(self, zones: list[Path], now_s: float) -> Reading:
        """Joules of all zones since the reading before; none unless their counters have grown.

        `now_s` is of any clock that goes forward.
        """
        if not zones:
            return absent(ABSENT)
        before, before_s = self._before, self._before_s
        self._before, fault = self._read(zones)
        self._before_s = now_s
        if fault is not None:
            return fault
        if before_s is None or now_s <= before_s or any(zone not in before for zone in zones):
            return self._unready
        grown = [self._since(zone, before[zone], now_j) for zone, now_j in self._before.items()]
        if min(grown) < 0 or sum(grown) >= MOST_W * (now_s - before_s):
            return absent(f"{self._source}: its counter began anew")
        if not sum(grown):
            return absent(f"{self._source}: its counter stands still")
        return Reading(sum(grown), self._source)

    def watts(self, zones: list[Path], now_s: float) -> Reading:
        """Watts of all zones since the reading before; too soon after it, nothing is read."""
        seconds = math.inf if self._before_s is None else now_s - self._before_s
        if 0 <= seconds < LEAST_S:
            return self._unready
        joules = self.joules(zones, now_s)
        return joules if joules.value is None else Reading(joules.value / seconds, joules.source)

    def fault(self, zones: list[Path]) -> Reading | None:
        """Why the counters cannot be read now; None where they can."""
        return self._read(zones)[1] if zones else absent(ABSENT)

    def _read(self, zones: list[Path]) -> tuple[dict[Path, float], Reading | None]:
        """Joules of the counters that can be read; why the first of the others cannot."""
        found = {
            zone: read_number(self._around, zone / "energy_uj", self._source, 1e-6)
            for zone in zones
        }
        known = {zone: each.value for zone, each in found.items() if each.value is not None}
        fault = next((each for each in found.values() if each.value is None), None)
        return known, None if fault is None else _with_remedy(fault)

    @property
    def _unready(self) -> Reading:
        return absent(f"{self._source}: two readings of its counter are needed")

    def _since(self, zone: Path, before_j: float, now_j: float) -> float:
        """What one counter has grown by; below 0 where it began anew and nothing says its range."""
        if now_j >= before_j:
            return now_j - before_j
        limit_j = read_number(self._around, zone / "max_energy_range_uj", self._source, 1e-6)
        return now_j - before_j + (limit_j.value or 0.0)


class Rapl:
    """The processor's domains, as watts between one reading and the next."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._packages = EnergyCounters(around, PACKAGE)
        self._cores = EnergyCounters(around, "cores, RAPL")

    def read(self, now_s: float) -> tuple[Reading, Reading]:
        """Watts of all packages, and of all cores alone."""
        packages, cores = domains(self._around)  # anew: a module may have been loaded meanwhile
        return self._packages.watts(packages, now_s), self._cores.watts(cores, now_s)


def _with_remedy(reading: Reading) -> Reading:
    if not reading.source.endswith(ROOT_ONLY):
        return reading
    return absent(f"{reading.source} (root may open it: chmod a+r)")
