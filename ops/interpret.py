"""Runs a graph node by node with the ops' reference kernels: slow, plain, in any dtype.

The yardstick for kernels and backward rules; nothing is planned and nothing is in place.
"""

from collections.abc import Mapping

from aieflow.ops.errors import GraphError
from aieflow.ops.graph import Graph
from aieflow.ops.op import Array


def interpret(graph: Graph, given: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of the graph by name, from its feeds and states.

    Floating dtypes follow the given arrays, so float64 in gives float64 out. Raises GraphError
    where a feed or state is missing or has another shape.
    """
    values: dict[str, Array] = {}
    for value in (*graph.feeds, *graph.states):
        if value.name not in given:
            raise GraphError(f"{graph.name}: no array for %{value.name}")
        array = given[value.name]
        if array.shape != value.spec.shape:
            raise GraphError(
                f"{graph.name}: %{value.name} is {value.spec}, given shape {array.shape}"
            )
        values[value.name] = array
    for node in graph.nodes:
        outputs = node.op.reference(tuple(values[v.name] for v in node.inputs), node.attrs)
        for value, array in zip(node.outputs, outputs, strict=True):
            if array.shape != value.spec.shape:
                raise GraphError(
                    f"{node}: the reference gives shape {array.shape} for %{value.name}"
                )
            values[value.name] = array
    return values
