"""What each node of a graph needs at least on each device: the figures of `runtime.bounds`.

Four numbers of a node on a device, each the least that any division into parts gives:

- `span_s`: seconds from when its operands are there to the end of its first part to end;
- `lane_s`: seconds of all its parts together on the compute lanes of the device;
- `host_s`, `copy_s`: seconds that the host works for it besides, on its compute and copy lanes.

A chain (`ops.kernel.ChainKernel`: pack, product, unpack) is taken apart. Its span is its longest
path, where a value that one side writes and the other reads takes a transfer. Transfers are work of
copy lanes. So are conversions only where the host has no kernels for them: else they run on the
host's compute lanes, beside its own nodes (`runtime.expansion`). Packs are *forms*: who reads the
same operand in the same layout may share one, so a form is counted once, whoever needs it. Where
all operands of a pack are states the form is kept from run to run: it is renewed once if the graph
updates a state that it is made of, right after that, and costs nothing otherwise; a run finds it
there, so it is on no path.

Left out, since a plan may do without: saved states, and a second transfer of anything.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Protocol, TypeAlias

from aieflow.devices.base import Device
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import ChainKernel, HostKernel, Kernel, Kernels
from aieflow.runtime.transfer import SAVE_LANE, Reach, reaches

Form: TypeAlias = tuple[object, ...]  # what is packed, for which device, and how
NodeSeconds = Callable[[str, Node, int], float]  # device, node, parts -> of one part on one lane


class LeastCost(Protocol):
    """The costs that a bound is made of; a machine's cost model has them."""

    def node_s(self, device: str, node: Node, parts: int = 1) -> float:
        """Seconds of one of `parts` equal parts of a node on one lane, with nothing beside it."""
        ...

    def transfer_s(self, device: str, nbytes: float) -> float:
        """Seconds to bring bytes from the host's side to a device's, or back."""
        ...

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """How many times longer a device takes while others are busy, too."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """The least that a device needs for a node, however it is divided over its lanes."""

    span_s: float  # to the end of its first part
    lane_s: float  # of all its parts
    host_s: float = 0.0  # that the host's compute lanes work for it besides
    copy_s: float = 0.0  # that copy lanes work for it
    forms: tuple[Form, ...] = ()  # packed operands, which others may share
    side: str = ""  # where it finds operands and leaves results: a device; "": the host


# For each set of devices that are busy together, how many times longer each of them takes.
Slowdowns: TypeAlias = Mapping[frozenset[str], Mapping[str, float]]
Choices: TypeAlias = Sequence[Mapping[str, Choice]]  # of each node, by device


@dataclass(frozen=True, slots=True)
class FormNeed:
    """The least that the host needs to pack a form once, and to bring it in."""

    host_s: float = 0.0  # on its compute lanes
    copy_s: float = 0.0  # on copy lanes
    renewed_by: int | None = None  # the node that updates its source: it is made after that


@dataclass(frozen=True, slots=True)
class Exchange:
    """What passes between the host and other devices; an empty one counts nothing."""

    host: str = ""  # the device whose lanes the host's work shares
    copy_lanes: int = 0  # on which the host can work besides, one step at a time on each
    forms: Mapping[Form, FormNeed] = field(default_factory=dict)
    move_s: Mapping[tuple[str, str], float] = field(default_factory=dict)  # side, value -> seconds


@dataclass(frozen=True, slots=True)
class Needs:
    """All that a bound is made of."""

    choices: Choices
    lanes: Mapping[str, int]  # compute lanes of each device
    exchange: Exchange = field(default_factory=Exchange)
    slowdowns: Slowdowns = field(default_factory=dict)  # none: nobody slows down another
    undivided: Sequence[bool] = ()  # of each node: no device divides it; empty: unknown


def needs(graph: Graph, devices: Mapping[str, Device], cost: LeastCost) -> Needs:
    """The needs of a graph on devices, the host's first, by the costs of a machine."""
    kernels: Kernels = {name: device.kernels for name, device in devices.items()}
    lanes = {name: len(device.lanes) for name, device in devices.items()}
    reach = reaches(devices)
    finder = _Finder(graph, kernels, lanes, cost.node_s, reach, cost.transfer_s)
    choices = tuple(finder.choices(node) for node in graph.nodes)
    host = next(iter(devices))
    copy_lanes = {lane for each in reach.values() for lane in each.copy_lanes or ()}
    copying = len(copy_lanes | {SAVE_LANE} if copy_lanes else ())
    sides = {choice.side for each in choices for choice in each.values()} - {""}
    move_s = {
        (side, value.name): cost.transfer_s(side, value.spec.nbytes)
        for side in sorted(sides)
        for value in graph.values
    }
    exchange = Exchange(host, copying, finder.forms, move_s)
    undivided = tuple(_is_undivided(node, kernels) for node in graph.nodes)
    return Needs(choices, lanes, exchange, _slowdowns(tuple(devices), cost), undivided)


def _is_undivided(node: Node, kernels: Kernels) -> bool:
    """Whether every device that can do a node does it as a whole."""
    able = [each[node.op.name] for each in kernels.values() if node.op.name in each]
    return all(not isinstance(one, ChainKernel) and one.split(node).units == 1 for one in able)


def _slowdowns(devices: tuple[str, ...], cost: LeastCost) -> Slowdowns:
    """Of every set of devices."""
    sets = [busy for count in range(len(devices)) for busy in combinations(devices, count + 1)]
    return {
        frozenset(busy): {
            device: cost.slowdown(device, [other for other in busy if other != device])
            for device in busy
        }
        for busy in sets
    }


def node_choices(
    graph: Graph, kernels: Kernels, lanes: Mapping[str, int], node_s: NodeSeconds
) -> tuple[dict[str, Choice], ...]:
    """The choices of each node where transfers are free and memory is one."""
    finder = _Finder(graph, kernels, lanes, node_s, {}, _free)
    return tuple(finder.choices(node) for node in graph.nodes)


def _free(device: str, nbytes: float) -> float:
    return 0.0


class _Finder:
    """Finds the choices of nodes; notes the forms that they need."""

    def __init__(
        self,
        graph: Graph,
        kernels: Kernels,
        lanes: Mapping[str, int],
        node_s: NodeSeconds,
        reach: Mapping[str, Reach],
        transfer_s: Callable[[str, float], float],
    ) -> None:
        self.forms: dict[Form, FormNeed] = {}
        self._kernels, self._lanes, self._node_s = kernels, lanes, node_s
        self._reach, self._transfer_s = reach, transfer_s
        self._host = next(iter(kernels))
        self._states = set(graph.states)
        self._updater = {
            node.inputs[place]: index
            for index, node in enumerate(graph.nodes)
            for place in node.op.updates.values()
        }
        self._known: dict[tuple[object, ...], tuple[float, float]] = {}

    def choices(self, node: Node) -> dict[str, Choice]:
        """What a node needs on each device that has a kernel for it."""
        found: dict[str, Choice] = {}
        for device, available in self._kernels.items():
            kernel = available.get(node.op.name)
            if isinstance(kernel, ChainKernel):
                found[device] = self._chain(device, node, kernel)
            elif kernel is not None:
                has_side = self._reach.get(device, Reach()).copy_lanes is not None
                span_s, lane_s = self._least(device, node, kernel)
                found[device] = Choice(span_s, lane_s, side=device if has_side else "")
        return found

    def _least(self, device: str, node: Node, kernel: Kernel) -> tuple[float, float]:
        """Of the shortest part, and of all parts; nodes that are alike are asked for once."""
        attrs = tuple(sorted(node.attrs.items()))
        key = (device, node.op.name, node.input_specs, node.output_specs, attrs)
        if key not in self._known:
            most = min(self._lanes[device], kernel.split(node).units)
            seconds = {parts: self._node_s(device, node, parts) for parts in range(1, most + 1)}
            lane_s = min(parts * each_s for parts, each_s in seconds.items())
            self._known[key] = min(seconds.values()), lane_s
        return self._known[key]

    def _chain(self, device: str, node: Node, chain: ChainKernel) -> Choice:
        """Walks the links in order, with the end of each value from when the operands are there."""
        ends: dict[Value, float] = {}
        on_host: dict[Value, bool] = {}
        forms: dict[Form, None] = {}
        lane_s = host_s = copy_s = 0.0
        for link in chain.expand(node):
            kernel = self._kernels[device][link.op.name]
            is_host = isinstance(kernel, HostKernel)
            own = [value for value in link.inputs if value in ends]
            start_s = 0.0
            for value in own:
                hop_s = 0.0
                if on_host[value] != is_host:
                    hop_s = self._transfer_s(device, value.spec.nbytes)
                start_s = max(start_s, ends[value] + hop_s)
                if is_host and not on_host[value]:
                    copy_s += hop_s
            span_s, all_s = self._least(self._host if is_host else device, link, kernel)
            if not is_host:
                lane_s += all_s
            elif own and self._converts(link.op.name):
                host_s += all_s
            elif own:
                copy_s += all_s
            else:
                form = (device, link.op.name, link.inputs, tuple(sorted(link.attrs.items())))
                forms[form] = None
                if form not in self.forms:
                    self.forms[form] = self._form(device, link, chain, all_s)
                if self._is_kept(link, chain):  # and no way in is waited for
                    continue
            for value in link.outputs:
                ends[value], on_host[value] = start_s + span_s, is_host
        span_s = max(ends[value] for value in node.outputs)
        span_s = max(span_s, lane_s / self._lanes[device])
        return Choice(span_s, lane_s, host_s, copy_s, tuple(forms))

    def _is_kept(self, pack: Node, chain: ChainKernel) -> bool:
        return pack.op.name in chain.renewals and self._states.issuperset(pack.inputs)

    def _converts(self, op: str) -> bool:
        """Whether a conversion runs on the host's compute lanes, and not on a copy lane."""
        return op in self._kernels[self._host]

    def _form(self, device: str, pack: Node, chain: ChainKernel, pack_s: float) -> FormNeed:
        """What a form and its way in take in one run."""
        (packed,) = pack.outputs
        way_s = self._transfer_s(device, packed.spec.nbytes)
        op, updater = pack.op.name, None
        if self._is_kept(pack, chain):
            updater = self._updater.get(pack.inputs[0])
            if updater is None:
                return FormNeed()
            renewed = Value(f"{packed.name}'", packed.spec)
            again = chain.renewals[op]
            node = Node(f"re{pack.name}", again, (*pack.inputs, packed), (renewed,), pack.attrs)
            op, kernel = again.name, self._kernels[device].get(again.name)
            if kernel is None:
                return FormNeed()
            _, pack_s = self._least(self._host, node, kernel)
        if self._converts(op):
            return FormNeed(pack_s, way_s, updater)
        return FormNeed(0.0, pack_s + way_s, updater)
