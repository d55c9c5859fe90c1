"""Runs to write traces of: on two lanes as measured, and on a host and two remote devices."""

import numpy as np
from made_up_costs import MadeUp, fakes, step_cost

from aieflow.devices.fake import FakeDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.graph import Graph
from aieflow.ops.kernel import Kernels
from aieflow.ops.op import Array
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import compile_plan
from aieflow.runtime.schedule import Schedule
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import StepCost
from aieflow.runtime.timeline import Recorded

CONFIG = ModelConfig(vocab_size=19, seq_len=8, layers=1, heads=2, channels=8)
FEEDS: dict[str, Array] = {
    "tokens": np.arange(16, dtype=np.int32).reshape(2, 8),
    "targets": np.arange(1, 17, dtype=np.int32).reshape(2, 8),
    "rates": np.array([0.0, 0.1, 0.05]),
}
# Steps that cannot be told apart by time where something is rounded to microseconds.
COSTS = MadeUp(transfer=0.25e-6, byte_s=1.3e-9, watts={"fake": 2.0, "far": 3.0}, idle_w=5.0)
STARTS_S = (12.3456789012345, 13.5)


def graph() -> Graph:
    return training_step(CONFIG, 2, 8)


def measured() -> list[Recorded]:
    """Training steps 7 and 8, their nodes on two lanes in turn."""
    device = FakeDevice(lanes=2)
    lowered = graph()
    placements = tuple(
        (device.lanes[index % len(device.lanes)],) for index in range(len(lowered.nodes))
    )
    schedule = Schedule("in turn", device.lanes, placements)
    plan = compile_plan(lowered, schedule, {"fake": device.kernels})
    with Executor(plan, {"fake": device}, allocate_states(plan.graph, device)) as executor:
        traces = [executor.run(FEEDS, traced=True) for _ in range(2)]
    return [
        Recorded(number, start_s, trace)
        for number, start_s, trace in zip((7, 8), STARTS_S, traces, strict=True)
        if trace is not None
    ]


def simulated() -> list[Recorded]:
    """Training steps 1 and 2 on a host and two remote devices, with transfers."""
    lowered, devices = graph(), fakes()
    names = list(devices)
    homes = [names[index % len(names)] for index in range(len(lowered.nodes))]
    trace = simulate(place_on(lowered, devices, Placement(), by_node=homes), cost())
    return [Recorded(1, 0.0, trace), Recorded(2, trace.seconds * 1.5, trace)]


def cost() -> StepCost:
    nodes = {
        (device, node.name): 1e-6 * (1 + place % 7)
        for device in fakes()
        for place, node in enumerate(graph().nodes)
    }
    return step_cost(
        MadeUp(nodes, COSTS.transfer, COSTS.byte_s, COSTS.watts, factor=1.25, idle_w=COSTS.idle_w)
    )


def kernels() -> Kernels:
    return {name: device.kernels for name, device in fakes().items()}
