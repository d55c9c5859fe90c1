"""The machine code of `estimate`, its second half: `run` is the list schedule of laid steps.

The ready step of highest rank starts whenever a lane is free.
"""

import numpy as np

from aieflow.runtime.policies.machine_code import compiled
from aieflow.runtime.policies.step_layout import (
    END,
    MISSING,
    NODE,
    PARTS,
    PIECE,
    RESOURCE,
    Bools,
    Floats,
    Ints,
)


@compiled
def _push(heap: Ints, size: int, key: int) -> None:
    place = size
    while place > 0 and heap[(place - 1) // 2] > key:
        heap[place] = heap[(place - 1) // 2]
        place = (place - 1) // 2
    heap[place] = key


@compiled
def _pop(heap: Ints, size: int) -> int:
    """The least of `size` keys; the others are a heap again."""
    least, key = int(heap[0]), heap[size - 1]
    place, child = 0, 1
    while child < size - 1:
        if child + 1 < size - 1 and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= key:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = key
    return least


@compiled
def _push_work(work: Floats, step: Ints, size: int, end: float, number: int) -> None:
    place = size
    while place > 0:
        up = (place - 1) // 2
        if work[up] < end or (work[up] == end and step[up] < number):
            break
        work[place], step[place] = work[up], step[up]
        place = up
    work[place], step[place] = end, number


@compiled
def _pop_work(work: Floats, step: Ints, size: int) -> int:
    least, end, number = int(step[0]), work[size - 1], step[size - 1]
    place, child = 0, 1
    while child < size - 1:
        right = child + 1
        if right < size - 1 and (
            work[right] < work[child] or (work[right] == work[child] and step[right] < step[child])
        ):
            child = right
        if work[child] > end or (work[child] == end and step[child] > number):
            break
        work[place], step[place] = work[child], step[child]
        place, child = child, 2 * child + 1
    work[place], step[place] = end, number
    return least


@compiled
def run(
    steps: Ints,
    seconds: Floats,
    next_of: Ints,
    links: Ints,
    order: Ints,
    holds: Bools,
    frees: Ints,
    width: Ints,
    worker: Ints,
    slowdowns: Floats,
    goes_first: Bools,
    in_turn: Bools,
    taker: Ints,
    rings: Bools,
    started: Floats,
    ended: Floats,
    causes: Ints,
) -> int:
    """Fill in when steps start and end, and whose end let them start (`causes`); how many ran.

    `order` ranks nodes, 0 the highest; pieces that go first do so before all others. Separate
    memory is used in turn: slots are taken in a ring, a node that has taken one takes its others
    before anybody else does, and its device follows that order. A device's clock of work advances
    more slowly while others are busy, too.
    """
    many, resources, devices = steps.shape[1], len(width), slowdowns.shape[1]
    missing, free = steps[MISSING].copy(), width.copy()
    ready = np.empty((resources, many + 1), np.int64)
    waiting = np.zeros(resources, np.int64)
    work = np.empty((devices, many + 1), np.float64)
    pending = np.empty((devices, many + 1), np.int64)
    running = np.zeros(devices, np.int64)
    rate, anchor, anchor_work = np.ones(devices), np.zeros(devices), np.zeros(devices)
    touched = np.ones(resources, np.bool_)
    turn, turns = np.full(len(order), -1, np.int64), 0
    is_taken, taken = rings.copy(), np.zeros(resources, np.int64)
    slot_of = np.empty(len(holds), np.int64)  # by the piece that took it
    for first in range(many):
        if missing[first] == 0:
            lane = int(steps[RESOURCE, first])
            _push(ready[lane], waiting[lane], order[steps[NODE, first]] * many + first)
            waiting[lane] += 1
    now, mask, done, step = 0.0, 0, 0, END
    while True:
        for lane in range(resources):
            if not touched[lane]:
                continue
            touched[lane] = False
            device = int(worker[lane])
            while waiting[lane] > 0:
                begun = ready[lane, 0] % many
                piece = steps[PIECE, begun]
                takes, slot = piece != END and holds[piece], taken[lane] % width[lane]
                if steps[PARTS, begun] > free[lane] or (takes and is_taken[lane, slot]):
                    break
                _pop(ready[lane], waiting[lane])
                waiting[lane] -= 1
                free[lane] -= steps[PARTS, begun]
                started[begun], causes[begun] = now, step
                node = steps[NODE, begun]
                if takes:
                    is_taken[lane, slot], slot_of[piece] = True, slot
                    taken[lane] += 1
                    if turn[node] < 0:
                        turn[node] = turns
                        turns += 1
                at = float(anchor_work[device] + (now - anchor[device]) * rate[device])
                _push_work(
                    work[device],
                    pending[device],
                    running[device],
                    at + float(seconds[begun]),
                    begun,
                )
                running[device] += 1
        busy = 0
        for device in range(devices):
            if running[device] > 0:
                busy |= 1 << device
        if busy == 0:
            break
        if busy != mask:
            for device in range(devices):
                pace = 1 / slowdowns[busy, device]
                if running[device] > 0 and rate[device] != pace:
                    anchor_work[device] += (now - anchor[device]) * rate[device]
                    anchor[device], rate[device] = now, pace
            mask = busy
        end, chosen = np.inf, -1
        for device in range(devices):
            if running[device] > 0:
                then = anchor[device] + (work[device, 0] - anchor_work[device]) / rate[device]
                if then < end:
                    end, chosen = then, device
        now = max(now, end)
        step = _pop_work(work[chosen], pending[chosen], running[chosen])
        running[chosen] -= 1
        ended[step] = now
        done += 1
        freed, piece = steps[RESOURCE, step], steps[PIECE, step]
        touched[freed] = True
        if piece == END or not holds[piece]:
            free[freed] += steps[PARTS, step]
        if piece != END and frees[piece] >= 0:
            free[frees[piece]] += 1
            is_taken[frees[piece], slot_of[taker[piece]]] = False
            touched[frees[piece]] = True
        link = next_of[step]
        while link != END:
            other = links[0, link]
            missing[other] -= 1
            if missing[other] == 0:
                lane, node = int(steps[RESOURCE, other]), steps[NODE, other]
                rank = order[node]
                if in_turn[lane]:
                    rank = turn[node]
                elif steps[PIECE, other] != END and goes_first[steps[PIECE, other]]:
                    rank = -1
                _push(ready[lane], waiting[lane], rank * many + other)
                waiting[lane] += 1
                touched[lane] = True
            link = links[1, link]
    return done
