"""Plans memory: every value that lives within a run gets a place.

Values in host memory share one arena. Liveness is read off program order: a value is live from the
node that defines it to the last node that reads it (a result to the end). Values that take over an
input's memory share its *block*. Blocks are placed largest first, each at the lowest offset that is
free during its whole life (greedy by size: Pisarchyk and Lee 2020, section 5.2). Lanes that run
ahead are held back by the waits that `runtime.plan` derives from the places. A *roomy* arena has no
waits but those that the work asks for: bytes are used again only by who comes after all of their
users anyway (`runtime.precedence`), so no device waits for another's memory. On one device that
makes no difference; on several it takes the more bytes the more independent their work is.

Values in a device's separate memory (packed operands of the NPU) lie in persistent buffers, a few
*slots* for each operand of its kernels, used in turn: while one is computed, the next is filled.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.runtime.precedence import Precedence

ALIGNMENT = 256  # bytes: what OpenCL devices ask of sub-buffers
MayShare = Callable[[int, int, int], bool]  # (node index, output, input)
Pairs = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place: `space` is the arena, a device's slot, or the name of a state or feed."""

    space: str
    offset: int
    nbytes: int


ARENA = "arena"
# Packed: what lies in the devices' own memory. Saved: copies of states, until they are updated.
ACCOUNTS = (
    *("parameters", "moments", "cache", "feeds", "gradients", "activations"),
    *("packed", "saved"),
)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Where every value lies, and what that adds up to, in bytes."""

    slots: Mapping[Value, Slot]
    separate: Mapping[str, tuple[str, int]]  # a device's spaces: device and bytes
    arena_nbytes: int
    live_nbytes: int  # the most that is live at once; the arena is at least that
    accounts: Mapping[str, int]  # of `ACCOUNTS`

    @property
    def nbytes(self) -> int:
        """All memory that the plan needs, workspaces apart."""
        return sum(self.accounts.values())


@dataclass(slots=True)
class _Block:
    """Values that share memory, live over the nodes first … last."""

    values: list[Value]
    nbytes: int
    first: int
    last: int


def plan_memory(
    graph: Graph,
    may_share: MayShare,
    separate: Mapping[Value, str] | None = None,
    slots_each: int = 2,
    saved: Iterable[Value] = (),
    roomy_on: Sequence[tuple[str, ...]] | None = None,
) -> MemoryPlan:
    """Give every value a slot; `may_share` says which outputs may take over an input's memory.

    `separate` names the device of each value that lies in a device's own memory; raises PlanError
    where `slots_each` for each operand are too few. The states `saved` take their memory twice.
    With `roomy_on`, the lanes of each node, the arena is roomy.
    """
    precedence = None if roomy_on is None else Precedence(graph, roomy_on)
    apart = separate or {}
    slots: dict[Value, Slot] = {}
    spaces = _rotate(graph, apart, slots_each, slots)
    accounts: dict[str, int] = dict.fromkeys(ACCOUNTS, 0)
    for value in (*graph.feeds, *graph.states):
        slots[value] = Slot(value.name, 0, value.spec.nbytes)
        if value in apart:
            spaces[value.name] = (apart[value], value.spec.nbytes)
            continue
        account = {"parameter": "parameters", "moment": "moments", "feed": "feeds"}
        accounts[account.get(value.role, "cache")] += value.spec.nbytes
    sharing = may_share if precedence is None else _unhindered(graph, may_share, precedence)
    blocks = _blocks(graph, sharing, apart)
    offsets = _place(blocks, None if precedence is None else _ordered(graph, blocks, precedence))
    for block, offset in zip(blocks, offsets, strict=True):
        for value in block.values:
            slots[value] = Slot(ARENA, offset, value.spec.nbytes)
    for value, state in graph.state_of.items():
        slots[value] = slots[state]
    arena = max((o + b.nbytes for b, o in zip(blocks, offsets, strict=True)), default=0)
    live, gradients = _peak(blocks, len(graph.nodes))
    accounts["gradients"] = gradients
    accounts["activations"] = arena - gradients
    accounts["packed"] = sum(nbytes for _, nbytes in spaces.values())
    accounts["saved"] = sum(value.spec.nbytes for value in saved)
    return MemoryPlan(slots, spaces, arena, live, accounts)


def rings(graph: Graph, separate: Mapping[Value, str]) -> dict[str, list[Value]]:
    """For each streamed operand of a device's kernels, by its name, the values that take turns.

    They are in the order in which the device's nodes touch them first.
    """
    found: dict[str, list[Value]] = {}
    seen = set(graph.state_of)
    for node in graph.nodes:
        if any(value not in separate for value in (*node.inputs, *node.outputs)):
            continue  # a pack or unpack: the node at the other end decides
        for kind, values in (("in", node.inputs), ("out", node.outputs)):
            for position, value in enumerate(values):
                if value not in seen:
                    found.setdefault(f"{separate[value]}.{kind}{position}", []).append(value)
                    seen.add(value)
    return found


def _rotate(
    graph: Graph, separate: Mapping[Value, str], slots_each: int, slots: dict[Value, Slot]
) -> dict[str, tuple[str, int]]:
    """Give the values of a run in separate memory their slots; return the spaces."""
    spaces: dict[str, tuple[str, int]] = {}
    for ring, members in rings(graph, separate).items():
        for number, value in enumerate(members):
            space = f"{ring}.{number % slots_each}"
            slots[value] = Slot(space, 0, value.spec.nbytes)
            _, nbytes = spaces.get(space, ("", 0))
            spaces[space] = (separate[value], max(nbytes, value.spec.nbytes))
            following = number + slots_each
            if following < len(members):
                _require_over(graph, value, members[following], ring, slots_each)
    return spaces


def _require_over(graph: Graph, value: Value, successor: Value, ring: str, slots_each: int) -> None:
    """A value's slot is free for its successor once its last reader stands before that one."""
    last = graph.consumers.get(value, (graph.producer[value],))[-1]
    if last >= graph.producer[successor]:
        raise PlanError(
            f"%{value.name} is still read when %{successor.name} takes its slot: {slots_each} "
            f"slots for {ring} are too few: give it more"
        )


def _blocks(graph: Graph, may_share: MayShare, separate: Mapping[Value, str]) -> list[_Block]:
    end = len(graph.nodes)
    last_read = {value: reads[-1] for value, reads in graph.consumers.items()}
    last_read.update((value, end) for value in graph.results)
    states = graph.state_of
    block_of: dict[Value, _Block] = {}
    blocks: list[_Block] = []
    for index, node in enumerate(graph.nodes):
        taken: set[Value] = set()
        for position, value in enumerate(node.outputs):
            if value in states or value in separate:
                continue
            last = last_read.get(value, index)
            source = _source(node, index, position, block_of, last_read, taken, may_share)
            if source is not None:
                taken.add(source)
                block = block_of[source]
                block.values.append(value)
                block.last = last
            else:
                nbytes = -(-value.spec.nbytes // ALIGNMENT) * ALIGNMENT
                block = _Block([value], nbytes, index, last)
                blocks.append(block)
            block_of[value] = block
    return blocks


def _source(
    node: Node,
    index: int,
    position: int,
    block_of: Mapping[Value, _Block],
    last_read: Mapping[Value, int],
    taken: set[Value],
    may_share: MayShare,
) -> Value | None:
    """The input whose memory output `position` takes over, if any."""
    for candidate in node.op.may_overwrite.get(position, ()):
        if candidate >= len(node.inputs):
            continue
        value = node.inputs[candidate]
        if (
            value in block_of
            and value not in taken
            and last_read[value] == index
            and node.inputs.count(value) == 1
            and value.spec.nbytes == node.outputs[position].spec.nbytes
            and may_share(index, position, candidate)
        ):
            return value
    return None


def _unhindered(graph: Graph, may_share: MayShare, precedence: Precedence) -> MayShare:
    """An output takes over no memory that another reader might still need."""

    def may(index: int, output: int, source: int) -> bool:
        readers = graph.consumers[graph.nodes[index].inputs[source]]
        others = (each for each in readers if each != index)
        return may_share(index, output, source) and all(
            precedence.is_before(other, index) for other in others
        )

    return may


def _ordered(graph: Graph, blocks: list[_Block], precedence: Precedence) -> Pairs:
    """Of each pair of blocks whether all users of the one come before the other, either way."""
    if not blocks:
        return np.ones((0, 0), np.bool_)
    ends = np.stack(
        [
            precedence.after(
                [
                    user
                    for value in block.values
                    for user in (graph.producer[value], *graph.consumers.get(value, ()))
                ]
            )
            for block in blocks
        ]
    )
    begins = precedence.clocks[[block.first for block in blocks]]
    before = np.ones((len(blocks), len(blocks)), np.bool_)
    for lane in range(ends.shape[1]):
        before &= ends[:, None, lane] <= begins[None, :, lane]
    return before | before.T


def _place(blocks: list[_Block], ordered: Pairs | None = None) -> list[int]:
    """The offset of each block: no two that live at the same time overlap.

    Where it is given who is `ordered`, no two others do either.
    """
    count = len(blocks)
    offsets = np.zeros(count, np.int64)
    sizes = np.array([block.nbytes for block in blocks], np.int64)
    first = np.array([block.first for block in blocks], np.int64)
    last = np.array([block.last for block in blocks], np.int64)
    order = sorted(range(count), key=lambda i: (-sizes[i], first[i], i))
    placed = np.zeros(count, bool)
    for i in order:
        alive = (first <= last[i]) & (last >= first[i])
        if ordered is not None:
            alive |= ~ordered[i]
        alive &= placed
        begins = offsets[alive]
        by_offset = np.argsort(begins, kind="stable")
        ends = np.maximum.accumulate((begins + sizes[alive])[by_offset])
        free_from = np.concatenate([[0], ends])  # before each neighbour, and behind the last
        fits = np.flatnonzero(begins[by_offset] - free_from[:-1] >= sizes[i])
        offsets[i] = free_from[fits[0] if len(fits) else -1]
        placed[i] = True
    return [int(offset) for offset in offsets]


def _peak(blocks: list[_Block], nodes: int) -> tuple[int, int]:
    """The most bytes live at once, and how many of them are gradients of parameters."""
    change = np.zeros((2, nodes + 2), np.int64)
    for block in blocks:
        kinds = [0, 1] if block.values[-1].role == "gradient" else [0]
        change[kinds, block.first] += block.nbytes
        change[kinds, block.last + 1] -= block.nbytes
    live = np.cumsum(change, axis=1)
    top = int(np.argmax(live[0]))
    return int(live[0, top]), int(live[1, top])
