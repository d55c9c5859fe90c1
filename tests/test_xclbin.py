"""The xclbin container: what is written is read, and what is damaged is refused with its place."""

import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from aieflow.devices.xclbin import (
    AIE_PARTITION,
    CONNECTIVITY,
    EMBEDDED_METADATA,
    ENTRY,
    GROUP_CONNECTIVITY,
    GROUP_TOPOLOGY,
    HEADER,
    IP_LAYOUT,
    MEM_TOPOLOGY,
    SECTION_NAMES,
    USER_METADATA,
    describe_design,
    emulated_xclbin,
    read_design,
    read_xclbin,
    write_xclbin,
)
from aieflow.ops.errors import InputError
from aieflow.ops.npu.design import DESIGNS

DESIGN = DESIGNS["npu1"]
Entries = dict[int, tuple[int, int, int]]  # kind -> place of the entry, offset, size of the body


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    write_xclbin(tmp_path / "good.xclbin", emulated_xclbin(DESIGN))
    return (tmp_path / "good.xclbin").read_bytes()


def entries_of(content: bytes) -> Entries:
    """The section table, read anew from the layout that XRT documents."""
    (count,) = struct.unpack_from("<I", content, 448)
    found = {}
    for place in range(count):
        at = 456 + 40 * place
        (kind,) = struct.unpack_from("<I", content, at)
        offset, size = struct.unpack_from("<QQ", content, at + 24)
        found[kind] = (at, offset, size)
    return found


@pytest.mark.parametrize("name", ["npu1", "npu2"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.xclbin"
    xclbin = emulated_xclbin(DESIGNS[name])
    write_xclbin(path, xclbin)
    assert read_xclbin(path) == xclbin
    assert read_design(read_xclbin(path)) == DESIGNS[name]
    assert xclbin.generation == name
    assert "emulated" in xclbin.platform
    assert xclbin.is_emulated


def test_the_layout_is_the_one_that_xrt_reads(content: bytes) -> None:
    assert (HEADER.size, ENTRY.size) == (456, 40)
    assert content[:8] == b"xclbin2\0"
    assert struct.unpack_from("<i", content, 8) == (-1,)
    assert content[12:40] == b"\xff" * 28
    assert struct.unpack_from("<Q", content, 304) == (len(content),)
    entries = entries_of(content)
    assert set(entries) == {
        *(EMBEDDED_METADATA, MEM_TOPOLOGY, CONNECTIVITY, IP_LAYOUT, USER_METADATA),
        *(GROUP_TOPOLOGY, GROUP_CONNECTIVITY),
    }
    assert all(offset % 8 == 0 for _, offset, _ in entries.values())

    _, at, size = entries[EMBEDDED_METADATA]
    xml = content[at : at + size].decode()
    assert 'name="MLIR_AIE"' in xml
    assert 'type="dpu"' in xml
    assert xml.count("<arg ") == 8
    _, at, size = entries[IP_LAYOUT]
    assert struct.unpack_from("<i4xIIQ", content, at) == (1, 7, 0, (1 << 64) - 1)
    assert content[at + 24 : at + 40] == b"MLIR_AIE:MLIRAIE"
    for kind in (MEM_TOPOLOGY, GROUP_TOPOLOGY):
        _, at, size = entries[kind]
        banks = [struct.unpack_from("<BB6xQQ16s", content, at + 8 + 40 * i) for i in range(2)]
        assert [(bank[3], bank[4].rstrip(b"\0")) for bank in banks] == [
            (0x10000, b"HOST"),
            (0xC000, b"SRAM"),
        ]
        assert size == 88
    for kind in (CONNECTIVITY, GROUP_CONNECTIVITY):
        _, at, size = entries[kind]
        connections = [struct.unpack_from("<iii", content, at + 4 + 12 * i) for i in range(6)]
        # argument, IP, bank: instructions in SRAM, five buffers in HOST
        assert connections == [(1, 0, 1), *((argument, 0, 0) for argument in range(3, 8))]
        assert size == 76


def test_equal_designs_have_equal_uuids_and_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_xclbin(tmp_path / name, emulated_xclbin(DESIGN))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    other = emulated_xclbin(replace(DESIGN, n=DESIGN.n * 2))
    assert other.uuid != emulated_xclbin(DESIGN).uuid
    assert emulated_xclbin(DESIGNS["npu2"]).uuid != emulated_xclbin(DESIGN).uuid


def test_a_design_is_told_from_another(tmp_path: Path) -> None:
    other = replace(DESIGN, fifo_depth=1)
    write_xclbin(tmp_path / "other", emulated_xclbin(other))
    assert read_design(read_xclbin(tmp_path / "other")) == other
    assert read_design(read_xclbin(tmp_path / "other")) != DESIGN


def patched(content: bytes, at: int, layout: str, *values: object) -> bytes:
    data = bytearray(content)
    struct.pack_into(layout, data, at, *values)
    return bytes(data)


def without(content: bytes, kind: int) -> bytes:
    """The container with one section renamed to a kind that nobody reads."""
    return patched(content, entries_of(content)[kind][0], "<I", 29)


def edited(content: bytes, kind: int, old: bytes, new: bytes) -> bytes:
    _, at, size = entries_of(content)[kind]
    body = content[at : at + size]
    assert old in body
    assert len(old) == len(new)
    return content[:at] + body.replace(old, new, 1) + content[at + size :]


Damage = Callable[[bytes], bytes]
DAMAGES: list[tuple[str, Damage, str]] = [
    ("empty", lambda c: b"", "offset 0: header needs 456 bytes, the file has 0"),
    ("short", lambda c: c[:300], "offset 0: header needs 456 bytes, the file has 300"),
    ("magic", lambda c: b"ELF" + c[3:], "offset 0: begins with b'ELF"),
    ("cut", lambda c: c[:-1], "offset 304: says"),
    ("longer", lambda c: c + b"\0", "offset 304: says"),
    ("uuid", lambda c: patched(c, 416, "<16s", bytes(16)), "offset 416: has no uuid"),
    ("no sections", lambda c: patched(c, 448, "<I", 0), "offset 448: says 0 sections"),
    ("many sections", lambda c: patched(c, 448, "<I", 1 << 31), "says 2147483648 sections"),
    (
        "outside",
        lambda c: patched(c, 456 + 24, "<Q", len(c)),
        "offset 456: section 0 lies outside of the file",
    ),
    ("in the header", lambda c: patched(c, 456 + 24, "<Q", 8), "section 0 lies outside"),
    (
        "twice",
        lambda c: patched(c, entries_of(c)[GROUP_TOPOLOGY][0], "<I", MEM_TOPOLOGY),
        "second section MEM_TOPOLOGY",
    ),
    *(
        (f"no {SECTION_NAMES[kind]}", lambda c, kind=kind: without(c, kind), SECTION_NAMES[kind])
        for kind in (EMBEDDED_METADATA, MEM_TOPOLOGY, CONNECTIVITY, IP_LAYOUT)
    ),
    (
        "xml",
        lambda c: edited(c, EMBEDDED_METADATA, b"<platform", b"<platforn"),
        "EMBEDDED_METADATA describes no single kernel (mismatched tag",
    ),
    (
        "pl kernel",
        lambda c: edited(c, EMBEDDED_METADATA, b'"dpu"', b'"plx"'),
        "kernel 'MLIR_AIE' has type 'plx'",
    ),
    (
        "argument order",
        lambda c: edited(c, EMBEDDED_METADATA, b'id="1"', b'id="2"'),
        "argument 2 stands in place 1",
    ),
    (
        "banks",
        lambda c: patched(c, entries_of(c)[MEM_TOPOLOGY][1], "<i", 3),
        "MEM_TOPOLOGY says 3 banks in 88 bytes",
    ),
    (
        "connections",
        lambda c: patched(c, entries_of(c)[CONNECTIVITY][1], "<i", -1),
        "CONNECTIVITY says -1 connections",
    ),
    (
        "bank of an argument",
        lambda c: patched(c, entries_of(c)[CONNECTIVITY][1] + 4, "<iii", 1, 0, 2),
        "connects argument 1 to bank 2",
    ),
    (
        "version of the description",
        lambda c: edited(c, USER_METADATA, b'"version": 1', b'"version": 2'),
        "design of version 2 instead of 1",
    ),
    (
        "generation",
        lambda c: edited(c, USER_METADATA, b'"npu1"', b"  null"),
        "names no generation",
    ),
]


@pytest.mark.parametrize(("damage", "words"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_a_damaged_container_is_refused(
    tmp_path: Path, content: bytes, damage: Damage, words: str
) -> None:
    path = tmp_path / "bad.xclbin"
    path.write_bytes(damage(content))
    with pytest.raises(InputError) as error:
        read_xclbin(path)
    assert words in str(error.value)
    assert str(path) in str(error.value)
    assert "make it again: `aieflow npu build --anew`" in str(error.value)


def test_no_single_flipped_byte_crashes_the_reader(tmp_path: Path, content: bytes) -> None:
    """Whatever one byte becomes, the container is read or refused."""
    path = tmp_path / "flipped.xclbin"
    outcomes = set()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xA5]) + content[place + 1 :])
        try:
            read_xclbin(path)
            outcomes.add("read")
        except InputError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.xclbin: No such file"):
        read_xclbin(tmp_path / "nothing.xclbin")


def test_a_foreign_container_has_no_design(tmp_path: Path, content: bytes) -> None:
    """One that the compiler built, with an AIE_PARTITION and without our description."""
    path = tmp_path / "foreign.xclbin"
    path.write_bytes(patched(content, entries_of(content)[USER_METADATA][0], "<I", AIE_PARTITION))
    xclbin = read_xclbin(path)
    assert (xclbin.generation, xclbin.design, xclbin.is_emulated) == (None, None, False)
    with pytest.raises(InputError, match="describes no design"):
        read_design(xclbin)
    path.write_bytes(edited(content, USER_METADATA, b"aieflow NPU design", b"something else    "))
    assert read_xclbin(path).design is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"generation": "npu9"}, "is for 'npu9': there are npu1, npu2"),
        ({"design": {"m": 64}}, "should have positive integers"),
        ({"design": {**describe_design(DESIGN), "m": 0}}, "should have positive integers"),
        ({"design": {**describe_design(DESIGN), "m": True}}, "should have positive integers"),
        ({"design": {**describe_design(DESIGN), "m": "64"}}, "should have positive integers"),
        ({"design": {**describe_design(DESIGN), "x": 1}}, "should have positive integers"),
    ],
)
def test_a_description_that_is_none_is_refused(change: dict[str, object], words: str) -> None:
    xclbin = replace(emulated_xclbin(DESIGN), uuid=uuid.UUID(int=1), **change)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(InputError, match=words):
        read_design(xclbin)
