"""`aieflow npu doctor` on made-up computers: one that is well, and each thing missing once."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Command
from npu_computers import (
    ABSENT,
    BUILT,
    EXAMINED,
    FILES,
    LOG,
    OLD_DRIVER,
    PLATFORM,
    TOOLS,
    computer,
    files,
)
from rich.text import Text

from aieflow.devices import xrt_emulator_commands
from aieflow.devices.npu import NpuDevice
from aieflow.devices.xclbin import emulated_xclbin, write_xclbin
from aieflow.devices.xrt_emulator import XrtEmulator
from aieflow.devices.xrt_emulator_moves import write_zeros
from aieflow.ops.errors import DeviceError
from aieflow.ops.npu.design import DESIGNS, GemmSize
from aieflow.ops.npu.iron_release import LLVM_AIE_VERSION, MLIR_AIE_VERSION
from aieflow.tools import npu as command
from aieflow.tools.npu_builds import Build
from aieflow.tools.npu_doctor import Check, can_run, diagnose
from aieflow.tools.npu_smoke import describe, smoke_test


def test_a_computer_where_all_is_well(tmp_path: Path) -> None:
    checks = diagnose(computer(tmp_path))
    assert {check.name: check.fact for check in checks} == {
        "NPU": "npu2 at 0000:67:00.1",
        "kernel": "Linux 6.14.0-24-generic",
        "driver": "amdxdna 0.6.0 is loaded",
        "IOMMU": "on",
        "/dev/accel": "/dev/accel/accel0",
        "firmware": "1.0.0.63",
        "locked memory": "no limit",
        "XRT": "2.19 with the amdxdna plugin",
        "pyxrt": "found by this Python (3.12)",
        "XRT sees it": "RyzenAI-npu4 at 0000:67:00.1",
        "same release": "XRT 2.19, amdxdna 2.19",
        "driver's log": "no complaint of amdxdna",
        "power mode": "Default",
        "design": str(BUILT),
        "mlir-aie": MLIR_AIE_VERSION,
        "Peano (llvm-aie)": LLVM_AIE_VERSION,
        "xclbinutil": TOOLS["xclbinutil"],
        "llvm-objcopy": TOOLS["llvm-objcopy"],
    }
    assert all(check.is_ok and check.remedy is None for check in checks)
    assert can_run(checks)


def test_an_empty_computer_says_it_of_everything(tmp_path: Path) -> None:
    nothing = dict.fromkeys(FILES)
    checks = diagnose(
        computer(
            tmp_path,
            nothing,
            examined=None,
            platform=None,
            log=None,
            has_pyxrt=False,
            versions={},
            tools={},
            built=None,
        )
    )
    assert [check.name for check in checks if check.is_ok] == ["locked memory"]
    unknown = [check for check in checks if not check.is_known]
    assert [check.name for check in unknown] == ["same release", "driver's log", "power mode"]
    assert all(check.fact.startswith("not told: ") for check in unknown)
    assert all(check.remedy for check in checks if not check.is_ok and check.is_known)
    assert not can_run(checks)


@pytest.mark.parametrize(
    ("change", "name", "fact", "remedy"),
    [
        (
            files(kernel_osrelease="5.15.0-91"),
            "kernel",
            "Linux 5.15",
            "install Linux 6.14 or later",
        ),
        (files(kernel_osrelease=None), "kernel", "not Linux", "install Linux 6.14"),
        (files(amdxdna_version=None), "driver", "is not loaded", "run `sudo modprobe amdxdna`"),
        (
            files(cmdline="quiet amd_iommu=off"),
            "IOMMU",
            "amd_iommu=off on the kernel's command line",
            "remove amd_iommu=off and reboot",
        ),
        (
            files(ivhd0_name=None),
            "IOMMU",
            "none in /sys/class/iommu",
            "enable the IOMMU in the BIOS",
        ),
        (
            {"files": {"boot/config-6.14.0-24-generic": "CONFIG_AMD_IOMMU=y\n"}},
            "IOMMU",
            "/boot/config-6.14.0-24-generic lacks CONFIG_IOMMU_SVA",
            "take a kernel that has CONFIG_IOMMU_SVA",
        ),
        (files(dev_accel_accel0=None), "/dev/accel", "no node of amdxdna", "`sudo dmesg | grep"),
        ({"is_accessible": False}, "/dev/accel", "not accessible to you", "usermod -aG render"),
        (
            files(fw_version="0.0.0.0"),
            "firmware",
            "0.0.0.0",
            "firmware, driver and XRT must be of one release",
        ),
        ({"locked_nbytes": 8 << 20}, "locked memory", "at most 8 MiB", "hard memlock unlimited"),
        (
            files(**{"version.json": '{"BUILD_VERSION": "2.13.466"}'}),
            "XRT",
            "2.13 cannot set up an NPU",
            "install XRT 2.16 or later",
        ),
        (
            files(**{"libxrt_driver_xdna.so.2": None}),
            "XRT",
            "2.19 without libxrt_driver_xdna.so: it sees no NPU",
            "install the package xrt_plugin-amdxdna",
        ),
        ({"has_pyxrt": False}, "pyxrt", "not installed", "install XRT with its amdxdna plugin"),
        (
            {
                "has_pyxrt": False,
                "files": {"opt/xilinx/xrt/python/pyxrt.cpython-310-x86_64-linux-gnu.so": ""},
            },
            "pyxrt",
            "is for Python 3.10, this is 3.12",
            "use Python 3.10 (`python3.10 -m venv`), or build XRT for 3.12",
        ),
        (
            {"examined": None},
            "XRT sees it",
            "there is no command xrt-smi",
            "run `source /opt/xilinx/xrt/setup.sh`",
        ),
        ({"examined": ABSENT}, "XRT sees it", "xrt-smi lists no device", "must be of one release"),
        (
            {"examined": OLD_DRIVER},
            "XRT sees it",
            "DRM_IOCTL_AMDXDNA_GET_INFO IOCTL failed (err=-95)",
            "the driver is older than XRT: take the kernel's newest",
        ),
        (
            {"built": None},
            "design",
            "none is built for npu2",
            "aieflow npu build --generation npu2",
        ),
        (
            {"faults": ("design.xclbin is not the file that was built", "another")},
            "design",
            "/builds/npu2/design.xclbin: design.xclbin is not the file that was built",
            "aieflow npu build --generation npu2 --anew",
        ),
    ],
)
def test_what_is_missing_is_told_with_its_remedy(
    tmp_path: Path, change: dict[str, object], name: str, fact: str, remedy: str
) -> None:
    checks = diagnose(computer(tmp_path, **change))  # type: ignore[arg-type]  # of several types
    (found,) = (check for check in checks if not check.is_ok and check.is_known)
    assert found.name == name
    assert fact in found.fact
    assert found.remedy is not None
    assert remedy in found.remedy
    assert not can_run(checks)


def test_no_npu_leaves_the_design_open(tmp_path: Path) -> None:
    change = files(**{"0000:67:00.1_device": "0x1508"})
    checks = diagnose(computer(tmp_path, **change))  # type: ignore[arg-type]
    assert [check.name for check in checks if not check.is_ok] == ["NPU", "design"]
    assert "enable NPU or IPU in the BIOS" in str(checks[0].remedy)


def test_the_driver_names_the_chip_where_the_bus_does_not(tmp_path: Path) -> None:
    nothing = {path: None for path in FILES if "pci" in path}
    named = {**nothing, "sys/class/accel/accel0/device/vbnv": "RyzenAI-npu1\n"}
    assert diagnose(computer(tmp_path, named))[0] == Check("NPU", True, "npu1 (ryzenai-npu1)")


def test_a_module_that_secure_boot_refuses_is_told(tmp_path: Path) -> None:
    changes = files(amdxdna_version=None, lockdown="none [integrity] confidentiality")
    (found,) = (c for c in diagnose(computer(tmp_path, **changes)) if not c.is_ok)  # type: ignore[arg-type]
    assert "turn Secure Boot off" in str(found.remedy)


def test_a_built_design_needs_no_toolchain(tmp_path: Path) -> None:
    checks = diagnose(computer(tmp_path, versions={"mlir_aie": "1.3.4"}, tools={}))
    names = [check.name for check in checks if not check.is_ok]
    assert names == ["mlir-aie", "Peano (llvm-aie)", "xclbinutil", "llvm-objcopy"]
    assert can_run(checks)
    by_name = {check.name: check for check in checks}
    assert by_name["mlir-aie"].fact == "mlir_aie is 1.3.4, these designs are written for 1.4.2"
    assert "pip install llvm-aie==" in str(by_name["Peano (llvm-aie)"].remedy)


def test_a_slow_power_mode_is_a_note(tmp_path: Path) -> None:
    slow = PLATFORM.replace("Default", "Powersaver")
    checks = diagnose(computer(tmp_path, platform=slow))
    (found,) = (check for check in checks if not check.is_ok)
    assert (found.name, found.fact, found.is_needed) == ("power mode", "Powersaver", False)
    assert "--pmode performance" in str(found.remedy)
    assert can_run(checks)


@pytest.mark.parametrize(
    ("lines", "fact", "remedy"),
    [
        (
            [
                "aie2_check_protocol: Incompatible firmware protocol major 7 minor 2",
                "aie2_hw_start: firmware is not alive",
            ],
            "aie2_hw_start: firmware is not alive",
            "must be of one release",
        ),
        (
            [
                "aie2_get_mgmt_chann_info: Invalid mbox magic 0x30ec000",
                "aie2_smu_exec: smu cmd 4 failed, 0xff",
            ],
            "Invalid mbox magic",
            "must be of one release",
        ),
        (
            ["Direct firmware load for amdnpu/1502_00/npu.sbin failed with error -2"],
            "npu.sbin failed",
            "install the NPU's firmware",
        ),
        (
            ["amdxdna_drm_open: SVA bind device failed, ret -95"],
            "SVA bind device failed, ret -95",
            "take `iommu=pt`, `iommu.passthrough=1`",
        ),
        (["aie2_tdr_work: TDR timeout"], "TDR timeout", "sudo modprobe -r amdxdna"),
        (["something else *ERROR* 7"], "something else", "report the line"),
    ],
)
def test_the_drivers_complaints_are_advice(
    tmp_path: Path, lines: list[str], fact: str, remedy: str
) -> None:
    log = LOG + "".join(f"[  9.1] amdxdna 0000:67:00.1: [drm] *ERROR* {each}\n" for each in lines)
    checks = diagnose(computer(tmp_path, log=log))
    (found,) = (check for check in checks if not check.is_ok)
    assert (found.name, found.is_needed, found.is_known) == ("driver's log", False, True)
    assert fact in found.fact
    assert not found.fact.startswith("[")
    assert remedy in str(found.remedy)
    assert can_run(checks)


@pytest.mark.parametrize(
    ("change", "name", "reason"),
    [
        ({"log": None}, "driver's log", "only root may read"),
        ({"log": "dmesg: read kernel buffer failed: Operation not permitted\n"}, "driver's log",
         "only root may read"),
        ({"log": "[ 1.6] Linux version 6.14\n"}, "driver's log", "no line of amdxdna"),
        ({"platform": None}, "power mode", "no command xrt-smi"),
        ({"platform": "Platform\n  Name : NPU\n"}, "power mode", "xrt-smi names none"),
        ({"examined": EXAMINED.replace("2.19.0_20250330, 7c1d", "7c1d")}, "same release",
         "the driver names no release"),
    ],
)  # fmt: skip
def test_what_cannot_be_told_is_neither_ok_nor_in_the_way(
    tmp_path: Path, change: dict[str, str | None], name: str, reason: str
) -> None:
    checks = diagnose(computer(tmp_path, **change))  # type: ignore[arg-type]  # of several types
    (found,) = (check for check in checks if not check.is_ok)
    assert (found.name, found.is_known, found.is_needed) == (name, False, False)
    assert found.fact.startswith("not told: ")
    assert reason in found.fact
    assert can_run(checks)


def test_releases_that_differ_are_a_note(tmp_path: Path) -> None:
    older = EXAMINED.replace("2.19.0_20250330", "2.18.0_20241204")
    (found,) = (c for c in diagnose(computer(tmp_path, examined=older)) if not c.is_ok)
    assert (found.name, found.fact) == ("same release", "XRT 2.19, amdxdna 2.18")
    assert (found.is_needed, found.is_known) == (False, True)
    assert "must be of one release" in str(found.remedy)


def test_lines_break_at_words_and_keep_commands_whole(tmp_path: Path) -> None:
    changes = files(dev_accel_accel0=None)
    checks = diagnose(computer(tmp_path, platform=None, log=None, **changes))  # type: ignore[arg-type]
    whole, narrow = command.lines(checks), command.lines(checks, 80)
    column = len("not ok  ") + len("Peano (llvm-aie)  ")
    for line in (part for text in narrow for part in Text.from_markup(text).plain.splitlines()):
        assert len(line) <= 80
        assert line[:8].strip() in ("ok", "not ok", "n/a", "")
    assert [" ".join(text.split()) for text in narrow] == [" ".join(text.split()) for text in whole]
    (node,) = (text for text in narrow if "/dev/accel " in text)
    assert f"\n{' ' * (column + 3)}`sudo dmesg | grep amdxdna` says why" in node
    assert sum("n/a   " in text for text in narrow) == 2


# --- the command, and the smoke test on the emulator


def emulated(folder: Path) -> NpuDevice:
    design = DESIGNS["npu2"]
    file = folder / "design.xclbin"
    write_xclbin(file, emulated_xclbin(design))
    xrt = XrtEmulator(design.generation)
    return NpuDevice(xrt, file, design, memory_nbytes=1 << 30)


SMALL = GemmSize(300, 200, 500)


def test_the_smoke_test_computes_and_measures(tmp_path: Path) -> None:
    with closing(emulated(tmp_path)) as device:
        found = smoke_test(device, DESIGNS["npu2"], SMALL)
    assert found.is_emulated
    assert found.size == (300, 200, 500)
    assert 0 < found.command_s <= found.slowest_command_s
    assert min(found.product_s, found.in_bytes_per_s, found.out_bytes_per_s) > 0
    assert "emulated: these are no figures of hardware" in describe(found)[0]


def test_the_smoke_test_sees_a_wrong_product(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(emulated(tmp_path)) as device:
        monkeypatch.setattr(xrt_emulator_commands, "execute", write_zeros)
        with pytest.raises(DeviceError, match=r"product of 300x200x500 is wrong in .* of 150000"):
            smoke_test(device, DESIGNS["npu2"], SMALL)


@pytest.fixture
def doctored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put another computer in place of this one, whose NPU is the emulator's."""
    xclbin = tmp_path / "design.xclbin"

    def set_up(**changes: object) -> None:
        made = computer(tmp_path, built=xclbin, **changes)  # type: ignore[arg-type]
        build = Build(tmp_path, "npu2", DESIGNS["npu2"], {}, 1.0, {})
        monkeypatch.setattr(command, "this_computer", lambda: made)
        monkeypatch.setattr(command, "list_builds", lambda root: (build,))
        monkeypatch.setattr(command, "load_pyxrt", lambda: None)
        monkeypatch.setattr(command, "NpuDevice", lambda xrt, file, design: emulated(tmp_path))

    return set_up


def test_the_command_ends_with_0_where_a_run_is_possible(
    doctored: Callable[..., None], aieflow: Command
) -> None:
    doctored()
    result = aieflow("npu", "doctor")
    assert result.code == 0
    assert "ok      XRT sees it       RyzenAI-npu4 at 0000:67:00.1" in result.out
    assert "product 1024x768x768: equal to numpy's" in result.out
    assert result.out.endswith("possible; measure it: `aieflow npu doctor --calibrate`\n")


def test_the_command_ends_with_1_and_says_how_many(
    doctored: Callable[..., None], aieflow: Command
) -> None:
    doctored(has_pyxrt=False, locked_nbytes=1 << 20)
    result = aieflow("npu", "doctor")
    assert result.code == 1
    assert "not ok  pyxrt             not installed\n" in result.out
    assert "-> install XRT with its amdxdna plugin" in result.out
    assert "smoke" not in result.out
    assert result.out.endswith("not possible: 2 of 18 checks are not ok\n")


def test_a_calibration_follows_where_all_is_well(
    doctored: Callable[..., None], aieflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, object]] = []
    monkeypatch.setattr(command, "calibrate", lambda **given: asked.append(given))
    doctored()
    assert aieflow("npu", "doctor", "--no-smoke", "--calibrate").code == 0
    assert asked == [{"quick": True, "device": "npu"}]
    doctored(has_pyxrt=False)
    assert aieflow("npu", "doctor", "--calibrate").code == 1
    assert aieflow("npu", "doctor", "--calibrate", "--json").code == 2
    assert len(asked) == 1


def test_a_failing_smoke_test_is_the_answer(
    doctored: Callable[..., None], aieflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctored()

    def hang(*arguments: object) -> NpuDevice:
        raise DeviceError("npu: check: still in state 3 after 5 s: the NPU hangs: reload")

    monkeypatch.setattr(command, "NpuDevice", hang)
    result = aieflow("npu", "doctor", "--json")
    assert result.code == 1
    document = json.loads(result.out)
    assert document["can_run"] is False
    assert document["failure"].startswith("npu: check: still in state 3")
    assert [check["name"] for check in document["checks"] if not check["is_ok"]] == []


def test_json_holds_every_check(doctored: Callable[..., None], aieflow: Command) -> None:
    doctored()
    document = json.loads(aieflow("npu", "doctor", "--json", "--no-smoke").out)
    assert document["can_run"] is True
    assert document["smoke_test"] is None
    assert len(document["checks"]) == 18
    keys = {"name", "is_ok", "fact", "remedy", "is_needed", "is_known"}
    assert set(document["checks"][0]) == keys
