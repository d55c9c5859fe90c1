"""A kernel: one implementation of an op on one kind of device, and how it can be divided.

A kernel may let a node be run in *parts*, side by side on several lanes. Its `Split` says into how
many equal units the work divides and which operands divide with it: a part then touches only its
share of their leading rows. All other operands it may touch anywhere, but never so that two parts
of one node disturb each other. An input is *alike* if a part reads of it only the places that it
writes in an output of the same shape, whatever they are: then the output may have its memory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aieflow.ops.graph import Node
from aieflow.ops.op import Array, Arrays, Attrs, Op


@dataclass(frozen=True, slots=True)
class Split:
    """How a node divides: `units` pieces; operands listed are touched share by share."""

    units: int
    inputs: frozenset[int] = field(default_factory=frozenset)
    outputs: frozenset[int] = field(default_factory=frozenset)
    alike: frozenset[int] = field(default_factory=frozenset)  # inputs


WHOLE = Split(1)


@dataclass(frozen=True, slots=True)
class Call:
    """One part of one node, with its operands bound to memory (whole operands, always)."""

    inputs: Arrays
    outputs: Arrays
    attrs: Attrs
    workspace: Array  # uint8, this part's own
    part: int = 0
    parts: int = 1

    def share(self, units: int) -> tuple[int, int]:
        """The units [first, last) that this part does."""
        return share(units, self.part, self.parts)


def share(units: int, part: int, parts: int) -> tuple[int, int]:
    """The units [first, last) of part `part` of `parts`.

    >>> [share(7, part, 2) for part in range(2)]
    [(0, 3), (3, 7)]
    """
    return units * part // parts, units * (part + 1) // parts


class Kernel(Protocol):
    """One implementation of `op` on one kind of device, as far as the runtime knows it."""

    @property
    def name(self) -> str:
        """What tells it from other kernels of the op."""
        ...

    @property
    def op(self) -> Op:
        """What it computes."""
        ...

    @property
    def split(self) -> Callable[[Node], Split]:
        """How a node divides."""
        ...

    @property
    def workspace(self) -> Callable[[Node], int]:
        """Bytes of workspace for each part of a node."""
        ...


Kernels = Mapping[str, Mapping[str, Kernel]]  # device name -> op name -> kernel


def whole(node: Node) -> Split:
    """Of kernels that do not divide."""
    return WHOLE


def no_workspace(node: Node) -> int:
    """Of kernels that need none."""
    return 0


@dataclass(frozen=True, slots=True, eq=False)
class HostKernel:
    """A kernel on host memory; `bind` returns a call without arguments that does the part."""

    name: str
    op: Op
    bind: Callable[[Call], Callable[[], None]]
    split: Callable[[Node], Split] = whole
    workspace: Callable[[Node], int] = no_workspace  # bytes for each part


@dataclass(frozen=True, slots=True, eq=False)
class ChainKernel:
    """A kernel that stands for several nodes, such as pack, multiply and unpack.

    `expand` replaces a node by nodes of other ops that the same device runs; the last of them
    defines the outputs of the node, all other values are new. Where a node of an op in `renewals`
    reads states alone, its result is kept from run to run, and renewed by the op named there: its
    inputs are the new state and the old result, whose memory it takes.
    """

    name: str
    op: Op
    expand: Callable[[Node], tuple[Node, ...]]
    renewals: Mapping[str, Op] = field(default_factory=dict)
    split: Callable[[Node], Split] = whole
    workspace: Callable[[Node], int] = no_workspace
