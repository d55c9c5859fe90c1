import os
import sys
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from aieflow.devices.cpu import CpuDevice, container_free_nbytes, usable_cores
from aieflow.devices.registry import (
    DEVICES,
    Finding,
    Surroundings,
    describe_blas,
    describe_instructions,
    here,
    open_device,
    survey,
)
from aieflow.ops.errors import InputError

VERSION = version("aieflow")


def add_file(root: Path, path: str, text: str = "") -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def add_driver(root: Path, device: str, driver: str) -> None:
    """What sysfs says of a device node: a link to its driver."""
    (root / "sys/drivers" / driver).mkdir(parents=True, exist_ok=True)
    folder = root / device / "device"
    folder.mkdir(parents=True)
    (folder / "driver").symlink_to(f"../../../../drivers/{driver}")


def surveyed(
    root: Path,
    environment: dict[str, str] | None = None,
    installed: tuple[str, ...] = (),
    is_accessible: Callable[[Path], bool] = lambda file: True,
) -> dict[str, Finding]:
    around = Surroundings(root, environment or {}, installed.__contains__, is_accessible)
    findings = survey(around)
    assert tuple(finding.device for finding in findings) == DEVICES
    return {finding.device: finding for finding in findings}


def test_an_empty_computer_has_a_cpu_and_says_what_is_missing(tmp_path: Path) -> None:
    found = surveyed(tmp_path)
    assert found["cpu"].works
    assert found["cpu"].description
    assert found["igpu"] == Finding(
        "igpu",
        False,
        f"aieflow {VERSION} has no OpenCL device yet",
        {
            "hardware": "no render node in /dev/dri",
            "OpenCL drivers": "none in /etc/OpenCL/vendors",
            "pyopencl": "not installed",
        },
    )
    assert found["npu"] == Finding(
        "npu",
        False,
        f"aieflow {VERSION} has no NPU device yet",
        {
            "hardware": "no device node in /dev/accel",
            "driver": "amdxdna is not loaded",
            "XRT": "not in /opt/xilinx/xrt",
            "pyxrt": "not installed",
        },
    )


def test_a_ryzen_laptop_shows_what_it_has(tmp_path: Path) -> None:
    add_file(
        tmp_path,
        "proc/cpuinfo",
        "processor\t: 0\nvendor_id\t: AuthenticAMD\n"
        "model name\t: AMD Ryzen AI 9 HX 370 w/ Radeon 890M\nstepping\t: 0\n",
    )
    add_file(tmp_path, "dev/dri/card1")
    add_file(tmp_path, "dev/dri/renderD128")
    add_driver(tmp_path, "sys/class/drm/renderD128", "amdgpu")
    add_file(tmp_path, "etc/OpenCL/vendors/rusticl.icd", "libRusticlOpenCL.so.1\n")
    add_file(tmp_path, "etc/OpenCL/vendors/amdocl64.icd", "libamdocl64.so\n")
    add_file(tmp_path, "etc/OpenCL/vendors/README", "no driver")
    add_file(tmp_path, "dev/accel/accel0")
    add_driver(tmp_path, "sys/class/accel/accel0", "amdxdna")
    (tmp_path / "sys/module/amdxdna").mkdir(parents=True)
    (tmp_path / "opt/xilinx/xrt").mkdir(parents=True)
    found = surveyed(tmp_path, installed=("pyopencl", "pyxrt"))
    assert found["cpu"].description == "AMD Ryzen AI 9 HX 370 w/ Radeon 890M"
    assert not found["igpu"].works
    assert found["igpu"].facts == {
        "hardware": "/dev/dri/renderD128 (amdgpu)",
        "OpenCL drivers": "amdocl64 (libamdocl64.so), rusticl (libRusticlOpenCL.so.1)",
        "pyopencl": "installed",
    }
    assert not found["npu"].works
    assert found["npu"].facts == {
        "hardware": "/dev/accel/accel0 (amdxdna)",
        "driver": "amdxdna is loaded",
        "XRT": "in /opt/xilinx/xrt",
        "pyxrt": "installed",
    }


def test_device_nodes_that_the_user_may_not_open_are_told(tmp_path: Path) -> None:
    add_file(tmp_path, "dev/dri/renderD128")
    add_file(tmp_path, "dev/dri/renderD129")
    add_driver(tmp_path, "sys/class/drm/renderD129", "i915")
    found = surveyed(tmp_path, is_accessible=lambda file: file.name == "renderD129")
    assert found["igpu"].facts["hardware"] == (
        "/dev/dri/renderD128, not accessible to you: join the group render; "
        "/dev/dri/renderD129 (i915)"
    )


@pytest.mark.parametrize("variable", ["OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"])
def test_the_environment_moves_the_folders(tmp_path: Path, variable: str) -> None:
    add_file(tmp_path, "etc/OpenCL/vendors/unused.icd", "libunused.so")
    add_file(tmp_path, "opt/icd/pocl.icd", "libpocl.so")
    (tmp_path / "srv/xrt").mkdir(parents=True)
    found = surveyed(tmp_path, {variable: "/opt/icd", "XILINX_XRT": "/srv/xrt"})
    assert found["igpu"].facts["OpenCL drivers"] == "pocl (libpocl.so)"
    assert found["npu"].facts["XRT"] == "in /srv/xrt"
    found = surveyed(tmp_path, {variable: "/nowhere"})
    assert found["igpu"].facts["OpenCL drivers"] == "none in /nowhere"


def test_this_computer() -> None:
    cpu = survey()[0]
    assert cpu.works
    assert set(cpu.facts) == {"cores", "memory", "BLAS", "numba", "instructions"}
    assert cpu.facts["cores"].startswith(f"{usable_cores()} usable, {os.cpu_count()} in")
    assert cpu.facts["numba"].startswith(version("numba"))
    around = here()
    assert around.is_installed("json")
    assert not around.is_installed("no_such_module")
    assert around.is_accessible(Path(__file__).parent)
    assert not around.is_accessible(Path(__file__) / "nothing")


@pytest.mark.parametrize(
    ("libraries", "text"),
    [
        ([], "none that can be told: matrix products may be slow"),
        ([{"user_api": "openmp", "internal_api": "openmp", "version": None}], "none that can"),
        (
            [
                {
                    "user_api": "blas",
                    "internal_api": "openblas",
                    "version": "0.3.31",
                    "architecture": "Zen",
                    "threading_layer": "pthreads",
                },
                {"user_api": "blas", "internal_api": "mkl", "version": None},
            ],
            "openblas 0.3.31 (Zen kernels, pthreads); mkl of unknown version",
        ),
    ],
)
def test_blas_is_described(libraries: list[dict[str, object]], text: str) -> None:
    assert describe_blas(libraries).startswith(text)


def test_instructions_are_those_that_matter() -> None:
    features = {"mmx": True, "avx2": True, "avx512f": False, "fma": True}
    assert describe_instructions(features) == "avx2, fma"
    assert describe_instructions({}) == "the plain set"


def test_the_cpu_opens() -> None:
    with closing(open_device("cpu", 3)) as device:
        assert isinstance(device, CpuDevice)
        assert device.lanes == ("cpu.compute.0", "cpu.compute.1", "cpu.compute.2")
    with closing(open_device("cpu")) as device:
        assert len(device.lanes) == usable_cores()


@pytest.mark.parametrize(
    ("name", "lanes", "message"),
    [
        ("gpu", None, "no device is called 'gpu': there are cpu, igpu, npu"),
        (
            "igpu",
            None,
            f"igpu does not work: aieflow {VERSION} has no OpenCL device yet: use cpu",
        ),
        ("npu", 1, f"npu does not work: aieflow {VERSION} has no NPU device yet: use cpu"),
        ("cpu", 0, "--lanes = 0: must be from 1 to "),
        ("cpu", -2, "--lanes = -2: must be from 1 to "),
        ("cpu", 10**6, "--lanes = 1000000: must be from 1 to "),
    ],
)
def test_what_does_not_open_says_why(name: str, lanes: int | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_device(name, lanes)
    assert str(caught.value).startswith(message)


def test_a_container_leaves_what_its_limit_does_not_hold_yet(tmp_path: Path) -> None:
    assert container_free_nbytes(tmp_path) == sys.maxsize
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert container_free_nbytes(tmp_path) == sys.maxsize
    (tmp_path / "memory.max").write_text("1000\n")
    assert container_free_nbytes(tmp_path) == 700
    (tmp_path / "memory.max").write_text("200\n")
    assert container_free_nbytes(tmp_path) == 0
