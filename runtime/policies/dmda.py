"""The policy `dmda`: each node, as it becomes ready, where it finishes first with its transfers.

After the scheduler of that name in StarPU (Augonnet, Thibault, Namyst and Wacrenier, 2011): a node
is assigned the moment that its predecessors are done, behind what its device has to do already;
values that lie on the device's side cost nothing. Nothing is known there of the nodes to come.
"""

from aieflow.runtime.policies.booking import Decision, booked
from aieflow.runtime.policies.tasks import Tasks


def dmda(tasks: Tasks) -> Decision:
    """The decision of dmda; ties go to the first device and the first node in program order."""
    return booked(tasks, inserts=False)
