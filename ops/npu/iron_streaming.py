"""An elementwise design as an IRON program: shim -> core -> shim in each column.

GELU and ReLU are mlir-aie's kernels; it has none for GELU's gradient, so that is ours, in
`gelu_backward.cc`: plain C++, correct before fast. It was compiled for hosts only, where a test
holds it against numpy; no compiler for the array has seen it.
"""

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from aieflow.ops.npu.design import IN_NBYTES
from aieflow.ops.npu.iron_pin import pin
from aieflow.ops.npu.iron_release import Handle, Iron
from aieflow.ops.npu.program import DmaTask, LockSet, ParameterWrite, Sync
from aieflow.ops.npu.streaming import ROWS, StreamDesign, check_stream, stream_program

GELU_BACKWARD = Path(__file__).with_name("gelu_backward.cc")


def stream_module(design: StreamDesign, elements: int, iron: Iron) -> Handle:
    """The MLIR module of a design, with the sequence for a padded number of elements.

    Raises PlanError where either breaks a limit.
    """
    check_stream(design, elements)
    api, tile, columns = iron.iron, iron.device.Tile, range(design.columns)
    device = iron.device.from_name(design.generation.name, n_cols=design.columns)
    api.set_current_device(device)  # the kernels are made for it
    kind = _array(design.tile, iron.bfloat16)
    kernel = _kernel(design, kind, iron)
    names = [*(f"in{place}" for place in range(design.inputs)), "out"]
    fifos = [
        [api.ObjectFifo(kind, depth=design.fifo_depth, name=f"{name}_{column}") for name in names]
        for column in columns
    ]
    parameters = [
        api.Buffer(
            _array(1, np.int32),
            initial_value=np.zeros(1, np.int32),
            name=f"parameters{column}",
            use_write_rtp=True,
        )
        for column in columns
    ]
    barriers = [api.WorkerRuntimeBarrier() for _ in columns]
    core = _core(design.inputs, iron.controlflow.range_)
    workers = [
        api.Worker(
            core,
            [
                *(fifo.cons() for fifo in fifos[column][:-1]),
                fifos[column][-1].prod(),
                kernel,
                parameters[column],
                barriers[column],
            ],
            tile=tile(column, design.generation.first_core_row),
            stack_size=design.generation.stack_nbytes,
            dynamic_objfifo_lowering=True,  # the trip count is not known to the compiler
        )
        for column in columns
    ]
    ends = [
        [
            *(fifo.prod(tile=tile(column, 0)) for fifo in fifos[column][:-1]),
            fifos[column][-1].cons(tile=tile(column, 0)),
        ]
        for column in columns
    ]
    runtime = api.Runtime(
        _sequence(design, elements, iron),
        [*(_array(elements, iron.bfloat16) for _ in names), ends, parameters, barriers],
    )
    module = api.Program(device, runtime, workers=workers).resolve_program()
    pin(module, design.parameters_address, design.barrier_lock, design.columns, iron.ir)
    return module


def _array(size: int, dtype: Any) -> Any:  # noqa: ANN401
    """The type by which IRON knows flat arrays."""
    shape = (size,)
    return np.ndarray[shape, np.dtype[dtype]]  # type: ignore[valid-type]  # a value to IRON


def _kernel(design: StreamDesign, kind: Handle, iron: Iron) -> Handle:
    if design.function == "gelu":
        return iron.kernels.gelu(tile_size=design.tile)
    if design.function == "relu":
        return iron.kernels.relu(tile_size=design.tile)
    return iron.iron.ExternalFunction(
        "gelu_backward_bf16",
        source_file=str(GELU_BACKWARD),
        arg_types=[kind] * 3,
        compile_flags=[f"-DTILE={design.tile}"],
    )


def _core(inputs: int, range_: Handle) -> Callable[..., None]:
    """What every core does, in each run of the sequence once."""

    def core(*given: Handle) -> None:
        sources, (out, kernel, parameters, barrier) = given[:inputs], given[inputs:]
        barrier.wait_for_value(1)
        tiles = parameters[0]
        barrier.release_with_value(1)  # the wait leaves its value
        for _ in range_(tiles):
            room = out.acquire(1)
            kernel(*(source.acquire(1) for source in sources), room)
            for source in sources:
                source.release(1)
            out.release(1)

    return core


def _sequence(design: StreamDesign, elements: int, iron: Iron) -> Callable[..., None]:
    """The program's commands as calls, in one task group."""
    program = stream_program(design, elements)

    def sequence(*given: Any) -> None:  # noqa: ANN401
        buffers: Sequence[Handle] = given[: design.inputs + 1]
        ends, parameters, barriers = given[design.inputs + 1 :]
        group = iron.iron.TaskGroup()
        for command in program.commands:
            match command:
                case ParameterWrite(column, _, _, value):
                    parameters[column][0] = value
                case LockSet(column, _, _, value):
                    barriers[column].set(value)
                case DmaTask(column):
                    end = ends[column][command.argument]
                    move = end.fill if command.direction == "in" else end.drain
                    pattern = _pattern(design, elements, command, iron)
                    buffer = buffers[command.argument]
                    move(buffer, tap=pattern, wait=command.has_token, group=group)
                case Sync() | _:
                    pass
        group.finish()

    return sequence


def _pattern(design: StreamDesign, elements: int, task: DmaTask, iron: Iron) -> Handle:
    """One pass over a share, tile by tile, each in `ROWS` rows."""
    row = design.tile // ROWS
    sizes = [1, task.nbytes // IN_NBYTES // design.tile, ROWS, row]
    assert prod(sizes) * IN_NBYTES == task.nbytes
    return iron.taplib.TensorAccessPattern(
        (elements,),
        offset=task.offset_nbytes // IN_NBYTES,
        sizes=sizes,
        strides=[0, design.tile, row, 1],
    )
