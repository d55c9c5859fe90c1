"""The memory of states, which live from run to run, and on which sides they are valid.

Between runs the host's side of every state is valid, so whoever keeps or looks at parameters needs
no device. Whoever *writes* them says so with `touch`: what devices hold is then out of date, packed
forms included, and the next run brings it up to date before it begins.
"""

from collections.abc import Container, Iterable, Iterator, Mapping

from aieflow.ops.graph import Value
from aieflow.ops.op import Array
from aieflow.runtime.transfer import HOST


class States(Mapping[str, Array]):
    """Arrays by the name of their state; packed states, on devices, appear when a plan has them."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = dict(arrays)
        self._derived: dict[str, frozenset[str]] = {}  # name -> states that it is made of
        self._valid: dict[str, frozenset[str]] = {}
        self.touch()

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def touch(self) -> None:
        """The host has written states: only its side is valid, and nothing that is derived."""
        for name in self._arrays:
            self._valid[name] = frozenset() if name in self._derived else frozenset({HOST})

    def add_derived(self, value: Value, array: Array, sources: Iterable[str]) -> None:
        """Memory of a state that is made from others; it is not valid yet."""
        self._arrays[value.name] = array
        self._derived[value.name] = frozenset(sources)
        self._valid[value.name] = frozenset()

    def drop_derived(self) -> None:
        """Forget all derived states, as when a device is gone: plans that need them add them."""
        for name in self._derived:
            del self._arrays[name], self._valid[name]
        self._derived.clear()

    def valid(self, name: str) -> frozenset[str]:
        """The sides on which a state is valid; none where a derived one is out of date."""
        return self._valid[name]

    def outdate(self, updated: frozenset[str], except_for: Container[str]) -> None:
        """Note that a run has updated states: what it does not know is derived of them is old."""
        for name, sources in self._derived.items():
            if name not in except_for and not updated.isdisjoint(sources):
                self._valid[name] = frozenset()

    def set_valid(self, valid: Mapping[str, frozenset[str]]) -> None:
        """Note what a run, or a transfer before it, has left."""
        self._valid.update(valid)
