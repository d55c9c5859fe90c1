"""Elementwise designs: the program against numpy, the IRON program against both, the limits."""

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from iron_dataflow import DeadlockError, HazardError, Machine
from iron_proof import record
from iron_recorder import FUNCTIONS, Recorded, Recorder
from iron_signatures import RecordError

from aieflow.ops.errors import PlanError
from aieflow.ops.npu.design import GemmDesign, GemmSize
from aieflow.ops.npu.generation import GENERATIONS, NPU1
from aieflow.ops.npu.instructions import decode, encode_program
from aieflow.ops.npu.iron_streaming import GELU_BACKWARD_SOURCE, stream_module
from aieflow.ops.npu.layout import a_layout, b_layout, c_layout, gathered, scattered
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.npu.program import DmaTask, ParameterWrite
from aieflow.ops.npu.streaming import INPUTS, StreamDesign, check_stream, stream_program
from aieflow.ops.pointwise import gelu_backward_reference

Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


def arrays(design: StreamDesign, elements: int) -> list[Bits]:
    """Inputs, and an output of a value that no function gives."""
    draw = np.random.default_rng(elements)
    found = [
        to_bfloat16(3 * draw.standard_normal(elements, np.float32)) for _ in range(design.inputs)
    ]
    return [*found, np.full(elements, 0xFFFF, np.uint16)]


def emulated(design: StreamDesign, memory: list[Bits]) -> Bits:
    """What the decoded instruction stream moves through the cores, column by column."""
    program = decode(encode_program(stream_program(design, memory[0].size)))
    tiles = {c.column: c.value for c in program.commands if isinstance(c, ParameterWrite)}
    tasks = {(c.column, c.argument): c for c in program.commands if isinstance(c, DmaTask)}
    out = memory[-1].copy()
    for column in range(design.columns):
        pieces = []
        for argument in range(design.inputs + 1):
            task = tasks[column, argument]
            assert task.nbytes == 2 * design.tile * tiles[column]
            first = task.offset_nbytes // 2
            pieces.append(slice(first, first + task.nbytes // 2))
        given = [memory[place][piece] for place, piece in enumerate(pieces[:-1])]
        out[pieces[-1]] = FUNCTIONS[f"{design.function}_bf16"](*given)
    return out


def recorded_of(design: StreamDesign, elements: int) -> Recorded:
    recorded = stream_module(design, elements, Recorder().iron())
    assert isinstance(recorded, Recorded)
    return recorded


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("function", INPUTS)
def test_three_sizes_on_one_array(generation: str, function: str) -> None:
    design = StreamDesign(GENERATIONS[generation], function, GENERATIONS[generation].columns)
    sizes = [design.granule * tiles for tiles in (5, 1, 2)]
    programs = [recorded_of(design, elements) for elements in sizes]
    machine = Machine(programs[0])
    for recorded, elements in zip(programs, sizes, strict=True):
        memory: list[Any] = arrays(design, elements)
        expected = FUNCTIONS[f"{function}_bf16"](*memory[:-1])
        through_stream = emulated(design, memory)
        machine.run(recorded, memory)
        assert np.array_equal(memory[-1], expected)
        assert np.array_equal(through_stream, expected)
        for worker in recorded.workers:
            *_, parameters, barrier = worker.fn_args
            assert parameters.address == design.parameters_address
            assert barrier.lock == design.barrier_lock


def test_a_tiny_mlp_is_two_products_with_relu_between() -> None:
    """relu(x W1) W2: the products' xclbin twice, between them the ReLU's; the host packs."""
    products, relu = GemmDesign(NPU1, 16, 8, 16, columns=4), StreamDesign(NPU1, "relu", 4)
    first, second = GemmSize(64, 24, 64), GemmSize(64, 64, 128)
    draw = np.random.default_rng(3)
    x, w1, w2 = (
        draw.integers(-2, 3, shape).astype(np.float32) for shape in ((64, 24), (24, 64), (64, 128))
    )

    def product(machine: Machine, size: GemmSize, a: Floats, b: Floats) -> Floats:
        packed = [
            scattered(a_layout(products, size), to_bfloat16(a)),
            scattered(b_layout(products, size), to_bfloat16(b)),
            np.zeros(size.M * size.N, np.float32),
        ]
        machine.run(record(products, size), packed)
        return gathered(c_layout(products, size), packed[2])

    machine = Machine(record(products, first))
    before = to_bfloat16(product(machine, first, x, w1)).reshape(-1)
    hidden = np.zeros_like(before)
    between = recorded_of(relu, before.size)
    Machine(between).run(between, [before, hidden])
    found = product(machine, second, from_bfloat16(hidden).reshape(64, 64), w2)
    # all numbers are whole and hidden ones at most 96, which bf16 holds: so equal, not close
    assert np.array_equal(found, np.maximum(x @ w1, 0) @ w2)


def test_broken_programs_are_caught() -> None:
    design = StreamDesign(NPU1, "gelu_backward", 4)
    elements = design.granule * 3
    recorded = recorded_of(design, elements)
    for event in recorded.events:
        if getattr(event, "wait", False):
            object.__setattr__(event, "wait", False)
    with pytest.raises(HazardError, match="descriptor freed while in flight"):
        Machine(recorded).run(recorded, arrays(design, elements))
    recorded = recorded_of(design, elements)
    recorded.events = [e for e in recorded.events if getattr(e, "value", None) != 1]
    with pytest.raises(DeadlockError, match="cores at barriers"):
        Machine(recorded).run(recorded, arrays(design, elements))
    with pytest.raises(RecordError, match="a tile of 512, not 1024"):
        recorded_of(replace(design, function="gelu", tile=512), 4 * 512)


GELU = StreamDesign(NPU1, "gelu_backward", 4)


@pytest.mark.parametrize(
    ("change", "elements", "message"),
    [
        ({"function": "tanh"}, 4096, "there are gelu, gelu_backward, relu"),
        ({"columns": 5}, 5120, "5 columns of 4"),
        ({"fifo_depth": 0}, 4096, "fifos of depth 0"),
        ({}, 4095, "4095 elements: no multiple of 4096"),
        ({}, 0, "0 elements: no multiple of 4096"),
        ({"tile": 8192}, 32768, "101664 bytes of a core's 65536"),
        ({"tile": 65536}, 4 * 65536, "tiles of 65536, more than a core's DMA moves at once"),
        ({"tile": 3}, 12, "tiles of 6 bytes are no whole words"),
        ({"fifo_depth": 6}, 4096, "18 descriptors of 16"),
        ({"barrier_lock": 16}, 4096, "barrier lock 16 of 16"),
    ],
)
def test_a_design_that_breaks_a_limit_is_refused(
    change: dict[str, Any], elements: int, message: str
) -> None:
    check_stream(GELU, 4096)
    with pytest.raises(PlanError, match=message):
        check_stream(replace(GELU, **change), elements)


HOST = """
#include <cstdint>
#include <cstring>
struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float x) {
    uint32_t w; memcpy(&w, &x, 4); bits = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
  }
  explicit operator float() const { uint32_t w = bits << 16; float x; memcpy(&x, &w, 4); return x; }
};
"""


def test_the_gradients_source_computes_it_on_a_host(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler here")
    source, library = tmp_path / "gelu.cc", tmp_path / "gelu.so"
    source.write_text(HOST + GELU_BACKWARD_SOURCE)
    flags = ["-shared", "-fPIC", "-O1", "-DTILE=65536", "-o", str(library)]
    subprocess.run([compiler, *flags, str(source)], check=True)
    x = np.arange(65536, dtype=np.uint16)  # every bf16 there is
    x[~np.isfinite(from_bfloat16(x))] = 0
    dy = to_bfloat16(np.random.default_rng(1).standard_normal(65536, np.float32))
    dx = np.zeros(65536, np.uint16)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (x, dy, dx)]
    ctypes.CDLL(str(library)).gelu_backward_bf16(*pointers)
    # beyond 10 the slope is 0 or 1 to all of bf16's bits, and powers of x overflow soon
    near = np.abs(from_bfloat16(x)) <= 10
    wide = [from_bfloat16(array[near]).astype(np.float64) for array in (x, dy)]
    exact = gelu_backward_reference((wide[0], wide[1]), {})[0]
    # Rounding to bf16 is off by 2^-8 of the value at most. Where tanh is cut, 1 - t^2 is 1.8e-4, x
    # is 3.7 and the slope 2.3: half of their product is 8e-4 of dy.
    allowed = 2.0**-8 * 1.01 * np.abs(exact) + 1e-3 * np.abs(wide[1])
    assert np.all(np.abs(from_bfloat16(dx[near]) - exact) <= allowed)
