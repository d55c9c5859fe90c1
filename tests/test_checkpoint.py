"""Checkpoints, and what is left of one when the process is killed while saving it.

Run as a program, this file is the process that gets killed: see `_killed_saves`.
"""

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors import safe_open

from aieflow.gpt2 import checkpoint
from aieflow.gpt2.checkpoint import (
    Moments,
    TrainingState,
    load_moments,
    load_training_state,
    save_checkpoint,
)
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.params import parameter_specs
from aieflow.gpt2.pretrained import load_parameters, read_model_config
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import RunFolder, create_run, open_run
from aieflow.ops.errors import InputError

TINY = ModelConfig(vocab_size=64, seq_len=16, layers=2, heads=2, channels=8)
CONFIG = RunConfig(model=TINY, seq_len=16, dropout=0.25)
FILES = ["config.json", "model.safetensors", "optimizer.safetensors", "training_state.json"]
KILLED = 9
OPERATIONS = frozenset(
    f"os.{name}" for name in ("mkdir", "rename", "link", "symlink", "remove", "rmdir")
) | {"open"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return create_run(tmp_path / "run", CONFIG)


def _tensors(value: float) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {
        name: np.full(spec.shape, value + i / 64, np.float32)
        for i, (name, spec) in enumerate(parameter_specs(TINY).items())
    }


def _save(
    run: RunFolder,
    training_step: int,
    value: float,
    write: Callable[[Path], None] | None = None,
    keep: int = 2,
) -> Path:
    """Save with `value` in every tensor and in the state, so that a mixture would be seen."""
    state = TrainingState(training_step=training_step, validation_loss=value)
    moments = Moments(_tensors(value + 1), _tensors(value + 2))
    return save_checkpoint(run, state, _tensors(value), moments, write_tokenizer=write, keep=keep)


def _saved_value(folder: Path) -> float | None:
    """The value given to `_save`; fails unless the folder is whole and all of one save."""
    value = load_training_state(folder).validation_loss
    assert value is not None
    parameters, moments = _tensors(0), Moments(_tensors(0), _tensors(0))
    load_parameters(folder, read_model_config(folder), parameters)
    load_moments(folder, moments)
    for tensors, wanted in ((parameters, value), (moments.m, value + 1), (moments.v, value + 2)):
        for name, tensor in _tensors(wanted).items():
            assert np.array_equal(tensors[name], tensor), name
    return value


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_round_trip_is_exact(run: RunFolder) -> None:
    state = TrainingState(
        training_step=7, tokens_seen=2**40, validation_loss=0.1 + 0.2, best_validation_loss=None
    )
    rng = np.random.default_rng(1)
    first, second, third = (
        {name: rng.standard_normal(t.shape, np.float32) for name, t in _tensors(0).items()}
        for _ in range(3)
    )
    folder = save_checkpoint(run, state, first, Moments(second, third), end_of_text=63)

    assert folder == run.checkpoint(7) == run.latest
    assert _names(folder) == FILES
    assert load_training_state(folder) == state
    assert read_model_config(folder) == TINY
    parameters, moments = _tensors(0), Moments(_tensors(0), _tensors(0))
    load_parameters(folder, TINY, parameters)
    load_moments(folder, moments)
    for name in first:
        assert np.array_equal(parameters[name], first[name])
        assert np.array_equal(moments.m[name], second[name])
        assert np.array_equal(moments.v[name], third[name])


def test_the_folder_is_hugging_faces(run: RunFolder) -> None:
    def write_tokenizer(partial: Path) -> None:
        (partial / "vocab.json").write_text("{}")

    folder = _save(run, 1, 0.5, write_tokenizer)
    assert _names(folder) == [*FILES, "vocab.json"]
    with safe_open(folder / "model.safetensors", framework="numpy") as reader:
        assert reader.metadata() == {"format": "pt"}
        names = {f"transformer.{name}" for name in parameter_specs(TINY)}
        assert set(reader.keys()) == names
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["GPT2LMHeadModel"]
    assert config["tie_word_embeddings"] is True
    assert config["attn_pdrop"] == config["embd_pdrop"] == config["resid_pdrop"] == 0.25


def test_the_newest_stay_and_latest_points_to_the_last(run: RunFolder) -> None:
    for training_step in (1, 2, 10):
        _save(run, training_step, training_step)
    assert _names(run.checkpoints) == ["latest", "step-10", "step-2"]
    assert run.latest_link.readlink() == Path("step-10")
    _save(run, 3, 3)  # resumed from an earlier one: what is saved last is what goes on
    assert run.latest == run.checkpoint(3)
    _save(run, 4, 4, keep=1)
    assert run.latest == run.checkpoint(4)
    assert _names(run.checkpoints) == ["latest", "step-10", "step-4"]


def test_the_same_training_step_can_be_saved_again(run: RunFolder) -> None:
    _save(run, 4, 0.5)
    _save(run, 4, 0.75)
    assert run.latest is not None
    assert _saved_value(run.latest) == 0.75
    assert _names(run.checkpoints) == ["latest", "step-4"]


def test_leftovers_of_a_killed_process_are_removed(run: RunFolder) -> None:
    for name in (".step-9.partial", ".step-1.removed", ".step-9.linked"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / "x").write_text("x")
    (run.checkpoints / ".latest.partial").symlink_to("nowhere")
    _save(run, 9, 0.5)
    assert _names(run.checkpoints) == ["latest", "step-9"]


def test_the_links_of_a_killed_process_stay_until_there_is_better(run: RunFolder) -> None:
    _save(run, 4, 0.5)
    run.checkpoint(4).rename(run.checkpoints / ".step-4.linked")
    run.latest_link.unlink()
    run.latest_link.symlink_to(".step-4.linked")

    def refuse(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "")

    with pytest.raises(InputError, match=r"\.step-4\.linked is whole"):
        _save(run, 4, 0.75, refuse)
    assert run.latest is not None
    assert _saved_value(run.latest) == 0.5
    _save(run, 4, 0.75)
    assert _names(run.checkpoints) == ["latest", "step-4"]


def _assert_previous_is_whole(run: RunFolder) -> None:
    assert _names(run.checkpoints) == ["latest", "step-1"]
    assert run.latest is not None
    assert _saved_value(run.latest) == 0.5


def test_a_disk_without_room_is_said_before_writing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    _save(run, 1, 0.5)
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError) as caught:
        _save(run, 2, 0.75)
    assert str(caught.value) == (
        f"{run.checkpoint(2)}: the disk is full: the checkpoint needs 4.2 MB, 0.0 MB are free: "
        f"make room, then go on with --resume {run.path} (step-1 is whole)"
    )
    _assert_previous_is_whole(run)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", ["write_tensors", "sync_tree", "write_tokenizer"])
def test_a_disk_that_refuses_leaves_the_previous_one_whole(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    _save(run, 1, 0.5)

    def refuse(path: Path, *_: object) -> None:
        (path / "torn" if path.is_dir() else path).write_bytes(b"half")
        raise OSError(code, os.strerror(code), str(path))

    if step == "write_tokenizer":
        write: Callable[[Path], None] | None = refuse
    else:
        write = None
        monkeypatch.setattr(checkpoint, step, refuse)
    reason = "Input/output error" if code == errno.EIO else "the disk is full: .* needs 4.2 MB"
    with pytest.raises(InputError, match=rf"step-2: .*{reason}.*\(step-1 is whole\)"):
        _save(run, 2, 0.75, write)
    _assert_previous_is_whole(run)


def test_an_interrupted_save_leaves_nothing(run: RunFolder) -> None:
    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _save(run, 2, 0.75, interrupt)
    assert _names(run.checkpoints) == []
    assert run.latest is None


def test_a_folder_that_is_no_checkpoint_is_refused(run: RunFolder, tmp_path: Path) -> None:
    moments = Moments(_tensors(0), _tensors(0))
    with pytest.raises(InputError, match=r"holds no optimizer.safetensors, .* --init "):
        load_moments(tmp_path, moments)
    with pytest.raises(InputError, match=r"holds no training_state.json, so no run can go on"):
        load_training_state(tmp_path)
    folder = _save(run, 1, 0.5)
    for text in ('{"training_step": 1}', '{"training_step": "1"}', "{}"):
        (folder / "training_state.json").write_text(text)
        with pytest.raises(InputError, match=r"training_state.json: \w+ = .*: damaged"):
            load_training_state(folder)


def test_moments_that_do_not_fit_are_listed(run: RunFolder) -> None:
    folder = _save(run, 1, 0.5)
    wider = Moments(_tensors(0) | {"ln_f.bias": np.zeros(9, np.float32)}, _tensors(0))
    with pytest.raises(InputError, match=r"another shape or dtype: m.ln_f.bias: take another"):
        load_moments(folder, wider)
    fewer = Moments({"ln_f.bias": np.zeros(8, np.float32)}, {})
    with pytest.raises(InputError, match=r"m.h.0.attn.c_attn.bias, .* and 50 more: take another"):
        load_moments(folder, fewer)


class Scenario(NamedTuple):
    """What was saved before (training step, value), and the save that is killed."""

    before: list[tuple[int, float]]
    killed: tuple[int, float]


SCENARIOS = {
    "first": Scenario([], (1, 0.75)),
    "next": Scenario([(1, 0.25), (2, 0.5)], (3, 0.75)),
    "again": Scenario([(1, 0.25), (2, 0.5)], (2, 0.75)),
}


def _killed_saves(base: Path, scenario: Scenario) -> None:
    """Leave `base/N`, the run whose save was killed just before its N-th file operation.

    An audit hook counts the operations in a forked child, which exits without a word at the N-th,
    as SIGKILL would make it.
    """
    os.fsync = lambda fd: None  # slow, and no matter: the kernel outlives the process
    origin = create_run(base / "origin", CONFIG)
    for training_step, value in scenario.before:
        _save(origin, training_step, value)
    for last in itertools.count(1):
        path = base / str(last)
        shutil.copytree(origin.path, path, symlinks=True)
        child = os.fork()
        if child == 0:
            _die_at(last)
            _save(open_run(path), *scenario.killed, lambda folder: None)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            shutil.rmtree(path)
            return
        assert code == KILLED


def _die_at(last: int) -> None:
    count = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count
        if event in OPERATIONS:
            count += 1
            if count == last:
                os._exit(KILLED)

    sys.addaudithook(hook)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_kill_at_any_file_operation_leaves_a_usable_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = SCENARIOS[name]
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    subprocess.run(
        [sys.executable, __file__, tmp_path, name],
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        check=True,
        timeout=60,
    )
    killed = sorted(int(path.name) for path in tmp_path.iterdir() if path.name != "origin")
    assert len(killed) > 15
    seen: list[float | None] = []
    for last in killed:
        run = open_run(tmp_path / str(last))
        latest = run.latest
        if scenario.before:
            assert run.latest_link.is_dir()  # the link itself, not the way around it
        seen.append(_saved_value(latest) if latest else None)
        for training_step in run.training_steps():
            _saved_value(run.checkpoint(training_step))
        _save(run, *scenario.killed)
        assert run.latest == run.checkpoint(scenario.killed[0])
        assert _saved_value(run.checkpoint(scenario.killed[0])) == scenario.killed[1]
        assert not [entry for entry in _names(run.checkpoints) if entry.startswith(".")]
    before = scenario.before[-1][1] if scenario.before else None
    switch = seen.index(scenario.killed[1])
    assert seen == [before] * switch + [scenario.killed[1]] * (len(seen) - switch)
    assert switch > 0


if __name__ == "__main__":
    _killed_saves(Path(sys.argv[1]), SCENARIOS[sys.argv[2]])
