"""What a training run tells those who watch it: a Unix socket in the run's folder.

Only the user who trains can connect (mode 0600, and the peer's user is asked for, too). A watcher
says `GREETING` and then only reads: JSON objects, one a line, of a `kind`:

- `subject` what is trained, where, by which plan; again when the plan changes
- `step` a training step; with `wall_ns`, `starts_ns`, `ends_ns` of every step where it was recorded
- `now` how many steps of its program each lane has done, four times a second
- `event` a text: a checkpoint, an evaluation, a device that was excluded
- `end` the training loop has ended

While nobody watches, no training step is recorded and nothing is sent: a thread sleeps in `accept`.
Each watcher has a thread and a short queue of its own: one that does not read loses messages, one
that was killed is forgotten, and the training loop waits for none. The loop itself only puts a
record into queues; texts are made by the watchers' threads.
"""

import contextlib
import json
import os
import queue
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from aieflow.gpt2.train import Watcher
from aieflow.gpt2.trainer import Exclusion, Replanned, StepRecord, Trainer
from aieflow.ops.errors import AieflowError
from aieflow.runtime.outline import recording
from aieflow.runtime.plan import Plan
from aieflow.tools.profile_subject import subject_message, subject_of

SOCKET = "live.sock"  # in the run's folder
GREETING = b"aieflow live 1\n"
GREETING_S = 2.0  # a client that takes longer is none
SEND_S = 5.0  # a watcher that reads nothing for so long is dropped
TICK_S = 0.25  # between messages of the kind `now`
RECORDED_EVERY_S = 0.25  # more training steps than that are not recorded
MOST_WATCHERS = 8
MOST_WAITING = 64  # messages in a watcher's queue
EVENTS = 20  # that a watcher is told of which it has missed

Entry = StepRecord | str | None  # a training step, an event, the end


@contextlib.contextmanager
def socket_address(folder: Path) -> Iterator[str]:
    """The socket's path by an open folder: the system allows 107 characters, a run's may have more.

    Raises OSError where there is no such folder.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)


class LiveFeed:
    """A `gpt2.train.Watcher` that passes on what it is told; a context manager around the loop."""

    def __init__(self, folder: Path, trainer: Trainer, steps: int) -> None:
        self.fault: str | None = None  # why nobody can attach, if so
        self._folder = folder.absolute()
        self._trainer = trainer
        self._steps = steps
        self._queues: list[queue.Queue[Entry]] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # of the two above
        self._events: deque[str] = deque(maxlen=EVENTS)
        self._next_s = 0.0
        self._listener: socket.socket | None = None

    def __enter__(self) -> Self:
        try:
            self._listener = self._open()
        except OSError as error:  # a file system without sockets: training goes on
            self.fault = f"{self._folder / SOCKET}: {error.strerror}"
            return self
        self._start(self._accept, self._listener)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._listener is None:
            return
        with contextlib.suppress(OSError):
            (self._folder / SOCKET).unlink()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        with self._lock:
            queues, threads = list(self._queues), list(self._threads)
        for each in queues:
            _put(each, None)
        for thread in threads:
            thread.join(2 * TICK_S)

    @property
    def is_watched(self) -> bool:
        """True while somebody watches."""
        return bool(self._queues)

    def wants_trace(self) -> bool:
        """Whether the training step to come is to be recorded."""
        return bool(self._queues) and time.monotonic() >= self._next_s

    def on_training_step(self, record: StepRecord) -> None:
        """Pass it on."""
        if not self._queues:
            return
        if record.trace is not None:
            now = time.monotonic()
            if now < self._next_s:  # recorded for somebody else
                record = replace(record, trace=None)
            else:
                self._next_s = now + RECORDED_EVERY_S
        self._pass_on(record)

    def on_evaluation(self, training_step: int, validation_loss: float) -> None:
        """Pass it on."""
        self._tell(f"step {training_step}: validation loss {validation_loss:.3f}")

    def on_checkpoint(self, path: Path) -> None:
        """Pass it on."""
        self._tell(f"checkpoint {path.name}")

    def on_exclusion(self, exclusion: Exclusion) -> None:
        """Pass it on."""
        step, device = exclusion.training_step, exclusion.device
        self._tell(f"step {step}: without {device}: {exclusion.reason}")

    def on_replan(self, replanned: Replanned) -> None:
        """Pass it on."""
        replan = replanned.replan
        self._tell(f"step {replanned.training_step}: {replan.outcome}: {replan.reason}")

    def _tell(self, event: str) -> None:
        self._events.append(event)
        self._pass_on(event)

    def _pass_on(self, entry: Entry) -> None:
        with self._lock:
            queues = list(self._queues)
        for each in queues:
            _put(each, entry)

    def _open(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            os.fchmod(listener.fileno(), 0o600)  # the file is made with this mode
            with socket_address(self._folder) as address:
                with contextlib.suppress(FileNotFoundError):
                    Path(address).unlink()  # of a process that was killed; the run is locked
                listener.bind(address)
            listener.listen()
        except BaseException:
            listener.close()
            raise
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed
                return
            self._start(self._serve, client)

    def _start(self, target: Callable[[socket.socket], None], argument: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(argument,), name="aieflow live", daemon=True)
        with self._lock:
            self._threads = [each for each in self._threads if each.is_alive()]
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        """Talk to one client until it goes away or the loop ends."""
        entries: queue.Queue[Entry] = queue.Queue(MOST_WAITING)
        with client:
            try:
                if not _is_watcher(client):
                    return
                with self._lock:
                    if len(self._queues) >= MOST_WATCHERS:
                        return
                    missed = list(self._events)
                    self._queues.append(entries)
                self._talk(client, entries, missed)
            except OSError:  # gone, or not reading
                return
            finally:
                with self._lock:
                    if entries in self._queues:
                        self._queues.remove(entries)

    def _talk(
        self, client: socket.socket, entries: "queue.Queue[Entry]", missed: Sequence[str]
    ) -> None:
        client.settimeout(SEND_S)
        plan = self._send_subject(client)
        for event in missed:
            _send(client, {"kind": "event", "text": event})
        tick_s = time.monotonic()
        while True:
            # At its own times, not after an entry: then every lane has just finished its program.
            if (left_s := tick_s - time.monotonic()) <= 0:
                _send(client, {"kind": "now", "done": self._trainer.lane_progress()})
                tick_s = TICK_S + time.monotonic()
                continue
            try:
                entry = entries.get(timeout=left_s)
            except queue.Empty:
                continue
            if entry is None:
                _send(client, {"kind": "end"})
                return
            if isinstance(entry, str):
                _send(client, {"kind": "event", "text": entry})
                continue
            if entry.trace is not None and entry.trace.plan is not plan:
                plan = self._send_subject(client)
            _send(client, self._step_message(entry, plan))

    def _send_subject(self, client: socket.socket) -> Plan:
        plan = self._trainer.plan
        try:
            subject = subject_message(subject_of(self._trainer))
        except AieflowError as error:  # its plan is being replaced
            raise ConnectionError(str(error)) from error
        message = {"kind": "subject", "pid": os.getpid(), "training_steps": self._steps, **subject}
        _send(client, message)
        return plan

    def _step_message(self, record: StepRecord, plan: Plan) -> dict[str, object]:
        message: dict[str, object] = {
            "kind": "step",
            "training_step": record.training_step,
            "loss": record.loss,
            "seconds": record.seconds,
            "tokens_per_s": record.tokens_per_s,
            "copied_nbytes": sum(
                device.moved.copied_nbytes for device in self._trainer.machine.devices
            ),
        }
        if record.trace is not None and record.trace.plan is plan:
            times = recording(record.trace)
            message |= {
                "wall_ns": times.wall_ns,
                "starts_ns": times.starts_ns,
                "ends_ns": times.ends_ns,
            }
        return message


class Together:
    """Several watchers of one run, told in order."""

    def __init__(self, *watchers: Watcher) -> None:
        self._watchers = watchers

    def on_training_step(self, record: StepRecord) -> None:
        """Tell each."""
        for each in self._watchers:
            each.on_training_step(record)

    def on_evaluation(self, training_step: int, validation_loss: float) -> None:
        """Tell each."""
        for each in self._watchers:
            each.on_evaluation(training_step, validation_loss)

    def on_checkpoint(self, path: Path) -> None:
        """Tell each."""
        for each in self._watchers:
            each.on_checkpoint(path)

    def on_exclusion(self, exclusion: Exclusion) -> None:
        """Tell each."""
        for each in self._watchers:
            each.on_exclusion(exclusion)

    def on_replan(self, replanned: Replanned) -> None:
        """Tell each."""
        for each in self._watchers:
            each.on_replan(replanned)


def peer_user(client: socket.socket) -> int:
    """The user id of the process at the other end of a Unix socket; raises OSError."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(user)


def _is_watcher(client: socket.socket) -> bool:
    """Whether a client is of this user (or root) and speaks as a watcher does."""
    if peer_user(client) not in (os.geteuid(), 0):
        return False
    deadline = time.monotonic() + GREETING_S
    said = b""
    while len(said) < len(GREETING):
        client.settimeout(max(0.001, deadline - time.monotonic()))
        part = client.recv(len(GREETING) - len(said))
        said += part
        if not part or not GREETING.startswith(said):
            return False
    return True


def _send(client: socket.socket, message: dict[str, object]) -> None:
    client.sendall(json.dumps(message, separators=(",", ":")).encode() + b"\n")


def _put(entries: "queue.Queue[Entry]", entry: Entry) -> None:
    """Into a queue; where that is full, in place of the oldest."""
    while True:
        try:
            entries.put_nowait(entry)
        except queue.Full:
            with contextlib.suppress(queue.Empty):
                entries.get_nowait()
            continue
        return
