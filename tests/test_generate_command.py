"""`aieflow generate`: what it takes as a model, what it prints."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest

from aieflow.gpt2.checkpoint import Moments, TrainingState, save_checkpoint
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.params import initial_parameters
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import RunFolder, create_run
from aieflow.gpt2.tokenizer import Tokenizer


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]
MODEL = ModelConfig(vocab_size=1024, seq_len=32, layers=1, heads=2, channels=16)
SHORT = ("--tokens", 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with one checkpoint of random weights."""
    run = create_run(tmp_path_factory.mktemp("runs") / "run", RunConfig(model=MODEL, seq_len=32))
    parameters = dict(initial_parameters(MODEL, 1))
    tokenizer = Tokenizer.embedded()
    save_checkpoint(
        run,
        TrainingState(training_step=5),
        parameters,
        Moments(parameters, parameters),
        write_tokenizer=tokenizer.save,
        end_of_text=tokenizer.end_of_text,
    )
    return run


def test_a_run_a_checkpoint_and_a_plain_folder_give_the_same_text(
    aieflow: Command, run: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(run.checkpoint(5), tmp_path / "model")
    for name in ("optimizer.safetensors", "training_state.json"):
        (tmp_path / "model" / name).unlink()
    sources = (run.path, run.latest_link, run.checkpoint(5), tmp_path / "model")
    results = [aieflow("generate", "--from", source, "The", *SHORT) for source in sources]
    assert {result.code for result in results} == {0}
    assert len({result.out for result in results}) == 1
    assert results[0].out.startswith("The")
    assert len(results[0].out) > len("The\n")
    assert results[0].err == ""


def test_the_seed_decides(aieflow: Command, run: RunFolder) -> None:
    one, same, other = (
        aieflow("generate", "--from", run.path, "The", "--seed", seed, *SHORT).out
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_greedy_does_not_depend_on_the_seed(aieflow: Command, run: RunFolder) -> None:
    texts = {
        aieflow("generate", "--from", run.path, "x", "--temperature", 0, "--seed", seed, *SHORT).out
        for seed in (1, 2)
    }
    assert len(texts) == 1


def test_samples_are_numbered_apart_from_their_text(aieflow: Command, run: RunFolder) -> None:
    single = aieflow("generate", "--from", run.path, "The", *SHORT)
    three = aieflow("generate", "--from", run.path, "The", "--samples", 3, *SHORT)
    assert three.err.splitlines() == ["--- 1 of 3", "--- 2 of 3", "--- 3 of 3"]
    assert three.out.startswith(single.out)
    assert three.out.count("The") >= 3


def test_text_that_rich_would_read_as_markup_stays(aieflow: Command, run: RunFolder) -> None:
    prompt = "[bold]a[/] :smile: \\[x] [/nothing]"
    result = aieflow("generate", "--from", run.path, prompt, *SHORT)
    assert result.code == 0
    assert result.out.startswith(prompt)


def test_no_prompt_begins_a_new_text(aieflow: Command, run: RunFolder) -> None:
    for prompt in ([], [""]):
        assert aieflow("generate", "--from", run.path, *prompt, *SHORT).code == 0


def test_a_prompt_from_standard_input(
    aieflow: Command, run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = []
    for content in (b"Die T\xc3\xbcr", b"Die T\xfcr"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        results.append(aieflow("generate", "--from", run.path, "-", *SHORT))
    assert results[0].code == 0, results[0].err
    assert results[0].out.startswith("Die Tür")
    _misused(results[1], "standard input: not UTF-8: byte 0xfc at offset 5", "iconv")


def test_what_the_terminal_cannot_show_is_replaced(run: RunFolder) -> None:
    ended = subprocess.run(
        [
            Path(sys.executable).with_name("aieflow"),
            "generate",
            "--from",
            run.path,
            "T\u00fcr \u2192",
        ],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert ended.stdout.startswith(b"T\xfcr ?")
    assert ended.stderr == b""


def test_a_prompt_longer_than_the_context(aieflow: Command, run: RunFolder) -> None:
    prompt = "one two three " * 30
    result = aieflow("generate", "--from", run.path, prompt, "--tokens", 40)
    assert result.code == 0
    assert result.out.startswith(prompt)


def _misused(result: Result, *expected: str) -> None:
    assert result.code == 2
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    for part in expected:
        assert part in result.err


def test_what_is_no_model_is_refused(aieflow: Command, tmp_path: Path) -> None:
    _misused(aieflow("generate", "The"), "--from is missing: give a run")
    gone = tmp_path / "gone"
    _misused(aieflow("generate", "--from", gone), f"--from {gone}: does not exist", "or one of")
    _misused(aieflow("generate", "--from", tmp_path), f"{tmp_path}", "holds no config.json")
    run = create_run(tmp_path / "run", RunConfig(model=MODEL, seq_len=32))
    _misused(
        aieflow("generate", "--from", run.path),
        f"--from {run.path}: the run has no checkpoint yet",
        f"aieflow train gpt2 --resume {run.path}",
    )


def test_a_model_without_a_tokenizer_is_refused(
    aieflow: Command, run: RunFolder, tmp_path: Path
) -> None:
    shutil.copytree(run.checkpoint(5), tmp_path / "model")
    for name in ("tokenizer.json", "vocab.json"):
        (tmp_path / "model" / name).unlink()
    result = aieflow("generate", "--from", tmp_path / "model", "x")
    _misused(result, "no tokenizer", "vocab.json is missing", "copy the tokenizer's files")


def test_damaged_weights_are_refused(aieflow: Command, run: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(run.checkpoint(5), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    _misused(aieflow("generate", "--from", tmp_path / "model", "x"), str(weights))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokens", 0), "--tokens = 0: must be at least 1"),
        (("--samples", -2), "--samples = -2: must be at least 1"),
        (("--top-p", 0), "--top-p = 0.0: must lie above 0"),
        (("--temperature", -1), "--temperature = -1.0: must be 0 or more"),
        (("--lanes", 0), "--lanes = 0: must be from 1 to "),
        (("--samples", 10**12), "--samples 1000000000000: needs"),
    ],
)
def test_options_out_of_range(
    aieflow: Command, run: RunFolder, options: tuple[object, ...], message: str
) -> None:
    _misused(aieflow("generate", "--from", run.path, "x", *options), message)
