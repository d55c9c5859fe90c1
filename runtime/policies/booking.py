"""Books nodes on resources, one after the other: the core of the list schedulers, as machine code.

Of the nodes that are ready, the one with the least key comes next, and goes where its finish plus a
price is least. A booking is a promise of time. A piece goes into the earliest gap of its resource
that is long enough (insertion, as in HEFT) or behind all bookings; on a resource of several lanes a
piece of few parts takes its share of the line. Values are moved to a side once, for all who read
them there. Contention and memory are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import TypeAlias

import numpy as np

from aieflow.runtime.policies.flat import Flat, flat_of
from aieflow.runtime.policies.machine_code import compiled
from aieflow.runtime.policies.step_layout import END, HOST, Bools, Floats, Ints
from aieflow.runtime.policies.tasks import Piece, Tasks

NEVER = -1.0  # a value came to a side

# Busy intervals of each resource, in order; those that touch are one: begins, ends, how many.
Lines: TypeAlias = tuple[Floats, Floats, Ints]
Lists: TypeAlias = tuple[Ints, Ints]  # where each list begins, and the items of all
# What does not change: pieces of nodes on devices, their resource, seconds, and those of its line;
# pieces that they come after; values and sides that they read; outputs; nodes that a node follows,
# and those that come after it; hops; sides of devices, and values that lie everywhere.
Rows: TypeAlias = tuple[
    tuple[Ints, Ints, Floats, Floats],
    Lists,
    tuple[Ints, Ints, Ints],
    Lists,
    Lists,
    Lists,
    tuple[Ints, Ints, Floats, Floats],
    tuple[Ints, Bools],
]


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """Where each node runs, by the number of the device, and when it was planned to start."""

    homes: tuple[int, ...]
    starts: tuple[float, ...]
    seconds: float


def booked(
    tasks: Tasks,
    keys: Sequence[float] | None = None,
    prices: Sequence[Sequence[float]] | Floats | None = None,
    inserts: bool = True,
) -> Decision:
    """All nodes, each where its finish plus `prices[node][device]` is least, the least key first.

    Without keys, whoever is ready first. Ties go to the first device, and the first node in program
    order. Unless it `inserts`, nothing goes before what is booked.
    """
    flat, shape = flat_of(tasks), (tasks.count, len(tasks.devices))
    lines = len(tasks.resources), flat.most_steps
    homes, times = np.zeros(tasks.count, np.int64), np.zeros((2, tasks.count))
    _book(
        _rows(tasks, flat),
        np.diff(flat.before.starts),
        np.zeros(0) if keys is None else np.asarray(keys, np.float64),
        np.zeros(shape) if prices is None else np.asarray(prices, np.float64),
        inserts,
        (np.zeros(lines), np.zeros(lines), np.zeros(lines[0], np.int64)),
        np.full((len(flat.writer), len(tasks.devices) + 1), NEVER),
        homes,
        times,
    )
    starts, finish = times.tolist()
    return Decision(tuple(homes.tolist()), tuple(starts), max(finish, default=0.0))


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


def _rows(tasks: Tasks, flat: Flat) -> Rows:
    lanes = np.array([0 if each.is_slots else each.width or 0 for each in tasks.resources])

    def of_line(seconds: Floats, parts: Ints, resource: Ints) -> Floats:
        """Seconds of a resource's whole line; negative where nobody stands in one."""
        width = lanes[resource]
        return np.where(width > 0, seconds * parts / np.maximum(width, 1), -1.0)

    lengths = of_line(flat.seconds, flat.parts, flat.resource)
    by_hop = of_line(flat.hop_seconds, np.ones_like(flat.hop_resource), flat.hop_resource)
    return (
        (flat.first, flat.resource, flat.seconds, lengths),
        (flat.after.starts, flat.after.items),
        (flat.reads.starts, flat.reads.items, flat.read_sides),
        (flat.outputs.starts, flat.outputs.items),
        (flat.follows.starts, flat.follows.items),
        (flat.behind.starts, flat.behind.items),
        (flat.hops_of, flat.hop_resource, flat.hop_seconds, by_hop),
        (flat.sides, flat.is_anywhere),
    )


@compiled
def _earliest(lines: Lines, line: int, ready: float, length: float, inserts: bool) -> float:
    """The earliest start, not before it is ready, of what takes so long."""
    begins, ends, counts = lines
    count = counts[line]
    if count == 0 or ready >= ends[line, count - 1]:
        return ready
    if not inserts:
        return float(ends[line, count - 1])
    place = max(0, _places_until(begins, line, count, ready) - 1)
    while place < count and ready + length > begins[line, place]:
        ready = max(ready, ends[line, place])
        place += 1
    return ready


@compiled
def _places_until(begins: Floats, line: int, count: int, moment: float) -> int:
    """How many intervals begin by then."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if begins[line, middle] <= moment:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def _take(lines: Lines, line: int, start: float, length: float) -> None:
    """Take a line from `start` for `length` seconds, free before."""
    begins, ends, counts = lines
    count, end = counts[line], start + length
    place = _places_until(begins, line, count, start)
    joins_left = place > 0 and ends[line, place - 1] == start
    joins_right = place < count and begins[line, place] == end
    if joins_left and joins_right:
        ends[line, place - 1] = ends[line, place]
        for other in range(place, count - 1):
            begins[line, other], ends[line, other] = begins[line, other + 1], ends[line, other + 1]
        counts[line] = count - 1
    elif joins_left:
        ends[line, place - 1] = end
    elif joins_right:
        begins[line, place] = start
    else:
        for other in range(count, place, -1):
            begins[line, other], ends[line, other] = begins[line, other - 1], ends[line, other - 1]
        begins[line, place], ends[line, place] = start, end
        counts[line] = count + 1


@compiled
def _origin(rows: Rows, arrived: Floats, value: int, side: int) -> tuple[float, int]:
    """Since when, and where, a value is valid that is not on a side."""
    if rows[7][1][value]:
        return 0.0, side
    for other in range(arrived.shape[1]):
        if arrived[value, other] >= 0:
            return float(arrived[value, other]), other
    return 0.0, int(HOST)  # a feed, or a state that was brought home by the run before


@compiled
def _offer(
    rows: Rows,
    lines: Lines,
    arrived: Floats,
    node: int,
    device: int,
    ready_s: float,
    inserts: bool,
    accepts: bool,
) -> tuple[float, float]:
    """When a node would start on a device, and finish; book it if that is accepted."""
    (first, resource, seconds, lengths), (after_from, after), (reads_from, reads, sides) = rows[:3]
    hops_of, hop_resource, hop_seconds, hop_lengths = rows[6]
    head, until = first[node, device], first[node, device + 1]
    free_s = np.zeros(len(lines[2]))  # by line: since when of what this node has booked there
    ends, start = np.zeros(until - head), 0.0
    came = np.empty((reads_from[until] - reads_from[head], 2), np.int64)  # values, on sides
    many = 0
    for piece in range(head, until):
        ready = ready_s
        for item in range(after_from[piece], after_from[piece + 1]):
            ready = max(ready, float(ends[after[item]]))
        for item in range(reads_from[piece], reads_from[piece + 1]):
            value, side = reads[item], sides[item]
            when = arrived[value, side]
            if when < 0:
                when, origin = _origin(rows, arrived, value, side)
                for hop in range(2):
                    line = hop_resource[hops_of[value], origin, side, hop]
                    if line < 0:
                        break
                    length = hop_lengths[hops_of[value], origin, side, hop]
                    if length >= 0:
                        when = max(when, free_s[line])
                        when = _earliest(lines, line, when, length, inserts)
                        free_s[line] = when + length
                        if accepts:
                            _take(lines, line, when, length)
                    when += hop_seconds[hops_of[value], origin, side, hop]
                arrived[value, side] = when
                came[many, 0], came[many, 1] = value, side
                many += 1
            ready = max(ready, float(when))
        line, length = resource[piece], lengths[piece]
        if length >= 0:
            ready = _earliest(lines, line, max(ready, float(free_s[line])), length, inserts)
            free_s[line] = ready + length
            if accepts:
                _take(lines, line, ready, length)
        if piece == head:
            start = ready
        ends[piece - head] = ready + seconds[piece]
    for one in range(0 if accepts else many):
        arrived[came[one, 0], came[one, 1]] = NEVER
    return start, float(ends[-1])


@compiled
def _book(
    rows: Rows,
    missing: Ints,
    keys: Floats,
    prices: Floats,
    inserts: bool,
    lines: Lines,
    arrived: Floats,
    homes: Ints,
    times: Floats,
) -> None:
    """Fill in homes and times: starts and ends. `missing` counts what must come before a node."""
    first, (outputs_from, outputs) = rows[0][0], rows[3]
    (follows_from, follows), (behind_from, behind), (side_of, _) = rows[4], rows[5], rows[7]
    ready_s = np.zeros(len(homes))  # of nodes: when all that they wait for has ended
    heap = [(0.0, 0)][:0]
    for node in range(len(homes)):
        if missing[node] == 0:
            heappush(heap, (float(keys[node]) if len(keys) else 0.0, node))
    while heap:
        _, node = heappop(heap)
        after_s, best, best_score = 0.0, END, np.inf
        for item in range(follows_from[node], follows_from[node + 1]):
            after_s = max(after_s, times[1, follows[item]])
        for device in range(len(side_of)):
            if first[node, device] < first[node, device + 1]:
                _, finish = _offer(rows, lines, arrived, node, device, after_s, inserts, False)
                score = finish + prices[node, device]
                if best == END or score < best_score:
                    best, best_score = device, score
        homes[node] = best
        times[0, node], times[1, node] = _offer(
            rows, lines, arrived, node, best, after_s, inserts, True
        )
        for item in range(outputs_from[node], outputs_from[node + 1]):
            arrived[outputs[item], side_of[best]] = times[1, node]
        for item in range(behind_from[node], behind_from[node + 1]):
            other = behind[item]
            ready_s[other] = max(ready_s[other], times[1, node])
            missing[other] -= 1
            if missing[other] == 0:
                heappush(heap, (float(keys[other] if len(keys) else ready_s[other]), other))
