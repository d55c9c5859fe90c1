"""The bits of `ops.random`, one element at a time, for compiled code."""

import numpy as np

from aieflow.ops import random
from aieflow.ops.cpu.compile import compiled

INDEX_STEP = np.uint64(random.INDEX_STEP)
MIX_1 = np.uint64(random.MIX_1)
MIX_2 = np.uint64(random.MIX_2)
SHIFT_1, SHIFT_2, SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
UNUSED_BITS = np.uint64(64 - random.KEPT_BITS)


def stream_offset(stream: int) -> np.uint64:
    """What a stream adds to the key."""
    return np.uint64(stream * random.STREAM_STEP % 2**64)


def threshold(rate: float) -> np.uint64:
    """The count below which `is_kept` says no."""
    return np.uint64(random.drop_threshold(rate))


@compiled
def is_kept(base: np.uint64, index: int, least: np.uint64) -> bool:
    """Whether element `index` is kept; base = key + stream offset, least = the threshold."""
    z = (np.uint64(index) + np.uint64(1)) * INDEX_STEP + base
    z = (z ^ (z >> SHIFT_1)) * MIX_1
    z = (z ^ (z >> SHIFT_2)) * MIX_2
    z ^= z >> SHIFT_3
    return bool((z >> UNUSED_BITS) >= least)
