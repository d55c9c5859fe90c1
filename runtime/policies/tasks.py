"""A graph as schedulers see it: flat tables of what each node takes on each device.

A node on a device is a few *pieces*, each on a *resource*: one piece on a compute lane, or on an
NPU packs, transfers, products and unpacks. They are read off the expansion and the lanes that a
plan would have, so that what a scheduler weighs is what a plan will contain. Nodes, devices, values
and resources are numbers here. A value is valid on sides (`runtime.transfer`); to bring it to
another takes hops.

What follows from where memory lies is left out: `runtime.plan` adds waits for it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from itertools import combinations

from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import Kernels
from aieflow.profiles.cost import CostModel
from aieflow.profiles.machine_cost import HOST as HOST_DEVICE
from aieflow.runtime.expansion import Expansion
from aieflow.runtime.schedule import Schedule, device_of
from aieflow.runtime.transfer import HOST as HOST_SIDE
from aieflow.runtime.transfer import SAVE_LANE, Reach, side_of, updated_states

HOST = 0  # the host's side; the side of device number d is d + 1
NONE = -1  # no slots
LayOut = Callable[[str], tuple[Expansion, Schedule]]  # of all nodes on a device that it can do
Hops = Mapping[tuple[int, int], tuple[tuple[int, float], ...]]  # from, to -> (resource, seconds)


@dataclass(frozen=True, slots=True)
class Resource:
    """So many lanes that serve the same pieces; `device` is the one that works, by number."""

    name: str
    device: int
    width: int | None  # None: as many as there are pieces
    watts: float = 0.0  # of a busy lane
    is_slots: bool = False  # buffers that are held, and no lanes


@dataclass(frozen=True, slots=True)
class Piece:
    """One step of a node on a device, on `parts` lanes of a resource at once.

    `name` is that of its node in the expanded graph; transfers have none. What runs in separate
    memory begins with a piece without work that takes a slot, once all operands are there.
    """

    resource: int
    seconds: float
    parts: int = 1
    after: tuple[int, ...] = ()  # earlier pieces of the same node
    reads: tuple[tuple[int, int], ...] = ()  # values from elsewhere, and the side to have them on
    name: str = ""
    holds: bool = False  # of slots: its share of them is free again when a later piece `frees` it
    frees: int = NONE


@dataclass(frozen=True, slots=True)
class Renewal:
    """A kept form of a state: the node that updates the state, and the piece that renews it."""

    value: int
    node: int
    piece: Piece


@dataclass(frozen=True, slots=True)
class Save:
    """A copy of a state before its update, and the nodes before that, one bit each.

    It is made where another node that may fail is left by then: see `runtime.saving`.
    """

    node: int  # that updates the state
    piece: Piece
    earlier: int


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Tasks:
    """What a scheduler knows of one graph on some devices; nodes are in program order.

    `pieces[node][device]` is empty where a device cannot do a node. `outputs` and `inputs` are
    values, `follows` the nodes that a node must come after without reading of them.
    """

    name: str
    devices: tuple[str, ...]
    resources: tuple[Resource, ...]
    pieces: tuple[tuple[tuple[Piece, ...], ...], ...]
    sides: tuple[int, ...]  # of a device's results
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    follows: tuple[tuple[int, ...], ...]
    hops: tuple[Hops, ...]  # of each value
    anywhere: frozenset[int]  # values that lie wherever they are read when a run begins
    updated: Mapping[int, int]  # state, as it is when a run begins -> the node that updates it
    ends: tuple[int, ...]  # values that must be on the host's side in the end
    renewals: tuple[Renewal, ...]
    saves: tuple[Save, ...]
    remote: frozenset[int]  # devices that may fail
    labels: tuple[tuple[str, ...], ...]  # like nodes share labels
    slowdowns: tuple[tuple[float, ...], ...]  # by the set of busy devices, as bits, and device
    idle_w: float

    @property
    def count(self) -> int:
        """The number of nodes."""
        return len(self.pieces)

    def able(self, node: int) -> tuple[int, ...]:
        """The devices that can do a node."""
        return tuple(device for device, each in enumerate(self.pieces[node]) if each)

    def named(self, homes: Sequence[int]) -> tuple[str, ...]:
        """The names of the devices of each node."""
        return tuple(self.devices[device] for device in homes)

    def fingerprint(self) -> str:
        """A hash of everything that a scheduler can see here."""
        digest = sha256()
        for field in (each.name for each in fields(self)):
            held = getattr(self, field)
            if isinstance(held, Mapping):
                held = sorted(held.items())
            elif isinstance(held, frozenset):
                held = sorted(held)
            elif field == "hops":
                held = [sorted(hops.items()) for hops in held]
            digest.update(repr(held).encode())
        return digest.hexdigest()


def tasks_of(
    graph: Graph,
    kernels: Kernels,
    lanes: Mapping[str, tuple[str, ...]],
    reach: Mapping[str, Reach],
    cost: CostModel,
    lay_out: LayOut,
    slots: int = 3,
) -> Tasks:
    """The tables of a graph on devices; `lanes` are their compute lanes, the host's device first.

    `lay_out` gives the expansion and the schedule of all nodes on a device, or where they can be
    done, `slots` is the number of buffers for each operand of separate memory. Raises PlanError for
    a node that no device can do.
    """
    return _Tables(graph, kernels, lanes, reach, cost, slots).tasks(lay_out)


class _Tables:
    """Gathers the tables."""

    def __init__(
        self,
        graph: Graph,
        kernels: Kernels,
        lanes: Mapping[str, tuple[str, ...]],
        reach: Mapping[str, Reach],
        cost: CostModel,
        slots: int,
    ) -> None:
        self.graph, self.kernels, self.reach, self.cost = graph, kernels, reach, cost
        self.devices = tuple(lanes)
        self.number = {name: place for place, name in enumerate(self.devices)}
        self.resources: list[Resource] = []
        self.of_lane: dict[str, int] = {}
        for name, names in lanes.items():
            self._resource(names, name, cost.lane_w(name))
        for name in lanes:
            for lane in reach[name].copy_lanes or ():
                self._resource((lane,), HOST_DEVICE, cost.lane_w(HOST_DEVICE))
        self._resource((SAVE_LANE,), HOST_DEVICE, cost.lane_w(HOST_DEVICE))
        self.slots_on: dict[int, int] = {}  # compute lanes of separate memory -> slots
        for name in lanes:
            if reach[name].is_separate:
                self.slots_on[self.of_lane[lanes[name][0]]] = len(self.resources)
                self.resources.append(Resource(f"{name}.slots", 0, slots, is_slots=True))
        self.values: dict[str, int] = {value.name: n for n, value in enumerate(graph.values)}
        self.hops_of: dict[int, Hops] = {}  # by size
        self.hops = [self._hops(value.spec.nbytes) for value in graph.values]
        self.renewals: dict[int, Renewal] = {}

    def tasks(self, lay_out: LayOut) -> Tasks:
        """One expansion for each device: every node there that it can do."""
        graph, cost = self.graph, self.cost
        pieces: list[list[tuple[Piece, ...]]] = [[] for _ in graph.nodes]
        for name in self.devices:
            found = self._pieces(name, *lay_out(name))
            for row, node, own in zip(pieces, graph.nodes, found, strict=True):
                row.append(own if node.op.name in self.kernels[name] else ())
        states = updated_states(graph)
        updater = {
            self.values[node.inputs[place].name]: number
            for number, node in enumerate(graph.nodes)
            for place in node.op.updates.values()
        }
        last = {state: value for value, state in graph.state_of.items()}
        results = (*(last[each] for each in graph.states if each.name in states), *graph.results)
        return Tasks(
            name=graph.name,
            devices=self.devices,
            resources=tuple(self.resources),
            pieces=tuple(tuple(each) for each in pieces),
            sides=tuple(self._side(name) for name in self.devices),
            inputs=tuple(self._numbers(node.inputs) for node in graph.nodes),
            outputs=tuple(self._numbers(node.outputs) for node in graph.nodes),
            follows=self._follows(updater),
            hops=tuple(self.hops),
            anywhere=self._anywhere(set(states)),
            updated={value: each for value, each in updater.items() if self._is_state(value)},
            ends=self._numbers(results),
            renewals=tuple(self.renewals.values()),
            saves=self._saves(states, updater),
            remote=frozenset(
                self.number[name]
                for name in self.devices
                if self.reach[name].copy_lanes is not None
            ),
            labels=tuple(labels_of(node.name, node.op.name) for node in graph.nodes),
            slowdowns=slowdowns(self.devices, cost.slowdown),
            idle_w=cost.idle_w,
        )

    def _resource(self, lanes: tuple[str, ...], device: str, watts: float) -> None:
        for lane in lanes:
            self.of_lane[lane] = len(self.resources)
        worker = self.number.get(device, 0)
        self.resources.append(Resource(lanes[0], worker, len(lanes), watts))

    def _is_state(self, value: int) -> bool:
        first = len(self.graph.feeds)
        return first <= value < first + len(self.graph.states)

    def _numbers(self, values: Iterable[Value]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self.values[value.name] for value in values))

    def side_at(self, lane: str) -> int:
        """The side on which a node on a lane finds its operands."""
        name = side_of(lane, self.reach)
        return HOST if name == HOST_SIDE else self.number[name] + 1

    def _side(self, device: str) -> int:
        """Where a device's results lie for others: what has separate memory gives them back."""
        reach = self.reach[device]
        is_host = reach.copy_lanes is None or reach.is_separate
        return HOST if is_host else self.number[device] + 1

    def _hops(self, nbytes: int) -> Hops:
        """How a value gets from side to side: by the host's."""
        found = self.hops_of.get(nbytes)
        if found is not None:
            return found
        hops: dict[tuple[int, int], tuple[tuple[int, float], ...]] = {}
        for name in self.devices:
            lanes = self.reach[name].copy_lanes
            if lanes is not None:
                side, seconds = self.number[name] + 1, self.cost.transfer_s(name, nbytes)
                hops[HOST, side] = ((self.of_lane[lanes[0]], seconds),)
                hops[side, HOST] = ((self.of_lane[lanes[1]], seconds),)
        ways = [(out, into) for out in hops for into in hops if out[1] == HOST == into[0]]
        through = {(a, b): hops[a, HOST] + hops[HOST, b] for (a, _), (_, b) in ways if a != b}
        self.hops_of[nbytes] = hops | through
        return self.hops_of[nbytes]

    def _pieces(
        self, device: str, expansion: Expansion, schedule: Schedule
    ) -> list[tuple[Piece, ...]]:
        """The pieces of each node of the graph; notes forms of states that are kept."""
        for name, pack in expansion.derived.items():
            if name not in self.values:
                self.values[name] = len(self.hops)
                self.hops.append(self._hops(pack.outputs[0].spec.nbytes))
        kept = {v for v, s in expansion.graph.state_of.items() if s.name in expansion.derived}
        found: list[tuple[Piece, ...]] = []
        chain = _Chain(self)
        nodes = self.graph.nodes
        for node, lanes in zip(expansion.graph.nodes, schedule.placements, strict=True):
            if node.outputs[0] in kept:  # a form is renewed, after the node that has come before
                renewed = _Chain(self)
                renewed.add(node, lanes, apart=kept)
                form = self.values[expansion.graph.state_of[node.outputs[0]].name]
                self.renewals[form] = Renewal(form, len(found) - 1, renewed.pieces[0])
                continue
            chain.add(node, lanes)
            chain.end(lanes)
            if node.outputs == nodes[len(found)].outputs:
                found.append(tuple(chain.pieces))
                chain = _Chain(self)
        return found

    def _follows(self, updater: Mapping[int, int]) -> tuple[tuple[int, ...], ...]:
        """An update comes after all other readers of the old value."""
        follows: list[tuple[int, ...]] = [()] * len(self.graph.nodes)
        readers: dict[int, list[int]] = {}
        for number, node in enumerate(self.graph.nodes):
            for value in self._numbers(node.inputs):
                if value in updater and updater[value] != number:
                    readers.setdefault(value, []).append(number)
        for value, before in readers.items():
            follows[updater[value]] = tuple(sorted({*follows[updater[value]], *before}))
        return tuple(follows)

    def _anywhere(self, updated: set[str]) -> frozenset[int]:
        """States that the graph leaves as they are, and forms of such."""
        states = {self.values[v.name] for v in self.graph.states if v.name not in updated}
        forms = set(range(len(self.graph.values), len(self.hops)))
        return frozenset(states | (forms - set(self.renewals)))

    def _saves(self, states: Sequence[str], updater: Mapping[int, int]) -> tuple[Save, ...]:
        nbytes = {value.name: value.spec.nbytes for value in self.graph.states}
        lane = self.of_lane[SAVE_LANE]
        producer = self.graph.producer
        earlier: list[int] = []
        for node in self.graph.nodes:
            bits = 0
            for value in node.inputs:
                if value in producer:
                    bits |= earlier[producer[value]] | 1 << producer[value]
            earlier.append(bits)
        nodes = [updater[self.values[name]] for name in states]
        return tuple(
            Save(node, Piece(lane, self.cost.copy_s(nbytes[name])), earlier[node])
            for name, node in zip(states, nodes, strict=True)
        )


class _Chain:
    """The pieces of one node on one device, in order."""

    def __init__(self, tables: _Tables) -> None:
        self.pieces: list[Piece] = []
        self._tables = tables
        self._made: dict[tuple[str, int], int] = {}  # value, side -> the piece that gives it
        self._first = 0  # of the pieces that share a slot

    def add(self, node: Node, lanes: tuple[str, ...], apart: Iterable[Value] = ()) -> None:
        """One node of the expanded graph, on its lanes, after the transfers it needs."""
        tables = self._tables
        side = tables.side_at(lanes[0])
        after: list[int] = []
        reads: list[tuple[int, int]] = []
        for value in dict.fromkeys(node.inputs):
            sides = [s for v, s in self._made if v == value.name]
            if sides:
                after.append(self._brought(value, sides, side))
            elif value not in apart and value.name in tables.values:
                reads.append((tables.values[value.name], side))
        worker = HOST_DEVICE if ".copy" in lanes[0] else device_of(lanes[0])
        seconds = tables.cost.node_s(worker, node, len(lanes))
        for value in node.outputs:
            self._made[value.name, side] = len(self.pieces)
        resource, parts = tables.of_lane[lanes[0]], len(lanes)
        self.pieces.append(Piece(resource, seconds, parts, tuple(after), tuple(reads), node.name))

    def end(self, lanes: tuple[str, ...]) -> None:
        """Let the pieces since the last end share a slot, once separate memory gave a result back.

        A piece that takes the slot goes before them: it has all operands to wait for, so that a
        slot is held for as short as may be, and nobody who holds one waits for others who do. A
        lane works in the order in which slots are taken, as a plan has them used in turn.
        """
        tables, first = self._tables, self._first
        own = self.pieces[first:]
        slots = {tables.slots_on[p.resource] for p in own if p.resource in tables.slots_on}
        if not slots or tables.side_at(lanes[0]) != HOST:
            return
        (slot,) = slots
        self._made = {key: place + (place >= first) for key, place in self._made.items()}
        reads = dict.fromkeys(read for piece in own for read in piece.reads if read[1] == HOST)
        before = tuple(place for place, piece in enumerate(self.pieces) if piece.holds)
        taking = Piece(slot, 0.0, after=before[-1:], reads=tuple(reads), holds=True)
        turns = {each.resource: place for place, each in enumerate(self.pieces[:first])}
        for place, piece in enumerate(own):
            if piece.resource in tables.slots_on and piece.resource in turns:
                own[place] = replace(piece, after=(*piece.after, turns[piece.resource]))
        self.pieces[first:] = [taking, *(_behind(piece, first) for piece in own)]
        self.pieces[-1] = replace(self.pieces[-1], frees=slot)
        self._first = len(self.pieces)

    def _brought(self, value: Value, sides: list[int], side: int) -> int:
        """The piece after which a value of the chain is on a side; adds transfers."""
        if side not in sides:
            last = self._made[value.name, sides[0]]
            for resource, seconds in self._tables._hops(value.spec.nbytes)[sides[0], side]:
                self.pieces.append(Piece(resource, seconds, 1, (last,)))
                last = len(self.pieces) - 1
            self._made[value.name, side] = last
        return self._made[value.name, side]


def _behind(piece: Piece, place: int) -> Piece:
    """A piece of a chain in which another was put at `place`, for which it waits."""
    after = {place, *(other + (other >= place) for other in piece.after)}
    return replace(piece, after=tuple(sorted(after)))


def predecessors(tasks: Tasks) -> tuple[tuple[int, ...], ...]:
    """For each node those that must come before it, whether it reads of them or not."""
    writer = {value: node for node, values in enumerate(tasks.outputs) for value in values}
    return tuple(
        tuple(sorted({*(writer[value] for value in values if value in writer), *follows}))
        for values, follows in zip(tasks.inputs, tasks.follows, strict=True)
    )


def slowdowns(
    devices: Sequence[str], slowdown: Callable[[str, Sequence[str]], float]
) -> tuple[tuple[float, ...], ...]:
    """How many times longer each device takes, for each set of busy devices, written as bits."""
    table: list[tuple[float, ...]] = [()] * (1 << len(devices))
    for count in range(len(devices) + 1):
        for busy in combinations(range(len(devices)), count):
            names = [devices[place] for place in busy]
            table[sum(1 << place for place in busy)] = tuple(
                slowdown(name, [other for other in names if other != name]) for name in devices
            )
    return tuple(table)


def labels_of(name: str, op: str) -> tuple[str, ...]:
    """What a node has in common with others: its op; its role; that with its layer, or its copy.

    >>> labels_of("d:h.11.attn#2", "gelu")
    ('gelu', 'gelu d:h.*.attn', 'gelu d:h.*.attn#2', 'gelu d:h.11.attn', '#2')
    """
    plain, mark, copy = name.partition("#")
    role = f"{op} {'.'.join('*' if word.isdigit() else word for word in plain.split('.'))}"
    return (op, role, f"{role}#{copy or 1}", f"{op} {plain}", f"{mark or '#'}{copy or 1}")
