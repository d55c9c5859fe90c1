"""AdamW with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2) and clipping.

Clipping by the global norm takes three kinds of node: the squared norm of each gradient, the
factor made of all of them, and AdamW, which multiplies its gradient by the factor. Norms are summed
in float64 over chunks of a fixed size, so their bits do not depend on how the work was divided.
"""

import numpy as np

from aieflow.ops.op import Arrays, Attrs, Op, Specs, flops_per_element, require
from aieflow.ops.spec import Spec

NORM_CHUNK = 65536  # elements summed into one partial result of squared_norm


def _infer_squared_norm(inputs: Specs, attrs: Attrs) -> Specs:
    return (Spec((-(-inputs[0].size // NORM_CHUNK),), "float64"),)


def squared_norm_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Sum of squares of each chunk of 65536 elements; x of any shape -> (chunks,) float64."""
    flat = inputs[0].reshape(-1).astype(np.float64)
    chunks = np.split(flat, range(NORM_CHUNK, flat.size, NORM_CHUNK))
    return (np.array([np.dot(chunk, chunk) for chunk in chunks]),)


SQUARED_NORM = Op("squared_norm", _infer_squared_norm, flops_per_element(2), squared_norm_reference)


def _infer_clip_factor(inputs: Specs, attrs: Attrs) -> Specs:
    require("max_norm" in attrs, "needs the attribute max_norm")
    require(all(spec.dtype == "float64" for spec in inputs), "takes float64 partial sums")
    return Spec((1,)), Spec((1,))


def clip_factor_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """min(1, max_norm / (norm + 1e-6)) and the norm itself; max_norm 0 means: do not clip."""
    # partial sums (chunks,) each -> factor (1,), norm (1,)
    norm = float(np.sqrt(sum(float(x.sum()) for x in inputs)))
    max_norm = float(attrs["max_norm"])
    factor = min(1.0, max_norm / (norm + 1e-6)) if max_norm else 1.0
    return np.array([factor], np.float32), np.array([norm], np.float32)


CLIP_FACTOR = Op(
    "clip_factor",
    _infer_clip_factor,
    lambda inputs, outputs, attrs: sum(spec.size for spec in inputs),
    clip_factor_reference,
)


def _infer_adamw(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) in (5, 6), f"takes 5 or 6 operands, given {len(inputs)}")
    parameter, gradient, m, v, rates = inputs[:5]
    require(parameter == gradient == m == v, "parameter, gradient and moments must be alike")
    require(rates == Spec((3,), "float64"), f"rates must be float64[3], given {rates}")
    for name in ("beta1", "beta2", "epsilon", "weight_decay"):
        require(name in attrs, f"needs the attribute {name}")
    return parameter, m, v


def adamw_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """One AdamW update. `rates` holds the learning rate, 1 - beta1^t and 1 - beta2^t."""
    # parameter, gradient, m, v of one shape, rates (3,) (, factor (1,)) -> parameter, m, v
    parameter, gradient, m, v, rates = inputs[:5]
    beta1, beta2 = float(attrs["beta1"]), float(attrs["beta2"])
    rate, correction1, correction2 = (float(x) for x in rates)
    if len(inputs) == 6:
        gradient = gradient * inputs[5][0]
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient * gradient
    denominator = np.sqrt(v) / np.sqrt(correction2) + float(attrs["epsilon"])
    decayed = parameter * (1 - rate * float(attrs["weight_decay"]))
    updated = decayed - (rate / correction1) * m / denominator
    return updated.astype(parameter.dtype), m.astype(parameter.dtype), v.astype(parameter.dtype)


ADAMW = Op(
    "adamw",
    _infer_adamw,
    flops_per_element(14),
    adamw_reference,
    updates={0: 0, 1: 2, 2: 3},
)
