"""Writes a graph node by node: `Builder.apply` infers shapes and names outputs.

>>> from aieflow.ops.pointwise import GELU
>>> b = Builder("example")
>>> x = b.feed("x", Spec((2, 4)))
>>> (y,) = b.apply(GELU, [x], ["y"])
>>> print(b.finish([y]))
graph example
  feed   %x: float32[2, 4]
     0  %y: float32[2, 4] = gelu(%x)
  result %y: float32[2, 4]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from aieflow.ops.errors import GraphError
from aieflow.ops.graph import Graph, Node, Role, Value
from aieflow.ops.op import Attrs, Op
from aieflow.ops.spec import Spec


class Builder:
    """A graph under construction; `finish` checks and freezes it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._feeds: list[Value] = []
        self._states: list[Value] = []
        self._nodes: list[Node] = []
        self._taken: set[str] = set()
        self._prefix = ""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes written so far."""
        return tuple(self._nodes)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything written inside with `name.`."""
        outer = self._prefix
        self._prefix = f"{outer}{name}."
        try:
            yield
        finally:
            self._prefix = outer

    def feed(self, name: str, spec: Spec) -> Value:
        """A value that every run is given."""
        value = Value(self._unique(name), spec, "feed")
        self._feeds.append(value)
        return value

    def state(self, name: str, spec: Spec, role: Role) -> Value:
        """A value that lives from run to run; its name takes no scope."""
        value = Value(name, spec, role)
        self._taken.add(name)
        self._states.append(value)
        return value

    def apply(
        self,
        op: Op,
        inputs: Sequence[Value],
        names: Sequence[str],
        attrs: Attrs | None = None,
        role: Role = "activation",
    ) -> tuple[Value, ...]:
        """Append a node; its outputs carry `names` (unique ones are made of them).

        Raises GraphError when the op's shape rule refuses the inputs.
        """
        attrs = dict(attrs or {})
        try:
            specs = op.infer(tuple(value.spec for value in inputs), attrs)
        except GraphError as error:
            given = ", ".join(str(value) for value in inputs)
            raise GraphError(f"{op.name}({given}) for {names[0]!r}: {error}") from None
        roles: list[Role] = [
            inputs[op.updates[index]].role if index in op.updates else role
            for index in range(len(specs))
        ]
        outputs = tuple(
            Value(self._unique(name), spec, its_role)
            for name, spec, its_role in zip(names, specs, roles, strict=True)
        )
        self._nodes.append(Node(outputs[0].name, op, tuple(inputs), outputs, attrs))
        return outputs

    def add(self, x: Value, y: Value) -> Value:
        """Append the node `x + y`, where a gradient is collected from several readers."""
        from aieflow.ops.pointwise import ADD  # pointwise imports the builder

        (out,) = self.apply(ADD, [x, y], [y.name], role=y.role)
        return out

    def finish(self, results: Sequence[Value]) -> Graph:
        """Freeze the graph and check it; raises GraphError."""
        graph = Graph(
            self.name,
            tuple(self._feeds),
            tuple(self._states),
            tuple(self._nodes),
            tuple(results),
        )
        graph.check()
        return graph

    def _unique(self, name: str) -> str:
        name = self._prefix + name if not name.startswith("d:") else name
        unique, count = name, 1
        while unique in self._taken:
            count += 1
            unique = f"{name}#{count}"
        self._taken.add(unique)
        return unique
