"""Elementwise kernels. What an output may share memory with is first set aside in a small tile.

A loop whose output is one of its inputs is vectorised only if the compiler sees one array, hence
the tile (a few KB, in cache) and the cases of each last pass.
"""

from collections.abc import Callable

import numpy as np

from aieflow.ops import pointwise
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.exponential import exponential
from aieflow.ops.cpu.mask import Dropout, dropout, is_kept
from aieflow.ops.cpu.operand import (
    NO_FLOATS,
    floats,
    is_same,
    leading_share,
    split_elementwise,
)
from aieflow.ops.kernel import Call, HostKernel
from aieflow.ops.op import Array

TILE = 1024  # elements
SCALE = np.float32(2 * pointwise.GELU_SCALE)
CUBIC = np.float32(pointwise.GELU_CUBIC)
THREE_CUBIC = np.float32(3 * pointwise.GELU_CUBIC)
ZERO, ONE = np.float32(0), np.float32(1)


def _shares(call: Call, operands: tuple[Array, ...]) -> tuple[int, list[Array]]:
    """The index of the part's first element, and its share of each operand, flat."""
    out, unit = leading_share(call.outputs[0])
    first, last = (place * unit for place in call.share(out.size // unit))
    return first, [leading_share(operand)[0][first:last] for operand in operands]


def _bind_add(call: Call) -> Callable[[], None]:
    _, (x, y, out) = _shares(call, (*call.inputs, *call.outputs))

    def run() -> None:
        np.add(x, y, out=out)

    return run


ADD = HostKernel("numpy", pointwise.ADD, _bind_add, split_elementwise)


@compiled
def _gelu(x: Array, out: Array) -> None:
    # x/2 (1 + tanh(u)) = x / (1 + exp(-2u))
    for i in range(x.size):
        u = SCALE * (x[i] + CUBIC * x[i] * x[i] * x[i])
        out[i] = x[i] / (ONE + exponential(-u))


def _bind_gelu(call: Call) -> Callable[[], None]:
    _, (x, out) = _shares(call, (call.inputs[0], call.outputs[0]))

    def run() -> None:
        _gelu(x, out)

    return run


GELU = HostKernel("loop", pointwise.GELU, _bind_gelu, split_elementwise)


@compiled
def _gelu_backward(x: Array, dy: Array, dx: Array, tile: Array, is_dy: bool) -> None:
    for first in range(0, x.size, TILE):
        last = min(first + TILE, x.size)
        row, given, target = x[first:last], dy[first:last], dx[first:last]
        for i in range(row.size):
            square = row[i] * row[i]
            u = SCALE * (row[i] + CUBIC * square * row[i])
            share = ONE / (ONE + exponential(-u))
            slope = SCALE * (ONE + THREE_CUBIC * square)
            tile[i] = share * (ONE + row[i] * (ONE - share) * slope)
        if is_dy:
            for i in range(row.size):
                target[i] *= tile[i]
        else:
            for i in range(row.size):
                target[i] = given[i] * tile[i]


def _bind_gelu_backward(call: Call) -> Callable[[], None]:
    _, (x, dy, dx) = _shares(call, (*call.inputs, *call.outputs))
    tile = floats(call.workspace, TILE)
    is_dy = is_same(dx, dy)

    def run() -> None:
        _gelu_backward(x, dy, dx, tile, is_dy)

    return run


GELU_BACKWARD = HostKernel(
    "loop",
    pointwise.GELU_BACKWARD,
    _bind_gelu_backward,
    split_elementwise,
    lambda node: 4 * TILE,
)


@compiled
def _dropout(
    x: Array,
    addend: Array,
    out: Array,
    tile: Array,
    dropped: Dropout,
    start: int,
    mode: int,
) -> None:
    # mode 0: no addend, 1: addend, 2: out is the addend
    base = dropped.key[0] + dropped.stream
    factor, least = dropped.keep_scale, dropped.least
    for first in range(0, x.size, TILE):
        last = min(first + TILE, x.size)
        row, target = x[first:last], out[first:last]
        for i in range(row.size):
            kept = factor if is_kept(base, start + first + i, least) else ZERO
            tile[i] = row[i] * kept
        if mode == 0:
            for i in range(row.size):
                target[i] = tile[i]
        elif mode == 1:
            added = addend[first:last]
            for i in range(row.size):
                target[i] = tile[i] + added[i]
        else:
            for i in range(row.size):
                target[i] += tile[i]


def _bind_dropout(call: Call) -> Callable[[], None]:
    has_addend = len(call.inputs) == 3
    first, (x, out) = _shares(call, (call.inputs[0], call.outputs[0]))
    addend = _shares(call, call.inputs[2:])[1][0] if has_addend else NO_FLOATS
    mode = 0 if not has_addend else 2 if is_same(addend, out) else 1
    tile, dropped = floats(call.workspace, TILE), dropout(call.attrs, call.inputs[1])

    def run() -> None:
        _dropout(x, addend, out, tile, dropped, first, mode)

    return run


DROPOUT = HostKernel(
    "loop", pointwise.DROPOUT, _bind_dropout, split_elementwise, lambda node: 4 * TILE
)
