"""How a recorded GEMM program is held against numpy, the emulator and its description.

Operands are whole numbers of up to 3 bits, so every sum is exact in fp32 and the order of additions
cannot hide an error.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from iron_dataflow import Machine
from iron_recorder import Finish, Link, Recorded, Recorder, Transfer
from iron_structure import fifos

from aieflow.devices import xrt_emulator_array
from aieflow.ops.npu.design import GemmDesign, GemmSize, gemm_program
from aieflow.ops.npu.generation import NPU1
from aieflow.ops.npu.iron_gemm import ELEMENT_NBYTES, gemm_module
from aieflow.ops.npu.iron_release import Iron
from aieflow.ops.npu.layout import a_layout, b_layout, c_layout, gathered, scattered
from aieflow.ops.npu.program import DmaTask

SMALL = GemmDesign(NPU1, 16, 8, 16, columns=4)
SMALL_SIZE = GemmSize(64 * 5, 8 * 3, 64 * 2)  # five row blocks: three groups of tasks
Edit = Callable[[Recorder, Iron], Iron]


def record(design: GemmDesign, size: GemmSize, edit: Edit | None = None) -> Recorded:
    recorder = Recorder()
    iron = recorder.iron() if edit is None else edit(recorder, recorder.iron())
    recorded = gemm_module(design, size, iron)
    assert isinstance(recorded, Recorded)
    return recorded


def operands(size: GemmSize, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    draw = np.random.default_rng(seed)
    return (
        draw.integers(-7, 8, (size.M, size.K)).astype(np.float32),
        draw.integers(-7, 8, (size.K, size.N)).astype(np.float32),
    )


def bits(x: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def packed(design: GemmDesign, size: GemmSize, seed: int) -> list[npt.NDArray[Any]]:
    """The three buffers, and the exact product behind them."""
    a, b = operands(size, seed)
    return [
        scattered(a_layout(design, size), bits(a)),
        scattered(b_layout(design, size), bits(b)),
        np.full(size.M * size.N, np.nan, np.float32),
        a @ b,
    ]


def emulated(
    design: GemmDesign, size: GemmSize, memory: list[npt.NDArray[Any]]
) -> npt.NDArray[np.float32]:
    sides = {
        place: np.array(buffer).view(np.uint8).reshape(-1) for place, buffer in enumerate(memory)
    }
    xrt_emulator_array.execute(
        xrt_emulator_array.prepare(gemm_program(design, size), design), sides
    )
    return sides[2].view(np.float32)


def tiles_of(design: GemmDesign, size: GemmSize) -> dict[str, list[int]]:
    """By fifo: the element at which each of its tiles begins, as the description's program says."""
    names = {0: "a", 1: "b", 2: "c"}
    rows = {design.carrier(row): row for row in range(design.rows)}
    tile = {0: design.m * design.k, 1: design.k * design.n, 2: design.rows * design.m * design.n}
    starts: dict[str, list[int]] = {}
    for task in gemm_program(design, size).commands:
        if isinstance(task, DmaTask):
            operand = task.argument
            nbytes = ELEMENT_NBYTES[operand]
            step = tile[operand]
            count = task.nbytes // task.repeat // nbytes // step
            name = names[operand] + str(rows[task.column] if operand == 0 else task.column)
            for first in task.pass_offsets():
                starts.setdefault(name, []).extend(
                    first // nbytes + step * index for index in range(count)
                )
    return starts


def check_run(machine: Machine, recorded: Recorded, design: GemmDesign, size: GemmSize) -> None:
    """Execute, and hold against numpy, the emulator and the description."""
    *memory, exact = packed(design, size, seed=size.M + size.N)
    expected = emulated(design, size, memory)
    machine.run(recorded, memory)
    product = gathered(c_layout(design, size), memory[2])
    assert np.array_equal(product, exact), "numbers differ from numpy's"
    assert memory[2].tobytes() == expected.tobytes(), "bits differ from the emulator's"
    assert machine.log == tiles_of(design, size), "tiles differ from the description's"


def check_structure(recorded: Recorded, design: GemmDesign) -> None:
    """Raise AssertionError where the static part is not the description's."""
    assert (recorded.device, recorded.columns) == (design.generation.name, design.columns)
    assert len(recorded.workers) == design.rows * design.columns
    for name, fifo in fifos(recorded).items():
        assert fifo.depth == design.fifo_depth, f"fifo {name} has depth {fifo.depth}"
    opened: list[object] = []
    for event in recorded.events:
        if isinstance(event, Transfer):
            link = next(
                end.owner
                for end in (event.end.fifo.producer, *event.end.fifo.consumers)
                if end is not None and isinstance(end.owner, Link)
            )
            assert event.end.tile == replace(link.tile, row=0), "a memory tile of another column"
            if event.group not in opened:
                opened.append(event.group)
        if isinstance(event, Finish):
            assert opened.pop(0) is event.group, "not the oldest group is awaited"
    for worker in recorded.workers:
        *_, parameters, barrier = worker.fn_args
        assert parameters.address == design.parameters_address
        assert barrier.lock == design.barrier_lock
        assert not parameters.values.any()
        assert worker.stack_size == design.generation.stack_nbytes
