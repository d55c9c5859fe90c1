"""A worker: the thread that serves one lane.

Its program is a list of (waits, call, signals), fixed for the life of an executor. A wait is a lock
that the other lane's worker releases as its signal; taking it resets it for the next run. The
worker decides nothing.

Ctrl-C can raise KeyboardInterrupt in the owner between any two instructions. So what the owner
wants and what the worker has done are two counters, and the locks only wake the other side: to
wake it once too often does no harm, and `wait` does it for a `start` that was cut short.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter_ns

from aieflow.devices.base import Clock, Ran


@dataclass(frozen=True, slots=True)
class Instruction:
    """One step as a worker sees it."""

    step: int
    waits: tuple[threading.Lock, ...]
    call: Callable[[], None]
    signals: tuple[threading.Lock, ...]
    finish: Callable[[], None] | None = None  # waits until all work begun on the lane is done


class Worker:
    """Runs a lane's program once for every `start`; `wait` returns when the lane is idle."""

    def __init__(
        self,
        lane: str,
        program: Sequence[Instruction],
        on_error: Callable[[], None],
        finish: Callable[[], None] | None = None,
    ) -> None:
        self.lane = lane
        self.program = tuple(program)
        self.starts = [0] * len(self.program)  # ns, of the last traced run
        self.ends = [0] * len(self.program)
        self.error: tuple[int, BaseException] | None = None  # (step, what it raised)
        self.is_cancelled = False
        self.completed = 0  # instructions that the last run has done
        self._on_error = on_error
        self._finish = finish  # of the lane, where calls return before their work is done
        self._is_traced = False
        self._clock: Clock | None = None
        self._answers: list[Ran] = []  # of the clock, for each instruction of a traced run
        self._is_closed = False
        self._wanted = 0  # runs asked for
        self._done = 0  # runs that ended
        self._go = threading.Lock()
        self._go.acquire()
        self._idle = threading.Lock()
        self._idle.acquire()
        self._thread = threading.Thread(target=self._serve, name=f"aieflow {lane}", daemon=True)
        self._thread.start()

    def prepare(self, traced: bool, clock: Clock | None = None) -> None:
        """Forget the last run; to be called for all workers before the first is started.

        `clock` is the lane's own, where it has one.
        """
        self._is_traced = traced
        self._clock = clock
        self.is_cancelled = False
        self._answers = []
        self.completed = 0  # here, for a worker that Ctrl-C keeps from starting
        self.error = None

    def start(self) -> None:
        """Let the worker run its program once; the lane must be idle."""
        self._wanted = self._done + 1
        _wake(self._go)

    def wait(self) -> None:
        """Block until the lane is idle: the program has been run, or was cancelled."""
        while self._done != self._wanted:
            _wake(self._go)
            self._idle.acquire()

    def close(self) -> None:
        """End the thread; the lane must be idle. Idempotent."""
        self._is_closed = True
        _wake(self._go)
        self._thread.join()

    def settle(self) -> None:
        """Take over what the lane's clock says of the last run; the lane must be idle.

        What is raised becomes the error of its instruction.
        """
        if self.is_cancelled or not self._answers:
            return
        ran: list[tuple[int, int] | None] = []
        try:
            for answer in self._answers:
                ran.append(answer())
        except Exception as error:
            self.error = (self.program[len(ran)].step, error)
            return
        are_done = [self._finish is None or each.finish is not None for each in self.program]
        spans = settled(list(zip(self.starts, self.ends, strict=True)), are_done, ran)
        self.starts, self.ends = [one for one, _ in spans], [other for _, other in spans]

    def _serve(self) -> None:
        while True:
            self._go.acquire()
            if self._is_closed:
                return
            if self._done == self._wanted:
                continue
            place, self.completed = 0, 0
            try:
                for place, instruction in enumerate(self.program):
                    for lock in instruction.waits:
                        lock.acquire()
                    if self.is_cancelled:
                        break
                    if self._is_traced:
                        self.starts[place] = perf_counter_ns()
                        instruction.call()
                        finish = instruction.finish if self._clock else self._finish
                        if finish is not None:
                            finish()
                        self.ends[place] = perf_counter_ns()
                        if self._clock is not None:
                            self._answers.append(self._clock())
                    else:
                        instruction.call()
                        if instruction.finish is not None:
                            instruction.finish()
                    self.completed = place + 1  # before the signals: cancelling may break them off
                    for lock in instruction.signals:
                        lock.release()
            except BaseException as error:
                if not self.is_cancelled:  # else a signal met a lock that cancelling had released
                    self.error = (self.program[place].step, error)
                    self._on_error()
            self._done += 1
            _wake(self._idle)


def settled(
    seen: Sequence[tuple[int, int]],
    ends_seen: Sequence[bool],
    ran: Sequence[tuple[int, int] | None],
) -> list[tuple[int, int]]:
    """When the steps of a lane ran, as its clock says: not outside of what the worker saw, in ns.

    `seen` is when each call began and returned; `ends_seen` where its work was done by then. The
    device's clock is known to some error only, and a step that seems to begin before the end of
    what it waits for would be no legal trace; nor would one that takes no time, of two that follow.

    >>> settled([(100, 110), (120, 200)], [False, True], [(90, 130), (125, 150)])
    [(100, 130), (130, 150)]
    """
    found: list[tuple[int, int]] = []
    before = 0
    for (begin, end), is_end, told in zip(seen, ends_seen, ran, strict=True):
        first, last = told or (begin, end)
        if is_end:
            first, last = min(first, end - 1), min(last, end)
        first = max(first, begin, before)
        before = max(last, first + 1)
        found.append((first, before))
    after = before
    for place in reversed(range(len(found))):
        first, last = found[place]
        last = min(last, after, seen[place][1]) if ends_seen[place] else min(last, after)
        after = min(first, last - 1)
        found[place] = after, last
    return found


def _wake(lock: threading.Lock) -> None:
    """Release a lock unless it is free already."""
    with contextlib.suppress(RuntimeError):
        lock.release()
