import os
import subprocess
import sys
from pathlib import Path

import pytest

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import RunFolder, create_run, lock_run, next_default, open_run
from aieflow.ops.errors import InputError

CONFIG = RunConfig(model=ModelConfig(64, 16, 2, 2, 8), seq_len=16, seed=7)


def test_a_created_run_opens_with_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    assert create_run(path, CONFIG) == RunFolder(path, CONFIG)
    assert open_run(path) == RunFolder(path, CONFIG)
    assert open_run(path).latest is None


def test_default_folders_count_on(tmp_path: Path) -> None:
    assert next_default(tmp_path / "runs") == tmp_path / "runs" / "gpt2-001"
    (tmp_path / "gpt2-009").mkdir()
    (tmp_path / "gpt2-002").mkdir()
    (tmp_path / "gpt2-x").mkdir()
    assert next_default(tmp_path) == tmp_path / "gpt2-010"


def test_a_second_run_in_a_folder_is_refused(tmp_path: Path) -> None:
    create_run(tmp_path, CONFIG)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match=f"holds a run already: .*--resume {tmp_path}"):
        create_run(tmp_path, RunConfig(model=CONFIG.model, seq_len=8))
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"is not empty \(it holds thesis.tex, and no run\)"):
        create_run(tmp_path, CONFIG)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_kill_while_creating_leaves_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".config.json.partial").write_text('{"aief')
    (tmp_path / "lock").write_text("1")
    create_run(tmp_path, CONFIG)
    assert open_run(tmp_path).config == CONFIG


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="cannot be made: Not a directory: give another --out"):
            create_run(path, CONFIG)


def test_opening_what_is_no_run_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, message in {
        "gone": "gone: does not exist: --resume takes the folder of a run",
        "file": "file: is not a folder: --resume takes the folder of a run",
        "": r"is no run \(no config.json in it\): --resume takes the folder of a run",
    }.items():
        with pytest.raises(InputError, match=message):
            open_run(tmp_path / name)


def test_a_checkpoint_or_a_parent_points_to_the_run(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", CONFIG)
    step = run.checkpoint(3)
    step.mkdir(parents=True)
    (step / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(InputError, match=f"not a run: use --init, or --resume {run.path},"):
        open_run(step)
    with pytest.raises(InputError, match=f"is no run .*, or --resume {run.path},"):
        open_run(run.checkpoints)
    with pytest.raises(InputError, match=f"is no run .* perhaps --resume {run.path}$"):
        open_run(tmp_path)


def test_latest_follows_the_link_and_else_takes_the_newest(tmp_path: Path) -> None:
    run = create_run(tmp_path, CONFIG)
    for training_step in (9, 10, 100):
        run.checkpoint(training_step).mkdir(parents=True)
    (run.checkpoints / ".step-200.partial").mkdir()
    assert run.training_steps() == [9, 10, 100]
    assert run.latest == run.checkpoint(100)
    run.latest_link.symlink_to("step-9")
    assert run.latest == run.checkpoint(9)
    run.checkpoint(9).rmdir()
    assert run.latest == run.checkpoint(100)


def test_two_processes_cannot_train_in_one_run(tmp_path: Path) -> None:
    create_run(tmp_path, CONFIG)
    program = (
        "import os, pathlib, sys; from aieflow.gpt2.run_folder import lock_run\n"
        "with lock_run(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=f"process {holder.pid} is training in it"),
            lock_run(tmp_path),
        ):
            pass
        holder.kill()
    with lock_run(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
