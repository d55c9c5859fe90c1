"""Mistakes on the command line: exit code 2, one message with value, place and remedy, no harm."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from aieflow.gpt2.run_folder import lock_run


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]
TINY = ("--layers", 1, "--heads", 2, "--channels", 16, "--seq-len", 16, "--batch-size", 2)
QUICK = (*TINY, "--steps", 4, "--no-sample")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("She sells sea shells by the sea shore. " * 60)
    return file


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four training steps with its data beside it, to be copied."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "text.txt").write_text("She sells sea shells by the sea shore. " * 60)
    program = "from aieflow.tools.cli import main; main()"
    options = [*map(str, QUICK), "--data", str(folder / "text.txt"), "--out", str(folder / "run")]
    subprocess.run(
        [sys.executable, "-c", program, "train", "gpt2", *options], check=True, capture_output=True
    )
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A complete run, this test's own."""
    return Path(shutil.copytree(stopped / "run", tmp_path / "run", symlinks=True))


def _refused(result: Result, *expected: object) -> None:
    assert result.code == 2, result.err
    message = result.err.splitlines()[-1]
    assert message.startswith("error: ")
    assert "Traceback" not in result.err
    for part in expected:
        assert str(part) in message
    assert result.out == ""


def _contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, the lock apart."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


class _Case:
    """Data that cannot be used, and what must be said of them."""

    def __init__(self, name: str, content: bytes | None, *expected: str) -> None:
        self.name, self.content, self.expected = name, content, expected


HEADER = np.zeros(256, np.int32)
HEADER[:3] = 20240520, 1, 50
CASES = {
    "missing": _Case("gone.txt", None, "no such file or folder: give --data a text file"),
    "empty": _Case("a.txt", b"", "the file is empty: give --data a text"),
    "empty bin": _Case("a.bin", b"", "empty: expected uint16 tokens"),
    "latin-1": _Case(
        "a.txt", b"x" * 700 + b"T\xfcr", "not UTF-8: byte 0xfc at offset 701: convert"
    ),
    "short": _Case("a.txt", b"abc", "but one sequence takes 17 (--seq-len 16", "give more data"),
    "short bin": _Case("a.bin", b"\1\0\2\0", "2 tokens, but one sequence takes 17", "--seq-len 1 "),
    "odd bin": _Case("a.bin", b"abc", "3 bytes, an odd number"),
    "cut bin": _Case("a.bin", HEADER.tobytes() + b"\0" * 90, "its header promises 50 tokens"),
    "foreign ids": _Case(
        "a.bin",
        np.array([5] * 30 + [1024, 2000], np.uint16).tobytes(),
        "token id 1024 at index 30, but the vocabulary holds 1024 tokens",
        "set --vocab-size 2001 or more",
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_data(aieflow: Command, tmp_path: Path, case: _Case) -> None:
    file = tmp_path / case.name
    if case.content is not None:
        file.write_bytes(case.content)
    out = tmp_path / "run"
    result = aieflow("train", "gpt2", *QUICK, "--data", file, "--out", out)
    _refused(result, file, *case.expected)
    assert not out.exists()


def test_a_folder_without_text(aieflow: Command, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    out = tmp_path / "run"
    result = aieflow("train", "gpt2", *QUICK, "--data", tmp_path / "data", "--out", out)
    _refused(result, tmp_path / "data", "none of the 0 files", "give --data a text file")
    assert not out.exists()


def test_too_few_tokens_for_a_sequential_batch(
    aieflow: Command, text: Path, tmp_path: Path
) -> None:
    options = ("--sampling", "sequential", "--batch-size", 500, "--data", text)
    result = aieflow("train", "gpt2", *QUICK, *options, "--out", tmp_path / "run")
    _refused(result, "one sequential batch takes 8001", "--batch-size 500", "--sampling random")
    assert not (tmp_path / "run").exists()


OPTIONS = {
    "preset": (("--preset", "huge"), "--preset huge: must be one of mini, 124M, medium, large, xl"),
    "two sources": (("--preset", "mini", "--init", "x"), "--preset mini and --init x"),
    "heads": (("--heads", 3), "channels = 16 is not a multiple of heads = 3: choose"),
    "layers": (("--layers", 0), "layers = 0: must be at least 1"),
    "steps": (("--steps", 0), "--steps = 0: must be at least 1"),
    "rate": (("--lr", "nan"), "--lr = nan: must be a finite number above 0"),
    "clip": (("--grad-clip", -1), "--grad-clip = -1.0: must be a finite number, 0 (off) or more"),
    "dropout": (("--dropout", 1), "--dropout = 1.0: must lie in [0, 1)"),
    "seed": (("--seed", -1), "--seed = -1: must lie in [0, 2^63)"),
    "lanes": (("--lanes", 0), "--lanes = 0: must be from 1 to "),
    "vocabulary": (("--vocab-size", 500), "--vocab-size = 500: the tokenizer that aieflow ships"),
    "no data": (("--data", ""), "--data is empty: give a text file"),
    "trace": (("--trace", "/gone/t.json"), "--trace /gone/t.json: the folder /gone does not exist"),
    "batch": (("--batch-size", 10**9), "--batch-size 1000000000 and --seq-len 16 with"),
    "batch beyond": (("--batch-size", 10**25), "GiB free: use a smaller --batch-size"),
    "length": (
        ("--seq-len", 10**9),
        "(--seq-len 1000000000 and the token after it): give more data",
    ),
    "passes": (("--grad-accumulation", 10**10), "use a smaller --batch-size"),
    "sizes": (("--layers", 10**8), "parameters and moments"),
    "init": (("--init", "/gone"), "--init /gone: does not exist: give a folder with config.json"),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS.keys())
def test_options(
    aieflow: Command,
    tmp_path: Path,
    text: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    _refused(aieflow("train", "gpt2", *QUICK, "--data", text, *options), message)
    assert not list(tmp_path.glob("runs/gpt2-*"))


def test_what_only_the_plan_shows_to_be_too_large(
    aieflow: Command, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aieflow.devices.cpu.CpuDevice.free_nbytes", lambda self: 450_000)
    result = aieflow("train", "gpt2", *QUICK, "--data", text, "--out", tmp_path / "run")
    _refused(
        result, "B=2, T=16", "MiB of memory (parameters 0.08 MiB", "use a smaller --batch-size"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "gpt2", "--steps", "many"), "--steps"),
        (
            ("train", "gpt2", "--lr-schedule", "linear"),
            "--lr-schedule",
        ),
        (("train", "gpt2", "--fast"), "No such option: --fast"),
        (("train",), "Missing argument"),
        (("train", "gpt3"), "train gpt3: must be gpt2"),
        (("trian", "gpt2"), "No such command 'trian'"),
    ],
)
def test_the_words_of_the_command_line(
    aieflow: Command, arguments: tuple[str, ...], message: str
) -> None:
    result = aieflow(*arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_no_arguments_give_help(aieflow: Command) -> None:
    result = aieflow()
    assert result.code in (0, 2)
    assert "train" in result.out + result.err


def test_a_folder_that_holds_a_run_is_refused_first(aieflow: Command, run: Path) -> None:
    before = _contents(run)
    result = aieflow("train", "gpt2", *QUICK, "--data", "/gone.txt", "--out", run)
    _refused(result, f"{run}: holds a run already", "another --out", f"--resume {run}")
    assert _contents(run) == before


def test_a_folder_that_holds_other_things_is_refused(
    aieflow: Command, tmp_path: Path, text: Path
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    result = aieflow("train", "gpt2", *QUICK, "--data", text, "--out", folder)
    _refused(result, f"{folder}: is not empty (it holds thesis.tex", "give another --out")
    result = aieflow("train", "gpt2", *QUICK, "--data", text, "--out", folder / "thesis.tex")
    _refused(result, "the run's folder cannot be made: Not a directory: give another --out")
    assert _contents(folder) == {"thesis.tex": b"x"}


def test_what_is_no_run_cannot_go_on(aieflow: Command, tmp_path: Path, run: Path) -> None:
    for folder, message in {
        tmp_path / "gone": "does not exist: --resume takes the folder of a run",
        run / "config.json": "is not a folder",
        run / "checkpoints": f"or --resume {run}, the run it belongs to",
        run / "checkpoints" / "step-4": f"is a model, not a run: use --init, or --resume {run}",
        tmp_path: f"is no run (no config.json in it): perhaps --resume {run}",
    }.items():
        _refused(aieflow("train", "gpt2", "--resume", folder), folder, message)
    result = aieflow("train", "gpt2", "--resume", run, "--out", tmp_path / "new")
    _refused(result, f"--out {tmp_path / 'new'} and --resume {run}: a run stays in its folder")


def test_other_settings_are_listed(aieflow: Command, run: Path) -> None:
    before = _contents(run)
    options = ("--lr", 0.5, "--steps", 9, "--layers", 2, "--seed", 1)
    result = aieflow("train", "gpt2", "--resume", run, *options)
    _refused(
        result,
        f"--resume {run}: model.layers: 1 in the run, 2 asked for; ",
        "steps: 4 in the run, 9 asked for; lr: 0.002 in the run, 0.5 asked for: ",
        "leave those options out, or start a new run with --out",
    )
    assert "seed" not in result.err
    result = aieflow("train", "gpt2", "--resume", run, "--preset", "mini")
    _refused(result, "model.layers: 1 in the run, 4 asked for")
    result = aieflow("train", "gpt2", "--resume", run, "--seq-len", 500)
    _refused(result, f"--resume {run}: --seq-len = 500: the model ends at 128")
    assert _contents(run) == before


def test_the_same_settings_may_be_repeated(aieflow: Command, run: Path) -> None:
    assert aieflow("train", "gpt2", "--resume", run, *QUICK, "--seed", 1).code == 0


def _given(run: Path, **settings: object) -> None:
    """Change what a run's config.json holds."""
    file = run / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_data_that_are_gone_or_changed(aieflow: Command, run: Path, tmp_path: Path) -> None:
    data = tmp_path / "moved.txt"
    _given(run, data=str(data))
    before = _contents(run)
    result = aieflow("train", "gpt2", "--resume", run)
    _refused(result, f"--resume {run}: {data}, which the run was given as --data", "put it back")
    data.write_text("He sells sea shells by the sea shore. " * 60)
    result = aieflow("train", "gpt2", "--resume", run)
    _refused(
        result,
        f"{run}: {data} is not what this run was trained on until training step 4",
        "put the old content back, or train on the new one with --init",
    )
    assert _contents(run) == before


def test_weights_to_begin_with_that_are_gone(aieflow: Command, run: Path) -> None:
    """Only a run without a checkpoint still needs them."""
    _given(run, init="/gone")
    assert aieflow("train", "gpt2", "--resume", run, "--no-sample").code == 0
    shutil.rmtree(run / "checkpoints")
    result = aieflow("train", "gpt2", "--resume", run)
    _refused(result, f"--resume {run}: /gone, which the run was given as --init, does not exist")


def test_a_run_that_another_process_trains(aieflow: Command, run: Path) -> None:
    with lock_run(run):
        result = aieflow("train", "gpt2", "--resume", run)
    _refused(result, f"{run}: process {os.getpid()} is training in it: wait for its end")


def test_a_damaged_config(aieflow: Command, run: Path) -> None:
    for change, message in {
        "steps": "steps = 'x': must be int",
        "foo": "foo is unknown",
        "lr": "lr = 'x': must be float",
    }.items():
        shutil.copy(run / "config.json", run / "kept")
        _given(run, **{change: "x"})
        _refused(aieflow("train", "gpt2", "--resume", run), run / "config.json", message)
        (run / "kept").replace(run / "config.json")


def _tune(aieflow: Command, model: Path, out: Path, *options: object) -> Result:
    sizes = ("--seq-len", 16, "--batch-size", 2, "--steps", 2, "--no-sample")
    data = model.parent / "text.txt"
    data.write_text("She sells sea shells by the sea shore. " * 60)
    return aieflow("train", "gpt2", *sizes, "--init", model, "--data", data, "--out", out, *options)


@pytest.fixture
def model(run: Path, tmp_path: Path) -> Path:
    """A Hugging Face folder, this test's own."""
    return Path(shutil.copytree(run / "checkpoints" / "step-4", tmp_path / "model"))


def test_sizes_that_the_weights_do_not_have(aieflow: Command, model: Path, tmp_path: Path) -> None:
    options = ("--layers", 3, "--channels", 16, "--vocab-size", 77)
    result = _tune(aieflow, model, tmp_path / "new", *options)
    _refused(
        result,
        f"--init {model}: --layers = 3, the model has 1; --vocab-size = 77, the model has 1024",
        "leave those options out",
    )
    result = _tune(aieflow, model, tmp_path / "new", "--seq-len", 129)
    _refused(result, "--seq-len = 129: the model ends at 128")
    assert not (tmp_path / "new").exists()


def test_damaged_and_foreign_weights(aieflow: Command, model: Path, tmp_path: Path) -> None:
    file, out = model / "model.safetensors", tmp_path / "new"
    whole, tensors = file.read_bytes(), load_file(file)
    file.write_bytes(whole[:-100])
    _refused(_tune(aieflow, model, out), file)
    file.write_bytes(b"PK\3\4 not safetensors")
    _refused(_tune(aieflow, model, out), file)
    changed = {name: array for name, array in tensors.items() if not name.endswith("wpe.weight")}
    changed["transformer.h.0.extra"] = np.zeros(3, np.float32)
    changed["transformer.ln_f.bias"] = np.zeros(5, np.float32)
    save_file(changed, file, {"format": "pt"})
    _refused(
        _tune(aieflow, model, out),
        *(model, "missing: wpe.weight", "not known: h.0.extra"),
        "of another shape: ln_f.bias [5] instead of [16]",
    )
    tensors["transformer.ln_f.bias"] = np.full(16, np.nan, np.float32)
    save_file(tensors, file, {"format": "pt"})
    _refused(_tune(aieflow, model, out), "ln_f.bias")
    file.rename(model / "pytorch_model.bin")
    _refused(_tune(aieflow, model, out), "pytorch_model.bin is pickled", "safe_serialization=True")
    assert not out.exists()


def test_a_damaged_checkpoint(aieflow: Command, run: Path) -> None:
    file = run / "checkpoints" / "step-4" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    before = _contents(run)
    _refused(aieflow("train", "gpt2", "--resume", run), file)
    assert _contents(run) == before


def test_a_published_name_without_its_package(
    aieflow: Command, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    options = ("--init", "gpt2", "--data", text, "--out", tmp_path / "new")
    result = aieflow("train", "gpt2", *options)
    _refused(result, "--init gpt2: ", "pip install 'aieflow[hub]', or give a folder: --init DIR")
    result = aieflow("generate", "--from", "gpt2-xl", "x")
    _refused(result, "--from gpt2-xl: ", "pip install 'aieflow[hub]'", "--from DIR")
    assert not (tmp_path / "new").exists()


def test_a_published_name_without_a_network(
    aieflow: Command, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Offline:
        @staticmethod
        def snapshot_download(repository: str, allow_patterns: list[str]) -> str:
            raise ConnectionError(f"no way to {repository}\nand more")

    monkeypatch.setitem(sys.modules, "huggingface_hub", Offline)
    result = aieflow("train", "gpt2", "--init", "gpt2", "--data", text, "--out", tmp_path / "new")
    _refused(result, "--init gpt2: openai-community/gpt2 could not be fetched (no way to openai-")
    assert not (tmp_path / "new").exists()


def test_a_disk_that_fills_while_training(
    aieflow: Command, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out = tmp_path / "new"
    options = (*QUICK, "--data", text, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("aieflow.gpt2.checkpoint.write_tensors", refuse)
        result = aieflow("train", "gpt2", *options)
    assert result.code == 2
    message = result.err.splitlines()[-1]
    assert message.startswith(f"error: {out}/checkpoints/step-4: the disk is full: ")
    assert f"make room, then go on with --resume {out}" in message
    assert aieflow("train", "gpt2", "--resume", out).code == 0


def test_a_trace_that_cannot_be_written(aieflow: Command, tmp_path: Path, text: Path) -> None:
    out = tmp_path / "new"
    result = aieflow("train", "gpt2", *QUICK, "--data", text, "--out", out, "--trace", tmp_path)
    _refused(result, f"--trace {tmp_path}: is a folder: give a file")
    assert not out.exists()
