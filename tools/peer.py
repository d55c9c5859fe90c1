"""A peer that is measured beside aieflow: a child process that does what it is asked, in turn.

Child processes keep the peer's thread pools and memory out of ours. The peer's interpreter may be
another than ours, so that PyTorch need not be installed with aieflow.
"""

import json
import math
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

from aieflow.ops.errors import InputError

Answer: TypeAlias = dict[str, float | str | None]

SETTLE_S = 0.4  # a peer's pool spins for up to 0.2 s after its work


@dataclass(frozen=True, slots=True)
class PeerCase:
    """What a peer is asked to train, and with what."""

    python: Path
    preset: str
    batch_size: int
    seq_len: int
    threads: int
    is_compiled: bool

    @property
    def name(self) -> str:
        """What tables call it."""
        return "torch.compile" if self.is_compiled else "torch eager"


class PeerProcess:
    """A running child that answers each line with a JSON object; a context manager.

    Its first answer holds its `version`. Raises InputError where it cannot be started, or ends.
    """

    def __init__(self, python: Path, script: str, arguments: Sequence[object]) -> None:
        self._python = python
        # -P: else this folder comes first in the path, and its `profile` before Python's own
        file = Path(__file__).with_name(script)
        command = [str(python), "-P", str(file), *map(str, arguments)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise InputError(f"--peer-python {python}: {error.strerror}") from None
        try:
            self.version = str(self._answer()["version"])
        except BaseException:
            self._end()
            raise

    def ask(self, line: str) -> Answer:
        """Send one line, and wait for the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Answer:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError(
                f"--peer torch: {self._python} ended (see its message above): PyTorch is needed "
                "there: pip install 'aieflow[bench]', or give --peer-python"
            )
        answer: Answer = json.loads(line)
        return answer

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end()


class Peer(PeerProcess):
    """PyTorch's training step in a child process."""

    def __init__(self, case: PeerCase) -> None:
        sizes = ["--preset", case.preset, "--batch-size", case.batch_size]
        sizes += ["--seq-len", case.seq_len, "--threads", case.threads]
        flags = ["--compile"] if case.is_compiled else []
        super().__init__(case.python, "peer_training.py", [*sizes, *flags])
        self.name = case.name
        self.seconds: list[float] = []
        self.peak_nbytes = 0

    def step(self) -> None:
        """Let it do one training step, and wait until its threads have gone to sleep."""
        answer = self.ask("step")
        self.seconds.append(float(answer["seconds"] or math.nan))
        self.peak_nbytes = int(answer["peak_nbytes"] or 0)
        time.sleep(SETTLE_S)
