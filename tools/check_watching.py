"""What recording and watching cost a training step: without, recorded, watched, in turn.

    python -m aieflow.tools.check_watching --rounds 12

One process trains the mini preset in blocks of training steps, which take turns: nothing recorded;
every training step recorded, as `--trace` does; and watched full screen, by a watcher in a terminal
of its own that sleeps (SIGSTOP) during the other blocks. A block's time is that of the whole loop,
so what the watcher takes from the lanes counts. Prints the median of each kind's ratio to the
unrecorded block of the same round, with quartiles, and what the watcher used of a core.
"""

import argparse
import fcntl
import json
import os
import pty
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.table import Table

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import Trainer
from aieflow.runtime.machine import Machine
from aieflow.tools.bench_train import RandomTokens
from aieflow.tools.console import OUT
from aieflow.tools.live_feed import LiveFeed

KINDS = ("off", "recorded", "watched")
WATCHER = (
    "from pathlib import Path; from aieflow.tools.live import Show, attached, shown; import sys\n"
    "with attached(Path(sys.argv[1])) as link: shown(link, Show(False, False))"
)
COLUMNS, ROWS = 120, 40
ATTACH_S = 60.0


@dataclass(frozen=True, slots=True)
class Cost:
    """A kind of block against those without recording: shares of a training step."""

    kind: str
    seconds: float  # of a training step, the median of the blocks
    median: float
    low: float  # quartiles of the rounds
    high: float


@dataclass(frozen=True, slots=True)
class Watching:
    """What was measured."""

    rounds: int
    block: int  # training steps
    costs: tuple[Cost, ...]
    watcher_cores: float  # CPU seconds of the watcher by those that it was watching


def measure_watching(rounds: int, block: int) -> Watching:
    """Time blocks of training steps in turn; raises TimeoutError where no watcher attaches."""
    sampler = RandomTokens(PRESETS["mini"].vocab_size)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with (
        tempfile.TemporaryDirectory(prefix="aieflow-") as folder,
        closing(CpuDevice()) as device,
        closing(Trainer(_config(), Machine((device,)))) as trainer,
    ):
        trainer.warm_up()
        trainer.initialise()
        done = 0
        with LiveFeed(Path(folder), trainer, 1_000_000) as feed:

            def run(kind: str) -> float:
                nonlocal done
                begin = time.perf_counter()
                for _ in range(block):
                    is_watched = kind == "watched"
                    wanted = feed.wants_trace() if is_watched else kind == "recorded"
                    record = trainer.step(done, sampler, wanted)
                    done += 1
                    if is_watched:
                        feed.on_training_step(record)
                return (time.perf_counter() - begin) / block

            run("off")
            with _watcher(Path(folder), feed) as watcher:
                run("watched")  # until it draws
                used_s, watched_s = 0.0, 0.0
                for number in range(rounds):
                    for kind in KINDS[number % 3 :] + KINDS[: number % 3]:
                        if kind != "watched":
                            seconds[kind].append(run(kind))
                            continue
                        watcher.resume()
                        before_s = _cpu_s(watcher)
                        seconds[kind].append(run(kind))
                        used_s += _cpu_s(watcher) - before_s
                        watched_s += seconds[kind][-1] * block
                        watcher.suspend()
    costs = []
    for kind in KINDS:
        ratios = [a / b - 1 for a, b in zip(seconds[kind], seconds["off"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        costs.append(Cost(kind, statistics.median(seconds[kind]), median, low, high))
    return Watching(rounds, block, tuple(costs), used_s / watched_s)


def _config() -> RunConfig:
    """The mini preset as `aieflow train` has it."""
    model = PRESETS["mini"]
    return RunConfig(model=model, batch_size=8, seq_len=model.seq_len, steps=1_000_000)


@contextmanager
def _watcher(folder: Path, feed: LiveFeed) -> Iterator["psutil.Process"]:
    """A watcher in a terminal that another process empties; stopped when it has attached."""
    screen, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = ["env", "TERM=xterm-256color", sys.executable, "-c", WATCHER, str(folder)]
    with (
        subprocess.Popen(["cat"], stdin=screen, stdout=subprocess.DEVNULL) as drain,
        subprocess.Popen(command, stdin=terminal, stdout=terminal) as watcher,
    ):
        try:
            deadline = time.monotonic() + ATTACH_S
            while not feed.is_watched:
                if watcher.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError("the watcher did not attach")
                time.sleep(0.05)
            yield psutil.Process(watcher.pid)
        finally:
            for each in (watcher, drain):
                each.kill()
            os.close(screen)
            os.close(terminal)


def _cpu_s(process: "psutil.Process") -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _table(found: Watching) -> Table:
    table = Table("training step", box=None, pad_edge=False)
    for heading in ("ms", "longer by", "half of the rounds"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cost in found.costs:
        table.add_row(
            cost.kind,
            f"{cost.seconds * 1e3:.2f}",
            "-" if cost.kind == "off" else f"{cost.median:+.2%}",
            "-" if cost.kind == "off" else f"{cost.low:+.2%} to {cost.high:+.2%}",
        )
    return table


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure what watching costs.")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--block", type=int, default=20, help="training steps of a block")
    parser.add_argument("--json", action="store_true", dest="as_json")
    asked = parser.parse_args()
    found = measure_watching(asked.rounds, asked.block)
    if asked.as_json:
        OUT.out(json.dumps(asdict(found), indent=2), highlight=False)
        return 0
    OUT.print(_table(found))
    OUT.print(
        f"{found.rounds} rounds of {found.block} training steps of each kind; "
        f"the watcher used {found.watcher_cores:.1%} of a core"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
