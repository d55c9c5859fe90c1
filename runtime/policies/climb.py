"""The machine code of `local_search`: changes an assignment at random, and keeps what is better.

A change moves one node, swaps the devices of two, or moves a stretch of a group (of like nodes, in
program order); nodes on the path that makes the length are taken more often. It is kept if its
score is better than the present one, or by chance a little worse: less so from change to change
(threshold accepting: Dueck and Scheuer, J. Comp. Phys. 90, 1990). The chances are those of a fixed
sequence (Park and Miller, CACM 31(10), 1988), so the same inputs give the same assignment on every
computer.
"""

import numpy as np

from aieflow.runtime.policies.machine_code import compiled
from aieflow.runtime.policies.step_layout import (
    ABSENT,
    END,
    NODE,
    PARTS,
    RESOURCE,
    Bools,
    Floats,
    Ints,
    endangered,
    lay,
)
from aieflow.runtime.policies.virtual_run import run

TIME, ENERGY, ENERGY_DELAY, POWER_CAP = range(4)  # what the score is
FACTOR, PRIME = 48271, 2147483647
HEAT = 3e-4  # of the score: so much worse a change may be in the beginning
HOT = 60  # of a hundred: chances that a node moves that is on the path which makes the length
LONGEST = 12  # nodes of a stretch, unless it is the whole group


@compiled
def _score(
    seconds: float, steps: Ints, lasted: Floats, watts: Floats, idle_w: float, aim: int, cap: float
) -> float:
    """The smaller, the better: `Objective.score` as one number."""
    if aim == TIME:
        return seconds
    joules = idle_w * seconds
    for step in range(len(lasted)):
        joules += lasted[step] * steps[PARTS, step] * watts[steps[RESOURCE, step]]
    if aim == ENERGY:
        return joules
    if aim == ENERGY_DELAY:
        return seconds * joules
    return seconds if joules <= cap * seconds else 1e9 * joules / seconds


@compiled
def next_chance(chance: Ints, below: int) -> int:
    """A number from 0, below another."""
    chance[0] = chance[0] * FACTOR % PRIME
    return int(chance[0] % below)


@compiled
def _change(
    home: Ints,
    able: Bools,
    movable: Ints,
    groups: tuple[Ints, Ints],
    path: Ints,
    chance: Ints,
) -> bool:
    """Change an assignment in place; False: it is as before."""
    kind, devices = next_chance(chance, 20), able.shape[1]
    node = movable[next_chance(chance, len(movable))]
    if len(path) > 0 and next_chance(chance, 100) < HOT:
        node = path[next_chance(chance, len(path))]
    if kind < 10:
        device = next_chance(chance, devices)
        if not able[node, device] or home[node] == device:
            return False
        home[node] = device
        return True
    if kind < 13:
        other = movable[next_chance(chance, len(movable))]
        mine, theirs = home[node], home[other]
        if mine == theirs or not able[node, theirs] or not able[other, mine]:
            return False
        home[node], home[other] = theirs, mine
        return True
    if len(groups[1]) == 0:
        return False
    at = next_chance(chance, len(groups[1]))
    group = np.searchsorted(groups[0], at, "right") - 1
    begin, end = groups[0][group], groups[0][group + 1]
    if next_chance(chance, 5) > 0:
        begin, end = at, min(end, at + 2 + next_chance(chance, LONGEST - 1))
    device, only = next_chance(chance, devices), -1
    if next_chance(chance, 3) == 0:  # what is on one device
        only = home[groups[1][at]]
    is_new = False
    for place in range(begin, end):
        node = groups[1][place]
        if able[node, device] and home[node] != device and (only < 0 or home[node] == only):
            home[node] = device
            is_new = True
    return is_new


@compiled
def path_of(steps: Ints, ended: Floats, causes: Ints, able: Bools, path: Ints) -> int:
    """Fill in the nodes that could be elsewhere of the steps that make the length; how many."""
    count, step, last = 0, int(np.argmax(ended)), -1
    while step != END:
        node = steps[NODE, step]
        if node != last and able[node].sum() > 1:
            path[count] = node
            count += 1
        step, last = causes[step], node
    return count


@compiled
def climb(
    home: Ints,
    order: Ints,
    estimates: int,
    aim: int,
    cap: float,
    watts: Floats,
    idle_w: float,
    able: Bools,
    movable: Ints,
    groups: tuple[Ints, Ints],
    risks: tuple[Ints, Bools, Ints, tuple[Ints, Ints], Ints, Bools],
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
    lanes: tuple[Bools, Ints, Ints, Ints, Floats, Bools, Bools, Ints, Bools],
    most_steps: int,
    room: int,
) -> Ints:
    """The best assignment of so many estimates, from `home` on.

    What runs in a circle, or needs more than the `room` for links, is not taken.
    """
    sides, is_remote, writer, inputs, ends, is_earlier = risks
    holds, frees, width, worker, slowdowns, goes_first, in_turn, taker, rings = lanes
    steps, links = np.empty((5, most_steps), np.int64), np.empty((2, room), np.int64)
    seconds, next_of = np.empty(most_steps, np.float64), np.empty(most_steps, np.int64)
    read, readers = np.empty((2, room), np.int64), np.empty(len(writer), np.int64)
    arrived = np.empty((len(writer), len(sides) + 1), np.int64)
    started, ended = np.empty(most_steps, np.float64), np.empty(most_steps, np.float64)
    used, chance = np.empty(3, np.int64), np.ones(1, np.int64)
    causes, path = np.empty(most_steps, np.int64), np.empty(most_steps, np.int64)
    now, then, best = home.copy(), home.copy(), home.copy()
    hot = 0
    held = least = np.inf
    for estimate in range(estimates):
        if estimate > 0:
            then[:] = now
            tries = 0
            while not _change(then, able, movable, groups, path[:hot], chance) and tries < 1000:
                tries += 1
        is_saved = endangered(then, sides, is_remote, writer, inputs, ends, is_earlier)
        used[:], arrived[:], readers[:] = 0, ABSENT, END
        lay(
            then,
            is_saved,
            first,
            pieces,
            after,
            reads,
            outputs,
            updates,
            saves,
            renewals,
            hops,
            marks,
            ends,
            sides,
            arrived,
            readers,
            read,
            steps,
            seconds,
            next_of,
            links,
            used,
        )
        if used[1] > room or used[2] > room:
            continue
        count = used[0]
        done = run(
            steps[:, :count],
            seconds[:count],
            next_of[:count],
            links,
            order,
            holds,
            frees,
            width,
            worker,
            slowdowns,
            goes_first,
            in_turn,
            taker,
            rings,
            started[:count],
            ended[:count],
            causes[:count],
        )
        if done < count:
            continue
        lasted = ended[:count] - started[:count]
        score = _score(ended[:count].max(), steps, lasted, watts, idle_w, aim, cap)
        heat = HEAT * held * (1.0 - estimate / estimates) if estimate > 0 else 0.0
        if score < held + heat * next_chance(chance, 1000) / 1000:
            now[:], held = then, score
            hot = path_of(steps, ended[:count], causes, able, path)
            if score < least:
                best[:], least = then, score
    return best
