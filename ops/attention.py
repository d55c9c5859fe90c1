"""Causal multi-head self-attention, forward and backward, and the cached form for generation.

Nothing of size T x T is a value of the graph: forward keeps the logarithm of each row's sum of
exponentials, backward computes the probabilities again from it (Dao et al. 2022, section 3).
Queries, keys and values lie side by side in one tensor, as the linear layer before writes them.
"""

import numpy as np

from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node
from aieflow.ops.op import Array, Arrays, Attrs, Gradients, Op, Specs, require
from aieflow.ops.random import keep_mask
from aieflow.ops.spec import Spec


def _infer_attention(inputs: Specs, attrs: Attrs) -> Specs:
    qkv = inputs[0]
    heads = int(attrs["heads"])
    require(len(qkv.shape) == 3, f"qkv must have shape (B, T, 3C), given {qkv}")
    B, T, three_c = qkv.shape
    require(three_c % (3 * heads) == 0, f"last axis {three_c} is no multiple of 3 x {heads} heads")
    require(
        len(inputs) == (2 if attrs.get("rate") else 1), "takes a key exactly when rate is not 0"
    )
    return Spec((B, T, three_c // 3), qkv.dtype), Spec((B, heads, T), qkv.dtype)


def _flops_attention(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    B, T, C = outputs[0].shape
    return 2 * B * C * T * (T + 1)  # two products over the lower triangle


def _heads(x: Array, heads: int) -> Array:
    """X (B, T, C) -> (B, H, T, C/H)."""  # a view
    B, T, C = x.shape
    return x.reshape(B, T, heads, C // heads).transpose(0, 2, 1, 3)


def _merged(x: Array) -> Array:
    """X (B, H, T, D) -> (B, T, H*D)."""
    B, H, T, D = x.shape
    return x.transpose(0, 2, 1, 3).reshape(B, T, H * D)


def _keep_scale(inputs: Arrays, position: int, attrs: Attrs, shape: tuple[int, ...]) -> Array:
    """What dropout multiplies the probabilities with: 0 or 1 / (1 - rate)."""
    rate = float(attrs.get("rate", 0))
    if not rate:
        return np.ones((), inputs[0].dtype)
    mask = keep_mask(int(inputs[position][0]), int(attrs["stream"]), shape, rate)
    return mask.astype(inputs[0].dtype) / (1 - rate)


def attention_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Softmax(Q Kᵀ / sqrt(D)) V below the diagonal; also the log of each row's exponential sum."""
    # qkv (B, T, 3C) (, key (1,)) -> out (B, T, C), lse (B, H, T)
    qkv = inputs[0]
    q, k, v = (_heads(x, int(attrs["heads"])) for x in np.split(qkv, 3, axis=-1))
    T = qkv.shape[1]
    scores = (q @ k.swapaxes(-1, -2)) * np.asarray(q.shape[-1] ** -0.5, qkv.dtype)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    top = scores.max(axis=-1, keepdims=True)
    exponentials = np.exp(scores - top)
    sums = exponentials.sum(axis=-1, keepdims=True)
    probabilities = exponentials / sums
    keep = _keep_scale(inputs, 1, attrs, probabilities.shape)
    return _merged((probabilities * keep) @ v), (top + np.log(sums))[..., 0]


def attention_backward_rule(
    builder: Builder, node: Node, gradients: Gradients, partial: Gradients
) -> Gradients:
    """One node that gives the gradient of qkv."""
    dout = gradients[0]
    assert dout is not None
    require(partial[0] is None, f"{node.name}: qkv must have one reader")
    qkv = node.inputs[0]
    out, lse = node.outputs
    operands = [qkv, out, lse, dout, *node.inputs[1:]]
    (dqkv,) = builder.apply(ATTENTION_BACKWARD, operands, [f"d:{qkv.name}"], node.attrs)
    return (dqkv, *(None for _ in node.inputs[1:]))


ATTENTION = Op(
    "attention", _infer_attention, _flops_attention, attention_reference, attention_backward_rule
)


def _flops_attention_backward(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    B, T, C = inputs[1].shape
    return 5 * B * C * T * (T + 1)  # five products over the lower triangle


def attention_backward_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """The gradient of qkv."""
    # qkv (B, T, 3C), out (B, T, C), lse (B, H, T), dout (B, T, C) (, key) -> dqkv (B, T, 3C)
    qkv, out, lse, dout = inputs[:4]
    heads = int(attrs["heads"])
    q, k, v = (_heads(x, heads) for x in np.split(qkv, 3, axis=-1))
    T = qkv.shape[1]
    scale = np.asarray(q.shape[-1] ** -0.5, qkv.dtype)
    scores = (q @ k.swapaxes(-1, -2)) * scale
    probabilities = np.where(np.tri(T, dtype=bool), np.exp(scores - lse[..., None]), 0)
    keep = _keep_scale(inputs, 4, attrs, probabilities.shape)
    do = _heads(dout, heads)
    dv = (probabilities * keep).swapaxes(-1, -2) @ do
    row = (do * _heads(out, heads)).sum(axis=-1, keepdims=True)
    dscores = probabilities * ((do @ v.swapaxes(-1, -2)) * keep - row) * scale
    dq, dk = dscores @ k, dscores.swapaxes(-1, -2) @ q
    return (np.concatenate([_merged(dq), _merged(dk), _merged(dv)], axis=-1),)


ATTENTION_BACKWARD = Op(
    "attention_backward",
    lambda inputs, attrs: (inputs[0],),
    _flops_attention_backward,
    attention_backward_reference,
)


def _infer_cached(inputs: Specs, attrs: Attrs) -> Specs:
    qkv, keys, values, position = inputs
    B, _, three_c = qkv.shape
    require(keys == values, f"keys {keys} and values {values} must be alike")
    require(keys.shape[0] == B and keys.shape[2] * 3 == three_c, f"{keys} does not fit {qkv}")
    require(position.dtype == "int64" and position.shape == (1,), "position must be int64[1]")
    return Spec((*qkv.shape[:2], three_c // 3), qkv.dtype), keys, values


def attention_cached_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Attend from n new tokens to all tokens so far, whose keys and values lie in the cache."""
    # qkv (B, n, 3C), keys, values (B, Tmax, C), position (1,)
    #   -> out (B, n, C), keys, values with rows position … position + n - 1 written
    qkv, keys, values, position = inputs
    heads = int(attrs["heads"])
    n = qkv.shape[1]
    start = int(position[0])
    q, k, v = np.split(qkv, 3, axis=-1)
    keys, values = keys.copy(), values.copy()
    keys[:, start : start + n], values[:, start : start + n] = k, v
    all_k, all_v = (_heads(x[:, : start + n], heads) for x in (keys, values))
    scores = (_heads(q, heads) @ all_k.swapaxes(-1, -2)) * (q.shape[-1] // heads) ** -0.5
    visible = np.arange(start + n)[None, :] <= np.arange(start, start + n)[:, None]
    scores = np.where(visible, scores, -np.inf)
    probabilities = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probabilities /= probabilities.sum(axis=-1, keepdims=True)
    return _merged(probabilities @ all_v).astype(qkv.dtype), keys, values


ATTENTION_CACHED = Op(
    "attention_cached",
    _infer_cached,
    lambda inputs, outputs, attrs: 4 * inputs[1].size * inputs[0].shape[1],
    attention_cached_reference,
    updates={1: 1, 2: 2},
)
