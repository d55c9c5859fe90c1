"""The kernels of the NPU's ops: packing on the host, the product by an instruction stream.

Conversions are kernels of the host: one thread, outside the GIL; their work divides finely.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from aieflow.ops.cpu.operand import flat, is_same, matrix
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split, no_workspace, whole
from aieflow.ops.npu.checker import check
from aieflow.ops.npu.design import GemmDesign
from aieflow.ops.npu.instructions import Words, encode
from aieflow.ops.npu.layout import Layout, Range
from aieflow.ops.npu.ops import (
    GEMM,
    PACK,
    REPACK,
    UNPACK,
    gemm_attrs,
    gemm_design_of,
    gemm_size_of,
    range_of,
    unpack_operands,
)
from aieflow.ops.npu.packing import (
    block_nbytes,
    line_nbytes,
    pack_call,
    pack_units,
    unpack_call,
    unpack_units,
)
from aieflow.ops.op import Array, Op


@dataclass(frozen=True, slots=True, eq=False)
class NpuKernel:
    """A kernel on the NPU: the instruction stream of a node, for the xclbin of a design.

    Buffer arguments are the node's operands in order: inputs, then outputs.
    """

    name: str
    op: Op
    design: GemmDesign
    instructions: Callable[[Node], Words]
    split: Callable[[Node], Split] = whole
    workspace: Callable[[Node], int] = no_workspace


def gemm_kernel(design: GemmDesign) -> NpuKernel:
    """The kernel of `npu_gemm` for one design.

    `instructions` raises PlanError for a node of another design and for one that breaks a limit.
    """

    def instructions(node: Node) -> Words:
        size = gemm_size_of(node.attrs)
        if gemm_attrs(gemm_design_of(node.attrs), size) != gemm_attrs(design, size):
            raise PlanError(f"{node.name} is laid out for another design than the xclbin's: {node}")
        padded = design.padded(size)
        check(design, padded)
        return encode(design, padded)

    return NpuKernel(f"{design.generation.name} tiles", GEMM, design, instructions)


def _bind_pack(call: Call) -> Callable[[], None]:
    layout, taken = Layout.of(call.attrs), range_of(call.attrs)
    return pack_call(
        matrix(call.inputs[0]),
        flat(call.outputs[0], "uint16"),
        layout,
        taken,
        call.workspace[: block_nbytes(layout)].view(np.uint16),
        call.share(pack_units(layout, taken)),
    )


def _split_pack(node: Node) -> Split:
    return Split(pack_units(Layout.of(node.attrs), range_of(node.attrs)))


def _pack_workspace(node: Node) -> int:
    return block_nbytes(Layout.of(node.attrs))


PACK_KERNEL = HostKernel("tiles", PACK, _bind_pack, _split_pack, _pack_workspace)
REPACK_KERNEL = HostKernel("tiles", REPACK, _bind_pack, _split_pack, _pack_workspace)


def _bind_unpack(call: Call) -> Callable[[], None]:
    layout, taken = Layout.of(call.attrs), range_of(call.attrs)
    bias, before = unpack_operands(call.attrs)
    out = matrix(call.outputs[0])
    there = None if before is None else matrix(call.inputs[before])
    first, last = call.share(unpack_units(layout, taken))
    run = unpack_call(
        flat(call.inputs[0]),
        out,
        layout,
        taken,
        call.workspace[: line_nbytes(layout)].view(np.float32),
        None if bias is None else flat(call.inputs[bias]),
        there if call.attrs.get("addend") else None,
        (first, last),
    )
    if there is None or is_same(there, out):
        return run
    # the share of the rows around the range goes to the first and the last part
    above = 0 if first == 0 else taken.first_row + first * layout.micro_rows
    below = min(taken.first_row + last * layout.micro_rows, taken.first_row + taken.rows)
    if last == unpack_units(layout, taken):
        below = out.shape[0]
    copies = _around(there, out, taken, (above, below))

    def run_and_copy() -> None:
        run()
        for source, target in copies:
            np.copyto(target, source)

    return run_and_copy


def _around(
    source: Array, out: Array, taken: Range, rows: tuple[int, int]
) -> list[tuple[Array, Array]]:
    """What of `rows` lies outside the range: pairs of views of the two matrices."""
    top, bottom = taken.first_row, taken.first_row + taken.rows
    left, right = taken.first_column, taken.first_column + taken.columns
    inside = slice(max(rows[0], top), min(rows[1], bottom))
    places = (
        (slice(rows[0], top), slice(None)),
        (inside, slice(0, left)),
        (inside, slice(right, None)),
        (slice(bottom, rows[1]), slice(None)),
    )
    pairs = [(source[place], out[place]) for place in places]
    return [(old, new) for old, new in pairs if old.size]


def _split_unpack(node: Node) -> Split:
    return Split(unpack_units(Layout.of(node.attrs), range_of(node.attrs)))


def _unpack_workspace(node: Node) -> int:
    return line_nbytes(Layout.of(node.attrs))


UNPACK_KERNEL = HostKernel("tiles", UNPACK, _bind_unpack, _split_unpack, _unpack_workspace)

# What the host does around the products, whichever of its lanes it is on.
CONVERSIONS: Mapping[str, HostKernel] = MappingProxyType(
    {kernel.op.name: kernel for kernel in (PACK_KERNEL, REPACK_KERNEL, UNPACK_KERNEL)}
)
