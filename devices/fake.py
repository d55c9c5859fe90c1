"""A device for tests: every op's reference as its kernel, and calls that do what a test scripts.

A `FakeDevice` notes each call as it begins. A test can put an action before a call: raise an
error, wait for an event that the test sets, send a signal. Nothing here sleeps or draws random
numbers by itself. `random_graph` gives it work: graphs of two made-up ops that take memory over
and update states.
"""

import itertools
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from aieflow.devices.base import Buffer, Device
from aieflow.ops.builder import Builder
from aieflow.ops.catalogue import OPS
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.kernel import WHOLE, Call, HostKernel, Split
from aieflow.ops.op import Array, Arrays, Attrs, Op, Specs
from aieflow.ops.spec import Spec

ALIGNMENT = 64
ELEMENTWISE = ("adamw", "add", "gelu", "gelu_backward")
Action = Callable[[], None]


def _infer_mix(inputs: Specs, attrs: Attrs) -> Specs:
    out = Spec((int(attrs["rows"]), int(attrs["columns"])), inputs[0].dtype)
    return (out,) * int(attrs["outputs"])


def mix_reference(inputs: Arrays, attrs: Attrs, rows: slice = slice(None)) -> Arrays:
    """Weighted sums of the inputs; one of another shape than the outputs counts by its mean."""
    # inputs (rows, columns) or any other shape -> outputs (rows, columns) each
    shape = (int(attrs["rows"]), int(attrs["columns"]))
    total = np.zeros(shape, inputs[0].dtype)[rows]
    for place, x in enumerate(inputs):
        total += (x[rows] if x.shape == shape else x.mean()) * np.asarray(0.5**place, x.dtype)
    outputs = range(int(attrs["outputs"]))
    return tuple(total * np.asarray(0.75**place, total.dtype) for place in outputs)


# One output or two, each of which may take over an input of its shape.
MIX = Op(
    "mix",
    _infer_mix,
    lambda inputs, outputs, attrs: sum(spec.size for spec in inputs),
    mix_reference,
    may_overwrite={0: (0, 1, 2), 1: (2, 1, 0)},
)
# The first output is the new value of the first input.
UPDATE = Op(
    "update",
    _infer_mix,
    lambda inputs, outputs, attrs: sum(spec.size for spec in inputs),
    mix_reference,
    updates={0: 0},
)


def _split_mix(node: Node) -> Split:
    out = node.output_specs[0]
    alike = frozenset(place for place, spec in enumerate(node.input_specs) if spec == out)
    return Split(out.rows, alike, frozenset(range(len(node.outputs))))


def _bind_mix(call: Call) -> Action:
    rows = slice(*call.share(int(call.attrs["rows"])))

    def run() -> None:
        for target, array in zip(
            call.outputs, mix_reference(call.inputs, call.attrs, rows), strict=True
        ):
            target[rows] = array

    return run


def reference_kernel(op: Op) -> HostKernel:
    """The op's reference as a kernel; elementwise ops divide by leading rows, others do not."""
    split = _split_elementwise if op.name in ELEMENTWISE else lambda node: WHOLE

    def bind(call: Call) -> Action:
        inputs, outputs = call.inputs, call.outputs
        if call.parts > 1:
            rows = slice(*call.share(len(outputs[0])))
            shape = outputs[0].shape
            inputs = tuple(x[rows] if x.shape == shape else x for x in inputs)
            outputs = tuple(x[rows] for x in outputs)

        def run() -> None:
            for target, array in zip(outputs, op.reference(inputs, call.attrs), strict=True):
                np.copyto(target, array, casting="same_kind")

        return run

    return HostKernel("reference", op, bind, split)


def _split_elementwise(node: Node) -> Split:
    out = node.output_specs[0]
    alike = frozenset(place for place, spec in enumerate(node.input_specs) if spec == out)
    return Split(out.shape[0], alike, frozenset(range(len(node.outputs))))


REFERENCE_KERNELS: Mapping[str, HostKernel] = MappingProxyType(
    {
        **{name: reference_kernel(op) for name, op in OPS.items()},
        "mix": HostKernel("fake", MIX, _bind_mix, _split_mix),
        "update": HostKernel("fake", UPDATE, _bind_mix, _split_mix),
    }
)


class FakeDevice(Device):
    """Runs `kernels` on host memory; `calls` holds (node, part) in the order of their starts."""

    def __init__(
        self,
        lanes: int = 2,
        kernels: Mapping[str, HostKernel] = REFERENCE_KERNELS,
        nbytes: int = 1 << 30,
    ) -> None:
        self.calls: list[tuple[str, int]] = []
        self.is_closed = False
        self._lanes = tuple(f"fake.compute.{lane}" for lane in range(lanes))
        self._kernels = kernels
        self._free = nbytes
        self._count = itertools.count(1)
        self._by_count: dict[int, Action] = {}
        self._by_name: dict[tuple[str, int], Action] = {}

    @property
    def name(self) -> str:
        """`fake`."""
        return "fake"

    @property
    def identity(self) -> str:
        """`fake`."""
        return "fake"

    @property
    def lanes(self) -> tuple[str, ...]:
        """`fake.compute.0`, …."""
        return self._lanes

    @property
    def kernels(self) -> Mapping[str, HostKernel]:
        """The kernels given."""
        return self._kernels

    def allocate(self, nbytes: int) -> Buffer:
        """Host memory filled with NaN (as float32), so that what is read unwritten shows."""
        if nbytes > self._free:
            raise DeviceError(f"fake: no memory for a buffer of {nbytes} bytes")
        self._free -= nbytes
        data = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)
        start = -data.ctypes.data % ALIGNMENT
        return Buffer(self.name, data[start : start + nbytes])

    def free_nbytes(self) -> int:
        """What is left of the bytes that the device was made with."""
        return self._free

    def before_call(self, count: int, action: Action) -> None:
        """Do `action` before call number `count`, counted from 1 over all runs."""
        self._by_count[count] = action

    def before(self, node: str, action: Action, part: int = 0) -> None:
        """Do `action` before every call of a part of the node called `node`."""
        self._by_name[node, part] = action

    def fail(self, count: int, error: BaseException) -> None:
        """Let call number `count`, counted from 1 over all runs, raise `error`."""

        def action() -> None:
            raise error

        self.before_call(count, action)

    def forget(self) -> None:
        """Drop all actions."""
        self._by_count.clear()
        self._by_name.clear()

    def bind(self, node: Node, call: Call) -> Action:
        """The kernel's call, which is noted and does what was scripted before."""
        bound = self._kernels[node.op.name].bind(call)
        key = (node.name, call.part)

        def run() -> None:
            self.calls.append(key)
            for action in (self._by_count.pop(next(self._count), None), self._by_name.get(key)):
                if action is not None:
                    action()
            bound()

        return run

    def close(self) -> None:
        """Note that the device was closed."""
        self.is_closed = True


def random_graph(draw: random.Random, nodes: int) -> Graph:
    """A graph of `mix` and `update` nodes over values of a few sizes; legal by construction."""
    builder = Builder("random")
    shapes = [(4, columns) for columns in (1, 3, 16, 40)]
    live: list[Value] = [
        builder.feed(f"feed.{place}", Spec(draw.choice(shapes))) for place in range(2)
    ]
    states = [
        builder.state(f"state.{place}", Spec(draw.choice(shapes)), "parameter")
        for place in range(2)
    ]
    live += states
    for _ in range(nodes):
        recent = live[-draw.choice((3, 6, len(live))) :]
        inputs = [draw.choice(recent) for _ in range(draw.randint(1, 3))]
        if draw.random() < 0.2:
            old = draw.choice(states)
            new = _apply(builder, UPDATE, [old, *inputs], old.spec, f"{old.name}'", 1)
            for values in (live, states):
                values.remove(old)
                values.extend(new)
        else:
            shape = draw.choice([inputs[0].spec.shape, draw.choice(shapes)])
            live += _apply(builder, MIX, inputs, Spec(shape), "value", draw.choice((1, 1, 2)))
    return builder.finish(draw.sample(live, min(len(live), 2)))


def _apply(
    builder: Builder, op: Op, inputs: list[Value], spec: Spec, name: str, outputs: int
) -> tuple[Value, ...]:
    rows, columns = spec.shape
    attrs = {"rows": rows, "columns": columns, "outputs": outputs}
    return builder.apply(op, inputs, [name] * outputs, attrs)


def random_values(graph: Graph, seed: int = 0) -> dict[str, Array]:
    """Normal float32 values by name for the feeds and states of a graph of floats."""
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.standard_normal(value.spec.shape, np.float32)
        for value in (*graph.feeds, *graph.states)
    }
