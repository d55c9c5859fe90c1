"""What a plan is to be good at: least time, least energy, both, or least time below a power cap.

A score is a pair that orders plans, the best first. The power under a cap is the mean over a run,
idle power included: it is what a package limit of some seconds holds down. Plans above the cap come
after all plans below it, the least power first.

>>> Objective("power-cap", cap_w=30.0).score(seconds=2.0, joules=50.0)
(0, 2.0)
>>> Objective("power-cap", cap_w=20.0).score(seconds=2.0, joules=50.0)
(1, 25.0)
"""

from dataclasses import dataclass
from typing import Literal, get_args

from aieflow.ops.errors import InputError

Kind = Literal["time", "energy", "energy-delay", "power-cap"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind_of(name: str) -> Kind:
    """The kind of that name; raises InputError where there is none."""
    for kind in KINDS:
        if kind == name:
            return kind
    raise InputError(f"--objective {name}: must be one of {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True)
class Objective:
    """One of `KINDS`; `cap_w` goes with "power-cap" alone. Raises InputError."""

    kind: Kind = "time"
    cap_w: float | None = None

    def __post_init__(self) -> None:
        if (self.kind == "power-cap") != (self.cap_w is not None):
            raise InputError("--objective power-cap goes with --power-cap WATTS, and only with it")
        if self.cap_w is not None and not 0 < self.cap_w < float("inf"):
            raise InputError(f"--power-cap {self.cap_w}: must be a finite number of watts above 0")

    def score(self, seconds: float, joules: float) -> tuple[int, float]:
        """The smaller, the better."""
        if self.cap_w is not None:
            watts = joules / seconds if seconds else 0.0
            return (0, seconds) if watts <= self.cap_w else (1, watts)
        if self.kind == "energy":
            return 0, joules
        return 0, seconds * joules if self.kind == "energy-delay" else seconds

    def least(self, seconds: float, joules: float) -> tuple[int, float]:
        """The best score of any run that takes at least so much."""
        return (0, seconds) if self.cap_w is not None else self.score(seconds, joules)
