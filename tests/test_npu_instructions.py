"""The words of instruction streams: against words that mlir-aie prints, round trips, refusals."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aieflow.ops.errors import InputError, PlanError
from aieflow.ops.npu.design import DESIGNS, GemmDesign, GemmSize, gemm_program
from aieflow.ops.npu.generation import NPU1, NPU2
from aieflow.ops.npu.instructions import Words, decode, encode, encode_program
from aieflow.ops.npu.program import (
    Command,
    DmaTask,
    LockSet,
    ParameterWrite,
    Program,
    Sync,
    TokenRoute,
)

TASK = DmaTask(2, "out", 0, 0, 0, 0, (64, 32), (128, 1), has_token=True)


def operations(*commands: Command) -> list[int]:
    """The words of some commands on 4 columns of NPU1, without the header."""
    return [int(word) for word in encode_program(Program(NPU1, 4, commands))[4:]]


def test_header() -> None:
    """As test/Targets/NPU/npu_instgen.mlir and npu2_instgen.mlir of mlir-aie expect it."""
    empty = [encode_program(Program(generation, 4, ())).tolist() for generation in (NPU1, NPU2)]
    assert empty == [[0x06030100, 0x104, 0, 16], [0x06040100, 0x104, 0, 16]]
    sync = encode_program(Program(NPU2, 8, (Sync(0, "out", 0),)))
    assert sync[:4].tolist() == [0x06040100, 0x108, 1, 32]


def test_a_task_as_mlir_aie_writes_it() -> None:
    """The task of dma_to_npu_width_conversion.mlir: bf16, sizes 4 4 64 64, strides 0 64 256 1."""
    task = DmaTask(2, "out", 0, 0, 0, 0, (4, 64, 32), (32, 128, 1), repeat=4, has_token=True)
    words = operations(task)
    assert words[:12] == [
        *(1, 0, 67227648, 48),
        *(8192, 0, 0, 33554432, 2**32 - 2080374657, 33554463, 0, 33554432),
    ]
    assert words[12:24] == [129, 48, 0, 0, 0, 0, 67227652, 0, 0, 0, 0, 0]
    assert words[24:] == [0, 0, 67228164, 0, 2147680256, 24]


def test_pushes_as_mlir_aie_writes_them() -> None:
    """Queue words of push_to_queue.mlir: descriptor 3 with a token; descriptor 2, four times."""
    first = DmaTask(0, "out", 1, 3, 0, 0, (8,), (1,), has_token=True)
    second = DmaTask(2, "in", 0, 2, 0, 0, (8,), (1,), repeat=4)
    assert operations(first)[24:] == [0, 0, 119308, 0, 2**32 - 2147483645, 24]
    assert operations(second)[24:] == [0, 0, 67228180, 0, 196610, 24]


def test_other_operations_as_mlir_aie_writes_them() -> None:
    """Of npu_instgen.mlir (sync, with one row and channel 0 here) and rtp_write.mlir."""
    assert operations(Sync(3, "in", 1)) == [0x80, 0x10, 0x00030001, 0x01010100]
    assert operations(ParameterWrite(2, 3, 1536, 50)) == [0, 0, 2 << 25 | 3 << 20 | 1536, 0, 50, 24]
    assert operations(LockSet(1, 2, 15, 1))[2] == 1 << 25 | 2 << 20 | 0x1F0F0
    route = [3, 0, 0x1D200, 0, 0xF00, 0x1F00, 28]
    assert operations(TokenRoute(0, "out", 0, 15)) == route


def test_an_iteration_is_stored_less_one() -> None:
    words = operations(replace(TASK, iterations=64, iteration_stride=1 << 20, repeat=64))
    assert words[10] == 63 << 20 | (1 << 20) - 1
    assert words[28] == 1 << 31 | 63 << 16


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("size", [(1, 1, 1), (256, 768, 2304), (3000, 768, 3072), (10240, 64, 768)])
def test_a_product_survives_the_round_trip(name: str, size: tuple[int, int, int]) -> None:
    design = DESIGNS[name]
    padded = design.padded(GemmSize(*size))
    words = encode(design, padded)
    assert words.dtype == np.uint32
    assert decode(words) == gemm_program(design, padded)


@st.composite
def tasks(draw: st.DrawFn) -> DmaTask:
    sizes: tuple[int, ...] = (draw(st.integers(1, 1 << 20)),)
    strides: tuple[int, ...] = (1,)
    if draw(st.booleans()):
        sizes = (draw(st.integers(2, 4000)), *(draw(st.integers(1, 1023)) for _ in range(2)))
        strides = tuple(draw(st.integers(1, 1 << 20)) for _ in range(3))
    iterations = draw(st.integers(1, 64))
    task = DmaTask(
        draw(st.integers(0, 3)),
        draw(st.sampled_from(("in", "out"))),
        draw(st.integers(0, 1)),
        draw(st.integers(0, 15)),
        draw(st.integers(0, 4)),
        draw(st.integers(0, (1 << 32) - 1)),
        sizes,
        strides,
        iterations,
        draw(st.integers(1, 1 << 20)) if iterations > 1 else 0,
        draw(st.integers(1, 256)),
        draw(st.booleans()),
    )
    # a pass of consecutive granules has one form only
    return replace(task, sizes=(task.length,), strides=(1,)) if task.is_linear else task


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(tasks(), max_size=5))
def test_any_tasks_survive_the_round_trip(commands: list[DmaTask]) -> None:
    program = Program(NPU1, 4, tuple(commands))
    assert decode(encode_program(program)) == program


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset_nbytes": 1 << 32}, "byte offset 4294967296 does not fit a field of 32 bits"),
        ({"descriptor": 16}, "descriptor 16 does not fit a field of 4 bits"),
        ({"repeat": 257}, "repeat 256 does not fit a field of 8 bits"),
        ({"sizes": (64, 1024)}, "d0 size 1024"),
        ({"strides": ((1 << 20) + 1, 1)}, "d1 stride 1048576"),
        ({"iterations": 65, "iteration_stride": 1}, "iterations 64"),
        ({"iterations": 2, "iteration_stride": 0}, "iteration stride -1"),
    ],
)
def test_a_value_must_fit_its_field(change: dict[str, int], message: str) -> None:
    operations(TASK)
    with pytest.raises(PlanError, match=message):
        operations(replace(TASK, **change))  # type: ignore[arg-type]  # any field's value


def small() -> Words:
    """Header (words 0-3), parameter (4-9), task (block 10-21, patch 22-33, push 34-39), sync."""
    commands = (ParameterWrite(0, 2, 64, 7), replace(TASK, argument=2), Sync(2, "out", 0))
    words = encode_program(Program(NPU1, 4, commands))
    assert len(words) == 44
    return words


@pytest.mark.parametrize(
    ("place", "word", "message"),
    [
        (0, 0x06030101, r"word 0 \(0x06030101\) says version 1.1; known is 0.1"),
        (0, 0x06050100, r"says NPU generation 5; known are \[3, 4\]"),
        (0, 0x05030100, "says 5 rows, not 6"),
        (1, 0x105, "says 5 columns, 1 rows of memory tiles"),
        (1, 0x204, "says 4 columns, 2 rows of memory tiles"),
        (2, 6, "word 2 .* counts 6 operations; 5 follow"),
        (3, 172, "says 172 bytes; there are 176"),
        (4, 2, "word 4 .* is no operation"),
        (4, 0x100, "word 4 .* is no operation"),
        (5, 1, "word 5 .* is not 0"),
        (6, 0x0A200040, "addresses column 5, row 2"),
        (6, 0x00600040, "addresses column 0, row 6"),
        (6, 0x00200042, "addresses no whole word"),
        (6, 0x0021F004, "addresses 0x1f004 of a core"),
        (6, 0x00210000, "addresses 0x10000 of a core"),
        (6, 0x0001D000, "addresses no DMA channel of a shim"),
        (9, 28, "is not the operation's size, 24 bytes"),
        (12, 0x0401D010, "addresses no buffer descriptor of a shim"),
        (12, 0x0401D200, "addresses no buffer descriptor of a shim"),
        (13, 44, "is not the operation's size, 48 bytes"),
        (14, 2047, "pushes 2047 granules in rows of 32 x 64"),
        (16, 1 << 30, "word 16 .* sets what no task of ours has"),
        (21, 0, "ends a descriptor that is not valid"),
        (28, 0x0401D024, "patches a descriptor that was not written"),
        (38, 1 << 31 | 1, "pushes descriptor 1, which has no address"),
        (38, 1 << 30, "pushes a task with unknown bits"),
        (42, 0x00040000, "waits at column 4, row 0"),
        (43, 0x00020100, "waits for several tiles or an unknown channel"),
    ],
)
def test_a_wrong_word_is_named(place: int, word: int, message: str) -> None:
    words = small()
    words[place] = word
    with pytest.raises(InputError, match=message):
        decode(words)


def test_a_stream_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"uint32 words, given uint8\[4\]"):
        decode(np.frombuffer(b"abcd", "uint8"))
    with pytest.raises(InputError, match="3 words, fewer than their header"):
        decode(small()[:3])
    cut = small()[:-2]
    cut[3] = 4 * len(cut)
    with pytest.raises(InputError, match=r"word 40 .* begins an operation of 4 words"):
        decode(cut)


def test_the_length_of_a_stream_hardly_grows_with_the_size() -> None:
    """Row blocks cost tasks; columns and inner size cost nothing."""
    design: GemmDesign = DESIGNS["npu1"]
    lengths = [len(encode(design, GemmSize(256, K, N))) for K, N in ((64, 128), (8192, 8192))]
    assert lengths[0] == lengths[1]
    assert len(encode(design, GemmSize(512, 64, 128))) - lengths[0] == 4 * 30
