"""A run of a very small model on given devices, for tests: what happened, and what ended it."""

from collections.abc import Callable
from contextlib import closing

import numpy as np
from event_watcher import EventWatcher

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.data import TokenData
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import RunFolder
from aieflow.gpt2.train import restore, train
from aieflow.gpt2.trainer import Trainer
from aieflow.runtime.machine import Machine

MODEL = ModelConfig(vocab_size=50, seq_len=16, layers=1, heads=2, channels=16)
CONFIG = RunConfig(model=MODEL, batch_size=2, seq_len=8, steps=10)
IDS = (np.arange(400) % 50).astype(np.uint16)
TOKENS = TokenData(IDS, IDS[:100], 50, None, "these tokens")


def run_once(
    run: RunFolder,
    machine: Machine,
    spoil: Callable[[Trainer], None] = lambda trainer: None,
    watcher: EventWatcher | None = None,
) -> list[str]:
    """A process's worth of a run: its events, which `watcher` has too where it ends in an error.

    `spoil` is called before it.
    """
    watcher = watcher or EventWatcher()
    with closing(Trainer(run.config, machine)) as trainer:
        trainer.warm_up()
        state = restore(run, trainer, TOKENS, None)
        spoil(trainer)
        train(run, trainer, TOKENS, state, watcher)
    return watcher.events
