"""The flow of a GEMM design: its DMA tasks, played on packed buffers, compute the product.

`play` knows only what the hardware knows: streams of granules in the order in which tasks push
them, cores that take tile after tile, and micro-tiles as the core's multiply reads them.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from aieflow.ops.npu.checker import check
from aieflow.ops.npu.design import (
    DESIGNS,
    A,
    B,
    C,
    GemmDesign,
    GemmSize,
    gemm_program,
    parameters,
)
from aieflow.ops.npu.generation import NPU1, NPU2
from aieflow.ops.npu.layout import a_layout, b_layout, c_layout, gathered, scattered
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.npu.program import DmaTask, LockSet, ParameterWrite, Program, Sync

Floats = npt.NDArray[np.float32]
SMALL1 = GemmDesign(NPU1, 16, 8, 16, columns=4)
SMALL2 = GemmDesign(NPU2, 8, 8, 32, columns=8)


def granules(task: DmaTask) -> npt.NDArray[np.int64]:
    """Indices of the granules that a task visits, pass after pass."""
    one = np.zeros(1, np.int64)
    for size, stride in zip(task.sizes, task.strides, strict=True):
        one = (one[:, None] + stride * np.arange(size)[None, :]).reshape(-1)
    return np.concatenate([start // 4 + one for start in task.pass_offsets()])


def stream(program: Program, buffer: npt.NDArray[np.uint32], place: tuple[int, int]) -> Floats:
    """What flows through a channel into the array, as bf16 values."""
    tasks = [
        task
        for task in program.commands
        if isinstance(task, DmaTask)
        and (task.column, task.channel, task.direction) == (*place, "in")
    ]
    parts = [buffer[granules(task)] for task in tasks]
    flow = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
    return from_bfloat16(flow.view(np.uint16))


def rows_of(tile: Floats, shape: tuple[int, int], micro: tuple[int, int]) -> Floats:
    """A micro-tiled tile, row-major."""
    blocks = tile.reshape(shape[0] // micro[0], shape[1] // micro[1], *micro)
    return blocks.transpose(0, 2, 1, 3).reshape(shape)


def micro_tiled(tile: Floats, micro: tuple[int, int]) -> Floats:
    rows, columns = tile.shape
    blocks = tile.reshape(rows // micro[0], micro[0], columns // micro[1], micro[1])
    return blocks.transpose(0, 2, 1, 3).reshape(-1)


def cut(values: Floats, size: int) -> Iterator[Floats]:
    assert values.size % size == 0
    return iter(values.reshape(-1, size))


def play(
    program: Program,
    design: GemmDesign,
    a: npt.NDArray[np.uint32],
    b: npt.NDArray[np.uint32],
    c: npt.NDArray[np.uint32],
) -> None:
    """Run the program; every stream must be used up, and C written once."""
    m, k, n = design.m, design.k, design.n
    micro = design.micro_tile
    written = {
        (command.column, command.row, command.address - design.parameters_address): command.value
        for command in program.commands
        if isinstance(command, ParameterWrite)
    }
    for column in range(design.columns):
        outputs: list[list[Floats]] = []
        brings_a = column % (design.columns // design.rows) == 0
        b_stream = stream(program, b, (column, int(brings_a)))
        for row in range(design.rows):
            tiles, inner = (written[column, row + 2, at] for at in (0, 4))
            a_tiles = cut(stream(program, a, (design.carrier(row), 0)), m * k)
            b_tiles = cut(b_stream, k * n)
            outputs.append([])
            for _ in range(tiles):
                total = np.zeros((m, n), np.float32)
                for _ in range(inner):
                    left = rows_of(next(a_tiles), (m, k), (micro.r, micro.s))
                    total += left @ rows_of(next(b_tiles), (k, n), (micro.s, micro.t))
                outputs[-1].append(micro_tiled(total, (micro.r, micro.t)))
            assert next(a_tiles, None) is None
            assert next(b_tiles, None) is None
        joined = np.concatenate([tile for tiles in zip(*outputs, strict=True) for tile in tiles])
        places = np.concatenate(
            [
                granules(task)
                for task in program.commands
                if isinstance(task, DmaTask) and task.direction == "out" and task.column == column
            ]
        )
        assert (c[places] == 0xFFFFFFFF).all()
        c[places] = joined.astype(np.float32).view(np.uint32)


@pytest.mark.parametrize(
    ("design", "size"),
    [
        (SMALL1, GemmSize(64, 8, 64)),
        (SMALL1, GemmSize(320, 24, 192)),
        (SMALL1, GemmSize(192, 8, 64)),
        (replace(SMALL1, group_blocks=1), GemmSize(320, 16, 64)),
        (replace(SMALL1, group_blocks=4, groups=1), GemmSize(320, 16, 64)),
        (SMALL2, GemmSize(32, 16, 256)),
        (SMALL2, GemmSize(160, 16, 512)),
    ],
)
def test_the_tasks_compute_the_product(design: GemmDesign, size: GemmSize) -> None:
    check(design, size)
    # small integers: every product and sum is exact, whatever its order
    random = np.random.default_rng(size.M)
    a = random.integers(-8, 9, (size.M, size.K)).astype(np.float32)
    b = random.integers(-8, 9, (size.K, size.N)).astype(np.float32)
    packed_a = scattered(a_layout(design, size), to_bfloat16(a)).view(np.uint32)
    packed_b = scattered(b_layout(design, size), to_bfloat16(b)).view(np.uint32)
    packed_c = np.full(size.M * size.N, 0xFFFFFFFF, np.uint32)
    play(gemm_program(design, size), design, packed_a, packed_b, packed_c)
    assert np.array_equal(gathered(c_layout(design, size), packed_c.view(np.float32)), a @ b)


def test_the_tasks_of_one_column() -> None:
    """Five row blocks in groups of two: the third group takes the first one's descriptors."""
    size = GemmSize(5 * 64, 16, 128)
    program = gemm_program(SMALL1, size)
    a_row, b_all, c_block = 2 * 16 * 8 * 2, 2 * 2 * 8 * 16 * 2, 2 * 4 * 16 * 16 * 4  # bytes

    def out(descriptor: int, block: int, blocks: int) -> DmaTask:
        start = (5 + block) * c_block
        sizes = (blocks * c_block // 4,)
        return DmaTask(1, "out", 0, descriptor, C, start, sizes, (1,), has_token=True)

    def a(descriptor: int, block: int) -> DmaTask:
        start = (4 * block + 1) * a_row
        return DmaTask(1, "in", 0, descriptor, A, start, (a_row // 4,), (1,), repeat=2)

    def b(descriptor: int, blocks: int) -> DmaTask:
        return DmaTask(1, "in", 1, descriptor, B, b_all, (b_all // 4,), (1,), repeat=blocks)

    sync = Sync(1, "out", 0)
    assert [
        command
        for command in program.commands
        if isinstance(command, DmaTask | Sync) and command.column == 1
    ] == [
        *(out(0, 0, 2), a(2, 0), a(3, 1), b(1, 2)),
        *(out(4, 2, 2), a(6, 2), a(7, 3), b(5, 2)),
        sync,
        *(out(0, 4, 1), a(2, 4), b(1, 1)),
        *(sync, sync),
    ]


def test_every_core_gets_its_parameters_and_then_its_barrier() -> None:
    size = GemmSize(640, 256, 2048)
    design = DESIGNS["npu2"]
    assert parameters(design, size) == (3 * 8, 4)
    seen: list[tuple[int, int]] = []
    commands = list(gemm_program(design, size).commands)
    first_task = next(at for at, command in enumerate(commands) if isinstance(command, DmaTask))
    for place, command in enumerate(commands):
        if isinstance(command, LockSet):
            assert (command.lock, command.value) == (15, 1)
            tile = (command.column, command.row)
            assert commands[place - 2 : place] == [
                ParameterWrite(*tile, 65504, 24),
                ParameterWrite(*tile, 65508, 4),
            ]
            assert place < first_task
            seen.append(tile)
    assert seen == [(column, row) for column in range(8) for row in range(2, 6)]


def test_sizes_of_the_standard_designs() -> None:
    design = DESIGNS["npu1"]
    assert design.granule == GemmSize(256, 64, 128)
    assert design.columns_max == 8192
    # two buffers of each tile, the stack of 0xD00 bytes, 32 bytes for parameters
    assert design.l1_nbytes == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 4 * 64 * 32) + 3328 + 32
    assert design.l2_nbytes == (16 + 8 + 64) * 1024
    assert design.padded(GemmSize(1, 768, 50257)) == GemmSize(256, 768, 50304)
    assert DESIGNS["npu2"].granule == GemmSize(256, 64, 256)
    assert [DESIGNS["npu2"].carrier(row) for row in range(4)] == [0, 2, 4, 6]
    assert GemmSize(2, 3, 4).flops == 48


def test_a_task_knows_its_extent() -> None:
    task = DmaTask(
        0, "in", 0, 0, 0, 8, (3, 2), (10, 1), iterations=2, iteration_stride=100, repeat=5
    )
    assert (task.length, task.nbytes, task.is_linear) == (6, 120, False)
    assert list(task.pass_offsets()) == [8, 408, 8, 408, 8]
    assert task.end_nbytes == 8 + 4 * (100 + 20 + 1 + 1)
    assert max(granules(task)) * 4 + 4 == task.end_nbytes
    assert replace(task, strides=(2, 1)).is_linear
