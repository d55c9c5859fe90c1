"""Elementwise ops: addition, GELU (tanh form), dropout; forward and backward."""

import math

import numpy as np

from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node
from aieflow.ops.op import Arrays, Attrs, Gradients, Op, Specs, flops_per_element, require, total
from aieflow.ops.random import keep_mask

# gelu(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): Hendrycks and Gimpel 2016, section 2
GELU_SCALE = math.sqrt(2 / math.pi)
GELU_CUBIC = 0.044715


def _infer_same(inputs: Specs, attrs: Attrs) -> Specs:
    x, y = inputs
    require(x == y, f"operands {x} and {y} must be alike")
    return (x,)


def _add_backward(
    builder: Builder, node: Node, gradients: Gradients, partial: Gradients
) -> Gradients:
    (dy,) = gradients
    assert dy is not None
    return total(builder, partial[0], dy), total(builder, partial[1], dy)


ADD = Op(
    "add",
    _infer_same,
    flops_per_element(1),
    lambda inputs, attrs: (inputs[0] + inputs[1],),
    _add_backward,
    may_overwrite={0: (0, 1)},
)


def gelu_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))); any shape."""
    (x,) = inputs
    return (0.5 * x * (1 + np.tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x))),)


def gelu_backward_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """The gradient of x; x, dy of any one shape -> dx."""
    x, dy = inputs
    t = np.tanh(GELU_SCALE * (x + GELU_CUBIC * x * x * x))
    slope = GELU_SCALE * (1 + 3 * GELU_CUBIC * x * x)
    return (dy * 0.5 * (1 + t + x * (1 - t * t) * slope),)


def _gelu_backward_rule(
    builder: Builder, node: Node, gradients: Gradients, partial: Gradients
) -> Gradients:
    (dy,) = gradients
    assert dy is not None
    (x,) = node.inputs
    (dx,) = builder.apply(GELU_BACKWARD, [x, dy], [f"d:{x.name}"])
    return (total(builder, partial[0], dx),)


GELU = Op(
    "gelu",
    lambda inputs, attrs: (inputs[0],),
    flops_per_element(9),
    gelu_reference,
    _gelu_backward_rule,
)
GELU_BACKWARD = Op(
    "gelu_backward",
    _infer_same,
    flops_per_element(16),
    gelu_backward_reference,
    may_overwrite={0: (1, 0)},
)


def _infer_dropout(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) in (2, 3), f"takes x, key (, addend), given {len(inputs)} operands")
    x, key = inputs[:2]
    require(key.dtype == "uint64" and key.shape == (1,), f"key must be uint64[1], given {key}")
    require(0 < attrs["rate"] < 1, f"rate {attrs['rate']} must lie between 0 and 1")
    require(len(inputs) == 2 or inputs[2] == x, f"addend must be like x {x}")
    return (x,)


def dropout_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Zero a share `rate` of x and scale the rest by 1 / (1 - rate); add `addend` where given."""
    # x of any shape, key (1,) (, addend like x) -> like x
    x, key = inputs[:2]
    rate = float(attrs["rate"])
    mask = keep_mask(int(key[0]), int(attrs["stream"]), x.shape, rate)
    out = x * mask * np.asarray(1 / (1 - rate), x.dtype)
    return (out + inputs[2] if len(inputs) == 3 else out,)


def _dropout_backward_rule(
    builder: Builder, node: Node, gradients: Gradients, partial: Gradients
) -> Gradients:
    (dy,) = gradients
    assert dy is not None
    x, key = node.inputs[:2]
    operands = [dy, key] if partial[0] is None else [dy, key, partial[0]]
    (dx,) = builder.apply(DROPOUT, operands, [f"d:{x.name}"], node.attrs)
    if len(node.inputs) == 2:
        return dx, None
    return dx, None, total(builder, partial[2], dy)


DROPOUT = Op(
    "dropout",
    _infer_dropout,
    flops_per_element(10),
    dropout_reference,
    _dropout_backward_rule,
    may_overwrite={0: (2, 0)},
)
