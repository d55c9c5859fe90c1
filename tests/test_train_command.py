"""`aieflow train gpt2`: what it leaves and prints, and how it takes being stopped and killed."""

import json
import math
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from aieflow.gpt2.checkpoint import load_training_state
from aieflow.gpt2.run_folder import open_run
from aieflow.gpt2.tokenizer import Tokenizer
from aieflow.tools.check_resume import disagreements, signal_at, train, training_steps_done
from aieflow.tools.progress import TrainingProgress
from aieflow.tools.train import _asked_to_stop


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]
TINY = ("--layers", 1, "--heads", 2, "--channels", 16, "--seq-len", 16, "--batch-size", 2)
QUICK = (*TINY, "--steps", 4, "--no-sample")
# Slow enough to be hit by a signal; 60 training steps take about a second.
SLOW = [
    *("--layers", "2", "--heads", "2", "--channels", "32", "--seq-len", "32"),
    *("--batch-size", "32", "--steps", "60", "--checkpoint-every", "10", "--eval-every", "25"),
    *("--dropout", "0.1", "--no-sample"),
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("She sells [bold]sea shells[/] by the sea shore. " * 60)
    return file


def _lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_from_start_to_text(aieflow: Command, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = aieflow("train", "gpt2", *TINY, "--steps", 4, "--data", text, "--out", out)
    assert result.code == 0, result.err
    assert [entry.name for entry in sorted(out.iterdir())] == [
        *("checkpoints", "config.json", "lock", "metrics.jsonl", "plan.json")
    ]
    plan = json.loads((out / "plan.json").read_text())
    assert len(plan["graph"]["nodes"]) == plan["totals"]["nodes"] > 50
    assert open_run(out).config.data == str(text)
    assert sorted(entry.name for entry in (out / "checkpoints").iterdir()) == ["latest", "step-4"]
    files = {entry.name for entry in (out / "checkpoints" / "latest").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "optimizer.safetensors"} <= files
    assert (tmp_path / ".tokens").is_dir()
    *_, loss_line, steps, validation, throughput, share, run, following = result.out.splitlines()
    assert loss_line.startswith("train       loss ")
    assert loss_line.endswith(" (mean of the last 4 training steps)")
    assert steps.startswith("            4 training steps, 128 tokens, ")
    loss = load_training_state(out / "checkpoints" / "latest").validation_loss
    assert loss is not None
    assert validation == f"validation  loss {loss:.3f}, perplexity {math.exp(loss):,.1f}"
    assert "tokens/s" in throughput
    assert share.endswith("% of the 1 GFLOP/s that GEMM reaches here")
    assert run == f"run         {out}"
    assert following == f'next        aieflow generate --from {out} "This is the"'
    assert result.out.splitlines()[1].startswith("This is the")


def test_without_a_terminal_plain_lines_are_printed(
    aieflow: Command, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "[run]"
    result = aieflow("train", "gpt2", *QUICK, "--data", text, "--out", out, "--eval-every", 2)
    assert "\x1b" not in result.err + result.out
    header, lines = result.err.splitlines()[:8], result.err.splitlines()[8:]
    words = [line[:11].strip() for line in header]
    assert words == ["model", "data", "", "plan", "memory", "", "device", "run"]
    assert all(len(line) < 80 for line in header if str(tmp_path) not in line)
    assert header[-1] == f"run         {out}"
    assert lines[0].startswith("training step 1/4  loss ")
    assert "tokens/s  ETA 0:00:0" in lines[0]
    assert lines[1].startswith("training step 2: validation loss ")
    assert lines[-1] == f"checkpoint {out}/checkpoints/step-4"
    assert not any(line.startswith("training step 3/") for line in lines)


def test_runs_without_a_name_are_numbered(
    aieflow: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert aieflow("train", "gpt2", *QUICK, "--data", "text.txt").code == 0
    names = sorted(entry.name for entry in (tmp_path / "runs").iterdir())
    assert names == [".tokens", "gpt2-001", "gpt2-002"]
    assert open_run(tmp_path / "runs" / "gpt2-001").config.data == str(text)


def test_options_reach_the_run(aieflow: Command, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = (
        *("--lr", 0.02, "--lr-schedule", "constant", "--warmup", 2, "--grad-clip", 0),
        *("--weight-decay", 0.2, "--beta1", 0.8, "--beta2", 0.9, "--dropout", 0.1, "--seed", 7),
        *("--grad-accumulation", 2, "--sampling", "sequential", "--eval-every", 0),
        *("--eval-batches", 3, "--checkpoint-every", 0, "--check-finite"),
    )
    assert aieflow("train", "gpt2", *QUICK, *options, "--data", text, "--out", out).code == 0
    config = open_run(out).config
    for name, value in zip(options[::2], options[1::2], strict=False):
        assert getattr(config, str(name)[2:].replace("-", "_")) == value, name
    assert config.check_finite
    assert [line["lr"] for line in _lines(out) if "lr" in line] == [0.01, 0.02, 0.02, 0.02]
    assert (config.model.layers, config.model.channels, config.model.seq_len) == (1, 16, 128)


def test_zero_switches_warmup_clipping_and_intervals_off(
    aieflow: Command, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    off = [("--warmup", 0), ("--grad-clip", 0), ("--eval-every", 0), ("--checkpoint-every", 0)]
    zeros = [each for pair in off for each in pair]
    assert aieflow("train", "gpt2", *QUICK, *zeros, "--data", text, "--out", out).code == 0
    lines = _lines(out)
    assert lines[0]["lr"] == open_run(out).config.lr
    assert [line["training_step"] for line in lines] == [1, 2, 3, 4, 4]
    assert open_run(out).training_steps() == [4]


def test_older_checkpoints_go(aieflow: Command, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = (*QUICK, "--checkpoint-every", 1, "--data", text, "--out", out)
    assert aieflow("train", "gpt2", *options).code == 0
    assert open_run(out).training_steps() == [3, 4]
    assert (out / "checkpoints" / "latest").readlink() == Path("step-4")


def _metrics(aieflow: Command, out: Path, *options: object) -> list[dict[str, float]]:
    result = aieflow("train", "gpt2", *QUICK, *options, "--out", out)
    assert result.code == 0, result.err
    return _lines(out)


def test_accumulated_passes_equal_one_batch(aieflow: Command, text: Path, tmp_path: Path) -> None:
    data = ("--data", text, "--sampling", "sequential")
    whole = _metrics(aieflow, tmp_path / "whole", *data, "--batch-size", 4)
    divided = ("--batch-size", 1, "--grad-accumulation", 4)
    accumulated = _metrics(aieflow, tmp_path / "accumulated", *data, *divided)
    for line, other in zip(whole[:4], accumulated[:4], strict=True):
        for key in ("loss", "grad_norm", "lr"):
            assert other[key] == pytest.approx(line[key], rel=1e-4)


def test_sequential_order_over_a_bin_is_llmcs(aieflow: Command, tmp_path: Path) -> None:
    """Rows of the two training steps trade places in the second file: so do the losses."""
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 50, (2, 32)).astype(np.uint16)
    rest = np.zeros(400, np.uint16)
    first[0] = second[0] = rest[0]  # the token after a batch is the same, whichever follows
    losses = []
    for name, parts in {"a": [first, second, rest], "b": [second, first, rest]}.items():
        file = tmp_path / f"{name}.bin"
        file.write_bytes(np.concatenate(parts).tobytes())
        still = ("--lr", 1e-30, "--weight-decay", 0, "--warmup", 0, "--vocab-size", 50)
        options = ("--data", file, "--sampling", "sequential", *still)
        lines = _metrics(aieflow, tmp_path / name, *options)
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0][0] == losses[1][1] != losses[0][1]
    assert losses[0][1] == losses[1][0]
    assert losses[0][2:] == losses[1][2:]
    assert losses[0][2] == losses[0][3]


def test_a_bin_without_a_tokenizer_trains_and_resumes(aieflow: Command, tmp_path: Path) -> None:
    file = tmp_path / "tokens.bin"
    file.write_bytes(np.arange(400, dtype=np.uint16).tobytes())
    out = tmp_path / "run"
    options = (*QUICK, "--vocab-size", 400, "--data", file, "--out", out)
    assert aieflow("train", "gpt2", *options).code == 0
    assert not (out / "checkpoints" / "latest" / "tokenizer.json").exists()
    assert aieflow("train", "gpt2", "--resume", out).code == 0


def test_a_folder_of_texts_may_hold_the_runs(
    aieflow: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    text.rename(folder / "text.txt")
    monkeypatch.chdir(folder)
    train = ("train", "gpt2", "--no-sample")
    assert aieflow(*train, "--data", ".", *TINY, "--steps", 2).code == 0
    resumed = aieflow(*train, "--resume", "runs/gpt2-001")
    assert resumed.code == 0, resumed.err
    again = aieflow(*train, "--data", ".", *TINY, "--steps", 2)
    assert again.code == 0, again.err


def test_data_that_moved_are_given_anew(aieflow: Command, text: Path, tmp_path: Path) -> None:
    out, moved = tmp_path / "run", tmp_path / "moved.txt"
    train = ("train", "gpt2", "--no-sample")
    assert aieflow(*train, "--data", text, *TINY, "--steps", 2, "--out", out).code == 0
    text.rename(moved)
    gone = aieflow(*train, "--resume", out)
    assert (gone.code, "with --data" in gone.err) == (2, True)
    resumed = aieflow(*train, "--resume", out, "--data", moved)
    assert resumed.code == 0, resumed.err
    moved.write_text("Something else. " * 200)
    other = aieflow(*train, "--resume", out, "--data", moved)
    assert (other.code, "has changed" in other.err) == (2, True)


def test_the_next_command_can_be_pasted(aieflow: Command, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run"
    result = aieflow("train", "gpt2", *QUICK, "--data", text, "--out", out)
    command = shlex.split(result.out.splitlines()[-1])[1:]
    assert command[:4] == ["aieflow", "generate", "--from", str(out)]
    assert aieflow(*command[1:], "--tokens", 1).code == 0


def test_no_text_is_offered_without_a_tokenizer(aieflow: Command, tmp_path: Path) -> None:
    np.arange(400, dtype="<u2").tofile(tmp_path / "tokens.bin")
    options = (*QUICK, "--vocab-size", 2000, "--data", tmp_path / "tokens.bin")
    result = aieflow("train", "gpt2", *options, "--out", tmp_path / "run")
    assert result.code == 0
    assert "generate" not in result.out


def test_the_tokens_of_a_bin_are_nobodys_in_particular(aieflow: Command, tmp_path: Path) -> None:
    np.arange(400, dtype="<u2").tofile(tmp_path / "tokens.bin")
    out = tmp_path / "run"
    assert (
        aieflow("train", "gpt2", *QUICK, "--data", tmp_path / "tokens.bin", "--out", out).code == 0
    )
    assert open_run(out).config.model.vocab_size == 1024
    assert not (out / "checkpoints" / "latest" / "vocab.json").exists()


def test_a_resumed_run_has_the_lanes_of_its_beginning(
    aieflow: Command, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train = ("train", "gpt2", "--no-sample")
    first = aieflow(*train, "--data", text, *TINY, "--steps", 2, "--out", out, "--lanes", 3)
    assert first.code == 0, first.err
    assert "3 compute lanes" in first.err
    assert "3 compute lanes" in aieflow(*train, "--resume", out).err
    assert "1 compute lane\n" in aieflow(*train, "--resume", out, "--lanes", 1).err
    assert "3 compute lanes" in aieflow(*train, "--resume", out).err


def test_fine_tuning_goes_on_from_the_weights(aieflow: Command, text: Path, tmp_path: Path) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    _metrics(aieflow, base, "--data", text, "--lr", 0.05, "--warmup", 0)
    sizes = ("--seq-len", 16, "--batch-size", 2, "--steps", 2, "--no-sample")
    for init in (base, base / "checkpoints" / "latest"):
        options = (*sizes, "--init", init, "--data", text, "--out", tuned / init.name)
        assert aieflow("train", "gpt2", *options).code == 0
        assert _lines(tuned / init.name)[0]["loss"] < _lines(base)[0]["loss"] - 0.5
    assert _lines(tuned / "base")[0]["loss"] == _lines(tuned / "latest")[0]["loss"]


def test_the_tokenizer_of_a_resumed_run_is_its_checkpoints(
    aieflow: Command, text: Path, tmp_path: Path
) -> None:
    """A base model with a tokenizer of its own, which is gone when the run goes on."""
    base, out = tmp_path / "base", tmp_path / "run"
    _metrics(aieflow, base, "--data", text)
    weights = (base / "checkpoints" / "latest").resolve()
    own = Tokenizer.embedded()
    Tokenizer(own.vocabulary, own.merges[:50], own.added, own.end_of_text).save(weights)
    sizes = ("--seq-len", 16, "--batch-size", 2, "--steps", 2, "--no-sample")
    options = (*sizes, "--init", weights, "--data", text, "--out", out)
    assert aieflow("train", "gpt2", *options).code == 0
    before = (out / "checkpoints" / "latest" / "tokenizer.json").read_bytes()
    weights.rename(tmp_path / "elsewhere")
    assert aieflow("train", "gpt2", "--resume", out).code == 0
    assert (out / "checkpoints" / "latest" / "tokenizer.json").read_bytes() == before
    assert len(Tokenizer.from_folder(out / "checkpoints" / "latest").merges) == 50


def test_check_finite_may_be_asked_for_when_a_run_goes_on(
    aieflow: Command, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    blowing_up = ("--lr", 1e30, "--grad-clip", 0, "--warmup", 0, "--checkpoint-every", 1)
    result = aieflow("train", "gpt2", *QUICK, *blowing_up, "--data", text, "--out", out)
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("error: training step 2: the loss is nan: ")
    assert result.err.endswith(f"the last checkpoint is {out}/checkpoints/step-1\n")
    result = aieflow("train", "gpt2", "--resume", out, "--check-finite")
    assert result.code == 1
    assert "training step 2: %h.0." in result.err
    assert "is the first value that is not finite: element " in result.err
    assert not open_run(out).config.check_finite
    assert open_run(out).training_steps() == [1]


def _signalled(monkeypatch: pytest.MonkeyPatch, training_step: int, *numbers: int) -> None:
    """Let signals come after a training step."""
    told = TrainingProgress.on_training_step

    def on_training_step(self: TrainingProgress, record: object) -> None:
        told(self, record)  # type: ignore[arg-type]  # handed through
        if getattr(record, "training_step", 0) == training_step:
            for number in numbers:
                signal.raise_signal(number)

    monkeypatch.setattr(TrainingProgress, "on_training_step", on_training_step)


def test_a_second_interrupt_ends_at_once(
    aieflow: Command, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with monkeypatch.context() as patch:
        _signalled(patch, 2, signal.SIGINT, signal.SIGINT)
        result = aieflow("train", "gpt2", *QUICK, "--data", text, "--out", out)
    assert result.code == 130
    assert "Traceback" not in result.err
    assert training_steps_done(out) == 2
    assert open_run(out).training_steps() == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert aieflow("train", "gpt2", "--resume", out, "--no-sample").code == 0
    assert [line["training_step"] for line in _lines(out)] == [1, 2, 3, 4, 4]


def test_a_second_signal_interrupts() -> None:
    with _asked_to_stop() as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train([*SLOW, "--out", str(out)])
    return out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_does(
    never_stopped: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    ended = signal_at(out, 5, number, [*SLOW, "--out", str(out)])
    assert ended.returncode == 130, ended.stderr
    assert "stopping after this training step, with a checkpoint" in ended.stderr
    assert "Traceback" not in ended.stderr
    done = training_steps_done(out)
    assert 5 <= done < 60
    assert open_run(out).latest == out / "checkpoints" / f"step-{done}"
    *_, last = ended.stdout.splitlines()
    assert last == f"stopped: go on with aieflow train gpt2 --resume {out}"
    if number == signal.SIGINT:  # once is enough
        train([*last.split("gpt2 ")[1].split(), "--no-sample"])
        assert disagreements(never_stopped, out) == []


@pytest.mark.slow
def test_a_run_killed_five_times_is_the_run_never_killed(
    never_stopped: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = [*SLOW, "--out", str(out)]
    for moment in (4, 13, 21, 34, 47):
        ended = signal_at(out, moment, signal.SIGKILL, arguments)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert training_steps_done(out) >= moment
        arguments = ["--resume", str(out), "--no-sample"]
    train(arguments)
    assert disagreements(never_stopped, out) == []
    assert len(_lines(out)) == 60 + 3


def test_a_difference_between_two_runs_is_noticed(
    aieflow: Command, text: Path, tmp_path: Path
) -> None:
    runs = [tmp_path / "1", tmp_path / "2"]
    for run in runs:
        _metrics(aieflow, run, "--data", text, "--seed", run.name)
    assert [fault.split()[0] for fault in disagreements(*runs)] == [
        *("{'training_step':", "model.safetensors", "optimizer.safetensors")
    ]
    assert disagreements(runs[0], runs[0]) == []
