"""The policy `peft`: as HEFT, but each choice looks ahead by a table of optimistic costs.

Arabnejad and Barbosa, "List scheduling algorithm for heterogeneous systems by an optimistic cost
table", IEEE TPDS 25(3), 2014. The optimistic cost of a node on a device is the longest way behind
it if every node there had its best device to itself. The ready node whose mean optimistic cost is
largest comes next, and goes where its finish plus its optimistic cost there is least.
"""

from heapq import heappop, heappush

from aieflow.runtime.policies.booking import Bookings, Decision, span_s
from aieflow.runtime.policies.estimate import predecessors
from aieflow.runtime.policies.heft import mean_passed
from aieflow.runtime.policies.tasks import Tasks


def peft(tasks: Tasks) -> Decision:
    """The decision of PEFT; ties go to the first device and the first node in program order."""
    table = optimistic_costs(tasks)
    able = [tasks.able(node) for node in range(tasks.count)]
    ranks = [
        sum(row[device] for device in devices) / len(devices)
        for row, devices in zip(table, able, strict=True)
    ]
    before = predecessors(tasks)
    missing = [len(each) for each in before]
    readers: list[list[int]] = [[] for _ in range(tasks.count)]
    for node, others in enumerate(before):
        for other in others:
            readers[other].append(node)
    ready = sorted((-ranks[node], node) for node in range(tasks.count) if not missing[node])
    bookings = Bookings(tasks)
    while ready:
        _, node = heappop(ready)
        costs = table[node]
        offers = bookings.offers(node)
        bookings.book(node, min(offers, key=lambda offer: offer.finish_s + costs[offer.device]))
        for reader in readers[node]:
            missing[reader] -= 1
            if not missing[reader]:
                heappush(ready, (-ranks[reader], reader))
    return bookings.decision()


def optimistic_costs(tasks: Tasks) -> tuple[tuple[float, ...], ...]:
    """The optimistic cost of each node on each device, whether it can do the node or not."""
    count = len(tasks.devices)
    devices = range(count)
    passed = mean_passed(tasks)
    table = [[0.0] * count for _ in range(tasks.count)]
    before = predecessors(tasks)
    for node in reversed(range(tasks.count)):
        behind = [
            table[node][device] + span_s(tasks.pieces[node][device]) for device in devices
        ]  # infinite where the device cannot do it
        least = min(behind)
        for other in before[node]:
            row, move = table[other], passed[node].get(other, 0.0)
            for device in devices:
                row[device] = max(row[device], min(behind[device], least + move))
    return tuple(tuple(row) for row in table)
