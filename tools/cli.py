"""The command `aieflow`: registers the commands and turns errors into messages and exit codes.

Exit code 0: fine; 1: failed; 2: misused (the message says where and how to mend it); 130: stopped
by Ctrl-C.
"""

import os
import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated

import typer
from rich.markup import escape

from aieflow.ops.errors import AieflowError, InputError
from aieflow.tools.bench import bench
from aieflow.tools.calibrate import calibrate
from aieflow.tools.console import ERR, OUT
from aieflow.tools.devices import devices
from aieflow.tools.generate import generate
from aieflow.tools.npu import npu
from aieflow.tools.plan import plan
from aieflow.tools.profile import profile
from aieflow.tools.report import report
from aieflow.tools.simulate import simulate_command
from aieflow.tools.train import train

app = typer.Typer(
    name="aieflow",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Trains GPT-2 on every processor of one computer, from an explicit op graph.",
)
app.command("train")(train)
app.command("generate")(generate)
app.command("plan")(plan)
app.command("simulate")(simulate_command)
app.command("calibrate")(calibrate)
app.command("profile")(profile)
app.command("report")(report)
app.command("devices")(devices)
app.command("bench")(bench)
app.add_typer(npu, name="npu")


def _print_version(wanted: bool) -> None:
    if wanted:
        OUT.print(f"aieflow {version('aieflow')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Trains GPT-2 on every processor of one computer, from an explicit op graph."""


def main() -> None:
    """Run the command line; every error that aieflow raises on purpose ends in one message."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a text by the model may hold any character
            stream.reconfigure(errors="replace")
    try:
        app()
    except InputError as error:
        ERR.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(2)
    except AieflowError as error:
        ERR.print(f"[bold red]error:[/] {escape(str(error))}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe went away
        _silence_output()
        sys.exit(1)
    except OSError as error:  # for instance standard output on a full disk
        _silence_output()
        name = f"{error.filename}: " if error.filename else ""
        ERR.print(f"[bold red]error:[/] {escape(name)}{escape(error.strerror or str(error))}")
        sys.exit(1)


def _silence_output() -> None:
    """Drop what is still to be printed, so that the end of the process does not fail on it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
