"""The IRON programs of GEMM designs: what they say, recorded, executed and held against two others.

The recorded dataflow is compared with the description's own program (same tiles, same order), with
the emulator (same bits) and with numpy. No mlir-aie is needed: what it would make of the calls is
what `iron_recorder` and `iron_dataflow` say of its rules.
"""

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from iron_dataflow import Machine
from iron_proof import check_run, check_structure, record, tiles_of
from iron_recorder import Bfloat16, Transfer
from iron_structure import shim_ends

from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.ops.errors import InputError, PlanError
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.checker import check_design
from aieflow.ops.npu.design import DESIGNS, GemmDesign, GemmSize, gemm_program
from aieflow.ops.npu.expansion import expand_matmul
from aieflow.ops.npu.generation import GENERATIONS, NPU1, NPU2
from aieflow.ops.npu.iron_release import (
    INSTALL,
    LLVM_AIE_VERSION,
    MLIR_AIE_VERSION,
    load_iron,
    version_fault,
)
from aieflow.ops.npu.ops import gemm_size_of
from aieflow.ops.npu.program import DmaTask

ROOMS = ("ops", "devices", "profiles", "runtime", "gpt2", "tools")


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_standard_designs_compute_and_keep_their_xclbin(generation: str) -> None:
    """Three sizes after each other on one array, as one xclbin serves them."""
    design = DESIGNS[generation]
    granule = design.granule
    sizes = [
        GemmSize(granule.M * blocks, granule.K * inner, granule.N * across)
        for blocks, inner, across in ((5, 2, 1), (1, 1, 2), (2, 3, 1))
    ]
    programs = [record(design, size) for size in sizes]
    machine = Machine(programs[0])
    for recorded, size in zip(programs, sizes, strict=True):
        check_structure(recorded, design)
        check_run(machine, recorded, design, size)


def random_design(draw: random.Random) -> GemmDesign:
    """A legal design; raises nothing, tries until one is."""
    while True:
        generation = draw.choice([NPU1, NPU2])
        down, inner, across = generation.tile_multiple
        design = GemmDesign(
            generation,
            down * draw.randint(1, 4),
            inner * draw.randint(1, 6),
            across * draw.randint(1, 3),
            columns=draw.choice([4, generation.columns]),
            fifo_depth=draw.randint(2, 3),
            group_blocks=draw.randint(1, 2),
            groups=draw.randint(1, 2),
            barrier_lock=draw.randint(6, 15),
        )
        try:
            check_design(design)
        except PlanError:
            continue
        return design


@pytest.mark.parametrize("part", range(4))
def test_random_legal_designs(part: int) -> None:
    """100 in all, each with two sizes."""
    draw = random.Random(part)
    for _ in range(25):
        design = random_design(draw)
        granule = design.granule
        sizes = [
            GemmSize(*(of * draw.randint(1, 3) for of in (granule.M, granule.K, granule.N)))
            for _ in range(2)
        ]
        programs = [record(design, size) for size in sizes]
        machine = Machine(programs[0])
        for recorded, size in zip(programs, sizes, strict=True):
            check_structure(recorded, design)
            check_run(machine, recorded, design, size)


def gpt2_sizes(preset: str, batch: int, tokens: int, design: GemmDesign) -> set[GemmSize]:
    """Every size of product of a training step, with its chunks."""
    return {
        design.padded(gemm_size_of(part.attrs))
        for node in training_step(PRESETS[preset], batch, tokens).nodes
        if node.op is MATMUL
        for part in expand_matmul(node, design)
        if part.op.name == "npu_gemm"
    }


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_gpt2_products_stream_the_descriptions_tiles(generation: str, preset: str) -> None:
    """A training step of 1024 tokens: the same tiles in the same order, not multiplied."""
    design = DESIGNS[generation]
    tokens = min(PRESETS[preset].seq_len, 256)
    sizes = gpt2_sizes(preset, 1024 // tokens, tokens, design)
    assert len(sizes) >= 7
    for size in sorted(sizes, key=lambda each: each.flops):
        recorded = record(design, size)
        check_structure(recorded, design)
        machine = Machine(recorded)
        for event in recorded.events:
            machine_log(machine, event)
        assert machine.log == tiles_of(design, size)


def machine_log(machine: Machine, event: object) -> None:
    """Note a transfer's tiles without moving them."""
    if isinstance(event, Transfer):
        starts, _ = machine._cut(event.tap, event.end.fifo.kind.size)
        machine.log.setdefault(event.end.fifo.name, []).extend(starts.tolist())


@pytest.mark.slow
@pytest.mark.parametrize("generation", GENERATIONS)
def test_gpt2_products_compute(generation: str) -> None:
    """The same, multiplied tile by tile, one after the other on one array."""
    design = DESIGNS[generation]
    sizes = sorted(gpt2_sizes("124M", 4, 256, design), key=lambda size: size.flops)
    machine = Machine(record(design, sizes[0]))
    for size in sizes:
        check_run(machine, record(design, size), design, size)


def test_shims_carry_what_the_encoder_says() -> None:
    """mlir-aie gives each fifo the first free channel of its tile, fifos in the order of names."""
    compared = 0
    for design in DESIGNS.values():
        size = design.granule
        channels: dict[tuple[int, bool], int] = {}
        given: dict[tuple[int, str], int] = {}
        for name, column, is_out in sorted(shim_ends(record(design, size))):
            given[column, name[0]] = channels.setdefault((column, is_out), 0)
            channels[column, is_out] += 1
        for task in gemm_program(design, size).commands:
            if isinstance(task, DmaTask):
                assert given[task.column, "abc"[task.argument]] == task.channel
                compared += 1
    assert compared == (4 + 4 + 4) + (4 + 8 + 8)


def test_mlir_aie_is_imported_in_one_place() -> None:
    """Nothing but `iron_release` names a module of it as such."""
    root = Path(__file__).parent.parent
    named = re.compile(
        r"""["']aie\.(iron|helpers|utils|ir|dialects)|^\s*(import|from) aie\b""", re.M
    )
    files = [file for room in ROOMS for file in (root / room).rglob("*.py")]
    found = [file.name for file in files if named.search(file.read_text(encoding="utf-8"))]
    assert found == ["iron_release.py"]


def no_modules(name: str) -> Any:  # noqa: ANN401
    raise ImportError(f"No module named {name!r}")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "mlir_aie is not installed: run `pip install mlir_aie==1.4.2 -f https://"),
        ("1.3.4", "mlir_aie is 1.3.4, these designs are written for 1.4.2: run `pip install"),
        (MLIR_AIE_VERSION, r"installed but does not import \(No module named 'aie.iron'\)"),
    ],
)
def test_another_release_is_refused_with_the_wheel_and_its_index(
    found: str | None, message: str
) -> None:
    versions: Mapping[str, str | None] = {"mlir_aie": found}
    with pytest.raises(InputError, match=message):
        load_iron(no_modules, versions.get)


def test_the_pinned_release_is_loaded() -> None:
    class Module:
        bfloat16 = Bfloat16

    asked: list[str] = []

    def load(name: str) -> Any:  # noqa: ANN401
        asked.append(name)
        return Module

    assert load_iron(load, {"mlir_aie": MLIR_AIE_VERSION}.get).bfloat16 is Bfloat16
    assert asked[0] == "aie.iron"


def test_a_python_without_wheels_is_told() -> None:
    assert version_fault("llvm-aie", LLVM_AIE_VERSION) is None
    fault = version_fault("llvm-aie", None, python=(3, 15))
    assert fault is not None
    assert "wheels for Python 3.11 to 3.14, this is 3.15" in fault
    assert INSTALL["llvm-aie"] in fault
