"""Embedding kernels: rows are gathered forward and added up backward, table rows divided."""

from collections.abc import Callable

import numpy as np

from aieflow.ops import embedding
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.operand import NO_FLOATS, flat, is_same, matrix
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split
from aieflow.ops.op import Array

NO_POSITION = np.zeros(1, np.int64)


@compiled
def _gather(
    tokens: Array, wte: Array, wpe: Array, position: Array, out: Array, first: int, length: int
) -> None:
    # tokens (rows,), out (rows, C): rows first ... of the batch, whose sequences have `length`
    for i in range(tokens.size):
        word, place = wte[tokens[i]], wpe[position[0] + (first + i) % length]
        target = out[i]
        for j in range(target.size):
            target[j] = word[j] + place[j]


def _bind_gather(call: Call) -> Callable[[], None]:
    tokens, out = flat(call.inputs[0], "int32"), matrix(call.outputs[0])
    wte, wpe = matrix(call.inputs[1]), matrix(call.inputs[2])
    position = call.inputs[3] if len(call.inputs) == 4 else NO_POSITION
    first, last = call.share(tokens.size)
    length = call.inputs[0].shape[1]
    tokens, out = tokens[first:last], out[first:last]

    def run() -> None:
        _gather(tokens, wte, wpe, position, out, first, length)

    return run


EMBEDDING = HostKernel(
    "loop",
    embedding.EMBEDDING,
    _bind_gather,
    lambda node: Split(node.input_specs[0].size, frozenset({0}), frozenset({0})),
)


def _split_table(node: Node) -> Split:
    """Divide the table's rows; the last input is the addend where there is one."""
    out = node.output_specs[0]
    addends = {index for index, spec in enumerate(node.input_specs) if spec == out and index > 0}
    return Split(out.rows, frozenset(addends), frozenset({0}))


@compiled
def _add_tokens(tokens: Array, dx: Array, out: Array, first: int) -> None:
    # tokens (rows,), dx (rows, C); out holds the table's rows first ...
    last = first + out.shape[0]
    for i in range(tokens.size):
        if first <= tokens[i] < last:
            row, target = dx[i], out[tokens[i] - first]
            for j in range(row.size):
                target[j] += row[j]


def _bind_add_tokens(call: Call) -> Callable[[], None]:
    tokens, dx = flat(call.inputs[0], "int32"), matrix(call.inputs[1])
    out, addend, first = _table_share(call, 2)

    def run() -> None:
        if addend is not None:
            np.copyto(out, addend)
        _add_tokens(tokens, dx, out, first)

    return run


def _table_share(call: Call, at_addend: int) -> tuple[Array, Array | None, int]:
    """The part's rows of the output, what to copy into them first (if anything), first row."""
    out = matrix(call.outputs[0])
    first, last = call.share(len(out))
    if len(call.inputs) <= at_addend:
        return out[first:last], NO_FLOATS, first
    addend = matrix(call.inputs[at_addend])
    return out[first:last], None if is_same(addend, out) else addend[first:last], first


EMBEDDING_BACKWARD_TOKENS = HostKernel(
    "loop", embedding.EMBEDDING_BACKWARD_TOKENS, _bind_add_tokens, _split_table
)


@compiled
def _add_positions(dx: Array, out: Array, first: int, length: int) -> None:
    # dx (B*T, C); out holds the table's rows first ...
    for b in range(dx.shape[0] // length):
        for t in range(first, min(first + out.shape[0], length)):
            row, target = dx[b * length + t], out[t - first]
            for j in range(row.size):
                target[j] += row[j]


def _bind_add_positions(call: Call) -> Callable[[], None]:
    dx, length = matrix(call.inputs[0]), call.inputs[0].shape[1]
    out, addend, first = _table_share(call, 1)

    def run() -> None:
        if addend is not None:
            np.copyto(out, addend)
        _add_positions(dx, out, first, length)

    return run


EMBEDDING_BACKWARD_POSITIONS = HostKernel(
    "loop", embedding.EMBEDDING_BACKWARD_POSITIONS, _bind_add_positions, _split_table
)
