"""Folders that pyopencl and PoCL write to: what happens where they cannot."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from aieflow.devices.opencl_folders import NO_PYOPENCL, POCL, replace_unwritable
from aieflow.ops.errors import DeviceError

NOWHERE = "/dev/null/cache"  # below a file no folder can be made, whoever asks


def test_folders_that_can_be_written_are_left_alone(tmp_path: Path) -> None:
    for environment in (
        {"XDG_CACHE_HOME": str(tmp_path / "not" / "yet"), "HOME": NOWHERE},
        {"HOME": str(tmp_path)},
        {"XDG_CACHE_HOME": NOWHERE, NO_PYOPENCL: "1", POCL: str(tmp_path)},
        {},
    ):
        before = dict(environment)
        assert replace_unwritable(environment) is None
        assert environment == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("environment", "folder", "remedy"),
    [
        ({"XDG_CACHE_HOME": NOWHERE}, f"{NOWHERE}/pytools", "XDG_CACHE_HOME"),
        ({"HOME": NOWHERE}, f"{NOWHERE}/.cache/pytools", "XDG_CACHE_HOME"),
        (
            {"XDG_CACHE_HOME": NOWHERE, NO_PYOPENCL: "1"},
            f"{NOWHERE}/pocl/kcache",
            "XDG_CACHE_HOME",
        ),
        ({POCL: NOWHERE}, NOWHERE, POCL),
    ],
)
def test_one_note_names_folder_and_remedy(
    environment: dict[str, str], folder: str, remedy: str
) -> None:
    note = replace_unwritable(environment)
    assert note is not None
    assert note.startswith(f"igpu: {folder} cannot be written (Not a directory): ")
    assert f"set {remedy} to a folder" in note
    assert Path(environment[POCL]).is_dir()
    assert environment[NO_PYOPENCL] == "1"
    assert replace_unwritable(environment) is None  # once


def test_without_a_folder_for_temporary_files_the_error_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", NOWHERE)
    with pytest.raises(DeviceError, match=f"{NOWHERE}/pytools.*set {POCL} and TMPDIR") as caught:
        replace_unwritable({"XDG_CACHE_HOME": NOWHERE})
    assert caught.value.device == "igpu"


PROGRAM = """
import numpy as np
from aieflow.devices.registry import open_device
from aieflow.ops import pointwise
from aieflow.ops.builder import Builder
from aieflow.ops.kernel import Call
from aieflow.ops.spec import Spec

device = open_device("igpu")
print(*device.notes, sep="\\n")
builder = Builder("sum")
x, y = (builder.state(name, Spec((64,)), "parameter") for name in "xy")
builder.apply(pointwise.ADD, [x, y], ["out"])
memory = device.allocate(3 * 256).data
x, y, out = (memory[i : i + 256].view(np.float32) for i in (0, 256, 512))
x[:], y[:] = 2, 3
call = Call((x, y), (out,), {}, np.empty(0, np.uint8))
for each in (
    lambda: device.transfer(memory, "in"),
    device.bind(builder.nodes[0], call),
    device.finish("igpu.compute"),
    lambda: device.transfer(memory, "out"),
):
    each()
print(set(out.tolist()))
device.close()
"""


@pytest.mark.opencl
def test_an_igpu_works_without_a_folder_of_the_users(tmp_path: Path) -> None:
    """A process of its own, since OpenCL's layers read the environment once."""
    pytest.importorskip("pyopencl", reason="pyopencl is not installed")
    from aieflow.devices.opencl_driver import list_devices

    if not list_devices():
        pytest.skip("no OpenCL device here")
    environment = {
        key: value for key, value in os.environ.items() if key not in (POCL, NO_PYOPENCL)
    }
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment | {"XDG_CACHE_HOME": NOWHERE, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.splitlines() == [
        f"igpu: {NOWHERE}/pytools cannot be written (Not a directory): kernels are compiled anew "
        "in each process; set XDG_CACHE_HOME to a folder that can be",
        "{5.0}",
    ]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
