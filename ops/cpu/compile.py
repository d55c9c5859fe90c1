"""How kernels written in Python become machine code: numba, cached on disk, outside the GIL.

Nothing is compiled before a function's first call. A kernel runs on one thread: parallel work is
the lanes' business. Every operation keeps its written order, so that bits depend on the operands
alone. A sum can be vectorised only in another order; whether a loop is vectorised may hang on where
its arrays lie, once it writes to one of several. So sums have functions of their own (`reduction`),
which write to no array but the one they read. Infinities and NaN stay true: a loss that is NaN has
to stay NaN.

numba looks at a function's own file to tell whether its code on disk is stale, but that code holds
what it calls from other files, too; so `forget_stale` looks at all of them.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """`function` as machine code that keeps the written order of every operation."""
    return _compiled(function, {"contract", "nsz"})


def compiled_sum(function: F) -> F:
    """`function` as machine code that may reorder sums; one array at most may be written."""
    return _compiled(function, {"contract", "nsz", "reassoc"})


def compiled_maximum(function: F) -> F:
    """`function` as machine code whose comparisons ignore NaN; for maxima, which vectorise so."""
    return _compiled(function, {"nnan", "nsz"})


def _compiled(function: F, fastmath: set[str]) -> F:
    jit = partial(numba.njit, nogil=True, error_model="numpy", fastmath=fastmath)
    try:
        return cast(F, jit(cache=True)(function))
    except RuntimeError:  # neither this folder nor the user's can be written: compile each time
        return cast(F, jit()(function))


def forget_stale(folder: Path) -> None:
    """Make numba compile anew what is older than the newest source in `folder` or around it."""
    sources = [*folder.glob("*.py"), *folder.parent.glob("*.py")]
    newest = max(source.stat().st_mtime_ns for source in sources)
    for index in (folder / "__pycache__").glob("*.nbi"):
        with contextlib.suppress(OSError):  # another process was faster, or may write here
            if index.stat().st_mtime_ns < newest:
                index.unlink()


forget_stale(Path(__file__).parent)
