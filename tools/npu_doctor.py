"""What a run on the NPU needs of this computer: each thing, whether it is there, and the remedy.

Everything is looked at through a `Computer`, so tests show it others: file trees and the outputs of
commands that were recorded. Nothing is changed, and nothing is opened: whether the array computes
is for the smoke test, once all is well here. The order is that of the dependencies, so the first
thing that is not ok is the first to mend.

Sources of the faults: the issue lists of amd/xdna-driver, Xilinx/mlir-aie and their neighbours.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from aieflow.devices.npu import CHIPS
from aieflow.devices.npu_survey import INSTALL_XRT, SMALL_LOCK_NBYTES, survey_npu
from aieflow.devices.surroundings import JOIN_RENDER, Surroundings, device_nodes, read_text
from aieflow.ops.npu.iron_release import LLVM_AIE, MLIR_AIE, version_fault
from aieflow.tools.npu_log import MATCH, complaint, driver_lines

AMD, NPU1_ID, NPU2_ID = "0x1022", "0x1502", "0x17f0"  # on the PCI bus
GENERATION_OF = {NPU1_ID: "npu1", NPU2_ID: "npu2"}
OLDEST_KERNEL, FIRST_KERNEL = (6, 10), (6, 14)  # that the driver supports; that brings it along
OLDEST_XRT = (2, 16)  # with register_xclbin and hw_context
PLUGIN = "libxrt_driver_xdna.so*"
PRESENT = re.compile(r"^\|\[([0-9a-fA-F:.]+)\]\s*\|([^|]+)\|", re.MULTILINE)
# Commands that a build calls, each with what brings it.
BUILD_TOOLS = {
    "xclbinutil": "run `source /opt/xilinx/xrt/setup.sh`; XRT brings it",
    "llvm-objcopy": "install llvm (GNU objcopy refuses this processor's files)",
}
SLOW_MODES = ("powersaver", "balanced")


@dataclass(frozen=True, slots=True)
class Computer:
    """What the doctor looks at."""

    around: Surroundings
    run: Callable[[Sequence[str]], str | None]  # a command's output; None: there is no such command
    installed: Callable[[str], str | None]  # the version of a Python package
    find_tool: Callable[[str], str | None]  # the path of a command
    find_build: Callable[[str], Path | None]  # a generation's finished build
    build_faults: Callable[[str], tuple[str, ...]]  # what is wrong with it


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; what cannot be told is not ok, not needed, and not known."""

    name: str
    is_ok: bool
    fact: str
    remedy: str | None = None
    is_needed: bool = True  # without it nothing runs; what is not needed is advice
    is_known: bool = True


def diagnose(computer: Computer) -> tuple[Check, ...]:
    """All checks, in the order in which to mend what is not ok."""
    around = computer.around
    chip, generation = _chip(around)
    examined = computer.run(["xrt-smi", "examine"])
    build = None if generation is None else computer.find_build(generation)
    return (
        chip,
        _kernel(around),
        _driver(around),
        _iommu(around),
        _node(around),
        _firmware(around, examined),
        _locked_memory(around),
        _xrt(around, examined),
        _pyxrt(around),
        _xrt_sees(examined),
        _release(examined),
        _log(computer),
        _power_mode(computer),
        _design(generation, build, () if build is None else computer.build_faults(str(generation))),
        *_toolchain(computer, is_needed=build is None),
    )


def seen_generation(around: Surroundings) -> str | None:
    """The generation of the computer's NPU, as bus or driver tell; None where there is none."""
    return _chip(around)[1]


def can_run(checks: Sequence[Check]) -> bool:
    """Whether nothing that is needed is missing."""
    return all(check.is_ok or not check.is_needed for check in checks)


def _chip(around: Surroundings) -> tuple[Check, str | None]:
    name = "NPU"
    for folder in sorted(around.path("/sys/bus/pci/devices").glob("*")):
        vendor, device = (read_text(folder / each).strip() for each in ("vendor", "device"))
        if vendor == AMD and device in GENERATION_OF:
            generation = GENERATION_OF[device]
            return Check(name, True, f"{generation} at {folder.name}"), generation
    for node in device_nodes(around, "/dev/accel", "accel*", "/sys/class/accel"):
        said = read_text(
            around.path(f"/sys/class/accel/{Path(node.path).name}/device/vbnv")
        ).lower()
        for generation, names in CHIPS.items():
            if any(each in said for each in names):
                return Check(name, True, f"{generation} ({said.strip()})"), generation
    return Check(
        name,
        False,
        "none on the PCI bus",
        "it takes a Ryzen AI processor (7040, 8040, AI 300 and later); on one, enable NPU or IPU "
        "in the BIOS",
    ), None


def _kernel(around: Surroundings) -> Check:
    release = read_text(around.path("/proc/sys/kernel/osrelease")).strip()
    found = re.match(r"(\d+)\.(\d+)", release)
    remedy = (
        f"install Linux {_dotted(FIRST_KERNEL)} or later, which brings the driver (Ubuntu 24.04: "
        "linux-generic-hwe-24.04; Ubuntu 25.04, Fedora and Arch have it)"
    )
    if found is None:
        return Check("kernel", False, release or "not Linux", remedy)
    version = (int(found[1]), int(found[2]))
    is_ok = version >= OLDEST_KERNEL
    return Check("kernel", is_ok, f"Linux {release}", None if is_ok else remedy)


def _driver(around: Surroundings) -> Check:
    folder = around.path("/sys/module/amdxdna")
    if folder.is_dir():
        version = read_text(folder / "version").strip()
        return Check("driver", True, f"amdxdna {version}".strip() + " is loaded")
    remedy = "run `sudo modprobe amdxdna`; where there is none, install XRT's amdxdna plugin"
    lockdown = read_text(around.path("/sys/kernel/security/lockdown"))
    if "[integrity]" in lockdown or "[confidentiality]" in lockdown:
        remedy += ", and sign its module or turn Secure Boot off: the kernel refuses unsigned ones"
    return Check("driver", False, "amdxdna is not loaded", remedy)


def _iommu(around: Surroundings) -> Check:
    line = read_text(around.path("/proc/cmdline")).split()
    for word in ("iommu=off", "amd_iommu=off"):
        if word in line:
            return Check(
                "IOMMU",
                False,
                f"{word} on the kernel's command line",
                f"the driver shares addresses through the IOMMU: remove {word} and reboot",
            )
    if not any(around.path("/sys/class/iommu").glob("*")):
        return Check(
            "IOMMU",
            False,
            "none in /sys/class/iommu",
            "enable the IOMMU in the BIOS, and take a kernel with CONFIG_AMD_IOMMU and "
            "CONFIG_IOMMU_SVA (distributions' kernels have them)",
        )
    release = read_text(around.path("/proc/sys/kernel/osrelease")).strip()
    config = read_text(around.path(f"/boot/config-{release}"))
    if config and "CONFIG_IOMMU_SVA=y" not in config:
        return Check(
            "IOMMU",
            False,
            f"/boot/config-{release} lacks CONFIG_IOMMU_SVA",
            "the driver shares addresses through it: take a kernel that has CONFIG_IOMMU_SVA "
            "(distributions' kernels have it)",
        )
    return Check("IOMMU", True, "on")


def _node(around: Surroundings) -> Check:
    nodes = device_nodes(around, "/dev/accel", "accel*", "/sys/class/accel")
    ours = [node for node in nodes if node.driver in (None, "amdxdna")]
    if not ours:
        return Check(
            "/dev/accel",
            False,
            "no node of amdxdna" + (f", only {', '.join(map(str, nodes))}" if nodes else ""),
            "the driver has not taken the NPU: `sudo dmesg | grep amdxdna` says why; with a "
            f"firmware error: {MATCH}",
        )
    if not any(node.is_accessible for node in ours):
        return Check("/dev/accel", False, str(ours[0]), JOIN_RENDER)
    return Check("/dev/accel", True, str(ours[0]))


def _firmware(around: Surroundings, examined: str | None) -> Check:
    versions = [
        read_text(file).strip()
        for file in sorted(around.path("/sys/class/accel").glob("accel*/device/fw_version"))
    ]
    said = re.search(r"NPU Firmware Version\s*:\s*(\S+)", examined or "")
    version = next((each for each in versions if each), said[1] if said else "")
    if not re.match(r"\d+\.\d", version) or not version.strip("0."):
        return Check("firmware", False, version or "no version is told", MATCH)
    return Check("firmware", True, version)


def _locked_memory(around: Surroundings) -> Check:
    limit = around.locked_nbytes
    if limit is None or limit >= SMALL_LOCK_NBYTES:
        fact = "no limit" if limit is None else f"{limit / 2**20:,.0f} MiB"
        return Check("locked memory", True, fact)
    return Check(
        "locked memory",
        False,
        f"at most {limit / 2**20:,.0f} MiB, and buffers are locked",
        "put `* soft memlock unlimited` and `* hard memlock unlimited` into "
        "/etc/security/limits.d/99-npu.conf and log in again",
    )


def _xrt(around: Surroundings, examined: str | None) -> Check:
    folder = around.path(around.environment.get("XILINX_XRT") or "/opt/xilinx/xrt")
    said = re.search(r"^XRT\s*\n\s*Version\s*:\s*(\d+)\.(\d+)\S*", examined or "", re.MULTILINE)
    told = re.match(r"(\d+)\.(\d+)", _build_version(folder / "version.json"))
    found = told or said
    has_plugin = _has_plugin(around, folder)
    if found is None:
        if has_plugin:
            return Check("XRT", True, "installed, of unknown version")
        return Check(
            "XRT",
            False,
            f"not in {around.shown(folder)}",
            f"{INSTALL_XRT}, or set XILINX_XRT to its folder",
        )
    version = (int(found[1]), int(found[2]))
    if version < OLDEST_XRT:
        return Check(
            "XRT",
            False,
            f"{_dotted(version)} cannot set up an NPU",
            f"install XRT {_dotted(OLDEST_XRT)} or later with the amdxdna plugin of its release",
        )
    if not has_plugin:
        return Check(
            "XRT",
            False,
            f"{_dotted(version)} without {PLUGIN.rstrip('*')}: it sees no NPU",
            "install the package xrt_plugin-amdxdna (or xrt-plugin-amdxdna) of the same release",
        )
    return Check("XRT", True, f"{_dotted(version)} with the amdxdna plugin")


def _has_plugin(around: Surroundings, folder: Path) -> bool:
    """Whether XRT's driver for NPUs lies with it, or with the distribution's libraries."""
    usual = around.path("/usr")
    places = ((folder, f"lib*/{PLUGIN}"), (usual, f"lib*/{PLUGIN}"), (usual, f"lib/*/{PLUGIN}"))
    return any(any(place.glob(pattern)) for place, pattern in places)


def _build_version(file: Path) -> str:
    try:
        found = json.loads(read_text(file) or "{}")
    except ValueError:
        return ""
    return str(found.get("BUILD_VERSION", "")) if isinstance(found, dict) else ""


def _pyxrt(around: Surroundings) -> Check:
    """As `aieflow devices` sees it: its text holds the remedy."""
    fact = survey_npu(around).facts["pyxrt"]
    if fact == "installed":
        python = _dotted(around.python)
        return Check("pyxrt", True, f"found by this Python ({python})")
    what, _, remedy = fact.partition(": ")
    return Check("pyxrt", False, what, remedy)


def _xrt_sees(examined: str | None) -> Check:
    name = "XRT sees it"
    if examined is None:
        return Check(
            name,
            False,
            "there is no command xrt-smi",
            "run `source /opt/xilinx/xrt/setup.sh` in this shell (or that of XILINX_XRT)",
        )
    found = PRESENT.findall(examined)
    if found:
        return Check(name, True, ", ".join(f"{each.strip()} at {place}" for place, each in found))
    complaint = re.search(r"^.*(?:ioctl|IOCTL|err=-?\d+|rror).*$", examined, re.MULTILINE)
    if complaint is not None and re.search("ioctl|IOCTL", complaint[0]):
        return Check(
            name,
            False,
            complaint[0].strip(),
            "the driver is older than XRT: take the kernel's newest, or the amdxdna driver that "
            f"comes with this XRT; {MATCH}",
        )
    fact = "xrt-smi lists no device" if complaint is None else complaint[0].strip()
    return Check(name, False, fact, MATCH)


def _unknown(name: str, reason: str, remedy: str | None = None) -> Check:
    """A check of which nothing can be said: neither ok nor in the way."""
    return Check(name, False, reason, remedy, is_needed=False, is_known=False)


def _release(examined: str | None) -> Check:
    """XRT and the driver are built from one source, and numbered alike where XRT brought both."""
    name = "same release"
    if examined is None:
        return _unknown(name, "not told: there is no command xrt-smi")
    xrt = re.search(r"^XRT\s*\n\s*Version\s*:\s*(\d+\.\d+)", examined, re.MULTILINE)
    driver = re.search(r"^\s*amdxdna\s*:\s*(\d+\.\d+)\.\d+_", examined, re.MULTILINE)
    if xrt is None or driver is None:
        return _unknown(name, "not told: the driver names no release of XRT (the kernel's own)")
    is_ok = xrt[1] == driver[1]
    fact = f"XRT {xrt[1]}, amdxdna {driver[1]}"
    return Check(name, is_ok, fact, None if is_ok else MATCH, is_needed=False)


def _log(computer: Computer) -> Check:
    name, ask = "driver's log", "`sudo dmesg | grep amdxdna` shows it"
    log = computer.run(["dmesg"])
    if log is None or "Operation not permitted" in log:
        return _unknown(name, "not told: only root may read the kernel's log", ask)
    if not driver_lines(log):
        return _unknown(name, "not told: the kernel's log has no line of amdxdna")
    found = complaint(log)
    if found is None:
        return Check(name, True, "no complaint of amdxdna", is_needed=False)
    return Check(name, False, found.line, found.remedy, is_needed=False)


def _power_mode(computer: Computer) -> Check:
    answer = computer.run(["xrt-smi", "examine", "-r", "platform"])
    said = re.search(r"Power Mode\s*:\s*(\S+)", answer or "")
    if answer is None:
        return _unknown("power mode", "not told: there is no command xrt-smi")
    if said is None:
        return _unknown(
            "power mode", "not told: xrt-smi names none (`xrt-smi examine -r platform`)"
        )
    is_slow = said[1].lower() in SLOW_MODES
    return Check(
        "power mode",
        not is_slow,
        said[1],
        "it limits the clock: `sudo xrt-smi configure --pmode performance`" if is_slow else None,
        is_needed=False,
    )


def _design(generation: str | None, build: Path | None, faults: Sequence[str]) -> Check:
    name = "design"
    if generation is None:
        return Check(name, False, "which to take is not known", "see NPU, above")
    if build is None:
        return Check(
            name,
            False,
            f"none is built for {generation}",
            f"run `aieflow npu build --generation {generation}`",
        )
    if faults:
        return Check(
            name,
            False,
            f"{build}: {faults[0]}",
            f"run `aieflow npu build --generation {generation} --anew`",
        )
    return Check(name, True, str(build))


def _toolchain(computer: Computer, is_needed: bool) -> Iterator[Check]:
    """What `aieflow npu build` takes; advice once a design is built."""
    for package, what in ((MLIR_AIE, "mlir-aie"), (LLVM_AIE, "Peano (llvm-aie)")):
        found = computer.installed(package)
        fault = version_fault(package, found, computer.around.python)
        fact, _, remedy = (fault or "").partition(": ")
        if fault is None:
            yield Check(what, True, str(found), is_needed=is_needed)
        else:
            yield Check(what, False, fact, remedy, is_needed)
    for tool, remedy in BUILD_TOOLS.items():
        path = computer.find_tool(tool)
        if path is None:
            yield Check(tool, False, "not on PATH", remedy, is_needed)
        else:
            yield Check(tool, True, path, is_needed=is_needed)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
