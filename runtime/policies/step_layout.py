"""The machine code of `estimate`, its first half: `lay` writes the steps of an assignment.

Node after node: copies of states, transfers, pieces, forms that are renewed. This and `virtual_run`
are loops over the arrays of `flat`, in machine code, since planning spends its time here.
"""

import numpy as np
import numpy.typing as npt

from aieflow.runtime.policies.machine_code import compiled

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
ABSENT, AT_START = -2, -1  # of a value on a side: not there; there when a run begins
END = -1  # of a list
HOST = 0
RESOURCE, PARTS, NODE, PIECE, MISSING = range(5)  # rows of the steps


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
    before: Ints,
    waits: int,
    steps: Ints,
    seconds: Floats,
    next_of: Ints,
    links: Ints,
    used: Ints,
) -> int:
    """A new step after the first `waits` of `before`; counts on where there is no room for links.

    Arrays are counted in and out of each call, so there is one call a step.
    """
    step = int(used[0])
    used[0] += 1
    steps[RESOURCE, step], steps[PARTS, step] = resource, parts
    steps[NODE, step], steps[PIECE, step] = node, piece
    seconds[step], next_of[step] = duration, END
    missing, place = 0, used[1]
    for other in before[:waits]:
        if place < links.shape[1]:
            links[0, place], links[1, place] = step, next_of[other]
            next_of[other] = place
            missing += 1
        place += 1
    steps[MISSING, step], used[1] = missing, place
    return step


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
    """The step after which a value is valid on another side, with its transfers, if any."""
    is_anywhere, is_kept = marks
    rows, lanes, durations = hops
    if is_anywhere[value]:
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
    before = np.empty(1, np.int64)
    row = rows[value]
    for place in range(2):
        resource = lanes[row, origin, side, place]
        if resource < 0:
            break
        duration = durations[row, origin, side, place]
        before[0] = last
        last = _step(
            resource,
            1,
            node,
            END,
            duration,
            before,
            1 if last >= 0 else 0,
            steps,
            seconds,
            next_of,
            links,
            used,
        )
        if origin != HOST and arrived[value, HOST] == ABSENT:  # the first hop is to the host's side
            arrived[value, HOST] = last
    arrived[value, side] = last
    if is_kept[value] and last >= 0:
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
    resources, durations, widths = pieces
    after_starts, after_items = after
    read_starts, read_values, read_sides = reads
    out_starts, out_items = outputs
    update_starts, update_items = updates
    save_starts, save_items, save_lanes, save_s = saves
    renewal_starts, renewal_items, renewal_values, renewal_pieces = renewals
    _, is_kept = marks
    own = np.empty(len(read_starts), np.int64)
    before = np.empty(
        len(save_lanes) + read.shape[1] + len(after_items) + len(read_values), np.int64
    )
    for node in range(len(home)):
        for place in range(update_starts[node], update_starts[node + 1]):
            state = update_items[place]
            arrived[state, HOST] = arrived[state, sides[home[node]]] = AT_START
    for node in range(len(home)):
        waits = 0
        for place in range(save_starts[node], save_starts[node + 1]):
            save = save_items[place]
            if is_saved[save]:
                before[waits] = _step(
                    int(save_lanes[save]),
                    1,
                    node,
                    END,
                    float(save_s[save]),
                    before,
                    0,
                    steps,
                    seconds,
                    next_of,
                    links,
                    used,
                )
                waits += 1
        for place in range(update_starts[node], update_starts[node + 1]):
            reader = readers[update_items[place]]
            while reader != END:
                before[waits] = read[0, reader]
                waits += 1
                reader = read[1, reader]
        begin, end = first[node, home[node]], first[node, home[node] + 1]
        due = renewal_starts[node + 1] - renewal_starts[node]
        for turn in range(1 + due):
            form = END
            if turn > 0:  # a form that is kept, renewed after the node
                renewal = renewal_items[renewal_starts[node] + turn - 1]
                form = renewal_values[renewal]
                if readers[form] == END:
                    continue
                begin, end = renewal_pieces[renewal], renewal_pieces[renewal] + 1
                waits, reader = 0, readers[form]
                while reader != END:
                    before[waits] = read[0, reader]
                    waits += 1
                    reader = read[1, reader]
            for piece in range(begin, end):
                many = waits
                for place in range(after_starts[piece], after_starts[piece + 1]):
                    before[many] = own[after_items[place]]
                    many += 1
                for place in range(read_starts[piece], read_starts[piece + 1]):
                    value, side = read_values[place], read_sides[place]
                    came = arrived[value, side]
                    if came == ABSENT:
                        came = _brought(
                            int(value),
                            int(side),
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
                    if came >= 0:
                        before[many] = came
                        many += 1
                step = _step(
                    resources[piece],
                    widths[piece],
                    node,
                    piece,
                    durations[piece],
                    before,
                    many,
                    steps,
                    seconds,
                    next_of,
                    links,
                    used,
                )
                own[piece - begin] = step
                for place in range(read_starts[piece], read_starts[piece + 1]):
                    if is_kept[read_values[place]]:
                        _read_by(read_values[place], step, readers, read, used)
            if turn == 0:
                for place in range(out_starts[node], out_starts[node + 1]):
                    arrived[out_items[place], sides[home[node]]] = own[end - begin - 1]
            if used[1] > links.shape[1] or used[2] > read.shape[1]:
                return
    for value in ends:
        if arrived[value, HOST] == ABSENT:
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
