"""One node of a training step, run alone: what `bench gemm` and `bench ops` time.

The nodes are those of a plan, so what is timed is what the training step does: the same operands,
the same division over the lanes, and an output in an input's memory wherever the plan has it there.
A node's seconds are those of its longest part: what it takes when all lanes come to it together. A
short one is repeated within a run, because threads just woken may share a core for a few ms.
"""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from aieflow.devices.base import Device
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.op import Array
from aieflow.ops.spec import Spec
from aieflow.profiles.cost import TYPICAL_CORE
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import place
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.schedule import Schedule

RUN_S = 0.12  # predicted length of a run on one lane, by repeating the node; many cores are faster
MOST_REPEATS = 30
SETTLE_S = 0.3  # threads of BLAS or OpenMP spin that long after their work


@dataclass(frozen=True, slots=True, eq=False)
class NodeCase:
    """A node of a plan, and the nodes that do the same on operands of the same shapes."""

    node: Node
    count: int  # such nodes in one training step
    in_place: Mapping[int, int]  # output -> the input whose memory it takes

    @property
    def repeats(self) -> int:
        """How often a run does the node."""
        predicted = TYPICAL_CORE.seconds(self.node.flops, self.node.nbytes)
        return min(MOST_REPEATS, math.ceil(RUN_S / predicted))


def distinct_cases(plan: Plan) -> list[NodeCase]:
    """The nodes of a plan that differ in op, shapes, options or memory, in program order."""
    found: dict[object, NodeCase] = {}
    slots = plan.memory.slots
    for node in plan.graph.nodes:
        in_place = {
            output: source
            for output, value in enumerate(node.outputs)
            for source, other in enumerate(node.inputs)
            if slots[value] == slots[other]
        }
        options = {name: option for name, option in node.attrs.items() if name != "stream"}
        key = (node.op.name, node.input_specs, *sorted(options.items()), *in_place.items())
        count = found[key].count if key in found else 0
        first = found[key].node if key in found else node
        found[key] = NodeCase(first, count + 1, in_place)
    return list(found.values())


class LoneNode:
    """A case with memory of its own, bound to one lane and to all lanes. Close it."""

    def __init__(self, case: NodeCase, device: Device, integers_below: int) -> None:
        self.case = case
        self._integers_below = integers_below
        once, _ = _repeated(case, 1)
        lanes = tuple(step.lane for step in place(once, device).steps)
        graph, outputs = _repeated(case, case.repeats)
        states = {value.name: values(value.spec, integers_below) for value in graph.states}
        divided = _open(graph, device, lanes, states)
        whole = _open(graph, device, device.lanes[:1], states, divided.arena)
        self.executors = {True: divided, False: whole}
        self.inputs: tuple[Array, ...] = tuple(states.values())
        self.outputs = tuple(divided.array(value) for value in outputs)

    @property
    def parts(self) -> int:
        """Number of lanes that the training step divides it over."""
        return self.executors[True].plan.steps[0].parts

    def seconds(self, divided: bool) -> float:
        """Seconds of the node, on all lanes that the training step gives it or whole on one.

        The median of a run's repeats.
        """
        for source in self.case.in_place.values():  # else it would grow from run to run
            spec = self.case.node.input_specs[source]
            np.copyto(self.inputs[source], values(spec, self._integers_below))
        executor = self.executors[divided]
        trace = executor.run({}, traced=True)
        assert trace is not None
        longest = [0.0] * self.case.repeats
        for span in trace.spans:
            node = executor.plan.steps[span.step].node
            longest[node] = max(longest[node], span.end_s - span.start_s)
        return statistics.median(longest)

    def close(self) -> None:
        """End the threads; idempotent."""
        for executor in self.executors.values():
            executor.close()


def seconds_of(nodes: Sequence[LoneNode]) -> list[tuple[float, float]]:
    """Seconds of each node whole on one lane, and on all lanes.

    All are run on one lane first; then all lanes are kept busy for a while, since a core that has
    slept is slow at first, as it never is within a training step.
    """
    one = [node.seconds(divided=False) for node in nodes]
    begin = time.perf_counter()
    while time.perf_counter() < begin + SETTLE_S:
        nodes[0].seconds(divided=True)
    return list(zip(one, (node.seconds(divided=True) for node in nodes), strict=True))


def values(spec: Spec, integers_below: int) -> Array:
    """Numbers near 1, which stay finite and normal when an op is repeated in place."""
    rng = np.random.default_rng(0)
    if spec.dtype in ("int32", "int64", "uint64"):
        return rng.integers(0, integers_below, spec.shape).astype(spec.dtype)
    if spec.dtype == "float32":
        return rng.random(spec.shape, np.float32) + np.float32(0.5)
    return rng.random(spec.shape) + 0.5


def _open(
    graph: Graph,
    device: Device,
    lanes: tuple[str, ...],
    states: Mapping[str, Array],
    arena: Array | None = None,
) -> Executor:
    """An executor that has every node done by the same lanes."""
    schedule = Schedule("alone", device.lanes, (lanes,) * len(graph.nodes))
    plan = compile_plan(graph, schedule, {device.name: device.kernels})
    return Executor(plan, {device.name: device}, states, arena)


def _repeated(case: NodeCase, repeats: int) -> tuple[Graph, tuple[Value, ...]]:
    """A graph that does the node again and again, and the outputs of the last time."""
    op = replace(case.node.op, updates=case.in_place, may_overwrite={})
    builder = Builder(case.node.name)
    inputs = [
        builder.state(f"input.{position}", spec, "parameter")
        for position, spec in enumerate(case.node.input_specs)
    ]
    outputs: tuple[Value, ...] = ()
    for turn in range(repeats):
        names = [f"{turn}.output.{position}" for position in range(len(case.node.outputs))]
        outputs = builder.apply(op, inputs, names, case.node.attrs)
        for output, source in case.in_place.items():
            inputs[source] = outputs[output]
    return builder.finish(outputs), outputs
