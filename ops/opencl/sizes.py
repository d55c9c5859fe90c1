"""Global and local sizes: work items in whole groups, eight elements to an item."""

from typing import TypeAlias

WIDTH = 8  # elements of a work item, as in vector.cl
GROUP = 64  # work items of a group, a multiple of every GPU's wave front

Sizes: TypeAlias = tuple[int, ...]


def groups(items: int, size: int = GROUP) -> int:
    """Groups of `size` that hold so many items.

    >>> groups(65)
    2
    """
    return -(-items // size)


def padded(items: int, size: int = GROUP) -> int:
    """Items in whole groups of `size`, at least so many."""
    return groups(items, size) * size


def elementwise(elements: int) -> tuple[Sizes, Sizes]:
    """Global and local size of a kernel whose items do `WIDTH` elements each.

    >>> elementwise(5000)
    ((640,), (64,))
    """
    return (padded(groups(elements, WIDTH)),), (GROUP,)
