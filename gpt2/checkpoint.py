"""A checkpoint: a folder that `transformers` loads as it is, with the optimizer's state beside it.

```
checkpoints/step-N/
 ├─ config.json, model.safetensors     Hugging Face's GPT-2 (and the tokenizer's files)
 ├─ optimizer.safetensors              AdamW's moments: m.<parameter>, v.<parameter>
 └─ training_state.json                what else a run needs to go on with the same bits
```

The order of saving makes every moment a good one to be killed at: the folder is written under a
hidden name and synced; renamed; only then does `latest` point to it; only then are older ones
removed. Saving a training step again, while `latest` points to that very folder, first lets
`latest` point to a second set of hard links to the old files, for no file system replaces a
folder that holds files in one move. Nothing in memory is copied.
"""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from aieflow.gpt2.durable import remove_folder, replace_link, sync_folder, sync_tree
from aieflow.gpt2.pretrained import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    huggingface_config,
    listed,
    read_json_object,
)
from aieflow.gpt2.run_folder import RunFolder
from aieflow.gpt2.safetensors_file import file_nbytes, read_header, read_tensor, write_tensors
from aieflow.ops.errors import InputError

Tensors = Mapping[str, npt.NDArray[np.float32]]
TokenizerWriter = Callable[[Path], None]  # writes its files into the folder it is given

OPTIMIZER = "optimizer.safetensors"
STATE = "training_state.json"

_METADATA = {"format": "pt"}  # transformers refuses a file without it
_SMALL_FILES_NBYTES = 4 << 20  # room asked for besides the tensors: JSON, tokenizer
_KINDS: Mapping[object, tuple[type, ...]] = {
    int: (int,),
    float | None: (int, float, type(None)),
    str | None: (str, type(None)),
}
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingState:
    """Where a run stands, apart from parameters and moments."""

    training_step: int  # completed
    tokens_seen: int = 0
    validation_loss: float | None = None  # of the last evaluation
    best_validation_loss: float | None = None
    data_identity: str | None = None  # of the data trained on, see `gpt2.data.TokenData`


@dataclass(frozen=True, slots=True)
class Moments:
    """AdamW's first and second moments, by the names of the parameters."""

    m: Tensors
    v: Tensors

    def by_stored_name(self) -> dict[str, npt.NDArray[np.float32]]:
        """Both under the names they have in a checkpoint: `m.<parameter>`, `v.<parameter>`."""
        first = {f"m.{name}": moment for name, moment in self.m.items()}
        return first | {f"v.{name}": moment for name, moment in self.v.items()}


def save_checkpoint(
    run: RunFolder,
    state: TrainingState,
    parameters: Tensors,
    moments: Moments,
    *,
    write_tokenizer: TokenizerWriter | None = None,
    end_of_text: int | None = None,
    keep: int = 2,
) -> Path:
    """Write `checkpoints/step-N`, let `latest` point to it, and return its path.

    Of older checkpoints the newest `keep - 1` stay. `end_of_text` is the token id that Hugging
    Face's config names as begin and end. Raises InputError where the disk is full or refuses;
    what `latest` pointed to is then still whole, and nothing of the new one is left.
    """
    target = run.checkpoint(state.training_step)
    weights = {PREFIX + name: tensor for name, tensor in parameters.items()}
    optimizer = moments.by_stored_name()
    needed = (
        file_nbytes(weights, _METADATA) + file_nbytes(optimizer, _METADATA) + _SMALL_FILES_NBYTES
    )
    with _refusals_explained(run, target, needed):
        run.checkpoints.mkdir(exist_ok=True)
        _remove_hidden(run)
        if needed > _free_nbytes(run):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        partial = target.with_name(f".{target.name}.partial")
        partial.mkdir()
        try:
            write_tensors(partial / WEIGHTS, weights, _METADATA)
            write_tensors(partial / OPTIMIZER, optimizer, _METADATA)
            config = huggingface_config(run.config.model, run.config.dropout, end_of_text)
            _write_json(partial / CONFIG, config)
            _write_json(partial / STATE, asdict(state))
            if write_tokenizer is not None:
                write_tokenizer(partial)
            sync_tree(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if target.exists():
            _clear(run, target)
        partial.rename(target)
        sync_folder(run.checkpoints)
        replace_link(run.latest_link, target.name)
        _prune(run, target, keep)
        _remove_hidden(run)
    return target


def _write_json(file: Path, content: Mapping[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _clear(run: RunFolder, target: Path) -> None:
    """Free the name `target` while `latest` goes on pointing to a whole checkpoint."""
    if run.latest == target:
        linked = target.with_name(f".{target.name}.linked")
        shutil.copytree(target, linked, copy_function=os.link)
        sync_folder(linked)
        replace_link(run.latest_link, linked.name)
    remove_folder(target)


def _prune(run: RunFolder, newest: Path, keep: int) -> None:
    for training_step in run.training_steps()[: -max(1, keep)]:
        if run.checkpoint(training_step) != newest:
            remove_folder(run.checkpoint(training_step))


def _remove_hidden(run: RunFolder) -> None:
    """Remove what a killed process left behind, unless `latest` points to it."""
    for path in run.checkpoints.glob(".step-*"):
        if path != run.latest:
            shutil.rmtree(path)


def _free_nbytes(run: RunFolder) -> int:
    return shutil.disk_usage(run.checkpoints).free


@contextmanager
def _refusals_explained(run: RunFolder, target: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        latest = run.latest
        kept = f"{latest.name} is whole" if latest else "the run has no checkpoint yet"
        if error.errno in _FULL:
            free = _free_nbytes(run)
            raise InputError(
                f"{target}: the disk is full: the checkpoint needs {_megabytes(needed)}, "
                f"{_megabytes(free)} are free: make room, then go on with --resume {run.path} "
                f"({kept})"
            ) from None
        raise InputError(
            f"{target}: the checkpoint cannot be written: {error.filename or ''} "
            f"{error.strerror or error}: put it right, then go on with --resume {run.path} ({kept})"
        ) from None


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"


def load_training_state(folder: Path) -> TrainingState:
    """The state in a checkpoint; raises InputError where it is missing or damaged."""
    file = _part(folder, STATE)
    content = read_json_object(file)
    values: dict[str, Any] = {}
    for field in fields(TrainingState):
        value = content.get(field.name)
        if field.name not in content or type(value) not in _KINDS[field.type]:
            raise InputError(f"{file}: {field.name} = {value!r}: damaged; take another checkpoint")
        values[field.name] = value
    return TrainingState(**values)


def load_moments(folder: Path, into: Moments) -> None:
    """Fill `into` with a checkpoint's moments; raises InputError that lists what does not fit."""
    file = _part(folder, OPTIMIZER)
    stored = read_header(file)
    wanted = into.by_stored_name()
    faults = sorted(stored.keys() ^ wanted.keys()) or [
        name
        for name, moment in wanted.items()
        if (stored[name].shape, stored[name].dtype) != (moment.shape, "F32")
    ]
    if faults:
        raise InputError(
            f"{file}: missing, not known, or of another shape or dtype: {listed(faults)}: "
            "take another checkpoint of the run"
        )
    for name, moment in wanted.items():
        read_tensor(stored[name], moment)


def _part(folder: Path, name: str) -> Path:
    file = folder / name
    if not file.is_file():
        raise InputError(
            f"{folder}: holds no {name}, so no run can go on from it: "
            f"start a new run from its weights with --init {folder}"
        )
    return file
