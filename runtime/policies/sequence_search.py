"""Improves an assignment together with the order in which its pieces are done.

A list schedule starts whatever is ready, and is chaotic: one node elsewhere changes all that
follows. Here the order is given, a change of it or of a device alters little else, and a lane may
wait for a node that is more urgent than what it could do meanwhile. So many more changes can be
judged, and by less: `sequence` reckons what an order takes, `sequence_moves` changes it, both in
machine code.

How much others slow a piece down (`sequence_contention`) is what they did in the stage before, and
first of all a mean: while a stage lasts, a piece takes as long wherever it is put.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from aieflow.runtime.policies.estimate import Estimator
from aieflow.runtime.policies.sequence import (
    AFTER,
    BEGAN,
    COUNTS,
    DECODINGS,
    ENDED,
    EVERY,
    FAR,
    FIRST,
    FORM,
    HOPS,
    IN_TURN,
    IS_END,
    NEVER,
    ORDER,
    ORDERS,
    PLACE,
    READERS,
    READS,
    SIDE_BITS,
    SLOTS,
    START,
    WRITER,
    Counts,
    Run,
    Tables,
    decode,
    undo,
)
from aieflow.runtime.policies.sequence_contention import contention
from aieflow.runtime.policies.sequence_moves import improve
from aieflow.runtime.policies.step_layout import END, HOST, NODE, PIECE, RESOURCE, Floats, Ints
from aieflow.runtime.policies.tasks import Tasks
from aieflow.runtime.schedule import Times

PIECES = 950_000_000  # changes times pieces, at most: some seconds
TRIAL = 40  # one of so many changes shows which orders are worth all of them
WARM = 1.0, 0.0  # a trial cools down by itself, stages all together
STAGES = 6  # of all changes, between which it is reckoned anew what slows pieces down
APART = 2  # of them that two orders go on by themselves; then both from the better one
SETTLING = 2  # times what slows pieces down is reckoned anew after a stage
PER_PIECE = 300  # changes, at most
MOST_DEVICES = (1 << SIDE_BITS) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Ordered:
    """An assignment with the order of its pieces, and how long that takes."""

    seconds: float
    home: Ints  # by node: its device
    order: Ints  # all its pieces, as `Flat.pieces` numbers them, and all renewals
    slowed: Floats  # by piece: how many times longer it takes beside others
    hops_slowed: Floats  # by resource, the same of transfers: a mean
    saved_s: Floats  # by node: when its states are saved


@dataclass(frozen=True, slots=True, eq=False)
class FoundOrder:
    """The best that came of several, the number of that, and how many changes were tried in all."""

    ordered: Ordered
    number: int
    changes: int


class SequenceSearch:
    """The changes of one graph; it has MOST_DEVICES devices at most."""

    def __init__(self, tasks: Tasks, estimator: Estimator) -> None:
        self._tasks, self._estimator, self._items = tasks, estimator, list[int]()
        self._flat = estimator.flat
        self._form = np.full(len(tasks.hops), END, np.int32)
        for number, renewal in enumerate(tasks.renewals):
            self._form[renewal.value] = number
        self._own = self._of_nodes_on_devices()
        self._pieces, self._nodes = self._of_pieces(), self._of_nodes()
        self._values, self._resources = self._of_values(), self._of_resources()
        self._all_items = np.array(self._items, np.int32)
        most = np.diff(self._own[:, :, FIRST], axis=1).max(axis=1, initial=0).sum()
        self._most = int(most) + len(tasks.renewals)

    def listed(self, homes: Sequence[int], ranks: Sequence[float]) -> Ordered:
        """An assignment in the order of its list schedule, which ranks give.

        Where the slots of separate memory do not allow the order, it takes infinite seconds. Raises
        PlanError for a circle of nodes.
        """
        flat = self._flat
        steps, began, ended = self._estimator.listed(homes, ranks)
        workers = flat.worker[steps.steps[RESOURCE]]
        by_resource = self._means(workers, ended - began, steps.seconds)[flat.worker]
        saved_s = np.zeros(self._tasks.count)
        is_save = np.isin(steps.steps[RESOURCE], flat.save_resource)
        np.maximum.at(saved_s, steps.steps[NODE][is_save], ended[is_save])
        of_piece = np.flatnonzero(steps.steps[PIECE] != END)
        by_start = of_piece[np.argsort(began[of_piece], kind="stable")]
        order = steps.steps[PIECE][by_start]
        order = np.concatenate([order, np.setdiff1d(flat.renewal_piece, order)])
        slowed, home = by_resource[flat.resource], np.array(homes, np.int64)
        return self.improved(Ordered(np.inf, home, order, slowed, by_resource, saved_s), 0, 1)

    def looked(self, homes: Sequence[int], ranks: Sequence[float], changes: int) -> float:
        """Seconds of an assignment after a few changes: what may be hoped for."""
        ordered = self.contended(self.listed(homes, ranks))
        return self.contended(self.improved(ordered, changes, 1)).seconds

    def best_of(self, listed: Sequence[Ordered], changes: int, threads: int) -> FoundOrder:
        """The best of these after so many changes at most, or as many as are worth their time.

        A few changes each show which two are worth the rest. These go on apart for some stages, and
        then both from the better one, by other chances; what a change may make it longer by falls
        over all stages. Threads change nothing in what is found.
        """
        found = [(self.contended(ordered), number) for number, ordered in enumerate(listed)]
        pieces = max(len(ordered.order) for ordered in listed)
        changes, tried = min(changes, PER_PIECE * pieces, PIECES // max(1, pieces)), 0
        with ThreadPoolExecutor(threads) as pool:
            for stage in range(STAGES + 1):
                each, warm = changes // TRIAL, WARM
                if stage:
                    each, warm = changes // STAGES, (1 - (stage - 1) / STAGES, 1 - stage / STAGES)
                seeds = [1 + 1000 * stage + 100 * place for place in range(len(found))]
                better = pool.map(partial(self._after, each, warm), found, seeds)
                found = sorted(better, key=lambda pair: pair[0].seconds)[:2]  # stable
                tried += each * len(seeds)
                if stage >= APART:
                    found = [found[0]] * 2
        ordered, number = found[0]
        return FoundOrder(ordered, number, tried)

    def improved(
        self, ordered: Ordered, changes: int, seed: int, warm: tuple[float, float] = WARM
    ) -> Ordered:
        """The best of one stage of so many changes; `seed` begins the chances, from 1 on.

        `warm` are shares of HEAT in the beginning and in the end: see `sequence_moves`.
        """
        seconds, home, order = improve(
            self._tables(ordered),
            self._run(ordered.home),
            ordered.home,
            ordered.order,
            changes,
            seed,
            self._flat.able,
            self._flat.movable,
            warm,
        )
        return replace(ordered, seconds=seconds, home=home, order=order)

    def contended(self, ordered: Ordered) -> Ordered:
        """The same with what its pieces slow each other down by, and the seconds that it takes.

        What it has no pieces of would be slowed down as much as its device is in the mean.
        """
        if ordered.seconds == np.inf:
            return ordered
        order, run = ordered.order, self._run(ordered.home)
        worker = self._flat.worker[self._flat.resource]
        for _ in range(SETTLING):
            _, spans = self._decoded(ordered, run)
            factors = contention(spans, worker[order], self._flat.slowdowns)
            lasted_s = spans[:, 1] - spans[:, 0]
            slowed = self._means(worker[order], lasted_s, lasted_s / factors)[worker]
            slowed[order] = factors
            ordered = replace(ordered, slowed=slowed)
        seconds, _ = self._decoded(ordered, run)
        return replace(ordered, seconds=seconds)

    def times(self, ordered: Ordered) -> Times:
        """When the nodes of the expanded graph begin and end."""
        _, spans = self._decoded(ordered, self._run(ordered.home))
        names = [self._flat.pieces[piece].name for piece in ordered.order]
        timed = zip(names, spans.tolist(), strict=True)
        return {name: (begin, end) for name, (begin, end) in timed if name}

    def _after(
        self, changes: int, warm: tuple[float, float], pair: tuple[Ordered, int], seed: int
    ) -> tuple[Ordered, int]:
        """One of several orders after a stage, and its number."""
        ordered, number = pair
        return self.contended(self.improved(ordered, changes, seed, warm)), number

    def _decoded(self, ordered: Ordered, run: Run) -> tuple[float, Floats]:
        """Seconds of an order, and when its pieces begin and end; the run is as before."""
        order, (times, *_) = ordered.order, run
        run[ORDERS][ORDER, : len(order)] = order
        tables = self._tables(ordered)
        count = len(order)
        _, seconds, _, _ = decode(tables, run, ordered.home, count, 0, count, END, np.inf)
        spans = times[order][:, [BEGAN, ENDED]]
        undo(run)
        return seconds, spans

    def _means(self, device: Ints, lasted_s: Floats, alone_s: Floats) -> Floats:
        """How many times longer than alone what each device does takes, in the mean."""
        found = np.ones(len(self._tasks.devices))
        for each in range(len(found)):
            own = device == each
            if alone_s[own].sum() > 0:
                found[each] = lasted_s[own].sum() / alone_s[own].sum()
        return found

    def _lists(self, lists: Iterable[Sequence[int]]) -> list[int]:
        """Where each list begins among all items, and where the last ends."""
        starts = [len(self._items)]
        for each in lists:
            self._items += each
            starts.append(len(self._items))
        return starts

    def _of_nodes_on_devices(self) -> Counts:
        flat = self._flat
        found = np.zeros((*flat.first.shape, 3), np.int32)
        found[:, :, FIRST] = flat.first
        is_in_turn = flat.in_turn[flat.resource]
        for column, is_counted in ((IN_TURN, is_in_turn), (SLOTS, flat.holds)):
            before = np.cumsum([0, *is_counted])
            found[:, :-1, column] = np.diff(before[flat.first], axis=1)
        return found

    def _of_pieces(self) -> Counts:
        flat = self._flat
        found = np.zeros((len(flat.pieces) + 1, 10), np.int32)
        node, renews = np.zeros(len(flat.pieces)), np.full(len(flat.pieces), END)
        for number, firsts in enumerate(flat.first):
            node[firsts[0] : firsts[-1]] = number
        for number, renewal in enumerate(self._tasks.renewals):
            node[flat.renewal_piece[number]] = renewal.node
            renews[flat.renewal_piece[number]] = number
        opens = np.zeros(len(flat.pieces), np.bool_)
        for first, end in zip(flat.first[:, :-1].ravel(), flat.first[:, 1:].ravel(), strict=True):
            opens[np.flatnonzero(flat.holds[first:end])[:1] + first] = True
        own = (node, flat.resource, flat.parts, renews, flat.holds, flat.frees, flat.taker, opens)
        found[:-1, : len(own)] = np.stack(own, axis=1)
        found[:, AFTER] = self._lists([each.after for each in flat.pieces])
        found[:, READS] = self._lists(
            [[value << SIDE_BITS | side for value, side in each.reads] for each in flat.pieces]
        )
        return found

    def _of_nodes(self) -> Counts:
        tasks = self._tasks
        followers: list[list[int]] = [[] for _ in range(tasks.count)]
        for node, each in enumerate(tasks.follows):
            for other in each:
                followers[other].append(node)
        updates: list[list[int]] = [[] for _ in range(tasks.count)]
        for state, node in tasks.updated.items():
            updates[node].append(state)
        columns = (tasks.follows, followers, tasks.outputs, updates)
        return np.stack([self._lists(each) for each in columns], axis=1).astype(np.int32)

    def _of_values(self) -> Counts:
        flat, values = self._flat, len(self._tasks.hops)
        readers: list[dict[int, None]] = [{} for _ in range(values)]
        for piece, each in enumerate(flat.pieces[: int(flat.first[-1, -1])]):
            for value, _ in each.reads:
                readers[value][int(self._pieces[piece, 0])] = None
        found = np.zeros((values + 1, 5), np.int32)
        is_end = np.isin(np.arange(values), flat.ends)
        columns = {WRITER: flat.writer, IS_END: is_end, FORM: self._form, HOPS: flat.hops_of}
        for column, numbers in columns.items():
            found[:-1, column] = numbers
        found[:, READERS] = self._lists([list(each) for each in readers])
        return found

    def _of_resources(self) -> Counts:
        width = [each.width or 0 for each in self._tasks.resources]
        lanes = np.cumsum([0, *width])[:-1]
        return np.stack([lanes, width, self._flat.in_turn], axis=1).astype(np.int32)

    def _tables(self, ordered: Ordered) -> Tables:
        flat = self._flat
        return (
            self._pieces,
            flat.seconds * ordered.slowed,
            self._nodes,
            self._own,
            ordered.saved_s,
            self._values,
            self._resources,
            self._all_items,
            flat.hop_resource,
            flat.hop_seconds * ordered.hops_slowed[flat.hop_resource],
            flat.sides,
            flat.ends,
        )

    def _run(self, home: Ints) -> Run:
        """What is so before anything is decoded."""
        flat, tasks = self._flat, self._tasks
        values, pieces = len(tasks.hops), len(flat.pieces)
        brought = np.full((values, 1 << SIDE_BITS), NEVER, np.int32)
        brought[flat.is_anywhere] = START
        for state, node in tasks.updated.items():
            brought[state, HOST] = brought[state, flat.sides[home[node]]] = START
        reads = np.zeros(len(tasks.renewals), np.int32)
        for node, device in enumerate(home):
            for piece in range(flat.first[node, device], flat.first[node, device + 1]):
                forms = [self._form[value] for value, _ in flat.pieces[piece].reads]
                reads[[form for form in forms if form != END]] += 1
        marks = np.full((pieces, 5), END, np.int32)
        marks[:, PLACE] = FAR
        lanes, kept = int(self._resources[:, 1].sum()), self._most // EVERY + 2
        numbers = lanes + COUNTS + len(tasks.resources)
        kept_lanes = np.zeros((kept, numbers), np.int32)
        kept_lanes[:, :lanes] = END
        notes = 4 * brought.size
        return (
            np.zeros((pieces, 4)),
            marks,
            np.zeros(tasks.count, np.int32),
            reads,
            np.zeros(brought.size),
            brought.ravel(),
            np.full(brought.size, END, np.int32),
            np.zeros(lanes + 1),
            np.zeros(numbers, np.int32),
            np.zeros((kept, lanes + 1)),
            kept_lanes,
            np.zeros((kept, lanes + 1)),
            kept_lanes.copy(),
            np.zeros((pieces, 4), np.int32),
            np.zeros((pieces, 2)),
            np.zeros((notes, 3), np.int32),
            np.zeros(notes),
            np.zeros((tasks.count, 2), np.int32),
            np.zeros(DECODINGS + 1, np.int32),
            np.zeros((3, self._most + 1), np.int32),
        )
