"""Causal attention by blocks of query rows: BLAS products and a softmax over what lies between.

Whole blocks go by our own tiles instead, where the processor has the registers (`attention_tiles`).

For one block of queries of one head the scores against all keys up to the block's end are made in
the part's workspace, turned into exponentials in place and multiplied with the values, so nothing
right of the diagonal's block is computed and nothing of size T x T is kept. Backward makes the
scores again and goes through the blocks from the last to the first: the last one touches every key,
so it overwrites the gradients of keys and values, and the others add to them. Heads are read and
written where they lie, as sub-matrices of the tensors around them.
"""

import math
from collections.abc import Callable, Set
from typing import TypeAlias

import numpy as np

from aieflow.ops import attention
from aieflow.ops.cpu import attention_tiles, blas
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.cpu.exponential import exponential
from aieflow.ops.cpu.mask import NOTHING_DROPPED, Dropout, dropout, is_kept
from aieflow.ops.cpu.operand import flat, floats
from aieflow.ops.cpu.reduction import dot, exponentials, maximum
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split
from aieflow.ops.op import Array

BLOCK = 64  # query rows
FEW_SEQUENCES = 8  # a batch of fewer is divided by heads
FLOAT = 4  # bytes
NONE: Set[int] = frozenset()
Operands: TypeAlias = tuple[Set[int], Set[int]]  # positions of inputs, of outputs
ZERO, ONE = np.float32(0), np.float32(1)


@compiled
def _attend(
    batches: tuple[Array, Array, Array, Array, Array],
    starts: tuple[int, int, int, int, int],
    strides: tuple[int, int, int],
    sizes: tuple[int, int, int],
    scores: Array,
    shares: Array,
    dropped: Dropout,
    first_index: int,
) -> None:
    """One head: `count` queries, the first of them at `before`, against all keys so far."""
    # flat q, k, v, out, lse; where the head starts in each; row strides of q, k and v, out
    q, k, v, out, lse = batches
    q_start, k_start, v_start, out_start, lse_start = starts
    q_stride, k_stride, out_stride = strides
    before, count, width = sizes
    total = before + count
    scale = ONE / np.sqrt(np.float32(width))
    k_address = k.ctypes.data + FLOAT * k_start
    v_address = v.ctypes.data + FLOAT * v_start
    scores_address = scores.ctypes.data
    base, least = dropped.key[0] + dropped.stream, dropped.least
    for i in range(0, count, BLOCK):
        rows = min(BLOCK, count - i)
        columns = before + i + rows
        q_address = q.ctypes.data + FLOAT * (q_start + i * q_stride)
        out_address = out.ctypes.data + FLOAT * (out_start + i * out_stride)
        blas.sgemm(
            False,
            True,
            rows,
            columns,
            width,
            scale,
            q_address,
            q_stride,
            k_address,
            k_stride,
            ZERO,
            scores_address,
            columns,
        )
        for r in range(rows):
            seen = before + i + r + 1
            row = scores[r * columns : r * columns + seen]
            top = maximum(row)
            exponential_sum = exponentials(row, top)
            lse[lse_start + i + r] = top + np.float32(math.log(np.float64(exponential_sum)))
            shares[r] = dropped.keep_scale / exponential_sum
            if least > 0:
                index = first_index + (i + r) * total
                for j in range(row.size):
                    row[j] = row[j] if is_kept(base, index + j, least) else ZERO
            unseen = scores[r * columns + seen : (r + 1) * columns]
            for j in range(unseen.size):
                unseen[j] = ZERO
        blas.sgemm(
            False,
            False,
            rows,
            width,
            columns,
            ONE,
            scores_address,
            columns,
            v_address,
            k_stride,
            ZERO,
            out_address,
            out_stride,
        )
        for r in range(rows):
            line = out_start + (i + r) * out_stride
            result, share = out[line : line + width], shares[r]
            for j in range(width):
                result[j] *= share


@compiled
def _forward(
    qkv: Array,
    out: Array,
    lse: Array,
    scores: Array,
    shares: Array,
    sizes: tuple[int, int, int],
    heads_share: tuple[int, int],
    dropped: Dropout,
) -> None:
    # flat qkv (B, T, 3C), out (B, T, C), lse (B, H, T); T, H, D; heads first ... last of B*H
    T, H, D = sizes
    C = H * D
    for unit in range(heads_share[0], heads_share[1]):
        b, h = unit // H, unit % H
        start = b * T * 3 * C + h * D
        _attend(
            (qkv, qkv, qkv, out, lse),
            (start, start + C, start + 2 * C, b * T * C + h * D, unit * T),
            (3 * C, 3 * C, C),
            (0, T, D),
            scores,
            shares,
            dropped,
            unit * T * T,
        )


@compiled
def _backward(
    operands: tuple[Array, Array, Array, Array, Array],
    scores: Array,
    dscores: Array,
    sizes: tuple[int, int, int],
    heads_share: tuple[int, int],
    dropped: Dropout,
) -> None:
    # flat qkv (B, T, 3C), out (B, T, C), lse (B, H, T), dout (B, T, C), dqkv (B, T, 3C)
    qkv, out, lse, dout, dqkv = operands
    T, H, D = sizes
    C = H * D
    stride = 3 * C
    base, least = dropped.key[0] + dropped.stream, dropped.least
    scale = ONE / np.sqrt(np.float32(D))
    s_address, ds_address = scores.ctypes.data, dscores.ctypes.data
    for unit in range(heads_share[0], heads_share[1]):
        b, h = unit // H, unit % H
        start, out_start = b * T * stride + h * D, b * T * C + h * D
        q = qkv.ctypes.data + FLOAT * start
        k, v = q + FLOAT * C, q + FLOAT * 2 * C
        dq = dqkv.ctypes.data + FLOAT * start
        dk, dv = dq + FLOAT * C, dq + FLOAT * 2 * C
        do = dout.ctypes.data + FLOAT * out_start
        for i in range((T - 1) // BLOCK * BLOCK, -1, -BLOCK):
            rows = min(BLOCK, T - i)
            n = i + rows
            beta = ZERO if n == T else ONE
            q_i, do_i = q + FLOAT * i * stride, do + FLOAT * i * C
            # scores = Q Kᵀ / sqrt(D), dscores = dO Vᵀ
            blas.sgemm(False, True, rows, n, D, scale, q_i, stride, k, stride, ZERO, s_address, n)
            blas.sgemm(False, True, rows, n, D, ONE, do_i, C, v, stride, ZERO, ds_address, n)
            for r in range(rows):
                seen = i + r + 1
                line = out_start + (i + r) * C
                along = dot(dout[line : line + D], out[line : line + D])
                log_sum = lse[unit * T + i + r]
                row = scores[r * n : r * n + seen]
                drow = dscores[r * n : r * n + seen]
                if least > 0:
                    index = (unit * T + i + r) * T
                    for j in range(seen):
                        p = exponential(row[j] - log_sum)
                        kept = dropped.keep_scale if is_kept(base, index + j, least) else ZERO
                        row[j] = p * kept
                        drow[j] = p * (drow[j] * kept - along) * scale
                else:
                    for j in range(seen):
                        p = exponential(row[j] - log_sum)
                        row[j] = p
                        drow[j] = p * (drow[j] - along) * scale
                row = scores[r * n + seen : (r + 1) * n]
                drow = dscores[r * n + seen : (r + 1) * n]
                for j in range(row.size):
                    row[j] = ZERO
                    drow[j] = ZERO
            # dV += Pᵀ dO, dK += dSᵀ Q, dQ = dS K
            blas.sgemm(True, False, n, D, rows, ONE, s_address, n, do_i, C, beta, dv, stride)
            blas.sgemm(True, False, n, D, rows, ONE, ds_address, n, q_i, stride, beta, dk, stride)
            dq_i = dq + FLOAT * i * stride
            blas.sgemm(False, False, rows, D, n, ONE, ds_address, n, k, stride, ZERO, dq_i, stride)


@compiled
def _cached(
    qkv: Array,
    keys: Array,
    values: Array,
    position: Array,
    out: Array,
    lse: Array,
    scores: Array,
    shares: Array,
    sizes: tuple[int, int, int, int],
    heads_share: tuple[int, int],
    dropped: Dropout,
) -> None:
    # flat qkv (B, n, 3C), keys, values (B, Tmax, C), out (B, n, C), lse (n,); n, Tmax, H, D
    n, longest, H, D = sizes
    C = H * D
    before = position[0]
    for unit in range(heads_share[0], heads_share[1]):
        b, h = unit // H, unit % H
        start, cache = b * n * 3 * C + h * D, b * longest * C + h * D
        for i in range(n):
            source, target = start + i * 3 * C, cache + (before + i) * C
            for j in range(D):
                keys[target + j] = qkv[source + C + j]
                values[target + j] = qkv[source + 2 * C + j]
        _attend(
            (qkv, keys, values, out, lse),
            (start, cache, cache, b * n * C + h * D, 0),
            (3 * C, C, C),
            (before, n, D),
            scores,
            shares,
            dropped,
            0,
        )


def _split(node: Node, by_sequence: Operands, by_head: Operands) -> Split:
    """Divide by sequences, or by heads where those are few; of each the operands that divide."""
    B, H = node.input_specs[0].shape[0], int(node.attrs["heads"])
    if B >= FEW_SEQUENCES:
        return Split(B, *map(frozenset, by_sequence))
    return Split(B * H, *map(frozenset, by_head))


def _heads_share(call: Call) -> tuple[int, int]:
    """The heads [first, last) of all B*H that this part does."""
    B, H = call.inputs[0].shape[0], int(call.attrs["heads"])
    if B >= FEW_SEQUENCES:
        first, last = call.share(B)
        return first * H, last * H
    return call.share(B * H)


def _sizes(call: Call) -> tuple[int, int, int]:
    _, T, three_c = call.inputs[0].shape
    H = int(call.attrs["heads"])
    return T, H, three_c // (3 * H)


def _dropout(call: Call, at_key: int) -> Dropout:
    return dropout(call.attrs, call.inputs[at_key]) if call.attrs.get("rate") else NOTHING_DROPPED


def _bind_forward(call: Call) -> Callable[[], None]:
    blas.load()
    qkv, out, lse = flat(call.inputs[0]), flat(call.outputs[0]), flat(call.outputs[1])
    T, H, D = _sizes(call)
    sizes, heads_share, dropped = (T, H, D), _heads_share(call), _dropout(call, 1)
    if attention_tiles.is_by_tiles(T, D):
        memory = floats(call.workspace, attention_tiles.forward_floats(T, D))

        def run_tiles() -> None:
            attention_tiles.forward(qkv, out, lse, memory, sizes, heads_share, dropped)

        return run_tiles
    shares = floats(call.workspace, BLOCK)
    scores = floats(call.workspace, BLOCK * (T + 1))[BLOCK:]

    def run() -> None:
        _forward(qkv, out, lse, scores, shares, sizes, heads_share, dropped)

    return run


def _forward_workspace(node: Node) -> int:
    T, D = _length_and_width(node)
    if attention_tiles.is_by_tiles(T, D):
        return FLOAT * attention_tiles.forward_floats(T, D)
    return FLOAT * BLOCK * (T + 1)


def _length_and_width(node: Node) -> tuple[int, int]:
    _, T, three_c = node.input_specs[0].shape
    return T, three_c // (3 * int(node.attrs["heads"]))


ATTENTION = HostKernel(
    "blocks",
    attention.ATTENTION,
    _bind_forward,
    lambda node: _split(node, ({0}, {0, 1}), (NONE, {1})),
    _forward_workspace,
)


def _bind_backward(call: Call) -> Callable[[], None]:
    blas.load()
    qkv, out, lse, dout = (flat(operand) for operand in call.inputs[:4])
    operands = (qkv, out, lse, dout, flat(call.outputs[0]))
    T, H, D = _sizes(call)
    sizes, heads_share, dropped = (T, H, D), _heads_share(call), _dropout(call, 4)
    if attention_tiles.is_by_tiles(T, D):
        memory = floats(call.workspace, attention_tiles.backward_floats(T, D))

        def run_tiles() -> None:
            attention_tiles.backward(operands, memory, sizes, heads_share, dropped)

        return run_tiles
    scores = floats(call.workspace, BLOCK * T)
    dscores = floats(call.workspace, 2 * BLOCK * T)[BLOCK * T :]

    def run() -> None:
        _backward(operands, scores, dscores, sizes, heads_share, dropped)

    return run


def _backward_workspace(node: Node) -> int:
    T, D = _length_and_width(node)
    if attention_tiles.is_by_tiles(T, D):
        return FLOAT * attention_tiles.backward_floats(T, D)
    return 2 * FLOAT * BLOCK * T


ATTENTION_BACKWARD = HostKernel(
    "blocks",
    attention.ATTENTION_BACKWARD,
    _bind_backward,
    lambda node: _split(node, ({0, 1, 2, 3}, {0}), ({2}, NONE)),
    _backward_workspace,
)


def _bind_cached(call: Call) -> Callable[[], None]:
    blas.load()
    qkv, position = flat(call.inputs[0]), call.inputs[3]
    out, keys, values = (flat(operand) for operand in call.outputs)
    n, H, D = _sizes(call)
    longest = call.inputs[1].shape[1]
    workspace = floats(call.workspace, _cached_floats(n, longest))
    shares, scores, lse = np.split(workspace, [BLOCK, BLOCK * (longest + 1)])
    sizes, share = (n, longest, H, D), _heads_share(call)

    def run() -> None:
        if not 0 <= position[0] <= longest - n:
            raise DeviceError(
                f"attention_cached: {n} tokens at position {position[0]} do not fit into a cache "
                f"of {longest}"
            )
        _cached(
            qkv, keys, values, position, out, lse, scores, shares, sizes, share, NOTHING_DROPPED
        )

    return run


def _cached_floats(n: int, longest: int) -> int:
    return BLOCK * (longest + 1) + n


ATTENTION_CACHED = HostKernel(
    "blocks",
    attention.ATTENTION_CACHED,
    _bind_cached,
    lambda node: _split(node, ({0, 1, 2}, {0, 1, 2}), (NONE, NONE)),
    lambda node: FLOAT * _cached_floats(node.input_specs[0].shape[1], node.input_specs[1].shape[1]),
)
