"""What `aieflow devices` says of computers that tests make up, below a folder of their own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from aieflow.devices.registry import DEVICES, survey
from aieflow.devices.surroundings import Finding, OpenClDescription, Surroundings
from aieflow.ops.errors import DeviceError

JOIN = "join the group render (`sudo usermod -aG render $USER`) and log in again"
ANY_PACKAGE = "mesa-opencl-icd, rocm-opencl-runtime or what your GPU's maker offers"
INSTALL_ANY = (
    f"for a GPU install {ANY_PACKAGE}; to try it on the CPU pocl-opencl-icd (names of Debian and "
    "Ubuntu)"
)
INSTALL_AMD = "install mesa-opencl-icd or rocm-opencl-runtime (names of Debian and Ubuntu)"
STAND_IN = "OpenCL on the CPU: a stand-in, chosen only by name (`--devices igpu`)"


@dataclass(frozen=True, slots=True)
class Described:
    """What an OpenCL driver would say of a device."""

    identity: str
    platform: str
    name: str
    driver: str
    version: str
    kind: str
    nbytes: int
    is_unified: bool


RADEON = Described(
    *("Radeon 890M by rusticl 25.2", "rusticl", "Radeon 890M", "25.2", "OpenCL 3.0", "GPU"),
    *(16 << 30, True),
)
POCL = Described(
    *("PoCL 3.0 on Some CPU (OpenCL on the CPU)", "PoCL", "cpu", "3.0", "OpenCL 3.0", "CPU"),
    *(8 << 30, True),
)
CARD = Described(
    *("Big Card by AMD 3.6", "AMD", "Big Card", "3.6", "OpenCL 2.0", "GPU", 12 << 30, False),
)


def no_opencl() -> Sequence[OpenClDescription]:
    return ()


def never_asked() -> Sequence[OpenClDescription]:
    raise AssertionError("OpenCL was asked though nobody wanted the iGPU, or pyopencl is missing")


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


def add_npu(root: Path) -> None:
    """An NPU with its driver."""
    add_file(root, "dev/accel/accel0")
    add_driver(root, "sys/class/accel/accel0", "amdxdna")
    (root / "sys/module/amdxdna").mkdir(parents=True)


def add_gpu(root: Path, driver: str = "amdgpu") -> None:
    add_file(root, "dev/dri/renderD128")
    add_driver(root, "sys/class/drm/renderD128", driver)


def surveyed(
    root: Path,
    environment: dict[str, str] | None = None,
    installed: tuple[str, ...] = (),
    is_accessible: Callable[[Path], bool] = lambda file: True,
    opencl: Callable[[], Sequence[OpenClDescription]] = no_opencl,
    python: tuple[int, int] = (3, 12),
    locked_nbytes: int | None = None,
) -> dict[str, Finding]:
    around = Surroundings(
        root,
        environment or {},
        installed.__contains__,
        is_accessible,
        opencl,
        python,
        locked_nbytes,
    )
    findings = survey(around)
    assert tuple(finding.device for finding in findings) == DEVICES
    return {finding.device: finding for finding in findings}


def test_an_empty_computer_has_a_cpu_and_says_what_is_missing(tmp_path: Path) -> None:
    found = surveyed(tmp_path, opencl=never_asked)
    assert found["cpu"].works
    assert found["cpu"].is_automatic
    assert found["cpu"].description
    assert found["igpu"] == Finding(
        "igpu",
        False,
        "pyopencl is not installed: run `pip install 'aieflow[igpu]'`",
        {
            "hardware": "no render node in /dev/dri",
            "OpenCL drivers": f"none in /etc/OpenCL/vendors: {INSTALL_ANY}",
            "pyopencl": "not installed",
        },
    )
    assert found["npu"] == Finding(
        "npu",
        False,
        "no NPU is seen, no amdxdna driver, no XRT, no pyxrt",
        {
            "hardware": "no NPU in /dev/accel: it takes a Ryzen AI processor, the NPU (IPU) "
            "enabled in the BIOS and the driver loaded",
            "driver": "amdxdna is not loaded: run `sudo modprobe amdxdna`; it comes with Linux "
            "6.14 and later, and with XRT's amdxdna plugin",
            "XRT": "not in /opt/xilinx/xrt: install XRT with its amdxdna plugin, or set "
            "XILINX_XRT to its folder",
            "pyxrt": "not installed: install XRT with its amdxdna plugin; pyxrt comes with it, "
            "not from PyPI",
            "locked memory": "no limit",
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
    add_gpu(tmp_path)
    add_file(tmp_path, "etc/OpenCL/vendors/rusticl.icd", "libRusticlOpenCL.so.1\n")
    add_file(tmp_path, "etc/OpenCL/vendors/amdocl64.icd", "libamdocl64.so\n")
    add_file(tmp_path, "etc/OpenCL/vendors/README", "no driver")
    add_npu(tmp_path)
    add_file(tmp_path, "sys/class/accel/accel0/device/vbnv", "RyzenAI-npu4\n")
    add_file(tmp_path, "sys/class/accel/accel0/device/fw_version", "1.0.0.63\n")
    (tmp_path / "opt/xilinx/xrt").mkdir(parents=True)
    found = surveyed(
        tmp_path,
        installed=("pyopencl", "pyxrt"),
        opencl=lambda: (RADEON, CARD, POCL),
        locked_nbytes=2 << 30,
    )
    assert found["cpu"].description == "AMD Ryzen AI 9 HX 370 w/ Radeon 890M"
    facts = {
        "platform": "rusticl",
        "driver": "25.2",
        "version": "OpenCL 3.0",
        "type": "GPU",
        "memory": "16.0 GiB, unified with the computer's",
        "hardware": "/dev/dri/renderD128 (amdgpu)",
        "OpenCL drivers": "amdocl64 (libamdocl64.so), rusticl (libRusticlOpenCL.so.1)",
        "pyopencl": "installed",
        "also found": "Big Card by AMD 3.6 (GPU, OpenCL 2.0, 12.0 GiB, the device's own); "
        "PoCL 3.0 on Some CPU (OpenCL on the CPU) (CPU, OpenCL 3.0, 8.0 GiB, unified with the "
        "computer's)",
    }
    assert found["igpu"] == Finding("igpu", True, RADEON.identity, facts, is_automatic=True)
    facts = {
        "hardware": "/dev/accel/accel0 (amdxdna)",
        "driver": "amdxdna is loaded",
        "XRT": "in /opt/xilinx/xrt",
        "pyxrt": "installed",
        "locked memory": "2,048 MiB",
        "use": "chosen only by name (`--devices npu`), with a design: `aieflow npu build` makes it",
    }
    assert found["npu"] == Finding("npu", True, "RyzenAI-npu4, firmware 1.0.0.63", facts)


def test_a_cpu_under_opencl_is_a_stand_in_that_only_its_name_chooses(tmp_path: Path) -> None:
    found = surveyed(tmp_path, installed=("pyopencl",), opencl=lambda: (POCL,))["igpu"]
    assert found.works
    assert not found.is_automatic
    assert found.description == "PoCL 3.0 on Some CPU (OpenCL on the CPU)"
    assert found.facts["use"] == STAND_IN
    assert found.facts["type"] == "CPU"
    assert found.facts["OpenCL drivers"] == (
        "none in /etc/OpenCL/vendors; what is used came otherwise, as with pip"
    )
    assert "GPU" not in found.facts
    # on a laptop whose GPU has no driver it is said why the GPU is not used
    add_gpu(tmp_path)
    found = surveyed(tmp_path, installed=("pyopencl",), opencl=lambda: (POCL,))["igpu"]
    assert found.facts["use"] == STAND_IN
    assert found.facts["GPU"] == f"no OpenCL driver is installed: {INSTALL_AMD}"


@pytest.mark.parametrize(
    ("driver", "icd", "environment", "reason"),
    [
        ("amdgpu", None, {}, f"no OpenCL driver is installed: {INSTALL_AMD}"),
        (
            "xe",
            None,
            {},
            "no OpenCL driver is installed: install intel-opencl-icd (names of Debian and Ubuntu)",
        ),
        (
            "panfrost",
            None,
            {},
            f"no OpenCL driver is installed: install {ANY_PACKAGE} (names of Debian and Ubuntu)",
        ),
        (None, None, {}, f"no OpenCL driver is installed: {INSTALL_ANY}"),
        (
            "amdgpu",
            "rusticl",
            {},
            "the OpenCL driver rusticl shows no GPU unless told to: set RUSTICL_ENABLE=radeonsi",
        ),
        (
            "amdgpu",
            "rusticl",
            {"RUSTICL_ENABLE": "radeonsi"},
            f"the OpenCL driver shows no GPU (rusticl): {INSTALL_AMD}",
        ),
        (
            "amdgpu",
            "pocl",
            {},
            f"the OpenCL driver shows no GPU (pocl): {INSTALL_AMD}",
        ),
    ],
)
def test_a_computer_without_an_opencl_device_says_what_to_install(
    tmp_path: Path, driver: str | None, icd: str | None, environment: dict[str, str], reason: str
) -> None:
    if driver is not None:
        add_gpu(tmp_path, driver)
    if icd is not None:
        add_file(tmp_path, f"etc/OpenCL/vendors/{icd}.icd", f"lib{icd}.so")
    found = surveyed(tmp_path, environment, ("pyopencl",))["igpu"]
    assert (found.works, found.is_automatic, found.description) == (False, False, reason)
    if icd is None:  # the remedy is said once
        assert found.facts["OpenCL drivers"] == "none in /etc/OpenCL/vendors"


def test_a_device_that_does_not_open_gives_the_drivers_words(tmp_path: Path) -> None:
    def broken() -> Sequence[OpenClDescription]:
        raise DeviceError("igpu: opening Radeon: OUT_OF_HOST_MEMORY", "igpu")

    found = surveyed(tmp_path, installed=("pyopencl",), opencl=broken)["igpu"]
    assert (found.works, found.description) == (False, "opening Radeon: OUT_OF_HOST_MEMORY")


def test_device_nodes_that_the_user_may_not_open_are_told(tmp_path: Path) -> None:
    add_gpu(tmp_path)
    add_file(tmp_path, "dev/dri/renderD129")
    found = surveyed(
        tmp_path, installed=("pyopencl",), is_accessible=lambda file: file.name == "renderD128"
    )["igpu"]
    assert found.description == f"no OpenCL driver is installed: {INSTALL_AMD}"
    assert found.facts["hardware"] == (
        f"/dev/dri/renderD128 (amdgpu); /dev/dri/renderD129, not accessible to you: {JOIN}"
    )
    add_npu(tmp_path)
    found_all = surveyed(
        tmp_path, {"RUSTICL_ENABLE": "x"}, ("pyopencl",), is_accessible=lambda file: False
    )
    assert found_all["igpu"].description == (
        f"you may not open /dev/dri/renderD128, /dev/dri/renderD129: {JOIN}"
    )
    assert found_all["npu"].description.startswith("you may not open /dev/accel/accel0, no XRT")
    assert found_all["npu"].facts["hardware"] == (
        f"/dev/accel/accel0 (amdxdna), not accessible to you: {JOIN}"
    )


@pytest.mark.parametrize(
    ("file", "fault", "fact"),
    [
        (
            "opt/xilinx/xrt/python/pyxrt.cpython-310-x86_64-linux-gnu.so",
            "pyxrt is for Python 3.10",
            "/opt/xilinx/xrt/python/pyxrt.cpython-310-x86_64-linux-gnu.so is for Python 3.10, "
            "this is 3.12: use Python 3.10 (`python3.10 -m venv`), or build XRT for 3.12",
        ),
        (
            "opt/xilinx/xrt/python/pyxrt.cp313-win_amd64.pyd",
            "pyxrt is for Python 3.13",
            "/opt/xilinx/xrt/python/pyxrt.cp313-win_amd64.pyd is for Python 3.13, this is 3.12: "
            "use Python 3.13 (`python3.13 -m venv`), or build XRT for 3.12",
        ),
        (
            "opt/xilinx/xrt/python/pyxrt.cpython-312-x86_64-linux-gnu.so",
            "pyxrt is not on Python's path",
            "in /opt/xilinx/xrt/python, where this Python does not look: run "
            "`source /opt/xilinx/xrt/setup.sh` in this shell",
        ),
        (
            "usr/lib/python3/dist-packages/pyxrt.cpython-312-x86_64-linux-gnu.so",
            "pyxrt is not on Python's path",
            "in /usr/lib/python3/dist-packages, where this Python does not look: make the virtual "
            "environment with --system-site-packages",
        ),
        (
            "usr/lib/python3.14/site-packages/pyxrt.so",
            "pyxrt is not on Python's path",
            "in /usr/lib/python3.14/site-packages, where this Python does not look: make the "
            "virtual environment with --system-site-packages",
        ),
        (
            "opt/xilinx/xrt/python/pyxrt.pyi",
            "no pyxrt",
            "not installed: install XRT with its amdxdna plugin; pyxrt comes with it, not from "
            "PyPI",
        ),
    ],
)
def test_pyxrt_of_another_python_is_told(tmp_path: Path, file: str, fault: str, fact: str) -> None:
    add_npu(tmp_path)
    (tmp_path / "opt/xilinx/xrt/python").mkdir(parents=True)
    add_file(tmp_path, file)
    found = surveyed(tmp_path)["npu"]
    assert (found.works, found.description, found.facts["pyxrt"]) == (False, fault, fact)


def test_of_several_pyxrt_the_one_for_this_python_counts(tmp_path: Path) -> None:
    for tag in (310, 311, 312):
        add_file(tmp_path, f"opt/xilinx/xrt/python/pyxrt.cpython-{tag}-x86_64-linux-gnu.so")
    assert "setup.sh" in surveyed(tmp_path, python=(3, 12))["npu"].facts["pyxrt"]
    assert (
        "is for Python 3.10, this is 3.14"
        in (surveyed(tmp_path, python=(3, 14))["npu"].facts["pyxrt"])
    )


def test_another_makers_accelerator_is_no_npu(tmp_path: Path) -> None:
    add_file(tmp_path, "dev/accel/accel0")
    add_driver(tmp_path, "sys/class/accel/accel0", "intel_vpu")
    found = surveyed(tmp_path)["npu"]
    assert found.description.startswith("no NPU is seen")
    assert found.facts["hardware"].startswith(
        "no NPU in /dev/accel, only /dev/accel/accel0 (intel_vpu): it takes a Ryzen AI processor"
    )


def test_xrt_of_a_distribution_is_found_by_its_library(tmp_path: Path) -> None:
    add_npu(tmp_path)
    add_file(tmp_path, "usr/lib/x86_64-linux-gnu/libxrt_coreutil.so.2")
    found = surveyed(tmp_path, installed=("pyxrt",), locked_nbytes=8 << 20)["npu"]
    assert found.facts["XRT"] == "in /usr/lib/x86_64-linux-gnu"
    assert found.works
    assert not found.is_automatic
    assert found.description == "an NPU of AMD"
    assert found.facts["locked memory"] == (
        "8 MiB at most, little for buffers: raise it in /etc/security/limits.conf"
    )


@pytest.mark.parametrize("variable", ["OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"])
def test_the_environment_moves_the_folders(tmp_path: Path, variable: str) -> None:
    add_file(tmp_path, "etc/OpenCL/vendors/unused.icd", "libunused.so")
    add_file(tmp_path, "opt/icd/pocl.icd", "libpocl.so")
    add_file(tmp_path, "srv/xrt/python/pyxrt.cpython-312-x86_64-linux-gnu.so")
    found = surveyed(tmp_path, {variable: "/opt/icd", "XILINX_XRT": "/srv/xrt"})
    assert found["igpu"].facts["OpenCL drivers"] == "pocl (libpocl.so)"
    assert found["npu"].facts["XRT"] == "in /srv/xrt"
    assert "`source /srv/xrt/setup.sh`" in found["npu"].facts["pyxrt"]
    found = surveyed(tmp_path, {variable: "/nowhere"})
    assert found["igpu"].facts["OpenCL drivers"] == f"none in /nowhere: {INSTALL_ANY}"


def test_only_the_igpu_asks_opencl(tmp_path: Path) -> None:
    around = Surroundings(
        tmp_path, {}, lambda module: True, lambda file: True, never_asked, (3, 12), None
    )
    assert [found.device for found in survey(around, ("npu", "cpu"))] == ["npu", "cpu"]
    with pytest.raises(AssertionError, match="nobody wanted"):
        survey(around, ("igpu",))
