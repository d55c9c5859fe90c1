"""AdamW in one pass, and clipping: squared norms by chunk, their sums, the factor."""

import numpy as np

from aieflow.ops import optim
from aieflow.ops.graph import Node
from aieflow.ops.opencl.launch import Argument, Launch, OpenClKernel, Operand
from aieflow.ops.opencl.sizes import GROUP, elementwise

ARRAYS = 8  # that one launch of `sum_each` sums
DOUBLE = 8  # bytes


def _squared_norm(node: Node) -> tuple[Launch, ...]:
    arguments = Operand("input", 0), Operand("output", 0), np.uint64(node.input_specs[0].size)
    chunks = node.output_specs[0].size
    return (Launch("optim", "squared_norm", arguments, (GROUP * chunks,), (GROUP,)),)


SQUARED_NORM = OpenClKernel("chunks", optim.SQUARED_NORM, _squared_norm)


def _clip_factor(node: Node) -> tuple[Launch, ...]:
    sums, count = Operand("workspace"), len(node.inputs)
    launches = []
    for first in range(0, count, ARRAYS):
        positions = range(first, min(first + ARRAYS, count))
        absent = ARRAYS - len(positions)
        operands = [Operand("input", position) for position in positions]
        sizes = [node.input_specs[position].size for position in positions] + [0] * absent
        arguments: tuple[Argument, ...] = (
            *operands,
            *operands[:1] * absent,
            sums,
            *(np.int32(size) for size in sizes),
            np.int32(first),
        )
        launches.append(Launch("optim", "sum_each", arguments, (ARRAYS,), (ARRAYS,)))
    outputs = Operand("output", 0), Operand("output", 1)
    scalars = np.int32(count), np.float32(node.attrs["max_norm"])
    last = Launch("optim", "clip_factor", (sums, *outputs, *scalars), (1,), (1,))
    return (*launches, last)


CLIP_FACTOR = OpenClKernel(
    "sums", optim.CLIP_FACTOR, _clip_factor, lambda node: DOUBLE * len(node.inputs)
)


def _adamw(node: Node) -> tuple[Launch, ...]:
    attrs, size = node.attrs, node.output_specs[0].size
    has_factor = len(node.inputs) == 6
    beta1, beta2 = float(attrs["beta1"]), float(attrs["beta2"])
    arguments = (
        Operand("output", 0),
        Operand("input", 1),
        Operand("output", 1),
        Operand("output", 2),
        Operand("input", 4),
        Operand("input", 5 if has_factor else 1),
        np.uint64(size),
        np.float32(beta1),
        np.float32(1 - beta1),
        np.float32(beta2),
        np.float32(1 - beta2),
        np.float32(attrs["epsilon"]),
        np.float32(attrs["weight_decay"]),
        np.int32(has_factor),
    )
    return (Launch("optim", "adamw", arguments, *elementwise(size)),)


ADAMW = OpenClKernel("vector", optim.ADAMW, _adamw)
