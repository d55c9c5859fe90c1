"""Kill training runs at random moments, resume them, and hold them against one never hurt.

    python -m aieflow.tools.check_resume --steps 60 --checkpoint-every 10

hands its options on to `aieflow train gpt2`; `--kills`, `--seed-of-kills`, `--folder` are its own.
Each SIGKILL comes as soon as the metrics show a training step that the seed chose. What must agree
to the last bit: training step, loss, learning rate and gradient norm of every line, every
validation loss, the final weights and the optimizer's state. Exit code 0 if all agree, 1 if not.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.table import Table

from aieflow.gpt2.run_folder import open_run
from aieflow.tools.console import ERR, OUT

COMMAND = (sys.executable, "-c", "from aieflow.tools.cli import main; main()")
LIMIT_S = 600.0  # for one process
POLL_S = 0.001
CLOCKS = ("seconds", "tokens_per_s", "joules", "joules_source")  # differ from run to run
TENSORS = ("model.safetensors", "optimizer.safetensors")


def training_steps_done(run: Path) -> int:
    """The last training step that the run's metrics show; 0 while there is none."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    whole = [line for line in lines if line.endswith(b"\n")]
    return int(json.loads(whole[-1])["training_step"]) if whole else 0


def signal_at(
    run: Path, training_step: int, number: signal.Signals, arguments: list[str]
) -> subprocess.CompletedProcess[str]:
    """Train with `arguments`, send the signal once the training step shows, and wait for the end.

    Raises TimeoutError where it does not show within `LIMIT_S`.
    """
    deadline = time.monotonic() + LIMIT_S
    with subprocess.Popen(
        [*COMMAND, "train", "gpt2", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and training_steps_done(run) < training_step:
            if time.monotonic() > deadline:
                process.kill()
                raise TimeoutError(f"{run}: no training step {training_step} in {LIMIT_S:.0f} s")
            try:
                process.wait(POLL_S)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(number)  # does nothing where the process has ended
        out, err = process.communicate(timeout=LIMIT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def train(arguments: list[str]) -> None:
    """Train to the end; raises CalledProcessError."""
    subprocess.run([*COMMAND, "train", "gpt2", *arguments], check=True, capture_output=True)


def disagreements(whole: Path, other: Path) -> list[str]:
    """What of two runs is not the same to the last bit."""
    found = []
    lines, others = _lines(whole), _lines(other)
    if len(lines) != len(others):
        found.append(f"{len(lines)} lines of metrics, {len(others)} in {other.name}")
    for line, its in zip(lines, others, strict=False):
        if line != its:
            found.append(f"{line}, in {other.name} {its}")
            break
    for name in TENSORS:
        files = [run / "checkpoints" / "latest" / name for run in (whole, other)]
        if files[0].read_bytes() != files[1].read_bytes():
            found.append(f"{name} of {files[0].resolve().name} and {files[1].resolve().name}")
    return found


def _lines(run: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: each for key, each in line.items() if key not in CLOCKS} for line in lines]


def main() -> int:
    """Train, kill, resume, compare, print; return the exit code."""
    parser = argparse.ArgumentParser(description="Kill training runs and resume them.")
    parser.add_argument("--kills", type=int, default=5, help="number of runs that are killed")
    parser.add_argument("--seed-of-kills", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the runs lie; default: a temporary one")
    own, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as temporary:
        return _check(own.folder or Path(temporary), own.kills, own.seed_of_kills, options)


def _check(folder: Path, kills: int, seed: int, options: list[str]) -> int:
    options = [*options, "--no-sample"]
    whole = folder / "whole"
    ERR.print(f"training the run that is never killed: {' '.join(options)}")
    train([*options, "--out", str(whole)])
    steps = open_run(whole).config.steps
    draw = random.Random(seed)
    table = Table("kill at", "metrics showed", "went on from", "differences", box=None)
    hurt = 0
    for number in range(1, kills + 1):
        moment = draw.randrange(1, steps)
        run = folder / f"killed-{number}"
        ERR.print(f"killing run {number} of {kills} at training step {moment}")
        ended = signal_at(run, moment, signal.SIGKILL, [*options, "--out", str(run)])
        latest = open_run(run).latest
        showed = training_steps_done(run)
        train(["--resume", str(run), "--no-sample"])
        found = disagreements(whole, run)
        if ended.returncode != -signal.SIGKILL:
            found.append(f"ended with exit code {ended.returncode} before it was killed")
        hurt += bool(found)
        origin = "the start" if latest is None else latest.name
        table.add_row(str(moment), str(showed), origin, "; ".join(found) or "none")
    OUT.print(table)
    return 1 if hurt else 0


if __name__ == "__main__":
    sys.exit(main())
