"""A plan: a schedule made executable. Steps per lane, waits between lanes, buffer slots.

Each node becomes one step for each of its parts. A lane runs its steps in order, so a step waits
only for steps of other lanes, and only for those that its lane does not know to be done already:
each step carries, per lane, how far that lane is sure to be when it starts (a vector clock), and
waits that follow from that are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import Kernel, Split, share
from aieflow.runtime.hazards import Hazards, Region
from aieflow.runtime.memory import MemoryPlan, plan_memory
from aieflow.runtime.schedule import Schedule, device_of

Kernels = Mapping[str, Mapping[str, Kernel]]  # device name -> op name -> kernel


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of a plan: a part of a node on a lane, and the steps elsewhere it waits for."""

    index: int
    lane: str
    node: int
    part: int
    parts: int
    waits: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Steps in program order; `lanes` holds each lane's program as indices into them."""

    graph: Graph
    schedule: Schedule
    memory: MemoryPlan
    steps: tuple[Step, ...]
    lanes: Mapping[str, tuple[int, ...]]
    workspace: Mapping[str, int]  # lane -> bytes that its largest step needs

    @property
    def edges(self) -> int:
        """Number of waits between lanes."""
        return sum(len(step.waits) for step in self.steps)

    @property
    def nbytes(self) -> int:
        """All memory that a run needs, workspaces included."""
        return self.memory.nbytes + sum(self.workspace.values())

    def node_of(self, step: Step) -> Node:
        """The node that a step does a part of."""
        return self.graph.nodes[step.node]


def compile_plan(graph: Graph, schedule: Schedule, kernels: Kernels) -> Plan:
    """Turn a schedule into a plan; raises PlanError where a device has no kernel for its node."""
    schedule.check(graph)
    splits = [
        _split(node, schedule.placements[index], kernels) for index, node in enumerate(graph.nodes)
    ]

    def may_share(index: int, output: int, source: int) -> bool:
        split = splits[index]
        divided = len(schedule.placements[index]) > 1
        return not divided or (output in split.outputs and source in split.inputs)

    memory = plan_memory(graph, may_share)
    steps = _steps(graph, schedule, memory, splits)
    lanes = {
        lane: tuple(step.index for step in steps if step.lane == lane) for lane in schedule.lanes
    }
    workspace = dict.fromkeys(schedule.lanes, 0)
    for step in steps:
        node = graph.nodes[step.node]
        needed = kernels[device_of(step.lane)][node.op.name].workspace(node)
        workspace[step.lane] = max(workspace[step.lane], needed)
    return Plan(graph, schedule, memory, steps, lanes, workspace)


def _split(node: Node, lanes: tuple[str, ...], kernels: Kernels) -> Split:
    devices = {device_of(lane) for lane in lanes}
    if len(devices) > 1:
        raise PlanError(f"{node.name}: divided over several devices: {', '.join(sorted(devices))}")
    (device,) = devices
    kernel = kernels.get(device, {}).get(node.op.name)
    if kernel is None:
        raise PlanError(
            f"{node.name}: no kernel of {node.op.name} on {device}: place it on another device"
        )
    split = kernel.split(node)
    if len(lanes) > split.units:
        raise PlanError(
            f"{node.name}: divides into {split.units} parts at most, placed on {len(lanes)} lanes"
        )
    return split


def _regions(
    values: Sequence[Value],
    divided: frozenset[int],
    split: Split,
    memory: MemoryPlan,
    part: int,
    parts: int,
) -> list[Region]:
    """The bytes that one part touches of each operand."""
    regions: list[Region] = []
    low, high = share(split.units, part, parts)
    for position, value in enumerate(values):
        slot = memory.slots[value]
        first, last = slot.offset, slot.offset + slot.nbytes
        if position in divided and parts > 1:
            if slot.nbytes % split.units:
                raise PlanError(
                    f"%{value.name}: {slot.nbytes} bytes do not divide into {split.units} units"
                )
            unit = slot.nbytes // split.units
            first, last = slot.offset + low * unit, slot.offset + high * unit
        regions.append(Region(slot.space, first, last))
    return regions


def _steps(
    graph: Graph, schedule: Schedule, memory: MemoryPlan, splits: Sequence[Split]
) -> tuple[Step, ...]:
    hazards = Hazards()
    steps: list[Step] = []
    position: dict[int, int] = {}  # step -> place in its lane's program
    progress = dict.fromkeys(schedule.lanes, 0)  # steps planned for each lane
    known: dict[str, dict[str, int]] = {
        lane: dict.fromkeys(schedule.lanes, 0) for lane in schedule.lanes
    }
    clocks: list[dict[str, int]] = []  # step -> how far each lane is when the step has ended
    for index, node in enumerate(graph.nodes):
        lanes, split = schedule.placements[index], splits[index]
        parts = len(lanes)
        reads = [
            _regions(node.inputs, split.inputs, split, memory, part, parts) for part in range(parts)
        ]
        writes = [
            _regions(node.outputs, split.outputs, split, memory, part, parts)
            for part in range(parts)
        ]
        befores = [hazards.before(r, w) for r, w in zip(reads, writes, strict=True)]
        numbers = list(range(len(steps), len(steps) + parts))
        for part, (lane, before) in enumerate(zip(lanes, befores, strict=True)):
            waits = _waits(before, lane, steps, position, known[lane], clocks)
            step = Step(numbers[part], lane, index, part, parts, waits)
            steps.append(step)
            position[step.index] = progress[lane]
            progress[lane] += 1
            known[lane][lane] = progress[lane]
            clocks.append(dict(known[lane]))
        hazards.record(node.name, reads, writes, numbers)
    return tuple(steps)


def _waits(
    before: set[int],
    lane: str,
    steps: Sequence[Step],
    position: Mapping[int, int],
    known: dict[str, int],
    clocks: Sequence[Mapping[str, int]],
) -> tuple[int, ...]:
    """The waits that are needed of `before`; brings what the lane knows up to date."""
    waits: list[int] = []
    for step in sorted(before, reverse=True):  # later steps know more, so they come first
        other = steps[step].lane
        if other == lane or position[step] < known[other]:
            continue
        waits.append(step)
        for name, place in clocks[step].items():
            known[name] = max(known[name], place)
    return tuple(sorted(waits))
