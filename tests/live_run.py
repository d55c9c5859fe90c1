"""A very small model in training that can be watched, for tests: no loop, step by step."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from short_run import CONFIG, IDS

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.sampler import RandomSampler
from aieflow.gpt2.trainer import StepRecord, Trainer
from aieflow.runtime.machine import Machine
from aieflow.tools.live_feed import LiveFeed
from aieflow.tools.live_link import LiveLink

POLLS = 400  # of a twentieth of a second at most: a hang ends in a failure
POLL_S = 0.05


@dataclass
class LiveRun:
    """A trainer, and the feed that tells of it."""

    trainer: Trainer
    feed: LiveFeed
    records: list[StepRecord]

    def step(self) -> StepRecord:
        """Do one training step as the loop does."""
        sampler = RandomSampler(np.asarray(IDS), CONFIG.batch_size, CONFIG.seq_len, CONFIG.seed)
        record = self.trainer.step(len(self.records), sampler, self.feed.wants_trace())
        self.records.append(record)
        self.feed.on_training_step(record)
        return record

    def recorded(self, link: LiveLink) -> StepRecord:
        """Do training steps until a watcher has one more that is recorded; that one."""
        before = len(link.watched.recordings)
        for _ in range(POLLS):
            record = self.step()
            if record.trace is not None:
                until(link, lambda: len(link.watched.recordings) > before)
                return record
            link.poll(POLL_S)
        raise AssertionError("no training step was recorded")


@contextmanager
def live_run(folder: Path) -> Iterator[LiveRun]:
    """A run in training whose socket lies in `folder`."""
    with (
        closing(CpuDevice(2)) as device,
        closing(Trainer(CONFIG, Machine((device,)))) as trainer,
    ):
        trainer.initialise()
        with LiveFeed(folder, trainer, 100) as feed:
            yield LiveRun(trainer, feed, [])


@contextmanager
def linked(folder: Path) -> Iterator[LiveLink]:
    """A watcher that knows what it watches."""
    link = LiveLink(folder)
    try:
        until(link, lambda: link.watched.subject is not None)
        yield link
    finally:
        link.close()


def until(link: LiveLink, is_so: Callable[[], bool]) -> None:
    """Take messages until something is so."""
    for _ in range(POLLS):
        if is_so():
            return
        link.poll(POLL_S)
    raise AssertionError("it did not come about")
