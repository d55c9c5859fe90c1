"""Which steps may run now: the executor's rule as a pure state machine, without threads or time.

Events go in (`start`, `finish`), instructions come out (the steps that may start). A lane runs its
program in order, one step at a time; a step starts once every step it waits for has finished. The
simulator drives this with a heap for a clock, tests drive it by hand, and recorded spans of a real
run, replayed through it, must be legal.
"""

from aieflow.ops.errors import PlanError
from aieflow.runtime.plan import Plan, Step


class RunState:
    """The state of one run of a plan. Each event costs as much as it changes, not as many lanes."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._next = dict.fromkeys(plan.lanes, 0)  # how many steps each lane has started
        self._order = {lane: place for place, lane in enumerate(plan.lanes)}
        self._running: dict[str, int] = {}
        self._finished: set[int] = set()
        self._missing = [len(step.waits) for step in plan.steps]  # waits that have not finished
        self._waiting: list[list[int]] = [[] for _ in plan.steps]  # who waits for each step
        for step in plan.steps:
            for wait in step.waits:
                self._waiting[wait].append(step.index)
        self._ready: dict[int, Step] = {}  # by the place of its lane
        for lane in plan.lanes:
            self._advance(lane)

    @property
    def is_done(self) -> bool:
        """True once every step has finished."""
        return len(self._finished) == len(self._plan.steps)

    def ready(self) -> tuple[Step, ...]:
        """The steps that may start now, at most one for each lane, in lane order."""
        return tuple(self._ready[place] for place in sorted(self._ready))

    def start(self, step: int) -> None:
        """Note that `step` starts; raises PlanError when it may not."""
        lane = self._plan.steps[step].lane
        head = self._head(lane)
        if head is None or head.index != step:
            expected = "nothing" if head is None else f"step {head.index}"
            raise PlanError(f"step {step} started on {lane}, where {expected} comes next")
        missing = [wait for wait in head.waits if wait not in self._finished]
        if missing:
            raise PlanError(f"step {step} started on {lane} before steps {missing} had finished")
        self._next[lane] += 1
        self._running[lane] = step
        del self._ready[self._order[lane]]

    def finish(self, step: int) -> tuple[Step, ...]:
        """Note that `step` has finished; return the steps that may start now."""
        lane = self._plan.steps[step].lane
        if self._running.get(lane) != step:
            raise PlanError(f"step {step} finished on {lane}, where it was not running")
        del self._running[lane]
        self._finished.add(step)
        for waiting in self._waiting[step]:
            self._missing[waiting] -= 1
            if not self._missing[waiting]:
                self._advance(self._plan.steps[waiting].lane)
        self._advance(lane)
        return self.ready()

    def _advance(self, lane: str) -> None:
        """Note the head of a lane as ready, if it is."""
        head = self._head(lane)
        if head is not None and not self._missing[head.index]:
            self._ready[self._order[lane]] = head

    def _head(self, lane: str) -> Step | None:
        """The step that an idle lane starts next."""
        program = self._plan.lanes[lane]
        place = self._next[lane]
        if lane in self._running or place == len(program):
            return None
        return self._plan.steps[program[place]]
