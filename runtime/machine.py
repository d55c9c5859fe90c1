"""The machine that a program runs on, as the model's room sees it: graphs in, executors out.

`tools` opens devices and wraps them; whoever is handed a `Machine` needs to know no device.
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from aieflow.devices.base import Device
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Graph, Value
from aieflow.ops.op import Array
from aieflow.runtime.binding import allocate_host, allocate_states, release_host
from aieflow.runtime.device_memory import require_memory
from aieflow.runtime.executor import Executor, Observer
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan
from aieflow.runtime.policies.fixed import RULES, default_policy
from aieflow.runtime.states import States


@dataclass(frozen=True, slots=True)
class Machine:
    """Devices, the host's first, and what decides where nodes run."""

    devices: tuple[Device, ...]
    placement: Placement = field(default_factory=Placement)
    excludes_failed: bool = False  # go on without a device that fails

    @property
    def name(self) -> str:
        """The devices' names."""
        return ", ".join(device.name for device in self.devices)

    @property
    def emulated(self) -> tuple[str, ...]:
        """The names of the devices that are emulated."""
        return tuple(device.name for device in self.devices if device.is_emulated)

    @property
    def is_plain(self) -> bool:
        """True where one device does everything in memory of the host's own."""
        return len(self.devices) == 1 and self.devices[0].copy_lanes is None

    @property
    def expendable(self) -> frozenset[str]:
        """The devices that a run can go on without: all but the host's own."""
        return frozenset(device.name for device in self.devices[1:])

    def plan(self, graph: Graph, divided: bool = True) -> Plan:
        """The plan of `graph`; raises PlanError for an op without a kernel.

        With `divided` False every node runs whole, one after the other.
        """
        return place_on(graph, self._by_name(), self.placement, divided)

    def without(self, name: str) -> "Machine":
        """The machine less one of its expendable devices, with a policy for those that are left.

        The device is closed.
        """
        left = tuple(device for device in self.devices if device.name != name)
        for device in self.devices:
            if device.name == name:
                with contextlib.suppress(DeviceError):  # it has failed already
                    device.close()
        placement = self.placement
        places = {op: device for op, device in placement.places.items() if device != name}
        policy = placement.policy
        if name in RULES.get(policy, {}).values():
            policy = default_policy(tuple(device.name for device in left))
        # What was decided may name the device.
        placement = replace(placement, policy=policy, places=places, decided={})
        return replace(self, devices=left, placement=placement)

    def free_nbytes(self) -> int:
        """Bytes of host memory that `allocate` can hand out now."""
        return self.devices[0].free_nbytes()

    def require_memory(self, nbytes: int, plan: Plan, *others: Plan) -> None:
        """Raise PlanError that lists the accounts of `plan` unless every device has enough.

        `nbytes` is what the host needs; `others` are opened beside `plan` on the same states.
        """
        require_memory(self.devices, nbytes, plan, *others)

    def allocate(self, nbytes: int) -> Array:
        """New host memory that every device can reach, uint8; raises DeviceError."""
        return allocate_host(self._by_name(), nbytes)

    def release(self, memory: Array) -> None:
        """Let the devices forget memory of `allocate`; nothing of it may be in use."""
        release_host(self._by_name(), memory)

    def allocate_states(self, graph: Graph, wanted: Iterable[Value] | None = None) -> States:
        """Zeroed memory by name for the states of a graph (or those wanted); raises DeviceError.

        Packed states are left to the executor of their plan.
        """
        return States(allocate_states(graph, self._by_name(), wanted))

    def open(
        self,
        plan: Plan,
        states: Mapping[str, Array],
        arena: Array | None = None,
        observer: Observer | None = None,
    ) -> Executor:
        """An executor of `plan` on the devices of this machine."""
        return Executor(plan, self._by_name(), states, arena, observer)

    def _by_name(self) -> dict[str, Device]:
        return {device.name: device for device in self.devices}
