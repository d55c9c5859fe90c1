"""The bits of `ops.random`, one element at a time, for compiled code."""

from typing import NamedTuple

import numpy as np

from aieflow.ops import random
from aieflow.ops.cpu.compile import compiled
from aieflow.ops.op import Array, Attrs

INDEX_STEP = np.uint64(random.INDEX_STEP)
MIX_1 = np.uint64(random.MIX_1)
MIX_2 = np.uint64(random.MIX_2)
SHIFT_1, SHIFT_2, SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
UNUSED_BITS = np.uint64(64 - random.KEPT_BITS)


class Dropout(NamedTuple):
    """Which elements a node drops, and what the others are multiplied by."""

    key: Array  # (1,) uint64, of the run
    stream: np.uint64  # what the node adds to the key
    least: np.uint64  # the count below which `is_kept` says no; 0 drops nothing
    keep_scale: np.float32


NOTHING_DROPPED = Dropout(np.zeros(1, np.uint64), np.uint64(0), np.uint64(0), np.float32(1))


def dropout(attrs: Attrs, key: Array) -> Dropout:
    """What a node with the attributes `rate` and `stream` drops under a key."""
    rate = float(attrs["rate"])
    stream = np.uint64(int(attrs["stream"]) * random.STREAM_STEP % 2**64)
    least = np.uint64(random.drop_threshold(rate))
    return Dropout(key, stream, least, np.float32(1 / (1 - rate)))


@compiled
def is_kept(base: np.uint64, index: int, least: np.uint64) -> bool:
    """Whether element `index` is kept; base = key + stream offset, least = the threshold."""
    z = (np.uint64(index) + np.uint64(1)) * INDEX_STEP + base
    z = (z ^ (z >> SHIFT_1)) * MIX_1
    z = (z ^ (z >> SHIFT_2)) * MIX_2
    z ^= z >> SHIFT_3
    return bool((z >> UNUSED_BITS) >= least)
