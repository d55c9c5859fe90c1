"""Checks of results that another device has computed.

A matrix product Y = A B (+ bias) (+ addend) is held against Y r = A (B r) + … for a fixed vector r
of signs (Freivalds 1979): as many operations as the operands have elements, and a wrong element
changes its row. The node's value is the largest deviation of a row, in units of what rounding both
operands to bfloat16 may give (2^-7 of the row's absolute products); a kernel refuses more than 1.
"""

import numpy as np

from aieflow.ops.matmul import matmul_operands
from aieflow.ops.op import Array, Arrays, Attrs, Op, Specs
from aieflow.ops.spec import Spec

# Two operands of 8 significant bits: 2 x 2^-8 of each product; sums of float32 add far less.
TOLERANCE = 1.01 * 2.0**-7
FLOOR = 1e-30  # of rows that are all zero


def matmul_check_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """The largest deviation of a row, in units of its tolerance; -> (1,) float32."""
    # A, B (, bias) (, addend), Y as of the product
    bias, addend = matmul_operands(attrs)
    a, b, y = (_matrix(inputs[place]) for place in (0, 1, len(inputs) - 1))
    a = a.T if attrs.get("transpose_a") else a
    b = b.T if attrs.get("transpose_b") else b
    signs = _signs(y.shape[1])
    expected = a @ (b @ signs)
    scale = np.abs(a) @ (np.abs(b) @ np.ones(y.shape[1], y.dtype))
    for place in (bias, addend):
        if place is not None:
            extra = inputs[place] if place == bias else _matrix(inputs[place])
            expected = expected + extra @ signs
    deviation = np.abs(y @ signs - expected) / (TOLERANCE * scale + FLOOR)
    worst = np.max(np.where(np.isfinite(deviation), deviation, np.inf))
    return (np.array([worst], np.float32),)


def _matrix(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _signs(size: int) -> Array:
    """Plus and minus one, in an order without period: Thue and Morse's."""
    places = np.arange(size)
    parity = np.zeros(size, np.int64)
    while places.any():
        parity ^= places & 1
        places >>= 1
    return (1 - 2 * parity).astype(np.float32)


def _flops(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    return 4 * sum(spec.size for spec in inputs)


MATMUL_CHECK = Op(
    "matmul_check", lambda inputs, attrs: (Spec((1,)),), _flops, matmul_check_reference
)
