"""Elementwise kernels: eight elements to a work item."""

import numpy as np

from aieflow.ops import pointwise
from aieflow.ops.graph import Node
from aieflow.ops.op import Attrs
from aieflow.ops.opencl.launch import Argument, Launch, OpenClKernel, Operand
from aieflow.ops.opencl.sizes import elementwise
from aieflow.ops.random import STREAM_STEP, drop_threshold

SCALE = np.float32(2 * pointwise.GELU_SCALE)
CUBIC = np.float32(pointwise.GELU_CUBIC)
X, Y, OUT = Operand("input", 0), Operand("input", 1), Operand("output", 0)


def mask_arguments(attrs: Attrs) -> tuple[np.uint64, np.uint32, np.float32]:
    """Stream offset, threshold and scale of a dropout; with rate 0 all is kept."""
    rate = float(attrs.get("rate", 0))
    stream = int(attrs.get("stream", 0)) * STREAM_STEP % 2**64
    return np.uint64(stream), np.uint32(drop_threshold(rate)), np.float32(1 / (1 - rate))


def _launch(node: Node, arguments: tuple[Argument, ...]) -> tuple[Launch, ...]:
    return (Launch("pointwise", node.op.name, arguments, *elementwise(node.output_specs[0].size)),)


def _size(node: Node) -> np.uint64:
    return np.uint64(node.output_specs[0].size)


ADD = OpenClKernel("vector", pointwise.ADD, lambda node: _launch(node, (X, Y, OUT, _size(node))))
GELU = OpenClKernel(
    "vector", pointwise.GELU, lambda node: _launch(node, (X, OUT, _size(node), SCALE, CUBIC))
)
GELU_BACKWARD = OpenClKernel(
    "vector",
    pointwise.GELU_BACKWARD,
    lambda node: _launch(node, (X, Y, OUT, _size(node), SCALE, CUBIC)),
)


def _dropout(node: Node) -> tuple[Launch, ...]:
    has_addend = len(node.inputs) == 3
    addend = Operand("input", 2 if has_addend else 0)
    mask = mask_arguments(node.attrs)
    return _launch(node, (X, Y, addend, OUT, _size(node), *mask, np.int32(has_addend)))


DROPOUT = OpenClKernel("vector", pointwise.DROPOUT, _dropout)
