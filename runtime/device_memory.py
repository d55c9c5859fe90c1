"""Whether devices have the memory that plans need."""

from collections.abc import Sequence

from aieflow.devices.base import Device
from aieflow.ops.errors import PlanError
from aieflow.runtime.plan import Plan
from aieflow.runtime.schedule import device_of


def require_memory(devices: Sequence[Device], nbytes: int, plan: Plan, *others: Plan) -> None:
    """Raise PlanError that lists the accounts of `plan` unless every device has enough.

    `nbytes` is what the host, the first of the devices, needs; `others` are opened beside `plan`
    on the same states.
    """
    used = {device_of(lane) for lane in plan.lanes}
    for position, device in enumerate(devices):
        needed = nbytes
        if position and device.is_separate:
            derived = {name for each in (plan, *others) for name in each.derived}
            spaces = {
                (space if space in derived else (number, space)): size
                for number, each in enumerate((plan, *others))
                for space, (name, size) in each.memory.separate.items()
                if name == device.name
            }
            needed = sum(spaces.values())
        elif position:
            needed -= plan.memory.accounts["packed"] + plan.memory.accounts["saved"]
        free = device.free_nbytes()
        if needed <= free or (position and device.name not in used):
            continue
        accounts = plan.memory.accounts.items()
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in accounts if size)
        raise PlanError(
            f"{plan.graph.name} needs {_gib(needed)} of memory ({parts}), "
            f"{device.name} has {_gib(free)} free: {_gib(needed - free)} are missing"
        )


def _gib(nbytes: int) -> str:
    """In GiB; what is small in MiB."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 // 10 else f"{nbytes / 2**20:.2f} MiB"
