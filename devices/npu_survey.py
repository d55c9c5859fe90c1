"""What is known of the NPU without opening it: node, driver, XRT, and the Python that pyxrt is for.

It works where all of them are there. Whether firmware, driver and XRT fit each other shows only
when it is opened, for which it needs a design (an xclbin); so `--devices auto` leaves it alone.
pyxrt is no wheel: XRT brings it, built for one version of Python that its file's name tells.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aieflow.devices.surroundings import (
    Finding,
    Surroundings,
    describe_nodes,
    device_nodes,
    read_text,
)

NEEDS_DESIGN = "chosen only by name (`--devices npu`), with a design: `aieflow npu build` makes it"
INSTALL_XRT = "install XRT with its amdxdna plugin"
PYTHON_TAG = re.compile(r"\.(?:cpython-|cp)(\d)(\d+)")  # pyxrt.cpython-312-..., pyxrt.cp313-...
LIBRARY = "libxrt_coreutil.so*"
SMALL_LOCK_NBYTES = 1 << 30  # a limit of locked memory below this ends training sooner or later


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that the NPU needs: what is seen, with the remedy where something is wrong."""

    fact: str
    fault: str | None = None  # in a few words; None: fine


def survey_npu(around: Surroundings) -> Finding:
    """The NPU, and each thing it needs."""
    checks = {
        "hardware": _hardware(around),
        "driver": _driver(around),
        "XRT": _xrt(around),
        "pyxrt": _pyxrt(around),
    }
    faults = [check.fault for check in checks.values() if check.fault is not None]
    facts = {name: check.fact for name, check in checks.items()}
    facts["locked memory"] = _locked_memory(around.locked_nbytes)
    if faults:
        return Finding("npu", False, ", ".join(faults), facts)
    return Finding("npu", True, _chip(around), {**facts, "use": NEEDS_DESIGN})


def _hardware(around: Surroundings) -> Check:
    nodes = device_nodes(around, "/dev/accel", "accel*", "/sys/class/accel")
    ours = [node for node in nodes if node.driver in (None, "amdxdna")]
    if not ours:
        others = f", only {describe_nodes(nodes)}" if nodes else ""
        return Check(
            f"no NPU in /dev/accel{others}: it takes a Ryzen AI processor, the NPU (IPU) enabled "
            "in the BIOS and the driver loaded",
            "no NPU is seen",
        )
    if not any(node.is_accessible for node in ours):
        return Check(describe_nodes(nodes), f"you may not open {ours[0].path}")
    return Check(describe_nodes(nodes))


def _driver(around: Surroundings) -> Check:
    if around.path("/sys/module/amdxdna").is_dir():
        return Check("amdxdna is loaded")
    return Check(
        "amdxdna is not loaded: run `sudo modprobe amdxdna`; it comes with Linux 6.14 and later, "
        "and with XRT's amdxdna plugin",
        "no amdxdna driver",
    )


def _xrt_folder(around: Surroundings) -> Path:
    return around.path(around.environment.get("XILINX_XRT") or "/opt/xilinx/xrt")


def _xrt(around: Surroundings) -> Check:
    folder = _xrt_folder(around)
    if folder.is_dir():
        return Check(f"in {around.shown(folder)}")
    for pattern in (f"lib*/{LIBRARY}", f"lib/*/{LIBRARY}"):
        for library in sorted(around.path("/usr").glob(pattern)):
            return Check(f"in {around.shown(library.parent)}")
    return Check(
        f"not in {around.shown(folder)}: {INSTALL_XRT}, or set XILINX_XRT to its folder", "no XRT"
    )


def _pyxrt(around: Surroundings) -> Check:
    if around.is_installed("pyxrt"):
        return Check("installed")
    ours = f"{around.python[0]}.{around.python[1]}"
    found = list(_pyxrt_files(around))
    if not found:
        return Check(
            f"not installed: {INSTALL_XRT}; pyxrt comes with it, not from PyPI", "no pyxrt"
        )
    for file, python in found:
        if python in (None, around.python):
            setup = f"{around.shown(_xrt_folder(around))}/setup.sh"
            remedy = (
                f"run `source {setup}` in this shell"
                if _xrt_folder(around) in file.parents
                else "make the virtual environment with --system-site-packages"
            )
            return Check(
                f"in {around.shown(file.parent)}, where this Python does not look: {remedy}",
                "pyxrt is not on Python's path",
            )
    file, python = found[0]
    assert python is not None
    theirs = f"{python[0]}.{python[1]}"
    return Check(
        f"{around.shown(file)} is for Python {theirs}, this is {ours}: use Python {theirs} "
        f"(`python{theirs} -m venv`), or build XRT for {ours}",
        f"pyxrt is for Python {theirs}",
    )


def _pyxrt_files(around: Surroundings) -> Iterator[tuple[Path, tuple[int, int] | None]]:
    """Where pyxrt lies, each with the version of Python it is for; None: its name does not tell."""
    usual = around.path("/usr/lib")
    folders = [
        _xrt_folder(around) / "python",
        *sorted(usual.glob("python3*/dist-packages")),
        *sorted(usual.glob("python3*/site-packages")),
    ]
    for folder in folders:
        for file in sorted(folder.glob("pyxrt*")):
            if file.suffix in (".so", ".pyd"):
                tag = PYTHON_TAG.search(file.name)
                yield file, None if tag is None else (int(tag[1]), int(tag[2]))


def _locked_memory(limit: int | None) -> str:
    if limit is None:
        return "no limit"
    text = f"{limit / 2**20:,.0f} MiB"
    if limit >= SMALL_LOCK_NBYTES:
        return text
    return f"{text} at most, little for buffers: raise it in /etc/security/limits.conf"


def _chip(around: Surroundings) -> str:
    """What the driver calls the chip, with its firmware."""
    for node in device_nodes(around, "/dev/accel", "accel*", "/sys/class/accel"):
        folder = around.path(f"/sys/class/accel/{Path(node.path).name}/device")
        name, firmware = (read_text(folder / each).strip() for each in ("vbnv", "fw_version"))
        if name:
            return f"{name}, firmware {firmware}" if firmware else name
    return "an NPU of AMD"
