"""A watcher of a training run that keeps what it is told, for tests."""

from pathlib import Path

from aieflow.gpt2.trainer import Exclusion, Replanned, StepRecord


class EventWatcher:
    """One text for each event, in order, such as `step 3` or `without npu`."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_training_step(self, record: StepRecord) -> None:
        self.events.append(f"step {record.training_step}")

    def on_evaluation(self, training_step: int, validation_loss: float) -> None:
        self.events.append(f"evaluation {training_step}")

    def on_checkpoint(self, path: Path) -> None:
        self.events.append(path.name)

    def on_exclusion(self, exclusion: Exclusion) -> None:
        self.events.append(f"without {exclusion.device}")

    def on_replan(self, replanned: Replanned) -> None:
        self.events.append(f"{replanned.replan.outcome} {replanned.training_step}")
