"""The policy `peft`: as HEFT, but each choice looks ahead by a table of optimistic costs.

Arabnejad and Barbosa, "List scheduling algorithm for heterogeneous systems by an optimistic cost
table", IEEE TPDS 25(3), 2014. The optimistic cost of a node on a device is the longest way behind
it if every node there had its best device to itself. The ready node whose mean optimistic cost is
largest comes next, and goes where its finish plus its optimistic cost there is least.
"""

from aieflow.runtime.policies.booking import Decision, booked, span_s
from aieflow.runtime.policies.heft import mean_passed
from aieflow.runtime.policies.tasks import Tasks, predecessors


def peft(tasks: Tasks) -> Decision:
    """The decision of PEFT; ties go to the first device and the first node in program order."""
    table = optimistic_costs(tasks)
    able = [tasks.able(node) for node in range(tasks.count)]
    ranks = [
        sum(row[device] for device in devices) / len(devices)
        for row, devices in zip(table, able, strict=True)
    ]
    return booked(tasks, [-rank for rank in ranks], table)


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
