"""The explicit op graph: values and nodes in program order, immutable, able to check itself.

A graph is in single-assignment form. Its *feeds* are given anew for every run (tokens, learning
rate), its *states* live from run to run (parameters, moments), its *results* can be read after a
run. A node whose op updates a state defines a new value (`wte.weight'`) that takes the state's
memory, so no later node may read the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from aieflow.ops.errors import GraphError
from aieflow.ops.op import Attrs, Op
from aieflow.ops.spec import Spec

Role = Literal["feed", "parameter", "moment", "cache", "gradient", "activation"]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor in a graph. `role` says which account its memory goes to."""

    name: str
    spec: Spec = field(compare=False)
    role: Role = field(default="activation", compare=False)

    def __str__(self) -> str:
        return f"%{self.name}: {self.spec}"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One op applied to values."""

    name: str
    op: Op
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attrs: Attrs

    @property
    def flops(self) -> int:
        """Floating-point operations of this node."""
        return self.op.flops(self.input_specs, self.output_specs, self.attrs)

    @property
    def nbytes(self) -> int:
        """Bytes that must move at least."""
        return self.op.nbytes(self.input_specs, self.output_specs, self.attrs)

    @property
    def input_specs(self) -> tuple[Spec, ...]:
        """Specs of the inputs."""
        return tuple(value.spec for value in self.inputs)

    @property
    def output_specs(self) -> tuple[Spec, ...]:
        """Specs of the outputs."""
        return tuple(value.spec for value in self.outputs)

    def __str__(self) -> str:
        outputs = ", ".join(str(value) for value in self.outputs)
        inputs = ", ".join(f"%{value.name}" for value in self.inputs)
        attrs = "".join(f", {key}={value}" for key, value in sorted(self.attrs.items()))
        return f"{outputs} = {self.op.name}({inputs}{attrs})"


@dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in program order. Build one with `ops.builder.Builder`."""

    name: str
    feeds: tuple[Value, ...]
    states: tuple[Value, ...]
    nodes: tuple[Node, ...]
    results: tuple[Value, ...]

    @cached_property
    def producer(self) -> Mapping[Value, int]:
        """The index of the node that defines each value (feeds and states have none)."""
        return {value: index for index, node in enumerate(self.nodes) for value in node.outputs}

    @cached_property
    def consumers(self) -> Mapping[Value, tuple[int, ...]]:
        """The indices of the nodes that read each value, ascending."""
        readers: dict[Value, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for value in dict.fromkeys(node.inputs):
                readers.setdefault(value, []).append(index)
        return {value: tuple(indices) for value, indices in readers.items()}

    @cached_property
    def state_of(self) -> Mapping[Value, Value]:
        """For each state and each updated value of a state: the state whose memory it has."""
        home = {state: state for state in self.states}
        for node in self.nodes:
            for output, source in node.op.updates.items():
                home[node.outputs[output]] = home[node.inputs[source]]
        return home

    @property
    def values(self) -> tuple[Value, ...]:
        """Every value: feeds, states, and the nodes' outputs in program order."""
        return (
            *self.feeds,
            *self.states,
            *(value for node in self.nodes for value in node.outputs),
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of one run."""
        return sum(node.flops for node in self.nodes)

    @property
    def nbytes(self) -> int:
        """Bytes of all operands of all nodes."""
        return sum(node.nbytes for node in self.nodes)

    def node(self, name: str) -> Node:
        """The node called `name`; raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def check(self) -> None:
        """Raise GraphError unless every rule of the form holds."""
        live = set(self.feeds) | set(self.states)
        defined = set(live)
        if len(defined) != len(self.feeds) + len(self.states):
            raise GraphError(f"{self.name}: two feeds or states share a name")
        names: set[str] = set()
        for index, node in enumerate(self.nodes):
            if node.name in names:
                raise self._error(index, f"a second node is called {node.name!r}")
            names.add(node.name)
            for value in node.inputs:
                if value not in defined:
                    raise self._error(index, f"reads %{value.name}, which nothing defines before")
                if value not in live:
                    raise self._error(index, f"reads %{value.name} after its memory was updated")
            inferred = node.op.infer(node.input_specs, node.attrs)
            if inferred != node.output_specs:
                raise self._error(
                    index,
                    f"has outputs {list(map(str, node.output_specs))}; "
                    f"its op gives {list(map(str, inferred))}",
                )
            for output, source in node.op.updates.items():
                if node.outputs[output].spec != node.inputs[source].spec:
                    raise self._error(index, f"updates input {source} with another shape")
                if node.inputs[source].role in ("feed", "activation", "gradient"):
                    raise self._error(
                        index, f"updates %{node.inputs[source].name}, which is no state"
                    )
                live.discard(node.inputs[source])
            for value in node.outputs:
                if value in defined:
                    raise self._error(index, f"defines %{value.name} a second time")
                defined.add(value)
                live.add(value)
        for value in self.results:
            if value not in live:
                raise GraphError(f"{self.name}: result %{value.name} is not defined at the end")

    def neighbourhood(self, index: int, reach: int = 2) -> str:
        """The text of the nodes around `index`, which is marked."""
        first, last = max(0, index - reach), min(len(self.nodes), index + reach + 1)
        return "\n".join(
            f"{'>' if place == index else ' '} {place:4d}  {self.nodes[place]}"
            for place in range(first, last)
        )

    def _error(self, index: int, message: str) -> GraphError:
        return GraphError(
            f"{self.name}: node {index} ({self.nodes[index].name}) {message}\n"
            f"{self.neighbourhood(index)}"
        )

    def __str__(self) -> str:
        lines = [f"graph {self.name}"]
        lines += [f"  feed   {value}" for value in self.feeds]
        lines += [f"  state  {value}" for value in self.states]
        lines += [f"  {index:4d}  {node}" for index, node in enumerate(self.nodes)]
        lines += [f"  result {value}" for value in self.results]
        return "\n".join(lines)
