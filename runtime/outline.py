"""What must be known of a plan to account for its runs, and when the steps of one run ran.

An outline has no memory, no kernel and no device, so it can be sent to another process; a recording
holds whole nanoseconds, so that sums of intervals are exact.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from aieflow.runtime.gap import cause_of
from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.schedule import device_of
from aieflow.runtime.trace import Trace, nanoseconds

Groups = Mapping[tuple[str, str], tuple[int, ...]]
COMPUTING = "nodes of "  # how what a lane waits for begins where it is no transfer or conversion


@dataclass(frozen=True, slots=True)
class OutlinedStep:
    """One step of a plan, as far as its time is concerned."""

    lane: str
    name: str
    work: str  # its op, "in", "out" or "save"
    cause: str  # what a lane that waits for it is said to wait for: see `runtime.gap`
    waits: tuple[int, ...]
    flops: int
    nbytes: int  # that must move at least; of a transfer, those of its value

    @property
    def device(self) -> str:
        """The device of its lane."""
        return device_of(self.lane)

    @property
    def is_data(self) -> bool:
        """True for transfers, conversions of operands, and copies of states."""
        return not self.cause.startswith(COMPUTING)


@dataclass(frozen=True)
class Outline:
    """The steps of a plan in their order, and each lane's program as indices into them."""

    steps: tuple[OutlinedStep, ...]
    lanes: Mapping[str, tuple[int, ...]]

    @cached_property
    def before(self) -> tuple[int | None, ...]:
        """For each step the one before it on its lane."""
        before: list[int | None] = [None] * len(self.steps)
        for program in self.lanes.values():
            for first, second in pairwise(program):
                before[second] = first
        return tuple(before)

    @cached_property
    def by_work(self) -> Groups:
        """The steps of each device and work."""
        return self._grouped([(step.device, step.work) for step in self.steps])

    @cached_property
    def by_name(self) -> Groups:
        """The steps of each device and name: the parts of a node."""
        return self._grouped([(step.device, step.name) for step in self.steps])

    def _grouped(self, keys: Sequence[tuple[str, str]]) -> Groups:
        groups: dict[tuple[str, str], list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append(index)
        return {key: tuple(indices) for key, indices in groups.items()}


@dataclass(frozen=True, slots=True)
class Recording:
    """When each step of a plan ran, by its index, in nanoseconds from the start of the run."""

    wall_ns: int
    starts_ns: tuple[int, ...]
    ends_ns: tuple[int, ...]

    def __post_init__(self) -> None:
        spans = list(zip(self.starts_ns, self.ends_ns, strict=True))
        for step, (start, end) in enumerate(spans):
            if not 0 <= start <= end <= self.wall_ns:
                raise ValueError(
                    f"step {step} ran from {start} to {end} ns in a run of {self.wall_ns} ns"
                )


def outline(plan: Plan, conversions: Collection[str] = ()) -> Outline:
    """The outline of a plan; `conversions` are ops that prepare operands, on any lane."""
    nbytes = {value.name: value.spec.nbytes for value in plan.graph.values}

    def outlined(step: Step) -> OutlinedStep:
        node = plan.node_of(step)
        is_node = step.kind == "node"
        return OutlinedStep(
            step.lane,
            plan.name_of(step),
            plan.work_of(step),
            cause_of(plan, step, conversions),
            step.waits,
            node.flops // step.parts if is_node else 0,
            node.nbytes // step.parts if is_node else nbytes[step.value],
        )

    return Outline(tuple(map(outlined, plan.steps)), plan.lanes)


def recording(trace: Trace) -> Recording:
    """When the steps of a traced or simulated run ran, to the nearest nanosecond."""
    spans = sorted(trace.spans, key=lambda span: span.step)
    starts = tuple(nanoseconds(span.start_s) for span in spans)
    ends = tuple(nanoseconds(span.end_s) for span in spans)
    return Recording(max(nanoseconds(trace.seconds), max(ends, default=0)), starts, ends)
