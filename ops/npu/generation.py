"""The limits of the two NPU generations that a GEMM design has to keep.

Sources: mlir-aie's target model and verifier (AIETargetModel.h, AIEXDialect.cpp), its matmul
kernels (aie_kernels) and AMD's amdxdna driver. DMAs count in *granules* of 4 bytes; a buffer
descriptor (BD) tells a DMA what to move.
"""

from dataclasses import dataclass

GRANULE_NBYTES = 4


@dataclass(frozen=True, slots=True)
class DmaLimits:
    """What the DMA of one kind of tile can do; sizes, strides and lengths are in granules."""

    inputs: int  # channels from streams into the tile's memory (S2MM)
    outputs: int  # channels from memory to streams (MM2S)
    descriptors: int
    dimensions: int  # of one BD, without the iteration
    size_max: int  # of the dimensions that have a size field (all but the outermost)
    stride_max: int
    length_max: int  # of one pass over a BD


@dataclass(frozen=True, slots=True)
class MicroTile:
    """The block that one instruction of a core multiplies: (r, s) x (s, t) -> (r, t)."""

    r: int
    s: int
    t: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of the NPU; rows and columns count cores."""

    name: str
    code: int  # in the header of an instruction stream
    rows: int
    columns: int
    micro_tile: MicroTile  # of bf16 in, f32 out
    # m, k and n must be multiples of these: the kernel unrolls over several micro-tiles, over 4 x 4
    # on AIE2, over 2 x 2 (in some versions 2 x 4) on AIE2P.
    tile_multiple: tuple[int, int, int]
    l1_nbytes: int = 64 * 1024  # data memory of a core
    l2_nbytes: int = 512 * 1024  # memory tile of a column
    stack_nbytes: int = 0xD00  # a matmul overflows the default of 1024 and hangs
    first_core_row: int = 2  # above the shim (row 0) and the memory tile (row 1)
    shim: DmaLimits = DmaLimits(2, 2, 16, 3, 1023, 1 << 20, (1 << 32) - 1)
    memory: DmaLimits = DmaLimits(6, 6, 48, 4, 1023, 1 << 17, (1 << 17) - 1)
    core: DmaLimits = DmaLimits(2, 2, 16, 3, 255, 1 << 13, (1 << 14) - 1)
    iterations_max: int = 64
    queue_depth: int = 4  # tasks of one shim channel that are running or waiting
    locks: int = 16  # of a core

    @property
    def array_rows(self) -> int:
        """All rows of the array, with shim and memory tiles."""
        return self.first_core_row + self.rows


NPU1 = Generation("npu1", 3, 4, 4, MicroTile(4, 8, 4), (16, 8, 16))  # AIE2: Phoenix, Hawk Point
NPU2 = Generation("npu2", 4, 4, 8, MicroTile(4, 8, 8), (8, 8, 32))  # AIE2P: Strix, Krackan
GENERATIONS = {generation.name: generation for generation in (NPU1, NPU2)}
