"""The policy `heft`: nodes in the order of their upward ranks, each where it finishes first.

Topcuoglu, Hariri and Wu, "Performance-effective and low-complexity task scheduling for
heterogeneous computing", IEEE TPDS 13(3), 2002. The upward rank of a node is the longest way from
its start to the end of the graph, with mean seconds over the devices that can do a node and mean
seconds over pairs of devices for what is passed on; insertion fills gaps. Here a node may book more
than one resource, transfers have lanes of their own, and a value is moved once for all its readers.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from aieflow.runtime.policies.booking import Decision, booked, move_s, span_s
from aieflow.runtime.policies.once import once
from aieflow.runtime.policies.step_layout import Floats
from aieflow.runtime.policies.tasks import Tasks, predecessors


def heft(tasks: Tasks) -> Decision:
    """The decision of HEFT; ties go to the first device and the first node in program order."""
    return booked(tasks, [-rank for rank in upward_ranks(tasks)])


def priced_heft(
    tasks: Tasks, prices: Sequence[Sequence[float]] | Floats, ranks: Sequence[float]
) -> Decision:
    """The same, but a node goes where its finish plus its price there is least: `prices[n][d]`.

    HEFT takes whoever is free, however long it takes, and so does work twice as long as it need be
    where others would have been free soon. Prices are what that costs all others.
    """
    return booked(tasks, [-rank for rank in ranks], prices)


@once
def upward_ranks(tasks: Tasks) -> tuple[float, ...]:
    """The upward rank of each node, in seconds, with means over devices and pairs of them.

    A node that follows another without reading of it comes after it by rank, too.
    """
    own_s = [
        _mean([span_s(tasks.pieces[node][device]) for device in tasks.able(node)])
        for node in range(tasks.count)
    ]
    return _ranks(tasks, own_s, mean_passed(tasks))


@once
def least_ranks(tasks: Tasks) -> tuple[float, ...]:
    """The same with the least seconds of each node: what is quick somewhere will be done there."""
    own_s = [min(map(span_s, tasks.pieces[node])) for node in range(tasks.count)]
    return _ranks(tasks, own_s, mean_passed(tasks))


def _ranks(
    tasks: Tasks, own_s: Sequence[float], passed: Sequence[Mapping[int, float]]
) -> tuple[float, ...]:
    """The longest way from the start of each node to the end."""
    ranks = [0.0] * tasks.count
    before = predecessors(tasks)
    for node in reversed(range(tasks.count)):
        ranks[node] += own_s[node]  # the longest way behind it is there already
        for other in before[node]:
            ranks[other] = max(ranks[other], ranks[node] + passed[node].get(other, 0.0))
    return tuple(ranks)


def mean_passed(tasks: Tasks) -> list[dict[int, float]]:
    """For each node those that it reads of, and mean seconds for the largest of what is passed."""
    moves = mean_moves(tasks)
    return _passed(tasks, lambda value, a, b: moves[value])


def _passed(tasks: Tasks, seconds: Callable[[int, int, int], float]) -> list[dict[int, float]]:
    """For each node those that it reads of, and the most `seconds` (value, writer, reader)."""
    writer = {value: node for node, values in enumerate(tasks.outputs) for value in values}
    found: list[dict[int, float]] = []
    for node, values in enumerate(tasks.inputs):
        passed: dict[int, float] = {}
        for value in values:
            if value in writer:
                other = writer[value]
                passed[other] = max(passed.get(other, 0.0), seconds(value, other, node))
        found.append(passed)
    return found


def mean_moves(tasks: Tasks) -> tuple[float, ...]:
    """Seconds to pass each value on from one device to another, the mean over all pairs."""
    count = len(tasks.devices)
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    by_hops: dict[int, float] = {}
    means: list[float] = []
    for value, hops in enumerate(tasks.hops):
        key = id(hops)  # values of one size share their hops
        if key not in by_hops:
            by_hops[key] = _mean([move_s(tasks, value, a, b) for a, b in pairs])
        means.append(by_hops[key])
    return tuple(means)


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return sum(held) / len(held) if held else 0.0
