"""A peer that is measured beside aieflow: a child process that does one training step when asked.

Child processes keep the peer's thread pools and memory out of ours. The peer's interpreter may be
another than ours, so that PyTorch need not be installed with aieflow.
"""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aieflow.ops.errors import InputError

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


class Peer:
    """The running child; a context manager. Raises InputError where it cannot be started."""

    def __init__(self, case: PeerCase) -> None:
        self.name = case.name
        script = Path(__file__).with_name("peer_training.py")
        sizes = ["--preset", case.preset, "--batch-size", case.batch_size]
        sizes += ["--seq-len", case.seq_len, "--threads", case.threads]
        flags = ["--compile"] if case.is_compiled else []
        command = [str(each) for each in (case.python, script, *sizes, *flags)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise InputError(f"--peer-python {case.python}: {error.strerror}") from None
        try:
            self.version = str(self._answer()["version"])
        except BaseException:
            self._end()
            raise
        self.seconds: list[float] = []
        self.peak_nbytes = 0

    def step(self) -> None:
        """Let it do one training step, and wait until its threads have gone to sleep."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        answer = self._answer()
        self.seconds.append(float(answer["seconds"]))
        self.peak_nbytes = int(answer["peak_nbytes"])
        time.sleep(SETTLE_S)

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise InputError(
                f"the peer {self.name} ended (see its message above): it needs torch and aieflow "
                "in its interpreter: pip install 'aieflow[bench]', or give --peer-python"
            )
        answer: dict[str, float] = json.loads(line)
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
