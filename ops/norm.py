"""Layer normalisation over the last axis, forward and backward (Ba et al. 2016)."""

import numpy as np

from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node
from aieflow.ops.op import Arrays, Attrs, Gradients, Op, Specs, flops_per_element, require
from aieflow.ops.spec import Spec


def _infer_layernorm(inputs: Specs, attrs: Attrs) -> Specs:
    x, weight, bias = inputs
    require(weight.shape == (x.columns,), f"weight must have shape ({x.columns},)")
    require(bias.shape == (x.columns,), f"bias must have shape ({x.columns},)")
    require("epsilon" in attrs, "needs the attribute epsilon")
    row = Spec(x.shape[:-1], x.dtype)
    return x, row, row


def layernorm_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Normalise over the last axis; also return mean and rstd, which the backward pass reads."""
    # x (B, T, C), weight (C,), bias (C,) -> out (B, T, C), mean (B, T), rstd (B, T)
    x, weight, bias = inputs
    mean = x.mean(axis=-1)
    centred = x - mean[..., None]
    rstd = 1 / np.sqrt((centred * centred).mean(axis=-1) + attrs["epsilon"])
    rstd = rstd.astype(x.dtype)
    return centred * rstd[..., None] * weight + bias, mean, rstd


def layernorm_backward_rule(
    builder: Builder, node: Node, gradients: Gradients, partial: Gradients
) -> Gradients:
    """Two nodes: one for x (adds what x's gradient was so far), one for weight and bias."""
    dy = gradients[0]
    assert dy is not None
    x, weight, bias = node.inputs
    _, mean, rstd = node.outputs
    operands = [x, dy, mean, rstd]
    if partial[1] is not None and partial[2] is not None:
        operands += [partial[1], partial[2]]
    dweight, dbias = builder.apply(
        LAYERNORM_BACKWARD_PARAMS,
        operands,
        [f"d:{weight.name}", f"d:{bias.name}"],
        role="gradient",
    )
    operands = [dy, x, weight, mean, rstd]
    if partial[0] is not None:
        operands.append(partial[0])
    (dx,) = builder.apply(LAYERNORM_BACKWARD, operands, [f"d:{x.name}"])
    return dx, dweight, dbias


LAYERNORM = Op(
    "layernorm",
    _infer_layernorm,
    flops_per_element(8),
    layernorm_reference,
    layernorm_backward_rule,
)


def _infer_backward(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) in (5, 6), f"takes 5 or 6 operands, given {len(inputs)}")
    dy, x = inputs[:2]
    require(dy == x, f"dy {dy} must be like x {x}")
    require(len(inputs) == 5 or inputs[5] == x, f"addend must be like x {x}")
    return (x,)


def layernorm_backward_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """The gradient of x, plus `addend` where given."""
    # dy, x (B, T, C), weight (C,), mean, rstd (B, T) (, addend (B, T, C)) -> dx (B, T, C)
    dy, x, weight, mean, rstd = inputs[:5]
    normalised = (x - mean[..., None]) * rstd[..., None]
    scaled = dy * weight
    dx = scaled - scaled.mean(axis=-1, keepdims=True)
    dx -= normalised * (scaled * normalised).mean(axis=-1, keepdims=True)
    dx *= rstd[..., None]
    return (dx + inputs[5] if len(inputs) == 6 else dx,)


LAYERNORM_BACKWARD = Op(
    "layernorm_backward",
    _infer_backward,
    flops_per_element(12),
    layernorm_backward_reference,
    may_overwrite={0: (5, 0)},
)


def _infer_backward_params(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) in (4, 6), f"takes 4 or 6 operands, given {len(inputs)}")
    x = inputs[0]
    out = Spec((x.columns,), x.dtype)
    require(all(addend == out for addend in inputs[4:]), f"addends must be {out}")
    return out, out


def layernorm_backward_params_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """The gradients of weight and bias, plus the addends where given."""
    # x, dy (B, T, C), mean, rstd (B, T) (, dweight, dbias (C,)) -> dweight (C,), dbias (C,)
    x, dy, mean, rstd = inputs[:4]
    normalised = (x - mean[..., None]) * rstd[..., None]
    rows = tuple(range(x.ndim - 1))
    dweight, dbias = (dy * normalised).sum(axis=rows), dy.sum(axis=rows)
    if len(inputs) == 6:
        return dweight + inputs[4], dbias + inputs[5]
    return dweight, dbias


LAYERNORM_BACKWARD_PARAMS = Op(
    "layernorm_backward_params",
    _infer_backward_params,
    flops_per_element(5),
    layernorm_backward_params_reference,
    may_overwrite={0: (4,), 1: (5,)},
)
