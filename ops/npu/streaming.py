"""Elementwise functions on the NPU, as data: each column streams its share through one core.

A core takes a tile of each input (bf16), computes, and gives a tile of the output (bf16). Every
fifo has two buffers, so one tile arrives and one leaves while one is computed. Column c has the
c-th share of consecutive elements; the number of tiles is a runtime parameter, so one xclbin serves
every size. `aieflow npu build --design gelu` builds one; no plan has them yet.
"""

from dataclasses import dataclass

from aieflow.ops.errors import PlanError
from aieflow.ops.npu.checker import check_bounds, check_program
from aieflow.ops.npu.design import IN_NBYTES, PARAMETERS_NBYTES, TOKEN_PACKET
from aieflow.ops.npu.generation import GRANULE_NBYTES, Generation
from aieflow.ops.npu.program import (
    Command,
    DmaTask,
    LockSet,
    ParameterWrite,
    Program,
    Sync,
    TokenRoute,
)

INPUTS = {"gelu": 1, "gelu_backward": 2, "relu": 1}  # of each function
OUT_CHANNEL = 0
KERNEL_TILE = 1024  # elements that mlir-aie's kernels are compiled for
OWN_KERNELS = ("gelu_backward",)  # functions whose source is ours, for any tile
ROWS = 32  # in which a tile is told to the DMA: both sizes stay within its fields


@dataclass(frozen=True, slots=True)
class StreamDesign:
    """The static configuration: one core in each column, bf16 in and out."""

    generation: Generation
    function: str
    columns: int
    tile: int = KERNEL_TILE  # elements
    fifo_depth: int = 2
    barrier_lock: int = 15

    @property
    def inputs(self) -> int:
        """How many arrays go in."""
        return INPUTS[self.function]

    @property
    def granule(self) -> int:
        """What the number of elements is padded to a multiple of."""
        return self.tile * self.columns

    @property
    def l1_nbytes(self) -> int:
        """Bytes of a core's memory: tiles, stack, parameters."""
        tiles = self.fifo_depth * (self.inputs + 1) * self.tile * IN_NBYTES
        return tiles + self.generation.stack_nbytes + PARAMETERS_NBYTES

    @property
    def parameters_address(self) -> int:
        """Where a core's parameter lies in its memory."""
        return self.generation.l1_nbytes - PARAMETERS_NBYTES

    def padded(self, elements: int) -> int:
        """The number of elements, rounded up to the granule."""
        return -(-elements // self.granule) * self.granule


def stream_program(design: StreamDesign, elements: int) -> Program:
    """The commands for one padded number of elements; arguments: inputs, then the output."""
    share = elements // design.columns
    length = share * IN_NBYTES // GRANULE_NBYTES
    row = design.generation.first_core_row
    commands: list[Command] = []
    for column in range(design.columns):
        first = column * share * IN_NBYTES
        commands += [
            TokenRoute(column, "out", OUT_CHANNEL, TOKEN_PACKET),
            ParameterWrite(column, row, design.parameters_address, share // design.tile),
            LockSet(column, row, design.barrier_lock, 1),
            DmaTask(
                column,
                "out",
                OUT_CHANNEL,
                0,
                design.inputs,
                first,
                (length,),
                (1,),
                has_token=True,
            ),
        ]
        commands += [
            DmaTask(column, "in", place, 1 + place, place, first, (length,), (1,))
            for place in range(design.inputs)
        ]
    commands += [Sync(column, "out", OUT_CHANNEL) for column in range(design.columns)]
    return Program(design.generation, design.columns, tuple(commands))


def check_stream(design: StreamDesign, elements: int) -> None:
    """Raise PlanError, with value and limit, unless the NPU can compute this many elements."""
    generation = design.generation
    where = f"{generation.name} {design.function} of {elements} elements"
    if design.function not in INPUTS:
        raise PlanError(f"{where}: there are {', '.join(INPUTS)}")
    if not 1 <= design.columns <= generation.columns or design.fifo_depth < 1 or design.tile < 1:
        raise PlanError(
            f"{where}: {design.columns} columns of {generation.columns}, fifos of depth "
            f"{design.fifo_depth}, tiles of {design.tile}: all must be at least 1"
        )
    if elements < 1 or elements % design.granule:
        raise PlanError(f"{where}: no multiple of {design.granule} (pad it)")
    if design.inputs > generation.core.inputs:
        raise PlanError(f"{where}: {design.inputs} inputs, a core has {generation.core.inputs}")
    tile_nbytes = design.tile * IN_NBYTES
    if tile_nbytes % (ROWS * GRANULE_NBYTES):
        raise PlanError(f"{where}: tiles of {tile_nbytes} bytes are no {ROWS} rows of whole words")
    if tile_nbytes // GRANULE_NBYTES > generation.core.length_max:
        raise PlanError(f"{where}: tiles of {design.tile}, more than a core's DMA moves at once")
    if design.l1_nbytes > generation.l1_nbytes:
        raise PlanError(
            f"{where}: {design.l1_nbytes} bytes of a core's {generation.l1_nbytes} (L1)"
        )
    descriptors = (design.inputs + 1) * design.fifo_depth
    if descriptors > generation.core.descriptors:
        raise PlanError(f"{where}: {descriptors} descriptors of {generation.core.descriptors}")
    if not 0 <= design.barrier_lock < generation.locks:
        raise PlanError(f"{where}: barrier lock {design.barrier_lock} of {generation.locks}")
    if design.function not in OWN_KERNELS and design.tile != KERNEL_TILE:
        raise PlanError(
            f"{where}: tiles of {design.tile}, mlir-aie's kernel takes {KERNEL_TILE} elements"
        )
    program = stream_program(design, elements)
    check_program(program)
    check_bounds(program, (elements * IN_NBYTES,) * (design.inputs + 1))
