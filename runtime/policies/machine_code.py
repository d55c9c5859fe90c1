"""What the searches' inner loops are made of: functions compiled once (numba, kept on disk).

No operation is reordered, so every computer reckons the same. What is compiled cannot be annotated
with more than arrays and tuples of them.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
from llvmlite import ir
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., object])
Untyped: TypeAlias = Any  # numba and llvmlite ship no types


def compiled(function: F) -> F:
    """A function as machine code that keeps every operation as written."""
    try:
        return cast(F, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # neither this folder nor the user's can be written: compile each time
        return cast(F, numba.njit(nogil=True)(function))


def compiled_into(function: F) -> F:
    """A function that becomes part of those that call it."""
    return cast(F, numba.njit(inline="always")(function))


def _natural(_: Untyped, number: Untyped) -> tuple[Untyped, Callable[..., Untyped]]:
    def generate(context: Untyped, builder: Untyped, signature: Untyped, given: Untyped) -> Untyped:
        value = context.cast(builder, given[0], signature.args[0], numba.types.int64)
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(1)])
        assume = builder.module.declare_intrinsic("llvm.assume", (), kind)
        builder.call(assume, [builder.icmp_signed(">=", value, ir.Constant(value.type, 0))])
        return value

    return numba.types.int64(number), generate


# An index that is not negative, which is taken on trust: nobody looks, for each place in an array,
# whether it counts from the end. That was a fifth of the time of `sequence.decode`.
natural = cast(Callable[[int], int], intrinsic(_natural))
