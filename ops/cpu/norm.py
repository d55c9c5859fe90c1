"""Layer normalisation: each row is read from memory once, its sums are taken in cache."""

from collections.abc import Callable

import numpy as np

from aieflow.ops import norm
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.operand import NO_FLOATS, flat, floats, idle, is_same, matrix
from aieflow.ops.cpu.reduction import dot_about, squares_about, total
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split
from aieflow.ops.op import Array

ONE = np.float32(1)


@compiled
def _forward(
    x: Array, weight: Array, bias: Array, out: Array, means: Array, rstds: Array, epsilon: float
) -> None:
    # x (M, C), weight, bias (C,) -> out (M, C), means, rstds (M,)
    rows, columns = x.shape
    share = ONE / np.float32(columns)
    for i in range(rows):
        row, target = x[i], out[i]
        mean = total(row) * share
        rstd = ONE / np.sqrt(squares_about(row, mean) * share + np.float32(epsilon))
        for j in range(columns):
            target[j] = (row[j] - mean) * rstd * weight[j] + bias[j]
        means[i] = mean
        rstds[i] = rstd


def _bind_forward(call: Call) -> Callable[[], None]:
    x, out = matrix(call.inputs[0]), matrix(call.outputs[0])
    weight, bias = flat(call.inputs[1]), flat(call.inputs[2])
    means, rstds = flat(call.outputs[1]), flat(call.outputs[2])
    epsilon = float(call.attrs["epsilon"])
    first, last = call.share(len(x))
    x, out, means, rstds = (operand[first:last] for operand in (x, out, means, rstds))

    def run() -> None:
        _forward(x, weight, bias, out, means, rstds, epsilon)

    return run


LAYERNORM = HostKernel(
    "loop",
    norm.LAYERNORM,
    _bind_forward,
    lambda node: Split(node.input_specs[0].rows, frozenset({0}), frozenset({0, 1, 2})),
)


@compiled
def _backward(
    dy: Array,
    x: Array,
    weight: Array,
    means: Array,
    rstds: Array,
    addend: Array,
    dx: Array,
    line: Array,
    mode: int,
) -> None:
    # dy, x, addend (M, C), weight, line (C,), means, rstds (M,) -> dx (M, C)
    # mode 0: no addend, 1: addend, 2: dx is the addend
    rows, columns = x.shape
    share = ONE / np.float32(columns)
    for i in range(rows):
        given, row, target = dy[i], x[i], dx[i]
        mean, rstd = means[i], rstds[i]
        for j in range(columns):
            line[j] = given[j] * weight[j]
        level = total(line) * share
        along = dot_about(line, row, mean) * share * rstd * rstd
        if mode == 0:
            for j in range(columns):
                target[j] = (line[j] - level - (row[j] - mean) * along) * rstd
        elif mode == 1:
            added = addend[i]
            for j in range(columns):
                target[j] = (line[j] - level - (row[j] - mean) * along) * rstd + added[j]
        else:
            for j in range(columns):
                target[j] += (line[j] - level - (row[j] - mean) * along) * rstd


def _bind_backward(call: Call) -> Callable[[], None]:
    dy, x, dx = matrix(call.inputs[0]), matrix(call.inputs[1]), matrix(call.outputs[0])
    weight, means, rstds = (flat(operand) for operand in call.inputs[2:5])
    has_addend = len(call.inputs) == 6
    addend = matrix(call.inputs[5]) if has_addend else dx
    mode = 0 if not has_addend else 2 if is_same(addend, dx) else 1
    line = floats(call.workspace, x.shape[1])
    first, last = call.share(len(x))
    dy, x, dx, addend, means, rstds = (
        operand[first:last] for operand in (dy, x, dx, addend, means, rstds)
    )

    def run() -> None:
        _backward(dy, x, weight, means, rstds, addend, dx, line, mode)

    return run


def _split_backward(node: Node) -> Split:
    divided = {0, 1, 3, 4, *range(5, len(node.inputs))}
    return Split(node.input_specs[0].rows, frozenset(divided), frozenset({0}))


LAYERNORM_BACKWARD = HostKernel(
    "loop",
    norm.LAYERNORM_BACKWARD,
    _bind_backward,
    _split_backward,
    lambda node: 4 * node.input_specs[0].columns,
)


@compiled
def _backward_params(
    x: Array, dy: Array, means: Array, rstds: Array, dweight: Array, dbias: Array, first: int
) -> None:
    # x, dy (M, C), means, rstds (M,); dweight, dbias (columns first ... of C,) are added to
    rows, columns = x.shape[0], dweight.size
    paired = rows - rows % 2
    for i in range(0, paired, 2):
        x0, x1 = x[i, first : first + columns], x[i + 1, first : first + columns]
        dy0, dy1 = dy[i, first : first + columns], dy[i + 1, first : first + columns]
        mean0, mean1, rstd0, rstd1 = means[i], means[i + 1], rstds[i], rstds[i + 1]
        for j in range(columns):
            dweight[j] += dy0[j] * ((x0[j] - mean0) * rstd0) + dy1[j] * ((x1[j] - mean1) * rstd1)
            dbias[j] += dy0[j] + dy1[j]
    for i in range(paired, rows):
        x0, dy0 = x[i, first : first + columns], dy[i, first : first + columns]
        for j in range(columns):
            dweight[j] += dy0[j] * ((x0[j] - means[i]) * rstds[i])
            dbias[j] += dy0[j]


def _bind_backward_params(call: Call) -> Callable[[], None]:
    x, dy = matrix(call.inputs[0]), matrix(call.inputs[1])
    means, rstds = flat(call.inputs[2]), flat(call.inputs[3])
    first, last = call.share(x.shape[1])
    if first == last:
        return idle
    dweight, dbias = (flat(out)[first:last] for out in call.outputs)
    addends = [flat(addend)[first:last] for addend in call.inputs[4:]] or [NO_FLOATS, NO_FLOATS]
    copied = [
        (target, addend)
        for target, addend in zip((dweight, dbias), addends, strict=True)
        if not is_same(target, addend)
    ]

    def run() -> None:
        for target, addend in copied:
            np.copyto(target, addend)
        _backward_params(x, dy, means, rstds, dweight, dbias, first)

    return run


def _split_backward_params(node: Node) -> Split:
    addends = frozenset(range(4, len(node.inputs)))
    return Split(node.input_specs[0].columns, addends, frozenset({0, 1}))


LAYERNORM_BACKWARD_PARAMS = HostKernel(
    "loop", norm.LAYERNORM_BACKWARD_PARAMS, _bind_backward_params, _split_backward_params
)
