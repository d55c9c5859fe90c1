"""Finds a node that divides a run in two: all of one part before it, all of the other after it.

The norm of all gradients is one where they are clipped: no parameter is updated before the last
gradient is there. What lies before such a node and what lies behind it never overlap, however many
lanes there are, so each has to be balanced over the devices on its own.

>>> cut([(), (0,), (0,), (1, 2), (3,)], [1.0, 2.0, 2.0, 0.1, 3.0])
Cut(node=3, before=(0, 1, 2), after=(4,))
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Cut:
    """A node, those that it needs, and those that need it."""

    node: int
    before: tuple[int, ...]
    after: tuple[int, ...]


def cut(
    predecessors: Sequence[Sequence[int]],
    work: Sequence[float],
    may_cut: Sequence[bool] | None = None,
) -> Cut | None:
    """The node with the largest product of the work on its two sides, among those that may cut."""
    count = len(predecessors)
    if not count:
        return None
    needs = np.zeros((count, count), np.bool_)  # [n, m]: n needs m
    for node, others in enumerate(predecessors):
        for other in others:
            needs[node] |= needs[other]
            needs[node, other] = True
    weights = np.asarray(work, np.float64)
    product = (needs @ weights) * (needs.T @ weights)
    if may_cut is not None:
        product[~np.asarray(may_cut, np.bool_)] = 0.0
    node = int(np.argmax(product))
    if product[node] <= 0:
        return None
    before, after = np.flatnonzero(needs[node]), np.flatnonzero(needs[:, node])
    return Cut(node, tuple(before.tolist()), tuple(after.tolist()))
