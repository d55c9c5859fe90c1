"""Fixtures that several test files share.

`load_oracle` gives PyTorch's numbers for the case "tiny", "odd" or "124M". A test feeds
`oracle.parameters()` and `oracle.batch(step)` to aieflow (both raise if this computer draws other
numbers than PyTorch was given) and asserts on `oracle.logits_error(...)`,
`oracle.gradient_error(name, ...)` and `oracle.training(clip)`. For the 124M case these errors are
estimated from 8 random projections of each tensor: `aieflow.tools.oracle.sketch_error` says
why that is sound.

`aieflow` runs the command line in this process: `aieflow("train", "gpt2", ...)` gives exit code,
standard output and standard error. The GEMM rate of this computer, which takes a while to measure,
is made up.
"""

import gc
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import pytest

from aieflow.devices.cpu import CpuDevice
from aieflow.tools import summary
from aieflow.tools.cli import main
from aieflow.tools.oracle import Oracle, read_oracle


def pytest_collection_finish() -> None:
    """Leave what imports made out of garbage collections: it is much, and tests ask for many."""
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    """Let tests send Ctrl-C to what they start; a background job of a shell ignores it.

    A process inherits what is ignored, but not a handler.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is calibrated: the user's own profile may be of any version, or of any computer.

    A test that calibrates names a data home of its own.
    """
    home = tmp_path_factory.mktemp("data_home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("XDG_DATA_HOME", str(home))
        yield
    assert not list(home.iterdir())


@pytest.fixture(scope="session")
def load_oracle() -> Callable[[str], Oracle]:
    def load(name: str) -> Oracle:
        return read_oracle(Path(__file__).parent / "oracle", name)

    return load


class Result(NamedTuple):
    """What a command left."""

    code: int
    out: str
    err: str


class Command(Protocol):
    """The command line in this process."""

    def __call__(self, *arguments: object) -> Result: ...


def _gemm_rate(device: CpuDevice) -> float:
    return 1e9


@pytest.fixture
def aieflow(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setattr(summary, "measure_gemm_rate", _gemm_rate)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["aieflow", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        assert isinstance(code, int)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run
