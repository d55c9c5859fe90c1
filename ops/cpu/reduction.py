"""Sums and maxima of rows, for compiled code. All are vectorised, in float32 lanes.

None writes to an array but the one it reads, so its order of summation, and with it every bit,
depends on the row's length alone (see `compile`).
"""

import numpy as np

from aieflow.ops.cpu.compile import compiled_maximum, compiled_sum
from aieflow.ops.cpu.exponential import exponential
from aieflow.ops.op import Array

LEAST = np.float32(-3e38)
ZERO = np.float32(0)


@compiled_maximum
def maximum(row: Array) -> np.float32:
    """The greatest element, at least -3e38; any number where there is a NaN."""
    top = LEAST
    for j in range(row.size):
        top = max(top, row[j])
    return top


@compiled_sum
def total(row: Array) -> np.float32:
    """Sum of the row."""
    result = ZERO
    for j in range(row.size):
        result += row[j]
    return result


@compiled_sum
def total_in_double(row: Array) -> float:
    """Sum of the row in float64."""
    result = 0.0
    for j in range(row.size):
        result += np.float64(row[j])
    return result


@compiled_sum
def squares_in_double(row: Array) -> float:
    """Sum of squares of the row in float64."""
    result = 0.0
    for j in range(row.size):
        value = np.float64(row[j])
        result += value * value
    return result


@compiled_sum
def squares_about(row: Array, mean: np.float32) -> np.float32:
    """Sum of (row - mean)²."""
    result = ZERO
    for j in range(row.size):
        centred = row[j] - mean
        result += centred * centred
    return result


@compiled_sum
def dot(x: Array, y: Array) -> np.float32:
    """Sum of x y."""
    result = ZERO
    for j in range(x.size):
        result += x[j] * y[j]
    return result


@compiled_sum
def dot_about(x: Array, y: Array, mean: np.float32) -> np.float32:
    """Sum of x (y - mean)."""
    result = ZERO
    for j in range(x.size):
        result += x[j] * (y[j] - mean)
    return result


@compiled_sum
def exponentials(row: Array, top: np.float32) -> np.float32:
    """Replace the row by exp(row - top) and return the sum."""
    result = ZERO
    for j in range(row.size):
        e = exponential(row[j] - top)
        row[j] = e
        result += e
    return result
