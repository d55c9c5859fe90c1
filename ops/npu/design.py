"""A GEMM design: what one xclbin holds, and how a product of any size flows through it.

Cores are an array of `rows` x `columns`. C = A B is computed in tiles of (m, n): core (c, rho)
makes tile row `rows` i + rho and tile column `columns` j + c, for all row blocks i and column
blocks j, each as the sum of K/k products of an (m, k) tile of A with a (k, n) tile of B. Every A
tile is broadcast along a row of cores, every B tile along a column; the C tiles of a column's cores
are joined in its memory tile. A row's A tiles come through one shim: with 8 columns, those of
columns 0, 2, 4 and 6.

What depends on the size is in the instruction stream alone: two runtime parameters of each core
(how many tiles of C, and K/k), and the shims' DMA tasks. Host buffers are packed (see `packing`) so
that every task reads or writes consecutive memory; tiles hold micro-tiles, row by row, as the
core's multiply reads them, so the memory tiles only forward:

- A (bf16): tile rows one after the other, in each the tiles along K.
- B (bf16): for each array column all its tile columns, in each the tiles along K.
- C (f32): for each array column all row blocks, in each all column blocks, in each the tile of each
  core row.

A shim's channels are numbered as mlir-aie numbers them, since one xclbin serves streams that it
did not write: each fifo that ends at a tile takes the first free channel of its direction, and
fifos come in the order of their names, a0, ..., b0, ... So B has channel 1 beside an A, and channel
0 in a column that brings none. Read in mlir-aie's sources of 2026 (IRON's Program, and the pass
that lowers object fifos); nobody has seen a compiled design. `aieflow npu build` compares.

Per row block the tile row of A is streamed once for each column block, and B once as a whole. Row
blocks are tasked in groups: a group is known to be done when its C has arrived, since every
tile of A and B went into it; its descriptors are used again by the group after the next.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from aieflow.ops.npu.generation import GRANULE_NBYTES, NPU1, NPU2, Generation, MicroTile
from aieflow.ops.npu.program import (
    Command,
    DmaTask,
    LockSet,
    ParameterWrite,
    Program,
    Sync,
    TokenRoute,
)

A, B, C = 0, 1, 2  # buffer arguments
A_CHANNEL, C_CHANNEL = 0, 0  # of a shim, in and out; B's is `GemmDesign.b_channel`
IN_NBYTES, OUT_NBYTES = 2, 4  # of an element: bf16 in, f32 out
PARAMETERS = 2  # runtime parameters of a core: tiles of C, products for each
PARAMETERS_NBYTES = 32  # kept free for them at the end of a core's memory
TOKEN_PACKET = 15  # packet id of shim tiles, as mlir-aie numbers the controllers


@dataclass(frozen=True, slots=True)
class GemmSize:
    """C (M, N) = A (M, K) B (K, N)."""

    M: int
    K: int
    N: int

    @property
    def flops(self) -> int:
        """Floating-point operations."""
        return 2 * self.M * self.K * self.N


@dataclass(frozen=True, slots=True)
class GemmDesign:
    """The static configuration: bf16 operands, f32 sums and result."""

    generation: Generation
    m: int
    k: int
    n: int
    columns: int  # of the array; a multiple of the rows
    fifo_depth: int = 2  # buffers of each stream in a core and in a memory tile
    group_blocks: int = 2  # row blocks in one group of tasks
    groups: int = 2  # in flight
    barrier_lock: int = 15  # of each core

    @property
    def rows(self) -> int:
        """Rows of cores."""
        return self.generation.rows

    @property
    def micro_tile(self) -> MicroTile:
        """(r, s, t)."""
        return self.generation.micro_tile

    @property
    def granule(self) -> GemmSize:
        """What M, K and N are padded to a multiple of."""
        return GemmSize(self.rows * self.m, self.k, self.columns * self.n)

    @property
    def l1_nbytes(self) -> int:
        """Bytes of a core's memory: tiles of A, B and C, stack, parameters."""
        inputs = (self.m + self.n) * self.k * IN_NBYTES
        tiles = self.fifo_depth * (inputs + self.m * self.n * OUT_NBYTES)
        return tiles + self.generation.stack_nbytes + PARAMETERS_NBYTES

    @property
    def l2_nbytes(self) -> int:
        """Bytes of a memory tile: an A tile, a B tile and the joined C tiles, each buffered."""
        inputs = (self.m + self.n) * self.k * IN_NBYTES
        return self.fifo_depth * (inputs + self.rows * self.m * self.n * OUT_NBYTES)

    @property
    def parameters_address(self) -> int:
        """Where a core's parameters lie in its memory."""
        return self.generation.l1_nbytes - PARAMETERS_NBYTES

    @property
    def columns_max(self) -> int:
        """The largest padded N of one product: A is repeated once for each column block."""
        return self.generation.iterations_max * self.granule.N

    def carrier(self, row: int) -> int:
        """The column whose shim brings the A tiles of a row of cores."""
        return row * (self.columns // self.rows)

    def b_channel(self, column: int) -> int:
        """The channel of a column's shim on which B comes in: the first that A leaves free."""
        carriers = {self.carrier(row) for row in range(self.rows)}
        return A_CHANNEL + 1 if column in carriers else A_CHANNEL

    def padded(self, size: GemmSize) -> GemmSize:
        """The size with M, K and N rounded up to the granule."""
        return GemmSize(
            -(-size.M // self.granule.M) * self.granule.M,
            -(-size.K // self.granule.K) * self.granule.K,
            -(-size.N // self.granule.N) * self.granule.N,
        )


DESIGNS = {
    NPU1.name: GemmDesign(NPU1, 64, 64, 32, columns=4),
    NPU2.name: GemmDesign(NPU2, 64, 64, 32, columns=8),
}


def row_blocks(design: GemmDesign, size: GemmSize) -> int:
    """M over what all rows of cores compute at once, rounded up."""
    return -(-size.M // design.granule.M)


def column_blocks(design: GemmDesign, size: GemmSize) -> int:
    """N over what all columns of cores compute at once, rounded up."""
    return -(-size.N // design.granule.N)


def inner_tiles(design: GemmDesign, size: GemmSize) -> int:
    """K/k, rounded up."""
    return -(-size.K // design.k)


def parameters(design: GemmDesign, size: GemmSize) -> tuple[int, int]:
    """The runtime parameters of every core: tiles of C, and products for each."""
    return row_blocks(design, size) * column_blocks(design, size), inner_tiles(design, size)


def gemm_program(design: GemmDesign, size: GemmSize) -> Program:
    """The commands that compute one product; `size` is padded. Nothing is checked here."""
    commands: list[Command] = []
    for column in range(design.columns):
        commands.append(TokenRoute(column, "out", C_CHANNEL, TOKEN_PACKET))
    for column in range(design.columns):
        for row in range(design.rows):
            tile = (column, design.generation.first_core_row + row)
            for index, value in enumerate(parameters(design, size)):
                commands.append(ParameterWrite(*tile, design.parameters_address + 4 * index, value))
            commands.append(LockSet(*tile, design.barrier_lock, 1))
    blocks = row_blocks(design, size)
    syncs = [Sync(column, "out", C_CHANNEL) for column in range(design.columns)]
    pending = 0
    for group, first in enumerate(range(0, blocks, design.group_blocks)):
        if pending == design.groups:
            commands += syncs
            pending -= 1
        last = min(first + design.group_blocks, blocks)
        commands += _group_tasks(design, size, group % design.groups, first, last)
        pending += 1
    commands += syncs * pending
    return Program(design.generation, design.columns, tuple(commands))


def _group_tasks(
    design: GemmDesign, size: GemmSize, slot: int, first: int, last: int
) -> Iterator[DmaTask]:
    """The tasks of row blocks [first, last); C first, so that no core waits for its way out."""
    descriptor = slot * (design.group_blocks + 2)
    repeat = column_blocks(design, size)
    inner = inner_tiles(design, size)
    a_length = inner * design.m * design.k * IN_NBYTES // GRANULE_NBYTES
    b_length = repeat * inner * design.k * design.n * IN_NBYTES // GRANULE_NBYTES
    c_length = repeat * design.rows * design.m * design.n * OUT_NBYTES // GRANULE_NBYTES
    blocks = row_blocks(design, size)
    for column in range(design.columns):
        yield DmaTask(
            column,
            "out",
            C_CHANNEL,
            descriptor,
            C,
            GRANULE_NBYTES * c_length * (column * blocks + first),
            (c_length * (last - first),),
            (1,),
            has_token=True,
        )
    for row in range(design.rows):
        for block in range(first, last):
            yield DmaTask(
                design.carrier(row),
                "in",
                A_CHANNEL,
                descriptor + 2 + block - first,
                A,
                GRANULE_NBYTES * a_length * (design.rows * block + row),
                (a_length,),
                (1,),
                repeat=repeat,
            )
    for column in range(design.columns):
        yield DmaTask(
            column,
            "in",
            design.b_channel(column),
            descriptor + 1,
            B,
            GRANULE_NBYTES * b_length * column,
            (b_length,),
            (1,),
            repeat=last - first,
        )
