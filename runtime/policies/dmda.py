"""The policy `dmda`: each node, as it becomes ready, where it finishes first with its transfers.

After the scheduler of that name in StarPU (Augonnet, Thibault, Namyst and Wacrenier, 2011): a node
is assigned the moment that its predecessors are done, behind what its device has to do already;
values that lie on the device's side cost nothing. Nothing is known there of the nodes to come.
"""

from heapq import heappop, heappush

from aieflow.runtime.policies.booking import Bookings, Decision
from aieflow.runtime.policies.estimate import predecessors
from aieflow.runtime.policies.tasks import Tasks


def dmda(tasks: Tasks) -> Decision:
    """The decision of dmda; ties go to the first device and the first node in program order."""
    before = predecessors(tasks)
    readers: list[list[int]] = [[] for _ in range(tasks.count)]
    for node, others in enumerate(before):
        for other in others:
            readers[other].append(node)
    missing = [len(each) for each in before]
    ready_s = [0.0] * tasks.count
    ready = [(0.0, node) for node in range(tasks.count) if not missing[node]]  # a heap as it is
    bookings = Bookings(tasks, inserts=False)
    while ready:
        _, node = heappop(ready)
        bookings.book(node, min(bookings.offers(node), key=lambda offer: offer.finish_s))
        finish_s = bookings.finish_s(node)
        for reader in readers[node]:
            ready_s[reader] = max(ready_s[reader], finish_s)
            missing[reader] -= 1
            if not missing[reader]:
                heappush(ready, (ready_s[reader], reader))
    return bookings.decision()
