"""What is reckoned of a graph's tables once, and kept as long as they last."""

from collections.abc import Callable
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

from aieflow.runtime.policies.tasks import Tasks

T = TypeVar("T")


def once(function: Callable[[Tasks], T]) -> Callable[[Tasks], T]:
    """A function of tasks that is called once for each; what it gives must not hold them."""
    held: WeakKeyDictionary[Tasks, T] = WeakKeyDictionary()

    @wraps(function)
    def found(tasks: Tasks) -> T:
        if tasks not in held:
            held[tasks] = function(tasks)
        return held[tasks]

    return found
