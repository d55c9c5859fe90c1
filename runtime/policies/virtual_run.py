"""The machine code of `estimate`: the steps of an assignment, and their list schedule.

`lay` writes the steps, node after node: copies of states, transfers, pieces, forms that are
renewed. `run` lets the ready step of highest rank start whenever a lane is free. Both are loops
over the arrays of `flat`, compiled once (numba, kept on disk), since planning spends its time here.
No operation is reordered, so every computer reckons the same. What is compiled cannot be annotated
with more than arrays and tuples of them.
"""

from collections.abc import Callable
from typing import TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

F = TypeVar("F", bound=Callable[..., object])
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
ABSENT, AT_START = -2, -1  # of a value on a side: not there; there when a run begins
END = -1  # of a list
HOST = 0
RESOURCE, PARTS, NODE, PIECE, MISSING = range(5)  # rows of the steps


def compiled(function: F) -> F:
    """A function as machine code that keeps every operation as written."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # neither this folder nor the user's can be written: compile each time
        return cast(F, numba.njit(nogil=True)(function))


@compiled
def endangered(
    home: Ints,
    sides: Ints,
    is_remote: Bools,
    writer: Ints,
    inputs: tuple[Ints, Ints],
    ends: Ints,
    is_earlier: Bools,
) -> Bools:
    """The copies of states that a run makes: of those that it may have changed when it fails."""
    count, saves = len(home), len(is_earlier)
    is_saved = np.zeros(saves, np.bool_)
    fallible = np.zeros(count, np.int64)
    found, remote = 0, False
    for node in range(count):
        remote = remote or is_remote[home[node]]
        may_fail = is_remote[home[node]]
        for place in range(inputs[0][node], inputs[0][node + 1]):
            other = writer[inputs[1][place]]
            may_fail = may_fail or (other >= 0 and sides[home[other]] != sides[home[node]])
        if may_fail:
            fallible[found] = node
            found += 1
    if not remote:
        return is_saved
    for value in ends:
        if writer[value] >= 0 and sides[home[writer[value]]] != HOST:
            is_saved[:] = True
            return is_saved
    for save in range(saves):
        for place in range(found):
            if not is_earlier[save, fallible[found - 1 - place]]:
                is_saved[save] = True
                break
    return is_saved


@compiled
def _step(
    resource: int,
    parts: int,
    node: int,
    piece: int,
    duration: float,
    steps: Ints,
    seconds: Floats,
    next_of: Ints,
    used: Ints,
) -> int:
    """A new step that waits for nothing yet."""
    step = int(used[0])
    used[0] += 1
    steps[RESOURCE, step], steps[PARTS, step] = resource, parts
    steps[NODE, step], steps[PIECE, step] = node, piece
    steps[MISSING, step] = 0
    seconds[step], next_of[step] = duration, END
    return step


@compiled
def _link(before: int, step: int, steps: Ints, next_of: Ints, links: Ints, used: Ints) -> None:
    """Let a step wait for another; counts on where there is no room."""
    place = used[1]
    used[1] += 1
    if place < links.shape[1]:
        links[0, place], links[1, place] = step, next_of[before]
        next_of[before] = place
        steps[MISSING, step] += 1


@compiled
def _read_by(value: int, step: int, readers: Ints, read: Ints, used: Ints) -> None:
    """Note a reader of what is written again."""
    place = used[2]
    used[2] += 1
    if place < read.shape[1]:
        read[0, place], read[1, place] = step, readers[value]
        readers[value] = place


@compiled
def _brought(
    value: int,
    side: int,
    node: int,
    hops: tuple[Ints, Ints, Floats],
    marks: tuple[Bools, Bools],
    arrived: Ints,
    readers: Ints,
    read: Ints,
    steps: Ints,
    seconds: Floats,
    next_of: Ints,
    links: Ints,
    used: Ints,
) -> int:
    """The step after which a value is valid on a side, with transfers; AT_START: it lies there."""
    if arrived[value, side] != ABSENT:
        return int(arrived[value, side])
    if marks[0][value]:
        arrived[value, side] = AT_START
        return AT_START
    origin = HOST
    if side == HOST or arrived[value, HOST] == ABSENT:
        for other in range(1, arrived.shape[1]):
            if arrived[value, other] != ABSENT:
                origin = other
                break
    last = int(arrived[value, origin])
    if last == ABSENT:
        last = AT_START
    row = hops[0][value]
    for place in range(2):
        resource = hops[1][row, origin, side, place]
        if resource < 0:
            break
        duration = hops[2][row, origin, side, place]
        step = _step(resource, 1, node, END, duration, steps, seconds, next_of, used)
        if last >= 0:
            _link(last, step, steps, next_of, links, used)
        last = step
        if origin != HOST and arrived[value, HOST] == ABSENT:  # the first hop is to the host's side
            arrived[value, HOST] = last
    arrived[value, side] = last
    if marks[1][value] and last >= 0:
        _read_by(value, last, readers, read, used)
    return last


@compiled
def lay(
    home: Ints,
    is_saved: Bools,
    first: Ints,
    pieces: tuple[Ints, Floats, Ints],
    after: tuple[Ints, Ints],
    reads: tuple[Ints, Ints, Ints],
    outputs: tuple[Ints, Ints],
    updates: tuple[Ints, Ints],
    saves: tuple[Ints, Ints, Ints, Floats],
    renewals: tuple[Ints, Ints, Ints, Ints],
    hops: tuple[Ints, Ints, Floats],
    marks: tuple[Bools, Bools],
    ends: Ints,
    sides: Ints,
    arrived: Ints,
    readers: Ints,
    read: Ints,
    steps: Ints,
    seconds: Floats,
    next_of: Ints,
    links: Ints,
    used: Ints,
) -> None:
    """Write all steps; `used` counts steps, links and readers, beyond the room there is, too."""
    before = np.zeros(len(saves[2]) + read.shape[1], np.int64)
    for node in range(len(home)):
        for place in range(updates[0][node], updates[0][node + 1]):
            state = updates[1][place]
            arrived[state, HOST] = arrived[state, sides[home[node]]] = AT_START
    for node in range(len(home)):
        waits = 0
        for place in range(saves[0][node], saves[0][node + 1]):
            save = saves[1][place]
            if is_saved[save]:
                before[waits] = _step(
                    int(saves[2][save]),
                    1,
                    node,
                    END,
                    float(saves[3][save]),
                    steps,
                    seconds,
                    next_of,
                    used,
                )
                waits += 1
        for place in range(updates[0][node], updates[0][node + 1]):
            reader = readers[updates[1][place]]
            while reader != END:
                before[waits] = read[0, reader]
                waits += 1
                reader = read[1, reader]
        begin, end = first[node, home[node]], first[node, home[node] + 1]
        due = renewals[0][node + 1] - renewals[0][node]
        for turn in range(1 + due):
            form = END
            if turn > 0:  # a form that is kept, renewed after the node
                renewal = renewals[1][renewals[0][node] + turn - 1]
                form = renewals[2][renewal]
                if readers[form] == END:
                    continue
                begin, end = renewals[3][renewal], renewals[3][renewal] + 1
                waits, reader = 0, readers[form]
                while reader != END:
                    before[waits] = read[0, reader]
                    waits += 1
                    reader = read[1, reader]
            own = np.zeros(end - begin, np.int64)
            for piece in range(begin, end):
                came = np.zeros(reads[0][piece + 1] - reads[0][piece], np.int64)
                for place in range(len(came)):
                    at = reads[0][piece] + place
                    came[place] = _brought(
                        int(reads[1][at]),
                        int(reads[2][at]),
                        node,
                        hops,
                        marks,
                        arrived,
                        readers,
                        read,
                        steps,
                        seconds,
                        next_of,
                        links,
                        used,
                    )
                step = _step(
                    pieces[0][piece],
                    pieces[2][piece],
                    node,
                    piece,
                    pieces[1][piece],
                    steps,
                    seconds,
                    next_of,
                    used,
                )
                own[piece - begin] = step
                for place in range(after[0][piece], after[0][piece + 1]):
                    _link(int(own[after[1][place]]), step, steps, next_of, links, used)
                for place in range(len(came)):
                    if came[place] >= 0:
                        _link(came[place], step, steps, next_of, links, used)
                for place in range(waits):
                    _link(before[place], step, steps, next_of, links, used)
                for place in range(reads[0][piece], reads[0][piece + 1]):
                    if marks[1][reads[1][place]]:
                        _read_by(reads[1][place], step, readers, read, used)
            if turn == 0:
                for place in range(outputs[0][node], outputs[0][node + 1]):
                    arrived[outputs[1][place], sides[home[node]]] = own[len(own) - 1]
            if used[1] > links.shape[1] or used[2] > read.shape[1]:
                return
    for value in ends:
        _brought(
            value,
            HOST,
            len(home) - 1,
            hops,
            marks,
            arrived,
            readers,
            read,
            steps,
            seconds,
            next_of,
            links,
            used,
        )


@compiled
def longest(resources: int, steps: Ints, seconds: Floats, next_of: Ints, links: Ints) -> Floats:
    """Seconds of lanes of each resource, and in the end those of the longest path."""
    found = np.zeros(resources + 1, np.float64)
    ends = np.zeros(steps.shape[1], np.float64)
    for step in range(steps.shape[1]):  # before those that wait for it
        ends[step] += seconds[step]
        found[steps[RESOURCE, step]] += seconds[step] * steps[PARTS, step]
        found[resources] = max(found[resources], ends[step])
        link = next_of[step]
        while link != END:
            ends[links[0, link]] = max(ends[links[0, link]], ends[step])
            link = links[1, link]
    return found


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
    started: Floats,
    ended: Floats,
) -> int:
    """Fill in when steps start and end; return how many of them ran.

    `order` ranks nodes, 0 the highest. A device's clock of work advances more slowly while others
    are busy, too.
    """
    many, resources, devices = steps.shape[1], len(width), slowdowns.shape[1]
    missing, free = steps[MISSING].copy(), width.copy()
    ready = np.zeros((resources, many + 1), np.int64)
    waiting = np.zeros(resources, np.int64)
    work = np.zeros((devices, many + 1), np.float64)
    pending = np.zeros((devices, many + 1), np.int64)
    running = np.zeros(devices, np.int64)
    rate, anchor, anchor_work = np.ones(devices), np.zeros(devices), np.zeros(devices)
    touched = np.ones(resources, np.bool_)
    for step in range(many):
        if missing[step] == 0:
            lane = int(steps[RESOURCE, step])
            _push(ready[lane], waiting[lane], order[steps[NODE, step]] * many + step)
            waiting[lane] += 1
    now, mask, done = 0.0, 0, 0
    while True:
        for lane in range(resources):
            if not touched[lane]:
                continue
            touched[lane] = False
            device = int(worker[lane])
            while waiting[lane] > 0:
                step = ready[lane, 0] % many
                if steps[PARTS, step] > free[lane]:
                    break
                _pop(ready[lane], waiting[lane])
                waiting[lane] -= 1
                free[lane] -= steps[PARTS, step]
                started[step] = now
                at = float(anchor_work[device] + (now - anchor[device]) * rate[device])
                _push_work(
                    work[device], pending[device], running[device], at + float(seconds[step]), step
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
            touched[frees[piece]] = True
        link = next_of[step]
        while link != END:
            other = links[0, link]
            missing[other] -= 1
            if missing[other] == 0:
                lane = int(steps[RESOURCE, other])
                _push(ready[lane], waiting[lane], order[steps[NODE, other]] * many + other)
                waiting[lane] += 1
                touched[lane] = True
            link = links[1, link]
    return done
