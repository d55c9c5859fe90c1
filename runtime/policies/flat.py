"""The tables of `tasks` as arrays, for the machine code of `step_layout` and `virtual_run`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from aieflow.runtime.policies.once import once
from aieflow.runtime.policies.step_layout import ABSENT, END, Bools, Floats, Ints, endangered, lay
from aieflow.runtime.policies.tasks import Hops, Piece, Tasks, predecessors

Rows: TypeAlias = tuple[
    Ints,
    tuple[Ints, Floats, Ints],
    tuple[Ints, Ints],
    tuple[Ints, Ints, Ints],
    tuple[Ints, Ints],
    tuple[Ints, Ints],
    tuple[Ints, Ints, Ints, Floats],
    tuple[Ints, Ints, Ints, Ints],
    tuple[Ints, Ints, Floats],
    tuple[Bools, Bools],
]


class _Lists:
    """Lists of numbers, one after the other: `starts[n]` to `starts[n + 1]` is the n-th."""

    def __init__(self, lists: Sequence[Sequence[int]]) -> None:
        self.starts = np.cumsum([0, *map(len, lists)], dtype=np.int64)
        self.items = np.array([item for each in lists for item in each], np.int64)


class Flat:
    """The arrays of a graph's tables; values, nodes and devices as they are numbered there."""

    def __init__(self, tasks: Tasks) -> None:
        self.count, devices = tasks.count, len(tasks.devices)
        able = [[bool(each) for each in row] for row in tasks.pieces]
        self.able = np.array(able, np.bool_).reshape(self.count, devices)  # [node, device]
        self.movable = np.flatnonzero(self.able.sum(axis=1) > 1)  # nodes that have a choice
        self.pieces: list[Piece] = []  # of all nodes on all devices, then of renewals
        self.first = np.zeros((self.count, devices + 1), np.int64)  # piece of node and device
        # Lanes that work in the order in which slots were taken.
        self.in_turn = np.zeros(len(tasks.resources), np.bool_)
        # Of pieces: before all others on its lanes. It takes a slot after an earlier one of its
        # node, or a device waits for it that is not the host's.
        goes_first: list[bool] = []
        host_lanes = {piece.resource for of_host, *_ in tasks.pieces for piece in of_host}
        taker: list[int] = []  # of pieces: the last before it that took a slot, or itself
        for node, row in enumerate(tasks.pieces):
            for device, pieces in enumerate(row):
                self.first[node, device] = len(self.pieces)
                self.pieces += pieces
                held = False
                for piece in pieces:
                    last = taker[-1] if held else len(taker)
                    taker.append(len(taker) if piece.holds else last)
                    converts = device > 0 and piece.resource in host_lanes
                    goes_first.append((held and piece.holds) or converts)
                    held = held or piece.holds
                    if held and tasks.resources[piece.resource].device == device:
                        self.in_turn[piece.resource] = True
            self.first[node, devices] = len(self.pieces)
        renewed: list[list[int]] = [[] for _ in range(self.count)]
        self.renewal_value = np.array([each.value for each in tasks.renewals], np.int64)
        self.renewal_piece = np.zeros(len(tasks.renewals), np.int64)
        for number, renewal in enumerate(tasks.renewals):
            renewed[renewal.node].append(number)
            self.renewal_piece[number] = len(self.pieces)
            self.pieces.append(renewal.piece)
            goes_first.append(False)
            taker.append(len(taker))
        self.renewals = _Lists(renewed)
        self.resource = np.array([each.resource for each in self.pieces], np.int64)
        self.seconds = np.array([each.seconds for each in self.pieces], np.float64)
        self.parts = np.array([each.parts for each in self.pieces], np.int64)
        self.goes_first = np.array(goes_first, np.bool_)
        self.taker = np.array(taker, np.int64)
        slots = [each.width or 0 for each in tasks.resources if each.is_slots]
        self.rings = np.zeros((len(tasks.resources), max([1, *slots])), np.bool_)  # none is taken
        self.holds = np.array([each.holds for each in self.pieces], np.bool_)
        self.frees = np.array([each.frees for each in self.pieces], np.int64)
        self.after = _Lists([each.after for each in self.pieces])
        self.reads = _Lists([[value for value, _ in each.reads] for each in self.pieces])
        self.read_sides = _Lists([[side for _, side in each.reads] for each in self.pieces]).items
        self.inputs, self.outputs = _Lists(tasks.inputs), _Lists(tasks.outputs)
        updates: list[list[int]] = [[] for _ in range(self.count)]
        for state, node in tasks.updated.items():
            updates[node].append(state)
        self.updates = _Lists(updates)
        before = predecessors(tasks)
        behind: list[list[int]] = [[] for _ in range(self.count)]
        for node, others in enumerate(before):
            for other in others:
                behind[other].append(node)
        self.before, self.behind = _Lists(before), _Lists(behind)
        self.follows = _Lists(tasks.follows)
        values = len(tasks.hops)
        self.writer = np.full(values, END, np.int64)
        for node, written in enumerate(tasks.outputs):
            self.writer[list(written)] = node
        self.is_anywhere = np.zeros(values, np.bool_)
        self.is_anywhere[list(tasks.anywhere)] = True
        self.is_written_again = np.zeros(values, np.bool_)
        self.is_written_again[[*tasks.updated, *(each.value for each in tasks.renewals)]] = True
        self.ends = np.array(tasks.ends, np.int64)
        self.sides = np.array(tasks.sides, np.int64)
        self.is_remote = np.array([each in tasks.remote for each in range(devices)], np.bool_)
        self._hops(tasks.hops, devices + 1)
        self._saves(tasks)
        self.worker = np.array([each.device for each in tasks.resources], np.int64)
        most = len(self.pieces) + len(tasks.saves) + 2 * values * (devices + 1)
        self.width = np.array([each.width or most for each in tasks.resources], np.int64)
        self.slowdowns = np.array(tasks.slowdowns, np.float64)
        most_pieces = int(np.diff(self.first, axis=1).max(axis=1).sum()) if self.count else 0
        # A value is brought to a side once, by two hops at most.
        hops = 2 * values * (devices + 1)
        self.most_steps = most_pieces + len(tasks.renewals) + len(tasks.saves) + hops
        self.room = 16 + 4 * self.most_steps  # for links, and notes of readers; grows

    @property
    def risks(self) -> tuple[Ints, Bools, Ints, tuple[Ints, Ints], Ints, Bools]:
        """What `step_layout.endangered` reads, after the assignment."""
        inputs = self.inputs.starts, self.inputs.items
        return self.sides, self.is_remote, self.writer, inputs, self.ends, self.is_earlier

    @property
    def rows(self) -> Rows:
        """What `step_layout.lay` reads, after the states that are saved, but for ends and sides."""
        return (
            self.first,
            (self.resource, self.seconds, self.parts),
            (self.after.starts, self.after.items),
            (self.reads.starts, self.reads.items, self.read_sides),
            (self.outputs.starts, self.outputs.items),
            (self.updates.starts, self.updates.items),
            (self.saves.starts, self.saves.items, self.save_resource, self.save_seconds),
            (self.renewals.starts, self.renewals.items, self.renewal_value, self.renewal_piece),
            (self.hops_of, self.hop_resource, self.hop_seconds),
            (self.is_anywhere, self.is_written_again),
        )

    @property
    def lanes(self) -> tuple[Bools, Ints, Ints, Ints, Floats, Bools, Bools, Ints, Bools]:
        """What `virtual_run.run` reads of lanes, before the times that it writes."""
        own = self.holds, self.frees, self.width, self.worker, self.slowdowns
        return (*own, self.goes_first, self.in_turn, self.taker, self.rings)

    def _hops(self, hops: Sequence[Hops], sides: int) -> None:
        """Values of one size share a row: from, to, hop -> resource and seconds."""
        rows = {id(each): each for each in hops}
        number = {key: place for place, key in enumerate(rows)}
        self.hops_of = np.array([number[id(each)] for each in hops], np.int64)
        self.hop_resource = np.full((max(1, len(rows)), sides, sides, 2), END, np.int64)
        self.hop_seconds = np.zeros(self.hop_resource.shape, np.float64)
        for row, each in enumerate(rows.values()):
            for (origin, side), way in each.items():
                for place, (resource, seconds) in enumerate(way):
                    self.hop_resource[row, origin, side, place] = resource
                    self.hop_seconds[row, origin, side, place] = seconds

    def _saves(self, tasks: Tasks) -> None:
        self.save_node = np.array([each.node for each in tasks.saves], np.int64)
        self.save_resource = np.array([each.piece.resource for each in tasks.saves], np.int64)
        self.save_seconds = np.array([each.piece.seconds for each in tasks.saves], np.float64)
        self.is_earlier = np.zeros((len(tasks.saves), self.count), np.bool_)
        nbytes = (self.count + 7) // 8
        for place, each in enumerate(tasks.saves):
            bits = np.frombuffer(each.earlier.to_bytes(nbytes, "little"), np.uint8)
            self.is_earlier[place] = np.unpackbits(bits, count=self.count, bitorder="little")
        saved: list[list[int]] = [[] for _ in range(self.count)]
        for place, each in enumerate(tasks.saves):
            saved[each.node].append(place)
        self.saves = _Lists(saved)


@once
def flat_of(tasks: Tasks) -> Flat:
    """The arrays of a graph's tables."""
    return Flat(tasks)


@dataclass(frozen=True, slots=True, eq=False)
class Laid:
    """The steps of an assignment: see `step_layout`."""

    steps: Ints
    seconds: Floats
    next_of: Ints
    links: Ints


def laid(flat: Flat, homes: Sequence[int] | Ints, saves: bool = True) -> Laid:
    """All steps of an assignment, each after those it waits for; `saves` are copies of states."""
    home = np.asarray(homes, np.int64)
    is_saved = np.zeros(len(flat.save_node), np.bool_)
    if saves:
        is_saved = endangered(home, *flat.risks)
    while True:
        steps = np.empty((5, flat.most_steps), np.int64)
        seconds, next_of = np.empty(flat.most_steps), np.empty(flat.most_steps, np.int64)
        links, read = np.empty((2, flat.room), np.int64), np.empty((2, flat.room), np.int64)
        used = np.zeros(3, np.int64)
        lay(
            home,
            is_saved,
            *flat.rows,
            flat.ends,
            flat.sides,
            np.full((len(flat.writer), len(flat.sides) + 1), ABSENT, np.int64),
            np.full(len(flat.writer), END, np.int64),
            read,
            steps,
            seconds,
            next_of,
            links,
            used,
        )
        count, linked, noted = (int(each) for each in used)
        if max(linked, noted) <= flat.room:
            return Laid(steps[:, :count], seconds[:count], next_of[:count], links)
        flat.room *= 2
