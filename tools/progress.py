"""Shows a training run while it goes on: a progress bar on a terminal, plain lines elsewhere."""

import math
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from aieflow.gpt2.trainer import Exclusion, Replanned, StepRecord

LINE_EVERY_S = 5.0  # between plain lines
WIDE = 80  # columns of a terminal that holds the whole progress bar
WINDOW = 50  # training steps over which loss and rate are averaged


class TrainingProgress:
    """A `gpt2.train.Watcher` that draws; use it as a context manager."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        self._console = console
        self._steps = steps
        self._recent: deque[StepRecord] = deque(maxlen=WINDOW)
        self._line_at = -math.inf
        self.records: list[tuple[float, float]] = []  # (loss, seconds) of every training step
        columns: list[ProgressColumn] = [
            TextColumn("training step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[rate]} tokens/s"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        ]
        if console.width < WIDE:  # too narrow for all: step, loss and time left
            columns = [columns[1], columns[3], *columns[5:]]
        self._bar = Progress(
            *columns,
            console=console,
            transient=True,
            expand=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=steps, completed=done, loss="  -", rate="-")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_training_step(self, record: StepRecord) -> None:
        """Advance the bar, or now and then print a line."""
        self._recent.append(record)
        self.records.append((record.loss, record.seconds))
        loss = sum(r.loss for r in self._recent) / len(self._recent)
        seconds = sum(r.seconds for r in self._recent)
        rate = sum(r.seconds * r.tokens_per_s for r in self._recent) / seconds
        if self._console.is_terminal:
            self._bar.update(
                self._task,
                completed=record.training_step,
                loss=f"{loss:.3f}",
                rate=f"{rate:,.0f}",
            )
            return
        now = time.monotonic()
        if now - self._line_at >= LINE_EVERY_S or record.training_step == self._steps:
            self._line_at = now
            left = (self._steps - record.training_step) * seconds / len(self._recent)
            self._console.print(
                f"training step {record.training_step}/{self._steps}  loss {loss:.3f}  "
                f"{rate:,.0f} tokens/s  ETA {_clock(left)}"
            )

    def on_evaluation(self, training_step: int, validation_loss: float) -> None:
        """Print the validation loss."""
        perplexity = math.exp(min(validation_loss, 700.0))
        self._console.print(
            f"training step {training_step}: validation loss {validation_loss:.3f} "
            f"(perplexity {perplexity:,.1f})"
        )

    def on_checkpoint(self, path: Path) -> None:
        """Print where the checkpoint lies."""
        self._console.print(f"checkpoint {escape(str(path))}")

    def on_exclusion(self, exclusion: Exclusion) -> None:
        """Say which device was lost, and why."""
        self._console.print(
            f"[yellow]training step {exclusion.training_step}: going on without "
            f"{exclusion.device}:[/] {escape(exclusion.reason)}"
        )

    def on_replan(self, replanned: Replanned) -> None:
        """Say what came of a drift, and why."""
        replan = replanned.replan
        done = {
            "swapped": f"a new plan ({replan.before} to {replan.after})",
            "kept": f"the plan is kept ({replan.before})",
            "reverted": f"back to the old plan ({replan.before} to {replan.after})",
        }[replan.outcome]
        gain = "" if replan.gain is None else f", {replan.gain:.0%} less (simulated)"
        gain = gain if replan.outcome == "swapped" else ""
        self._console.print(
            f"[yellow]training step {replanned.training_step}: {escape(done)}{gain}:[/] "
            f"{escape(replan.reason)}"
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
