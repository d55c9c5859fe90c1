"""Trace files: which kinds there are, and which kind a name asks for.

One timeline, three kinds: Chrome's JSON, Perfetto's own format, an SQLite database. They are
described in docs/trace-files.md.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from aieflow.ops.errors import InputError
from aieflow.ops.kernel import Kernels
from aieflow.runtime.chrome_trace import read_chrome, write_chrome
from aieflow.runtime.perfetto_trace import write_perfetto
from aieflow.runtime.step_cost import StepCost
from aieflow.runtime.timeline import NO_KERNELS, Recorded, Timeline, timeline
from aieflow.runtime.timeline_counters import with_counters
from aieflow.runtime.trace_database import read_database, write_database

WRITERS: dict[str, Callable[[Timeline, Path], None]] = {
    ".json": write_chrome,
    ".json.gz": write_chrome,
    ".pftrace": write_perfetto,
    ".sqlite": write_database,
}
READERS: dict[str, Callable[[Path], Timeline]] = {
    ".json": read_chrome,
    ".json.gz": read_chrome,
    ".sqlite": read_database,
}
TRACE_HELP = "FILE.json[.gz] (Chrome), .pftrace (Perfetto) or .sqlite"


def require_trace_file(path: Path) -> None:
    """Raise InputError where a trace cannot be written: no such kind, no such folder, a folder."""
    if not path.absolute().parent.is_dir():
        raise InputError(f"--trace {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise InputError(f"--trace {path}: is a folder: give a file")
    _kind(path, WRITERS)


def write_trace(
    recorded: Sequence[Recorded],
    paths: Sequence[Path],
    cost: StepCost | None = None,
    kernels: Kernels = NO_KERNELS,
) -> None:
    """Write runs to files, each as the kind that its name asks for; raises InputError.

    With `cost`, each step carries what it predicts; with `kernels`, the name of its kernel.
    """
    made = with_counters(timeline(recorded, cost, kernels), recorded, cost)
    for path in paths:
        try:
            _kind(path, WRITERS)(made, path)
        except OSError as error:
            raise InputError(f"--trace {path}: cannot be written: {error.strerror}") from None


def read_trace(path: Path) -> Timeline:
    """The timeline of a file; raises InputError for one that cannot be read."""
    return _kind(path, READERS)(path)


T = TypeVar("T")


def _kind(path: Path, kinds: dict[str, T]) -> T:
    for suffix, found in kinds.items():
        if path.name.endswith(suffix):
            return found
    raise InputError(f"{path}: a trace is read or written as {', '.join(kinds)}: name it so")
