"""A plan: a schedule made executable. Steps per lane, waits between lanes, buffer slots.

Each node becomes one step for each of its parts, with the transfers before it that bring its
operands to its side of the memory (`runtime.transfer`). A lane runs its steps in order, so a step
waits only for steps of other lanes, and only for those that its lane does not know to be done
already: each step carries, per lane, how far that lane is sure to be when it starts (a vector
clock), and waits that follow from that are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import Kernels, Split, share
from aieflow.runtime.hazards import Hazards, Region
from aieflow.runtime.memory import MemoryPlan, plan_memory
from aieflow.runtime.saving import endangered
from aieflow.runtime.schedule import Schedule, device_of
from aieflow.runtime.transfer import (
    HOST,
    SAVE_LANE,
    Hop,
    Reach,
    Sides,
    entry_sides,
    separate_values,
    side_of,
    updated_states,
)

Kind = Literal["node", "in", "out", "save"]
HERE: Mapping[str, Reach] = {}  # every device works on the host side
GROUP = 24  # states that are brought to the host's side one after the other: of eight AdamW nodes


@dataclass(frozen=True, slots=True)
class Step:
    """One entry of a plan: what a lane does, and the steps elsewhere it waits for.

    `kind` is "node" for a part of a node; "in" and "out" for a transfer of `value` to a device's
    side or to the host's; "save" for a copy of the state `value` as it was before the run. Of
    those, `node` is the node on whose behalf they are done.
    """

    index: int
    lane: str
    node: int
    part: int
    parts: int
    waits: tuple[int, ...]
    kind: Kind = "node"
    value: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Steps in program order; `lanes` holds each lane's program as indices into them."""

    graph: Graph
    schedule: Schedule
    memory: MemoryPlan
    steps: tuple[Step, ...]
    lanes: Mapping[str, tuple[int, ...]]
    workspace: Mapping[str, int]  # lane -> bytes that its largest step needs
    entry: Mapping[str, frozenset[str]]  # state -> sides on which it is valid when a run begins
    exit: Mapping[str, frozenset[str]]  # and when it has ended
    derived: Mapping[str, Node]  # state -> the node that makes it anew from other states
    keeps_states: bool = False  # a run that a device fails in leaves its states as they were

    @property
    def edges(self) -> int:
        """Number of waits between lanes."""
        return sum(len(step.waits) for step in self.steps)

    @property
    def nbytes(self) -> int:
        """All memory that a run needs, workspaces included."""
        return self.memory.nbytes + sum(self.workspace.values())

    def node_of(self, step: Step) -> Node:
        """The node that a step does a part of, or is done for."""
        return self.graph.nodes[step.node]

    def home_of(self, value: Value) -> str:
        """The device that computes a value of a node; what is unpacked, its packed form."""
        producer = self.graph.producer[value]
        for operand in self.graph.nodes[producer].inputs:
            space = self.memory.slots[operand].space
            if space in self.memory.separate:
                return self.memory.separate[space][0]
        return device_of(self.schedule.placements[producer][0])

    def name_of(self, step: Step) -> str:
        """What a step is called: by its node, or by the value that it moves."""
        return self.node_of(step).name if step.kind == "node" else f"{step.kind} {step.value}"

    def work_of(self, step: Step) -> str:
        """What kind of work a step is: the op of its node, "in", "out" or "save"."""
        return self.node_of(step).op.name if step.kind == "node" else step.kind

    @property
    def saved(self) -> tuple[str, ...]:
        """The states of which a run keeps a copy until it has ended."""
        return tuple(step.value for step in self.steps if step.kind == "save")


def compile_plan(
    graph: Graph,
    schedule: Schedule,
    kernels: Kernels,
    reach: Mapping[str, Reach] = HERE,
    *,
    derived: Mapping[str, Node] | None = None,
    slots: int = 2,
    saves: bool = False,
    roomy: bool = False,
) -> Plan:
    """Turn a schedule into a plan; raises PlanError where a device has no kernel for its node.

    `reach` holds the devices that do not work on the host side, `slots` is the number of buffers
    for each streamed operand of separate memory. With `saves`, a run that fails leaves its states
    as they were: it keeps copies of those that need it until it has ended. With `roomy`, no lane
    waits for memory alone: see `runtime.memory`.
    """
    schedule.check(graph)
    placements = schedule.placements
    splits = [_split(node, placements[index], kernels) for index, node in enumerate(graph.nodes)]

    def may_share(index: int, output: int, source: int) -> bool:
        split = splits[index]
        divided = len(placements[index]) > 1
        by_rows = output in split.outputs and source in split.inputs
        return not divided or by_rows or source in split.alike

    apart = separate_values(graph, placements, reach)
    by_value = {value: apart[value.name] for value in graph.values if value.name in apart}
    renewed = updated_states(graph, except_for=apart)
    states = {value.name: value for value in graph.states}
    updated = [states[name] for name in renewed]
    saved = endangered(graph, placements, reach, updated) if saves else ()
    memory = plan_memory(graph, may_share, by_value, slots, saved, placements if roomy else None)
    layout = _Layout(graph, placements, memory, splits, reach)
    for value in saved:
        layout.save(value)
    for index in range(len(graph.nodes)):
        layout.add_node(index)
    for value in (*_in_groups([layout.last(states[name]) for name in renewed]), *graph.results):
        layout.bring(value, HOST, len(graph.nodes) - 1)
    steps = tuple(layout.steps)
    lanes = {
        lane: tuple(step.index for step in steps if step.lane == lane)
        for lane in dict.fromkeys((*schedule.lanes, *(step.lane for step in steps)))
    }
    workspace = dict.fromkeys(lanes, 0)
    for step in steps:
        if step.kind == "node":
            node = graph.nodes[step.node]
            needed = kernels[device_of(step.lane)][node.op.name].workspace(node)
            workspace[step.lane] = max(workspace[step.lane], needed)
    return Plan(
        graph,
        schedule,
        memory,
        steps,
        lanes,
        workspace,
        {value.name: layout.entry[value.name] for value in graph.states},
        {value.name: layout.sides.valid(layout.last(value).name) for value in graph.states},
        derived or {},
        saves,
    )


def _in_groups(values: Sequence[Value]) -> Iterator[Value]:
    """States that a run has updated, in the order in which they are brought to the host's side.

    A transfer that waits for a step of a lane knows the lane's earlier steps to be done. So with
    the last of a group first, a device is waited for once for each group, not for each value.
    """
    for first in range(0, len(values), GROUP):
        yield from reversed(values[first : first + GROUP])


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


class _Layout:
    """Lays out the steps of a plan, one after the other, with what each must wait for."""

    def __init__(
        self,
        graph: Graph,
        placements: Sequence[tuple[str, ...]],
        memory: MemoryPlan,
        splits: Sequence[Split],
        reach: Mapping[str, Reach],
    ) -> None:
        self.steps: list[Step] = []
        self.entry = entry_sides(graph, placements, reach)
        self.sides = Sides(self.entry)
        self._graph, self._placements, self._memory = graph, placements, memory
        self._splits, self._reach = splits, reach
        self._hazards = Hazards()
        self._position: list[int] = []  # step -> place in its lane's program
        self._known: dict[str, dict[str, int]] = {}  # lane -> how far it knows each lane to be
        self._clocks: list[dict[str, int]] = []  # step -> how far each lane is when it has ended
        self._last = {state: value for value, state in graph.state_of.items()}

    def last(self, state: Value) -> Value:
        """The value that a state has at the end of a run."""
        return self._last[state]

    def add_node(self, index: int) -> None:
        """A step for each part of a node, after the transfers that it needs."""
        node, lanes, split = self._graph.nodes[index], self._placements[index], self._splits[index]
        side, parts = side_of(lanes[0], self._reach), len(lanes)
        after: set[int] = set()
        for value in dict.fromkeys(node.inputs):
            self.bring(value, side, index)
            arrival = self.sides.arrival(value.name, side)
            if arrival is not None:
                after.add(arrival)
        memory = self._memory
        reads = [
            _regions(node.inputs, split.inputs, split, memory, part, parts) for part in range(parts)
        ]
        writes = [
            _regions(node.outputs, split.outputs, split, memory, part, parts)
            for part in range(parts)
        ]
        befores = [self._hazards.before(r, w) for r, w in zip(reads, writes, strict=True)]
        numbers = [
            self._append(lane, index, before | after, part, parts)
            for part, (lane, before) in enumerate(zip(lanes, befores, strict=True))
        ]
        self._hazards.record(node.name, reads, writes, numbers)
        for value in node.outputs:
            self.sides.write(value.name, side)

    def bring(self, value: Value, side: str, index: int) -> None:
        """The transfers that make a value valid on a side, for the sake of a node."""
        for hop in self.sides.hops(value.name, side):
            self._transfer(value, hop, index)

    def save(self, state: Value) -> None:
        """A copy of a state, before anything of the run changes it."""
        region = Region(state.name, 0, state.spec.nbytes)
        before = self._hazards.before([region], [])
        number = self._append(SAVE_LANE, 0, before, 0, 1, "save", state.name)
        self._hazards.record(f"save {number}", [[region]], [[]], [number])

    def _transfer(self, value: Value, hop: Hop, index: int) -> None:
        lanes = self._reach[hop.device].copy_lanes
        assert lanes is not None
        lane = lanes[0 if hop.direction == "in" else 1]
        slot = self._memory.slots[value]
        # Both sides are the same bytes: a transfer reads them, and whoever overwrites them waits.
        region = Region(slot.space, slot.offset, slot.offset + slot.nbytes)
        before = self._hazards.before([region], [])
        came = self.sides.arrival(value.name, HOST)
        if hop.direction == "in" and came is not None:
            before.add(came)
        number = self._append(lane, index, before, 0, 1, hop.direction, value.name)
        self._hazards.record(f"{hop.direction} {number}", [[region]], [[]], [number])
        self.sides.arrive(value.name, hop.device if hop.direction == "in" else HOST, number)

    def _append(
        self,
        lane: str,
        node: int,
        before: set[int],
        part: int,
        parts: int,
        kind: Kind = "node",
        value: str = "",
    ) -> int:
        known = self._known.setdefault(lane, {lane: 0})
        waits = _waits(before, lane, self.steps, self._position, known, self._clocks)
        number = len(self.steps)
        self.steps.append(Step(number, lane, node, part, parts, waits, kind, value))
        self._position.append(known[lane])
        known[lane] += 1
        self._clocks.append(dict(known))
        return number


def _waits(
    before: set[int],
    lane: str,
    steps: Sequence[Step],
    position: Sequence[int],
    known: dict[str, int],
    clocks: Sequence[Mapping[str, int]],
) -> tuple[int, ...]:
    """The waits that are needed of `before`; brings what the lane knows up to date."""
    waits: list[int] = []
    for step in sorted(before, reverse=True):  # later steps know more, so they come first
        other = steps[step].lane
        if other == lane or position[step] < known.get(other, 0):
            continue
        waits.append(step)
        for name, place in clocks[step].items():
            if place > known.get(name, 0):
                known[name] = place
    return tuple(sorted(waits))
