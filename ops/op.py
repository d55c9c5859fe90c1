"""An op: what a computation is, apart from where and how it runs.

An `Op` carries its shape rule, its FLOPs and bytes, its backward rule and a reference kernel in
plain numpy that works in any floating dtype (float64 for finite differences). The families
(`matmul`, `norm`, …) define the ops; `catalogue` lists them all.

A backward rule gets the gradients of a node's outputs, and for each input the gradient collected
so far (`partial`), and returns each input's *total* gradient. So a rule whose kernel can add into
its result does so for free, and the others call `total`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy.typing as npt

from aieflow.ops.errors import GraphError
from aieflow.ops.spec import Spec

if TYPE_CHECKING:
    from aieflow.ops.builder import Builder
    from aieflow.ops.graph import Node, Value

# A tensor in host memory; its dtype is the Spec's, which the type system cannot follow.
Array: TypeAlias = npt.NDArray[Any]
Arrays: TypeAlias = tuple[Array, ...]
Specs: TypeAlias = tuple[Spec, ...]
Attrs: TypeAlias = Mapping[str, int | float]
Gradients: TypeAlias = "tuple[Value | None, ...]"

NO_OVERWRITE: Mapping[int, tuple[int, ...]] = {}


class BackwardRule(Protocol):
    """Appends the nodes that compute the total gradient of each of a node's inputs."""

    def __call__(
        self, builder: Builder, node: Node, gradients: Gradients, partial: Gradients
    ) -> Gradients:
        """Return one gradient (or None) for each input of `node`, `partial` included."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """One entry of the catalogue."""

    name: str
    infer: Callable[[Specs, Attrs], Specs]
    flops: Callable[[Specs, Specs, Attrs], int]
    reference: Callable[[Arrays, Attrs], Arrays]
    backward: BackwardRule | None = None
    # output -> inputs whose memory it may take over when nobody reads them later, best first
    may_overwrite: Mapping[int, tuple[int, ...]] = field(default_factory=lambda: NO_OVERWRITE)
    # output -> the input (a state) whose memory it does take over
    updates: Mapping[int, int] = field(default_factory=dict)
    # bytes that must move at least, where that is not every operand once
    moves: Callable[[Specs, Specs, Attrs], int] | None = None

    def nbytes(self, inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
        """Bytes that must move at least: every operand once, unless the op knows better."""
        if self.moves is not None:
            return self.moves(inputs, outputs, attrs)
        return sum(spec.nbytes for spec in inputs + outputs)


def flops_per_element(count: int) -> Callable[[Specs, Specs, Attrs], int]:
    """FLOPs of an op that does `count` operations for each element of its first input."""
    return lambda inputs, outputs, attrs: count * inputs[0].size


def require(condition: bool, message: str) -> None:
    """Raise GraphError with `message` unless `condition` holds; for shape rules."""
    if not condition:
        raise GraphError(message)


def total(builder: Builder, partial: Value | None, gradient: Value) -> Value:
    """Return `partial + gradient`, or `gradient` alone where nothing was collected yet."""
    return gradient if partial is None else builder.add(partial, gradient)
