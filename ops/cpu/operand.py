"""How kernels see their operands: flat or as matrices of the last axis, and who shares memory."""

import numpy as np

from aieflow.ops.errors import GraphError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Split
from aieflow.ops.op import Array
from aieflow.ops.spec import Spec

NO_FLOATS = np.zeros(1, np.float32)  # stands for an optional operand that is absent


def flat(x: Array, dtype: str = "float32") -> Array:
    """View of x as one axis; raises GraphError for another dtype or a gap in memory."""
    if x.dtype != dtype or not x.flags.c_contiguous:
        raise GraphError(
            f"CPU kernels take contiguous {dtype} here, given {x.dtype} with strides {x.strides}"
        )
    return x.reshape(-1)


def matrix(x: Array) -> Array:
    """View of float32 x as (rows, last axis); raises GraphError as `flat` does."""
    return flat(x).reshape(-1, x.shape[-1])


def address(x: Array) -> int:
    """Where x begins in memory."""
    return int(x.__array_interface__["data"][0])


def is_same(x: Array, y: Array) -> bool:
    """Whether x and y are the same memory (operands never overlap in part)."""
    return address(x) == address(y)


def leading_units(spec: Spec) -> int:
    """Into how many equal leading blocks a tensor divides for elementwise work."""
    return spec.rows if len(spec.shape) > 1 else spec.size


def leading_share(x: Array, dtype: str = "float32") -> tuple[Array, int]:
    """Flat view of x, and the number of elements of one of its `leading_units`."""
    return flat(x, dtype), x.shape[-1] if x.ndim > 1 else 1


def split_elementwise(node: Node) -> Split:
    """Divide all operands that have the size of the first output by its leading rows."""
    out = node.output_specs[0]
    alike = {index for index, spec in enumerate(node.input_specs) if spec == out}
    outputs = {index for index, spec in enumerate(node.output_specs) if spec == out}
    return Split(leading_units(out), frozenset(alike), frozenset(outputs))


def floats(workspace: Array, count: int) -> Array:
    """The first `count` floats of a part's workspace."""
    return workspace[: 4 * count].view(np.float32)


def idle() -> None:
    """The call of a part that has nothing to do."""
