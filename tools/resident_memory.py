"""Reads what memory this process has in use, and the most it had (proc(5), Linux)."""

from pathlib import Path

from aieflow.ops.errors import DeviceError


def forget_peak() -> None:
    """Let the kernel count the peak anew; raises DeviceError where it refuses."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise DeviceError(f"cpu: the peak memory cannot be measured here: {error}") from None


def peak_nbytes() -> int:
    """Bytes of the largest resident memory since `forget_peak`; raises DeviceError."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise DeviceError("cpu: the peak memory cannot be measured here: no VmHWM in /proc/self/status")
