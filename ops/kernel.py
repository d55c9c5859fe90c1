"""A kernel: one implementation of an op on one kind of device, and how it can be divided.

A kernel may let a node be run in *parts*, side by side on several lanes. Its `Split` says into how
many equal units the work divides and which operands divide with it: a part then touches only its
share of their leading rows. All other operands it may touch anywhere, but never so that two parts
of one node disturb each other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from aieflow.ops.graph import Node
from aieflow.ops.op import Array, Arrays, Attrs, Op


@dataclass(frozen=True, slots=True)
class Split:
    """How a node divides: `units` pieces; operands listed are touched share by share."""

    units: int
    inputs: frozenset[int] = field(default_factory=frozenset)
    outputs: frozenset[int] = field(default_factory=frozenset)


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


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """One implementation of `op`; `bind` returns a call without arguments that does the part."""

    name: str
    op: Op
    bind: Callable[[Call], Callable[[], None]]
    split: Callable[[Node], Split] = lambda node: WHOLE
    workspace: Callable[[Node], int] = lambda node: 0  # bytes for each part
