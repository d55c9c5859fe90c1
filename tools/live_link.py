"""The watcher's end of a running training: finds its socket, reads messages, keeps what was said.

See `tools.live_feed` for what is said.
"""

import json
import select
import socket
import statistics
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aieflow.gpt2.run_folder import holds_run
from aieflow.ops.errors import InputError
from aieflow.runtime.account import Account, RunAccount, joined, run_account
from aieflow.runtime.outline import Recording
from aieflow.tools.live_feed import GREETING, SOCKET, socket_address
from aieflow.tools.profile_report import Figures
from aieflow.tools.profile_subject import Subject, subject_from

RECORDINGS = 8  # training steps that shares are of: the last ones
MEDIAN_OF = 50  # training steps
LEAST_COMPARED = 8  # of each kind, to say what recording takes
LOSSES = 240
EVENTS = 20
CHUNK = 1 << 16
LONGEST = 1 << 26  # bytes of one message: more is no message of ours


@dataclass(slots=True)
class Watched:
    """What a watcher knows of a run; `take` is told each message."""

    run: Path
    subject: Subject | None = None
    pid: int | None = None
    training_steps: int = 0  # of the whole run
    training_step: int = 0  # the last one completed
    tokens_per_s: float = 0.0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=LOSSES))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MEDIAN_OF))
    recordings: deque[Recording] = field(default_factory=lambda: deque(maxlen=RECORDINGS))
    recorded_s: deque[float] = field(default_factory=lambda: deque(maxlen=MEDIAN_OF))
    plain_s: deque[float] = field(default_factory=lambda: deque(maxlen=MEDIAN_OF))
    accounts: deque[RunAccount] = field(default_factory=lambda: deque(maxlen=RECORDINGS))
    done: Mapping[str, int] = field(default_factory=dict)  # lane -> steps of its program
    events: deque[str] = field(default_factory=lambda: deque(maxlen=EVENTS))
    copied: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=MEDIAN_OF))
    has_ended: bool = False
    _account: Account | None = None

    def take(self, message: Mapping[str, object]) -> None:
        """Note what was said; raises KeyError, TypeError or ValueError for what is no message."""
        content: Any = message
        match content["kind"]:
            case "subject":
                if self.subject is not None:
                    self.events.append(f"step {self.training_step}: another plan")
                self.subject = subject_from(message)
                self.pid, self.training_steps = content["pid"], content["training_steps"]
                self.recordings.clear()
                for each in (self.accounts, self.recorded_s, self.plain_s):
                    each.clear()
                self._account = None
            case "step":
                self._take_step(message)
            case "now":
                self.done = {str(lane): int(done) for lane, done in content["done"].items()}
            case "event":
                self.events.append(str(content["text"]))
            case "end":
                self.has_ended = True
            case other:
                raise ValueError(f"no message is of the kind {other!r}")

    def figures(self) -> Figures | None:
        """The figures of the last training steps; None before the first recorded one."""
        if self.subject is None or not self.recordings:
            return None
        if self._account is None:
            foretold = self.subject.foretold
            steps_s = None if foretold is None else foretold.steps_s
            self._account = joined(self.subject.outline, self.accounts, steps_s)
        seconds = statistics.median(self.seconds)
        return Figures(
            self.subject, self._account, seconds, self.moved_nbytes, self.recording_share
        )

    @property
    def moved_nbytes(self) -> float:
        """Bytes that transfers copied in a training step, the mean of the last ones."""
        if len(self.copied) < 2:
            return 0.0
        (first, before), (last, now) = self.copied[0], self.copied[-1]
        return max(0.0, (now - before) / (last - first)) if last > first else 0.0

    @property
    def recording_share(self) -> float | None:
        """By what share recording lengthens a training step: those recorded against the others.

        None while there are few of one kind.
        """
        if min(len(self.recorded_s), len(self.plain_s)) < LEAST_COMPARED:
            return None
        return statistics.median(self.recorded_s) / statistics.median(self.plain_s) - 1

    def _take_step(self, message: Mapping[str, object]) -> None:
        content: Any = message
        self.training_step = int(content["training_step"])
        self.tokens_per_s = float(content["tokens_per_s"])
        self.losses.append(float(content["loss"]))
        self.seconds.append(float(content["seconds"]))
        self.copied.append((self.training_step, int(content["copied_nbytes"])))
        (self.recorded_s if "wall_ns" in content else self.plain_s).append(self.seconds[-1])
        if "wall_ns" in content:
            times = Recording(
                content["wall_ns"], tuple(content["starts_ns"]), tuple(content["ends_ns"])
            )
            if self.subject is None or len(times.starts_ns) != len(self.subject.outline.steps):
                raise ValueError("a recording of another plan")
            self.recordings.append(times)
            self.accounts.append(run_account(self.subject.outline, times))
            self._account = None


class LiveLink:
    """An open connection to a run's training; raises InputError where there is none."""

    def __init__(self, run: Path) -> None:
        self.watched = Watched(run)
        self.is_open = True
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with socket_address(run) as address:
                self._socket.connect(address)
            self._socket.sendall(GREETING)
            self._socket.setblocking(False)
        except OSError as error:
            self._socket.close()
            if isinstance(error, PermissionError):
                fault = "is another user's: only who trains can watch"
            else:
                fault = "nothing trains there now: start or resume it, then attach"
            raise InputError(f"--live {run}: {fault}") from None
        self._recall()

    def poll(self, timeout_s: float) -> bool:
        """Wait so long for messages at most, and take them; True if any came.

        Raises InputError where what answers is no training of this version.
        """
        if not self.is_open:
            return False
        ready, _, _ = select.select([self._socket], [], [], max(0.0, timeout_s))
        if not ready:
            return False
        try:
            part = self._socket.recv(CHUNK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            part = b""
        if not part:
            self.is_open = False
            return False
        *lines, self._rest = (self._rest + part).split(b"\n")
        if len(self._rest) > LONGEST:
            raise self._foreign("a message without an end")
        for line in lines:
            try:
                self.watched.take(json.loads(line))
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                raise self._foreign(repr(error)) from None
        return bool(lines)

    def poll_until(self, deadline_s: float) -> None:
        """Take messages until a time of `time.monotonic`."""
        while self.is_open and (left := deadline_s - time.monotonic()) > 0:
            self.poll(left)
        if (left := deadline_s - time.monotonic()) > 0:
            select.select([], [], [], left)

    def close(self) -> None:
        """Detach; the training goes on."""
        self.is_open = False
        self._socket.close()

    def _recall(self) -> None:
        """Losses of training steps before, from the run's metrics."""
        try:
            tail = (self.watched.run / "metrics.jsonl").read_bytes()[-CHUNK:]
        except OSError:
            return
        for line in tail.splitlines()[1:]:
            try:
                loss = json.loads(line).get("loss")
            except (ValueError, AttributeError):
                continue
            if isinstance(loss, float):
                self.watched.losses.append(loss)

    def _foreign(self, fault: str) -> InputError:
        return InputError(
            f"--live {self.watched.run}: what answers there is no training of this version: {fault}"
        )


def run_folder_of(target: str) -> Path:
    """The folder of the run that is named by its folder or by the process that trains it.

    Raises InputError where there is none.
    """
    folder = Path(target)
    if holds_run(folder):
        return folder
    if target.isdigit() and not folder.exists():
        return _folder_of_process(int(target))
    raise InputError(f"--live {target}: is no run's folder, and no process: give one of them")


def _folder_of_process(pid: int) -> Path:
    """The run whose lock a process holds open."""
    descriptors = Path(f"/proc/{pid}/fd")
    opened: list[Path] = []
    try:
        for entry in list(descriptors.iterdir()):
            with suppress(FileNotFoundError):  # closed since
                opened.append(entry.readlink())
    except FileNotFoundError:
        raise InputError(f"--live {pid}: there is no such process, and no such folder") from None
    except PermissionError:
        raise InputError(f"--live {pid}: the process is another user's") from None
    for file in opened:
        if file.name == "lock" and holds_run(file.parent) and (file.parent / SOCKET).exists():
            return file.parent
    raise InputError(f"--live {pid}: the process trains nothing now: give that of `aieflow train`")
