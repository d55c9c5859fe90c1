"""Slices of the batch: some sequences of a tensor, and the way back for their gradient."""

import numpy as np

from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node
from aieflow.ops.op import Arrays, Attrs, Gradients, Op, Specs, require
from aieflow.ops.spec import Spec


def _infer_slice(inputs: Specs, attrs: Attrs) -> Specs:
    (x,) = inputs
    first, count = int(attrs["first"]), int(attrs["count"])
    inside = first >= 0 and count >= 1 and first + count <= x.shape[0]
    require(inside, f"{count} from {first} on do not lie within {x}")
    return (Spec((count, *x.shape[1:]), x.dtype),)


def slice_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """x[first : first + count]; x (B, ...) -> (count, ...)."""
    first, count = int(attrs["first"]), int(attrs["count"])
    return (inputs[0][first : first + count].copy(),)


def _slice_backward_rule(
    builder: Builder, node: Node, gradients: Gradients, partial: Gradients
) -> Gradients:
    (dy,) = gradients
    assert dy is not None
    (x,) = node.inputs
    operands = [dy] if partial[0] is None else [dy, partial[0]]
    attrs = {"first": node.attrs["first"], "rows": x.spec.shape[0]}
    return builder.apply(SLICE_BACKWARD, operands, [f"d:{x.name}"], attrs)


SLICE = Op(
    "slice", _infer_slice, lambda inputs, outputs, attrs: 0, slice_reference, _slice_backward_rule
)


def _infer_slice_backward(inputs: Specs, attrs: Attrs) -> Specs:
    dy = inputs[0]
    out = Spec((int(attrs["rows"]), *dy.shape[1:]), dy.dtype)
    require(int(attrs["first"]) + dy.shape[0] <= out.shape[0], f"{dy} does not lie within {out}")
    require(all(addend == out for addend in inputs[1:]), f"addend must be {out}")
    return (out,)


def slice_backward_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Zeros (or the addend) with dy added from `first` on."""
    # dy (count, ...) (, addend (B, ...)) -> (B, ...)
    dy, first = inputs[0], int(attrs["first"])
    if len(inputs) == 2:
        out = inputs[1].copy()
    else:
        out = np.zeros((int(attrs["rows"]), *dy.shape[1:]), dy.dtype)
    out[first : first + dy.shape[0]] += dy
    return (out,)


SLICE_BACKWARD = Op(
    "slice_backward",
    _infer_slice_backward,
    lambda inputs, outputs, attrs: inputs[0].size,
    slice_backward_reference,
    may_overwrite={0: (1,)},
)
