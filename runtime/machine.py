"""The machine that a program runs on, as the model's room sees it: graphs in, executors out.

`tools` opens devices and wraps them; whoever is handed a `Machine` needs to know no device. Version
0.1 runs on one device, so a machine has one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from aieflow.devices.base import Device
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Value
from aieflow.ops.op import Array
from aieflow.runtime.executor import Executor, Observer, allocate_states
from aieflow.runtime.placement import place
from aieflow.runtime.plan import Plan


@dataclass(frozen=True, slots=True)
class Machine:
    """One device, whose lanes do all nodes."""

    device: Device

    def plan(self, graph: Graph, divided: bool = True) -> Plan:
        """The plan of `graph`; raises PlanError for an op without a kernel.

        With `divided` False every node runs whole, one after the other.
        """
        return place(graph, self.device, divided)

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name

    def free_nbytes(self) -> int:
        """Bytes that `allocate` can hand out now."""
        return self.device.free_nbytes()

    def require_memory(self, nbytes: int, plan: Plan) -> None:
        """Raise PlanError that lists the accounts of `plan` unless `nbytes` are free."""
        free = self.free_nbytes()
        if nbytes <= free:
            return
        accounts = plan.memory.accounts.items()
        parts = ", ".join(f"{name} {_gib(size)}" for name, size in accounts if size)
        raise PlanError(
            f"{plan.graph.name} needs {_gib(nbytes)} of memory ({parts}), "
            f"{self.device.name} has {_gib(free)} free"
        )

    def allocate(self, nbytes: int) -> Array:
        """New memory, uint8; raises DeviceError."""
        return self.device.allocate(nbytes).data

    def allocate_states(
        self, graph: Graph, wanted: Iterable[Value] | None = None
    ) -> dict[str, Array]:
        """Zeroed memory by name for the states of a graph (or those wanted); raises DeviceError."""
        return allocate_states(graph, self.device, wanted)

    def open(
        self,
        plan: Plan,
        states: Mapping[str, Array],
        arena: Array | None = None,
        observer: Observer | None = None,
    ) -> Executor:
        """An executor of `plan` on the devices of this machine."""
        return Executor(plan, {self.device.name: self.device}, states, arena, observer)


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
