"""Holds a design, a size and their DMA tasks against the limits of the hardware.

What is refused here would be refused by mlir-aie's verifier, or would hang or compute wrong numbers
without an error. Sources: mlir-aie's target model, its verifier of DMA tasks and its GEMM examples.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Protocol

from aieflow.ops.errors import PlanError
from aieflow.ops.npu.design import (
    IN_NBYTES,
    OUT_NBYTES,
    GemmDesign,
    GemmSize,
    column_blocks,
    gemm_program,
    parameters,
)
from aieflow.ops.npu.generation import GRANULE_NBYTES, Generation
from aieflow.ops.npu.program import DmaTask, Program, Sync

PARAMETER_MAX = (1 << 31) - 1  # cores count with signed words
OFFSET_MAX = (1 << 32) - 1  # bytes that an instruction can add to a buffer's address
EVEN_DESCRIPTORS = 24  # of a memory tile: even channels reach this half, odd ones the other


def check(design: GemmDesign, size: GemmSize) -> None:
    """Raise PlanError, with the value and the limit, unless the NPU can compute this product.

    `size` must be padded (see `GemmDesign.padded`).
    """
    check_design(design)
    check_size(design, size)
    program = gemm_program(design, size)
    check_program(program)
    check_bounds(program, buffer_nbytes(design, size))


def buffer_nbytes(design: GemmDesign, size: GemmSize) -> tuple[int, int, int]:
    """Bytes of the packed buffers A, B and C of a padded size."""
    return (
        size.M * size.K * IN_NBYTES,
        size.K * size.N * IN_NBYTES,
        size.M * size.N * OUT_NBYTES,
    )


def check_design(design: GemmDesign) -> None:
    """Raise PlanError unless the static configuration fits the array."""
    generation = design.generation
    where = f"{generation.name} design {design.m}x{design.k}x{design.n}"
    for name, value in (("columns", design.columns), ("fifo depth", design.fifo_depth)):
        _at_least_one(where, name, value)
    for name, value in (("row blocks a group", design.group_blocks), ("groups", design.groups)):
        _at_least_one(where, name, value)
    _at_most(where, "columns", design.columns, generation.columns)
    _multiple(where, "columns", design.columns, design.rows)
    _check_tiles(where, design)
    _at_most(where, "bytes of a core's memory (L1)", design.l1_nbytes, generation.l1_nbytes)
    _at_most(where, "bytes of a memory tile (L2)", design.l2_nbytes, generation.l2_nbytes)
    _check_static_channels(where, design)
    _at_most(where, "barrier lock", design.barrier_lock, generation.locks - 1)
    locks = 2 * 3 + 1  # full and empty of each stream, and the barrier
    _at_most(where, "locks of a core", locks, generation.locks)
    descriptors = design.groups * (design.group_blocks + 2)
    _at_most(where, "descriptors of a shim", descriptors, generation.shim.descriptors)
    queued = design.groups * design.group_blocks
    _at_most(where, "tasks in a shim channel's queue", queued, generation.queue_depth)


def _check_tiles(where: str, design: GemmDesign) -> None:
    micro = design.micro_tile
    tiles = {"m": (design.m, micro.r), "k": (design.k, micro.s), "n": (design.n, micro.t)}
    for (name, (value, of)), kernel in zip(
        tiles.items(), design.generation.tile_multiple, strict=True
    ):
        _at_least_one(where, name, value)
        _multiple(where, f"{name} (micro-tile)", value, of)
        _multiple(where, f"{name} (kernel)", value, kernel)
    for name, nbytes in _tile_nbytes(design).items():
        _multiple(where, f"bytes of a tile of {name}", nbytes, GRANULE_NBYTES)
        granules = nbytes // GRANULE_NBYTES
        _at_most(
            where, f"granules of a tile of {name}", granules, design.generation.core.length_max
        )
    joined = design.rows * _tile_nbytes(design)["C"] // GRANULE_NBYTES
    _at_most(where, "granules of C in a memory tile", joined, design.generation.memory.length_max)


def _tile_nbytes(design: GemmDesign) -> Mapping[str, int]:
    return {
        "A": design.m * design.k * IN_NBYTES,
        "B": design.k * design.n * IN_NBYTES,
        "C": design.m * design.n * OUT_NBYTES,
    }


def _check_static_channels(where: str, design: GemmDesign) -> None:
    memory, core = design.generation.memory, design.generation.core
    _at_most(where, "channels into a core", 2, core.inputs)
    _at_most(where, "channels out of a core", 1, core.outputs)
    _at_most(where, "descriptors of a core", 3 * design.fifo_depth, core.descriptors)
    inputs = 2 + design.rows  # A, B and every core's C
    _at_most(where, "channels into a memory tile", inputs, memory.inputs)
    _at_most(where, "channels out of a memory tile", 3, memory.outputs)
    # one descriptor for each buffer of each channel; even channels share one half of them
    even = (-(-inputs // 2) + 2) * design.fifo_depth
    _at_most(where, "descriptors of a memory tile's even channels", even, EVEN_DESCRIPTORS)


def check_size(design: GemmDesign, size: GemmSize) -> None:
    """Raise PlanError unless the size is whole blocks and few enough of them."""
    where = f"{design.generation.name} product {size.M}x{size.K}x{size.N}"
    granule = design.granule
    for name in ("M", "K", "N"):
        value, of = getattr(size, name), getattr(granule, name)
        _at_least_one(where, name, value)
        _multiple(where, f"{name} (pad it)", value, of)
    blocks = column_blocks(design, size)
    limit = design.generation.iterations_max
    remedy = f" (N at most {design.columns_max}: cut it in chunks)"
    _at_most(where, "column blocks" + remedy, blocks, limit)
    counts = parameters(design, size)
    for name, value in zip(("tiles of C", "products of a tile"), counts, strict=True):
        _at_most(where, f"runtime parameter, {name}", value, PARAMETER_MAX)


def check_program(program: Program) -> None:
    """Raise PlanError unless every task keeps its limits and no descriptor is reused too early.

    Tasks of a shim whose completion no `Sync` implies are taken to be in flight: a token of a
    channel ends that channel's oldest task with a token, and all tasks of the shim put before it.
    """
    tasks: dict[int, list[DmaTask]] = {column: [] for column in range(program.columns)}
    for command in program.commands:
        match command:
            case DmaTask():
                check_task(program.generation, command)
                _check_place(program, command)
                _push(program, tasks[command.column], command)
            case Sync(column):
                _pop(tasks[column], command)
            case _:
                pass
    left = Counter(column for column, waiting in tasks.items() for _ in waiting)
    if left:
        raise PlanError(f"no sync waits for the last {left.total()} tasks of columns {set(left)}")


class ArrayUse(Protocol):
    """A design of any kind: the generation it is for, and the columns that it takes."""

    @property
    def generation(self) -> Generation:
        """What it is for."""
        ...

    @property
    def columns(self) -> int:
        """Columns of cores."""
        ...


def check_generation(design: ArrayUse, program: Program) -> None:
    """Raise PlanError if the program is for another array: the NPU would compute zeros silently."""
    given, expected = (
        (program.generation.name, program.columns),
        (design.generation.name, design.columns),
    )
    if given != expected:
        raise PlanError(f"program is for {given[0]} with {given[1]} columns, design for {expected}")


def check_task(generation: Generation, task: DmaTask) -> None:
    """Raise PlanError unless a shim's buffer descriptor can hold the task."""
    where = f"{task.direction} task of column {task.column}, argument {task.argument}"
    shim = generation.shim
    _at_most(where, "dimensions", len(task.sizes), shim.dimensions)
    _multiple(where, "byte offset", task.offset_nbytes, GRANULE_NBYTES)
    _at_most(where, "byte offset", task.offset_nbytes, OFFSET_MAX)
    for size in task.sizes:
        _at_least_one(where, "size", size)
    _at_most(where, "granules of a pass", task.length, shim.length_max)
    if not task.is_linear:
        for size in task.sizes[-2:]:  # a third, outer size follows from the length
            _at_most(where, "size", size, shim.size_max)
        for stride in task.strides:
            _at_least_one(where, "stride", stride)
            _at_most(where, "stride", stride, shim.stride_max)
    _at_least_one(where, "iterations", task.iterations)
    _at_most(where, "iterations", task.iterations, generation.iterations_max)
    if task.iterations > 1:
        _at_least_one(where, "iteration stride", task.iteration_stride)
    _at_most(where, "iteration stride", task.iteration_stride, shim.stride_max)
    _at_least_one(where, "passes", task.repeat)
    _at_most(where, "passes", task.repeat, generation.iterations_max)


def check_bounds(program: Program, buffers: tuple[int, ...]) -> None:
    """Raise PlanError unless every task stays inside its buffer; sizes in bytes by argument."""
    for task in program.commands:
        if isinstance(task, DmaTask):
            where = f"{task.direction} task of column {task.column}"
            _at_most(where, "buffer argument", task.argument, len(buffers) - 1)
            nbytes = buffers[task.argument]
            _at_most(where, f"bytes of argument {task.argument}", task.end_nbytes, nbytes)


def _check_place(program: Program, task: DmaTask) -> None:
    shim = program.generation.shim
    where = f"{task.direction} task"
    _at_most(where, "column", task.column, program.columns - 1)
    channels = shim.outputs if task.direction == "in" else shim.inputs
    _at_most(where, "channel of a shim", task.channel, channels - 1)
    _at_most(where, "descriptor", task.descriptor, shim.descriptors - 1)


def _push(program: Program, waiting: list[DmaTask], task: DmaTask) -> None:
    where = f"{task.direction} task of column {task.column}"
    if any(other.descriptor == task.descriptor for other in waiting):
        raise PlanError(
            f"{where} writes descriptor {task.descriptor} again, which may be in use: sync before"
        )
    queue = [t for t in waiting if (t.direction, t.channel) == (task.direction, task.channel)]
    limit = program.generation.queue_depth
    _at_most(where, f"tasks in the queue of channel {task.channel}", len(queue) + 1, limit)
    waiting.append(task)


def _pop(waiting: list[DmaTask], sync: Sync) -> None:
    """Take the task that the token ends, and the group it closes, from what is in flight."""
    ended = (True, sync.direction, sync.channel)
    tokens = [(task.has_token, task.direction, task.channel) for task in waiting]
    if ended not in tokens:
        raise PlanError(f"a sync waits for a token of column {sync.column} that no task sends")
    index = tokens.index(ended)
    # the group is what was put between this task with a token and the next
    rest = waiting[index + 1 :]
    ends = [place for place, other in enumerate(rest) if other.has_token]
    del waiting[: index + 1 + (ends[0] if ends else len(rest))]


def _at_least_one(where: str, name: str, value: int) -> None:
    if value < 1:
        raise PlanError(f"{where}: {name} is {value}, must be at least 1")


def _at_most(where: str, name: str, value: int, limit: int) -> None:
    if value > limit:
        raise PlanError(f"{where}: {name}: {value}, more than the limit of {limit}")


def _multiple(where: str, name: str, value: int, of: int) -> None:
    if value % of:
        raise PlanError(f"{where}: {name} is {value}, no multiple of {of}")
