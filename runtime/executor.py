"""Executes a plan: owns the threads, the memory and the bound kernels.

Everything is bound once: views of the buffers, kernels to the views, locks to the edges between
lanes. A run then copies the feeds in, lets the workers go and waits until every lane is idle. The
first error cancels the run; `run` raises it with the name of its node and device.
"""

import contextlib
import threading
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter_ns

import numpy as np

from aieflow.devices.base import Device
from aieflow.ops.errors import AieflowError, DeviceError, PlanError
from aieflow.ops.graph import Graph, Value
from aieflow.ops.kernel import Call
from aieflow.ops.op import Array
from aieflow.runtime.memory import ARENA
from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.schedule import device_of
from aieflow.runtime.trace import Span, Trace
from aieflow.runtime.worker import Instruction, Worker

Observer = Callable[[Step, Mapping[str, Array]], None]  # sees a step's outputs when it has ended


def allocate_states(
    graph: Graph, device: Device, wanted: Iterable[Value] | None = None
) -> dict[str, Array]:
    """Zeroed memory by name for the states of a graph (or those wanted); raises DeviceError."""
    states: dict[str, Array] = {}
    for value in graph.states if wanted is None else wanted:
        data = device.allocate(value.spec.nbytes).data
        data[:] = 0
        states[value.name] = _view(data, 0, value)
    return states


def _view(data: Array, offset: int, value: Value) -> Array:
    raw = data[offset : offset + value.spec.nbytes]
    return raw.view(value.spec.storage).reshape(value.spec.shape)


class Executor:
    """Runs one plan, as often as asked. Close it, or use it as a context manager.

    `states` may be shared between executors that do not run at the same time; so may `arena`.
    """

    def __init__(
        self,
        plan: Plan,
        devices: Mapping[str, Device],
        states: Mapping[str, Array],
        arena: Array | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.plan = plan
        self.states = states
        self._devices = devices
        self._observer = observer
        names = {device_of(lane) for lane in plan.lanes}
        if len(names) != 1:
            raise PlanError(f"one device is needed, the plan has lanes of {sorted(names)}")
        (self._home,) = (devices[name] for name in names)
        if arena is None or arena.nbytes < plan.memory.arena_nbytes:
            arena = self._home.allocate(plan.memory.arena_nbytes).data
        self.arena = arena
        self._arrays = self._bind_arrays()
        self._locks: list[threading.Lock] = []
        self._workers = self._open_workers()
        self._is_clean = True  # every lock is held, as a run needs it
        self._is_closed = False

    def array(self, value: Value | str) -> Array:
        """The memory of a value (by name: a feed, state or result)."""
        name = value if isinstance(value, str) else value.name
        return self._arrays[name]

    def run(self, feeds: Mapping[str, Array], traced: bool = False) -> Trace | None:
        """Run the plan once; return its trace if asked for.

        Raises DeviceError (or the AieflowError of a kernel) for the first step that failed, once
        every lane is idle; PlanError for feeds that are missing, too many or of another shape, and
        after `close`.
        """
        if self._is_closed:
            raise PlanError(f"{self.plan.graph.name}: its executor is closed: open another")
        self._copy(feeds)
        if not self._is_clean:
            self._reset()
        self._is_clean = False
        begin = perf_counter_ns()
        for worker in self._workers:
            worker.prepare(traced)
        try:
            for worker in self._workers:
                worker.start()
            self._wait()
        except BaseException:  # Ctrl-C: leave no lane running
            self._stop()
            raise
        end = perf_counter_ns()
        errors = [worker.error for worker in self._workers if worker.error is not None]
        if errors:
            raise self._named(min(errors, key=lambda error: error[0]))
        self._is_clean = True
        return self._trace(begin, end) if traced else None

    def close(self) -> None:
        """End the workers; idempotent."""
        self._is_closed = True
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _bind_arrays(self) -> dict[str, Array]:
        memory, graph = self.plan.memory, self.plan.graph
        arrays: dict[str, Array] = {}
        for value in graph.states:
            given = self.states.get(value.name)
            spec = value.spec
            if given is None or given.shape != spec.shape or given.dtype != spec.dtype:
                raise PlanError(f"{graph.name}: no memory of {spec} for state %{value.name}")
            arrays[value.name] = given
        for value in graph.feeds:
            arrays[value.name] = _view(self._home.allocate(value.spec.nbytes).data, 0, value)
        for value in graph.values:
            if value.name not in arrays:
                slot = memory.slots[value]
                arrays[value.name] = (
                    _view(self.arena, slot.offset, value)
                    if slot.space == ARENA
                    else arrays[slot.space]
                )
        return arrays

    def _open_workers(self) -> list[Worker]:
        plan = self.plan
        waits: dict[int, list[threading.Lock]] = {}
        signals: dict[int, list[threading.Lock]] = {}
        for step in plan.steps:
            for wait in step.waits:
                lock = threading.Lock()
                lock.acquire()
                self._locks.append(lock)
                waits.setdefault(step.index, []).append(lock)
                signals.setdefault(wait, []).append(lock)
        programs: dict[str, list[Instruction]] = {}
        for lane, program in plan.lanes.items():
            workspace = self._home.allocate(plan.workspace[lane]).data
            programs[lane] = [
                Instruction(
                    index,
                    tuple(waits.get(index, ())),
                    self._bind(plan.steps[index], workspace),
                    tuple(signals.get(index, ())),
                )
                for index in program
            ]
        return [Worker(lane, program, self._cancel) for lane, program in programs.items()]

    def _bind(self, step: Step, workspace: Array) -> Callable[[], None]:
        node = self.plan.node_of(step)
        device = self._devices[device_of(step.lane)]
        call = Call(
            tuple(self._arrays[value.name] for value in node.inputs),
            tuple(self._arrays[value.name] for value in node.outputs),
            node.attrs,
            workspace,
            step.part,
            step.parts,
        )
        bound = device.bind(node, call)
        observer = self._observer
        if observer is None:
            return bound
        outputs = {value.name: self._arrays[value.name] for value in node.outputs}

        def observed() -> None:
            bound()
            observer(step, outputs)

        return observed

    def _copy(self, feeds: Mapping[str, Array]) -> None:
        expected = {value.name: value for value in self.plan.graph.feeds}
        if feeds.keys() != expected.keys():
            raise PlanError(
                f"{self.plan.graph.name}: feeds are {sorted(expected)}, given {sorted(feeds)}"
            )
        for name, array in feeds.items():
            spec = expected[name].spec
            if array.shape != spec.shape or array.dtype != spec.dtype:
                raise PlanError(f"feed %{name} is {spec}, given {array.dtype}{list(array.shape)}")
            np.copyto(self._arrays[name], array)

    def _wait(self) -> None:
        for worker in self._workers:
            worker.wait()

    def _stop(self) -> None:
        """Cancel the run and wait until every lane is idle, however often Ctrl-C comes."""
        while True:
            try:
                self._cancel()
                self._wait()
            except KeyboardInterrupt:
                continue
            return

    def _cancel(self) -> None:
        """Let every lane run out: no step starts any more, no wait blocks."""
        for worker in self._workers:
            worker.is_cancelled = True
        for lock in self._locks:
            with contextlib.suppress(RuntimeError):  # not held: its wait is over
                lock.release()

    def _reset(self) -> None:
        """Make every lock held again; all lanes are idle."""
        for lock in self._locks:
            lock.acquire(blocking=False)

    def _named(self, error: tuple[int, BaseException]) -> AieflowError:
        step, cause = error
        if isinstance(cause, AieflowError):
            return cause
        lane = self.plan.steps[step].lane
        node = self.plan.node_of(self.plan.steps[step])
        named = DeviceError(f"{node.name} ({node.op.name}) failed on {lane}: {cause!r}")
        named.__cause__ = cause
        return named

    def _trace(self, begin: int, end: int) -> Trace:
        spans = [
            Span(
                instruction.step,
                worker.lane,
                self._home.name,
                (start - begin) / 1e9,
                (stop - begin) / 1e9,
            )
            for worker in self._workers
            for instruction, start, stop in zip(
                worker.program, worker.starts, worker.ends, strict=True
            )
        ]
        spans.sort(key=lambda span: span.step)
        return Trace(self.plan, tuple(spans), (end - begin) / 1e9)
