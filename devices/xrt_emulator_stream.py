"""The emulated array with an elementwise design: what a stream of tiles becomes in each core.

A core takes bf16, computes in fp32 and rounds once, to nearest even. mlir-aie's GELU works in bf16
throughout, so its last bits are others: what is emulated is where data go, and the function.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from aieflow.devices.xrt_emulator_moves import (
    Bytes,
    Stream,
    commanded,
    drain,
    expect,
    granules_of,
)
from aieflow.ops.npu.design import IN_NBYTES
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.npu.program import DmaTask, Program
from aieflow.ops.npu.streaming import OUT_CHANNEL, StreamDesign
from aieflow.ops.op import Array
from aieflow.ops.pointwise import gelu_backward_reference, gelu_reference

FUNCTIONS: Mapping[str, Callable[..., Array]] = {
    "gelu": lambda x: gelu_reference((x,), {})[0],
    "gelu_backward": lambda x, dy: gelu_backward_reference((x, dy), {})[0],
    "relu": lambda x: np.maximum(x, 0),
}
FLOPS = 16  # of one element, about: what GELU takes; only the emulated clock asks


@dataclass(frozen=True, slots=True)
class StreamWork:
    """A program, ready to run on the elementwise design that the array was set up with."""

    design: StreamDesign
    inputs: tuple[tuple[Stream, ...], ...]  # by column, by place
    outs: tuple[Stream, ...]  # by column; only what the program waits for
    flops: int
    nbytes: int  # that the DMAs move

    @property
    def outputs(self) -> tuple[DmaTask, ...]:
        """The tasks that write to memory."""
        return tuple(task for stream in self.outs for task in stream.tasks)


def prepare_stream(program: Program, design: StreamDesign) -> StreamWork:
    """Read a program's commands in order; raises StallError where the array would not move on."""
    cores = [(column, design.generation.first_core_row) for column in range(design.columns)]
    said = commanded(program, cores, [design.parameters_address], design.barrier_lock)
    (tiles,) = said.parameters
    share = tiles * design.tile * IN_NBYTES
    inputs, outs = [], []
    for column in range(design.columns):
        streams = tuple(said.take((column, "in", place)) for place in range(design.inputs))
        for place, stream in enumerate(streams):
            expect(stream, share, (column, "in", place))
        channel = (column, "out", OUT_CHANNEL)
        out = said.take(channel)
        expect(out, share, channel)
        inputs.append(streams)
        outs.append(said.awaited(out, channel))
    said.expect_empty()
    elements = design.columns * tiles * design.tile
    moved = (design.inputs + 1) * elements * IN_NBYTES
    return StreamWork(design, tuple(inputs), tuple(outs), FLOPS * elements, moved)


def execute_stream(work: StreamWork, memory: Mapping[int, Bytes]) -> None:
    """Do the work on the device sides of the buffers; raises BadAccessError."""
    function = FUNCTIONS[work.design.function]
    for streams, out in zip(work.inputs, work.outs, strict=True):
        given = [_values(stream, memory) for stream in streams]
        found = to_bfloat16(np.asarray(function(*given), np.float32))
        drain(found.view(np.uint32), out, memory)


def _values(stream: Stream, memory: Mapping[int, Bytes]) -> npt.NDArray[np.float32]:
    return from_bfloat16(granules_of(stream, memory).view(np.uint16))
