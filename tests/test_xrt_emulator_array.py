"""The emulated array: what a program does to memory, and where it would not move on.

Packed layouts are written here anew from the design's description (`pack_a`, `pack_b`, `unpack_c`),
not with the kernels that pack.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from aieflow.devices.xrt_emulator_array import execute, prepare
from aieflow.devices.xrt_emulator_moves import BadAccessError, StallError, write_zeros
from aieflow.ops.npu.design import DESIGNS, GemmDesign, GemmSize, gemm_program
from aieflow.ops.npu.generation import NPU1
from aieflow.ops.npu.instructions import decode, encode_program
from aieflow.ops.npu.program import Command, DmaTask, LockSet, ParameterWrite, Program, Sync

DESIGN = DESIGNS["npu1"]
SIZE = GemmSize(512, 128, 256)  # two blocks or tiles each way
Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Commands = tuple[Command, ...]


def bf16(x: npt.NDArray[Any]) -> Halves:
    """Bits of x rounded to nearest even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def widened(bits: Halves) -> Floats:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def pack_a(design: GemmDesign, a: Halves) -> Bytes:
    """Tile rows one after the other, in each the tiles along K."""
    (M, K), m, k = a.shape, design.m, design.k
    r, s = design.micro_tile.r, design.micro_tile.s
    tiles = a.reshape(M // m, m // r, r, K // k, k // s, s)
    return tiles.transpose(0, 3, 1, 4, 2, 5).reshape(-1).view(np.uint8)


def pack_b(design: GemmDesign, b: Halves) -> Bytes:
    """For each array column all its tile columns, in each the tiles along K."""
    (K, N), k, n, columns = b.shape, design.k, design.n, design.columns
    s, t = design.micro_tile.s, design.micro_tile.t
    tiles = b.reshape(K // k, k // s, s, N // (n * columns), columns, n // t, t)
    return tiles.transpose(4, 3, 0, 1, 5, 2, 6).reshape(-1).view(np.uint8)


def unpack_c(design: GemmDesign, c: Bytes, size: GemmSize) -> Floats:
    """For each array column all row blocks, column blocks, and the tile of each core row."""
    m, n, columns, rows = design.m, design.n, design.columns, design.rows
    r, t = design.micro_tile.r, design.micro_tile.t
    tiles = c.view(np.float32).reshape(
        columns, size.M // (m * rows), size.N // (n * columns), rows, m // r, n // t, r, t
    )
    return tiles.transpose(1, 3, 4, 6, 2, 0, 5, 7).reshape(size.M, size.N)


def memory_of(design: GemmDesign, a: Halves, b: Halves) -> dict[int, Bytes]:
    c = np.full(4 * a.shape[0] * b.shape[1], 0xFF, np.uint8)
    return {0: pack_a(design, a), 1: pack_b(design, b), 2: c}


def multiply(design: GemmDesign, a: Halves, b: Halves) -> Floats:
    size = GemmSize(a.shape[0], a.shape[1], b.shape[1])
    memory = memory_of(design, a, b)
    program = decode(encode_program(gemm_program(design, size)))
    execute(prepare(program, design), memory)
    return unpack_c(design, memory[2], size)


def integers(size: GemmSize, seed: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return rng.integers(-9, 10, (size.M, size.K)), rng.integers(-9, 10, (size.K, size.N))


@pytest.mark.parametrize(
    "design",
    [
        *DESIGNS.values(),
        GemmDesign(NPU1, 32, 32, 32, columns=4, group_blocks=1),
        GemmDesign(NPU1, 16, 64, 48, columns=4, group_blocks=3),
    ],
    ids=["npu1", "npu2", "32x32x32", "16x64x48"],
)
@pytest.mark.parametrize(
    "blocks", [(1, 1, 1), (3, 5, 2), (2, 3, 4), (5, 1, 1)], ids=lambda b: "x".join(map(str, b))
)
def test_products_of_integers_are_exact(design: GemmDesign, blocks: tuple[int, int, int]) -> None:
    """Small integers are exact in bf16, their sums below 2^24 in fp32, in any order."""
    granule = design.granule
    size = GemmSize(granule.M * blocks[0], granule.K * blocks[1], granule.N * blocks[2])
    a, b = integers(size, sum(blocks))
    assert np.array_equal(multiply(design, bf16(a), bf16(b)), (a @ b).astype(np.float32))


def test_products_of_reals_have_the_error_of_fp32_sums() -> None:
    size = GemmSize(512, 320, 256)
    rng = np.random.default_rng(0)
    a, b = bf16(rng.standard_normal((size.M, size.K))), bf16(rng.standard_normal((size.K, size.N)))
    c = multiply(DESIGN, a, b)
    wide_a, wide_b = widened(a).astype(np.float64), widened(b).astype(np.float64)
    # Products of bf16 are exact in fp32; K - 1 additions in any order err by at most
    # (K - 1) u / (1 - (K - 1) u) of the sum of magnitudes, u = 2^-24 (Higham, section 4.2).
    bound = size.K * 2.0**-24 * (np.abs(wide_a) @ np.abs(wide_b))
    error = np.abs(c - wide_a @ wide_b)
    assert np.all(error <= bound)
    assert error.max() > 0  # fp32 sums, not float64 ones


def test_work_is_counted() -> None:
    """A passes the shims once for each block of columns, B for each block of rows, C once."""
    work = prepare(gemm_program(DESIGN, SIZE), DESIGN)
    assert work.flops == SIZE.flops
    a, b, c = 2 * SIZE.M * SIZE.K, 2 * SIZE.K * SIZE.N, 4 * SIZE.M * SIZE.N
    assert work.nbytes == 2 * a + 2 * b + c


def test_zeros_go_to_the_result_alone() -> None:
    a, b = integers(SIZE, 3)
    memory = memory_of(DESIGN, bf16(a), bf16(b))
    before = [memory[0].copy(), memory[1].copy()]
    write_zeros(prepare(gemm_program(DESIGN, SIZE), DESIGN), memory)
    assert not memory[2].any()
    assert np.array_equal(memory[0], before[0])
    assert np.array_equal(memory[1], before[1])


def changed(change: Callable[[Commands], Commands]) -> Program:
    program = gemm_program(DESIGN, SIZE)
    return replace(program, commands=change(program.commands))


def test_a_strided_task_moves_what_its_pattern_says() -> None:
    """B is stored with its two halves of each array column apart, and read by two dimensions."""
    size = GemmSize(256, 64, 128)
    a, b = integers(size, 4)
    memory = memory_of(DESIGN, bf16(a), bf16(b))
    half = memory[1].nbytes // DESIGN.columns // 2
    memory[1] = memory[1].reshape(DESIGN.columns, 2, half).swapaxes(0, 1).reshape(-1).copy()

    def apart(command: Command) -> Command:
        if not isinstance(command, DmaTask) or command.argument != 1:
            return command
        return replace(
            command,
            offset_nbytes=command.column * half,
            sizes=(2, half // 4),
            strides=(DESIGN.columns * half // 4, 1),
        )

    program = gemm_program(DESIGN, size)
    program = replace(program, commands=tuple(map(apart, program.commands)))
    execute(prepare(program, DESIGN), memory)
    assert np.array_equal(unpack_c(DESIGN, memory[2], size), (a @ b).astype(np.float32))


def test_iterations_move_the_start_of_each_pass() -> None:
    """One task brings both row blocks of A of its row, by iteration instead of by two tasks."""
    size = GemmSize(512, 64, 128)
    a, b = integers(size, 5)
    memory = memory_of(DESIGN, bf16(a), bf16(b))
    commands: list[Command] = []
    seen: set[int] = set()
    for command in gemm_program(DESIGN, size).commands:
        if isinstance(command, DmaTask) and command.argument == 0:
            if command.column in seen:
                continue
            seen.add(command.column)
            stride = DESIGN.rows * command.length
            commands.append(replace(command, iterations=2, iteration_stride=stride, repeat=2))
        else:
            commands.append(command)
    program = Program(NPU1, DESIGN.columns, tuple(commands))
    execute(prepare(program, DESIGN), memory)
    assert np.array_equal(unpack_c(DESIGN, memory[2], size), (a @ b).astype(np.float32))


def test_what_nobody_waits_for_is_not_there() -> None:
    """Without column 1's last wait its last group of C may still be on its way."""
    size = GemmSize(256 * 3, 64, 128)  # two groups: two row blocks, and one
    a, b = integers(size, 6)
    memory = memory_of(DESIGN, bf16(a), bf16(b))
    program = gemm_program(DESIGN, size)
    last = max(
        place
        for place, command in enumerate(program.commands)
        if isinstance(command, Sync) and command.column == 1
    )
    kept = program.commands[:last] + program.commands[last + 1 :]
    execute(prepare(replace(program, commands=kept), DESIGN), memory)
    right = unpack_c(DESIGN, memory[2], size) == (a @ b).astype(np.float32)
    missing = np.zeros_like(right)
    missing[512:, 32:64] = True
    assert np.array_equal(right, ~missing)


def without(kind: type[Command], place: int = 0) -> Callable[[Commands], Commands]:
    def change(commands: Commands) -> Commands:
        found = [i for i, command in enumerate(commands) if isinstance(command, kind)][place]
        return commands[:found] + commands[found + 1 :]

    return change


def parameters_of(value: int) -> Callable[[Commands], Commands]:
    return lambda commands: tuple(
        replace(command, value=value) if isinstance(command, ParameterWrite) else command
        for command in commands
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without(LockSet), "1 cores wait at their barriers"),
        (without(ParameterWrite), "cores were given different parameters"),
        (parameters_of(0), "cores were given no work"),
        (parameters_of(3), r"moves \d+ bytes, the cores take"),
        (without(DmaTask, 0), "waits for a token that no task sends"),
        (without(DmaTask, 4), r"stream \(0, 'in', 0\) moves"),
        (without(DmaTask, -1), r"stream \(3, 'in', 1\) moves"),
        (lambda commands: (*commands, commands[-1]), "waits for a token that no task sends"),
        (lambda commands: (*commands, _stray(commands)), "channels that the design does not use"),
    ],
)
def test_a_program_that_would_hang_stalls(
    change: Callable[[Commands], Commands], words: str
) -> None:
    prepare(changed(lambda commands: commands), DESIGN)
    with pytest.raises(StallError, match=words):
        prepare(changed(change), DESIGN)


def _stray(commands: Commands) -> DmaTask:
    task = next(command for command in commands if isinstance(command, DmaTask))
    return replace(task, channel=1)


@pytest.mark.parametrize("argument", [0, 1, 2])
def test_a_dma_that_leaves_its_buffer_faults(argument: int) -> None:
    a, b = integers(SIZE, 7)
    work = prepare(gemm_program(DESIGN, SIZE), DESIGN)
    memory = memory_of(DESIGN, bf16(a), bf16(b))
    full = memory[argument]
    memory[argument] = full[:-4]
    with pytest.raises(BadAccessError, match=f"byte {full.nbytes - 1} of a buffer of"):
        execute(work, memory)
    del memory[argument]
    with pytest.raises(BadAccessError, match=f"argument {argument} was not set"):
        execute(work, memory)
