"""Every limit of the NPU, once just inside and once just outside; GPT-2's products keep all."""

from dataclasses import fields, replace
from typing import Any

import pytest

from aieflow.ops.builder import Builder
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Node
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.catalogue import kernels
from aieflow.ops.npu.checker import (
    buffer_nbytes,
    check,
    check_bounds,
    check_design,
    check_generation,
    check_program,
    check_size,
    check_task,
)
from aieflow.ops.npu.design import DESIGNS, GemmDesign, GemmSize, gemm_program
from aieflow.ops.npu.expansion import BUFFER_NBYTES, expand_matmul
from aieflow.ops.npu.generation import GENERATIONS, NPU1, NPU2
from aieflow.ops.npu.kernels import NpuKernel
from aieflow.ops.npu.program import Command, DmaTask, Program, Sync
from aieflow.ops.spec import Spec

DESIGN = DESIGNS["npu1"]
TASK = DmaTask(0, "in", 0, 0, 0, 0, (2, 64, 32), (4096, 128, 1))
LINEAR = DmaTask(0, "in", 0, 0, 0, 0, (1024,), (1,))


def changed(design: GemmDesign, **change: Any) -> GemmDesign:  # noqa: ANN401  # fields of two kinds
    """A design with other fields of its own or of its generation."""
    own = {field.name for field in fields(GemmDesign)}
    limits = {name: change.pop(name) for name in list(change) if name not in own}
    return replace(design, generation=replace(design.generation, **limits), **change)


# 64 KB hold two buffers of A, B and C tiles, the stack of 3328 bytes and 32 bytes for parameters
L1 = DESIGN.l1_nbytes
TILES_A, TILES_C = 64 * 64 * 2 // 4, 64 * 32  # granules


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ({"l1_nbytes": L1}, {"l1_nbytes": L1 - 1}, r"\(L1\): 44320, more than the limit of 44319"),
        ({"stack_nbytes": 24544}, {"stack_nbytes": 24545}, r"\(L1\): 65537, .* limit of 65536"),
        ({"n": 32}, {"n": 64}, r"\(L1\): 68896, more than the limit of 65536"),
        ({"l2_nbytes": 90112}, {"l2_nbytes": 90111}, r"\(L2\): 90112, .* limit of 90111"),
        ({"m": 48}, {"m": 50}, r"m \(micro-tile\) is 50, no multiple of 4"),
        ({"m": 48}, {"m": 52}, r"m \(kernel\) is 52, no multiple of 16"),
        ({"k": 56}, {"k": 60}, r"k \(micro-tile\) is 60, no multiple of 8"),
        ({"n": 16}, {"n": 18}, r"n \(micro-tile\) is 18, no multiple of 4"),
        ({"n": 16}, {"n": 20}, r"n \(kernel\) is 20, no multiple of 16"),
        ({"m": 16}, {"m": 0}, "m is 0, must be at least 1"),
        ({"columns": 4}, {"columns": 8}, "columns: 8, more than the limit of 4"),
        ({"columns": 4}, {"columns": 2}, "columns is 2, no multiple of 4"),
        ({"columns": 4}, {"columns": 0}, "columns is 0, must be at least 1"),
        ({"fifo_depth": 1}, {"fifo_depth": 0}, "fifo depth is 0, must be at least 1"),
        ({"groups": 2}, {"groups": 3}, "tasks in a shim channel's queue: 6, .* limit of 4"),
        (
            {"groups": 4, "group_blocks": 1},
            {"groups": 6, "group_blocks": 1},
            "descriptors of a shim: 18, more than the limit of 16",
        ),
        ({"group_blocks": 1}, {"group_blocks": 0}, "row blocks a group is 0"),
        ({"barrier_lock": 15}, {"barrier_lock": 16}, "barrier lock: 16, .* limit of 15"),
        ({"locks": 16, "barrier_lock": 6}, {"locks": 6, "barrier_lock": 5}, "core: 7, .* of 6"),
        ({"queue_depth": 4}, {"queue_depth": 3}, "queue: 4, more than the limit of 3"),
        (
            {"m": 16, "k": 8, "n": 16, "fifo_depth": 4},
            {"m": 16, "k": 8, "n": 16, "fifo_depth": 5},
            "even channels: 25, more than the limit of 24",
        ),
        (
            {"m": 16, "k": 8, "n": 16, "fifo_depth": 4},
            {"m": 16, "k": 8, "n": 16, "fifo_depth": 6},
            "descriptors of a core: 18, more than the limit of 16",
        ),
        (
            {"core": replace(NPU1.core, length_max=TILES_A)},
            {"core": replace(NPU1.core, length_max=TILES_A - 1)},
            "granules of a tile of A: 2048, more than the limit of 2047",
        ),
        (
            {"memory": replace(NPU1.memory, length_max=4 * TILES_C)},
            {"memory": replace(NPU1.memory, length_max=4 * TILES_C - 1)},
            "granules of C in a memory tile: 8192, more than the limit of 8191",
        ),
        (
            {"memory": replace(NPU1.memory, inputs=6)},
            {"memory": replace(NPU1.memory, inputs=5)},
            "channels into a memory tile: 6, more than the limit of 5",
        ),
        (
            {"memory": replace(NPU1.memory, outputs=3)},
            {"memory": replace(NPU1.memory, outputs=2)},
            "channels out of a memory tile: 3, more than the limit of 2",
        ),
        (
            {"core": replace(NPU1.core, inputs=2)},
            {"core": replace(NPU1.core, inputs=1)},
            "channels into a core: 2, more than the limit of 1",
        ),
        (
            {"core": replace(NPU1.core, outputs=1)},
            {"core": replace(NPU1.core, outputs=0)},
            "channels out of a core: 1, more than the limit of 0",
        ),
    ],
)
def test_limits_of_a_design(inside: dict[str, Any], outside: dict[str, Any], message: str) -> None:
    check_design(changed(DESIGN, **inside))
    with pytest.raises(PlanError, match=message):
        check_design(changed(DESIGN, **outside))


def test_the_tile_sizes_that_the_facts_name() -> None:
    """64 x 32 x 64 fits a core, 64 x 64 x 64 with fp32 sums does not."""
    check_design(replace(DESIGN, m=64, k=32, n=64))
    check_design(DESIGNS["npu2"])
    with pytest.raises(PlanError, match="L1"):
        check_design(replace(DESIGN, n=64))
    with pytest.raises(PlanError, match=r"n \(micro-tile\) is 20, no multiple of 8"):
        check_design(replace(DESIGNS["npu2"], n=20))


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ((256, 64, 128), (255, 64, 128), r"M \(pad it\) is 255, no multiple of 256"),
        ((512, 64, 128), (256, 63, 128), r"K \(pad it\) is 63, no multiple of 64"),
        ((256, 64, 256), (256, 64, 127), r"N \(pad it\) is 127, no multiple of 128"),
        ((256, 64, 8192), (256, 64, 8320), r"column blocks \(N at most 8192.*: 65, .* of 64"),
        ((256, 64, 128), (0, 64, 128), "M is 0, must be at least 1"),
        # (2^31 - 1) counts of a core; the first product of 2^31
        (
            (256, 64 * (2**31 - 1), 128),
            (256, 64 * 2**31, 128),
            "products of a tile: 2147483648, more than the limit of 2147483647",
        ),
        (
            (256 * (2**31 - 1), 64, 128),
            (256 * 2**30, 64, 256),
            "tiles of C: 2147483648, more than the limit of 2147483647",
        ),
    ],
)
def test_limits_of_a_size(
    inside: tuple[int, int, int], outside: tuple[int, int, int], message: str
) -> None:
    check_size(DESIGN, GemmSize(*inside))
    with pytest.raises(PlanError, match=message):
        check_size(DESIGN, GemmSize(*outside))


@pytest.mark.parametrize(
    ("task", "inside", "outside", "message"),
    [
        (TASK, {}, {"sizes": (2, 2, 4, 8), "strides": (64, 32, 9, 1)}, "dimensions: 4, .* of 3"),
        (TASK, {"offset_nbytes": 4}, {"offset_nbytes": 2}, "byte offset is 2, no multiple of 4"),
        (TASK, {"offset_nbytes": 2**32 - 4}, {"offset_nbytes": 2**32}, "byte offset: 4294967296"),
        (TASK, {"sizes": (2, 64, 1023)}, {"sizes": (2, 64, 1024)}, "size: 1024, .* limit of 1023"),
        (TASK, {"sizes": (2, 1023, 32)}, {"sizes": (2, 1024, 32)}, "size: 1024, .* limit of 1023"),
        (TASK, {"sizes": (4096, 64, 32)}, {"sizes": (0, 64, 32)}, "size is 0, must be at least 1"),
        (TASK, {"strides": (2**20, 8, 1)}, {"strides": (2**20 + 1, 8, 1)}, "stride: 1048577"),
        (TASK, {"strides": (9, 8, 1)}, {"strides": (9, 8, 0)}, "stride is 0, must be at least 1"),
        (LINEAR, {"sizes": (2**32 - 1,)}, {"sizes": (2**32,)}, "granules of a pass: 4294967296"),
        (
            LINEAR,
            {"iterations": 64, "iteration_stride": 1},
            {"iterations": 65, "iteration_stride": 1},
            "iterations: 65, more than the limit of 64",
        ),
        (
            LINEAR,
            {"iterations": 2, "iteration_stride": 2**20},
            {"iterations": 2, "iteration_stride": 2**20 + 1},
            "iteration stride: 1048577, more than the limit of 1048576",
        ),
        (
            LINEAR,
            {"iterations": 1, "iteration_stride": 0},
            {"iterations": 2, "iteration_stride": 0},
            "iteration stride is 0, must be at least 1",
        ),
        (LINEAR, {"repeat": 64}, {"repeat": 65}, "passes: 65, more than the limit of 64"),
        (LINEAR, {"repeat": 1}, {"repeat": 0}, "passes is 0, must be at least 1"),
    ],
)
def test_limits_of_a_task(
    task: DmaTask, inside: dict[str, Any], outside: dict[str, Any], message: str
) -> None:
    check_task(NPU1, replace(task, **inside))
    with pytest.raises(PlanError, match=message):
        check_task(NPU1, replace(task, **outside))


def program(*commands: Command) -> Program:
    return Program(NPU1, 4, commands)


OUT = DmaTask(0, "out", 0, 0, 2, 0, (64,), (1,), has_token=True)
SYNC = Sync(0, "out", 0)


def fills(count: int, first: int = 1) -> list[DmaTask]:
    return [replace(LINEAR, descriptor=first + index) for index in range(count)]


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        ([OUT, *fills(4), SYNC], [OUT, *fills(5), SYNC], "queue of channel 0: 5, .* limit of 4"),
        (
            [OUT, *fills(2), SYNC, OUT, *fills(2), SYNC],
            [OUT, *fills(2), OUT, *fills(2), SYNC, SYNC],
            "writes descriptor 0 again, which may be in use",
        ),
        (
            [OUT, fills(1)[0], SYNC, replace(OUT, descriptor=5), fills(1)[0], SYNC],
            [OUT, fills(1)[0], replace(OUT, descriptor=5), fills(1)[0], SYNC, SYNC],
            "in task of column 0 writes descriptor 1 again",
        ),
        ([OUT, SYNC], [OUT], r"no sync waits for the last 1 tasks of columns \{0\}"),
        ([OUT, SYNC], [OUT, SYNC, SYNC], "a token of column 0 that no task sends"),
        ([OUT, SYNC], [OUT, Sync(0, "out", 1)], "a token of column 0 that no task sends"),
        (
            [replace(OUT, channel=1), Sync(0, "out", 1)],
            [replace(OUT, channel=2), Sync(0, "out", 2)],
            "channel of a shim: 2, more than the limit of 1",
        ),
        (
            [replace(OUT, descriptor=15), SYNC],
            [replace(OUT, descriptor=16), SYNC],
            "descriptor: 16, more than the limit of 15",
        ),
    ],
)
def test_limits_of_a_program(inside: list[Command], outside: list[Command], message: str) -> None:
    check_program(program(*inside))
    with pytest.raises(PlanError, match=message):
        check_program(program(*outside))


def test_a_sync_ends_the_oldest_group_alone() -> None:
    """Two groups are in flight; after one token only the first one's descriptors are free."""
    second = replace(OUT, descriptor=5)
    in_flight: tuple[Command, ...] = (OUT, *fills(1), second, *fills(1, 6), SYNC)
    check_program(program(*in_flight, *fills(1), SYNC))
    with pytest.raises(PlanError, match="descriptor 6 again"):
        check_program(program(*in_flight, *fills(1, 6), SYNC))


def test_tasks_stay_in_their_buffers() -> None:
    task = replace(OUT, argument=1, offset_nbytes=16)
    check_bounds(program(task), (0, 16 + 256))
    with pytest.raises(PlanError, match="bytes of argument 1: 272, more than the limit of 271"):
        check_bounds(program(task), (0, 271))
    with pytest.raises(PlanError, match="buffer argument: 1, more than the limit of 0"):
        check_bounds(program(task), (512,))


def test_a_program_of_another_generation_is_refused() -> None:
    size = GemmSize(256, 64, 256)
    check_generation(DESIGN, gemm_program(DESIGN, size))
    with pytest.raises(PlanError, match=r"for npu2 with 8 columns, design for \('npu1', 4\)"):
        check_generation(DESIGN, gemm_program(DESIGNS["npu2"], size))


def test_every_byte_of_the_buffers_is_used() -> None:
    size = DESIGN.padded(GemmSize(700, 100, 300))
    check(DESIGN, size)
    touched = gemm_program(DESIGN, size)
    needed = buffer_nbytes(DESIGN, size)
    assert needed == (768 * 128 * 2, 128 * 384 * 2, 768 * 384 * 4)
    for argument, nbytes in enumerate(needed):
        smaller = tuple(n - (index == argument) for index, n in enumerate(needed))
        with pytest.raises(PlanError, match=f"bytes of argument {argument}: {nbytes}"):
            check_bounds(touched, smaller)


def gpt2_matmuls(channels: int, tokens: int, vocabulary: int) -> list[Node]:
    """Every product of a training step: forward, dX and dW of each linear layer and the head."""
    builder = Builder("matmuls")
    widths = ((channels, 3 * channels), (channels, channels), (channels, 4 * channels))
    for inner, out in (*widths, (4 * channels, channels)):
        x, w, dy = (
            builder.feed(f"{name}{inner}.{out}", Spec(shape))
            for name, shape in (("x", (tokens, inner)), ("w", (inner, out)), ("d", (tokens, out)))
        )
        bias = builder.feed(f"b{inner}.{out}", Spec((out,)))
        builder.apply(MATMUL, [x, w, bias], ["y"], {"bias": True})
        builder.apply(MATMUL, [dy, w], ["dx"], {"transpose_b": True})
        builder.apply(MATMUL, [x, dy], ["dw"], {"transpose_a": True})
    x, wte = (
        builder.feed("x", Spec((tokens, channels))),
        builder.feed("wte", Spec((vocabulary, channels))),
    )
    dy = builder.feed("d", Spec((tokens, vocabulary)))
    builder.apply(MATMUL, [x, wte], ["logits"], {"transpose_b": True})
    builder.apply(MATMUL, [dy, wte], ["dx"])
    builder.apply(MATMUL, [dy, x], ["dwte"], {"transpose_a": True})
    return list(builder.nodes)


@pytest.mark.parametrize("generation", GENERATIONS.values(), ids=lambda g: g.name)
@pytest.mark.parametrize(
    ("channels", "tokens"), [(768, 256), (768, 1024), (768, 8192), (1600, 1024)]
)
def test_gpt2_keeps_every_limit(generation: Any, channels: int, tokens: int) -> None:  # noqa: ANN401
    """124M and 1558M; every chunk of every product, as an instruction stream."""
    design = DESIGNS[generation.name]
    kernel = kernels(generation)["npu_gemm"]
    assert isinstance(kernel, NpuKernel)
    for node in gpt2_matmuls(channels, tokens, 50257):
        chain = expand_matmul(node, design)
        products = [part for part in chain if part.op.name == "npu_gemm"]
        assert sum(part.flops for part in products) == node.flops
        for part in {str(sorted(part.attrs.items())): part for part in products}.values():
            assert kernel.instructions(part).size > 0
        values = [value for part in products for value in (*part.inputs, *part.outputs)]
        assert max(value.spec.nbytes for value in values) <= BUFFER_NBYTES


def test_a_product_laid_out_for_another_design_is_refused() -> None:
    node = gpt2_matmuls(768, 256, 50257)[0]
    (product,) = [part for part in expand_matmul(node, DESIGN) if part.op.name == "npu_gemm"]
    kernel = kernels(NPU2)["npu_gemm"]
    assert isinstance(kernel, NpuKernel)
    with pytest.raises(PlanError, match="laid out for another design"):
        kernel.instructions(product)
