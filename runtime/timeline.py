"""Runs of plans on one time axis: slices on lanes, arrows between lanes, counters.

A timeline is what every kind of trace file holds (`runtime.chrome_trace`, `runtime.perfetto_trace`,
`runtime.trace_database`), so that all hold the same. Times are whole nanoseconds from the start of
the first run: rounding keeps their order, and makes no overlap of steps that follow each other.

A slice is one step of one run. An arrow goes from a step to one of another lane that waits for it;
it names the values that the first defines or moves and the second reads, and is called "memory"
where there is none: then the second only may not overwrite too early. Waits that follow from others
have no arrow.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aieflow.ops.errors import ProfileError
from aieflow.ops.graph import Value
from aieflow.ops.kernel import Kernels
from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.schedule import device_of
from aieflow.runtime.step_cost import StepCost, StepWork
from aieflow.runtime.trace import Trace, nanoseconds

MEMORY = "memory"  # an arrow that carries no value: bytes are used anew
NO_KERNELS: Kernels = {}


@dataclass(frozen=True, slots=True)
class Recorded:
    """One run of a plan: its number (a training step's), when it began, and what it left."""

    number: int
    start_s: float
    trace: Trace


@dataclass(frozen=True, slots=True)
class Run:
    """One run on the timeline."""

    number: int
    start_ns: int
    end_ns: int
    graph: str
    policy: str


@dataclass(frozen=True, slots=True)
class Slice:
    """One step of one run. Specs are texts such as `float32[2, 8]`.

    FLOPs and bytes are the part's share; of transfers and saved states the bytes moved.
    """

    run: int  # place in the timeline's runs
    step: int  # index in its plan
    lane: str
    name: str
    op: str  # or "in", "out", "save"
    part: int  # from 0
    parts: int
    start_ns: int
    end_ns: int
    executor: str
    kernel: str  # "" where it is not known
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flops: int
    nbytes: int
    predicted_ns: int | None  # by a cost model, beside nothing else; None without one

    @property
    def device(self) -> str:
        """The device that the lane belongs to."""
        return device_of(self.lane)

    @property
    def duration_ns(self) -> int:
        """How long it took."""
        return self.end_ns - self.start_ns

    @property
    def error(self) -> float | None:
        """The prediction's share too much (or, below 0, too little); None without one."""
        if self.predicted_ns is None or not self.duration_ns:
            return None
        return self.predicted_ns / self.duration_ns - 1


@dataclass(frozen=True, slots=True)
class Arrow:
    """A wait of one slice for another, by their places in the timeline."""

    source: int
    target: int
    values: str  # names with commas, or "memory"
    nbytes: int


@dataclass(frozen=True, slots=True)
class Counter:
    """A quantity over time: it has each value from its time (ns) until the next."""

    name: str
    unit: str  # "steps", "bytes" or "watts"
    samples: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Runs in the order of time; slices by run and step."""

    runs: tuple[Run, ...]
    lanes: tuple[str, ...]
    slices: tuple[Slice, ...]
    arrows: tuple[Arrow, ...]
    counters: tuple[Counter, ...] = ()

    @property
    def executors(self) -> tuple[str, ...]:
        """The identities of all that executed steps; they say what is simulated or emulated."""
        return tuple(dict.fromkeys(each.executor for each in self.slices))


def timeline(
    recorded: Sequence[Recorded], cost: StepCost | None = None, kernels: Kernels = NO_KERNELS
) -> Timeline:
    """The runs on one time axis, without counters (`runtime.timeline_counters` adds them).

    With `cost`, slices carry what it predicts, unless it knows too little of a plan.
    """
    first_s = min((each.start_s for each in recorded), default=0.0)
    # A run that loses a device has another plan from then on, with other lanes.
    lanes = dict.fromkeys(lane for each in recorded for lane in each.trace.plan.lanes)
    runs: list[Run] = []
    slices: list[Slice] = []
    arrows: list[Arrow] = []
    predictions: dict[int, tuple[StepWork, ...] | None] = {}
    for place, each in enumerate(recorded):
        plan, start_s = each.trace.plan, each.start_s - first_s
        if id(plan) not in predictions:
            predictions[id(plan)] = works_of(plan, cost)
        begin_ns, end_ns = nanoseconds(start_s), nanoseconds(start_s + each.trace.seconds)
        runs.append(Run(each.number, begin_ns, end_ns, plan.graph.name, plan.schedule.policy))
        place_of = {span.step: len(slices) + i for i, span in enumerate(each.trace.spans)}
        slices += _slices(place, start_s, each.trace, predictions[id(plan)], kernels)
        arrows += _arrows(plan, place_of)
    return Timeline(tuple(runs), tuple(lanes), tuple(slices), tuple(arrows))


def works_of(plan: Plan, cost: StepCost | None) -> tuple[StepWork, ...] | None:
    """What a cost model says of each step; None without one, or where it knows too little."""
    if cost is None:
        return None
    try:
        return cost.of(plan)
    except ProfileError:
        return None


def arguments(timeline: Timeline, each: Slice) -> dict[str, str | int | float]:
    """What a viewer shows of a slice, by the names of docs/trace-files.md; without the unknown."""
    shown: dict[str, str | int | float] = {
        "training_step": timeline.runs[each.run].number,
        "step": each.step,
        "op": each.op,
        "part": f"{each.part + 1} of {each.parts}",
        "inputs": "; ".join(each.inputs),
        "outputs": "; ".join(each.outputs),
        "flops": each.flops,
        "nbytes": each.nbytes,
        "executor": each.executor,
    }
    if each.kernel:
        shown["kernel"] = each.kernel
    if each.predicted_ns is not None:
        shown["predicted_us"] = each.predicted_ns / 1e3
    if each.error is not None:
        shown["prediction_error"] = round(each.error, 4)
    return shown


def _slices(
    run: int,
    start_s: float,
    trace: Trace,
    works: tuple[StepWork, ...] | None,
    kernels: Kernels,
) -> Iterable[Slice]:
    plan = trace.plan
    specs = {value.name: value.spec for value in plan.graph.values}
    for span in trace.spans:
        step, node = plan.steps[span.step], plan.node_of(plan.steps[span.step])
        kernel, flops = "", 0
        inputs: tuple[str, ...] = ()
        if step.kind == "node":
            known = kernels.get(device_of(step.lane), {}).get(node.op.name)
            kernel = "" if known is None else known.name
            inputs = tuple(map(str, node.input_specs))
            outputs = tuple(map(str, node.output_specs))
            flops, nbytes = node.flops // step.parts, node.nbytes // step.parts
        else:
            outputs = (str(specs[step.value]),)  # of a transfer: what arrives
            nbytes = specs[step.value].nbytes
        yield Slice(
            run=run,
            step=step.index,
            lane=span.lane,
            name=plan.name_of(step),
            op=plan.work_of(step),
            part=step.part,
            parts=step.parts,
            start_ns=nanoseconds(start_s + span.start_s),
            end_ns=nanoseconds(start_s + span.end_s),
            executor=span.executor,
            kernel=kernel,
            inputs=inputs,
            outputs=outputs,
            flops=flops,
            nbytes=nbytes,
            predicted_ns=None if works is None else nanoseconds(works[step.index].seconds),
        )


def _arrows(plan: Plan, place_of: Mapping[int, int]) -> Iterable[Arrow]:
    values = {value.name: value for value in plan.graph.values}
    for step in plan.steps:
        for wait in step.waits:
            if step.index in place_of and wait in place_of:
                carried = _carried(plan, plan.steps[wait], step, values)
                yield Arrow(
                    place_of[wait],
                    place_of[step.index],
                    ", ".join(value.name for value in carried) or MEMORY,
                    sum(value.spec.nbytes for value in carried),
                )


def _carried(
    plan: Plan, source: Step, target: Step, values: Mapping[str, Value]
) -> tuple[Value, ...]:
    """The values that one step defines or moves and another reads, moves or keeps."""
    given, taken = (
        plan.node_of(step).outputs if step is source else plan.node_of(step).inputs
        for step in (source, target)
    )
    if source.kind != "node":
        given = (values[source.value],) if source.kind != "save" else ()
    if target.kind != "node":
        taken = (values[target.value],)
    return tuple(value for value in given if value in taken)
