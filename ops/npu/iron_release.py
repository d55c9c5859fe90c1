"""The one release of mlir-aie that the generators are written for, and how to load it.

IRON's interface changed without notice twice in 2026, so another release is refused by its version
before anything of it is used. mlir-aie (module `aie`) and its compiler, Peano (package `llvm-aie`),
are wheels on the projects' release pages, not on PyPI; they are imported here alone, late, and
nothing else of aieflow needs them.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from aieflow.ops.errors import InputError

Handle = Any  # an object of mlir-aie, which has no types; it is only handed back to it

MLIR_AIE, MLIR_AIE_VERSION = "mlir_aie", "1.4.2"
LLVM_AIE, LLVM_AIE_VERSION = "llvm-aie", "21.0.0.2026080301+c9c5ecb7"  # what that release pins
RELEASES = "https://github.com/Xilinx/{}/releases/expanded_assets/{}"
INSTALL = {
    MLIR_AIE: f"pip install {MLIR_AIE}=={MLIR_AIE_VERSION} -f "
    + RELEASES.format("mlir-aie", f"v{MLIR_AIE_VERSION}"),
    LLVM_AIE: f"pip install {LLVM_AIE}=={LLVM_AIE_VERSION} -f "
    + RELEASES.format("llvm-aie", "nightly"),
}
WANTED = {MLIR_AIE: MLIR_AIE_VERSION, LLVM_AIE: LLVM_AIE_VERSION}
OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)  # for which the release has wheels


@dataclass(frozen=True, slots=True)
class Iron:
    """The modules of mlir-aie that the generators use."""

    iron: Handle  # aie.iron: ObjectFifo, Worker, Runtime, TaskGroup, Program, Buffer, ...
    device: Handle  # aie.iron.device: Tile, from_name
    kernels: Handle  # aie.iron.kernels: mm
    controlflow: Handle  # aie.iron.controlflow: range_
    taplib: Handle  # aie.helpers.taplib: TensorAccessPattern
    ir: Handle  # aie.ir: attributes
    bfloat16: Handle  # the element type
    compile: Handle  # aie.utils.compile: compile_mlir_module


def installed_version(package: str) -> str | None:
    """The version of an installed package; None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def version_fault(
    package: str, found: str | None, python: tuple[int, int] | None = None
) -> str | None:
    """What is wrong with a package's version, with the remedy; None for the pinned one."""
    wanted = WANTED[package]
    if found == wanted:
        return None
    ours = python or sys.version_info[:2]
    remedy = f"run `{INSTALL[package]}`"
    if not OLDEST_PYTHON <= ours <= NEWEST_PYTHON:
        remedy = (
            f"it has wheels for Python {_dotted(OLDEST_PYTHON)} to {_dotted(NEWEST_PYTHON)}, this "
            f"is {_dotted(ours)}: make an environment with one of them, and there {remedy}"
        )
    if found is None:
        return f"{package} is not installed: {remedy}"
    return f"{package} is {found}, these designs are written for {wanted}: {remedy}"


def load_iron(
    load: Callable[[str], Handle] = import_module,
    installed: Callable[[str], str | None] = installed_version,
) -> Iron:
    """The pinned mlir-aie; raises InputError with the wheel and its index for any other."""
    fault = version_fault(MLIR_AIE, installed(MLIR_AIE))
    if fault is not None:
        raise InputError(fault)
    try:
        return Iron(
            load("aie.iron"),
            load("aie.iron.device"),
            load("aie.iron.kernels"),
            load("aie.iron.controlflow"),
            load("aie.helpers.taplib"),
            load("aie.ir"),
            load("ml_dtypes").bfloat16,
            load("aie.utils.compile"),
        )
    except ImportError as error:
        raise InputError(
            f"{MLIR_AIE} {MLIR_AIE_VERSION} is installed but does not import ({error}): install it "
            f"again: `{INSTALL[MLIR_AIE]} --force-reinstall`"
        ) from error


def _dotted(python: tuple[int, int]) -> str:
    return f"{python[0]}.{python[1]}"
