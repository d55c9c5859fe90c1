"""The sum of a matrix's rows, by chunks of rows and then over the chunks."""

from dataclasses import dataclass

import numpy as np

from aieflow.ops import matmul
from aieflow.ops.graph import Node
from aieflow.ops.opencl.launch import Launch, OpenClKernel, Operand
from aieflow.ops.opencl.sizes import WIDTH, groups, padded
from aieflow.ops.spec import Spec

MOST_CHUNKS = 64
LEAST_ROWS = 8  # of a chunk
ITEMS = 32  # of a group
FLOAT = 4  # bytes


@dataclass(frozen=True, slots=True)
class Chunks:
    """How the rows of a matrix are divided for sums of its columns."""

    rows: int
    columns: int

    @property
    def count(self) -> int:
        """Rows of a chunk; the last may have fewer."""
        return max(LEAST_ROWS, groups(self.rows, MOST_CHUNKS))

    @property
    def chunks(self) -> int:
        """How many there are."""
        return groups(self.rows, self.count)

    @property
    def items(self) -> int:
        """Work items for the columns, in whole groups."""
        return padded(groups(self.columns, WIDTH), ITEMS)

    @property
    def nbytes(self) -> int:
        """Of the sums of all chunks."""
        return FLOAT * self.chunks * self.columns


def chunks_of(spec: Spec) -> Chunks:
    """How the rows of a tensor are divided."""
    return Chunks(spec.rows, spec.columns)


def total(chunks: Chunks, first: int, addend: Operand | None, out: Operand) -> Launch:
    """The launch that adds the sums of all chunks, from row `first` of the workspace on."""
    arguments = (
        Operand("workspace"),
        addend or out,
        out,
        np.int32(chunks.columns),
        np.int32(first),
        np.int32(chunks.chunks),
        np.int32(addend is not None),
    )
    return Launch("column_sum", "total", arguments, (chunks.items,), (ITEMS,))


def _column_sum(node: Node) -> tuple[Launch, ...]:
    chunks = chunks_of(node.input_specs[0])
    arguments = (
        Operand("input", 0),
        Operand("workspace"),
        np.int32(chunks.rows),
        np.int32(chunks.columns),
        np.int32(chunks.count),
    )
    grid = (chunks.items, chunks.chunks)
    addend = Operand("input", 1) if len(node.inputs) == 2 else None
    return (
        Launch("column_sum", "partial_sums", arguments, grid, (ITEMS, 1)),
        total(chunks, 0, addend, Operand("output", 0)),
    )


COLUMN_SUM = OpenClKernel(
    "chunks",
    matmul.COLUMN_SUM,
    _column_sum,
    lambda node: chunks_of(node.input_specs[0]).nbytes,
)
