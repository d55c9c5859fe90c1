"""Token and position embedding, forward and backward.

The position table may have more rows than the sequence; `position`, where given, says at which row
the sequence starts.
"""

import numpy as np

from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node, Value
from aieflow.ops.op import Arrays, Attrs, Gradients, Op, Specs, require
from aieflow.ops.spec import Spec


def _infer_embedding(inputs: Specs, attrs: Attrs) -> Specs:
    tokens, wte, wpe = inputs[:3]
    require(tokens.dtype == "int32", f"tokens must be int32, given {tokens}")
    B, T = tokens.shape
    require(wpe.rows >= T, f"sequence of {T} tokens, but wpe has {wpe.rows} positions")
    require(wte.columns == wpe.columns, f"wte {wte} and wpe {wpe} differ in channels")
    return (Spec((B, T, wte.columns), wte.dtype),)


def embedding_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """wte[tokens] + wpe[position …]."""
    # tokens (B, T), wte (V, C), wpe (Tmax, C) (, position (1,)) -> (B, T, C)
    tokens, wte, wpe = inputs[:3]
    start = int(inputs[3][0]) if len(inputs) == 4 else 0
    return (wte[tokens] + wpe[start : start + tokens.shape[1]],)


def _embedding_backward_rule(
    builder: Builder, node: Node, gradients: Gradients, partial: Gradients
) -> Gradients:
    (dx,) = gradients
    assert dx is not None
    require(len(node.inputs) == 3, f"{node.name}: no backward rule with a position")
    tokens, wte, wpe = node.inputs

    def gradient(op: Op, operands: list[Value], table: Value, so_far: Value | None) -> Value:
        if so_far is not None:
            operands = [*operands, so_far]
        attrs = {"rows": table.spec.rows}
        (out,) = builder.apply(op, operands, [f"d:{table.name}"], attrs, "gradient")
        return out

    dwpe = gradient(EMBEDDING_BACKWARD_POSITIONS, [dx], wpe, partial[2])
    dwte = gradient(EMBEDDING_BACKWARD_TOKENS, [tokens, dx], wte, partial[1])
    return None, dwte, dwpe


def _gathered(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    """Of the tables, the rows that are read: a word's for each token, the sequence's positions."""
    tokens, _, wpe = inputs[:3]
    positions = wpe.nbytes // wpe.rows * tokens.shape[1]
    return tokens.nbytes + positions + 2 * outputs[0].nbytes


EMBEDDING = Op(
    "embedding",
    _infer_embedding,
    lambda inputs, outputs, attrs: outputs[0].size,
    embedding_reference,
    _embedding_backward_rule,
    moves=_gathered,
)


def _infer_table(dx: Spec, addends: Specs, attrs: Attrs) -> Specs:
    out = Spec((int(attrs["rows"]), dx.columns), dx.dtype)
    require(all(addend == out for addend in addends), f"addend must be {out}")
    return (out,)


def _scattered(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    """A table that is added to in place is touched, to and fro, at the rows of the tokens alone."""
    tokens, dx = inputs[:2]
    added = 2 * dx.nbytes if len(inputs) == 3 else outputs[0].nbytes
    return tokens.nbytes + dx.nbytes + added


def embedding_backward_tokens_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Add each row of dx to its token's row; rows are added in the order of the batch."""
    # tokens (B, T), dx (B, T, C) (, addend (V, C)) -> (V, C)
    tokens, dx = inputs[:2]
    if len(inputs) == 3:
        out = inputs[2].copy()
    else:
        out = np.zeros((int(attrs["rows"]), dx.shape[-1]), dx.dtype)
    np.add.at(out, tokens.reshape(-1), dx.reshape(-1, dx.shape[-1]))
    return (out,)


EMBEDDING_BACKWARD_TOKENS = Op(
    "embedding_backward_tokens",
    lambda inputs, attrs: _infer_table(inputs[1], inputs[2:], attrs),
    lambda inputs, outputs, attrs: inputs[1].size,
    embedding_backward_tokens_reference,
    may_overwrite={0: (2,)},
    moves=_scattered,
)


def embedding_backward_positions_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Sum of dx over the batch; rows beyond the sequence are zero (or the addend's)."""
    # dx (B, T, C) (, addend (Tmax, C)) -> (Tmax, C)
    dx = inputs[0]
    if len(inputs) == 2:
        out = inputs[1].copy()
    else:
        out = np.zeros((int(attrs["rows"]), dx.shape[-1]), dx.dtype)
    out[: dx.shape[1]] += dx.sum(axis=0)
    return (out,)


EMBEDDING_BACKWARD_POSITIONS = Op(
    "embedding_backward_positions",
    lambda inputs, attrs: _infer_table(inputs[0], inputs[1:], attrs),
    lambda inputs, outputs, attrs: inputs[0].size,
    embedding_backward_positions_reference,
    may_overwrite={0: (1,)},
)
