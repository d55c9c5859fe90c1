"""The machine code of `sequence_search`, its second part: changes of an order and an assignment.

A change moves one piece to another place in the order, lets a node be done by another device, or
swaps two nodes that devices do at about the same time. Pieces of a new device are put between the
paths that lead to them and those that lead on: where there is no place, four of five times, nothing
is decoded. Pieces on a path that makes the length are taken more often: the neighbourhood of
flexible job shops (Mastrolilli and Gambardella, J. Scheduling 3, 2000), at random. What is longer
is kept by chance, less so from change to change, as in `climb`.
"""

import numpy as np

from aieflow.runtime.policies.climb import next_chance
from aieflow.runtime.policies.machine_code import compiled
from aieflow.runtime.policies.sequence import (
    AFTER,
    ARRIVED,
    BEGAN,
    BROUGHT,
    CAUSED,
    DECODED,
    ENDED,
    EVERY,
    FAR,
    FIRST,
    FORM,
    FORM_READS,
    KEPT_S,
    LANE,
    LANE_AFTER,
    MARKS,
    NEVER,
    NODE,
    NOTED,
    OLD_ARRIVED,
    OLD_VALUES,
    ORDER,
    ORDERS,
    OUTPUTS,
    PLACE,
    READERS,
    READS,
    RENEWS,
    RESOURCE,
    SETTLED,
    SIDE_BITS,
    START,
    TAIL,
    TIMES,
    UPDATES,
    VALUES_NOTED,
    WIDTH,
    WRITER,
    Run,
    Tables,
    accept,
    decode,
    find_tails,
    last_piece,
    undo,
)
from aieflow.runtime.policies.step_layout import END, HOST, Bools, Ints

HEAT = 4e-4  # of the length: so much more a change may make it, at most
SHIFTS, SWAPS = 10, 50  # of a hundred changes those of an order; of the others, swaps
REACH, PICKS = 50, 10  # places at most between two that are swapped; nodes looked at for one
HOT = 60  # of a hundred: those of what the length hangs on
WINDOW = 100  # places at most by which a piece is shifted
STALE = 20  # changes of no consequence, after which tails are found anew


@compiled
def _ready(tables: Tables, run: Run, home: Ints, node: int, partner: int) -> tuple[float, int]:
    """When all that a node reads is written, and the place of what is written last of it."""
    pieces, _, _, own, _, values, _, items = tables[:8]
    times, marks = run[TIMES], run[MARKS]
    ready, at = 0.0, 0
    for piece in range(own[node, home[node], FIRST], own[node, home[node] + 1, FIRST]):
        for item in range(pieces[piece, READS], pieces[piece + 1, READS]):
            before = values[items[item] >> SIDE_BITS, WRITER]
            if before >= 0 and before != partner:
                last = last_piece(own, home, before)
                if times[last, ENDED] > ready:
                    ready, at = times[last, ENDED], marks[last, PLACE]
    return ready, at


@compiled
def _tail_behind(tables: Tables, run: Run, home: Ints, node: int, partner: int) -> float:
    """The longest path from what reads of a node to the end."""
    _, _, nodes, own, _, values, _, items = tables[:8]
    times, tail = run[TIMES], 0.0
    for output in range(nodes[node, OUTPUTS], nodes[node + 1, OUTPUTS]):
        for item in range(values[items[output], READERS], values[items[output] + 1, READERS]):
            reader = items[item]
            if reader != partner:
                tail = max(tail, times[own[reader, home[reader], FIRST], TAIL])
    return tail


@compiled
def _alone(tables: Tables, node: int, device: int) -> float:
    """Seconds of the longest path through the pieces of a node."""
    pieces, seconds_of, _, own, _, _, _, items = tables[:8]
    head = own[node, device, FIRST]
    ends = np.zeros(own[node, device + 1, FIRST] - head)
    for piece in range(head, own[node, device + 1, FIRST]):
        for item in range(pieces[piece, AFTER], pieces[piece + 1, AFTER]):
            ends[piece - head] = max(ends[piece - head], ends[items[item]])
        ends[piece - head] += seconds_of[piece]
    return float(ends.max())


@compiled
def _neighbour(
    tables: Tables,
    run: Run,
    home: Ints,
    order: Ints,
    count: int,
    node: int,
    into: int,
    able: Bools,
    chance: Ints,
) -> int:
    """A node that a device does at about the time of another, and could change with it; or END."""
    pieces, own = tables[0], tables[3]
    here = run[MARKS][own[node, home[node], FIRST], PLACE]
    for _ in range(PICKS):
        place = here + next_chance(chance, 2 * REACH + 1) - REACH
        other = int(pieces[order[max(0, min(count - 1, place))], NODE])
        if home[other] == into and able[other, home[node]]:
            return other
    return int(END)


@compiled
def _put(
    tables: Tables,
    run: Run,
    home: Ints,
    order: Ints,
    count: int,
    node: int,
    device: int,
    partner: int,
    moment: float,
    limit: float,
    chance: Ints,
    put: Ints,
    many: int,
) -> int:
    """Note where the pieces of a node on a device would go; `put` has places and pieces.

    They go between when they could begin and when they would have to, for the length not to be over
    the limit: near to a moment, or by chance if that is negative. A `partner` moves, too. END is
    returned where they can go nowhere, or where a lane of which there is one would have to put off
    what has no time left.
    """
    pieces, seconds_of, _, own, _, _, resources, items = tables[:8]
    times, kept_s = run[TIMES], run[KEPT_S]
    when, at = _ready(tables, run, home, node, partner)
    behind = _tail_behind(tables, run, home, node, partner)
    spare = limit - behind - _alone(tables, node, device) - when
    if spare < 0:
        return END
    if moment < 0:
        when += spare * next_chance(chance, 1000) / 1000
    else:
        when = min(max(moment, when), when + spare)
    while at + EVERY < count and times[order[at + EVERY], BEGAN] < when:
        at += EVERY
    head = own[node, device, FIRST]
    ends = np.empty(own[node, device + 1, FIRST] - head)
    busy = kept_s[at // EVERY].copy()  # lanes of which there is one
    at -= at % EVERY
    for piece in range(head, own[node, device + 1, FIRST]):
        begins = when
        for item in range(pieces[piece, AFTER], pieces[piece + 1, AFTER]):
            begins = max(begins, ends[items[item]])
        resource = pieces[piece, RESOURCE]
        lane, is_single = resources[resource, LANE], resources[resource, WIDTH] == 1
        while at < count and times[order[at], BEGAN] < begins:
            busy[resources[pieces[order[at], RESOURCE], LANE]] = times[order[at], ENDED]
            at += 1
        if is_single:
            begins = max(begins, busy[lane])
        ends[piece - head] = begins + seconds_of[piece]
        after = at
        while is_single and after < count and pieces[order[after], RESOURCE] != resource:
            after += 1
        has_next = is_single and after < count and partner == END
        if has_next and ends[piece - head] + times[order[after], TAIL] > limit:
            return END
        put[0, many], put[1, many] = at, piece
        many += 1
    return many


@compiled
def _relocated(
    tables: Tables, run: Run, order: Ints, count: int, node: int, other: int, put: Ints, many: int
) -> tuple[int, int, int]:
    """Write an order without the pieces of two nodes, and with others, each before its place.

    Returns how many pieces it has, the place from which on it differs, and up to which.
    """
    pieces, _, _, own = tables[:4]
    marks, orders = run[MARKS], run[ORDERS]
    for one in range(1, many):  # by place; those of one node stay in their order
        place, piece, into = put[0, one], put[1, one], one
        while into > 0 and put[0, into - 1] > place:
            put[0, into], put[1, into] = put[0, into - 1], put[1, into - 1]
            into -= 1
        put[0, into], put[1, into] = place, piece
    low, high = put[0, 0], put[0, many - 1]
    after = count + many
    for gone in (node, other):
        if gone >= 0:
            for piece in range(own[gone, 0, FIRST], own[gone, own.shape[1] - 1, FIRST]):
                place = marks[piece, PLACE]
                if place < FAR:
                    low, high = min(low, place), max(high, place + 1)
                    after -= 1
    begin = low - low % EVERY
    for place in range(begin, low):
        orders[ORDER, place] = order[place]
    into, one = low, 0
    for place in range(low, high):
        while one < many and put[0, one] == place:
            orders[ORDER, into] = put[1, one]
            into, one = into + 1, one + 1
        piece = order[place]
        is_gone = pieces[piece, NODE] == node or pieces[piece, NODE] == other
        if not is_gone or pieces[piece, RENEWS] != END:
            orders[ORDER, into] = piece
            into += 1
    while one < many:
        orders[ORDER, into] = put[1, one]
        into, one = into + 1, one + 1
    for place in range(high, count):
        orders[ORDER, place + after - count] = order[place]
    return after, begin, into


@compiled
def _shifted(run: Run, order: Ints, count: int, piece: int, to: int) -> tuple[int, int]:
    """Write an order with one piece elsewhere; from where on it differs, and up to which place."""
    orders = run[ORDERS]
    at = run[MARKS][piece, PLACE]
    low, high = min(at, to), max(at, to) + 1
    begin = low - low % EVERY
    for place in range(begin, count):
        orders[ORDER, place] = order[place]
    for place in range(at, to):
        orders[ORDER, place] = order[place + 1]
    for place in range(to, at):
        orders[ORDER, place + 1] = order[place]
    orders[ORDER, to] = piece
    return begin, high


@compiled
def _hot(run: Run, order: Ints, count: int, seconds: float, path: Ints) -> tuple[int, int]:
    """Fill in the pieces that the length hangs on; how many, and the place of the last to end."""
    times, many, last = run[TIMES], 0, count
    for place in range(count):
        piece = order[place]
        if times[piece, BEGAN] + times[piece, TAIL] >= seconds * (1 - 1e-9):
            path[many] = piece
            many += 1
        if times[piece, ENDED] == seconds:
            last = place
    return many, last


@compiled
def _rehome(tables: Tables, run: Run, home: Ints, node: int, device: int) -> None:
    """Let a node be done by another device."""
    pieces, _, _, own, _, values, _, items = tables[:8]
    reads = run[FORM_READS]
    for gone, by in ((home[node], -1), (device, 1)):
        for piece in range(own[node, gone, FIRST], own[node, gone + 1, FIRST]):
            for item in range(pieces[piece, READS], pieces[piece + 1, READS]):
                form = values[items[item] >> SIDE_BITS, FORM]
                if form >= 0:
                    reads[form] += by
    home[node] = device


@compiled
def _restate(tables: Tables, run: Run, node: int, was: int, device: int) -> bool:
    """Let states that a node updates begin where another device does it; whether that changes any.

    What is noted for it the next decoding's end undoes or keeps.
    """
    nodes, items, side_of = tables[2], tables[7], tables[10]
    arrived, brought, caused = run[ARRIVED], run[BROUGHT], run[CAUSED]
    old_values, old_arrived, noted = run[OLD_VALUES], run[OLD_ARRIVED], run[NOTED]
    has_states = False
    for item in range(nodes[node, UPDATES], nodes[node + 1, UPDATES]):
        for which, who in ((was, NEVER), (device, START)):
            if side_of[which] != HOST:
                note, place = noted[VALUES_NOTED], (items[item] << SIDE_BITS) + side_of[which]
                old_values[note, 0], old_values[note, 1] = place, brought[place]
                old_values[note, 2] = caused[place]
                old_arrived[note] = arrived[place]
                arrived[place], brought[place], caused[place] = 0.0, who, END
                noted[VALUES_NOTED] = note + 1
                has_states = True
    return has_states


@compiled
def _forget(tables: Tables, run: Run, node: int, device: int) -> None:
    """Pieces of a node that it has no longer are in no order."""
    (_, _, _, own), marks = tables[:4], run[MARKS]
    for piece in range(own[node, device, FIRST], own[node, device + 1, FIRST]):
        marks[piece, PLACE] = FAR


@compiled
def improve(
    tables: Tables,
    run: Run,
    assigned: Ints,
    given: Ints,
    changes: int,
    seed: int,
    able: Bools,
    movable: Ints,
    warm: tuple[float, float],
) -> tuple[float, Ints, Ints]:
    """The best of so many changes: seconds, the device of each node, pieces in order.

    A change may make it longer by HEAT times a share that goes from one `warm` to the other.
    Where the order given cannot be decoded, it is returned with infinite seconds.
    """
    pieces, own, marks, orders = tables[0], tables[3], run[MARKS], run[ORDERS]
    home, order, count = assigned.copy(), np.empty(orders.shape[1], np.int64), len(given)
    for place in range(count):
        orders[ORDER, place] = given[place]
    none = 0 * changes  # no constant, for which all would be compiled once more
    ended, held, done, last = decode(tables, run, home, count, none, count, none, np.inf)
    if ended != DECODED:
        return np.inf, home, given
    accept(run, order, none, count)
    find_tails(tables, run, home, order, count, held, last)
    heat, best_s, best_home, best = HEAT * held, held, home.copy(), given.copy()
    path, put, chance = np.empty_like(order), np.empty((2, len(order)), np.int64), np.array([seed])
    hot, settles = _hot(run, order, count, held, path)
    stale = 0
    for change in range(changes):
        share = warm[0] + (warm[1] - warm[0]) * change / changes
        limit = held + heat * share * next_chance(chance, 1000) / 1000
        is_hot, node, other, device, into = next_chance(chance, 100) < HOT, END, END, 0, 0
        has_states = False
        if next_chance(chance, 100) < SHIFTS:
            piece = path[next_chance(chance, hot)] if is_hot else order[next_chance(chance, count)]
            before, at = marks[piece, LANE_AFTER], marks[piece, PLACE]
            to = at + next_chance(chance, 2 * WINDOW + 1) - WINDOW
            if next_chance(chance, 2) == 0 and before != END:
                to = marks[before, PLACE]
            to = max(0, min(count - 1, to))
            if to == at:
                continue
            begin, changed = _shifted(run, order, count, piece, to)
            after, settled = count, settles
        else:
            node = int(movable[next_chance(chance, len(movable))])
            if is_hot:
                node = int(pieces[path[next_chance(chance, hot)], NODE])
            device, into = int(home[node]), next_chance(chance, able.shape[1])
            if into == device or not able[node, into]:
                continue
            own_moment = others_moment = -1.0
            if next_chance(chance, 100) < SWAPS:
                other = _neighbour(tables, run, home, order, count, node, into, able, chance)
                if other == END:
                    continue
                own_moment = run[TIMES][own[other, into, FIRST], BEGAN]
                others_moment = run[TIMES][own[node, device, FIRST], BEGAN]
            many = _put(
                *(tables, run, home, order, count, node, into, other),
                *(own_moment, limit, chance, put, none),
            )
            if many != END and other != END:
                many = _put(
                    *(tables, run, home, order, count, other, device, node),
                    *(others_moment, limit, chance, put, many),
                )
            if many == END:
                continue
            after, begin, changed = _relocated(tables, run, order, count, node, other, put, many)
            settled = settles if after == count else END
            _rehome(tables, run, home, node, into)
            has_states = _restate(tables, run, node, device, into)
            if other != END:
                _rehome(tables, run, home, other, device)
                has_states = _restate(tables, run, other, into, device) or has_states
        ended, seconds, done, end = decode(tables, run, home, after, begin, changed, settled, limit)
        if has_states and (ended == SETTLED or (ended == DECODED and seconds <= limit)):
            # So far what reads the states earlier was left as it is; four of five fail without.
            undo(run)
            _restate(tables, run, node, device, into)
            if other != END:
                _restate(tables, run, other, into, device)
            for place in range(begin):
                orders[ORDER, place] = order[place]
            begin = none
            ended, seconds, done, end = decode(
                tables, run, home, after, begin, changed, none, limit
            )
        if ended == SETTLED or (ended == DECODED and seconds <= limit):
            count = after
            if node != END:
                _forget(tables, run, node, device)
            if other != END:
                _forget(tables, run, other, into)
            accept(run, order, begin, done)
            stale += 1
            if ended == DECODED:
                held, last = seconds, end
            if ended == DECODED or node != END or stale > STALE:
                find_tails(tables, run, home, order, count, held, last)
                hot, settles = _hot(run, order, count, held, path)
                stale = 0
            if held < best_s:
                best_s, best, best_home = held, order[:count].copy(), home.copy()
        else:
            if node != END:
                _rehome(tables, run, home, node, device)
            if other != END:
                _rehome(tables, run, home, other, into)
            undo(run)
    return best_s, best_home, best
