"""`aieflow profile --live`: shows a run while it goes on, in a terminal or as plain lines.

Everything comes over the run's socket, also where the run is one of its own: a training of the mini
preset in a child process and a folder that is deleted at the end. So looking costs the training
what it costs any other, and a picture that is slow to draw delays nothing.
"""

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
from rich.console import Console, Group
from rich.live import Live

from aieflow.ops.errors import InputError, ProfileError
from aieflow.tools.console import ERR, OUT
from aieflow.tools.live_feed import SOCKET
from aieflow.tools.live_help import help_pages
from aieflow.tools.live_link import LiveLink, Watched
from aieflow.tools.live_view import SORTS, Look, Process, one_line, picture
from aieflow.tools.machine_options import Settings
from aieflow.tools.profile_report import Figures, figures_report
from aieflow.tools.profile_subject import DeviceLine
from aieflow.tools.profile_tables import print_figures, print_lane_states, print_recording
from aieflow.tools.sensor_log import LATEST, Sensed, SensorLog, sensor_log

FRAME_S = 0.25
KEY = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
PAGE_KEYS = {  # of the help: the next page, the one before
    **dict.fromkeys((" ", "j", "\x1b[B", "\x1bOB", "\x1b[6~"), 1),
    **dict.fromkeys(("k", "\x1b[A", "\x1bOA", "\x1b[5~"), -1),
}
NICENESS = 10  # of who looks: where lanes fill all cores, the training goes before the picture
PR_SET_PDEATHSIG = 1
LINE_S = 1.0  # between plain lines
LEAST_RECORDED, LEAST_READ = 3, 2  # training steps and readings that --once waits for
ONCE_S = 120.0  # and how long at most
OPEN_S = 180.0  # until a run of its own must listen: kernels may have to be compiled
RUN_OF_ITS_OWN = ("--steps", "1000000", "--eval-every", "0", "--checkpoint-every", "0")
COMMAND = (sys.executable, "-c", "from aieflow.tools.cli import main; main()")


@dataclass(frozen=True, slots=True)
class Show:
    """How to show a run."""

    once: bool
    as_json: bool


@contextmanager
def attached(run: Path) -> Iterator[LiveLink]:
    """A link to a run that trains now; raises InputError where none does."""
    link = LiveLink(run)
    try:
        yield link
    finally:
        link.close()


@contextmanager
def mini_run(given: Settings) -> Iterator[LiveLink]:
    """A link to a run of its own, which ends with it; raises ProfileError where it does not start.

    `given` are the options of a training step.
    """
    with tempfile.TemporaryDirectory(prefix="aieflow-") as folder:
        run, log = Path(folder) / "run", Path(folder) / "log"
        command = [*COMMAND, "train", "gpt2", "--out", str(run), *RUN_OF_ITS_OWN, "--no-sample"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *_arguments(given)],
                stdin=subprocess.DEVNULL,
                preexec_fn=_end_with_parent,
                stdout=output,
                stderr=output,
            )
        try:
            with ERR.status("starting a run of its own"):
                _wait_for(run, process, log)
            with attached(run) as link:
                yield link
        finally:
            process.kill()
            process.wait()


def shown(link: LiveLink, show: Show) -> None:
    """Show the run of a link until it ends or the user leaves; raises InputError."""
    if show.once:
        _print_once(link, show)
    elif show.as_json or not OUT.is_terminal:
        _print_lines(link, show)
    else:
        _draw(link)


def _print_once(link: LiveLink, show: Show) -> None:
    deadline = time.monotonic() + ONCE_S
    watched = link.watched
    process = _Process()
    with _Sensing() as sensing:
        sensed = sensing.now(watched)
        while link.is_open and not watched.has_ended and time.monotonic() < deadline:
            is_recorded = len(watched.recordings) >= LEAST_RECORDED
            if is_recorded and sensed.readings >= LEAST_READ:
                break
            link.poll(FRAME_S)
            sensed = sensing.now(watched)
    figures = _figures(watched, process.now(watched.pid, sensed))
    if figures is None:
        fault = f"no training step was recorded within {ONCE_S:.0f} s: watch it without --once"
        if not link.is_open or watched.has_ended:
            fault = "it ended before a training step was recorded"
        raise InputError(f"--live {watched.run}: {fault}")
    if show.as_json:
        OUT.out(json.dumps(figures_report(figures), indent=2), highlight=False)
    else:
        print_figures(figures)
        print_lane_states(figures)
        print_recording(figures)


def _print_lines(link: LiveLink, show: Show) -> None:
    """One line each second; with --json one object."""
    watched = link.watched
    told, process = -1, _Process()
    with _Sensing() as sensing:
        while link.is_open and not watched.has_ended:
            link.poll_until(time.monotonic() + LINE_S)
            figures = _figures(watched, process.now(watched.pid, sensing.now(watched)))
            if figures is None or watched.training_step == told:
                continue
            told = watched.training_step
            if show.as_json:
                loss = watched.losses[-1]
                content = {"training_step": told, "loss": loss, **figures_report(figures)}
                OUT.out(json.dumps(content), highlight=False)
            else:
                OUT.out(one_line(watched, figures), highlight=False)
            sys.stdout.flush()
    ERR.print("the run has ended" if watched.has_ended else "the run went away", markup=False)


def _figures(watched: Watched, now: Process) -> Figures | None:
    figures = watched.figures()
    if figures is None:
        return None
    return replace(figures, sensed=now.sensed, resident_nbytes=now.resident_nbytes)


def _draw(link: LiveLink) -> None:
    """Full screen, four times a second, until `q` or the end of the run."""
    console = Console(highlight=False, emoji=False)
    look, process = Look(), _Process()
    os.nice(NICENESS)
    with (
        _Sensing() as sensing,
        _Keys() as keys,
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
    ):
        now = Process()
        while link.is_open and not link.watched.has_ended:
            begin = time.monotonic()
            if not look.is_paused:
                now = process.now(link.watched.pid, sensing.now(link.watched))
                _refresh(live, console, link, look, now)
            _wait(link, keys, begin + FRAME_S)
            changed = look
            for key in keys.pressed():
                if key in ("q", "\x03"):
                    return
                changed = _after(key, changed, partial(_pages, console, link, now))
            if changed != look:
                look = changed
                _refresh(live, console, link, look, now)
    ended = "has ended" if link.watched.has_ended else "went away: it was killed, or has failed"
    OUT.print(f"the run {ended}", markup=False)


def _refresh(live: Live, console: Console, link: LiveLink, look: Look, now: Process) -> None:
    size = console.size
    live.update(Group(*picture(link.watched, now, look, size.width, size.height)), refresh=True)


def _wait(link: LiveLink, keys: "_Keys", deadline_s: float) -> None:
    """Take messages until the next picture is due or a key is pressed."""
    while (left := deadline_s - time.monotonic()) > 0 and link.is_open and not keys.is_pressed():
        link.poll(min(left, FRAME_S / 5))


def _pages(console: Console, link: LiveLink, now: Process) -> int:
    """How many pages the help has on the terminal as it is now."""
    size = console.size
    return len(help_pages(link.watched, now.sensed, size.width, size.height))


def _after(key: str, look: Look, pages: Callable[[], int] = lambda: 1) -> Look:
    """What a key makes of the look; `pages` says how many the help has now."""
    if key == "p":
        return replace(look, is_paused=not look.is_paused)
    if key == "h":
        return replace(look, shows_help=not look.shows_help, help_page=0)
    if key == "s":
        return replace(look, sort=SORTS[(SORTS.index(look.sort) + 1) % len(SORTS)])
    if look.shows_help and key in PAGE_KEYS:
        count = pages()
        shown = min(look.help_page, count - 1)  # the terminal may have grown since
        return replace(look, help_page=(shown + PAGE_KEYS[key]) % count)
    return look


def keys_in(text: str) -> list[str]:
    r"""Keys in what a terminal sent: those with a name of several characters are whole.

    >>> keys_in("hj\x1b[B")
    ['h', 'j', '\x1b[B']
    """
    return KEY.findall(text)


class _Sensing:
    """The sensors of the devices that a run uses, read from when they are known; a context."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._devices: tuple[DeviceLine, ...] = ()
        self._log: SensorLog | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open.close()

    def now(self, watched: Watched) -> Sensed:
        """What they said lately."""
        subject = watched.subject
        if subject is None:
            return Sensed()
        if self._log is None or subject.devices != self._devices:
            self._open.close()  # one was lost
            self._devices = subject.devices
            self._log = self._open.enter_context(sensor_log(subject.devices, watched.pid, LATEST))
        return self._log.sensed()


class _Process:
    """What the system says of the process that trains."""

    def __init__(self) -> None:
        self._process: psutil.Process | None = None

    def now(self, pid: int | None, sensed: Sensed) -> Process:
        """As it is since the last call, with what its devices' sensors say."""
        if pid is None:
            return Process(sensed=sensed)
        try:
            if self._process is None or self._process.pid != pid:
                self._process = psutil.Process(pid)
                self._process.cpu_percent()
                return Process(None, self._process.memory_info().rss, sensed)
            return Process(self._process.cpu_percent(), self._process.memory_info().rss, sensed)
        except psutil.Error:
            return Process(sensed=sensed)


class _Keys:
    """Keys as they are pressed, where standard input is a terminal; a context manager."""

    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        if self._descriptor is not None:
            self._before = termios.tcgetattr(self._descriptor)
            tty.setcbreak(self._descriptor)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._descriptor is not None:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def is_pressed(self) -> bool:
        """True where a key is to be read."""
        if self._descriptor is None:
            return False
        return bool(select.select([self._descriptor], [], [], 0)[0])

    def pressed(self) -> list[str]:
        """The keys pressed since the last call."""
        if self._descriptor is None or not self.is_pressed():
            return []
        return keys_in(os.read(self._descriptor, 64).decode(errors="replace"))


def _wait_for(run: Path, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until a run of its own listens; raises ProfileError where it ends before."""
    deadline = time.monotonic() + OPEN_S
    while not (run / SOCKET).exists():
        with suppress(subprocess.TimeoutExpired):
            process.wait(FRAME_S / 5)
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            fault = said[-1].removeprefix("error: ") if said else signal_name(process.poll())
            raise ProfileError(f"the run to be shown did not start: {fault}")


def _end_with_parent() -> None:
    """Let the kernel end this process when the one that started it is killed (prctl(2))."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def signal_name(code: int | None) -> str:
    """What ended a process.

    >>> signal_name(-9)
    'killed by SIGKILL'
    """
    if code is None:
        return f"it did not begin to train within {OPEN_S:.0f} s"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _arguments(given: Mapping[str, object]) -> list[str]:
    """Options as they are written on a command line."""
    written: list[str] = []
    for name, value in given.items():
        if value is True:
            written.append(f"--{name.replace('_', '-')}")
        elif value is not None and value is not False:
            written += [f"--{name.replace('_', '-')}", str(value)]
    return written
