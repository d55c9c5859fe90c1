"""The NPU device over XRT's own userspace library, as far as Debian has it (package `libxrt1`).

XRT 2.13 with its `noop` driver keeps buffers, arguments, runs and states; what is computed is the
emulator's (see `noop_xrt`). This shows the order of calls, the groups, the arguments, what our code
refuses before XRT sees it, and that all is given back. It shows nothing of hardware.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from noop_xrt import CACHEABLE, HOST_ONLY, LIBRARY

DRIVER = "libxrt_noop.so.2"
SESSION = Path(__file__).with_name("noop_session.py")


def library_folders() -> Iterator[Path]:
    """Where XRT's libraries may lie."""
    yield from (Path(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(":") if each)
    yield from (Path("/usr/lib"), Path("/usr/lib64"), *Path("/usr/lib").glob("*-linux-gnu"))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a session in a process of its own printed."""
    folders = [
        each for each in library_folders() if all((each / n).exists() for n in (LIBRARY, DRIVER))
    ]
    if not folders:
        pytest.skip(f"no {LIBRARY} with {DRIVER}: `apt-get install libxrt1` on Debian 12 has them")
    home = tmp_path_factory.mktemp("xrt")
    (home / "lib").symlink_to(folders[0])
    environment = {
        **os.environ,
        "XCL_EMULATION_MODE": "noop",
        "XILINX_XRT": str(home),
        "LD_LIBRARY_PATH": str(folders[0]),
        "PYTHONPATH": str(SESSION.parent),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(SESSION), str(home)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # closed too late, XRT crashes at the end
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


def test_products_go_through_xrt(report: dict[str, Any]) -> None:
    """The session's smoke test held a product against numpy, and ran the smallest 50 times."""
    assert report["is_emulated"] is True
    assert "XRT 2.13 with the noop driver" in report["identity"]
    assert report["counts"]["xrtRunStart"] == 52  # the check at opening, the product, 50 times
    assert report["counts"]["xrtRunState"] >= 52
    assert report["counts"]["xrtRunSetArg"] == 6 * report["counts"]["xrtRunOpen"]


def test_the_device_is_opened_in_the_order_that_xrt_wants(report: dict[str, Any]) -> None:
    expected = ["xrtDeviceOpen", "xrtDeviceLoadXclbinFile", "xrtDeviceGetXclbinUUID"]
    expected += ["xrtPLKernelOpen", "xrtKernelArgGroupId", "xrtKernelArgGroupId", "xrtBOAlloc"]
    assert report["opening"][: len(expected)] == expected
    calls = [name for name in report["opening"] if name.startswith("xrtRun")]
    assert calls == ["xrtRunOpen", *["xrtRunSetArg"] * 6, "xrtRunStart", "xrtRunClose"]


def test_buffers_lie_in_the_groups_that_xrt_names(report: dict[str, Any]) -> None:
    groups = report["groups"]
    assert sorted(groups) == ["1", "3"]
    assert groups["1"] != groups["3"]  # as the test's xclbin has it: SRAM and host memory
    assert report["allocated"] == [[CACHEABLE, groups["1"]], [HOST_ONLY, groups["3"]]]


@pytest.mark.parametrize(
    ("case", "message", "calls"),
    [
        ("too_few_buffers", "has 5 arguments, a GEMM needs 6", ["xrtDeviceOpen", "xrtDeviceClose"]),
        ("wrong_group", "argument 3 in 0, argument 4 in 1", ["xrtDeviceOpen", "xrtDeviceClose"]),
        ("host_memory", "operands of its compute lane must come from `allocate`", []),
        ("too_large", "sync of 8192 bytes in: 8192 bytes at", []),
        ("write", "could not broadcast input array from shape (9,) into shape (8,)", []),
    ],
)
def test_our_code_refuses_before_xrt_sees_it(
    report: dict[str, Any], case: str, message: str, calls: list[str]
) -> None:
    assert message in report[case]["message"]
    assert [name for name in report[case]["calls"] if name != "xrtBOSize"] == calls


def test_everything_is_given_back_in_order(report: dict[str, Any]) -> None:
    counts, closing = report["counts"], report["closing"]
    assert counts["xrtBOFree"] == counts["xrtBOAlloc"] + counts.get("xrtBOSubAlloc", 0)
    assert counts["xrtRunClose"] == counts["xrtRunOpen"]
    assert counts["xrtDeviceClose"] == counts["xrtDeviceOpen"]
    order = ["xrtRunClose", "xrtBOFree", "xrtKernelClose", "xrtDeviceClose"]
    places = [order.index(name) for name in closing if name in order]
    assert places == sorted(places)
    assert closing[-2:] == ["xrtKernelClose", "xrtDeviceClose"]
