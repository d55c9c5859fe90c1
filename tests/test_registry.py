import os
import subprocess
import sys
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest

from aieflow.devices.cpu import CpuDevice, container_free_nbytes, usable_cores
from aieflow.devices.registry import (
    cache_folder,
    describe_blas,
    describe_instructions,
    here,
    open_device,
    survey,
)
from aieflow.devices.xclbin import emulated_xclbin, write_xclbin
from aieflow.devices.xrt_emulator import XrtEmulator
from aieflow.ops.errors import InputError
from aieflow.ops.npu.design import DESIGNS


def test_looking_at_cpu_and_npu_imports_no_driver() -> None:
    script = (
        "import sys; from aieflow.devices.registry import survey\n"
        "assert [found.device for found in survey(names=('cpu', 'npu'))] == ['cpu', 'npu']\n"
        "assert not {'pyopencl', 'pyxrt'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_this_computer() -> None:
    (cpu,) = survey(names=("cpu",))
    assert cpu.works
    assert set(cpu.facts) == {
        *("cores", "memory", "large products", "BLAS", "numba", "instructions")
    }
    assert cpu.facts["cores"].startswith(f"{usable_cores()} usable, {os.cpu_count()} in")
    assert cpu.facts["numba"].startswith(version("numba"))
    around = here()
    assert around.is_installed("json")
    assert not around.is_installed("no_such_module")
    assert around.is_accessible(Path(__file__).parent)
    assert not around.is_accessible(Path(__file__) / "nothing")
    assert around.python == sys.version_info[:2]


def test_the_limit_of_locked_memory_is_the_systems() -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    assert here().locked_nbytes == (None if limit == resource.RLIM_INFINITY else limit)


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
        ("npu", 1, "npu: needs a design: `--xclbin FILE` names one; `aieflow npu build` makes"),
        ("cpu", 0, "--lanes = 0: must be from 1 to "),
        ("cpu", -2, "--lanes = -2: must be from 1 to "),
        ("cpu", 10**6, "--lanes = 1000000: must be from 1 to "),
    ],
)
def test_what_does_not_open_says_why(name: str, lanes: int | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        open_device(name, lanes)
    assert str(caught.value).startswith(message)


def test_an_igpu_without_pyopencl_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)  # an import of it fails
    for module in ("opencl", "opencl_driver"):
        monkeypatch.delitem(sys.modules, f"aieflow.devices.{module}", raising=False)
    with pytest.raises(InputError) as caught:
        open_device("igpu")
    text = str(caught.value)
    assert text.startswith("igpu does not open: pyopencl cannot be imported (")
    assert "run `pip install 'aieflow[igpu]'`; `aieflow devices` shows what" in text


@pytest.mark.opencl
def test_the_igpu_opens_and_is_surveyed(tmp_path: Path) -> None:
    pytest.importorskip("pyopencl")
    from aieflow.devices.opencl import OpenClDevice
    from aieflow.devices.opencl_driver import list_devices

    if not any(info.kind in ("GPU", "CPU") for info in list_devices()):
        pytest.skip("no OpenCL device")
    (found,) = survey(names=("igpu",))
    with closing(open_device("igpu", lanes=2, cache=tmp_path)) as device:
        assert isinstance(device, OpenClDevice)
        assert found.works
        assert found.description == device.identity
        assert found.is_automatic == (device.info.kind == "GPU")
        assert ("use" in found.facts) == (device.info.kind == "CPU")
        assert found.facts["driver"] == device.info.driver


@pytest.fixture
def xclbin(tmp_path: Path) -> Path:
    file = tmp_path / "gemm.xclbin"
    write_xclbin(file, emulated_xclbin(DESIGNS["npu2"]))
    return file


def test_an_npu_without_pyxrt_says_what_to_install(
    xclbin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import aieflow.devices.npu  # noqa: F401  # it is found before the path is taken away

    monkeypatch.delitem(sys.modules, "pyxrt", raising=False)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError) as caught:
        open_device("npu", xclbin=xclbin)
    text = str(caught.value)
    assert text.startswith("npu does not open: importing pyxrt: XRT says \"No module named 'pyxrt'")
    assert "install XRT with its amdxdna plugin" in text


def test_an_npu_with_a_file_that_is_no_design_says_which(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.xclbin"):
        open_device("npu", xclbin=tmp_path / "nothing.xclbin")


def test_an_npu_opens_with_what_python_calls_pyxrt(
    xclbin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XRT's emulator in the place of pyxrt; the device says that it is emulated."""
    emulator = XrtEmulator(DESIGNS["npu2"].generation)
    monkeypatch.setitem(sys.modules, "pyxrt", emulator)
    with closing(open_device("npu", xclbin=xclbin)) as device:
        assert device.name == "npu"
        assert "emulated" in device.identity
        assert emulator.open_contexts == 1
    assert emulator.open_contexts == 0
    monkeypatch.setitem(sys.modules, "pyxrt", XrtEmulator(DESIGNS["npu1"].generation))
    with pytest.raises(
        InputError, match=r"^npu does not open: the chip .*: `aieflow npu build --generation npu1`"
    ):
        open_device("npu", xclbin=xclbin)


@pytest.mark.skipif(sys.platform != "linux", reason="the folder has another place elsewhere")
def test_compiled_kernels_are_kept_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "aieflow" / "opencl"
    assert not any(tmp_path.iterdir())


def test_a_container_leaves_what_its_limit_does_not_hold_yet(tmp_path: Path) -> None:
    assert container_free_nbytes(tmp_path) == sys.maxsize
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert container_free_nbytes(tmp_path) == sys.maxsize
    (tmp_path / "memory.max").write_text("1000\n")
    assert container_free_nbytes(tmp_path) == 700
    (tmp_path / "memory.max").write_text("200\n")
    assert container_free_nbytes(tmp_path) == 0
