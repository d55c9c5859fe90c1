"""Train for long on three devices, and see that memory, threads and file handles do not grow.

    python -m aieflow.tools.check_growth --steps 1000 --batch-size 2 --seq-len 64

The mini preset on CPU, OpenCL and an emulated NPU, with nodes of every kind on each. Prints the
process's figures as it goes; exit code 0 if after the first tenth nothing grows but memory by less
than 1 %, 1 if something does.
"""

import argparse
import sys
import threading
from contextlib import closing
from dataclasses import dataclass

import psutil

from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import Trainer
from aieflow.tools.bench_train import RandomTokens
from aieflow.tools.console import OUT
from aieflow.tools.machines import MachineAsked, opened_machine

PLACES = "layernorm=igpu,attention=igpu,gelu_backward=igpu,column_sum=igpu,matmul=npu"
REPORTS = 20
TOLERANCE = 0.01  # of memory: the allocator's own ups and downs


@dataclass(frozen=True, slots=True)
class Figures:
    """What a process holds."""

    memory_nbytes: int
    threads: int
    handles: int


def figures() -> Figures:
    """Those of this process."""
    process = psutil.Process()
    return Figures(process.memory_info().rss, threading.active_count(), process.num_fds())


def main() -> None:
    """Train, report, and compare the end with the first tenth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=128)
    given = parser.parse_args()
    model = PRESETS["mini"]
    config = RunConfig(
        model=model, batch_size=given.batch_size, seq_len=given.seq_len, steps=given.steps
    )
    asked = MachineAsked(devices="cpu,igpu,npu", machine="phoenix", place=PLACES)
    early: Figures | None = None
    with opened_machine(asked) as machine, closing(Trainer(config, machine)) as trainer:
        for device in machine.devices:
            OUT.print(f"{device.name:<5} {device.identity}", highlight=False)
        trainer.warm_up()
        trainer.initialise()
        sampler = RandomTokens(model.vocab_size)
        for index in range(given.steps):
            record = trainer.step(index, sampler)
            if (index + 1) % max(1, given.steps // REPORTS) == 0:
                now = figures()
                OUT.print(
                    f"training step {index + 1:5d}  loss {record.loss:.3f}  "
                    f"{now.memory_nbytes / 1e6:,.1f} MB  {now.threads} threads  "
                    f"{now.handles} file handles",
                    highlight=False,
                )
                if early is None and 10 * (index + 1) >= given.steps:
                    early = now
        last = figures()
    assert early is not None
    grows = [
        name
        for name, first, end in (
            ("memory", early.memory_nbytes * (1 + TOLERANCE), last.memory_nbytes),
            ("threads", early.threads, last.threads),
            ("file handles", early.handles, last.handles),
        )
        if end > first
    ]
    OUT.print(f"grows: {', '.join(grows)}" if grows else "nothing grows")
    sys.exit(1 if grows else 0)


if __name__ == "__main__":
    main()
