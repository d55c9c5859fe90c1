"""Executes a plan: owns the threads, the memory and the bound kernels.

Everything is bound once: views of the buffers, kernels to the views, locks to the edges between
lanes. A run then copies the feeds in, lets the workers go and waits until every lane is idle. The
first error cancels the run; `run` raises it with the name of its node and device, once the states
that the plan saves are again what they were before the run.
"""

import contextlib
import threading
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter_ns

import numpy as np

from aieflow.devices.base import Clock, Device
from aieflow.ops.check import MATMUL_CHECK
from aieflow.ops.errors import AieflowError, DeviceError, PlanError
from aieflow.ops.graph import Value
from aieflow.ops.kernel import Call, HostKernel
from aieflow.ops.op import Array
from aieflow.runtime.binding import (
    allocate_host,
    bind_arrays,
    raw_bytes,
    release_host,
)
from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.schedule import device_of
from aieflow.runtime.states import States
from aieflow.runtime.trace import Span, Trace
from aieflow.runtime.transfer import HOST, reaches, side_of, updated_states
from aieflow.runtime.worker import Instruction, Worker

NOTHING = np.empty(0, np.uint8)
Observer = Callable[[Step, Mapping[str, Array]], None]  # sees a step's outputs when it has ended


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
        self.states = states if isinstance(states, States) else States(states)
        self._devices = devices
        self._reach = reaches(devices)
        self._identities = self._name_executors()
        self._updated = frozenset(updated_states(plan.graph))
        self._observer = observer
        self._owned: list[Array] = []  # host memory that this executor allocated
        missing = {device_of(lane) for lane in plan.schedule.lanes} - {HOST, *devices}
        if missing:
            raise PlanError(f"{plan.graph.name}: the plan has lanes of {sorted(missing)}")
        self._locks: list[threading.Lock] = []
        try:
            if arena is None or arena.nbytes < plan.memory.arena_nbytes:
                arena = self._allocate(plan.memory.arena_nbytes)
            self.arena = arena
            feeds = {value.name: self._allocate(value.spec.nbytes) for value in plan.graph.feeds}
            self._arrays = bind_arrays(plan, devices, self.states, arena, feeds)
            self._saved = {name: np.empty_like(self.states[name]) for name in plan.saved}
            self._entries = self._bind_entries()
            self._workers = self._open_workers()
        except BaseException:  # what was adopted must not stay so
            while self._owned:
                release_host(devices, self._owned.pop())
            raise
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
        self._enter()
        clocks = self._profile(traced)
        if not self._is_clean:
            self._reset()
        self._is_clean = False
        begin = perf_counter_ns()
        for worker in self._workers:
            worker.prepare(traced, clocks.get(worker.lane))
        try:
            for worker in self._workers:
                worker.start()
            self._wait()
            end = perf_counter_ns()
            for worker in self._workers:
                worker.settle()
            error = self._first_error()
            if error is None:
                self.states.outdate(self._updated, self.plan.exit)
                self.states.set_valid(self.plan.exit)
                self._is_clean = True
        except BaseException:  # Ctrl-C: leave no lane running
            self._is_clean = False
            self._stop()
            raise
        if error is not None:
            self._stop()
            try:
                raise error
            finally:
                del error  # no cycle through this frame may keep buffers alive
        return self._trace(begin, end) if traced else None

    def progress(self) -> dict[str, int]:
        """How many steps of its program each lane has done in this run, or the last one.

        Any thread may ask, at any time.
        """
        return {worker.lane: worker.completed for worker in self._workers}

    def close(self) -> None:
        """End the workers and give back what was allocated here; idempotent.

        Values in host memory can still be read.
        """
        self._is_closed = True
        for worker in self._workers:
            worker.close()
        self._workers, self._entries = [], {}
        for value in self.plan.graph.values:  # their buffers are the device's to give back
            if self.plan.memory.slots[value].space in self.plan.memory.separate:
                self._arrays.pop(value.name, None)
        while self._owned:
            release_host(self._devices, self._owned.pop())

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _allocate(self, nbytes: int) -> Array:
        memory = allocate_host(self._devices, nbytes)
        self._owned.append(memory)
        return memory

    def _bind_entries(self) -> dict[str, list[tuple[str, Callable[[], None]]]]:
        """For each state, what makes it valid on the sides that a run expects, in order."""
        entries: dict[str, list[tuple[str, Callable[[], None]]]] = {}
        for name, sides in self.plan.entry.items():
            calls: list[tuple[str, Callable[[], None]]] = []
            if name in self.plan.derived:
                calls.append((HOST, self._bind_derivation(name)))
            for side in sorted(sides - {HOST}):
                region = raw_bytes(self._arrays[name])
                calls.append((side, partial(self._devices[side].transfer, region, "in")))
            if calls:
                entries[name] = calls
        return entries

    def _bind_derivation(self, name: str) -> Callable[[], None]:
        node = self.plan.derived[name]
        device, _ = self.plan.memory.separate[name]
        kernel = self._devices[device].kernels[node.op.name]
        if not isinstance(kernel, HostKernel):
            raise PlanError(f"{node.name}: {node.op.name} on {device} is no kernel of the host")
        inputs = tuple(self._arrays[value.name] for value in node.inputs)
        workspace = np.empty(kernel.workspace(node), np.uint8)
        return kernel.bind(Call(inputs, (self._arrays[name],), node.attrs, workspace))

    def _enter(self) -> None:
        """Bring states up to date that the host has written since the last run."""
        for name, calls in self._entries.items():
            valid = self.states.valid(name)
            for side, call in calls:
                if side not in valid and not (side == HOST and valid):
                    try:
                        call()
                    except DeviceError as error:
                        where = self.plan.memory.separate.get(name, (side, 0))[0]
                        error.device = error.device or where
                        raise
                    valid |= {side}
            self.states.set_valid({name: valid})

    def _profile(self, traced: bool) -> dict[str, Clock]:
        """The lanes' own clocks in a traced run; every lane is idle."""
        used = {device_of(lane) for lane in self.plan.lanes}
        clocks: dict[str, Clock] = {}
        for name, device in self._devices.items():
            if name in used:
                clocks.update(device.profile(traced))
        return clocks

    def _undo(self) -> None:
        """Give states that were saved their old values; all lanes are idle."""
        for lane in self.plan.lanes:
            device = self._devices.get(device_of(lane))
            finish = None if device is None else device.finish(lane)
            if finish is not None:
                with contextlib.suppress(AieflowError):  # it has failed already
                    finish()
        for worker in self._workers:
            for instruction in worker.program[: worker.completed]:
                step = self.plan.steps[instruction.step]
                if step.kind == "save":
                    np.copyto(self.states[step.value], self._saved[step.value])
        self.states.touch()

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
        finishes: dict[str, Callable[[], None] | None] = {}
        for lane, program in plan.lanes.items():
            workspace = self._allocate(plan.workspace[lane]) if plan.workspace[lane] else NOTHING
            device = self._devices.get(device_of(lane))
            finish = finishes[lane] = None if device is None else device.finish(lane)
            programs[lane] = [
                Instruction(
                    index,
                    tuple(waits.get(index, ())),
                    self._bind(plan.steps[index], workspace),
                    tuple(signals.get(index, ())),
                    finish if index in signals or index == program[-1] else None,
                )
                for index in program
            ]
        return [
            Worker(lane, program, self._cancel, finishes[lane])
            for lane, program in programs.items()
        ]

    def _bind(self, step: Step, workspace: Array) -> Callable[[], None]:
        if step.kind == "save":
            source, target = self.states[step.value], self._saved[step.value]
            return lambda: np.copyto(target, source)
        device = self._devices[device_of(step.lane)]
        if step.kind != "node":
            return device.bind_transfer(raw_bytes(self._arrays[step.value]), step.kind)
        node = self.plan.node_of(step)
        call = Call(
            tuple(self._arrays[value.name] for value in node.inputs),
            tuple(self._arrays[value.name] for value in node.outputs),
            node.attrs,
            workspace,
            step.part,
            step.parts,
        )
        try:
            bound = device.bind(node, call)
        except DeviceError as error:
            error.device = error.device or device.name
            raise
        return bound if self._observer is None else self._observed(step, bound, self._observer)

    def _observed(
        self, step: Step, bound: Callable[[], None], observer: Observer
    ) -> Callable[[], None]:
        """A step that shows its outputs, where the host can see them."""
        device = self._devices[device_of(step.lane)]
        outputs = {
            value.name: self._arrays[value.name] for value in self.plan.node_of(step).outputs
        }
        finish, fetch = device.finish(step.lane), list[Callable[[], None]]()
        if side_of(step.lane, self._reach) != HOST:
            if device.is_separate:
                return bound
            fetch = [partial(device.transfer, raw_bytes(each), "out") for each in outputs.values()]

        def observed() -> None:
            bound()
            if finish is not None:
                finish()
            for call in fetch:
                call()
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
        """Cancel the run, wait until every lane is idle, undo it, however often Ctrl-C comes."""
        while True:
            try:
                self._cancel()
                self._wait()
                self._undo()
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

    def _first_error(self) -> AieflowError | None:
        """The error of the first step that failed; the workers forget theirs."""
        errors = [worker.error for worker in self._workers if worker.error is not None]
        for worker in self._workers:
            worker.error = None
        return self._named(min(errors, key=lambda error: error[0])) if errors else None

    def _named(self, error: tuple[int, BaseException]) -> AieflowError:
        index, cause = error
        step = self.plan.steps[index]
        device = device_of(step.lane)
        if isinstance(cause, DeviceError):
            if step.kind == "node" and self.plan.node_of(step).op is MATMUL_CHECK:
                device = self.plan.home_of(self.plan.node_of(step).inputs[-1])
            cause.device = cause.device or device
        if isinstance(cause, AieflowError):
            return cause
        what = self.plan.name_of(step)
        named = DeviceError(
            f"{what} ({self.plan.work_of(step)}) failed on {step.lane}: {cause!r}", device
        )
        named.__cause__ = cause
        return named

    def _name_executors(self) -> list[str]:
        """What executes each step; packs, unpacks and copies of states are the host's work."""
        host = next(iter(self._devices.values()))
        names: list[str] = []
        for step in self.plan.steps:
            device = self._devices.get(device_of(step.lane), host)
            is_packing = step.kind == "node" and side_of(step.lane, self._reach) == HOST
            names.append((host if is_packing and device.is_separate else device).identity)
        return names

    def _trace(self, begin: int, end: int) -> Trace:
        spans = [
            Span(
                instruction.step,
                worker.lane,
                self._identities[instruction.step],
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
