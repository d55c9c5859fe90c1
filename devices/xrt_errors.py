"""What XRT and its driver say when something fails, and what a user can do about it.

XRT raises RuntimeError with a text; the texts are those of XRT 2.13 to 2.23, the amdxdna driver and
users' reports. The first pattern that is found wins.
"""

import re
import sys

from aieflow.ops.errors import DeviceError

_PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"
SETUP = "source /opt/xilinx/xrt/setup.sh in this shell"

REMEDIES: tuple[tuple[str, str], ...] = (
    (
        r"No module named '?pyxrt\b",
        f"install XRT with its amdxdna plugin and {SETUP}; pyxrt comes with XRT, not from PyPI",
    ),
    (
        r"libxrt\w*\.so|cannot open shared object",
        f"XRT's libraries are not found: {SETUP}, or install XRT again",
    ),
    (
        r"undefined symbol|compiled for Python|[Pp]ython version|module.* pyxrt|DLL load failed"
        r"|initialization failed",
        f"pyxrt was built for another Python than this ({_PYTHON}): use the Python that XRT was "
        "built with, or build XRT for this one",
    ),
    (r"XILINX_XRT", f"XILINX_XRT is not set: {SETUP}"),
    (
        r"[Ff]irmware protocol|protocol major",
        "firmware and driver do not match: install the npu firmware and the amdxdna module of the "
        "same release, then reboot",
    ),
    (
        r"No such device with index|[Ff]ailed to open device",
        "XRT sees no such NPU: check `xrt-smi examine`, that the amdxdna module is loaded, that "
        "/dev/accel/accel0 exists and that you are in the group render",
    ),
    (
        r"mmap\(.*failed|memlock|err=-?11\b",
        "the limit of locked memory is too low: raise it with `ulimit -l unlimited` or in "
        "/etc/security/limits.conf, then log in again; or train with a smaller batch",
    ),
    (
        r"0x2000003|CREATE_HWCTX.*err=-?(2|16|28)\b",
        "all hardware contexts of the NPU are in use: end other programs that use it",
    ),
    (
        r"CREATE_HWCTX",
        "the driver refuses the xclbin: build it for this NPU's generation "
        "(`aieflow npu build`), and check `dmesg`",
    ),
    (
        r"err=-?(95|25)\b|Operation not supported|Inappropriate ioctl",
        "the amdxdna driver is older than XRT: install the driver that came with this XRT",
    ),
    (
        r"err=-?19\b|No such device",
        "the NPU is gone: reload the amdxdna module (`modprobe -r amdxdna && modprobe amdxdna`) or "
        "reboot",
    ),
    (
        r"EXEC_CMD|err=-?(5|62|110)\b",
        "the NPU is in a bad state: reload the amdxdna module (`modprobe -r amdxdna && modprobe "
        "amdxdna`) or reboot, and check `dmesg`",
    ),
    (
        r"CREATE_BO",
        "the driver gives no buffer: check free memory and the memlock limit (`ulimit -l`); "
        "kernels with CMA heaps are not supported on x86",
    ),
    (
        r"SYNC_BO|past buffer size",
        "a buffer is smaller than what is moved: this is a fault of aieflow, please report it",
    ),
    (r"No such kernel", "the xclbin is not aieflow's: make one: `aieflow npu build`"),
    (
        r"failed to open xclbin|No such file|xclbin",
        "give the path of an xclbin, or make one: `aieflow npu build`",
    ),
)
UNKNOWN = "check `dmesg` and `xrt-smi examine`"

STATES = {
    5: ("ERROR", "the command faulted: check `dmesg`; the xclbin may be of another design"),
    6: (
        "ABORT",
        "the driver aborted it: firmware and driver may not match, or the NPU was reset; reload "
        "the amdxdna module and check `dmesg`",
    ),
    8: (
        "TIMEOUT",
        "the NPU made no progress and the driver's watchdog stopped it: reload the amdxdna module "
        "(`modprobe -r amdxdna && modprobe amdxdna`) or reboot",
    ),
    9: ("NORESPONSE", "the NPU does not answer: reload the amdxdna module or reboot"),
}


def remedy(words: str) -> str:
    """What to do about a driver's words."""
    for pattern, text in REMEDIES:
        if re.search(pattern, words):
            return text
    return UNKNOWN


def xrt_error(doing: str, error: BaseException) -> DeviceError:
    """The error for something that XRT refused: the place, its own words, the remedy."""
    words = str(error).strip() or type(error).__name__
    return DeviceError(f"npu: {doing}: XRT says {words!r}: {remedy(words)}")


def state_error(doing: str, state: int) -> DeviceError:
    """The error for a command that ended in a bad state."""
    name, text = STATES.get(state, (f"state {state}", UNKNOWN))
    return DeviceError(f"npu: {doing}: the command ended in {name}: {text}")
