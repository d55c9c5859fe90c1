"""Watching a run over its socket: who may, what he is told, and what harm nobody can do."""

import json
import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from live_run import POLLS, LiveRun, linked, live_run, until

from aieflow.gpt2.trainer import Exclusion
from aieflow.ops.errors import InputError
from aieflow.runtime.account import account
from aieflow.runtime.outline import outline, recording
from aieflow.tools import live_feed
from aieflow.tools.live_feed import GREETING, MOST_WAITING, MOST_WATCHERS, SOCKET, socket_address
from aieflow.tools.live_link import LiveLink, Watched
from aieflow.tools.profile_report import Figures, figures_report
from aieflow.tools.profile_subject import subject_from, subject_message, subject_of


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every training step that is watched is recorded."""
    monkeypatch.setattr(live_feed, "RECORDED_EVERY_S", 0.0)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[LiveRun]:
    with live_run(tmp_path) as run:
        yield run


@contextmanager
def client(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
        made.settimeout(20)
        with socket_address(folder) as address:
            made.connect(address)
        yield made


def answer(client: socket.socket, said: bytes) -> bytes:
    """The first byte of it; nothing where the client was cut off, also while he was talking."""
    try:
        client.sendall(said)
        return client.recv(1)
    except (BrokenPipeError, ConnectionResetError):
        return b""


def test_unwatched_a_run_records_and_sends_nothing(run: LiveRun, tmp_path: Path) -> None:
    assert [run.step().trace for _ in range(3)] == [None] * 3
    assert not run.feed.is_watched
    mode = (tmp_path / SOCKET).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    run.feed.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_watcher_sees_what_the_run_itself_would(run: LiveRun, tmp_path: Path) -> None:
    """The same figures from the other end of the socket, to the last bit."""
    with linked(tmp_path) as link:
        records = [run.recorded(link) for _ in range(3)]
        seen = link.watched.figures()
        assert seen is not None
        plan = run.trainer.plan
        traces = [record.trace for record in records if record.trace is not None]
        own = account(outline(plan), [recording(trace) for trace in traces])
        subject = subject_of(run.trainer)
        assert figures_report(seen) == figures_report(Figures(subject, own, seen.seconds, 0.0))
        assert link.watched.losses[-1] == records[-1].loss
        assert link.watched.training_step == records[-1].training_step
        assert (link.watched.pid, link.watched.training_steps) == (os.getpid(), 100)
        until(link, lambda: link.watched.done == {lane: len(p) for lane, p in plan.lanes.items()})
        assert "no calibration of cpu" in seen.subject.reason


def test_recorded_no_more_often_than_a_watcher_looks(
    run: LiveRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with linked(tmp_path) as link:
        monkeypatch.setattr(live_feed, "RECORDED_EVERY_S", 1e9)
        run.recorded(link)
        records = [run.step() for _ in range(4)]
        until(link, lambda: link.watched.training_step == records[-1].training_step)
        assert [record.trace for record in records] == [None] * 4
        assert len(link.watched.recordings) == 1


def test_a_step_recorded_for_a_file_is_not_sent_too_often(
    run: LiveRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with linked(tmp_path) as link:
        monkeypatch.setattr(live_feed, "RECORDED_EVERY_S", 1e9)
        record = run.recorded(link)
        run.feed.on_training_step(replace(record, training_step=50))
        until(link, lambda: link.watched.training_step == 50)
        assert len(link.watched.recordings) == 1


def test_events_are_told_also_those_that_were_missed(run: LiveRun, tmp_path: Path) -> None:
    run.feed.on_checkpoint(Path("checkpoints/step-5"))
    with linked(tmp_path) as link:
        run.feed.on_evaluation(6, 2.5)
        run.feed.on_exclusion(Exclusion(7, "npu", "it is hot"))
        until(link, lambda: len(link.watched.events) == 3)
        assert list(link.watched.events) == [
            *("checkpoint step-5", "step 6: validation loss 2.500"),
            "step 7: without npu: it is hot",
        ]
        assert not link.watched.has_ended
        run.feed.__exit__(None, None, None)
        until(link, lambda: not link.is_open)
        assert link.watched.has_ended


def test_two_watchers_and_one_is_killed(run: LiveRun, tmp_path: Path) -> None:
    with linked(tmp_path) as link:
        with linked(tmp_path) as other:
            run.recorded(link)
            until(other, lambda: len(other.watched.recordings) == 1)
            assert other.watched.recordings == link.watched.recordings
        other.close()  # without a word, as by SIGKILL
        run.recorded(link)
        run.recorded(link)
        assert link.is_open
    settle(run)


def settle(run: LiveRun) -> None:
    """Train on until nobody is thought to watch."""
    for _ in range(POLLS):
        run.step()
        if not run.feed.is_watched:
            return
        threading.Event().wait(0.02)
    raise AssertionError("a watcher that left is still counted")


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100_000, b"", GREETING[:5]])
def test_a_garbage_client_does_no_harm(
    run: LiveRun, tmp_path: Path, said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """He is told nothing and cut off; who watches beside him goes on."""
    monkeypatch.setattr(live_feed, "GREETING_S", 0.2)
    with client(tmp_path) as garbage, linked(tmp_path) as link:
        assert answer(garbage, said) == b""
        run.recorded(link)


def test_a_watcher_that_does_not_read_stops_nobody(run: LiveRun, tmp_path: Path) -> None:
    """His messages are dropped once his queue is full; the loop waits for none of it."""
    with client(tmp_path) as lazy, linked(tmp_path) as link:
        lazy.sendall(GREETING)
        record = run.recorded(link)
        for _ in range(40 * MOST_WAITING):
            run.feed.on_training_step(replace(record, trace=None))
        run.recorded(link)


def test_only_so_many_watch(run: LiveRun, tmp_path: Path) -> None:
    links = [LiveLink(tmp_path) for _ in range(MOST_WATCHERS)]
    for link in links:
        until(link, lambda link=link: link.watched.subject is not None)  # type: ignore[misc]
    with client(tmp_path) as one_more:
        assert answer(one_more, GREETING) == b""
    for link in links:
        link.close()


def test_another_user_is_refused(
    run: LiveRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_feed, "peer_user", lambda client: os.geteuid() + 1)
    with client(tmp_path) as other:
        assert answer(other, GREETING) == b""
    assert not run.feed.is_watched


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_the_system_refuses_another_user() -> None:
    script = (
        "import os, socket, sys; os.setuid(int(sys.argv[2]));"
        "socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        with live_run(Path(folder)):
            command = [sys.executable, "-S", "-c", script, f"{folder}/{SOCKET}"]
            refused = subprocess.run([*command, "65534"], capture_output=True, check=False)
            assert b"PermissionError" in refused.stderr
            subprocess.run([*command, "0"], check=True)  # by this one


def test_a_folder_with_a_long_name_can_be_watched(tmp_path: Path) -> None:
    """The system's addresses of sockets have 107 characters at most."""
    folder = tmp_path / ("a" * 120) / ("b" * 120)
    folder.mkdir(parents=True)
    with live_run(folder) as run, linked(folder) as link:
        run.recorded(link)


def test_the_socket_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead, socket_address(tmp_path) as address:
        dead.bind(address)
    with pytest.raises(InputError, match="nothing trains there now"):
        LiveLink(tmp_path)
    with live_run(tmp_path) as run, linked(tmp_path) as link:
        run.recorded(link)


def test_where_no_socket_can_be_made_training_goes_on(tmp_path: Path) -> None:
    with live_run(tmp_path / "absent") as run:
        assert run.feed.fault is not None
        assert run.step().trace is None


@contextmanager
def impostor(folder: Path, answer: bytes) -> Iterator[None]:
    """Something that listens where a run should."""
    with socket.socket(socket.AF_UNIX) as listener:
        with socket_address(folder) as address:
            listener.bind(address)
        listener.listen()

        def serve() -> None:
            made, _ = listener.accept()
            with made:
                made.recv(100)
                made.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        *(b"hello\n", b"[]\n", b'{"kind": "other"}\n', b'{"kind": "subject"}\n', b'{"kind": 3}\n'),
        *(b'{"kind": "step", "training_step": "x"}\n', b'{"kind": "now", "done": 3}\n'),
    ],
)
def test_an_answer_that_is_no_trainings_is_an_error(tmp_path: Path, answer: bytes) -> None:
    with impostor(tmp_path, answer):
        link = LiveLink(tmp_path)
        with pytest.raises(InputError, match="no training of this version"):
            until(link, lambda: False)
        link.close()


def test_a_subject_survives_being_sent(run: LiveRun) -> None:
    subject = subject_of(run.trainer)
    message = json.loads(json.dumps(subject_message(subject)))
    assert subject_message(subject_from(message)) == subject_message(subject)
    assert subject_from(message).outline == subject.outline


def test_another_plan_is_told_before_its_first_recording(run: LiveRun, tmp_path: Path) -> None:
    """A recording of the old plan would not fit; the watcher forgets what he has of it."""
    with linked(tmp_path) as link:
        run.recorded(link)
        run.trainer.close()
        run.trainer._opened.clear()
        run.trainer._open()  # as after a device has failed
        run.step()
        until(link, lambda: list(link.watched.events) == ["step 1: another plan"])
        until(link, lambda: link.watched.training_step == 2)
        assert len(link.watched.recordings) == 1


def test_a_recording_of_another_plan_is_refused(run: LiveRun, tmp_path: Path) -> None:
    subject = subject_message(subject_of(run.trainer))
    step = {"training_step": 1, "loss": 1.0, "seconds": 1.0, "tokens_per_s": 1.0}
    times = {"copied_nbytes": 0, "wall_ns": 5, "starts_ns": [1], "ends_ns": [2]}
    watched = Watched(tmp_path)
    for said in ({}, {"kind": "subject", "pid": 1, "training_steps": 3, **subject}):
        if said:
            watched.take(said)
        with pytest.raises(ValueError, match="another plan"):
            watched.take({"kind": "step", **step, **times})


def test_bytes_moved_are_those_of_a_training_step(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    step = {"kind": "step", "loss": 1.0, "seconds": 1.0, "tokens_per_s": 1.0}
    for number, copied in ((3, 1000), (4, 1600), (7, 2800)):
        watched.take({**step, "training_step": number, "copied_nbytes": copied})
    assert watched.moved_nbytes == (2800 - 1000) / (7 - 3)
