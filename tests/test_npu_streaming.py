"""Elementwise designs: broken programs, the limits, the source of GELU's gradient."""

import ctypes
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from iron_dataflow import DeadlockError, HazardError, Machine
from iron_recorder import FUNCTIONS, Recorded, Recorder, pattern
from iron_structure import fifos

from aieflow.devices.xrt_emulator_stream import execute_stream, prepare_stream
from aieflow.ops.errors import PlanError
from aieflow.ops.npu.generation import NPU1, NPU2
from aieflow.ops.npu.iron_streaming import GELU_BACKWARD, stream_module
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.npu.streaming import StreamDesign, check_stream, stream_program
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


def recorded_of(design: StreamDesign, elements: int) -> Recorded:
    recorded = stream_module(design, elements, Recorder().iron())
    assert isinstance(recorded, Recorded)
    return recorded


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
    recorded = recorded_of(replace(design, fifo_depth=1), elements)
    assert {fifo.depth for fifo in fifos(recorded).values()} == {1}  # no ping-pong, as it says
    assert {fifo.depth for fifo in fifos(recorded_of(design, elements)).values()} == {2}


def strided(given: dict[str, Any]) -> None:
    given["strides"] = [0, given["strides"][1] // 2, *given["strides"][2:]]


def unmoved(given: dict[str, Any]) -> None:
    given["offset"] = 0


@pytest.mark.parametrize("change", [strided, unmoved])
def test_patterns_that_differ_give_other_numbers(change: Callable[[dict[str, Any]], None]) -> None:
    design = StreamDesign(NPU1, "gelu_backward", 4)
    elements = 2 * design.granule
    iron = Recorder().iron()

    def told(dims: tuple[int, ...], **given: Any) -> Any:  # noqa: ANN401
        change(given)
        return pattern(dims, **given)

    bad = stream_module(
        design, elements, replace(iron, taplib=SimpleNamespace(TensorAccessPattern=told))
    )
    found: list[bool] = []
    for recorded in (bad, recorded_of(design, elements)):
        memory: list[Any] = arrays(design, elements)
        Machine(recorded).run(recorded, memory)
        found.append(np.array_equal(memory[-1], FUNCTIONS["gelu_backward_bf16"](*memory[:-1])))
    assert found == [False, True]


def test_random_legal_designs() -> None:
    draw = random.Random(7)
    for _ in range(25):
        generation = draw.choice([NPU1, NPU2])
        design = StreamDesign(
            generation,
            "gelu_backward",
            draw.randint(1, generation.columns),
            64 * draw.randint(1, 20),
            draw.randint(2, 5),
            draw.randint(6, 15),
        )
        sizes = [design.granule * draw.randint(1, 4) for _ in range(2)]
        programs = [recorded_of(design, elements) for elements in sizes]
        machine = Machine(programs[0])
        for recorded, elements in zip(programs, sizes, strict=True):
            memory: list[Any] = arrays(design, elements)
            expected = FUNCTIONS["gelu_backward_bf16"](*memory[:-1])
            machine.run(recorded, memory)
            assert np.array_equal(memory[-1], expected)
            sides = {
                place: each.view(np.uint8) for place, each in enumerate(arrays(design, elements))
            }
            execute_stream(prepare_stream(stream_program(design, elements), design), sides)
            assert np.array_equal(sides[design.inputs].view(np.uint16), expected)


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
        ({"tile": 96}, 4 * 96, "tiles of 192 bytes are no 32 rows of whole words"),
        ({"function": "relu", "tile": 512}, 2048, "tiles of 512, mlir-aie's kernel takes 1024"),
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
    source.write_text(HOST + GELU_BACKWARD.read_text(encoding="utf-8"))
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
