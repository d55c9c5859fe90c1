"""Binds a plan to memory: host memory that its devices can reach, and an array for every value.

Host memory is allocated on the first device, the host's, and adopted by all others that work in
it. Slots of separate memory are buffers of their device. Of every value there is one array, its
host side.
"""

from collections.abc import Iterable, Mapping

from aieflow.devices.base import Device
from aieflow.ops.errors import DeviceError, PlanError
from aieflow.ops.graph import Graph, Value
from aieflow.ops.op import Array
from aieflow.runtime.memory import ARENA
from aieflow.runtime.plan import Plan
from aieflow.runtime.states import States

Devices = Mapping[str, Device]  # by name, the host's first


def allocate_on(device: Device, nbytes: int) -> Array:
    """A buffer's host side, uint8; a DeviceError names the device."""
    try:
        return device.allocate(nbytes).data
    except DeviceError as error:
        error.device = error.device or device.name
        raise


def allocate_host(devices: Devices, nbytes: int) -> Array:
    """Host memory, uint8, that all devices without memory of their own can reach.

    Raises DeviceError that names the device which cannot.
    """
    home = next(iter(devices.values()))
    memory = allocate_on(home, nbytes)
    for device in devices.values():
        if device is not home:
            try:
                device.adopt(memory)
            except DeviceError as error:
                error.device = error.device or device.name
                raise
    return memory


def release_host(devices: Devices, memory: Array) -> None:
    """Let devices forget memory of `allocate_host`."""
    for device in devices.values():
        device.disown(memory)


def allocate_states(
    graph: Graph, devices: Device | Devices, wanted: Iterable[Value] | None = None
) -> dict[str, Array]:
    """Zeroed memory by name for the states of a graph (or those wanted); raises DeviceError."""
    around = {devices.name: devices} if isinstance(devices, Device) else devices
    states: dict[str, Array] = {}
    for value in graph.states if wanted is None else wanted:
        data = allocate_host(around, value.spec.nbytes)
        data[:] = 0
        states[value.name] = view(data, 0, value)
    return states


def view(data: Array, offset: int, value: Value) -> Array:
    """A value in bytes, from `offset` on."""
    raw = data[offset : offset + value.spec.nbytes]
    return raw.view(value.spec.storage).reshape(value.spec.shape)


def raw_bytes(array: Array) -> Array:
    """The bytes of a contiguous array, uint8."""
    return array.reshape(-1).view("uint8")


def bind_arrays(
    plan: Plan, devices: Devices, states: States, arena: Array, feeds: Mapping[str, Array]
) -> dict[str, Array]:
    """An array for every value of a plan, by name; `feeds` holds bytes for each feed.

    Slots in separate memory are allocated; those of derived states are added to `states`. Raises
    PlanError for a state without memory, DeviceError where a device has none left.
    """
    memory, graph = plan.memory, plan.graph
    spaces: dict[str, Array] = {ARENA: arena, **feeds}
    for space, (device, nbytes) in memory.separate.items():
        if space not in states:
            spaces[space] = allocate_on(devices[device], nbytes)
    for value in graph.states:
        if value.name in memory.separate and value.name not in states:
            sources = [each.name for each in plan.derived[value.name].inputs]
            states.add_derived(value, view(spaces[value.name], 0, value), sources)
        given, spec = states.get(value.name), value.spec
        if given is None or given.shape != spec.shape or given.dtype != spec.storage:
            raise PlanError(f"{graph.name}: no memory of {spec} for state %{value.name}")
        spaces[value.name] = raw_bytes(given)
    arrays: dict[str, Array] = {}
    for value in graph.values:
        slot = memory.slots[value]
        arrays[value.name] = view(spaces[slot.space], slot.offset, value)
    for value in graph.states:
        arrays[value.name] = states[value.name]
    return arrays
