"""Random bits that depend on a position alone: splitmix64 (Steele, Lea, Flood 2014) of a counter.

Dropout needs the same mask forward and backward, on any device, in any order, in any number of
parts. So a mask bit is a function of (key, stream, index): the key changes with every training
step, the stream is the node's own, the index is the element's place in the tensor.
"""

import numpy as np
import numpy.typing as npt

INDEX_STEP = 0x9E3779B97F4A7C15
STREAM_STEP = 0xD1B54A32D192ED03
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB
KEPT_BITS = 24  # a mask bit compares this many bits with the rate


def drop_threshold(rate: float) -> int:
    """The count out of 2**24 below which an element is dropped."""
    return round(rate * (1 << KEPT_BITS))


def keep_mask(
    key: int, stream: int, shape: tuple[int, ...], rate: float, first: int = 0
) -> npt.NDArray[np.bool_]:
    """True where the element is kept; `first` is the index of the first element."""
    count = int(np.prod(shape))
    z = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(INDEX_STEP)
    z += np.uint64((key + stream * STREAM_STEP) % 2**64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX_2)
    z ^= z >> np.uint64(31)
    kept: npt.NDArray[np.bool_] = (z >> np.uint64(64 - KEPT_BITS)) >= np.uint64(
        drop_threshold(rate)
    )
    return kept.reshape(shape)
