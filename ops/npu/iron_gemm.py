"""A GEMM design as an IRON program: what mlir-aie compiles to an xclbin and an instruction stream.

The description in `design` is read, not repeated: the static part (fifos, cores) follows its tiles
and array, and the sequence is the commands of `gemm_program`, each as the IRON call that means it.
So what the encoder writes and what mlir-aie compiles move the same tiles in the same order.

- A row of cores gets its A tiles by one fifo: shim -> memory tile -> broadcast. B likewise, by
  column. C: the cores of a column -> joined in its memory tile -> shim. Every fifo has the
  description's depth, and nothing is reordered on the way: host buffers are packed.
- Each core waits at its barrier, reads its two runtime parameters, and steps the barrier off: a
  wait leaves its value, so without that a core would begin again with the old parameters.
- Rows of tasks are task groups. Only C's drains are awaited: that a group's C has arrived implies
  that its A and B have been read, so that their descriptors may be written again.

mlir-aie places parameters and barriers where it likes; both are pinned to the addresses that the
encoder of `instructions` uses, since one xclbin serves the streams of every size.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from aieflow.ops.errors import PlanError
from aieflow.ops.npu.checker import check
from aieflow.ops.npu.design import (
    IN_NBYTES,
    OUT_NBYTES,
    PARAMETERS,
    A,
    B,
    C,
    GemmDesign,
    GemmSize,
    gemm_program,
)
from aieflow.ops.npu.generation import GRANULE_NBYTES
from aieflow.ops.npu.iron_pin import pin
from aieflow.ops.npu.iron_release import Handle, Iron
from aieflow.ops.npu.program import DmaTask, LockSet, ParameterWrite, Program, Sync

ELEMENT_NBYTES = {A: IN_NBYTES, B: IN_NBYTES, C: OUT_NBYTES}
MEMORY_ROW = 1
Grid = list[list[Any]]  # by row and column of cores


def gemm_module(design: GemmDesign, size: GemmSize, iron: Iron) -> Handle:
    """The MLIR module of a design, with the sequence for one padded size.

    Raises PlanError where design or size break a limit, or where the release's kernel multiplies
    other micro-tiles than the description says.
    """
    check(design, size)
    api, tile, rows, columns = iron.iron, iron.device.Tile, design.rows, design.columns
    device = iron.device.from_name(design.generation.name, n_cols=columns)
    api.set_current_device(device)  # the kernels are made for it
    multiply = _multiply(design, iron)
    a_tile, b_tile, c_tile = (
        _array(shape, dtype)
        for shape, dtype in (
            ((design.m, design.k), iron.bfloat16),
            ((design.k, design.n), iron.bfloat16),
            ((design.m, design.n), np.float32),
        )
    )

    def through_memory(kind: Any, name: str, column: int) -> tuple[Any, Any]:  # noqa: ANN401
        fifo = api.ObjectFifo(kind, depth=design.fifo_depth, name=name)
        memory = tile(column, MEMORY_ROW)
        return fifo, fifo.cons().forward(obj_type=kind, name=f"{name}_cores", tile=memory)

    a = [through_memory(a_tile, f"a{row}", design.carrier(row)) for row in range(rows)]
    b = [through_memory(b_tile, f"b{column}", column) for column in range(columns)]
    c, joined = [], []
    for column in range(columns):
        kind = _array((rows * design.m * design.n,), np.float32)
        c.append(api.ObjectFifo(kind, depth=design.fifo_depth, name=f"c{column}"))
        joined.append(
            c[column]
            .prod()
            .join(
                [row * design.m * design.n for row in range(rows)],
                obj_types=[c_tile] * rows,
                names=[f"c{column}_{row}" for row in range(rows)],
                depths=[design.fifo_depth] * rows,
                tile=tile(column, MEMORY_ROW),
            )
        )

    parameters = _grid(design, lambda row, column: _parameters(api, row, column))
    barriers = _grid(design, lambda row, column: api.WorkerRuntimeBarrier())
    core = _core(iron.controlflow.range_)

    def worker(row: int, column: int) -> Any:  # noqa: ANN401
        operands = (a[row][1].cons(), b[column][1].cons(), joined[column][row].prod())
        return api.Worker(
            core,
            [*operands, multiply.zero, multiply, parameters[row][column], barriers[row][column]],
            tile=tile(column, design.generation.first_core_row + row),
            stack_size=design.generation.stack_nbytes,
            dynamic_objfifo_lowering=True,  # the trip counts are not known to the compiler
        )

    workers = api.Worker.grid(rows, columns, worker)
    fills = {(A, design.carrier(row)): fifo for row, (fifo, _) in enumerate(a)}
    fills |= {(B, column): fifo for column, (fifo, _) in enumerate(b)}
    ends = {place: fifo.prod(tile=tile(place[1], 0)) for place, fifo in fills.items()}
    ends |= {(C, column): fifo.cons(tile=tile(column, 0)) for column, fifo in enumerate(c)}
    sequence = _sequence(design, gemm_program(design, size), iron, (ends, parameters, barriers))
    buffers = [
        _array((size.M * size.K,), iron.bfloat16),
        _array((size.K * size.N,), iron.bfloat16),
        _array((size.M * size.N,), np.float32),
    ]
    shared = [list(ends.values()), parameters, barriers]
    runtime = api.Runtime(sequence, [*buffers, *shared])
    flat = [each for row in workers for each in row]
    module = api.Program(device, runtime, workers=flat).resolve_program()
    pin(module, design.parameters_address, design.barrier_lock, rows * columns, iron.ir)
    return module


def _array(shape: tuple[int, ...], dtype: Any) -> Any:  # noqa: ANN401
    """The type by which IRON knows arrays of a shape."""
    return np.ndarray[shape, np.dtype[dtype]]  # type: ignore[valid-type]  # a value to IRON


def _grid(design: GemmDesign, make: Callable[[int, int], Any]) -> Grid:
    return [[make(row, column) for column in range(design.columns)] for row in range(design.rows)]


def _parameters(api: Handle, row: int, column: int) -> Handle:
    """A core's runtime parameters; zero until the sequence writes them, so the xclbin has none."""
    return api.Buffer(
        _array((PARAMETERS,), np.int32),
        initial_value=np.zeros(PARAMETERS, np.int32),
        name=f"parameters{row}_{column}",
        use_write_rtp=True,
    )


def _multiply(design: GemmDesign, iron: Iron) -> Handle:
    kernel = iron.kernels.mm(
        dim_m=design.m,
        dim_k=design.k,
        dim_n=design.n,
        input_dtype=iron.bfloat16,
        output_dtype=np.float32,
    )
    micro = design.micro_tile
    if tuple(kernel.mac_dims) != (micro.r, micro.s, micro.t):
        raise PlanError(
            f"{design.generation.name}: mlir-aie's kernel multiplies micro-tiles of "
            f"{tuple(kernel.mac_dims)}, the design packs {(micro.r, micro.s, micro.t)}: use the "
            "release that `aieflow npu doctor` names"
        )
    return kernel


def _core(range_: Handle) -> Callable[..., None]:
    """What every core does, in each run of the sequence once."""

    def core(
        a: Handle,
        b: Handle,
        c: Handle,
        zero: Handle,
        multiply: Handle,
        parameters: Handle,
        barrier: Handle,
    ) -> None:
        barrier.wait_for_value(1)
        tiles, inner = parameters[0], parameters[1]
        barrier.release_with_value(1)
        for _ in range_(tiles):
            out = c.acquire(1)
            zero(out)
            for _ in range_(inner):
                left, right = a.acquire(1), b.acquire(1)
                multiply(left, right, out)
                a.release(1)
                b.release(1)
            c.release(1)

    return core


def _sequence(
    design: GemmDesign,
    program: Program,
    iron: Iron,
    shared: tuple[dict[tuple[int, int], Handle], Grid, Grid],
) -> Callable[..., None]:
    """The program's commands as calls; token routes are the compiler's own business."""
    places = list(shared[0])
    first_row, address = design.generation.first_core_row, design.parameters_address

    def sequence(
        a: Handle,
        b: Handle,
        c: Handle,
        handles: Sequence[Handle],
        parameters: Sequence[Sequence[Handle]],
        barriers: Sequence[Sequence[Handle]],
    ) -> None:
        buffers, ends = (a, b, c), dict(zip(places, handles, strict=True))
        groups: deque[Handle] = deque()
        for command in program.commands:
            match command:
                case ParameterWrite(column, row, where, value):
                    parameters[row - first_row][column][(where - address) // 4] = value
                case LockSet(column, row, _, value):
                    barriers[row - first_row][column].set(value)
                case DmaTask():
                    if command.direction == "out" and command.column == 0:  # a group begins with C
                        groups.append(iron.iron.TaskGroup())
                    end = ends[command.argument, command.column]
                    move = end.fill if command.direction == "in" else end.drain
                    move(
                        buffers[command.argument],
                        tap=_pattern(design, program, command, iron),
                        wait=command.has_token,
                        group=groups[-1],
                    )
                case Sync(column):
                    if column == 0:  # the others of the group are awaited with it
                        groups.popleft().finish()
                case _:
                    pass

    return sequence


def _pattern(design: GemmDesign, program: Program, task: DmaTask, iron: Iron) -> Handle:
    """A task's passes, counted in elements: passes, tiles, and a tile in two dimensions.

    All sizes that have a field of their own in a descriptor are within its limit.
    """
    nbytes = ELEMENT_NBYTES[task.argument]
    tile = prod(
        {A: (design.m, design.k), B: (design.k, design.n), C: (design.m, design.n)}[task.argument]
    )
    per_granule = GRANULE_NBYTES // nbytes
    granules = tile // per_granule
    limit = design.generation.shim.size_max
    inner = next(size for size in range(limit, 0, -1) if granules % size == 0)
    if not task.is_linear or granules // inner > limit:
        raise PlanError(f"column {task.column}: {task.sizes} granules are no whole tiles in rows")
    sizes = [task.repeat, task.length // granules, granules // inner, inner * per_granule]
    return iron.taplib.TensorAccessPattern(
        (_elements(program, task.argument),),
        offset=task.offset_nbytes // nbytes,
        sizes=sizes,
        strides=[0, tile, inner * per_granule, 1],
    )


def _elements(program: Program, argument: int) -> int:
    """Elements of a buffer: up to where the last task ends, as the checker has verified."""
    ends = [
        task.end_nbytes
        for task in program.commands
        if isinstance(task, DmaTask) and task.argument == argument
    ]
    return max(ends) // ELEMENT_NBYTES[argument]
