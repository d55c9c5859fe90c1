"""AdamW in one pass over memory, and the parts of clipping by the global norm."""

import math
from collections.abc import Callable

import numpy as np

from aieflow.ops import optim
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.operand import flat, leading_share, leading_units
from aieflow.ops.cpu.reduction import squares_in_double, total_in_double
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split
from aieflow.ops.op import Array

NO_FACTOR = np.ones(1, np.float32)
CHUNK = optim.NORM_CHUNK


@compiled
def _squared_norm(x: Array, sums: Array) -> None:
    for chunk in range(sums.size):
        row = x[chunk * CHUNK : min((chunk + 1) * CHUNK, x.size)]
        sums[chunk] = squares_in_double(row)


def _bind_squared_norm(call: Call) -> Callable[[], None]:
    x, sums = flat(call.inputs[0]), call.outputs[0]
    first, last = call.share(sums.size)
    x, sums = x[first * CHUNK : last * CHUNK], sums[first:last]

    def run() -> None:
        _squared_norm(x, sums)

    return run


def _split_squared_norm(node: Node) -> Split:
    chunks, size = node.output_specs[0].size, node.input_specs[0].size
    inputs = frozenset({0} if size == chunks * CHUNK else ())
    return Split(chunks, inputs, frozenset({0}))


SQUARED_NORM = HostKernel("chunks", optim.SQUARED_NORM, _bind_squared_norm, _split_squared_norm)


def _bind_clip_factor(call: Call) -> Callable[[], None]:
    sums = [flat(x, "float64") for x in call.inputs]
    factor, norm = call.outputs
    max_norm = float(call.attrs["max_norm"])

    def run() -> None:
        total = math.sqrt(sum(total_in_double(x) for x in sums))
        share = max_norm / (total + 1e-6)
        factor[0] = share if max_norm and share < 1 else 1.0
        norm[0] = total

    return run


CLIP_FACTOR = HostKernel("loop", optim.CLIP_FACTOR, _bind_clip_factor)


@compiled
def _adamw(
    parameter: Array,
    gradient: Array,
    m: Array,
    v: Array,
    rates: Array,
    factor: Array,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
) -> None:
    rate, correction1, correction2 = rates[0], rates[1], rates[2]
    scale = factor[0]
    keep_m, take_m = np.float32(beta1), np.float32(1 - beta1)
    keep_v, take_v = np.float32(beta2), np.float32(1 - beta2)
    least = np.float32(epsilon)
    spread = np.float32(1 / math.sqrt(correction2))
    decay = np.float32(1 - rate * weight_decay)
    pace = np.float32(rate / correction1)
    for i in range(parameter.size):
        g = gradient[i] * scale
        new_m = keep_m * m[i] + take_m * g
        new_v = keep_v * v[i] + take_v * g * g
        m[i] = new_m
        v[i] = new_v
        step = pace * new_m / (np.sqrt(new_v) * spread + least)
        parameter[i] = parameter[i] * decay - step


def _bind_adamw(call: Call) -> Callable[[], None]:
    _, unit = leading_share(call.inputs[0])
    first, last = (place * unit for place in call.share(call.inputs[0].size // unit))
    parameter, gradient, m, v = (flat(operand)[first:last] for operand in call.inputs[:4])
    rates = flat(call.inputs[4], "float64")
    factor = flat(call.inputs[5]) if len(call.inputs) == 6 else NO_FACTOR
    names = ("beta1", "beta2", "epsilon", "weight_decay")
    beta1, beta2, epsilon, weight_decay = (float(call.attrs[name]) for name in names)

    def run() -> None:
        _adamw(parameter, gradient, m, v, rates, factor, beta1, beta2, epsilon, weight_decay)

    return run


def _split_adamw(node: Node) -> Split:
    units = leading_units(node.output_specs[0])
    return Split(units, frozenset(range(4)), frozenset(range(3)))


ADAMW = HostKernel("loop", optim.ADAMW, _bind_adamw, _split_adamw)
