"""`aieflow npu build`, `list`, `check`, `clean`: what is kept, what is refused, what is said.

mlir-aie is not here, so a test stands in for its compiler and leaves a container like an xclbin and
an instruction stream. What the real one would leave has not been seen.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from aieflow.devices.xclbin import (
    AIE_PARTITION,
    ENTRY,
    HEADER,
    USER_METADATA,
    emulated_xclbin,
    gemm_arguments,
    read_any_design,
    read_xclbin,
    write_xclbin,
)
from aieflow.ops.errors import DeviceError, InputError
from aieflow.ops.npu import iron_gemm, iron_pin, iron_release, iron_streaming
from aieflow.ops.npu.design import DESIGNS
from aieflow.ops.npu.instructions import encode_program
from aieflow.ops.npu.program import DmaTask, ParameterWrite, Program
from aieflow.ops.npu.standard import NAMES, STANDARD, AnyDesign, smallest_program
from aieflow.ops.npu.streaming import StreamDesign
from aieflow.tools import npu as command
from aieflow.tools.npu_builds import (
    BUILD_FILE,
    Build,
    build_faults,
    build_name,
    compile_in_child,
    describe_with_xclbinutil,
    find_build,
    list_builds,
    make_build,
    parallel_builds,
    remove_builds,
)
from aieflow.tools.npu_compile import INSTRUCTIONS, XCLBIN

NPU1 = DESIGNS["npu1"]
Edit = Callable[[Program], Program]


def with_sections(file: Path, drop: int, add: dict[int, bytes]) -> None:
    """Lay a container's sections out anew."""
    content = file.read_bytes()
    header = list(HEADER.unpack_from(content))
    sections: dict[int, tuple[bytes, bytes]] = {}
    for place in range(header[17]):
        kind, name, offset, size = ENTRY.unpack_from(content, HEADER.size + place * ENTRY.size)
        if kind != drop:
            sections[kind] = (name, content[offset : offset + size])
    sections |= {kind: (b"", body) for kind, body in add.items()}
    start, entries, bodies = HEADER.size + ENTRY.size * len(sections), b"", b""
    for kind, (name, body) in sections.items():
        bodies += bytes(-(start + len(bodies)) % 8)
        entries += ENTRY.pack(kind, name, start + len(bodies), len(body))
        bodies += body
    header[5], header[17] = start + len(bodies), len(sections)
    file.write_bytes(HEADER.pack(*header) + entries + bodies)


def compiled(
    design: AnyDesign,
    folder: Path,
    *,
    buffers: int = 5,
    kernel: str = "MLIR_AIE",
    partition: bytes | None = b"array",
    edit: Edit = lambda program: program,
) -> None:
    """What mlir-aie would leave in a folder."""
    file = folder / XCLBIN
    write_xclbin(file, replace(emulated_xclbin(design, buffers), kernel=kernel))
    with_sections(file, USER_METADATA, {} if partition is None else {AIE_PARTITION: partition})
    words = encode_program(edit(smallest_program(design)))
    (folder / INSTRUCTIONS).write_bytes(words.tobytes())


def described(file: Path, text: str) -> None:
    """What xclbinutil would do."""
    with_sections(file, USER_METADATA, {USER_METADATA: text.encode()})


@pytest.mark.parametrize("name", NAMES)
def test_a_build_is_verified_described_and_found_again(name: str, tmp_path: Path) -> None:
    design = STANDARD["npu1"][name]
    made = make_build(tmp_path, design, compiled, described)
    assert made.folder == tmp_path / build_name(design)
    assert made.folder.name.startswith(f"npu1-{name}-")
    assert made.is_current
    found = {(g, n): find_build(tmp_path, g, n) for g in STANDARD for n in NAMES}
    assert [place for place, build in found.items() if build is not None] == [("npu1", name)]
    assert found["npu1", name] == made
    content = read_xclbin(made.xclbin)
    assert not content.is_emulated
    assert read_any_design(content) == design
    assert build_faults(made) == ()
    assert sorted(file.name for file in made.folder.iterdir()) == [BUILD_FILE, XCLBIN, INSTRUCTIONS]


def test_the_name_is_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {build_name(design) for each in STANDARD.values() for design in each.values()}
    assert len(names) == 8
    names |= {build_name(replace(NPU1, k=32)), build_name(replace(NPU1, fifo_depth=1))}
    gelu = STANDARD["npu1"]["gelu"]
    assert isinstance(gelu, StreamDesign)
    names.add(build_name(replace(gelu, columns=2)))
    monkeypatch.setitem(iron_release.WANTED, "llvm-aie", "22")
    other = tmp_path / "generator.py"
    other.write_text("another")
    names.add(build_name(NPU1))
    assert len(names) == 12
    both = (NPU1, gelu)
    for module, is_other in (
        (iron_gemm, [True, False]),
        (iron_streaming, [False, True]),
        (iron_pin, [True, True]),
        (None, [False, True]),
    ):
        before = [build_name(design) for design in both]
        if module is None:
            monkeypatch.setattr(iron_streaming, "GELU_BACKWARD", other)
        else:
            monkeypatch.setattr(module, "__file__", str(other))
        after = [build_name(design) for design in both]
        assert [a != b for a, b in zip(before, after, strict=True)] == is_other


def moved_parameters(program: Program) -> Program:
    commands = tuple(
        replace(each, address=each.address - 32) if isinstance(each, ParameterWrite) else each
        for each in program.commands
    )
    return replace(program, commands=commands)


def other_channel(program: Program) -> Program:
    """B of column 1 on the channel that A has."""
    commands = tuple(
        replace(each, channel=0)
        if isinstance(each, DmaTask) and (each.column, each.argument) == (1, 1)
        else each
        for each in program.commands
    )
    return replace(program, commands=commands)


def for_npu2(program: Program) -> Program:
    return replace(program, generation=DESIGNS["npu2"].generation)


def other_order(program: Program) -> Program:
    commands = tuple(
        replace(each, sizes=(2, each.length // 1024, 512), strides=(512, 1024, 1))
        if isinstance(each, DmaTask) and (each.column, each.argument) == (2, 0)
        else each
        for each in program.commands
    )
    return replace(program, commands=commands)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"buffers": 2}, "its kernel has 5 arguments, gemm needs 6"),
        ({"kernel": "OTHER"}, "its kernel is called OTHER, not MLIR_AIE"),
        ({"partition": None}, "it holds no AIE_PARTITION: nothing that hardware could run"),
        ({"edit": moved_parameters}, "parameters lie elsewhere than the encoder writes them"),
        (
            {"edit": other_channel},
            "column 1, in, channel 1: the encoder uses it, the compiler does",
        ),
        ({"edit": for_npu2}, "its instructions: program is for npu2 with 4 columns"),
        ({"edit": other_order}, "column 2, in, channel 0: other bytes, or in another order"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_the_device_could_not_use_is_no_build(
    tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    def make(design: AnyDesign, folder: Path) -> None:
        compiled(design, folder, **change)  # type: ignore[arg-type]  # of several types

    with pytest.raises(DeviceError, match="cannot be used") as error:
        make_build(tmp_path, NPU1, make, described)
    assert fault in str(error.value)
    assert list_builds(tmp_path) == ()
    assert find_build(tmp_path, "npu1") is None


def test_an_elementwise_build_is_checked_alike(tmp_path: Path) -> None:
    design = STANDARD["npu1"]["gelu_backward"]

    def swapped(program: Program) -> Program:
        """The two inputs on each other's channels."""
        commands = tuple(
            replace(each, channel=1 - each.channel)
            if isinstance(each, DmaTask) and each.direction == "in"
            else each
            for each in program.commands
        )
        return replace(program, commands=commands)

    def make(asked: AnyDesign, folder: Path) -> None:
        compiled(asked, folder, buffers=2, edit=swapped)

    with pytest.raises(DeviceError, match=r"for npu1-gelu_backward-.* cannot be used") as error:
        make_build(tmp_path, design, make, described)
    assert "its kernel has 5 arguments, gelu_backward needs 6" in str(error.value)
    assert "column 0, in, channel 1: other bytes, or in another order" in str(error.value)


def test_pointers_and_scalars_may_not_change_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, *rest = gemm_arguments()
    wrong = (replace(head, is_pointer=True), *rest)

    def make(design: AnyDesign, folder: Path) -> None:
        compiled(design, folder)
        write_xclbin(folder / XCLBIN, replace(emulated_xclbin(design), arguments=wrong))
        with_sections(folder / XCLBIN, USER_METADATA, {AIE_PARTITION: b"array"})

    with pytest.raises(
        DeviceError, match=r"argument 0 .opcode. is a pointer of 8 bytes, not a sca"
    ):
        make_build(tmp_path, NPU1, make, described)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda f: f.joinpath(XCLBIN).write_bytes(b"x"), "design.xclbin is not the file that was"),
        (lambda f: f.joinpath(INSTRUCTIONS).write_bytes(b"abc"), "its instructions: buffer size"),
        (
            lambda f: f.joinpath(INSTRUCTIONS).write_bytes(np.arange(9, dtype=np.uint32).tobytes()),
            "its instructions: instructions: word 0",
        ),
        (lambda f: f.joinpath(INSTRUCTIONS).unlink(), "instructions.bin is not the file"),
    ],
)
def test_a_damaged_build_is_told(
    tmp_path: Path, damage: Callable[[Path], object], fault: str
) -> None:
    made = make_build(tmp_path, NPU1, compiled, described)
    damage(made.folder)
    assert any(fault in each for each in build_faults(made))


def test_old_and_unfinished_builds_are_removed(tmp_path: Path) -> None:
    made = make_build(tmp_path, NPU1, compiled, described)
    old = replace(NPU1, k=32)
    make_build(tmp_path, old, compiled, described)
    (tmp_path / ".npu2-0123456789ab").mkdir()
    (tmp_path / "somebody-elses").mkdir()
    assert [build.is_current for build in list_builds(tmp_path)].count(True) == 1
    assert set(remove_builds(tmp_path, every=False)) == {".npu2-0123456789ab", build_name(old)}
    assert list_builds(tmp_path) == (made,)
    assert remove_builds(tmp_path, every=True) == (made.folder.name,)
    assert [folder.name for folder in tmp_path.iterdir()] == ["somebody-elses"]


def test_builds_side_by_side_fit_the_memory() -> None:
    assert parallel_builds(2, 16, 64 << 30) == 2
    assert parallel_builds(4, 2, 64 << 30) == 2
    assert parallel_builds(4, 16, 1 << 30) == 1


def test_the_child_process_says_what_is_missing(tmp_path: Path) -> None:
    if iron_release.installed_version("mlir_aie") is not None:
        pytest.skip("mlir-aie is installed here, so the child process would compile")
    with pytest.raises(DeviceError, match="mlir_aie is not installed: run `pip install mlir_aie=="):
        compile_in_child(NPU1, tmp_path)


def test_xclbinutil_is_asked_for_one_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / XCLBIN
    file.write_bytes(b"before")
    asked: list[list[str]] = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        Path(words[words.index("--output") + 1]).write_bytes(b"after")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    describe_with_xclbinutil(file, "{}")
    assert file.read_bytes() == b"after"
    assert asked[0][-1] == f"USER_METADATA:RAW:{tmp_path / 'description.json'}"


def test_an_absent_or_failing_xclbinutil_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(words, 1, "", "ERROR: no such section")

    def absent(words: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(DeviceError, match=r"does not describe .*: ERROR: no such section"):
        describe_with_xclbinutil(tmp_path / XCLBIN, "{}")
    monkeypatch.setattr(subprocess, "run", absent)
    with pytest.raises(InputError, match="there is no xclbinutil on PATH: run `source"):
        describe_with_xclbinutil(tmp_path / XCLBIN, "{}")


# --- the commands


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(command, "builds_folder", lambda: tmp_path / "npu")
    return tmp_path / "npu"


def test_without_the_toolchain_the_remedies_are_said(
    folder: Path, aieflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "installed_version", {"mlir_aie": "1.3.4"}.get)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = aieflow("npu", "build", "--generation", "npu1")
    assert result.code == 2
    assert "mlir_aie is 1.3.4, these designs are written for 1.4.2: run `pip install" in result.err
    assert "llvm-aie is not installed: run `pip install llvm-aie==" in result.err
    assert "there is no xclbinutil on PATH: run `source" in result.err
    assert "there is no llvm-objcopy on PATH: install llvm" in result.err
    assert not folder.exists()


def test_build_list_check_and_clean(
    folder: Path, aieflow: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "require_toolchain", lambda: None)
    monkeypatch.setattr(command, "compile_in_child", compiled)
    monkeypatch.setattr(command, "describe_with_xclbinutil", described)
    assert "nothing is built" in aieflow("npu", "list").out
    result = aieflow("npu", "build", "--generation", "all")
    assert result.code == 0
    assert "building 2 designs" in result.err
    assert "2 of 2 designs are built" in result.err
    assert "all is built" in aieflow("npu", "build", "--generation", "npu2").out
    shown = aieflow("npu", "list").out
    assert [line.split()[1] for line in shown.splitlines()] == ["current", "current"]
    assert aieflow("npu", "check").code == 0
    (folder / build_name(NPU1) / INSTRUCTIONS).write_bytes(b"")
    result = aieflow("npu", "check")
    assert result.code == 1
    assert f"not ok  {build_name(NPU1)}\n        instructions.bin is not the file" in result.out
    assert "nothing to remove" in aieflow("npu", "clean").out
    assert aieflow("npu", "clean", "--all").out.count("removed npu") == 2


def test_a_build_of_an_unknown_description_is_listed_and_not_ok(
    folder: Path, aieflow: Command
) -> None:
    made: Build = make_build(folder, NPU1, compiled, described)
    content = json.loads((made.folder / BUILD_FILE).read_text())
    content["design"] |= {"colour": 1}
    (made.folder / BUILD_FILE).write_text(json.dumps(content))
    assert "of another version: `aieflow npu clean`" in aieflow("npu", "list").out
    assert "its description is of another version of aieflow" in aieflow("npu", "check").out


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        (None, ("gemm",)),
        ("gelu, relu,gelu", ("gelu", "relu")),
        ("mlp", ("gemm", "relu")),
        ("all", NAMES),
    ],
)
def test_designs_are_built_by_name(
    asked: str | None,
    names: tuple[str, ...],
    folder: Path,
    aieflow: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(command, "require_toolchain", lambda: None)
    monkeypatch.setattr(command, "compile_in_child", compiled)
    monkeypatch.setattr(command, "describe_with_xclbinutil", described)
    words = () if asked is None else ("--design", asked)
    result = aieflow("npu", "build", "--generation", "npu2", *words)
    assert result.code == 0
    assert f"building {len(names)} design" in result.err
    shown = aieflow("npu", "list").out.splitlines()
    assert {line.split("-")[1] for line in shown} == set(names)
    assert len(shown) == len(names)
    assert aieflow("npu", "check").out.count("ok      npu2-") == len(names)
    assert "all is built" in aieflow("npu", "build", "--generation", "npu2", *words).out


def test_a_design_that_does_not_exist_is_refused(folder: Path, aieflow: Command) -> None:
    result = aieflow("npu", "build", "--generation", "npu1", "--design", "gemm,softmax")
    assert result.code == 2
    assert (
        "--design softmax: must be one of gemm, gelu, gelu_backward, relu, mlp, all" in result.err
    )


def test_a_generation_that_does_not_exist_is_refused(folder: Path, aieflow: Command) -> None:
    result = aieflow("npu", "build", "--generation", "npu9")
    assert (result.code, "must be one of npu1, npu2, all" in result.err) == (2, True)
