"""The designs that were built, on disk: one folder each, named by the content that it was made of.

    ROOT/npu1-gemm-0123456789ab/design.xclbin      what the NPU is set up with, with our description
                                instructions.bin   the compiler's stream for the smallest work
                                build.json         description, toolchain, files' hashes, seconds

The name is a hash of the description, the toolchain's versions and the generator's source, so a
change of any of them is another build, and an old one is never taken for it. A build is made under
a hidden name, verified, and renamed: a folder without a dot in front is whole.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aieflow.devices.xclbin import FORMAT, describe_design, design_of
from aieflow.ops.errors import DeviceError, InputError
from aieflow.ops.npu import iron_gemm, iron_pin, iron_streaming
from aieflow.ops.npu.design import DESIGNS, GemmDesign
from aieflow.ops.npu.iron_release import WANTED
from aieflow.ops.npu.standard import GEMM, STANDARD, AnyDesign, name_of
from aieflow.tools.npu_check import container_faults, instruction_faults
from aieflow.tools.npu_compile import INSTRUCTIONS, XCLBIN

BUILD_FILE = "build.json"
BUILD_NBYTES = 4 << 30  # memory that one compilation may take
Compile = Callable[[AnyDesign, Path], None]
Describe = Callable[[Path, str], None]  # put a text into an xclbin as USER_METADATA


@dataclass(frozen=True, slots=True)
class Build:
    """One finished build."""

    folder: Path
    generation: str
    design: AnyDesign | None  # None: of a description that this version does not know
    toolchain: Mapping[str, str]
    seconds: float
    hashes: Mapping[str, str]  # by file

    @property
    def xclbin(self) -> Path:
        """What the NPU is set up with."""
        return self.folder / XCLBIN

    @property
    def is_current(self) -> bool:
        """Whether the same would be built today."""
        if self.design is None or self.design not in STANDARD[self.generation].values():
            return False
        return self.folder.name == build_name(self.design)


def build_name(design: AnyDesign) -> str:
    """The name of a design's build with the pinned toolchain."""
    generator = iron_gemm if isinstance(design, GemmDesign) else iron_streaming
    files = [Path(str(module.__file__)) for module in (generator, iron_pin)]
    if generator is iron_streaming:
        files.append(iron_streaming.GELU_BACKWARD)
    content = {
        "design": describe_design(design),
        "generation": design.generation.name,
        "toolchain": WANTED,
        "generator": _hash(*files),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{design.generation.name}-{name_of(design)}-{digest[:12]}"


def find_build(root: Path, generation: str, name: str = GEMM) -> Build | None:
    """The current build of a generation's standard design of that name, if there is one."""
    folder = root / build_name(STANDARD[generation][name])
    return _read(folder) if folder.is_dir() else None


def list_builds(root: Path) -> tuple[Build, ...]:
    """All builds, by name; what is not whole or not ours is left out."""
    found = [_read(folder) for folder in sorted(root.glob("[!.]*")) if folder.is_dir()]
    return tuple(build for build in found if build is not None)


def _read(folder: Path) -> Build | None:
    try:
        content: dict[str, Any] = json.loads((folder / BUILD_FILE).read_text(encoding="utf-8"))
        generation, fields = str(content["generation"]), dict(content["design"])
        toolchain, hashes = dict(content["toolchain"]), dict(content["files"])
        seconds = float(content["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    design: AnyDesign | None
    try:
        design = design_of(generation, fields)
    except InputError:
        design = None
    return Build(folder, generation, design, toolchain, seconds, hashes)


def make_build(root: Path, design: AnyDesign, compile_it: Compile, describe: Describe) -> Build:
    """Compile, describe, verify, keep; raises DeviceError with the compiler's words or the faults.

    What did not come so far is kept beside the builds under a name with a dot, to be looked at.
    """
    name = build_name(design)
    hidden = root / f".{name}"
    shutil.rmtree(hidden, ignore_errors=True)
    hidden.mkdir(parents=True)
    start = time.monotonic()
    compile_it(design, hidden)
    description = {
        "format": FORMAT,
        "version": 1,
        "generation": design.generation.name,
        "design": describe_design(design),
    }
    describe(hidden / XCLBIN, json.dumps(description, sort_keys=True))
    faults = [
        *container_faults(hidden / XCLBIN, design),
        *instruction_faults(hidden / INSTRUCTIONS, design),
    ]
    if faults:
        raise DeviceError(
            f"npu: what mlir-aie made for {name} cannot be used: {'; '.join(faults)}: it is left "
            f"in {hidden}; report it as docs/npu.md says"
        )
    content = {
        "generation": design.generation.name,
        "design": describe_design(design),
        "toolchain": WANTED,
        "seconds": round(time.monotonic() - start, 1),
        "files": {each: _hash(hidden / each) for each in (XCLBIN, INSTRUCTIONS)},
    }
    (hidden / BUILD_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(root / name, ignore_errors=True)
    hidden.rename(root / name)
    made = _read(root / name)
    assert made is not None
    return made


def build_faults(build: Build) -> tuple[str, ...]:
    """What is wrong with a build that lies on disk."""
    if build.design is None:
        return ("its description is of another version of aieflow",)
    faults = [
        f"{name} is not the file that was built"
        for name, digest in build.hashes.items()
        if _hash(build.folder / name) != digest
    ]
    faults += container_faults(build.xclbin, build.design)
    faults += instruction_faults(build.folder / INSTRUCTIONS, build.design)
    return tuple(faults)


def remove_builds(root: Path, every: bool) -> tuple[str, ...]:
    """Remove what is not current, and what was left unfinished; with `every`, all. The names."""
    removed = []
    for folder in sorted(root.glob("*")) if root.is_dir() else []:
        is_ours = folder.is_dir() and folder.name.lstrip(".").startswith(tuple(DESIGNS))
        build = _read(folder)
        is_current = build is not None and build.is_current
        if is_ours and (every or not is_current):
            shutil.rmtree(folder)
            removed.append(folder.name)
    return tuple(removed)


def parallel_builds(designs: int, cores: int, free_nbytes: int) -> int:
    """How many compilations fit beside each other; at least one.

    >>> parallel_builds(4, 8, 9 << 30)
    2
    """
    return max(1, min(designs, cores, free_nbytes // BUILD_NBYTES))


def compile_in_child(design: AnyDesign, folder: Path) -> None:
    """Compile in a process of its own; raises DeviceError with the last lines it printed."""
    command = [sys.executable, "-m", "aieflow.tools.npu_compile", design.generation.name]
    command += [json.dumps(dict(describe_design(design))), str(folder)]
    with (folder / "compiler.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        words = (folder / "compiler.log").read_text(encoding="utf-8", errors="replace")
        raise DeviceError(
            f"npu: mlir-aie does not compile {name_of(design)} for {design.generation.name}:\n"
            + "\n".join(words.strip().splitlines()[-10:])
            + f"\nall it said is in {folder / 'compiler.log'}"
        )


def describe_with_xclbinutil(xclbin: Path, text: str) -> None:
    """Put a text into an xclbin as USER_METADATA; raises DeviceError with the tool's words."""
    note, whole = xclbin.with_name("description.json"), xclbin.with_name("described.xclbin")
    note.write_text(text, encoding="utf-8")
    command = ["xclbinutil", "--input", str(xclbin), "--output", str(whole), "--force"]
    command += ["--add-section", f"USER_METADATA:RAW:{note}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(
            "there is no xclbinutil on PATH: run `source /opt/xilinx/xrt/setup.sh`; XRT brings it"
        ) from None
    if done.returncode or not whole.is_file():
        words = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise DeviceError(f"npu: xclbinutil does not describe {xclbin}: {' '.join(words)}")
    whole.replace(xclbin)


def _hash(*files: Path) -> str:
    """Of all that they hold; empty where one is not there."""
    try:
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    except OSError:
        return ""
