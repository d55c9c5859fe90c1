"""Books nodes on resources, one after the other: the core of the list schedulers.

A booking is a promise of time. A piece goes into the earliest gap of its resource that is long
enough (insertion, as in HEFT) or behind all bookings; on a resource of several lanes a piece of few
parts takes its share of the line. Values are moved to a side once, for all who read them there.
Contention and memory are left out.
"""

from bisect import bisect_right
from dataclasses import dataclass
from math import inf

from aieflow.runtime.policies.tasks import HOST, Piece, Tasks


@dataclass(frozen=True, slots=True)
class Offer:
    """What a device offers for a node: when it would start and finish, and what that takes."""

    device: int
    start_s: float
    finish_s: float
    booked: tuple[tuple[int, float, float], ...]  # resource, from, seconds of its line
    arrivals: tuple[tuple[int, int, float], ...]  # value, side, when


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Where each node runs, by the number of the device, and when it was planned to start."""

    homes: tuple[int, ...]
    starts: tuple[float, ...]
    seconds: float


class Bookings:
    """Offers of devices for nodes whose predecessors are booked; `book` accepts one."""

    def __init__(self, tasks: Tasks, inserts: bool = True) -> None:
        self._tasks = tasks
        self._inserts = inserts
        self._lines = [_Line() for _ in tasks.resources]
        self._arrived: dict[tuple[int, int], float] = {}  # value, side -> when
        self._homes = [0] * tasks.count
        self._starts = [0.0] * tasks.count
        self._finish = [0.0] * tasks.count

    def finish_s(self, node: int) -> float:
        """When a node that is booked finishes."""
        return self._finish[node]

    def offers(self, node: int) -> list[Offer]:
        """The offers of all devices that can do a node, in the order of devices."""
        tasks = self._tasks
        ready = max((self._finish[other] for other in tasks.follows[node]), default=0.0)
        return [
            self._offer(node, device, pieces, ready)
            for device, pieces in enumerate(tasks.pieces[node])
            if pieces
        ]

    def book(self, node: int, offer: Offer) -> None:
        """Accept an offer."""
        for resource, start, length in offer.booked:
            self._lines[resource].book(start, length)
        for value, side, when in offer.arrivals:
            self._arrived[value, side] = when
        side = self._tasks.sides[offer.device]
        for value in self._tasks.outputs[node]:
            self._arrived[value, side] = offer.finish_s
        self._homes[node] = offer.device
        self._starts[node], self._finish[node] = offer.start_s, offer.finish_s

    def decision(self) -> Decision:
        """What was booked."""
        return Decision(tuple(self._homes), tuple(self._starts), max(self._finish, default=0.0))

    def _offer(self, node: int, device: int, pieces: tuple[Piece, ...], earliest_s: float) -> Offer:
        tasks = self._tasks
        booked: list[tuple[int, float, float]] = []
        arrivals: list[tuple[int, int, float]] = []
        behind: dict[int, float] = {}  # resource -> end of what this node books there
        starts: list[float] = []
        ends: list[float] = []

        def put(resource: int, ready: float, seconds: float, parts: int) -> float:
            width = tasks.resources[resource].width
            if width is None or tasks.resources[resource].is_slots:
                return ready
            length = seconds * parts / width
            ready = max(ready, behind.get(resource, 0.0))
            start = self._lines[resource].earliest(ready, length, self._inserts)
            behind[resource] = start + length
            booked.append((resource, start, length))
            return start

        for piece in pieces:
            ready = earliest_s
            for place in piece.after:
                ready = max(ready, ends[place])
            for value, side in piece.reads:
                when = self._arrived.get((value, side))
                if when is None:
                    when, origin = self._origin(value, side)
                    for resource, seconds in tasks.hops[value].get((origin, side), ()):
                        when = put(resource, when, seconds, 1) + seconds
                    arrivals.append((value, side, when))
                ready = max(ready, when)
            starts.append(put(piece.resource, ready, piece.seconds, piece.parts))
            ends.append(starts[-1] + piece.seconds)
        return Offer(device, starts[0], ends[-1], tuple(booked), tuple(arrivals))

    def _origin(self, value: int, side: int) -> tuple[float, int]:
        """Since when, and where, a value is valid that is not on `side`."""
        if value in self._tasks.anywhere:
            return 0.0, side
        if side != HOST and (value, HOST) in self._arrived:
            return self._arrived[value, HOST], HOST
        for other in range(1, len(self._tasks.devices) + 1):
            if (value, other) in self._arrived:
                return self._arrived[value, other], other
        return 0.0, HOST  # a feed, or a state that was brought home by the run before


class _Line:
    """Busy intervals of one resource, in order; those that touch are one."""

    def __init__(self) -> None:
        self._starts: list[float] = []
        self._ends: list[float] = []

    def earliest(self, ready: float, length: float, inserts: bool) -> float:
        """The earliest start, not before `ready`, of `length` seconds."""
        starts, ends = self._starts, self._ends
        if not ends or ready >= ends[-1]:
            return ready
        if not inserts:
            return ends[-1]
        place = max(0, bisect_right(starts, ready) - 1)
        while place < len(starts):
            if ready + length <= starts[place]:
                return ready
            ready = max(ready, ends[place])
            place += 1
        return ready

    def book(self, start: float, length: float) -> None:
        """Take the line from `start` for `length` seconds, free before."""
        starts, ends = self._starts, self._ends
        end = start + length
        place = bisect_right(starts, start)
        joins_left = place > 0 and ends[place - 1] == start
        joins_right = place < len(starts) and starts[place] == end
        if joins_left and joins_right:
            ends[place - 1] = ends[place]
            del starts[place], ends[place]
        elif joins_left:
            ends[place - 1] = end
        elif joins_right:
            starts[place] = start
        else:
            starts.insert(place, start)
            ends.insert(place, end)


def span_s(pieces: tuple[Piece, ...]) -> float:
    """Seconds of a node on a device if nobody else is there; infinite where it cannot be done."""
    if not pieces:
        return inf
    ends: list[float] = []
    for piece in pieces:
        ends.append(max((ends[place] for place in piece.after), default=0.0) + piece.seconds)
    return ends[-1]


def move_s(tasks: Tasks, value: int, device: int, other: int) -> float:
    """Seconds from where a device leaves a value to where another looks for it."""
    hops = tasks.hops[value].get((tasks.sides[device], tasks.sides[other]), ())
    return sum(seconds for _, seconds in hops)
