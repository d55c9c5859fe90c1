"""Matrix products in OpenCL: which kernels run with which sizes, for each variant.

The CPU family packs blocks of both operands into the workspace and multiplies them; the workspace
stays small because large operands are taken by blocks, along all three axes. Blocks along K go on
from the sums in C. The GPU family multiplies in one launch, after it has stored the operands as
16-bit floats in the workspace where its variant says so.

Each element is summed in one fixed order, so a variant always gives the same bits. Bias and addend
join the sums at the end (GPU family) or after the first `inner` products (CPU family).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from aieflow.ops import matmul
from aieflow.ops.graph import Node
from aieflow.ops.matmul import matmul_operands
from aieflow.ops.opencl.launch import Argument, Launch, OpenClKernel, Operand, Traits
from aieflow.ops.opencl.variants import (
    DEPTH,
    CpuVariant,
    GpuVariant,
    Product,
    Variant,
    default_variant,
    product_of,
)

HALF, FLOAT = 2, 4  # bytes
ALIGNMENT = 256  # of pieces of the workspace
# Of packed blocks: along K, and floats. A's is the smaller: each panel of B reads it all again.
MOST_INNER = 1152
MOST_A, MOST_B = 1 << 20, 4 << 20


@dataclass(frozen=True, slots=True)
class Blocks:
    """The largest block of a product that is packed at a time: M x K of A, K x N of B."""

    M: int
    N: int
    K: int

    @property
    def a_nbytes(self) -> int:
        """Bytes of A's packed block, up to where B's begins."""
        return _padded(FLOAT * self.M * self.K, ALIGNMENT)

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.a_nbytes + FLOAT * self.N * self.K


def matmul_kernel(choose: Callable[[Node], Variant]) -> OpenClKernel:
    """The kernel that runs each node in the variant that `choose` names.

    `choose` is asked several times for a node, and must always give the same answer.
    """
    return OpenClKernel(
        "matmul",
        matmul.MATMUL,
        lambda node: launches(node, choose(node)),
        lambda node: workspace(node, choose(node)),
    )


def default_choice(traits: Traits, allow_fp16: bool = False) -> Callable[[Node], Variant]:
    """The choice by the device's traits, without a measurement, for `matmul_kernel`."""
    return lambda node: default_variant(product_of(node), traits, allow_fp16)


def launches(node: Node, variant: Variant) -> tuple[Launch, ...]:
    """What computes the node in this variant, in order."""
    if isinstance(variant, CpuVariant):
        return tuple(_panels(node, product_of(node), variant))
    return tuple(_tiles(node, product_of(node), variant))


def workspace(node: Node, variant: Variant) -> int:
    """Bytes of workspace that `launches` uses."""
    product = product_of(node)
    if isinstance(variant, CpuVariant):
        return blocks_of(product, variant).nbytes
    if variant.half:
        return _padded(HALF * product.M * product.K, ALIGNMENT) + HALF * product.K * product.N
    return 0


def blocks_of(product: Product, variant: CpuVariant) -> Blocks:
    """The blocks that operands are packed by: whole tiles, at most `MOST_A` and `MOST_B` floats.

    Along K they are as equal as can be, so that no short one is left.
    """
    inner = _padded(-(-product.K // -(-product.K // MOST_INNER)), DEPTH)

    def fitting(size: int, step: int, most: int) -> int:
        return min(_padded(size, step), max(1, most // inner // step) * step)

    return Blocks(
        fitting(product.M, variant.rows * variant.group, MOST_A),
        fitting(product.N, variant.columns, MOST_B),
        inner,
    )


def _panels(node: Node, product: Product, variant: CpuVariant) -> Iterator[Launch]:
    constants: dict[str, int | float] = {
        "ROWS": variant.rows,
        "VECTORS": variant.vectors,
        "WIDTH": variant.width,
        "GROUP": variant.group,
        "INNER": variant.inner,
        "TRANSPOSE_A": int(product.transpose_a),
        "TRANSPOSE_B": int(product.transpose_b),
        "HAS_BIAS": 0,
        "HAS_ADDEND": 0,
        "CONTINUES": 0,
    }
    blocks = blocks_of(product, variant)
    packed_a, packed_b = Operand("workspace"), Operand("workspace", 0, blocks.a_nbytes)
    lda = np.int32(product.M if product.transpose_a else product.K)
    ldb = np.int32(product.K if product.transpose_b else product.N)
    extras, flags = _extras(node)

    def launch(
        function: str, arguments: tuple[Argument, ...], grid: tuple[int, int], **changes: int
    ) -> Launch:
        chosen = tuple((constants | changes).items())
        return Launch("matmul_panels", function, arguments, grid, (1, 1), chosen)

    for first_k, inner in _ranges(product.K, blocks.K):
        depth = (np.int32(first_k), np.int32(inner))
        steps = -(-inner // variant.inner)
        for first_row, rows in _ranges(product.M, blocks.M):
            place = (np.int32(first_row), np.int32(rows))
            groups = -(-rows // (variant.rows * variant.group))
            operands = (Operand("input", 0), packed_a, lda, *place, *depth)
            yield launch("pack_a", operands, (groups, steps))
            for first_column, columns in _ranges(product.N, blocks.N):
                beside = (np.int32(first_column), np.int32(columns))
                panels = -(-columns // variant.columns)
                operands = (Operand("input", 1), packed_b, ldb, *beside, *depth)
                if first_row == 0 or blocks.N < product.N:  # else it is packed already
                    yield launch("pack_b", operands, (panels, steps))
                goes_on = first_k > 0
                yield launch(
                    "multiply_panels",
                    (
                        *(packed_a, packed_b, Operand("output", 0)),
                        *(() if goes_on else extras),
                        *(np.int32(product.N), *place, *beside, np.int32(inner)),
                    ),
                    (groups, panels),
                    **({"CONTINUES": 1} if goes_on else flags),
                )


def _tiles(node: Node, product: Product, variant: GpuVariant) -> Iterator[Launch]:
    M, N, K = product.M, product.N, product.K
    extras, flags = _extras(node)
    across, down = variant.group
    groups_x, groups_y = -(-N // variant.columns), -(-M // variant.rows)
    rows_first = groups_y < groups_x
    constants = {
        "TILE_ROWS": variant.rows,
        "TILE_COLUMNS": variant.columns,
        "TILE_INNER": variant.inner,
        "ITEM_ROWS": variant.item_rows,
        "ITEM_COLUMNS": variant.item_columns,
        "TRANSPOSE_A": int(product.transpose_a),
        "TRANSPOSE_B": int(product.transpose_b),
        "QUADS_A": int((M if product.transpose_a else K) % 4 == 0),
        "QUADS_B": int((K if product.transpose_b else N) % 4 == 0),
        "HALF": int(variant.half),
        "ROWS_FIRST": int(rows_first),
        **flags,
    }
    chosen = tuple(constants.items())
    operands = [Operand("input", 0), Operand("input", 1)]
    if variant.half:
        starts = (0, _padded(HALF * M * K, ALIGNMENT))
        for position, (start, count) in enumerate(zip(starts, (M * K, K * N), strict=True)):
            stored = Operand("workspace", 0, start)
            arguments = (operands[position], stored, np.uint64(count))
            yield Launch("matmul_tiles", "to_half", arguments, (-(-count // 4),), None, chosen)
            operands[position] = stored
    # the first axis of a range is the one on which groups follow each other
    groups = (groups_y, groups_x) if rows_first else (groups_x, groups_y)
    yield Launch(
        "matmul_tiles",
        "multiply_tiles",
        (*operands, Operand("output", 0), *extras, np.int32(M), np.int32(N), np.int32(K)),
        (groups[0] * across, groups[1] * down),
        (across, down),
        chosen,
    )


def _extras(node: Node) -> tuple[tuple[Operand, ...], dict[str, int]]:
    """Bias and addend, as far as the node has them, and the constants that say so."""
    at_bias, at_addend = matmul_operands(node.attrs)
    found = tuple(Operand("input", at) for at in (at_bias, at_addend) if at is not None)
    flags = {"HAS_BIAS": int(at_bias is not None), "HAS_ADDEND": int(at_addend is not None)}
    return found, flags


def _ranges(size: int, step: int) -> Iterator[tuple[int, int]]:
    """First element and length of the pieces of `size`, each but the last `step` long."""
    for first in range(0, size, step):
        yield first, min(step, size - first)


def _padded(size: int, step: int) -> int:
    return -(-size // step) * step
