"""The xclbin: the container (axlf) that XRT registers to set up an NPU.

Written here: the smallest container that XRT 2.13 and 2.20 take (header, kernel metadata, memory
banks, which argument lies in which bank), with a description of our design in the section
USER_METADATA. The emulator reads what it is to compute from there; a container that the compiler
built holds an AIE_PARTITION as well, and can be given the same description, so that both are held
against the design that a program was planned for.

Integers are little-endian; the header has 456 bytes, each section entry 40, bodies begin at
multiples of 8. Section kinds and layouts are those of XRT's `xclbin.h`.
"""

import json
import struct
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from aieflow.ops.errors import InputError
from aieflow.ops.npu.design import GemmDesign
from aieflow.ops.npu.generation import GENERATIONS
from aieflow.ops.npu.standard import AnyDesign
from aieflow.ops.npu.streaming import INPUTS, StreamDesign

MAGIC = b"xclbin2\0"
HEADER = struct.Struct("<8s i 28s 256s Q QQQ HBB HH 16s 64s 16s 16s I 4x")
ENTRY = struct.Struct("<I16s4xQQ")
COUNT = struct.Struct("<i4x")
BANK = struct.Struct("<BB6xQQ16s")
IP = struct.Struct("<IIQ64s")
CONNECTION = struct.Struct("<iii")
VERSION = (2, 13)  # of the layout, as XRT numbers it
EMBEDDED_METADATA, MEM_TOPOLOGY, CONNECTIVITY, IP_LAYOUT, USER_METADATA = 2, 6, 7, 8, 16
GROUP_TOPOLOGY, GROUP_CONNECTIVITY, AIE_PARTITION = 26, 27, 32
SECTION_NAMES = {
    EMBEDDED_METADATA: "EMBEDDED_METADATA",
    MEM_TOPOLOGY: "MEM_TOPOLOGY",
    CONNECTIVITY: "CONNECTIVITY",
    IP_LAYOUT: "IP_LAYOUT",
    USER_METADATA: "USER_METADATA",
    GROUP_TOPOLOGY: "GROUP_TOPOLOGY",
    GROUP_CONNECTIVITY: "GROUP_CONNECTIVITY",
}
REQUIRED = (EMBEDDED_METADATA, MEM_TOPOLOGY, CONNECTIVITY, IP_LAYOUT)
MAX_SECTIONS = 256
MAX_NBYTES = 1 << 30
DPU = 7  # IP type of a kernel that runs instruction streams
FORMAT = "aieflow NPU design"
MAKE, REMEDY = "`aieflow npu build`", "make it again: `aieflow npu build --anew`"

Json = Mapping[str, Any]  # parsed JSON, whose values the type system cannot follow


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of a kernel."""

    name: str
    is_pointer: bool
    size: int
    offset: int
    type: str


@dataclass(frozen=True, slots=True)
class Bank:
    """One memory bank."""

    tag: str
    nbytes: int
    base: int


@dataclass(frozen=True, slots=True)
class Xclbin:
    """What a container says."""

    uuid: uuid.UUID
    platform: str
    kernel: str
    kind: str  # "dpu"
    arguments: tuple[Argument, ...]
    banks: tuple[Bank, ...]
    bank_of: Mapping[int, int]  # by index of a pointer argument
    generation: str | None  # None: the container has no description
    design: Json | None
    is_emulated: bool  # holds no AIE_PARTITION, so no hardware runs it


HOST_BANK, SRAM_BANK = 0, 1
BANKS = (Bank("HOST", 1 << 36, 0x10000), Bank("SRAM", 48 << 20, 0xC000))


def gemm_arguments(buffers: int = 5) -> tuple[Argument, ...]:
    """The arguments that every IRON design has: opcode, instructions, their length, buffers."""
    head = (
        Argument("opcode", False, 8, 0x00, "uint64_t"),
        Argument("instr", True, 8, 0x08, "char *"),
        Argument("ninstr", False, 4, 0x10, "uint32_t"),
    )
    return head + tuple(
        Argument(f"bo{place}", True, 8, 0x14 + 8 * place, "void*") for place in range(buffers)
    )


def emulated_xclbin(described: AnyDesign, buffers: int = 5) -> Xclbin:
    """A container for the emulator; equal designs have equal uuids."""
    generation, design = described.generation.name, describe_design(described)
    content = json.dumps({"generation": generation, "design": design}, sort_keys=True)
    arguments = gemm_arguments(buffers)
    return Xclbin(
        uuid=uuid.uuid5(uuid.NAMESPACE_OID, f"{FORMAT} {content} {buffers}"),
        platform=f"aieflow_emulated_{generation}",
        kernel="MLIR_AIE",
        kind="dpu",
        arguments=arguments,
        banks=BANKS,
        bank_of={
            place: SRAM_BANK if place == 1 else HOST_BANK
            for place, argument in enumerate(arguments)
            if argument.is_pointer
        },
        generation=generation,
        design=design,
        is_emulated=True,
    )


def write_xclbin(path: Path, xclbin: Xclbin) -> None:
    """Write the container; the same one gives the same bytes."""
    topology = COUNT.pack(len(xclbin.banks)) + b"".join(
        BANK.pack(2, 1, bank.nbytes >> 10, bank.base, bank.tag.encode()) for bank in xclbin.banks
    )
    connectivity = struct.pack("<i", len(xclbin.bank_of)) + b"".join(
        CONNECTION.pack(argument, 0, bank) for argument, bank in sorted(xclbin.bank_of.items())
    )
    description = {
        "format": FORMAT,
        "version": 1,
        "generation": xclbin.generation,
        "design": xclbin.design,
    }
    bodies = {
        EMBEDDED_METADATA: _metadata(xclbin),
        IP_LAYOUT: COUNT.pack(1)
        + IP.pack(DPU, 0, (1 << 64) - 1, f"{xclbin.kernel}:MLIRAIE".encode()),
        MEM_TOPOLOGY: topology,
        CONNECTIVITY: connectivity,
        GROUP_TOPOLOGY: topology,
        GROUP_CONNECTIVITY: connectivity,
        USER_METADATA: json.dumps(description, sort_keys=True).encode(),
    }
    entries, body = [], b""
    start = HEADER.size + ENTRY.size * len(bodies)
    for kind, content in bodies.items():
        body += bytes(-(start + len(body)) % 8)
        name = SECTION_NAMES[kind].encode()[:15]
        entries.append(ENTRY.pack(kind, name, start + len(body), len(content)))
        body += content
    identity = xclbin.uuid.bytes
    header = HEADER.pack(
        *(MAGIC, -1, b"\xff" * 28, bytes(256)),
        *(int.from_bytes(identity[:8], "little"), start + len(body), 0, 0),
        *(0, *VERSION, 0, 0),
        *(bytes(16), xclbin.platform.encode()[:63], identity, bytes(16), len(bodies)),
    )
    path.write_bytes(header + b"".join(entries) + body)


def _metadata(xclbin: Xclbin) -> bytes:
    project = ElementTree.Element("project", name="aieflow")
    platform = ElementTree.SubElement(project, "platform", name=xclbin.platform, vendor="aieflow")
    device = ElementTree.SubElement(platform, "device", name="fpga0")
    core = ElementTree.SubElement(device, "core", name="OCL_REGION_0", target="bitstream")
    kernel = ElementTree.SubElement(
        core, "kernel", name=xclbin.kernel, language="c", type=xclbin.kind
    )
    for place, argument in enumerate(xclbin.arguments):
        ElementTree.SubElement(
            kernel,
            "arg",
            name=argument.name,
            addressQualifier=str(int(argument.is_pointer)),
            id=str(place),
            size=hex(argument.size),
            offset=hex(argument.offset),
            hostOffset="0x0",
            hostSize=hex(argument.size),
            type=argument.type,
        )
    ElementTree.SubElement(kernel, "instance", name="MLIRAIE")
    text: bytes = ElementTree.tostring(project, encoding="utf-8", xml_declaration=True)
    return text


def read_xclbin(path: Path) -> Xclbin:
    """What the container at `path` says; raises InputError with the place and the remedy."""
    try:
        if path.stat().st_size > MAX_NBYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes are no xclbin: {REMEDY}")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}: give an xclbin, or make one: {MAKE}") from None
    reader = _Reader(path, content)
    header = reader.unpack(HEADER, 0, "header")
    if header[0] != MAGIC:
        raise reader.fault(0, f"begins with {header[0]!r} instead of {MAGIC!r}")
    if header[5] != len(content):
        raise reader.fault(304, f"says {header[5]} bytes, the file has {len(content)}")
    platform, identity, count = header[14], header[15], header[17]
    if identity == bytes(16):
        raise reader.fault(HEADER.size - 40, "has no uuid")
    sections = reader.sections(count)
    for kind in REQUIRED:
        if kind not in sections:
            raise reader.fault(HEADER.size, f"has no section {SECTION_NAMES[kind]}")
    kernel, kind_name, arguments = reader.kernel(*sections[EMBEDDED_METADATA])
    banks = reader.banks(*sections[MEM_TOPOLOGY])
    generation, design = None, None
    if USER_METADATA in sections:
        generation, design = reader.description(*sections[USER_METADATA])
    return Xclbin(
        uuid=uuid.UUID(bytes=identity),
        platform=platform.rstrip(b"\0").decode("utf-8", "replace"),
        kernel=kernel,
        kind=kind_name,
        arguments=arguments,
        banks=banks,
        bank_of=reader.connections(*sections[CONNECTIVITY], len(arguments), len(banks)),
        generation=generation,
        design=design,
        is_emulated=AIE_PARTITION not in sections,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """A container's bytes, read with checks."""

    path: Path
    content: bytes

    def fault(self, offset: int, what: str) -> InputError:
        return InputError(f"{self.path}: offset {offset}: {what}: not a usable xclbin: {REMEDY}")

    def unpack(self, layout: struct.Struct, offset: int, what: str) -> tuple[Any, ...]:
        if offset < 0 or offset + layout.size > len(self.content):
            raise self.fault(
                offset, f"{what} needs {layout.size} bytes, the file has {len(self.content)}"
            )
        return layout.unpack_from(self.content, offset)

    def sections(self, count: int) -> dict[int, tuple[int, int]]:
        """Offset and size of each section, by kind."""
        if not 1 <= count <= MAX_SECTIONS:
            raise self.fault(HEADER.size - 8, f"says {count} sections")
        found: dict[int, tuple[int, int]] = {}
        for place in range(count):
            entry = HEADER.size + place * ENTRY.size
            kind, _, offset, size = self.unpack(ENTRY, entry, f"section entry {place}")
            if offset < HEADER.size + count * ENTRY.size or offset + size > len(self.content):
                raise self.fault(entry, f"section {place} lies outside of the file")
            if kind in SECTION_NAMES and kind in found:
                raise self.fault(entry, f"has a second section {SECTION_NAMES[kind]}")
            found[kind] = (offset, size)
        return found

    def kernel(self, offset: int, size: int) -> tuple[str, str, tuple[Argument, ...]]:
        """Name, type and arguments of the one kernel."""
        try:
            project = ElementTree.fromstring(self.content[offset : offset + size].rstrip(b"\0"))
            (kernel,) = project.iter("kernel")
            arguments = []
            for place, arg in enumerate(kernel.iter("arg")):
                if int(arg.attrib["id"]) != place:
                    raise ValueError(f"argument {arg.attrib['id']} stands in place {place}")
                arguments.append(
                    Argument(
                        arg.attrib["name"],
                        arg.attrib["addressQualifier"] == "1",
                        int(arg.attrib["size"], 0),
                        int(arg.attrib["offset"], 0),
                        arg.attrib["type"],
                    )
                )
            name, kind = kernel.attrib["name"], kernel.attrib.get("type", "")
        except (ElementTree.ParseError, KeyError, ValueError) as error:
            raise self.fault(
                offset, f"EMBEDDED_METADATA describes no single kernel ({error})"
            ) from None
        if kind != "dpu" or len(arguments) < 4:
            raise self.fault(
                offset, f"kernel {name!r} has type {kind!r} and {len(arguments)} arguments"
            )
        return name, kind, tuple(arguments)

    def banks(self, offset: int, size: int) -> tuple[Bank, ...]:
        """The memory banks."""
        (count,) = self.unpack(COUNT, offset, "MEM_TOPOLOGY")
        if count < 1 or COUNT.size + count * BANK.size > size:
            raise self.fault(offset, f"MEM_TOPOLOGY says {count} banks in {size} bytes")
        banks = []
        for place in range(count):
            entry = offset + COUNT.size + place * BANK.size
            _, _, kib, base, tag = self.unpack(BANK, entry, f"bank {place}")
            banks.append(Bank(tag.rstrip(b"\0").decode("utf-8", "replace"), kib << 10, base))
        return tuple(banks)

    def connections(self, offset: int, size: int, arguments: int, banks: int) -> dict[int, int]:
        """The bank of each pointer argument."""
        (count,) = self.unpack(struct.Struct("<i"), offset, "CONNECTIVITY")
        if count < 0 or 4 + count * CONNECTION.size > size:
            raise self.fault(offset, f"CONNECTIVITY says {count} connections in {size} bytes")
        bank_of = {}
        for place in range(count):
            entry = offset + 4 + place * CONNECTION.size
            argument, _, bank = self.unpack(CONNECTION, entry, f"connection {place}")
            if not (0 <= argument < arguments and 0 <= bank < banks):
                raise self.fault(entry, f"connects argument {argument} to bank {bank}")
            bank_of[argument] = bank
        return bank_of

    def description(self, offset: int, size: int) -> tuple[str | None, Json | None]:
        """Generation and design; None for somebody else's USER_METADATA."""
        try:
            found = json.loads(self.content[offset : offset + size].rstrip(b"\0"))
        except ValueError:
            return None, None
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            return None, None
        generation, design = found.get("generation"), found.get("design")
        if found.get("version") != 1:
            raise self.fault(offset, f"design of version {found.get('version')!r} instead of 1")
        if not isinstance(generation, str) or not isinstance(design, dict):
            raise self.fault(offset, "USER_METADATA names no generation or no design")
        return generation, design


def describe_design(design: AnyDesign) -> Json:
    """A design as JSON; `read_any_design` is its inverse."""
    return {
        field.name: getattr(design, field.name)
        for field in fields(design)
        if field.name != "generation"
    }


def design_of(generation: str, description: Json) -> AnyDesign:
    """The design that JSON describes; raises InputError with what it should have."""
    if generation not in GENERATIONS:
        raise InputError(f"it is for {generation!r}: there are {', '.join(GENERATIONS)}")
    numbers = dict(description)
    function = numbers.pop("function", None)
    kind = GemmDesign if function is None else StreamDesign
    names = {field.name for field in fields(kind)} - {"generation", "function"}
    if set(numbers) != names or not all(
        isinstance(value, int) and not isinstance(value, bool) and value > 0
        for value in numbers.values()
    ):
        raise InputError(
            f"it describes the design {dict(description)}, "
            f"which should have positive integers {sorted(names)}: {REMEDY}"
        )
    if function is None:
        return GemmDesign(GENERATIONS[generation], **numbers)
    if function not in INPUTS:
        raise InputError(f"it computes {function!r}: there are {', '.join(INPUTS)}: {REMEDY}")
    return StreamDesign(GENERATIONS[generation], function, **numbers)


def read_any_design(xclbin: Xclbin) -> AnyDesign:
    """The design that a container describes; raises InputError where it describes none."""
    if xclbin.design is None or xclbin.generation is None:
        raise InputError(f"xclbin {xclbin.uuid} describes no design: make one: {MAKE}")
    try:
        return design_of(xclbin.generation, xclbin.design)
    except InputError as error:
        raise InputError(f"xclbin {xclbin.uuid}: {error}") from None


def read_design(xclbin: Xclbin) -> GemmDesign:
    """The product's design that a container describes; raises InputError where it has another."""
    design = read_any_design(xclbin)
    if not isinstance(design, GemmDesign):
        raise InputError(
            f"xclbin {xclbin.uuid} computes {design.function}, no products: make one: {MAKE}"
        )
    return design
