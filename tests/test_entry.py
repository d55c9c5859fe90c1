"""Ctrl-C while the command starts: by a real process that signals itself at a chosen import."""

import signal
import subprocess
import sys

import pytest

# The signal goes out when the import of a module begins; `returned` tells that it was not in time.
# These tests may themselves run where Ctrl-C is ignored.
PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
{before}
class Finder:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["aieflow", "--version"]
from aieflow.tools.entry import main
main()
print("returned")
"""


def start(module: str, before: str = "") -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(module=module, before=before)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("module", ["aieflow.tools.cli", "aieflow.tools.train"])
def test_ctrl_c_during_imports_is_one_line(module: str) -> None:
    ended = start(module)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "stopped\n")


def test_ctrl_c_is_not_swallowed_by_a_module_that_catches_everything() -> None:
    """As a module does that tries whether another is there."""
    catching = "\n".join(
        (
            "import types",
            "class Module(types.ModuleType):",
            "    def __getattr__(self, name):",
            "        try:",
            "            os.kill(os.getpid(), signal.SIGINT)",
            "        except BaseException:",
            "            print('swallowed')",
            "        raise AttributeError(name)",
            "sys.modules['typer'] = Module('typer')",
        )
    )
    ended = start("never.imported", catching)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "stopped\n")


def test_a_shell_that_has_ctrl_c_ignored_is_heeded() -> None:
    """A background command is not stopped, and the command runs to its end."""
    ended = start("typer", "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("aieflow ")
    assert ended.stderr == ""


def test_ctrl_c_after_the_imports_is_the_commands_own() -> None:
    """The handler of the imports is gone: `train`, for one, ends with a checkpoint."""
    shown = "\n".join(
        (
            "import atexit",
            "atexit.register(lambda: print(signal.getsignal(signal.SIGINT).__name__))",
        )
    )
    ended = start("never.imported", shown)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == signal.default_int_handler.__name__
