"""Causal attention by our own tiles: what `attention` does through BLAS, for whole blocks.

Both go by blocks of QUERIES queries of one head. Operands of a head are copied or transposed once
so that every product reads them in order, and tiles right of the diagonal are left out: of scores,
and of the keys or queries that a product sums over.

Forward, scores are transposed, (keys, QUERIES): vectors run over queries, so a softmax needs no sum
across a vector, and the product with the values no transposition. Backward they are not, as two of
its three products sum over queries.
"""

import math

import numpy as np

from aieflow.ops.cpu.compile import compiled, compiled_maximum
from aieflow.ops.cpu.exponential import exponential
from aieflow.ops.cpu.mask import Dropout, is_kept
from aieflow.ops.cpu.reduction import dot
from aieflow.ops.cpu.vector import (
    FLOAT,
    LANES,
    OPEN_COLUMNS,
    OPEN_ROWS,
    has_wide_registers,
    multiply_open_tile,
    transpose_block,
)
from aieflow.ops.op import Array

QUERIES = 64  # in a block
LEAST = np.float32(-3e38)
ZERO, ONE = np.float32(0), np.float32(1)


def is_by_tiles(T: int, D: int) -> bool:
    """Whether heads of width D over T positions go by tiles here."""
    return has_wide_registers() and are_whole(T, D)


def are_whole(T: int, D: int) -> bool:
    """Whether T positions and heads of width D are whole blocks and tiles."""
    return T % QUERIES == 0 and D % OPEN_COLUMNS == 0


def forward_floats(T: int, D: int) -> int:
    """Floats of workspace for `forward`."""
    return 2 * D * T + QUERIES * (D + T + 2)


def backward_floats(T: int, D: int) -> int:
    """Floats of workspace for `backward`."""
    return 3 * D * T + QUERIES * (4 * D + 3 * T + 1)


@compiled
def _transpose(
    source: int, step: int, rows: int, columns: int, target: int, target_step: int
) -> None:
    """Transpose rows x columns floats, both multiples of LANES; steps from row to row in floats."""
    for i in range(0, rows, LANES):
        for j in range(0, columns, LANES):
            place = target + FLOAT * (j * target_step + i)
            transpose_block(source + FLOAT * (i * step + j), step, place, target_step)


@compiled
def _copy(source: Array, start: int, step: int, target: Array) -> None:
    """Copy rows of `target` (rows, D) that lie `step` floats apart in the flat source."""
    D = target.shape[1]
    for i in range(len(target)):
        row, line = target[i], source[start + i * step : start + i * step + D]
        for j in range(D):
            row[j] = line[j]


@compiled
def forward(
    qkv: Array,
    out: Array,
    lse: Array,
    memory: Array,
    sizes: tuple[int, int, int],
    heads_share: tuple[int, int],
    dropped: Dropout,
) -> None:
    """Attend for heads first ... last of B H; memory: `forward_floats` float32.

    All tensors are flat: qkv (B, T, 3C), out (B, T, C), lse (B, H, T); sizes are T, H, D.
    """
    T, H, D = sizes
    C = H * D
    stride = 3 * C
    base, least = dropped.key[0] + dropped.stream, dropped.least
    scale = ONE / np.sqrt(np.float32(D))
    keys = memory[: D * T]  # (D, T)
    values = memory[D * T : 2 * D * T].reshape(T, D)
    first = 2 * D * T
    queries = memory[first : first + QUERIES * D]  # (D, QUERIES)
    first += QUERIES * D
    scores = memory[first : first + QUERIES * T].reshape(T, QUERIES)
    first += QUERIES * T
    tops, sums = memory[first : first + QUERIES], memory[first + QUERIES : first + 2 * QUERIES]
    at_keys, at_values, at_queries = keys.ctypes.data, values.ctypes.data, queries.ctypes.data
    at_scores = scores.ctypes.data
    for unit in range(heads_share[0], heads_share[1]):
        b, h = unit // H, unit % H
        start = b * T * stride + h * D
        head = qkv.ctypes.data + FLOAT * start
        _transpose(head + FLOAT * C, stride, T, D, at_keys, T)
        _copy(qkv, start + 2 * C, stride, values)
        for i in range(0, T, QUERIES):
            _transpose(head + FLOAT * i * stride, stride, QUERIES, D, at_queries, QUERIES)
            for j in range(queries.size):
                queries[j] *= scale
            for left in range(0, QUERIES, OPEN_COLUMNS):
                for row in range(0, i + left + OPEN_COLUMNS, OPEN_ROWS):
                    multiply_open_tile(
                        *(D, at_keys + FLOAT * row, T, at_queries + FLOAT * left, QUERIES),
                        *(at_scores + FLOAT * (row * QUERIES + left), QUERIES, 0),
                    )
            _soften(scores[: i + QUERIES], i, tops, sums)
            place = unit * T + i
            for j in range(QUERIES):
                lse[place + j] = tops[j] + np.float32(math.log(np.float64(sums[j])))
                sums[j] = dropped.keep_scale / sums[j]
            if least > 0:
                for row in range(i + QUERIES):
                    for j in range(max(0, row - i), QUERIES):
                        if not is_kept(base, (place + j) * T + row, least):
                            scores[row, j] = ZERO
            target = b * T * C + i * C + h * D
            for row in range(0, QUERIES, OPEN_ROWS):
                at_out = out.ctypes.data + FLOAT * (target + row * C)
                for left in range(0, D, OPEN_COLUMNS):
                    multiply_open_tile(
                        *(i + row + OPEN_ROWS, at_scores + FLOAT * row, QUERIES),
                        *(at_values + FLOAT * left, D, at_out + FLOAT * left, C, 0),
                    )
            for j in range(QUERIES):
                line = target + j * C
                result, share = out[line : line + D], sums[j]
                for d in range(D):
                    result[d] *= share


@compiled
def _soften(scores: Array, before: int, tops: Array, sums: Array) -> None:
    """Turn scores (keys, QUERIES) to exp(score - top of its query), 0 right of the diagonal."""
    _fill_unseen(scores, before, LEAST)
    for j in range(QUERIES):
        tops[j] = LEAST
        sums[j] = ZERO
    _find_tops(scores, tops)
    _take_exponentials(scores, tops)
    _add_rows(scores, sums)
    _fill_unseen(scores, before, ZERO)


@compiled
def _fill_unseen(scores: Array, before: int, value: np.float32) -> None:
    for row in range(1, QUERIES):
        for j in range(row):
            scores[before + row, j] = value


# Each of these writes to one array and goes through all rows, so that it is vectorised.


@compiled_maximum
def _find_tops(scores: Array, tops: Array) -> None:
    for row in range(len(scores)):
        for j in range(QUERIES):
            tops[j] = max(tops[j], scores[row, j])


@compiled
def _take_exponentials(scores: Array, tops: Array) -> None:
    for row in range(len(scores)):
        for j in range(QUERIES):
            scores[row, j] = exponential(scores[row, j] - tops[j])


@compiled
def _add_rows(scores: Array, sums: Array) -> None:
    for row in range(len(scores)):
        for j in range(QUERIES):
            sums[j] += scores[row, j]


@compiled
def backward(
    operands: tuple[Array, Array, Array, Array, Array],
    memory: Array,
    sizes: tuple[int, int, int],
    heads_share: tuple[int, int],
    dropped: Dropout,
) -> None:
    """The gradient of `forward`; memory: `backward_floats` float32.

    Operands, all flat: qkv (B, T, 3C), out (B, T, C), lse (B, H, T), dout (B, T, C), and what is
    written, dqkv (B, T, 3C).
    """
    qkv, out, lse, dout, dqkv = operands
    T, H, D = sizes
    C = H * D
    stride = 3 * C
    base, least = dropped.key[0] + dropped.stream, dropped.least
    scale = ONE / np.sqrt(np.float32(D))
    at_keys = memory.ctypes.data  # (D, T)
    at_values = at_keys + FLOAT * D * T  # (D, T)
    first = 2 * D * T
    keys = memory[first : first + D * T].reshape(T, D)
    first += D * T
    queries = memory[first : first + QUERIES * D].reshape(QUERIES, D)
    first += QUERIES * D
    grads = memory[first : first + QUERIES * D].reshape(QUERIES, D)
    first += QUERIES * D
    queries_across = memory[first : first + QUERIES * D]  # (D, QUERIES)
    at_grads_across = queries_across.ctypes.data + FLOAT * QUERIES * D  # (D, QUERIES)
    first += 2 * QUERIES * D
    scores = memory[first : first + QUERIES * T].reshape(QUERIES, T)
    first += QUERIES * T
    dscores = memory[first : first + QUERIES * T].reshape(QUERIES, T)
    first += QUERIES * T
    at_across = memory.ctypes.data + FLOAT * first  # (T, QUERIES)
    first += QUERIES * T
    alongs = memory[first : first + QUERIES]
    at_scores, at_dscores = scores.ctypes.data, dscores.ctypes.data
    for unit in range(heads_share[0], heads_share[1]):
        b, h = unit // H, unit % H
        start, out_start = b * T * stride + h * D, b * T * C + h * D
        head = qkv.ctypes.data + FLOAT * start
        dhead = dqkv.ctypes.data + FLOAT * start
        dhead_keys, dhead_values = dhead + FLOAT * C, dhead + FLOAT * 2 * C
        _transpose(head + FLOAT * C, stride, T, D, at_keys, T)
        _transpose(head + FLOAT * 2 * C, stride, T, D, at_values, T)
        _copy(qkv, start + C, stride, keys)
        for i in range(T - QUERIES, -1, -QUERIES):
            n = i + QUERIES
            is_added = 0 if n == T else 1
            _copy(qkv, start + i * stride, stride, queries)
            _copy(dout, out_start + i * C, C, grads)
            _transpose(queries.ctypes.data, D, QUERIES, D, queries_across.ctypes.data, QUERIES)
            _transpose(grads.ctypes.data, D, QUERIES, D, at_grads_across, QUERIES)
            for j in range(queries_across.size):
                queries_across[j] *= scale
            for row in range(0, QUERIES, OPEN_ROWS):
                at_query = queries_across.ctypes.data + FLOAT * row
                at_grad = at_grads_across + FLOAT * row
                for left in range(0, i + row + OPEN_ROWS, OPEN_COLUMNS):
                    place = FLOAT * (row * T + left)
                    multiply_open_tile(
                        *(D, at_query, QUERIES, at_keys + FLOAT * left, T),
                        *(at_scores + place, T, 0),
                    )
                    multiply_open_tile(
                        *(D, at_grad, QUERIES, at_values + FLOAT * left, T),
                        *(at_dscores + place, T, 0),
                    )
            place = unit * T + i
            _take_probabilities(scores, i, lse[place : place + QUERIES])
            for r in range(QUERIES):
                line = out_start + (i + r) * C
                alongs[r] = dot(dout[line : line + D], out[line : line + D])
            if least > 0:
                for r in range(QUERIES):
                    index = (place + r) * T
                    for j in range(i + r + 1):
                        kept = dropped.keep_scale if is_kept(base, index + j, least) else ZERO
                        dscores[r, j] = scores[r, j] * (dscores[r, j] * kept - alongs[r]) * scale
                        scores[r, j] *= kept
            else:
                _take_gradients(scores, dscores, i, alongs, scale)
            _forget_unseen(scores, i)
            _forget_unseen(dscores, i)
            _transpose(at_dscores, T, QUERIES, n, at_across, QUERIES)
            for row in range(0, n, OPEN_ROWS):
                skipped = max(0, row - i)  # queries before the first of these keys
                place = FLOAT * (skipped * T + row)
                for left in range(0, D, OPEN_COLUMNS):
                    at = FLOAT * (skipped * D + left)
                    target = FLOAT * (row * stride + left)
                    multiply_open_tile(
                        *(QUERIES - skipped, at_scores + place, T, grads.ctypes.data + at, D),
                        *(dhead_values + target, stride, is_added),
                    )
                    multiply_open_tile(
                        *(QUERIES - skipped, at_dscores + place, T, queries.ctypes.data + at, D),
                        *(dhead_keys + target, stride, is_added),
                    )
            for row in range(0, QUERIES, OPEN_ROWS):
                for left in range(0, D, OPEN_COLUMNS):
                    multiply_open_tile(
                        *(i + row + OPEN_ROWS, at_across + FLOAT * row, QUERIES),
                        *(keys.ctypes.data + FLOAT * left, D),
                        *(dhead + FLOAT * ((i + row) * stride + left), stride, 0),
                    )


@compiled
def _take_probabilities(scores: Array, before: int, log_sums: Array) -> None:
    """Turn scores (QUERIES, T) to exp(score - log sum of its query), up to the diagonal."""
    for r in range(QUERIES):
        log_sum = log_sums[r]
        for j in range(before + r + 1):
            scores[r, j] = exponential(scores[r, j] - log_sum)


@compiled
def _take_gradients(
    scores: Array, dscores: Array, before: int, alongs: Array, scale: np.float32
) -> None:
    """Turn gradients of probabilities to those of scores, both (QUERIES, T)."""
    for r in range(QUERIES):
        along = alongs[r]
        for j in range(before + r + 1):
            dscores[r, j] = scores[r, j] * (dscores[r, j] - along) * scale


@compiled
def _forget_unseen(scores: Array, before: int) -> None:
    """Write zeros right of the diagonal, up to the end of the block."""
    for r in range(QUERIES):
        for j in range(before + r + 1, before + QUERIES):
            scores[r, j] = ZERO
