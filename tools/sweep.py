"""How sure a simulated result is: every uncertain figure of a machine over its whole range.

Each figure with a range is put at its low and its high end alone (a *swing*); and all of them
together are drawn many times: half of the draws are corners, each figure at one of its ends; half
are a Latin hypercube (McKay, Beckman and Conover, Technometrics 1979): the range of each figure is
cut in as many pieces as there are such draws, and each piece is used once. Ranges above 0 are cut
by ratios. The draws are of a seed: same machine, same plan, same seed, same result.

The plan is the one for the figures as given, what a user has who trusts them; or it is made anew
for each choice of figures, what a user has whose computer is calibrated. Counts and sizes are left
as they are, since they say what fits and not how long it takes.

The conclusion that is held against the figures is the *gain*: how many times faster the plan is
than the fastest plan on a single device, with the same figures.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from aieflow.profiles.figure import WHOLE, Figure
from aieflow.profiles.machine_cost import DEVICES, HOST, MachineCost
from aieflow.profiles.schema import RULES, MachineProfile
from aieflow.runtime.plan import Plan
from aieflow.runtime.schedule import device_of
from aieflow.runtime.simulate import joules, simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.forecast import Priced

Planner: TypeAlias = Callable[[MachineProfile], Plan]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one choice of figures foretells."""

    seconds: float
    joules: float
    single_s: Mapping[str, float]  # of the plan on each single device

    @property
    def gain(self) -> float:
        """How many times faster than the fastest single device."""
        return min(self.single_s.values()) / self.seconds


@dataclass(frozen=True, slots=True)
class Swing:
    """What one figure at either end of its range foretells, all others as given."""

    path: str
    figure: Figure
    low: Outcome
    high: Outcome

    @property
    def seconds(self) -> float:
        """How far the seconds swing."""
        return abs(self.high.seconds - self.low.seconds)


@dataclass(frozen=True, slots=True)
class Sweep:
    """A tornado of swings, largest first, and what all figures together foretell."""

    given: Outcome
    swings: tuple[Swing, ...]
    together: tuple[Outcome, ...]

    @property
    def every(self) -> tuple[Outcome, ...]:
        """All outcomes, the one as given first."""
        ends = [end for swing in self.swings for end in (swing.low, swing.high)]
        return (self.given, *ends, *self.together)


def uncertain(machine: MachineProfile) -> dict[str, Figure]:
    """The figures of a machine that may be other than they are, by path; no counts and sizes."""
    return {
        path: figure
        for path, figure in machine.figures()
        if figure.low is not None and figure.low != figure.high and RULES[path] is not WHOLE
    }


def sweep(
    machine: MachineProfile,
    plan: Plan,
    singles: Mapping[str, Plan],
    draws: int = 64,
    seed: int = 1,
    planner: Planner | None = None,
) -> Sweep:
    """What `plan` takes over the ranges of a machine's figures; `singles` are by their device.

    `draws` is how many times all figures are drawn together. With a `planner`, the plan is made
    anew for each choice of figures; plans on single devices are what they are.
    """
    figures = uncertain(machine)
    judge = _Judge(plan, singles, planner)
    given = judge.outcome(machine)
    swings: list[Swing] = []
    for path, figure in figures.items():
        low, high = _range(figure)
        ends = [judge.outcome(machine.with_value(path, end)) for end in (low, high)]
        swings.append(Swing(path, figure, *ends))
    together = [
        judge.outcome(with_values(machine, values)) for values in drawn(figures, draws, seed)
    ]
    swings.sort(key=lambda swing: (-swing.seconds, swing.path))
    return Sweep(given, tuple(swings), tuple(together))


def drawn(figures: Mapping[str, Figure], draws: int, seed: int) -> list[dict[str, float]]:
    """Values for all figures at once, `draws` times: corners, then a Latin hypercube."""
    rng = random.Random(seed)
    corners = draws // 2
    found = [
        {path: rng.choice(_range(figure)) for path, figure in figures.items()}
        for _ in range(corners)
    ]
    pieces = draws - corners
    places = {path: rng.sample(range(pieces), pieces) for path in figures}
    for draw in range(pieces):
        found.append(
            {
                path: _between(*_range(figure), (places[path][draw] + rng.random()) / pieces)
                for path, figure in figures.items()
            }
        )
    return found


def with_values(machine: MachineProfile, values: Mapping[str, float]) -> MachineProfile:
    """The machine with several figures changed."""
    for path, value in values.items():
        machine = machine.with_value(path, value)
    return machine


def quantiles(numbers: Sequence[float]) -> dict[str, float]:
    """The least, the 5th percentile, the median, the 95th percentile and the most."""
    ordered = sorted(numbers)
    last = len(ordered) - 1
    shares = {"least": 0.0, "p5": 0.05, "median": 0.5, "p95": 0.95, "most": 1.0}
    return {name: ordered[round(share * last)] for name, share in shares.items()}


def _range(figure: Figure) -> tuple[float, float]:
    assert figure.low is not None
    assert figure.high is not None
    return figure.low, figure.high


def _between(low: float, high: float, share: float) -> float:
    """A place in a range: by ratio where it lies above 0, never outside by rounding."""
    value = low * (high / low) ** share if low > 0 else low + (high - low) * share
    return min(max(value, low), high)


def telling(machine: MachineProfile, plan: Plan) -> tuple[float, ...]:
    """The figures that a plan's seconds and joules can depend on.

    Those of a device that has no lane in it are not; but the idle power of all is.
    """
    absent = set(DEVICES) - {HOST} - {device_of(lane) for lane in plan.lanes}
    return tuple(
        figure.value
        for path, figure in machine.figures()
        if absent.isdisjoint(re.split("[._]", path)) or path.endswith("idle_w")
    )


@dataclass(slots=True)
class _Judge:
    """Simulates plans; one on whose figures nothing has changed, not again."""

    plan: Plan
    singles: Mapping[str, Plan]
    planner: Planner | None
    _known: dict[tuple[Plan, tuple[float, ...]], tuple[float, float]] = field(default_factory=dict)

    def outcome(self, machine: MachineProfile) -> Outcome:
        """What the figures of a machine foretell."""
        plan = self.plan if self.planner is None else self.planner(machine)
        seconds, energy = self._simulated(plan, machine)
        single_s = {name: self._simulated(one, machine)[0] for name, one in self.singles.items()}
        return Outcome(seconds, energy, single_s)

    def _simulated(self, plan: Plan, machine: MachineProfile) -> tuple[float, float]:
        key = plan, telling(machine, plan)
        if key not in self._known:
            cost = MachineStepCost(MachineCost(machine))
            priced = Priced(cost, cost.of(plan))
            trace = simulate(plan, priced)
            self._known[key] = trace.seconds, joules(trace, priced)
        return self._known[key]
