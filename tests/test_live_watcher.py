"""A watcher takes little: it gives way to the training, and looks and is told at its own times.

Clocks are fakes, which only what waits moves on; niceness is a real process's.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, cast

import pytest
from live_run import LiveRun, live_run
from test_live_view import watched
from test_sensor_log import Script

from aieflow.gpt2.trainer import StepRecord
from aieflow.tools import live, live_feed, sensor_log
from aieflow.tools.live_link import LiveLink
from aieflow.tools.sensor_log import SensorLog

TICK_S = 0.25  # its sums are exact
LEAST_PRIORITY = 19
MOST_ASKED = 10_000


class Clock:
    """Stands for the module `time` where it is asked how late it is."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._asked = 0

    def monotonic(self) -> float:
        self._asked += 1
        assert self._asked < MOST_ASKED, "nothing waits: it would go on without end"
        return self.now_s


class Link:
    """A link to a run that says nothing and goes away at some time."""

    def __init__(self, clock: Clock, until_s: float) -> None:
        self.watched = watched()
        self.polled_s: list[float] = []
        self._clock, self._until_s = clock, until_s

    @property
    def is_open(self) -> bool:
        return self._clock.now_s < self._until_s

    def poll(self, timeout_s: float) -> bool:
        self.polled_s.append(timeout_s)
        self._clock.now_s += timeout_s
        return False

    def poll_until(self, deadline_s: float) -> None:
        self._clock.now_s = deadline_s
        self.watched.training_step += deadline_s != 2.0  # in the first second no step ended


class Keys:
    """A key that is pressed at some time."""

    def __init__(self, clock: Clock, key: str, at_s: float) -> None:
        self._clock, self._key, self._at_s = clock, key, at_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def is_pressed(self) -> bool:
        return bool(self._key) and self._clock.now_s >= self._at_s

    def pressed(self) -> list[str]:
        found = [self._key] if self.is_pressed() else []
        self._key = "" if found else self._key
        return found


class Pipe:
    """A client of the feed: when it was sent what kind of message."""

    def __init__(self, clock: Clock) -> None:
        self.told: list[tuple[float, str]] = []
        self._clock = clock

    def settimeout(self, seconds: float) -> None: ...

    def sendall(self, message: bytes) -> None:
        self.told.append((self._clock.now_s, json.loads(message)["kind"]))


class Entries:
    """A queue into which entries come at some times; waiting for them moves the clock."""

    def __init__(self, clock: Clock, entries: Sequence[tuple[float, StepRecord | None]]) -> None:
        self._clock, self._entries = clock, list(entries)

    def get(self, timeout: float) -> StepRecord | None:
        assert timeout > 0
        at_s, entry = self._entries[0]
        if at_s > self._clock.now_s + timeout:
            self._clock.now_s += timeout
            raise queue.Empty
        self._clock.now_s = max(at_s, self._clock.now_s)
        self._entries.pop(0)
        return entry


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with live_run(tmp_path) as run:
        yield run


def test_lanes_progress_is_told_at_its_own_times(
    run: LiveRun, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    seconds         0       0.25    0.5     0.75    1.0
    training steps     s   s     s s s s
    told            n  s   s n   s sns s    n       n end
    """
    record = run.step()
    monkeypatch.setattr(live_feed, "TICK_S", TICK_S)
    monkeypatch.setattr(live_feed, "time", clock)
    client = Pipe(clock)
    steps_s = (0.0625, 0.1875, 0.375, 0.4375, 0.5625, 0.625)
    entries = [*((at_s, record) for at_s in steps_s), (1.125, None)]
    run.feed._talk(client, Entries(clock, entries), ())  # type: ignore[arg-type]  # fakes
    nows_s = (0.0, 0.25, 0.5, 0.75, 1.0)
    told = [*((at_s, "step") for at_s in steps_s), *((at_s, "now") for at_s in nows_s)]
    assert client.told == [(0.0, "subject"), *sorted(told), (1.125, "end")]


def test_more_steps_than_ticks_do_not_keep_progress_from_being_told(
    run: LiveRun, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue that is never empty: still four times a second, and no more often."""
    record = run.step()
    monkeypatch.setattr(live_feed, "TICK_S", TICK_S)
    monkeypatch.setattr(live_feed, "time", clock)
    client = Pipe(clock)
    entries = [*((number / 64, record) for number in range(128)), (2.0, None)]
    run.feed._talk(client, Entries(clock, entries), ())  # type: ignore[arg-type]  # fakes
    nows_s = [at_s for at_s, kind in client.told if kind == "now"]
    assert nows_s == [number * TICK_S for number in range(8)]
    assert sum(kind == "step" for _, kind in client.told) == 128


def drawn(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, key: str = "", at_s: float = 0.0
) -> tuple[list[float], list[float]]:
    """When the screen was drawn of a run that goes away after two seconds; how long polls were."""
    times_s: list[float] = []
    link = Link(clock, 2.0)
    monkeypatch.setattr(live, "time", clock)
    monkeypatch.setattr(live, "_Keys", lambda: Keys(clock, key, at_s))
    monkeypatch.setattr(live, "_refresh", lambda *_: times_s.append(clock.now_s))
    monkeypatch.setattr(os, "nice", lambda increment: 0)  # of this process
    live._draw(cast("LiveLink", link))
    return times_s, link.polled_s


def test_the_screen_is_drawn_four_times_a_second(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    times_s, polled_s = drawn(clock, monkeypatch)
    assert times_s == pytest.approx([number / 4 for number in range(8)])  # sums of 0.05
    assert max(polled_s) <= 0.05  # so soon it looks for a key


def test_a_key_is_answered_at_once(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    times_s, _ = drawn(clock, monkeypatch, "h", 0.6)
    # drawn for the key, and as the next frame, which is begun with it
    assert times_s == pytest.approx([0, 0.25, 0.5, 0.6, 0.6, 0.85, 1.1, 1.35, 1.6, 1.85])


def test_without_a_terminal_a_line_a_second_and_none_without_a_training_step(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "time", clock)
    link = Link(clock, 5.0)
    live._print_lines(cast("LiveLink", link), live.Show(once=False, as_json=False))
    steps = [line.split("/")[0] for line in capsys.readouterr().out.splitlines()]
    assert steps == [f"training step {number}" for number in (6, 7, 8, 9)]  # at 1, 3, 4, 5 s


class Beats:
    """An event that is set after so many waits."""

    def __init__(self, waits: int) -> None:
        self.waited_s: list[float] = []
        self._waits = waits
        self._asked = 0

    def is_set(self) -> bool:
        self._asked += 1
        assert self._asked < MOST_ASKED, "nothing waits: it would go on without end"
        return len(self.waited_s) == self._waits

    def wait(self, timeout: float) -> bool:
        self.waited_s.append(timeout)
        return self.is_set()


def test_sensors_are_read_twice_a_second() -> None:
    script = Script(1.0)
    log = SensorLog(script)
    beats = Beats(5)
    log._stop = beats  # type: ignore[assignment]  # a fake
    log._run()
    assert beats.waited_s == [0.5] * 5
    assert script.reads == 5 + 1  # and once when it is left


def test_a_thread_of_sensors_that_is_left_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensor_log, "EVERY_S", 1e6)
    script = Script(1.0)
    with SensorLog(script):
        assert script.enough.wait(20)
    assert script.is_closed
    assert script.reads == 2


def report_priorities() -> None:
    """Draw a run, in a process of its own; print the niceness of its main and sensors' threads."""

    class Telling(Link):
        def poll(self, timeout_s: float) -> bool:
            found = {
                thread.name: os.getpriority(os.PRIO_PROCESS, thread.native_id or 0)
                for thread in threading.enumerate()
            }
            print(json.dumps(found), file=sys.stderr)
            return super().poll(1.0)

    link = Telling(Clock(), 1.0)
    live._draw(cast("LiveLink", link))


def test_who_looks_gives_way_to_who_trains() -> None:
    """All threads of a real process, in the end; this one's niceness is what it had at first."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if before == LEAST_PRIORITY:
        pytest.skip("nothing gives way to less than this process already does")
    told = subprocess.run(
        [sys.executable, "-c", "import test_live_watcher as t; t.report_priorities()"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), "TERM": "dumb"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(told.stderr)
    assert found == dict.fromkeys(
        ("MainThread", "aieflow sensors"), min(LEAST_PRIORITY, before + live.NICENESS)
    )
    assert live.NICENESS >= 5  # beside 0 at most a quarter of a core: Linux weighs 335 to 1024
