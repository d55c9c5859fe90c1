"""How an OpenCL kernel is launched, as data: the device turns it into a call.

A node of one op becomes one or several launches, run in order. A launch names a function of a `.cl`
file in this folder, its constants (compiled in, so each set of them is a program of its own), its
arguments and its sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aieflow.ops.graph import Node
from aieflow.ops.kernel import Split, no_workspace, whole
from aieflow.ops.op import Op


@dataclass(frozen=True, slots=True)
class Traits:
    """What of an OpenCL device decides which kernels suit it."""

    is_cpu: bool
    local_nbytes: int  # local memory of a group
    max_group: int  # work-items of a group
    compute_units: int
    vector_width: int  # floats of a vector register, or 1 where there are none
    has_fp16: bool = False  # computes in 16-bit floats; every device can store them


@dataclass(frozen=True, slots=True)
class Operand:
    """A buffer argument: an input or output of the node, or a piece of the workspace."""

    kind: Literal["input", "output", "workspace"]
    position: int = 0  # of inputs and outputs
    offset: int = 0  # bytes into the workspace, a multiple of 256


Argument = Operand | np.int32 | np.uint32 | np.int64 | np.uint64 | np.float32


@dataclass(frozen=True, slots=True)
class Launch:
    """One call of a kernel function."""

    source: str  # the file without its ending: "norm"
    function: str
    arguments: tuple[Argument, ...]
    global_size: tuple[int, ...]
    local_size: tuple[int, ...] | None = None
    constants: tuple[tuple[str, int | float], ...] = ()  # -D name=value; floats end in f


@dataclass(frozen=True, slots=True, eq=False)
class OpenClKernel:
    """A kernel of an OpenCL device."""

    name: str
    op: Op
    launches: Callable[[Node], tuple[Launch, ...]]
    workspace: Callable[[Node], int] = no_workspace
    split: Callable[[Node], Split] = whole
