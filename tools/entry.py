"""Where the process of the command `aieflow` begins: it imports the commands, and runs them.

Importing takes a second or more, and Ctrl-C may come at any moment of it, also where a module being
imported would swallow or reword a KeyboardInterrupt. There is nothing to give back yet, so a signal
then ends the process at once, as Ctrl-C ends a command: one line, exit code 130.
"""

import gc
import os
import signal
from types import FrameType

STOPPED = b"stopped\n"
STDERR = 2  # its descriptor: a signal may come while Python's own stream is in use
OBJECTS = 50_000  # made until garbage is looked for: a plan makes millions, and next to no garbage


def main() -> None:
    """Run the command line as `aieflow.tools.cli` has it."""
    previous = signal.getsignal(signal.SIGINT)
    try:
        if previous is not signal.SIG_IGN:  # a shell's background command ignores Ctrl-C
            signal.signal(signal.SIGINT, _stop)
        from aieflow.tools.cli import main as run_command

        gc.freeze()  # what imports made stays
        gc.set_threshold(OBJECTS)
        signal.signal(signal.SIGINT, previous)
        run_command()
    except KeyboardInterrupt:  # between the two that handle it
        _stop()


def _stop(number: int = signal.SIGINT, frame: FrameType | None = None) -> None:
    os.write(STDERR, STOPPED)
    os._exit(128 + number)
