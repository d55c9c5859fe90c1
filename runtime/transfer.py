"""Which transfers a plan needs: on which sides each value is valid while its steps are laid out.

A value is written on the side where its node runs, the host's or a device's, and is then valid
there alone. A node that reads it elsewhere needs a transfer first, in on one copy lane or out on
the other; from device to device it goes by the host. A second reader on the same side finds the
value there. Whatever is written again is invalid everywhere else.

>>> sides = Sides({"x": frozenset({"host"})})
>>> sides.hops("x", "npu")
(Hop(device='npu', direction='in'),)
>>> sides.arrive("x", "npu", step=7)
>>> sides.hops("x", "npu"), sides.arrival("x", "npu")
((), 7)
>>> sides.write("x", "igpu")
>>> sides.hops("x", "npu")
(Hop(device='igpu', direction='out'), Hop(device='npu', direction='in'))

What is valid where when a run begins follows from what a run leaves behind, so that in a loop all
transfers are steps of the plan: a state that the graph updates is on the host and where it is
updated, any other is wherever it is read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aieflow.devices.base import Device, Direction
from aieflow.ops.graph import Graph

HOST = "host"
SAVE_LANE = "host.copy"  # copies states aside before they are updated


@dataclass(frozen=True, slots=True)
class Reach:
    """How a device's memory is reached from the host."""

    copy_lanes: tuple[str, str] | None = None  # in, out; None: the device works on the host side
    is_separate: bool = False  # operands lie in its own buffers


@dataclass(frozen=True, slots=True)
class Hop:
    """One transfer of a value."""

    device: str
    direction: Direction


def reaches(devices: Mapping[str, Device]) -> dict[str, Reach]:
    """How the memory of each device is reached."""
    return {name: Reach(device.copy_lanes, device.is_separate) for name, device in devices.items()}


def side_of(lane: str, reach: Mapping[str, Reach]) -> str:
    """The side on which nodes on a lane find their operands: `host` or a device's name."""
    device = lane.partition(".")[0]
    lanes = reach.get(device, Reach()).copy_lanes
    return HOST if lanes is None or lane in lanes else device


class Sides:
    """On which sides values, by name, are valid now, and by which step they got there."""

    def __init__(self, valid: Mapping[str, frozenset[str]]) -> None:
        self._valid = {name: set(sides) for name, sides in valid.items()}
        self._arrivals: dict[tuple[str, str], int] = {}

    def hops(self, name: str, side: str) -> tuple[Hop, ...]:
        """The transfers, in order, that make a value valid on `side`."""
        valid = self._valid[name]
        if side in valid:
            return ()
        if side == HOST:
            return (Hop(min(valid), "out"),)
        if HOST in valid:
            return (Hop(side, "in"),)
        return (Hop(min(valid), "out"), Hop(side, "in"))

    def arrive(self, name: str, side: str, step: int) -> None:
        """Note that `step` has made a value valid on `side` too."""
        self._valid[name].add(side)
        self._arrivals[name, side] = step

    def arrival(self, name: str, side: str) -> int | None:
        """The transfer that brought a value to `side`; None: it was written or lay there."""
        return self._arrivals.get((name, side))

    def write(self, name: str, side: str) -> None:
        """Note that a value was written on `side`."""
        self._valid[name] = {side}

    def valid(self, name: str) -> frozenset[str]:
        """The sides on which a value is valid."""
        return frozenset(self._valid[name])


def entry_sides(
    graph: Graph, placements: Sequence[tuple[str, ...]], reach: Mapping[str, Reach]
) -> dict[str, frozenset[str]]:
    """For each feed and state, by name, the sides on which it must be valid when a run begins."""
    home = graph.state_of
    written: dict[str, str] = {}
    read: dict[str, set[str]] = {value.name: set() for value in graph.states}
    for node, lanes in zip(graph.nodes, placements, strict=True):
        side = side_of(lanes[0], reach)
        for value in node.inputs:
            if value in home:
                read[home[value].name].add(side)
        for position in node.op.updates:
            written[home[node.outputs[position]].name] = side
    sides = {value.name: frozenset({HOST}) for value in graph.feeds}
    for name, readers in read.items():
        is_updated = name in written
        sides[name] = frozenset({HOST, written[name]} if is_updated else readers or {HOST})
    return sides


def separate_values(
    graph: Graph, placements: Sequence[tuple[str, ...]], reach: Mapping[str, Reach]
) -> dict[str, str]:
    """The device of each value, by name, that lies in a device's own memory.

    That is what a compute lane of such a device touches.
    """
    devices: dict[str, str] = {}
    for node, lanes in zip(graph.nodes, placements, strict=True):
        side = side_of(lanes[0], reach)
        if side != HOST and reach[side].is_separate:
            devices.update((value.name, side) for value in (*node.inputs, *node.outputs))
    for value, state in graph.state_of.items():
        if state.name in devices:
            devices[value.name] = devices[state.name]
    return devices


def updated_states(graph: Graph, except_for: Iterable[str] = ()) -> tuple[str, ...]:
    """The names of the states that the graph updates, in program order."""
    home, apart = graph.state_of, set(except_for)
    names = (
        home[node.outputs[position]].name for node in graph.nodes for position in node.op.updates
    )
    return tuple(name for name in dict.fromkeys(names) if name not in apart)
