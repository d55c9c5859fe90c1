"""What the commands find here: what the doctor sees, and the design built for the NPU."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from aieflow.devices.registry import cache_folder, here
from aieflow.ops.npu.iron_release import installed_version
from aieflow.tools.npu_builds import build_faults, find_build
from aieflow.tools.npu_doctor import Computer, seen_generation

COMMAND_S = 30.0  # that a command which is only asked may take


def builds_folder() -> Path:
    """Where built designs are kept: a folder of the user's, which need not exist yet."""
    return cache_folder().parent / "npu"


def this_computer() -> Computer:
    """The computer as this process sees it."""
    root = builds_folder()

    def find(generation: str) -> Path | None:
        build = find_build(root, generation)
        return None if build is None else build.xclbin

    def faults(generation: str) -> tuple[str, ...]:
        build = find_build(root, generation)
        return () if build is None else build_faults(build)

    return Computer(here(), _output, installed_version, shutil.which, find, faults)


def built_xclbin() -> Path | None:
    """The design that is built for this computer's NPU; None where there is none of either."""
    generation = seen_generation(here())
    build = None if generation is None else find_build(builds_folder(), generation)
    return None if build is None else build.xclbin


def _output(command: Sequence[str]) -> str | None:
    """What a command prints; None where there is none, or it does not end."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=COMMAND_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr
