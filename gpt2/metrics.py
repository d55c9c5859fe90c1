"""What a run measured: `metrics.jsonl`, one JSON object a line, only ever appended to.

Every line carries `training_step`, the number of training steps completed. A line of a training
step adds `loss`, `lr`, `grad_norm`, `seconds` and `tokens_per_s` (and `emulated`, with the names of
devices that are, whose times are no hardware's; where a meter was read `joules`, or null, and
`joules_source`: by which meter, or why there are none); a line of an evaluation adds
`validation_loss`; a line with `excluded_device` and `reason` says which device a run went on
without, from that training step on; a line with `replan` (swapped, kept or reverted), `reason`,
`from`, `to` (nodes of each device) and simulated seconds of both plans says what came of a drift
before that training step. A line is handed to the kernel whole, so `kill -9` tears at
most the last.

A resumed run repeats the training steps after its checkpoint: their lines are dropped first, and
the file ends up as if the run had never stopped.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from aieflow.gpt2.durable import replace_file
from aieflow.gpt2.run_folder import RunFolder
from aieflow.ops.errors import InputError


class MetricsLog:
    """The open file; a context manager. Made by `open_metrics`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab", buffering=0)

    def append(self, line: Mapping[str, int | float | str | None]) -> None:
        """Add one line; a float that is not finite becomes null, since JSON has no word for it.

        Raises InputError where the disk is full.
        """
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in line.items()
        }
        content = json.dumps(finite).encode() + b"\n"
        try:
            written = self._file.write(content)
        except OSError as error:
            raise InputError(_unwritten(self._path, error.strerror)) from None
        if written != len(content):
            raise InputError(_unwritten(self._path, "no space left on its disk"))

    def close(self) -> None:
        """Close the file; nothing is buffered."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_metrics(run: RunFolder, training_step: int) -> MetricsLog:
    """The run's log, cut back to the lines of at most `training_step` completed training steps.

    A torn or foreign line is dropped, too. Raises InputError where the file cannot be written.
    """
    file = run.metrics_file
    try:
        if file.exists():
            content = file.read_bytes()
            kept = b"".join(
                line for line in content.splitlines(keepends=True) if _is_kept(line, training_step)
            )
            if kept != content:
                replace_file(file, kept)
        return MetricsLog(file)
    except OSError as error:
        raise InputError(_unwritten(file, error.strerror)) from None


def _is_kept(line: bytes, training_step: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        content: object = json.loads(line)
    except ValueError:
        return False
    if not isinstance(content, dict):
        return False
    completed = content.get("training_step")
    return isinstance(completed, int) and completed <= training_step


def _unwritten(file: Path, reason: str | None) -> str:
    return f"{file}: cannot be written: {reason}: make room, then go on with --resume {file.parent}"
