"""Attention by tiles against the op's reference in float64: blocks, widths, dropped weights."""

import itertools

import numpy as np
import pytest

from aieflow.ops import attention
from aieflow.ops.cpu import attention_tiles
from aieflow.ops.cpu.attention_tiles import backward, backward_floats, forward, forward_floats
from aieflow.ops.cpu.mask import NOTHING_DROPPED, dropout
from aieflow.ops.op import Array

KEY = np.array([98765], np.uint64)
SIZES = [(1, 64, 1, 32), (2, 64, 3, 64), (1, 128, 2, 32), (2, 192, 2, 64), (1, 320, 1, 96)]


def floats(*shape: int) -> Array:
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape).astype(np.float32)


class Attention:
    """Forward and backward of one case, with workspaces that hold NaN at first."""

    def __init__(self, B: int, T: int, H: int, D: int, rate: float = 0.0) -> None:
        self.sizes, self.heads = (T, H, D), B * H
        self.attrs: dict[str, int | float] = {"heads": H}
        if rate:
            self.attrs |= {"rate": rate, "stream": 3}
        self.dropped = dropout(self.attrs, KEY) if rate else NOTHING_DROPPED
        self.qkv, self.dout = floats(B, T, 3 * H * D), floats(B, T, H * D)
        self.out, self.lse = np.full_like(self.dout, np.nan), np.full((B, H, T), np.nan, np.float32)
        self.dqkv = np.full_like(self.qkv, np.nan)

    def run(self, *cuts: int) -> None:
        """Forward, then backward, the heads divided at `cuts`."""
        T, _, D = self.sizes
        ends = (0, *cuts, self.heads)
        qkv, out, lse = self.qkv.reshape(-1), self.out.reshape(-1), self.lse.reshape(-1)
        for share in itertools.pairwise(ends):
            memory = np.full(forward_floats(T, D), np.nan, np.float32)
            forward(qkv, out, lse, memory, self.sizes, share, self.dropped)
        for share in itertools.pairwise(ends):
            memory = np.full(backward_floats(T, D), np.nan, np.float32)
            operands = (qkv, out, lse, self.dout.reshape(-1), self.dqkv.reshape(-1))
            backward(operands, memory, self.sizes, share, self.dropped)

    def expected(self) -> tuple[Array, Array, Array]:
        """What out, lse and dqkv should be, in float64."""
        key = (KEY,) if "rate" in self.attrs else ()
        qkv = self.qkv.astype(np.float64)
        out, lse = attention.ATTENTION.reference((qkv, *key), self.attrs)
        given = (qkv, out, lse, self.dout.astype(np.float64), *key)
        (dqkv,) = attention.ATTENTION_BACKWARD.reference(given, self.attrs)
        return out, lse, dqkv


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("sizes", SIZES)
def test_it_is_right(sizes: tuple[int, int, int, int], rate: float) -> None:
    case = Attention(*sizes, rate)
    case.run()
    # Scores are sums of D products, gradients of T: fp32 rounds each by 6e-8 of its parts, which
    # are of size 1 to 10 here; 2e-5 of the largest holds with some room.
    for found, expected in zip((case.out, case.lse, case.dqkv), case.expected(), strict=True):
        scale = np.abs(expected).max()
        assert np.abs(found - expected).max() <= 2e-5 * scale


def test_later_positions_change_nothing_before() -> None:
    case, other = Attention(1, 192, 2, 32), Attention(1, 192, 2, 32)
    other.qkv[:, 100:] *= -3
    other.qkv[:, 100:, -64:] = 1e37  # values, so large that a weight of 1e-38 would show
    other.dout[:, 100:] = 0
    case.dout[:, 100:] = 0
    case.run()
    other.run()
    assert (case.out[:, :100] == other.out[:, :100]).all()
    assert (case.dqkv[:, :100] == other.dqkv[:, :100]).all()
    assert not case.dqkv[:, 100:].any()


def test_bits_do_not_hang_on_the_division() -> None:
    whole, divided = Attention(2, 128, 3, 32, 0.3), Attention(2, 128, 3, 32, 0.3)
    whole.run()
    divided.run(1, 4)
    for name in ("out", "lse", "dqkv"):
        assert (getattr(whole, name) == getattr(divided, name)).all(), name


def test_large_scores_neither_overflow_nor_vanish() -> None:
    case = Attention(1, 64, 1, 32)
    case.qkv *= 40
    case.run()
    # Scores reach 1e4, where fp32 is right to 1e-3: the softmax of such scores is to 1e-2 at worst.
    out, _ = attention.ATTENTION.reference((case.qkv.astype(np.float64),), case.attrs)
    assert np.abs(case.out - out).max() <= 1e-2 * np.abs(out).max()
    assert np.isfinite(case.dqkv).all()


def test_a_nan_stays_one() -> None:
    case = Attention(1, 64, 1, 32)
    case.qkv[0, 10, 0] = np.nan  # a query: all its scores
    case.run()
    assert np.isnan(case.out[0, 10]).all()
    assert np.isfinite(case.out[0, :10]).all()


def test_only_whole_blocks_and_tiles() -> None:
    assert attention_tiles.are_whole(64, 32)
    assert not attention_tiles.are_whole(65, 32)
    assert not attention_tiles.are_whole(64, 33)
