"""The folder of a training run: what makes it one, where its parts lie, and who may write in it.

```
runs/gpt2-001/
 ├─ config.json          every setting of the run; its presence makes the folder a run
 ├─ metrics.jsonl        one line a training step, one an evaluation
 ├─ plan.json            graph, memory and lanes of a training step
 ├─ trace.sqlite         the last training steps, where they were traced
 ├─ checkpoints/step-N/  whole as soon as it has that name
 ├─ checkpoints/latest   symbolic link to the checkpoint to go on from
 ├─ live.sock            while it trains: where `aieflow profile --live` attaches
 └─ lock                 held by the one process that trains here
```

The lock is the kernel's: `kill -9` releases it. A run without a checkpoint goes on from the start.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from aieflow.gpt2.durable import replace_file
from aieflow.gpt2.run_config import FORMAT_KEY, RunConfig, from_json, to_json
from aieflow.ops.errors import InputError

_CONFIG = "config.json"
_CHECKPOINTS = "checkpoints"
_LOCK = "lock"
_LEFTOVERS = frozenset({f".{_CONFIG}.partial", _LOCK})  # of a process killed while creating a run
_DEFAULT = re.compile(r"gpt2-(\d+)")
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """A folder that holds a run, and the run's settings."""

    path: Path
    config: RunConfig

    @property
    def metrics_file(self) -> Path:
        """The lines of `gpt2.metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def plan_file(self) -> Path:
        """The plan that its training steps follow, as `runtime.export` describes it."""
        return self.path / "plan.json"

    @property
    def trace_file(self) -> Path:
        """What its last training steps did, where that was traced: docs/trace-files.md."""
        return self.path / "trace.sqlite"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints; absent before the first."""
        return self.path / _CHECKPOINTS

    @property
    def latest_link(self) -> Path:
        """The symbolic link to the checkpoint to go on from."""
        return self.checkpoints / "latest"

    def checkpoint(self, training_step: int) -> Path:
        """The folder of the checkpoint after that many completed training steps."""
        return self.checkpoints / f"step-{training_step}"

    def training_steps(self) -> list[int]:
        """The training steps that have a whole checkpoint, in ascending order."""
        if not self.checkpoints.is_dir():
            return []
        matches = [_STEP.fullmatch(path.name) for path in self.checkpoints.iterdir()]
        return sorted(int(match[1]) for match in matches if match)

    @property
    def latest(self) -> Path | None:
        """The whole checkpoint to go on from; None where the run starts at training step 0.

        That is where the link points; without a link (a copy that lost it, a process killed
        between the first checkpoint and its link) the newest.
        """
        if self.latest_link.is_dir():
            if self.latest_link.is_symlink():
                return self.checkpoints / self.latest_link.readlink()
            return self.latest_link
        steps = self.training_steps()
        return self.checkpoint(steps[-1]) if steps else None


def next_default(base: Path) -> Path:
    """The folder of the next run in `base`: gpt2-001, gpt2-002, … after the highest there is."""
    names = [path.name for path in base.iterdir()] if base.is_dir() else []
    numbers = [int(match[1]) for name in names if (match := _DEFAULT.fullmatch(name))]
    return base / f"gpt2-{max(numbers, default=0) + 1:03}"


def create_run(path: Path, config: RunConfig) -> RunFolder:
    """Make the folder, with its parents, and write `config.json`.

    Raises InputError where the folder holds a run or anything else, or cannot be written.
    """
    require_free(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with lock_run(path):
            require_free(path)  # another process may have made a run here since
            replace_file(path / _CONFIG, to_json(config).encode())
    except OSError as error:
        raise _not_made(path, error) from None
    return RunFolder(path, config)


def _not_made(path: Path, error: OSError) -> InputError:
    return InputError(
        f"{path}: the run's folder cannot be made: {error.strerror}: give another --out"
    )


def holds_run(path: Path) -> bool:
    """True where the folder is a run's."""
    file = path / _CONFIG
    try:
        return file.is_file() and FORMAT_KEY in file.read_text(errors="replace")
    except OSError:
        return False


def require_free(path: Path) -> None:
    """Raise InputError where a new run cannot begin in `path`: it holds a run, or anything else.

    A folder that does not exist is free.
    """
    try:
        names = {entry.name for entry in path.iterdir()}
    except FileNotFoundError:
        return
    except OSError as error:
        raise _not_made(path, error) from None
    if holds_run(path):
        raise InputError(
            f"{path}: holds a run already: give another --out, "
            f"or continue that run with --resume {path}"
        )
    if names - _LEFTOVERS:
        some = min(names - _LEFTOVERS)
        raise InputError(f"{path}: is not empty (it holds {some}, and no run): give another --out")


def open_run(path: Path) -> RunFolder:
    """The run in an existing folder; raises InputError that says what is missing there."""
    file = path / _CONFIG
    if not path.is_dir():
        fault = "is not a folder" if path.exists() else "does not exist"
        raise InputError(f"{path}: {fault}: --resume takes the folder of a run")
    if not file.is_file():
        raise InputError(f"{path}: is no run (no {_CONFIG} in it){_hint(path)}")
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    if FORMAT_KEY not in text and '"model_type"' in text:
        raise InputError(f"{path}: is a model, not a run: use --init{_hint(path)}")
    return RunFolder(path, from_json(text, file))


def _hint(path: Path) -> str:
    """Where the run is, if the path lies inside of one or above one."""
    for parent in path.absolute().parents[:2]:
        if (parent / _CONFIG).is_file() and (parent / _CHECKPOINTS).is_dir():
            return f", or --resume {parent}, the run it belongs to"
    runs = sorted(entry for entry in path.iterdir() if (entry / _CHECKPOINTS).is_dir())
    return f": perhaps --resume {runs[-1]}" if runs else ": --resume takes the folder of a run"


@contextmanager
def lock_run(path: Path) -> Iterator[None]:
    """Hold the lock of the run's folder; raises InputError that names the process which has it."""
    file = path / _LOCK
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written: {error.strerror}: give a folder that can be"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise InputError(
                f"{path}: process {holder} is training in it: wait for its end, or stop it"
            ) from None
        with suppress(OSError):  # on a full disk the lock holds all the same, without a name
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
