"""`aieflow profile`: its tables and JSON, and watching a training from another process."""

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from aieflow.tools import profile as profile_command
from aieflow.tools.check_resume import COMMAND, training_steps_done
from aieflow.tools.live_feed import SOCKET

TINY = ("--layers", 1, "--heads", 2, "--channels", 16, "--seq-len", 16, "--batch-size", 2)
STATES = ["executing", "waiting_for_data", "waiting_for_dependencies", "overhead", "idle"]
LIMIT_S = 60.0


class Result(Protocol):
    code: int
    out: str
    err: str


Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_command, "_rates", lambda devices: {})  # takes seconds to measure


def test_live_once_json_is_the_object_others_rely_on(aieflow: Command) -> None:
    result = aieflow("profile", "--live", "--once", "--json", *TINY, "--active", 3, "--lanes", 2)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["seconds"] > 0
    assert found["predicted_seconds"] is None
    assert "no calibration of cpu" in found["predicted_reason"]
    assert found["overlap"] is None  # nothing is copied: nothing to hide
    assert found["bytes_moved"] == 0
    assert [lane["name"] for lane in found["lanes"]] == ["cpu.compute.0", "cpu.compute.1"]
    for lane in found["lanes"]:
        assert lane["device"] == "cpu"
        assert list(lane["states"]) == STATES
        assert sum(lane["states"].values()) == pytest.approx(1, abs=1e-12)  # five roundings
        assert lane["states"]["executing"] > 0.01
        for name, reading in found["sensors"]["devices"]["cpu"].items():
            assert lane[name] == reading["value"]  # of the whole device
            assert reading["source"]
    assert (found["joules"] is None) == (found["sensors"]["package_w"]["value"] is None)
    assert found["joules_source"]


def test_the_whole_profile_as_json(aieflow: Command) -> None:
    result = aieflow("profile", "gpt2", "--json", *TINY, "--wait", 0, "--warmup", 1, "--active", 4)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["training_steps"] == 4
    assert sum(row["share"] for row in found["ops"]) == pytest.approx(1)
    matmul = next(row for row in found["ops"] if row["op"] == "matmul")
    assert matmul["device"] == "cpu"
    # one layer: 4 products forward, 8 backward; the head 1 and 2; each in one part or more
    assert matmul["count"] >= 15
    assert matmul["flops_per_s"] > 0
    assert matmul["model_error"] is None
    assert matmul["share_of_peak"] is None  # no rates
    assert sum(found["critical_path"]["seconds"].values()) < found["seconds"]
    what_if = found["what_if"]
    assert what_if["simulated"]
    assert what_if["replay_seconds"] == pytest.approx(what_if["measured_seconds"], rel=1e-3)
    assert {gain["work"] for gain in what_if["gains"]} >= {"matmul", "overhead"}
    assert all(gain["ratio"] <= 1 + 1e-6 for gain in what_if["gains"])
    assert found["diagnosis"]
    assert found["profiler"]["overhead"]["pairs"] == 4
    assert found["recording_overhead"] == found["profiler"]["overhead"]["median"]
    assert found["resident_bytes"] > found["planned_bytes"] > 0
    assert found["outliers"] == []  # of four training steps none can be told


def test_the_tables(aieflow: Command) -> None:
    result = aieflow("profile", *TINY, "--active", 2, "--lanes", 1)
    assert result.code == 0, result.err
    headings = [line.split()[0] for line in result.out.splitlines() if line.strip()]
    assert headings[:2] == ["model", "devices"]
    for heading in ("step", "predicted", "device", "lane", "path", "diagnosis", "what", "overhead"):
        assert heading in headings
    assert "n/a: no calibration of cpu" in result.out
    assert "outliers    n/a: of 2 training steps none can be told; it takes 5" in result.out
    assert "(simulated)" in result.out
    assert "\x1b" not in result.out


def test_devices_that_copy_have_lanes_and_emulation_is_named(aieflow: Command) -> None:
    pytest.importorskip("pyopencl")
    options = ("--devices", "cpu,igpu", "--active", 2)
    result = aieflow("profile", "--live", "--once", "--json", *TINY, *options)
    if "igpu" in result.err and result.code:
        pytest.skip(f"no OpenCL driver: {result.err}")
    found = json.loads(result.out)
    lanes = {lane["name"]: lane for lane in found["lanes"]}
    assert {"igpu.compute", "igpu.copy.in", "igpu.copy.out"} <= set(lanes)
    assert 0 <= found["overlap"] <= 1
    for lane in lanes.values():
        assert sum(lane["states"].values()) == pytest.approx(1, abs=1e-12)


def test_an_emulated_npu_is_called_so(aieflow: Command) -> None:
    options = ("--machine", "phoenix", "--active", 1, "--wait", 0, "--warmup", 0)
    result = aieflow("profile", "--live", "--once", "--json", *TINY, *options)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["emulated"] == ["npu"]
    assert "emulated" in found["devices"]["npu"]
    assert "no hardware's" in found["predicted_reason"]
    assert found["bytes_moved"] > 0
    text = aieflow("profile", "--live", "--once", *TINY, *options).out
    assert "emulated    npu: these are the emulation's times" in text


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("bert",), "must be gpt2; to watch a run: aieflow profile --live bert"),
        (("gpt2", "x"), "x is too much"),
        (("--live", "absent"), "--live absent: is no run's folder, and no process"),
        (("--live", "999999999"), "there is no such process"),
        (("--live", "absent", "--lanes", "2"), "--lanes would have no effect"),
        (("diff", "a"), "takes two traces"),
        (("diff", "a", "b", "--preset", "mini"), "--preset would have no effect"),
        (("--devices", "tpu"), "'tpu' is none of"),
    ],
)
def test_misuse_is_told(aieflow: Command, arguments: tuple[str, ...], fault: str) -> None:
    result = aieflow("profile", *arguments)
    assert result.code == 2
    assert fault in " ".join(result.err.split())


def test_a_process_that_trains_nothing_cannot_be_watched(aieflow: Command) -> None:
    result = aieflow("profile", "--live", os.getpid())
    assert result.code == 2
    assert f"--live {os.getpid()}: the process trains nothing now" in " ".join(result.err.split())


@contextmanager
def training(folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A training in another process, which listens."""
    options = map(str, (*TINY, "--steps", 100_000, "--eval-every", 0, "--no-sample"))
    process = subprocess.Popen(
        [*COMMAND, "train", "gpt2", "--out", str(folder), *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + LIMIT_S
        while not (folder / SOCKET).exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            select.select([], [], [], 0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def test_attached_by_its_folder_and_by_its_process(aieflow: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(run) as process:
        for target in (run, process.pid):
            result = aieflow("profile", "--live", target, "--once", "--json")
            assert result.code == 0, result.err
            found = json.loads(result.out)
            assert found["seconds"] > 0
            assert found["resident_bytes"] > found["planned_bytes"] > 0  # the training's
            for lane in found["lanes"]:
                assert sum(lane["states"].values()) == pytest.approx(1, abs=1e-12)
        assert process.poll() is None  # goes on
        before = training_steps_done(run)
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT_S)
    assert training_steps_done(run) >= before
    assert not (run / SOCKET).exists()
    result = aieflow("profile", "--live", run, "--once")
    assert result.code == 2
    assert "nothing trains there now" in " ".join(result.err.split())


@contextmanager
def terminal(*arguments: object) -> Iterator[tuple[int, int]]:
    """`aieflow profile` in a terminal of its own: its process, and the other end."""
    pid, descriptor = pty.fork()
    if pid == 0:
        resize(0, 80, 24)
        os.environ["TERM"] = "xterm-256color"
        os.execv(COMMAND[0], [*COMMAND, "profile", *map(str, arguments)])
    try:
        yield pid, descriptor
    finally:
        with_pid = os.waitpid(pid, os.WNOHANG)[0]
        if not with_pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(descriptor)


def resize(descriptor: int, columns: int, rows: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read_until(descriptor: int, wanted: str) -> str:
    """What a terminal shows until it has shown something."""
    shown = b""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        if select.select([descriptor], [], [], 0.5)[0]:
            try:
                shown += os.read(descriptor, 1 << 16)
            except OSError:  # closed
                break
        if wanted in shown.decode(errors="replace"):
            return shown.decode(errors="replace")
    raise AssertionError(f"{wanted!r} was not shown, but {shown.decode(errors='replace')[-2000:]}")


@pytest.mark.slow
def test_the_screen_takes_keys_and_sizes_and_a_killed_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with training(run) as process:
        with terminal("--live", run) as (_, screen):
            read_until(screen, "most time")
            os.write(screen, b"h")
            read_until(screen, "nothing is left for the lane")
            resize(screen, 80, 12)
            read_until(screen, "page 1 of ")
            os.write(screen, b"\x1b[B")  # the arrow down
            read_until(screen, "page 2 of ")
            os.write(screen, b"h")
            for columns, rows in ((200, 60), (30, 8), (1, 1), (120, 40)):
                resize(screen, columns, rows)
                read_until(screen, "\x1b[")
            os.write(screen, b"s")
            read_until(screen, "busiest first")
            os.write(screen, b"p")
            read_until(screen, "paused")
            os.write(screen, b"q")
            left = read_until(screen, "\x1b[?1049l")
            assert "Traceback" not in left
        assert process.poll() is None
        with terminal("--live", run) as (_, screen):
            read_until(screen, "most time")
            process.kill()
            shown = read_until(screen, "the run went away: it was killed, or has failed")
            assert "Traceback" not in shown


@pytest.mark.slow
def test_without_a_terminal_a_line_each_second(tmp_path: Path) -> None:
    command = [*COMMAND, "profile", "--live", *map(str, TINY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        process.wait(LIMIT_S)
    assert all(line.startswith("training step ") for line in lines)
    assert all("(executing/data/dependencies/overhead/idle)" in line for line in lines)
    assert process.returncode == 130
