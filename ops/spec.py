"""What is known of a tensor before it exists: its shape and its dtype.

>>> Spec((2, 3)).nbytes
24
>>> print(Spec((2, 3), "int32"))
int32[2, 3]
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_DTYPES = ("float32", "float64", "int32", "int64", "uint64", "float16", "bfloat16")
_STORED = {"bfloat16": "uint16"}  # what numpy does not know is stored as its bits


@dataclass(frozen=True, slots=True)
class Spec:
    """Shape and dtype of one tensor; the layout is always row-major and contiguous."""

    shape: tuple[int, ...]
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is none of {', '.join(_DTYPES)}")
        if any(size < 1 for size in self.shape):
            raise ValueError(f"shape {self.shape} has a size below 1")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.size * self.storage.itemsize

    @property
    def storage(self) -> np.dtype[Any]:
        """The numpy dtype of the elements in host memory; bfloat16 is stored as uint16."""
        return np.dtype(_STORED.get(self.dtype, self.dtype))

    @property
    def rows(self) -> int:
        """Rows of the tensor seen as a matrix: the product of all axes but the last."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Columns of the tensor seen as a matrix: the last axis."""
        return self.shape[-1]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"
