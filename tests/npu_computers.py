"""Computers with an NPU that tests make up: one on which all is well, and what is changed there.

Outputs of `xrt-smi` and lines of the driver are as users have posted them to issue lists.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from aieflow.devices.surroundings import OpenClDescription, Surroundings
from aieflow.ops.npu.iron_release import LLVM_AIE_VERSION, MLIR_AIE_VERSION
from aieflow.tools.npu_doctor import Computer

EXAMINED = """System Configuration
  OS Name              : Linux
  Release              : 6.11.0-21-generic
  Machine              : x86_64
  Memory               : 15597 MB
  Distribution         : Ubuntu 24.04.2 LTS

XRT
  Version              : 2.19.0
  Branch               : HEAD
  Hash Date            : 2025-03-30 09:47:56
  amdxdna              : 2.19.0_20250330, 7c1d273ef9946848a9f236f1216cfda10d9465cb
  NPU Firmware Version : 1.0.0.63

Device(s) Present
|BDF             |Name          |
|----------------|--------------|
|[0000:67:00.1]  |RyzenAI-npu4  |
"""
PLATFORM = """
---------------------
[0000:67:00.1] : RyzenAI-npu4
---------------------
Platform
  Name                   : NPU
  Power Mode             : Default
"""
ABSENT = EXAMINED[: EXAMINED.index("Device(s) Present")] + "Device(s) Present\n  0 devices found\n"
OLD_DRIVER = ABSENT + "ERROR: DRM_IOCTL_AMDXDNA_GET_INFO IOCTL failed (err=-95): Not supported\n"
LOG = """[    1.63] Linux version 6.14.0-24-generic
[    5.51] amdxdna 0000:67:00.1: enabling device (0000 -> 0002)
[    5.62] [drm] Initialized amdxdna_accel_driver 0.6.0 for 0000:67:00.1 on minor 0
"""
FILES = {
    "proc/sys/kernel/osrelease": "6.14.0-24-generic\n",
    "proc/cmdline": "BOOT_IMAGE=/vmlinuz root=/dev/nvme0n1p2 quiet splash\n",
    "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    "sys/class/iommu/ivhd0/name": "",
    "sys/bus/pci/devices/0000:67:00.1/vendor": "0x1022\n",
    "sys/bus/pci/devices/0000:67:00.1/device": "0x17f0\n",
    "sys/bus/pci/devices/0000:00:00.0/vendor": "0x1022\n",
    "sys/bus/pci/devices/0000:00:00.0/device": "0x1507\n",
    "sys/module/amdxdna/version": "0.6.0\n",
    "sys/class/accel/accel0/device/fw_version": "1.0.0.63\n",
    "dev/accel/accel0": "",
    "opt/xilinx/xrt/version.json": '{"BUILD_VERSION": "2.19.0"}',
    "opt/xilinx/xrt/lib/libxrt_driver_xdna.so.2": "",
}
VERSIONS = {"mlir_aie": MLIR_AIE_VERSION, "llvm-aie": LLVM_AIE_VERSION}
TOOLS = {"xclbinutil": "/opt/xilinx/xrt/bin/xclbinutil", "llvm-objcopy": "/usr/bin/llvm-objcopy"}
BUILT = Path("/builds/npu2/design.xclbin")


def no_opencl() -> Sequence[OpenClDescription]:
    raise AssertionError("the doctor asked for OpenCL")


def computer(
    root: Path,
    files: Mapping[str, str | None] | None = None,
    *,
    examined: str | None = EXAMINED,
    platform: str | None = PLATFORM,
    log: str | None = LOG,
    environment: dict[str, str] | None = None,
    has_pyxrt: bool = True,
    is_accessible: bool = True,
    locked_nbytes: int | None = None,
    python: tuple[int, int] = (3, 12),
    versions: Mapping[str, str] | None = None,
    tools: Mapping[str, str] | None = None,
    built: Path | None = BUILT,
    faults: tuple[str, ...] = (),
) -> Computer:
    """A laptop with an NPU2 on which all is well, but for what is given; None: no such file."""
    for path, text in {**FILES, **(files or {})}.items():
        if text is not None:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
    outputs = {
        ("xrt-smi", "examine"): examined,
        ("xrt-smi", "examine", "-r", "platform"): platform,
        ("dmesg",): log,
    }
    around = Surroundings(
        root,
        environment or {},
        lambda module: has_pyxrt and module == "pyxrt",
        lambda file: is_accessible,
        no_opencl,
        python,
        locked_nbytes,
    )
    return Computer(
        around,
        lambda words: outputs[tuple(words)],
        (VERSIONS if versions is None else versions).get,
        (TOOLS if tools is None else tools).get,
        lambda generation: built if generation == "npu2" else None,
        lambda generation: faults,
    )


def files(**changes: str | None) -> dict[str, object]:
    """Other files; the key is the end of the path."""
    found: dict[str, str | None] = {}
    for end, text in changes.items():
        (path,) = (path for path in FILES if path.replace("/", "_").endswith(end))
        found[path] = text
    return {"files": found}
