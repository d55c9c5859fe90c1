"""Embedding: rows gathered forward, and added up backward in the order of the batch."""

import numpy as np

from aieflow.ops import embedding
from aieflow.ops.graph import Node
from aieflow.ops.opencl.launch import Launch, OpenClKernel, Operand
from aieflow.ops.opencl.sizes import GROUP, WIDTH, Sizes, elementwise, groups, padded

ITEMS = 32  # of a group, for the columns
INT = 4  # bytes


def _grid(columns: int, rows: int) -> tuple[Sizes, Sizes]:
    return (padded(groups(columns, WIDTH), ITEMS), rows), (ITEMS, 1)


def _embedding(node: Node) -> tuple[Launch, ...]:
    tokens, (out,) = node.input_specs[0], node.output_specs
    has_position = len(node.inputs) == 4
    arguments = (
        Operand("input", 0),
        Operand("input", 1),
        Operand("input", 2),
        Operand("input", 3 if has_position else 0),
        Operand("output", 0),
        np.int32(out.columns),
        np.int32(tokens.columns),
        np.int32(has_position),
    )
    return (Launch("embedding", "embedding", arguments, *_grid(out.columns, out.rows)),)


EMBEDDING = OpenClKernel("vector", embedding.EMBEDDING, _embedding)


def _tokens(node: Node) -> tuple[Launch, ...]:
    rows, (out,) = node.input_specs[0].size, node.output_specs
    has_addend = len(node.inputs) == 3
    tokens, dx, target = Operand("input", 0), Operand("input", 1), Operand("output", 0)
    links = Operand("workspace")
    start = (
        Operand("input", 2 if has_addend else 1),
        target,
        np.uint64(out.size),
        np.int32(has_addend),
    )
    sizes = np.int32(rows), np.int32(out.columns)
    return (
        Launch("embedding", "start", start, *elementwise(out.size)),
        Launch("embedding", "links", (tokens, links, sizes[0]), (padded(rows),), (GROUP,)),
        Launch(
            "embedding",
            node.op.name,
            (tokens, dx, links, target, *sizes),
            *_grid(out.columns, rows),
        ),
    )


EMBEDDING_BACKWARD_TOKENS = OpenClKernel(
    "links",
    embedding.EMBEDDING_BACKWARD_TOKENS,
    _tokens,
    lambda node: 2 * INT * node.input_specs[0].size,
)


def _positions(node: Node) -> tuple[Launch, ...]:
    batch, length, columns = node.input_specs[0].shape
    has_addend = len(node.inputs) == 2
    arguments = (
        Operand("input", 0),
        Operand("input", 1 if has_addend else 0),
        Operand("output", 0),
        np.int32(batch),
        np.int32(length),
        np.int32(columns),
        np.int32(has_addend),
    )
    grid = _grid(columns, node.output_specs[0].rows)
    return (Launch("embedding", node.op.name, arguments, *grid),)


EMBEDDING_BACKWARD_POSITIONS = OpenClKernel(
    "vector", embedding.EMBEDDING_BACKWARD_POSITIONS, _positions
)
