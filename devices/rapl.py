"""Watts by RAPL: energy counters of the processor, one for each power domain.

Linux' powercap shows them, Intel's and AMD's alike (kernel documentation, power/powercap). Since
CVE-2020-8694 they are root's alone unless an administrator has opened them. The counters wrap.
"""

from pathlib import Path

from aieflow.devices.readings import ROOT_ONLY, Rates, Reading, absent, read_number
from aieflow.devices.surroundings import Surroundings, read_text

MOST_W = 2000.0  # of all packages: more is a counter that began anew, not one that wrapped
FOLDER = "/sys/class/powercap"
ABSENT = f"no RAPL: nothing called intel-rapl in {FOLDER}, as in most virtual machines"


class Rapl:
    """The processor's domains, as watts between one reading and the next."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._rates = Rates()

    def read(self, now_s: float) -> tuple[Reading, Reading]:
        """Watts of all packages, and of all cores alone."""
        # intel-rapl-mmio:0 is the same package once more
        zones = sorted(self._around.path(FOLDER).glob("intel-rapl:*"))
        names = [(zone, read_text(zone / "name").strip()) for zone in zones]
        packages = [zone for zone, name in names if name.startswith("package")]
        cores = [zone for zone, name in names if name == "core"]
        return (
            self._watts(packages, "package, RAPL", now_s),
            self._watts(cores, "cores, RAPL", now_s),
        )

    def _watts(self, zones: list[Path], source: str, now_s: float) -> Reading:
        if not zones:
            return absent(ABSENT)
        total: float | None = 0.0
        fault: Reading | None = None
        for zone in zones:
            energy_j = read_number(self._around, zone / "energy_uj", source, 1e-6)
            limit_j = read_number(self._around, zone / "max_energy_range_uj", source, 1e-6)
            watts = self._rates.per_second(zone.name, energy_j.value, now_s, limit_j.value)
            if energy_j.value is None:
                fault = fault or _with_remedy(energy_j)
            total = None if watts is None or total is None else total + watts
        if fault is not None:
            return fault
        if total is None:
            return absent(f"{source}: two readings of its counter are needed")
        if not 0 < total < MOST_W:
            return absent(f"{source}: its counter {'began anew' if total else 'stands still'}")
        return Reading(total, source)


def _with_remedy(reading: Reading) -> Reading:
    if not reading.source.endswith(ROOT_ONLY):
        return reading
    return absent(f"{reading.source} (root may open it: chmod a+r)")
