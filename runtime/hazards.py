"""Tracks who last wrote and read which bytes, and so what a step has to wait for.

A step must follow the writers of what it reads, and the writers and readers of what it writes.
Parts of one node never conflict with each other (`ops.kernel` demands it of kernels), so a node
is entered as a whole: ask for each part what it must follow, then record all parts.

>>> hazards = Hazards()
>>> hazards.record("write a", reads=[[]], writes=[[Region("a", 0, 8)]], steps=[0])
>>> sorted(hazards.before(reads=[Region("a", 0, 4)], writes=[]))
[0]
>>> hazards.record("read a", reads=[[Region("a", 0, 4)]], writes=[[]], steps=[1])
>>> sorted(hazards.before(reads=[], writes=[Region("a", 2, 6)]))
[0, 1]
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes [first, last) of a space."""

    space: str
    first: int
    last: int


class _Access(NamedTuple):
    """Who touched a segment: the steps of one node that wrote it last, and who read it since."""

    node: str = ""
    writers: frozenset[int] = frozenset()
    readers: frozenset[int] = frozenset()


class Hazards:
    """An interval map for each space: sorted starts, and the access of [start, next start)."""

    def __init__(self) -> None:
        self._starts: dict[str, list[int]] = {}
        self._accesses: dict[str, list[_Access]] = {}

    def before(self, reads: Sequence[Region], writes: Sequence[Region]) -> set[int]:
        """The steps that must have ended before a step may touch these regions."""
        steps: set[int] = set()
        for regions, is_write in ((reads, False), (writes, True)):
            for region in regions:
                places = self._cut(region)
                for access in self._accesses[region.space][places.start : places.stop]:
                    steps |= access.writers
                    if is_write:
                        steps |= access.readers
        return steps

    def record(
        self,
        node: str,
        reads: Sequence[Sequence[Region]],
        writes: Sequence[Sequence[Region]],
        steps: Sequence[int],
    ) -> None:
        """Enter a node: for each of its parts, what it reads, what it writes and its step."""
        for regions, step in zip(reads, steps, strict=True):
            for region in regions:
                accesses = self._accesses.setdefault(region.space, [_Access()])
                for place in self._cut(region):
                    old = accesses[place]
                    accesses[place] = _Access(old.node, old.writers, old.readers | {step})
        own = frozenset(steps)  # what other nodes read before is over by then, other parts' is not
        for regions, step in zip(writes, steps, strict=True):
            for region in regions:
                accesses = self._accesses.setdefault(region.space, [_Access()])
                for place in self._cut(region):
                    old = accesses[place]
                    writers = old.writers if old.node == node else frozenset[int]()
                    accesses[place] = _Access(node, writers | {step}, old.readers & own)

    def _cut(self, region: Region) -> range:
        """Make segments begin at the region's borders; return the places of those inside."""
        starts = self._starts.setdefault(region.space, [0])
        accesses = self._accesses.setdefault(region.space, [_Access()])
        for border in (region.first, region.last):
            place = bisect_right(starts, border) - 1
            if starts[place] != border:
                starts.insert(place + 1, border)
                accesses.insert(place + 1, accesses[place])
        return range(bisect_left(starts, region.first), bisect_left(starts, region.last))
