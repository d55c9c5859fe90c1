"""What the amdxdna driver complains of in the kernel's log, and the remedy.

The texts are the driver's own, as its source has them and users have posted them to issue lists.
The log covers the time since the computer started, so what it says may be over: it is advice.
"""

import re
from dataclasses import dataclass

RELOAD = "`sudo modprobe -r amdxdna && sudo modprobe amdxdna`"
MATCH = (
    "firmware, driver and XRT must be of one release: update all three together (linux-firmware, "
    f"the amdxdna driver, XRT with its plugin), then reboot or {RELOAD}"
)
SHARE = (
    "the kernel shares no addresses with the NPU: enable the IOMMU in the BIOS, take `iommu=pt`, "
    "`iommu.passthrough=1` and `amd_iommu=off` off the kernel's command line, and take a kernel "
    "with CONFIG_IOMMU_SVA; where it began with an update, go back to the kernel before"
)
HANG = (
    f"the NPU hung or was reset: {RELOAD} or reboot; where that comes again, update firmware, "
    "driver and XRT together"
)
COMPLAINTS = (
    (r"[Ii]ncompatible firmware|[Ff]irmware minor version|Invalid mbox magic|not alive", MATCH),
    (
        r"firmware load for .*failed|request_firmware",
        "install the NPU's firmware: the folder amdnpu of linux-firmware, or XRT's amdxdna plugin",
    ),
    (r"SVA bind|get pasid|PASID", SHARE),
    (r"smu cmd|Power off failed|[Mm]ailbox|mbox|tdr|[Tt]ime(d )?-?out|hang|abort", HANG),
)
FAILURE = re.compile(r"\*ERROR\*|failed|[Ii]ncompatible|[Tt]ime(d )?-?out|hang", re.ASCII)


@dataclass(frozen=True, slots=True)
class Complaint:
    """The last thing that the driver complained of."""

    line: str
    remedy: str


def driver_lines(log: str) -> tuple[str, ...]:
    """The driver's lines of a kernel's log, without their times."""
    lines = (line.strip() for line in log.splitlines() if "amdxdna" in line)
    return tuple(re.sub(r"^\[[^\]]*\]\s*", "", line) for line in lines)


def complaint(log: str) -> Complaint | None:
    """The gravest complaint in a kernel's log, of the last of its kind; None where there is none.

    >>> found = complaint("[ 5.1] amdxdna 0000:c6:00.1: [drm] *ERROR* aie2_smu_exec: smu cmd 4")
    >>> found.line if found else None
    'amdxdna 0000:c6:00.1: [drm] *ERROR* aie2_smu_exec: smu cmd 4'
    """
    failures = [line for line in driver_lines(log) if FAILURE.search(line)]
    for pattern, remedy in COMPLAINTS:
        for line in reversed(failures):
            if re.search(pattern, line):
                return Complaint(line, remedy)
    if failures:
        return Complaint(failures[-1], f"{RELOAD} or reboot, and report the line")
    return None
