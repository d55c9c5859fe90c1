"""Folders that OpenCL's layers write to, and what to do where they cannot.

pyopencl and PoCL each keep files in the user's cache folder, and neither does without: pyopencl
raises what its database says, PoCL has no device or builds no program. Both read the environment
when they are first used.
"""

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path

from aieflow.ops.errors import DeviceError

POCL = "POCL_CACHE_DIR"
NO_PYOPENCL = "PYOPENCL_NO_CACHE"
CACHES = (("XDG_CACHE_HOME", ""), ("HOME", ".cache"))  # the user's cache folder, the first that is


def replace_unwritable(environment: MutableMapping[str, str]) -> str | None:
    """Let pyopencl and PoCL do without folders that cannot be written; the note that says so.

    PoCL is sent to a temporary folder, which is removed when the process ends. To be called before
    pyopencl is imported. Raises DeviceError where there is no temporary folder either.
    """
    tried = ((variable, folder, _fault(folder)) for variable, folder in _folders(environment))
    found = next((each for each in tried if each[2] is not None), None)
    if found is None:
        return None
    remedy, folder, fault = found
    assert fault is not None
    try:
        temporary = tempfile.mkdtemp(prefix="aieflow-opencl-")
    except OSError:
        raise DeviceError(
            f"igpu: OpenCL cannot write to {folder} ({fault.strerror}), nor is there a folder for "
            f"temporary files: set {POCL} and TMPDIR to folders that can be written",
            "igpu",
        ) from fault
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    environment[POCL] = temporary
    environment[NO_PYOPENCL] = "1"
    return (
        f"igpu: {folder} cannot be written ({fault.strerror}): kernels are compiled anew in each "
        f"process; set {remedy} to a folder that can be"
    )


def _folders(environment: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Folders that will be written to, each after the variable that moves it."""
    bases = (Path(environment[name], below) for name, below in CACHES if environment.get(name))
    base = next(bases, None)
    if base is not None and not environment.get(NO_PYOPENCL):
        yield CACHES[0][0], base / "pytools"
    if named := environment.get(POCL):
        yield POCL, Path(named)
    elif base is not None:
        yield CACHES[0][0], base / "pocl" / "kcache"


def _fault(folder: Path) -> OSError | None:
    """Why no file can be made in a folder, or no folder where it is to be."""
    try:
        there = folder
        while not there.exists():
            there = there.parent
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        return error
    return None
