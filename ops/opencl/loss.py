"""Softmax cross-entropy, a group for each row, and the mean of all losses."""

import numpy as np

from aieflow.ops import loss
from aieflow.ops.graph import Node
from aieflow.ops.opencl.launch import Argument, Launch, OpenClKernel, Operand
from aieflow.ops.opencl.sizes import GROUP

DOUBLE = 8  # bytes


def _cross_entropy(node: Node) -> tuple[Launch, ...]:
    logits = node.input_specs[0]
    outputs = [Operand("output", position) for position in range(len(node.outputs))]
    arguments: tuple[Argument, ...] = (
        Operand("input", 0),
        Operand("input", 1),
        *outputs,
        np.int32(logits.columns),
    )
    if len(outputs) == 2:
        arguments += (np.float32(node.attrs["scale"]),)
    return (Launch("loss", node.op.name, arguments, (GROUP * logits.rows,), (GROUP,)),)


CROSS_ENTROPY = OpenClKernel("rows", loss.CROSS_ENTROPY, _cross_entropy)
CROSS_ENTROPY_GRADIENT = OpenClKernel("rows", loss.CROSS_ENTROPY_GRADIENT, _cross_entropy)


def _mean(node: Node) -> tuple[Launch, ...]:
    sums, sizes = Operand("workspace"), [spec.size for spec in node.input_specs]
    launches = [
        Launch(
            "loss",
            "sum",
            (Operand("input", place), sums, np.uint64(size), np.int32(place)),
            (GROUP,),
            (GROUP,),
        )
        for place, size in enumerate(sizes)
    ]
    arguments = sums, Operand("output", 0), np.int32(len(sizes)), np.uint64(sum(sizes))
    return (*launches, Launch("loss", "mean", arguments, (1,), (1,)))


MEAN = OpenClKernel("sums", loss.MEAN, _mean, lambda node: DOUBLE * len(node.inputs))
