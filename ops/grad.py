"""The reverse walk: from the gradients of some values to those of all that they depend on.

Nodes are visited last to first. Each op's backward rule appends the nodes that compute the total
gradient of its inputs. A value read by several nodes collects their contributions in that fixed
order, so the sum has the same bits every time. A parameter's gradient is complete once the first
node that reads it was visited; `on_complete` is told at that point, so that an optimizer node can
follow at once and the gradient's memory be free again.

What the backward pass reads of the forward pass occupies memory from the one to the other. A value
that is cheap to compute (of an op in `recompute`) can instead be computed a second time, just
before it is read: the same kernel on the same inputs gives the same bits.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from aieflow.ops.builder import Builder
from aieflow.ops.errors import GraphError
from aieflow.ops.graph import Node, Value
from aieflow.ops.op import Op, total


def append_backward(
    builder: Builder,
    nodes: tuple[Node, ...],
    seeds: Mapping[Value, Value],
    partial: Mapping[Value, Value],
    on_complete: Callable[[Value, Value], None] | None = None,
    recompute: Collection[Op] = (),
) -> dict[Value, Value]:
    """Append the backward pass of `nodes` and return the gradient of every value reached.

    `seeds` maps values to their given gradients; `partial` maps parameters to gradients collected
    before (by an earlier shard), which are added to. Values of the ops in `recompute` are computed
    again where a backward rule reads them as inputs. Raises GraphError for an op without a rule.
    """
    gradients = dict(partial)
    gradients.update(seeds)
    first_reader: dict[Value, int] = {}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            first_reader.setdefault(value, index)
    producer = {value: node for node in nodes for value in node.outputs}
    twice: dict[Value, Value] = {}  # value -> the same, computed again

    def recomputed(value: Value) -> Value:
        node = producer.get(value)
        if node is None or node.op not in recompute:
            return value
        if value not in twice:
            names = [f"{output.name}.again" for output in node.outputs]
            outputs = builder.apply(node.op, node.inputs, names, node.attrs)
            twice.update(zip(node.outputs, outputs, strict=True))
        return twice[value]

    for index in reversed(range(len(nodes))):
        node = nodes[index]
        of_outputs = tuple(gradients.get(value) for value in node.outputs)
        if any(gradient is not None for gradient in of_outputs):
            if node.op.backward is None:
                raise GraphError(f"{node.name}: op {node.op.name} has no backward rule")
            collected = tuple(
                None if value in node.inputs[:place] else gradients.get(value)
                for place, value in enumerate(node.inputs)
            )
            again = replace(node, inputs=tuple(map(recomputed, node.inputs)))
            totals = node.op.backward(builder, again, of_outputs, collected)
            for place, (value, gradient) in enumerate(zip(node.inputs, totals, strict=True)):
                if gradient is not None:
                    is_repeated = value in node.inputs[:place]
                    gradients[value] = total(
                        builder, gradients[value] if is_repeated else None, gradient
                    )
        if on_complete is not None:
            for value in dict.fromkeys(node.inputs):
                if value.role == "parameter" and first_reader[value] == index:
                    on_complete(value, gradients[value])
    return gradients
