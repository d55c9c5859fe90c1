"""The meter of `aieflow train --energy`: the package's counters before and after a training step.

Only counters can tell the energy of a single training step. Watts, as amdgpu and batteries tell
them, are means over a time of the driver's own, a battery's over seconds; `aieflow profile` takes
amdgpu's where it has nothing better, for all of its training steps together.
"""

import statistics
import time
from collections.abc import Callable, Sequence

from aieflow.devices.rapl import ABSENT, PACKAGE, EnergyCounters, domains
from aieflow.devices.surroundings import Surroundings
from aieflow.gpt2.energy import Energy
from aieflow.tools.sensor_text import WITH_OTHERS, no_hardware

WATTS = "watts of amdgpu or of a battery do not tell a single training step"


class EnergyMeter:
    """A `gpt2.energy.Meter` of all packages; where devices are `emulated` it reads nothing.

    `clock` gives seconds of any clock that goes forward.
    """

    def __init__(
        self,
        around: Surroundings,
        emulated: Sequence[str] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._clock = clock
        self._reason = no_hardware(emulated) if emulated else ""
        self._packages, _ = domains(around)  # once: it takes longer than reading them
        self._counters = EnergyCounters(around, PACKAGE)

    def begin(self) -> None:
        """Read the counters anew."""
        if not self._reason:
            self._counters.joules(self._packages, self._clock())

    def end(self) -> Energy:
        """Joules since `begin`, those of other programs among them; none with the reason."""
        if self._reason:
            return Energy(None, self._reason)
        joules = self._counters.joules(self._packages, self._clock())
        return Energy(joules.value, joules.source)

    def outlook(self) -> str:
        """What joules will be of; where they cannot be read now, why, and what to do."""
        if self._reason:
            return f"n/a: {self._reason}"
        fault = self._counters.fault(self._packages)
        if fault is None:
            return f"{PACKAGE}, {WITH_OTHERS}"
        without = f"; {WATTS}" if fault.source == ABSENT else ""
        return f"n/a: {fault.source}{without}"


def energy_text(energies: Sequence[Energy]) -> str:
    """The median and the sum of training steps, and of what; the last reason where none is known.

    >>> energy_text([Energy(2.0, "package, RAPL"), Energy(4.0, "package, RAPL")])
    '3 J a training step (median), 6 J in all: package, RAPL, with all other programs'
    >>> energy_text([Energy(None, "no meter")])
    'n/a: no meter'
    """
    known = [each for each in energies if each.joules is not None]
    joules = [each.joules for each in known if each.joules is not None]
    if not known:
        return f"n/a: {energies[-1].source}"
    some, these = "", ""
    if len(known) < len(energies):
        some, these = f" of {len(known)} of {len(energies)}", " of these"
    sources = ", ".join(dict.fromkeys(each.source for each in known))
    return (
        f"{statistics.median(joules):,.4g} J a training step (median{some}), "
        f"{sum(joules):,.4g} J in all{these}: {sources}, {WITH_OTHERS}"
    )
