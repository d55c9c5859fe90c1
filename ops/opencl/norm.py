"""Layer normalisation: eight work items to a row, eight rows to a group."""

import numpy as np

from aieflow.ops import norm
from aieflow.ops.graph import Node
from aieflow.ops.opencl.column_sum import ITEMS, chunks_of, total
from aieflow.ops.opencl.launch import Argument, Launch, OpenClKernel, Operand
from aieflow.ops.opencl.sizes import padded

LANES, ROWS = 8, 8  # of a group, as in norm.cl


def _inputs(count: int) -> tuple[Operand, ...]:
    return tuple(Operand("input", position) for position in range(count))


def _by_rows(node: Node, arguments: tuple[Argument, ...], last: Argument) -> tuple[Launch, ...]:
    spec = node.output_specs[0]
    sizes = np.int32(spec.rows), np.int32(spec.columns)
    grid = (LANES, padded(spec.rows, ROWS))
    return (Launch("norm", node.op.name, (*arguments, *sizes, last), grid, (LANES, ROWS)),)


def _layernorm(node: Node) -> tuple[Launch, ...]:
    outputs = tuple(Operand("output", position) for position in range(3))
    return _by_rows(node, (*_inputs(3), *outputs), np.float32(node.attrs["epsilon"]))


LAYERNORM = OpenClKernel("rows", norm.LAYERNORM, _layernorm)


def _backward(node: Node) -> tuple[Launch, ...]:
    has_addend = len(node.inputs) == 6
    addend = Operand("input", 5 if has_addend else 0)
    arguments = (*_inputs(5), addend, Operand("output", 0))
    return _by_rows(node, arguments, np.int32(has_addend))


LAYERNORM_BACKWARD = OpenClKernel("rows", norm.LAYERNORM_BACKWARD, _backward)


def _backward_params(node: Node) -> tuple[Launch, ...]:
    chunks = chunks_of(node.input_specs[0])
    has_addends = len(node.inputs) == 6
    sizes = [np.int32(size) for size in (chunks.rows, chunks.columns, chunks.count, chunks.chunks)]
    arguments: tuple[Argument, ...] = (*_inputs(4), Operand("workspace"), *sizes)
    grid = (chunks.items, chunks.chunks)
    totals = (
        total(
            chunks,
            place * chunks.chunks,
            Operand("input", 4 + place) if has_addends else None,
            Operand("output", place),
        )
        for place in range(2)
    )
    return (Launch("norm", node.op.name, arguments, grid, (ITEMS, 1)), *totals)


LAYERNORM_BACKWARD_PARAMS = OpenClKernel(
    "chunks",
    norm.LAYERNORM_BACKWARD_PARAMS,
    _backward_params,
    lambda node: 2 * chunks_of(node.input_specs[0]).nbytes,
)
