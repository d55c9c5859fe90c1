"""From a graph to a plan on a device: choose a schedule and compile it."""

from aieflow.devices.base import Device
from aieflow.ops.graph import Graph
from aieflow.profiles.cost import TYPICAL_CORE
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.policies.cpu import cpu_schedule


def place(graph: Graph, device: Device, divided: bool = True) -> Plan:
    """The plan of `graph` on one device; with `divided` False, undivided nodes on one lane.

    Raises PlanError for an op without a kernel.
    """
    lanes = device.lanes if divided else device.lanes[:1]
    schedule = cpu_schedule(graph, device.kernels, lanes, TYPICAL_CORE)
    return compile_plan(graph, schedule, {device.name: device.kernels})
