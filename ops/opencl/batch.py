"""Copies of some sequences of a batch, and the sum that is their gradient."""

import math

import numpy as np

from aieflow.ops import batch
from aieflow.ops.graph import Node
from aieflow.ops.opencl.launch import Launch, OpenClKernel, Operand
from aieflow.ops.opencl.sizes import GROUP, padded

WORD, HALF = 4, 2  # bytes


def _slice(node: Node) -> tuple[Launch, ...]:
    (out,), first = node.output_specs, int(node.attrs["first"])
    sequence = out.nbytes // out.shape[0]
    unit = WORD if sequence % WORD == 0 else HALF
    count = out.nbytes // unit
    arguments = (
        Operand("input", 0),
        Operand("output", 0),
        np.uint64(first * sequence // unit),
        np.uint64(count),
    )
    function = "copy_words" if unit == WORD else "copy_halves"
    return (Launch("batch", function, arguments, (padded(count),), (GROUP,)),)


SLICE = OpenClKernel("copy", batch.SLICE, _slice)


def _slice_backward(node: Node) -> tuple[Launch, ...]:
    (out,), dy = node.output_specs, node.input_specs[0]
    has_addend = len(node.inputs) == 2
    first = int(node.attrs["first"]) * math.prod(out.shape[1:])
    arguments = (
        Operand("input", 0),
        Operand("input", 1 if has_addend else 0),
        Operand("output", 0),
        np.uint64(first),
        np.uint64(first + dy.size),
        np.uint64(out.size),
        np.int32(has_addend),
    )
    return (Launch("batch", "slice_backward", arguments, (padded(out.size),), (GROUP,)),)


SLICE_BACKWARD = OpenClKernel("sum", batch.SLICE_BACKWARD, _slice_backward)
