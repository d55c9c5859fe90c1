"""The energy of a training step, and what measures it.

`tools` hands a meter in where one was asked for, as it does with devices: no sensor is known here.
"""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Energy:
    """What one training step took; never 0 for what is not known."""

    joules: float | None
    source: str  # what was measured, and by what: "package, RAPL"; without joules the reason


class Meter(Protocol):
    """Measures one training step after the other; nothing here raises."""

    def begin(self) -> None:
        """A training step begins."""
        ...

    def end(self) -> Energy:
        """The energy since `begin`."""
        ...
