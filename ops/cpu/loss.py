"""Softmax cross-entropy: one exponential an element, in place.

A row is taken in blocks. The first pass replaces a block by exp(x - its top) and keeps its top and
sum; the second multiplies each block by what it lacks: exp(its top - the row's top) times `scale`,
over the row's sum. Sums are float32 inside a block and float64 across blocks. Without gradient, the
first pass works on a copy of the block.
"""

import math
from collections.abc import Callable

import numpy as np

from aieflow.ops import loss
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.operand import flat, floats, is_same, matrix
from aieflow.ops.cpu.reduction import LEAST, exponentials, maximum, total_in_double
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split
from aieflow.ops.op import Array

BLOCK = 2048  # elements


@compiled
def _cross_entropy(
    logits: Array,
    targets: Array,
    losses: Array,
    dlogits: Array,
    tops: Array,
    scale: float,
    has_gradient: bool,
    is_in_place: bool,
) -> None:
    # logits, dlogits (M, V), targets, losses (M,), tops (blocks,)
    # without gradient dlogits is a tile (1, BLOCK)
    columns = logits.shape[1]
    for i in range(logits.shape[0]):
        picked = logits[i, targets[i]]
        row_top, row_sum = LEAST, 0.0
        for block in range(tops.size):
            first, last = block * BLOCK, min((block + 1) * BLOCK, columns)
            row = logits[i, first:last]
            out = dlogits[i, first:last] if has_gradient else dlogits[0, : last - first]
            top = maximum(row)
            if not is_in_place:
                for j in range(row.size):
                    out[j] = row[j]
            block_sum = np.float64(exponentials(out, top))
            tops[block] = top
            if top > row_top:
                row_sum = row_sum * math.exp(np.float64(row_top) - np.float64(top)) + block_sum
                row_top = top
            else:
                row_sum += block_sum * math.exp(np.float64(top) - np.float64(row_top))
        losses[i] = np.float32(math.log(row_sum) + (np.float64(row_top) - np.float64(picked)))
        if has_gradient:
            for block in range(tops.size):
                first, last = block * BLOCK, min((block + 1) * BLOCK, columns)
                out = dlogits[i, first:last]
                below = np.float64(tops[block]) - np.float64(row_top)
                factor = np.float32(scale * math.exp(below) / row_sum)
                for j in range(out.size):
                    out[j] *= factor
            dlogits[i, targets[i]] -= np.float32(scale)


def _blocks(columns: int) -> int:
    return -(-columns // BLOCK)


def _bind(call: Call) -> Callable[[], None]:
    logits, targets = matrix(call.inputs[0]), flat(call.inputs[1], "int32")
    losses = flat(call.outputs[0])
    first, last = call.share(len(logits))
    blocks = _blocks(logits.shape[1])
    tops = floats(call.workspace, blocks)
    logits, targets, losses = logits[first:last], targets[first:last], losses[first:last]
    has_gradient = len(call.outputs) == 2
    if has_gradient:
        dlogits = matrix(call.outputs[1])[first:last]
        scale = float(call.attrs["scale"])
    else:
        dlogits = floats(call.workspace, blocks + BLOCK)[blocks:].reshape(1, BLOCK)
        scale = 0.0
    is_in_place = is_same(logits, dlogits)

    def run() -> None:
        _cross_entropy(logits, targets, losses, dlogits, tops, scale, has_gradient, is_in_place)

    return run


def _split(node: Node) -> Split:
    outputs = frozenset(range(len(node.outputs)))
    return Split(node.input_specs[0].rows, frozenset({0, 1}), outputs)


CROSS_ENTROPY = HostKernel(
    "blocks",
    loss.CROSS_ENTROPY,
    _bind,
    _split,
    lambda node: 4 * (_blocks(node.input_specs[0].columns) + BLOCK),
)
CROSS_ENTROPY_GRADIENT = HostKernel(
    "blocks",
    loss.CROSS_ENTROPY_GRADIENT,
    _bind,
    _split,
    lambda node: 4 * _blocks(node.input_specs[0].columns),
)


def _bind_mean(call: Call) -> Callable[[], None]:
    operands = [flat(x) for x in call.inputs]
    size = sum(x.size for x in operands)
    out = call.outputs[0]

    def run() -> None:
        out[0] = sum(total_in_double(x) for x in operands) / size

    return run


MEAN = HostKernel("loop", loss.MEAN, _bind_mean)
