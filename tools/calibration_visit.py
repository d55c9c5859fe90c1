"""Runs a training step as it is run in training, and tells what its steps took.

Of a divided node the longest part counts: that is what it takes when all lanes come to it together.
Runs whose spans are noted lie between a few others, whose length says what noting them costs:
what comes first finds caches colder. The first of each kind does not count: a device that begins or
ends to time its work may need another queue for that, which takes as long as many a node.
"""

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from aieflow.gpt2.run_config import RunConfig
from aieflow.ops.graph import Graph, Value
from aieflow.ops.op import Array
from aieflow.profiles.measured import Series
from aieflow.profiles.overhead import UNTRACED, gap_kind
from aieflow.profiles.work import Work
from aieflow.runtime.binding import view
from aieflow.runtime.executor import Executor
from aieflow.runtime.machine import Machine
from aieflow.runtime.plan import Plan
from aieflow.runtime.schedule import device_of
from aieflow.runtime.trace import Trace

ALIGNMENT = 4096  # of every state in the pool
NOISE = 1 << 20  # random numbers that parameters are filled with, again and again
OFTEN = 3  # transfers of a size in one run that tell what it takes; a few may wait for nodes
PLAIN = 3  # runs that are not noted: one before those that are, the others after them
SHORT_S = 0.3  # a longer run does not tell what noting spans costs


@dataclass(frozen=True, slots=True)
class Seen:
    """What a visit measured, in seconds."""

    works: dict[Work, list[float]] = field(default_factory=dict)
    series: dict[Series, list[float]] = field(default_factory=dict)


class Pool:
    """Host memory that the plans of one calibration use in turn, adopted by every device."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine  # of all devices
        self._memory: Array = np.empty(0, np.uint8)
        self._noise = np.random.default_rng(0).standard_normal(NOISE, np.float32) * 0.02

    def bind(self, plan: Plan) -> tuple[dict[str, Array], Array]:
        """Filled memory for the states of a plan, and its arena; raises DeviceError, PlanError."""
        places: dict[str, int] = {}
        offset = _aligned(plan.memory.arena_nbytes)
        for value in plan.graph.states:
            places[value.name] = offset
            offset += _aligned(value.spec.nbytes)
        if offset > self._memory.nbytes:
            self.close()
            self._machine.require_memory(offset, plan)
            self._memory = self._machine.allocate(offset)
        states = {
            value.name: view(self._memory, places[value.name], value) for value in plan.graph.states
        }
        for value in plan.graph.states:
            self._fill(value, states[value.name])
        return states, self._memory[: plan.memory.arena_nbytes]

    def close(self) -> None:
        """Give the memory back."""
        if self._memory.nbytes:
            self._machine.release(self._memory)
            self._memory = np.empty(0, np.uint8)

    def _fill(self, value: Value, array: Array) -> None:
        flat = array.reshape(-1)
        if value.role != "parameter" or value.name.endswith("bias"):
            flat[:] = 0
        elif len(array.shape) == 1:
            flat[:] = 1
        else:
            for start in range(0, len(flat), NOISE):
                piece = flat[start : start + NOISE]
                piece[:] = self._noise[: len(piece)]


def feeds_of(config: RunConfig, graph: Graph) -> dict[str, Array]:
    """What the graphs of a case are fed: random tokens, ordinary rates, a cache half full.

    By dtype: int32 are tokens, uint64 (1,) the random key, int64 (1,) the position in the cache,
    float64 (3,) the learning rate and AdamW's 1 - beta.
    """
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for value in graph.feeds:
        if value.spec.dtype == "int32":
            tokens = rng.integers(0, config.model.vocab_size, value.spec.shape)
            feeds[value.name] = tokens.astype(np.int32)
        elif value.spec.dtype == "uint64":
            feeds[value.name] = np.array([1], np.uint64)
        elif value.spec.dtype == "int64":
            feeds[value.name] = np.array([config.model.seq_len // 2], np.int64)
        else:
            feeds[value.name] = np.array([config.lr, 1 - config.beta1, 1 - config.beta2])
    return feeds


def visit(
    machine: Machine,
    plan: Plan,
    config: RunConfig,
    pool: Pool,
    works: Mapping[int, Work],
    runs: int,
) -> Seen:
    """What `runs` noted runs of a plan took, between some that are not; raises DeviceError."""
    states, arena = pool.bind(plan)
    feeds = feeds_of(config, plan.graph)
    seen = Seen()
    used = sorted({device_of(lane) for lane in plan.lanes if ".compute" in lane})
    names = ",".join(used)
    lanes = [lane for lane in plan.lanes if ".compute" in lane]
    count = max(len(plan.lanes[lane]) for lane in lanes)
    steps = sum(len(plan.lanes[lane]) for lane in lanes)
    with machine.open(plan, states, arena) as executor:
        executor.run(feeds)
        plain_s = [_seconds(executor, feeds)]
        is_compared = plain_s[0] < SHORT_S and len(used) == 1
        executor.run(feeds, traced=True)
        traces = [executor.run(feeds, traced=True) for _ in range(runs)]
        if is_compared:
            executor.run(feeds)
            plain_s += [_seconds(executor, feeds) for _ in range(PLAIN - 1)]
    found = [trace for trace in traces if trace is not None]
    for trace in found:
        note_trace(trace, names, works, seen)
    if is_compared:
        traced_s = statistics.median(trace.seconds for trace in found)
        more_s = (statistics.median(plain_s) - traced_s) / count
        _note_beside(seen, names, UNTRACED, more_s, steps, _step_s(found[-1]))
    return seen


def _seconds(executor: Executor, feeds: Mapping[str, Array]) -> float:
    begin = time.perf_counter()
    executor.run(feeds)
    return time.perf_counter() - begin


def note_trace(trace: Trace, names: str, works: Mapping[int, Work], seen: Seen) -> None:
    """Add what one traced run tells."""
    plan = trace.plan
    longest: dict[int, float] = {}
    ends = {span.step: span.end_s for span in trace.spans}
    last: dict[str, float] = {}
    gaps: dict[str, list[float]] = {}
    for span in trace.spans:  # in the order of the plan's steps, so each lane's are in order
        step = plan.steps[span.step]
        if step.kind == "node" and step.node in works:
            longest[step.node] = max(longest.get(step.node, 0.0), span.end_s - span.start_s)
        before = max((ends[wait] for wait in step.waits), default=0.0)
        if step.lane in last or step.waits:
            kind = gap_kind(step.lane, [plan.steps[wait].lane for wait in step.waits])
            gaps.setdefault(kind, []).append(
                max(0.0, span.start_s - max(before, last.get(step.lane, 0.0)))
            )
        last[step.lane] = span.end_s
    for index, seconds in longest.items():
        seen.works.setdefault(works[index], []).append(seconds)
    for name, each in _moved(trace).items():
        if len(each) >= OFTEN:
            _add(seen, name, statistics.median(each))
    step_s = _step_s(trace)
    for kind, each in gaps.items():
        _note_beside(seen, names, kind, statistics.fmean(each), len(each), step_s)
    busy_s = max(ends.values()) - min(span.start_s for span in trace.spans)
    _add(seen, ("run", names, ""), trace.seconds - busy_s)


def _step_s(trace: Trace) -> float:
    """Mean seconds of a step on the compute lanes of a run."""
    return statistics.fmean(
        span.end_s - span.start_s
        for span in trace.spans
        if ".compute" in trace.plan.steps[span.step].lane
    )


def _note_beside(
    seen: Seen, names: str, kind: str, seconds: float, count: int, step_s: float
) -> None:
    """Add what so many steps of a run took beside their work, each."""
    _add(seen, ("gap", names, kind), seconds)
    _add(seen, ("gaps", names, kind), float(count))
    _add(seen, ("step", names, kind), step_s)


def _moved(trace: Trace) -> dict[Series, list[float]]:
    """Seconds of the transfers of a run, by their way and bytes."""
    plan, found = trace.plan, dict[Series, list[float]]()
    nbytes = {value.name: value.spec.nbytes for value in plan.graph.values}
    for span in trace.spans:
        step = plan.steps[span.step]
        if step.kind in ("in", "out"):
            name = (step.kind, device_of(step.lane), str(nbytes[step.value]))
            found.setdefault(name, []).append(span.end_s - span.start_s)
    return found


def _add(seen: Seen, name: Series, value: float) -> None:
    seen.series.setdefault(name, []).append(value)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
