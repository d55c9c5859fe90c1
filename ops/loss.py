"""Softmax cross-entropy. In training its node also writes the gradient of the logits.

The loss is the mean over all tokens of the training step, so a row's gradient is known up to the
constant `scale` = 1 / tokens as soon as its logits are. The gradient takes the logits' memory.
"""

import numpy as np

from aieflow.ops.op import Arrays, Attrs, Op, Specs, flops_per_element, require
from aieflow.ops.spec import Spec


def _infer_cross_entropy(inputs: Specs, attrs: Attrs) -> Specs:
    logits, targets = inputs
    require(targets.dtype == "int32", f"targets must be int32, given {targets}")
    require(targets.shape == logits.shape[:-1], f"targets {targets} do not fit logits {logits}")
    return (Spec(targets.shape, logits.dtype),)


def cross_entropy_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """-log softmax(logits)[target] of each row."""
    # logits (B, T, V), targets (B, T) -> losses (B, T)
    logits, targets = inputs
    top = logits.max(axis=-1)
    log_sum = np.log(np.exp(logits - top[..., None]).sum(axis=-1)) + top
    return (log_sum - np.take_along_axis(logits, targets[..., None].astype(np.int64), -1)[..., 0],)


CROSS_ENTROPY = Op(
    "cross_entropy", _infer_cross_entropy, flops_per_element(6), cross_entropy_reference
)


def _infer_with_gradient(inputs: Specs, attrs: Attrs) -> Specs:
    require("scale" in attrs, "needs the attribute scale")
    return (*_infer_cross_entropy(inputs, attrs), inputs[0])


def cross_entropy_gradient_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Losses, and `scale` times their gradient: (softmax(logits) - onehot(target)) * scale."""
    # logits (B, T, V), targets (B, T) -> losses (B, T), dlogits (B, T, V)
    logits, targets = inputs
    (losses,) = cross_entropy_reference(inputs, attrs)
    place = targets[..., None].astype(np.int64)
    log_sum = losses + np.take_along_axis(logits, place, -1)[..., 0]
    dlogits = np.exp(logits - log_sum[..., None])
    np.put_along_axis(dlogits, place, np.take_along_axis(dlogits, place, -1) - 1, -1)
    return losses, dlogits * np.asarray(attrs["scale"], logits.dtype)


CROSS_ENTROPY_GRADIENT = Op(
    "cross_entropy_gradient",
    _infer_with_gradient,
    flops_per_element(9),
    cross_entropy_gradient_reference,
    may_overwrite={1: (0,)},
)


def _infer_mean(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) >= 1, "takes at least one operand")
    return (Spec((1,), inputs[0].dtype),)


def mean_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Mean over all elements of all operands, summed in float64; -> (1,)."""
    size = sum(x.size for x in inputs)
    total = sum(float(x.sum(dtype=np.float64)) for x in inputs)
    return (np.array([total / size], inputs[0].dtype),)


MEAN = Op(
    "mean",
    _infer_mean,
    lambda inputs, outputs, attrs: sum(spec.size for spec in inputs),
    mean_reference,
)
