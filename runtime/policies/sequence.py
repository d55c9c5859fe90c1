"""The machine code of `sequence_search`, its first part: what pieces take in a given order.

`decode` is a serial schedule generation (Kolisch, EJOR 90, 1996): piece after piece begins as soon
as its operands have come, and lanes, slots and its turn allow. No piece overtakes an earlier one on
its lanes, as lanes of a plan run in order; so a lane may stand idle for what comes next, which no
list schedule lets it. A piece that others have to come before is put off until they have. Pieces
are those of `flat`, of which an assignment has some.

A change is decoded from shortly before it, where the state of all lanes was kept, and only until
nothing differs any more, or the length is sure to be over a limit. What it overwrites is noted, to
be undone.

The arrays have a row for each piece, node, value, resource, or kept state; what their columns are
called stands below. They come in two tuples, which each function unpacks before its loops: arrays
are counted whenever they change hands.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from aieflow.runtime.policies.machine_code import compiled, compiled_into, natural
from aieflow.runtime.policies.step_layout import END, HOST, Floats, Ints

Counts: TypeAlias = npt.NDArray[np.int32]  # half as long, so more of them are at hand

EVERY = 16  # pieces from one kept state to the next
FAR = 1 << 30  # the place of a piece that is not in the order
SIDE_BITS, SIDE_MASK = 3, 7  # a value on a side is one number: value << SIDE_BITS | side
START, NEVER = -1, -2  # who brought a value to a side: it was there; nobody
DECODED, SETTLED, TOO_LONG, STUCK = range(4)  # how a decoding ended

# Columns. Lists of numbers are in `items`, from what a row says to what the next one says.
NODE, RESOURCE, PARTS, RENEWS, HOLDS, FREES, TAKER, OPENS, AFTER, READS = range(10)  # of a piece
FOLLOWS, FOLLOWERS, OUTPUTS, UPDATES = range(4)  # of a node
FIRST, IN_TURN, SLOTS = range(3)  # of a node on a device: pieces from here on, and how many
WRITER, IS_END, READERS, FORM, HOPS = range(5)  # of a value
LANE, WIDTH, IS_IN_TURN = range(3)  # of a resource: its first lane, and how many; 0: without end
BEGAN, ENDED, TAIL, THEN = range(4)  # of a piece, in seconds
LANE_AFTER, SLOT_AFTER, CAUSE, PLACE, STAMP = range(5)  # of a piece: whom it waited for; its place
ORDER, DONE, PUT_OFF = range(3)  # rows of orders: to be decoded, decoded, put off
PIECES_NOTED, VALUES_NOTED, NODES_NOTED, DECODINGS = range(4)
# The state of lanes, slots among them: who was last, then these, then slots taken of a resource.
TAKEN, TURN, LEFT, DUE = range(4)  # turns taken, whose it is, its pieces to come, slots to come
COUNTS = 4

# What does not change: pieces, their seconds, nodes, nodes on devices, when a node's states are
# saved, values, resources, items of lists, hops (resources, seconds) by row, from, to and number,
# sides of devices, and values that must be on the host's side in the end.
Tables: TypeAlias = tuple[
    Counts, Floats, Counts, Counts, Floats, Counts, Counts, Counts, Ints, Floats, Ints, Ints
]
# What a decoding writes: times and marks of pieces, turns of nodes, how many pieces read a form,
# arrivals of values on sides (when, by whom, and who made that so late), the state of lanes (since
# when they are free, and the end of all; numbers), such states that are kept, those that are new,
# notes of pieces (numbers, times), of values (numbers, times) and of nodes, how many, and orders.
Run: TypeAlias = tuple[
    Floats, Counts, Counts, Counts, Floats, Counts, Counts, Floats, Counts, Floats, Counts,
    Floats, Counts, Counts, Floats, Counts, Floats, Counts, Counts, Counts
]  # fmt: skip


TIMES, MARKS, TURNS, FORM_READS, ARRIVED, BROUGHT, CAUSED = range(7)  # places in a Run
NOW_S, NOW, KEPT_S, KEPT, NEW_S, NEW = range(7, 13)
OLD_PIECES, OLD_TIMES, OLD_VALUES, OLD_ARRIVED, OLD_TURNS, NOTED, ORDERS = range(13, 20)


@compiled_into
def _is_there(who: int, marks: Counts, this: int, begin: int) -> bool:
    """Whether a value is valid on a side to which somebody brought it."""
    return who == START or (who >= 0 and (marks[who, STAMP] == this or marks[who, PLACE] < begin))


@compiled_into
def last_piece(own: Counts, home: Ints, node: int) -> int:
    """The piece of a node that writes its outputs."""
    return natural(own[node, home[node] + 1, FIRST] - 1)


@compiled
def decode(
    tables: Tables,
    run: Run,
    home: Ints,
    count: int,
    begin: int,
    changed: int,
    settles: int,
    limit: float,
) -> tuple[int, float, int, int]:
    """How it ended, the seconds of what was decoded or left, how many pieces that is, and a piece.

    The order to be decoded has `count` pieces; they differ from the last order from place `begin`,
    a multiple of EVERY, to before `changed`. It may have settled up to place `settles`. The piece
    is the one whose result was brought to the host's side last of all, or END.
    """
    pieces, seconds_of, nodes, own, saved_s, values, resources, items = tables[:8]
    hops, hop_s, side_of, ends = tables[8:]
    times, marks, turns, reads, arrived, brought, caused, now_s, now, kept_s, kept = run[:11]
    new_s, new, old_pieces, old_times, old_values, old_arrived, old_turns, noted, orders = run[11:]
    sides, lanes = hops.shape[1], len(now_s) - 1
    slots, kept_row = lanes + COUNTS, begin // EVERY
    for lane in range(lanes + 1):
        now_s[lane] = kept_s[kept_row, lane]
    for lane in range(len(now)):
        now[lane] = kept[kept_row, lane]
    changes, moves, turned = 0, noted[VALUES_NOTED], 0
    noted[DECODINGS] += 1
    this = noted[DECODINGS]
    at, done, waiting, turn, until, status = begin, begin, 0, 0, 0, DECODED
    while True:
        is_put_off = turn < waiting
        if is_put_off:
            piece = natural(orders[PUT_OFF, turn])
        elif at < count:
            if at % EVERY == 0 and begin < at <= settles and at >= changed and at > until:
                is_same, kept_row = waiting == 0, at // EVERY
                for lane in range(lanes):
                    is_same = is_same and now_s[lane] == kept_s[kept_row, lane]
                for lane in range(len(now)):
                    is_same = is_same and now[lane] == kept[kept_row, lane]
                if is_same:
                    status = SETTLED
                    break
            piece = natural(orders[ORDER, at])
            at += 1
        else:
            break
        node, resource = natural(pieces[piece, NODE]), natural(pieces[piece, RESOURCE])
        device = natural(home[node])
        head, foot = natural(own[node, device, FIRST]), last_piece(own, home, node)
        lane, width = natural(resources[resource, LANE]), natural(resources[resource, WIDTH])
        renews = pieces[piece, RENEWS]
        # Behind the changes nodes are in the same order as before: those it reads of have come.
        is_sure = waiting == 0 and at > changed
        is_next = True
        if renews != END:
            is_next = is_sure or marks[foot, STAMP] == this or marks[foot, PLACE] < begin
            ready, cause = times[foot, ENDED], foot
        else:
            ready, cause = saved_s[node], END
            for item in range(pieces[piece, AFTER], pieces[piece + 1, AFTER]):
                other = natural(head + items[item])
                has_come = is_sure or marks[other, STAMP] == this or marks[other, PLACE] < begin
                if not has_come:
                    is_next = False
                    break
                if times[other, ENDED] > ready:
                    ready, cause = times[other, ENDED], other
            for item in range(nodes[node, FOLLOWS], nodes[node + 1, FOLLOWS]):
                other = last_piece(own, home, items[item])
                has_come = is_sure or marks[other, STAMP] == this or marks[other, PLACE] < begin
                if not is_next or not has_come:
                    is_next = False
                    break
                if times[other, ENDED] > ready:
                    ready, cause = times[other, ENDED], other
            reads_end = pieces[piece, READS] if is_sure else pieces[piece + 1, READS]
            for item in range(pieces[piece, READS], reads_end):
                before = values[items[item] >> SIDE_BITS, WRITER]
                if before >= 0 and is_next:
                    other = last_piece(own, home, before)
                    is_next = marks[other, STAMP] == this or marks[other, PLACE] < begin
            if pieces[piece, HOLDS]:
                is_next = is_next and now_s[lane + now[slots + resource] % width] >= 0
                is_next = is_next and (now[lanes + DUE] == 0 or pieces[piece, OPENS] == 0)
            if resources[resource, IS_IN_TURN]:
                is_next = is_next and turns[node] == now[lanes + TURN]
        if not is_next:
            if is_put_off:
                turn += 1
            else:
                orders[PUT_OFF, waiting] = piece
                waiting += 1
                turn = waiting
            continue
        if done % EVERY == 0:
            kept_row = done // EVERY
            for item in range(lanes + 1):
                new_s[kept_row, item] = now_s[item]
            for item in range(len(now)):
                new[kept_row, item] = now[item]
        old_times[changes, 0], old_times[changes, 1] = times[piece, BEGAN], times[piece, ENDED]
        old_pieces[changes, 0] = piece
        old_pieces[changes, 1] = marks[piece, LANE_AFTER]
        old_pieces[changes, 2] = marks[piece, SLOT_AFTER]
        old_pieces[changes, 3] = marks[piece, CAUSE]
        changes += 1
        marks[piece, LANE_AFTER] = marks[piece, SLOT_AFTER] = END
        orders[DONE, done] = piece
        done += 1
        if is_put_off:
            waiting -= 1
            for item in range(turn, waiting):
                orders[PUT_OFF, item] = orders[PUT_OFF, item + 1]
        turn = 0
        # What an earlier decoding let it bring it may bring no more, or by another way.
        is_idle = renews != END and reads[renews] == 0  # nobody reads the form
        for item in range(pieces[piece, READS], pieces[piece + 1, READS]):
            read = natural(items[item])
            was = read if is_idle else read & ~SIDE_MASK  # on its way, on the host's side
            if brought[was] == piece and (is_idle or was != read):
                old_values[moves, 0], old_values[moves, 1] = was, piece
                old_values[moves, 2], old_arrived[moves] = caused[was], arrived[was]
                moves += 1
                brought[was] = NEVER
                until = FAR
        if is_idle:
            marks[piece, STAMP], marks[piece, CAUSE] = this, cause
            times[piece, BEGAN] = times[piece, ENDED] = ready
            continue
        # Operands: by transfers, where they are not.
        for item in range(pieces[piece, READS], pieces[piece + 1, READS]):
            read = natural(items[item])
            if not _is_there(int(brought[read]), marks, this, begin):
                value, side = read >> SIDE_BITS, read & SIDE_MASK
                at_host, origin, when, by = value << SIDE_BITS, HOST, 0.0, END
                for one in range(sides):
                    if _is_there(int(brought[at_host + one]), marks, this, begin):
                        origin, when, by = one, arrived[at_host + one], caused[at_host + one]
                        break
                row = values[value, HOPS]
                for hop in range(2):
                    link = hops[row, origin, side, hop]
                    if link < 0:
                        break
                    other = resources[link, LANE]
                    if resources[link, WIDTH] > 0 and now_s[other] > when:
                        when, by = now_s[other], now[other]
                    when += hop_s[row, origin, side, hop]
                    if resources[link, WIDTH] > 0:
                        now_s[other], now[other] = when, by
                    if origin != HOST and side != HOST and hop == 0:  # by the host's side
                        old_values[moves, 0], old_values[moves, 1] = at_host, brought[at_host]
                        old_values[moves, 2] = caused[at_host]
                        old_arrived[moves] = arrived[at_host]
                        moves += 1
                        arrived[at_host], brought[at_host], caused[at_host] = when, piece, by
                        until = FAR
                if when != arrived[read]:
                    for reader in range(values[value, READERS], values[value + 1, READERS]):
                        place = marks[last_piece(own, home, items[reader]), PLACE]
                        if until < place < FAR:  # what is far is among the changed
                            until = place
                old_values[moves, 0], old_values[moves, 1] = read, brought[read]
                old_values[moves, 2] = caused[read]
                old_arrived[moves] = arrived[read]
                moves += 1
                arrived[read], brought[read], caused[read] = when, piece, by
            if arrived[read] > ready:
                ready, cause = arrived[read], caused[read]
        marks[piece, STAMP] = this
        # A slot, or lanes.
        if pieces[piece, HOLDS]:
            lane += now[slots + resource] % width
            marks[piece, SLOT_AFTER] = now[lane]
            if now_s[lane] > ready:
                ready, cause = now_s[lane], now[lane]
            end = ready + seconds_of[piece]
            now_s[lane], now[lane] = -1.0, piece
            now[slots + resource] += 1
            if pieces[piece, OPENS]:
                old_turns[turned, 0], old_turns[turned, 1] = node, turns[node]
                turned += 1
                turns[node] = now[lanes + TAKEN]
                now[lanes + TAKEN] += 1
                now[lanes + DUE] = own[node, device, SLOTS]
            now[lanes + DUE] -= 1
        elif width == 0:
            end = ready + seconds_of[piece]
        else:  # lanes stand in the order in which they are free; those that are so last are taken
            parts = pieces[piece, PARTS]
            marks[piece, LANE_AFTER] = now[lane + parts - 1]
            if now_s[lane + parts - 1] > ready:
                ready, cause = now_s[lane + parts - 1], now[lane + parts - 1]
            end = ready + seconds_of[piece]
            after = lane + parts
            while after < lane + width and now_s[after] <= ready:
                after += 1
            into = after - parts
            while after < lane + width and now_s[after] < end:
                now_s[into], now[into] = now_s[after], now[after]
                into += 1
                after += 1
            for item in range(into, into + parts):
                now_s[item], now[item] = end, piece
        marks[piece, CAUSE] = cause
        is_new = end != times[piece, ENDED] or marks[piece, PLACE] == FAR
        times[piece, BEGAN], times[piece, ENDED] = ready, end
        now_s[lanes] = max(now_s[lanes], end)
        frees = pieces[piece, FREES]
        if frees >= 0:
            lane = resources[frees, LANE]
            for item in range(lane, lane + resources[frees, WIDTH]):
                if now[item] == pieces[piece, TAKER]:
                    now_s[item], now[item] = end, piece
        if resources[resource, IS_IN_TURN]:
            if now[lanes + LEFT] == 0:
                now[lanes + LEFT] = own[node, device, IN_TURN]
            now[lanes + LEFT] -= 1
            if now[lanes + LEFT] == 0:
                now[lanes + TURN] += 1
        if renews == END and piece == foot:
            for item in range(nodes[node, OUTPUTS], nodes[node + 1, OUTPUTS]):
                value = items[item]
                written = (value << SIDE_BITS) + side_of[device]
                old_values[moves, 0], old_values[moves, 1] = written, brought[written]
                old_values[moves, 2] = caused[written]
                old_arrived[moves] = arrived[written]
                moves += 1
                arrived[written], brought[written], caused[written] = end, piece, piece
                if is_new:
                    for reader in range(values[value, READERS], values[value + 1, READERS]):
                        place = marks[last_piece(own, home, items[reader]), PLACE]
                        if until < place < FAR:
                            until = place
                    if values[value, IS_END]:
                        until = FAR
            if is_new:
                for item in range(nodes[node, FOLLOWERS], nodes[node + 1, FOLLOWERS]):
                    place = marks[last_piece(own, home, items[item]), PLACE]
                    if until < place < FAR:
                        until = place
        elif is_new and until < marks[foot, PLACE] < FAR:
            until = marks[foot, PLACE]
        if at > changed and not is_put_off and ready + times[piece, TAIL] > limit:
            status = TOO_LONG
            break
    if status == DECODED and waiting > 0:
        status = STUCK
    last = END
    for number in range(len(ends) if status == DECODED else 0):
        value = ends[number]
        at_host = value << SIDE_BITS
        for side in range(sides):
            if not _is_there(int(brought[at_host + side]), marks, this, begin):
                continue
            if side != HOST:
                when, by, row = arrived[at_host + side], caused[at_host + side], values[value, HOPS]
                link = hops[row, side, HOST, 0]
                lane = resources[link, LANE]
                if resources[link, WIDTH] > 0 and now_s[lane] > when:
                    when, by = now_s[lane], now[lane]
                when += hop_s[row, side, HOST, 0]
                if resources[link, WIDTH] > 0:
                    now_s[lane], now[lane] = when, by
                if when > now_s[lanes]:
                    now_s[lanes], last = when, int(by)
            break
    noted[PIECES_NOTED], noted[VALUES_NOTED], noted[NODES_NOTED] = changes, moves, turned
    return status, now_s[lanes], done, last


@compiled
def undo(run: Run) -> None:
    """Let everything be as before the last decoding, and the changes that were noted for it."""
    times, marks, turns, _, arrived, brought, caused = run[:7]
    old_pieces, old_times, old_values, old_arrived, old_turns, noted = run[13:19]
    for note in range(noted[PIECES_NOTED]):
        piece = old_pieces[note, 0]
        times[piece, BEGAN], times[piece, ENDED] = old_times[note, 0], old_times[note, 1]
        marks[piece, LANE_AFTER], marks[piece, SLOT_AFTER] = (
            old_pieces[note, 1],
            old_pieces[note, 2],
        )
        marks[piece, CAUSE], marks[piece, STAMP] = old_pieces[note, 3], 0
    for note in range(noted[VALUES_NOTED] - 1, -1, -1):
        place = old_values[note, 0]
        arrived[place], brought[place] = old_arrived[note], old_values[note, 1]
        caused[place] = old_values[note, 2]
    for note in range(noted[NODES_NOTED]):
        turns[old_turns[note, 0]] = old_turns[note, 1]
    for which in range(DECODINGS):
        noted[which] = 0


@compiled
def accept(run: Run, order: Ints, begin: int, done: int) -> None:
    """Let the last decoding be what the next begins with, and write the order that it found."""
    marks, kept_s, kept, new_s, new = run[MARKS], run[KEPT_S], run[KEPT], run[NEW_S], run[NEW]
    noted, orders = run[NOTED], run[ORDERS]
    for place in range(begin, done):
        order[place] = orders[DONE, place]
        marks[order[place], PLACE] = place
    for row in range(begin // EVERY, (done + EVERY - 1) // EVERY):
        for lane in range(kept_s.shape[1]):
            kept_s[row, lane] = new_s[row, lane]
        for lane in range(kept.shape[1]):
            kept[row, lane] = new[row, lane]
    for which in range(DECODINGS):
        noted[which] = 0


@compiled
def find_tails(
    tables: Tables, run: Run, home: Ints, order: Ints, count: int, seconds: float, last: int
) -> None:
    """Seconds from the begin of each piece to the end of all, by what must follow it.

    All takes so many `seconds`; `last` is as `decode` says.
    """
    pieces, _, nodes, own, _, values, resources, items, _, hop_s, side_of, _ = tables
    times, marks = run[:2]
    for place in range(count):
        times[order[place], THEN] = 0.0
    if last != END:
        times[last, THEN] = seconds - times[last, ENDED]
    for place in range(count - 1, -1, -1):
        piece = natural(order[place])
        node = natural(pieces[piece, NODE])
        tail = times[piece, THEN] + times[piece, ENDED] - times[piece, BEGAN]
        times[piece, TAIL] = tail
        other = marks[piece, CAUSE]
        if other != END:
            between = times[piece, BEGAN] - times[other, ENDED]
            times[other, THEN] = max(times[other, THEN], tail + between)
        other = marks[piece, SLOT_AFTER]
        if other != END:
            times[other, THEN] = max(times[other, THEN], tail)
        other = marks[piece, LANE_AFTER]
        if other != END and resources[pieces[piece, RESOURCE], WIDTH] == 1:
            times[other, THEN] = max(times[other, THEN], tail)
        head = own[node, home[node], FIRST]
        for item in range(pieces[piece, AFTER], pieces[piece + 1, AFTER]):
            other = natural(head + items[item])
            times[other, THEN] = max(times[other, THEN], tail)
        if pieces[piece, RENEWS] != END:
            continue
        for item in range(nodes[node, FOLLOWS], nodes[node + 1, FOLLOWS]):
            other = last_piece(own, home, items[item])
            times[other, THEN] = max(times[other, THEN], tail)
        for item in range(pieces[piece, READS], pieces[piece + 1, READS]):
            value, side = items[item] >> SIDE_BITS, items[item] & SIDE_MASK
            before = values[value, WRITER]
            if before >= 0:
                other = last_piece(own, home, before)
                row, origin = values[value, HOPS], side_of[home[before]]
                reached = tail + hop_s[row, origin, side, 0] + hop_s[row, origin, side, 1]
                times[other, THEN] = max(times[other, THEN], reached)
