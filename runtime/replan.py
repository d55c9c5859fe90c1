"""Plans again while a program runs: when its runs drift, and with what was learned of them.

    watching    every so many runs one is traced, and enters the history of works; a drift is that
                runs take other times than before, or works on a device do, relative to others
    observing   after a drift, the next few runs are traced: what works take as things are now
    planning    a plan is made beside the running program, by the corrected cost model; a few runs
                after that tell what the old plan takes now
    on trial    the new plan is followed; if its runs take longer than those, the old one is again

A new plan is taken only if it is foretold to gain. Of devices that the plan leaves out, runs show
nothing: when runs have become slower, these are believed to be slower, too, by half as much.
Whatever came of a drift, the next one has to last twice as long until it counts, so that what
nobody can mend is not tried for ever. Nothing is written to disk.

Planning is pure Python in a thread of its own. Workers need the interpreter's lock for some
microseconds between two kernels, so while it lasts the lock is asked back quickly.
"""

import contextlib
import math
import statistics
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from aieflow.ops.errors import AieflowError, ProfileError
from aieflow.ops.kernel import Kernels
from aieflow.profiles.history import KEPT, History
from aieflow.profiles.learned_cost import LearnedCost
from aieflow.runtime.choice import Choices
from aieflow.runtime.drift import DriftDetector, DriftRule
from aieflow.runtime.machine import Machine
from aieflow.runtime.observed import Observed
from aieflow.runtime.plan import Plan
from aieflow.runtime.policies.fixed import COSTED
from aieflow.runtime.schedule import device_of
from aieflow.runtime.simulate import joules, simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.runtime.trace import Trace

EVERY = 32  # runs, of which one is traced
OTHER = 1.5  # times as long as when the plan was made: works of a device that has changed
LEAST_GAIN = 0.03  # of the score that is foretold; less is not worth the change
WORSE = 0.03  # a run that takes so much longer than before ends the trial
LONGEST = 16  # times the rule's patience
SWITCH_S = 2e-5  # after which a worker is given the interpreter's lock while a plan is made

Plans = tuple[Plan, ...]  # the one whose runs are watched first
Outcome = Literal["swapped", "kept", "reverted"]
Start = Callable[[Callable[[], None]], None]
# What a run of a plan took, and its trace, as they are to be believed: tests put a script here.
Seen = Callable[[Plan, float, Trace | None], tuple[float, Trace | None]]


@dataclass(frozen=True, slots=True)
class Replan:
    """What came of a drift. `plans` are to be followed from now on; None: those there are."""

    outcome: Outcome
    reason: str
    measured_s: float  # of a run
    before: str  # nodes of each device
    after: str
    foretold_s: tuple[float, float] | None  # of a run by the old and the new plan, as learned
    plans: Plans | None = None

    @property
    def gain(self) -> float | None:
        """The share of a run that is foretold to be saved."""
        return None if self.foretold_s is None else 1 - self.foretold_s[1] / self.foretold_s[0]


@dataclass(frozen=True, slots=True)
class _Drifted:
    """What has changed, in words, and what a run takes now."""

    said: str
    measured_s: float
    change: float  # times as long as before


@dataclass(frozen=True, slots=True)
class _Trial:
    """What was followed before a new plan, and what its runs took."""

    plans: Plans
    observed: Observed
    before_s: float


def beside(work: Callable[[], None]) -> None:
    """Do some work in a thread of its own, which ends with the program at the latest."""

    def run() -> None:
        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            work()
        finally:
            sys.setswitchinterval(before)

    threading.Thread(target=run, name="aieflow planning", daemon=True).start()


def as_measured(plan: Plan, seconds: float, trace: Trace | None) -> tuple[float, Trace | None]:
    """What was measured, as it is."""
    return seconds, trace


class Replanner:
    """Is told of every run; has an answer when another plan is ready, or came to nothing."""

    def __init__(
        self,
        machine: Machine,
        plans: Plans,
        make: Callable[[Machine], Plans],
        rule: DriftRule | None = None,
        start: Start = beside,
        seen: Seen = as_measured,
    ) -> None:
        """`make` plans anew for a machine with other costs; raises ProfileError without costs."""
        cost = machine.placement.cost
        if cost is None:
            raise ProfileError("no costs are known: run `aieflow calibrate` first")
        self._cost = cost
        self._machine, self._make, self._start, self._seen = machine, make, start, seen
        self._kernels: Kernels = {each.name: each.kernels for each in machine.devices}
        self.history = History()
        self._rule, self._patience = rule or DriftRule(), 1
        self._plans = plans
        self._observed = Observed(plans[0], cost, self._kernels, self.history)
        self._detector = DriftDetector(self._rule, self._observed.foretold_s)
        self._runs = self._traced = 0  # of this plan
        self._ratios: Mapping[str, float] | None = None  # of devices, as the plan was settled on
        self._to_observe = 0  # traced runs until a plan is made
        self._drift: _Drifted | None = None
        self._before: list[float] = []  # seconds of runs since there is an answer
        self._trial: _Trial | None = None
        self._next: Observed | None = None  # of plans in the answer
        self._answer: Replan | BaseException | None = None

    @property
    def foretold_s(self) -> float:
        """What a run of the plan was foretold to take before anything was learned, simulated."""
        return self._observed.foretold_s

    @property
    def wants_trace(self) -> bool:
        """True if the next run should be traced."""
        if self._drift is not None:
            return self._to_observe > 0
        # After a change its first run touches memory for the first time, and tells little.
        is_new = self._trial is not None and 1 <= self._runs <= KEPT
        every = EVERY * self._patience
        return is_new or self._runs % every == every - 1

    def note(self, seconds: float, trace: Trace | None, is_usual: bool) -> None:
        """Take one run of the plan; `is_usual` unless it was traced for the history alone."""
        plan = self._observed.plan
        wanted = self.wants_trace
        seconds, trace = self._seen(plan, seconds, trace)
        self._runs += 1
        if trace is not None and wanted:
            self._observed.note(trace)
            self._traced += 1
        if self._drift is not None:
            if self._to_observe and trace is not None:
                self._to_observe -= 1
                if not self._to_observe:
                    self._begin()
            elif self._answer is not None:
                self._before.append(seconds)
            return
        if is_usual:
            self._watch(seconds)
        elif self._trial is None:
            self._watch_devices()

    def answer(self) -> Replan | None:
        """What came of a drift, once; raises what planning raised if that was no AieflowError."""
        answer = self._answer
        if answer is None:
            return None
        if isinstance(answer, BaseException):
            raise answer
        if answer.outcome == "swapped" and len(self._before) < self._rule.patience:
            return None  # what runs take beside nobody's planning is not known yet
        self._answer = None
        self._patience = min(LONGEST, 2 * self._patience)
        rule = replace(
            self._rule,
            patience=self._rule.patience * self._patience,
            settling=self._rule.settling * self._patience,
        )
        self._drift = None
        self._runs, self._traced = 0, 0
        self._ratios = None
        if answer.plans is not None:
            if answer.outcome == "swapped":
                rule = replace(rule, settling=max(2, self._rule.patience))  # a trial is short
                before_s = statistics.median(self._before)
                self._trial = _Trial(self._plans, self._observed, before_s)
            assert self._next is not None
            self._plans, self._observed, self._next = answer.plans, self._next, None
        self._before = []
        self._detector.restart(rule)
        return answer

    def _watch(self, seconds: float) -> None:
        drift = self._detector.note(seconds)
        settled_s = self._detector.settled_s
        if self._trial is not None and settled_s is not None:
            trial, self._trial = self._trial, None
            is_worse = settled_s > (1 + WORSE) * trial.before_s
            if is_worse and self._machine.placement.objective.kind == "time":
                self._next = trial.observed
                self._answer = Replan(
                    "reverted",
                    f"a run takes {settled_s:.4g} s by the new plan, {trial.before_s:.4g} s "
                    "by the old",
                    settled_s,
                    homes(self._plans[0]),
                    homes(trial.plans[0]),
                    None,
                    trial.plans,
                )
                return
        if drift is not None:
            than = "foretold (simulated)" if drift.is_from_prediction else "before"
            said = f"a run takes {drift.measured_s:.4g} s, {drift.expected_s:.4g} s {than}"
            self._observe(_Drifted(said, drift.measured_s, drift.measured_s / drift.expected_s))

    def _watch_devices(self) -> None:
        """Find devices that have changed though runs hardly have, as most work is elsewhere."""
        settled_s = self._detector.settled_s
        if self._traced < KEPT or settled_s is None:
            return
        now = self.history.learned().devices
        if self._ratios is None:
            self._ratios = now
            return
        changed = {name: now[name] / ratio for name, ratio in self._ratios.items()}
        name, change = max(changed.items(), key=lambda item: abs(math.log(item[1])))
        if not 1 / OTHER < change < OTHER:
            said = f"works on {name} take {change:.2f}x as long as before"
            self._observe(_Drifted(said, settled_s, change))

    def _observe(self, drift: _Drifted) -> None:
        self._drift, self._to_observe = drift, KEPT
        if drift.change < 1:  # what made other devices slow may be over, too
            self.history.forget(self._unseen())

    def _unseen(self) -> list[str]:
        """The devices that the plan leaves out, so that its runs tell nothing of them."""
        return sorted({each.name for each in self._machine.devices} - self._observed.devices)

    def _begin(self) -> None:
        """Make a plan beside the program, which meanwhile notes nothing."""
        drift, plans = self._drift, self._plans
        assert drift is not None
        learned = self.history.learned()
        if drift.change > 1:  # half-way: heat and other programs slow all devices, or one
            learned = learned.slowed(self._unseen(), math.sqrt(drift.change))
        machine = LearnedCost(self._cost.machine, self._kernels, learned)
        cost = replace(self._cost, machine=machine)

        def work() -> None:
            try:
                self._answer = self._planned(drift, plans, cost)
            except BaseException as error:  # raised where it can be seen
                self._answer = error

        self._start(work)

    def _planned(self, drift: _Drifted, old: Plans, cost: MachineStepCost) -> Replan:
        machine = self._machine
        effort = replace(machine.placement.effort, threads=1)  # the lanes have the other cores
        placement = replace(
            machine.placement, cost=cost, decided={}, choices=Choices(), effort=effort
        )
        reason = drift.said
        if isinstance(cost.machine, LearnedCost):
            shown = sorted(cost.machine.learned.devices.items())
            ratios = (
                f"{name} {ratio:.2f}x as long as foretold"
                for name, ratio in shown
                if name in self._observed.devices
            )
            reason = f"{reason}: {', '.join(ratios)}"
        kept = Replan("kept", reason, drift.measured_s, homes(old[0]), homes(old[0]), None)
        try:
            new = self._make(replace(machine, placement=placement))
        except AieflowError as error:
            return replace(kept, reason=f"{reason}; no plan could be made: {error}")
        traces = simulate(old[0], cost), simulate(new[0], cost)
        kept = replace(kept, foretold_s=(traces[0].seconds, traces[1].seconds))
        if not self._is_better(*traces, cost):
            return replace(kept, reason=f"{reason}; no other plan is foretold to be better")
        missing = needed_nbytes(new) - needed_nbytes(old) - machine.free_nbytes()
        if missing > 0:
            return replace(kept, reason=f"{reason}; a better plan needs {missing:,} bytes more")
        self._next = Observed(new[0], self._cost, self._kernels, self.history)
        return replace(kept, outcome="swapped", after=homes(new[0]), plans=new)

    def _is_better(self, old: Trace, new: Trace, cost: MachineStepCost) -> bool:
        score = self._machine.placement.objective.score
        rank, held = score(old.seconds, joules(old, cost))
        new_rank, reached = score(new.seconds, joules(new, cost))
        return new_rank < rank or (new_rank == rank and reached < (1 - LEAST_GAIN) * held)


def replanner(machine: Machine, plans: Plans, make: Callable[[Machine], Plans]) -> Replanner | None:
    """A re-planner where there is something to weigh: several devices, and costs; else None."""
    placement = machine.placement
    if placement.policy not in COSTED or placement.cost is None or len(machine.devices) < 2:
        return None
    with contextlib.suppress(ProfileError):  # ops placed by hand where nothing was calibrated
        return Replanner(machine, plans, make)
    return None


def homes(plan: Plan) -> str:
    """How many nodes each device does, such as `cpu 200, igpu 420`."""
    counts: dict[str, int] = {}
    for lanes in plan.schedule.placements:
        counts[device_of(lanes[0])] = counts.get(device_of(lanes[0]), 0) + 1
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def needed_nbytes(plans: Plans) -> int:
    """Bytes of host memory that plans need which share states and one arena."""
    accounts: Mapping[str, int] = plans[0].memory.accounts
    return max(plan.memory.arena_nbytes for plan in plans) + accounts["saved"]
