"""Causal attention by blocks of rows: how the functions of `attention.cl` are launched.

A head's width and whether there is dropout are compiled in. The backward pass is three launches:
the first leaves each row's sum of dout * out in the workspace, which the second reads.
"""

import numpy as np

from aieflow.ops import attention
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.op import Attrs
from aieflow.ops.opencl.launch import Argument, Launch, OpenClKernel, Operand
from aieflow.ops.opencl.pointwise import mask_arguments
from aieflow.ops.opencl.sizes import WIDTH, Sizes, groups, padded

BLOCK = 32  # rows of a group
FLOAT = 4  # bytes
MOST_LOCAL_NBYTES = 32 << 10  # what every driver has for a group
TILES = (16, 8)  # rows of a tile in local memory, the first that fits
MOST_TILES = 3  # of one kernel
ITEMS = 32  # of a group that stores rows in the cache


def _constants(width: int, attrs: Attrs, node: Node) -> tuple[tuple[str, int], ...]:
    vectors = groups(width, WIDTH)
    for tile in TILES:
        if MOST_TILES * FLOAT * tile * vectors * WIDTH <= MOST_LOCAL_NBYTES:
            return (
                ("WIDTH_OF_HEAD", width),
                ("VECTORS", vectors),
                ("BLOCK", BLOCK),
                ("TILE", tile),
                ("DROPOUT", int(bool(attrs.get("rate")))),
            )
    raise DeviceError(
        f"igpu: node {node.name}: heads of {width} channels do not fit into local memory: "
        "use more heads",
        "igpu",
    )


def _grid(T: int, units: int) -> tuple[Sizes, Sizes]:
    return (padded(T, BLOCK), units), (BLOCK, 1)


def _scale(width: int) -> np.float32:
    return np.float32(width**-0.5)


def _forward(node: Node) -> tuple[Launch, ...]:
    B, T, three_c = node.input_specs[0].shape
    H, C = int(node.attrs["heads"]), three_c // 3
    qkv, has_key = Operand("input", 0), len(node.inputs) == 2
    arguments: tuple[Argument, ...] = (
        *(qkv, qkv, qkv, qkv, Operand("input", int(has_key))),
        *(Operand("output", 0), Operand("output", 1)),
        *(np.int32(size) for size in (T, T, H, 3 * C, 3 * C, C, 2 * C, 0)),
        _scale(C // H),
        *mask_arguments(node.attrs),
    )
    constants = _constants(C // H, node.attrs, node)
    return (Launch("attention", "attention", arguments, *_grid(T, B * H), constants),)


ATTENTION = OpenClKernel("blocks", attention.ATTENTION, _forward)


def _backward(node: Node) -> tuple[Launch, ...]:
    B, T, three_c = node.input_specs[0].shape
    H, C = int(node.attrs["heads"]), three_c // 3
    qkv, out, lse, dout = (Operand("input", position) for position in range(4))
    key = Operand("input", 4 if len(node.inputs) == 5 else 0)
    along, dqkv = Operand("workspace"), Operand("output", 0)
    scalars = np.int32(T), np.int32(H), _scale(C // H), *mask_arguments(node.attrs)
    constants = _constants(C // H, node.attrs, node)

    def launch(function: str, *operands: Argument) -> Launch:
        arguments = (*operands, *scalars)
        return Launch("attention", function, arguments, *_grid(T, B * H), constants)

    return (
        launch("attention_backward_queries", qkv, out, lse, dout, key, along, dqkv),
        launch("attention_backward_keys", qkv, lse, dout, key, along, dqkv),
        launch("attention_backward_values", qkv, lse, dout, key, dqkv),
    )


ATTENTION_BACKWARD = OpenClKernel(
    "blocks",
    attention.ATTENTION_BACKWARD,
    _backward,
    lambda node: node.input_specs[2].nbytes,
)


def _cached(node: Node) -> tuple[Launch, ...]:
    B, n, three_c = node.input_specs[0].shape
    longest = node.input_specs[1].shape[1]
    H, C = int(node.attrs["heads"]), three_c // 3
    qkv, position = Operand("input", 0), Operand("input", 3)
    out, keys, values = (Operand("output", place) for place in range(3))
    store = (qkv, position, keys, values, np.int32(n), np.int32(longest), np.int32(C))
    attend: tuple[Argument, ...] = (
        *(qkv, keys, values, position, position, out, Operand("workspace")),
        *(np.int32(size) for size in (n, longest, H, 3 * C, C, 0, 0, 1)),
        _scale(C // H),
        *mask_arguments({}),
    )
    constants = _constants(C // H, {}, node)
    sizes = (padded(groups(C, WIDTH), ITEMS), B * n), (ITEMS, 1)
    return (
        Launch("attention", "store_cache", store, *sizes, constants),
        Launch("attention", "attention", attend, *_grid(n, B * H), constants),
    )


# A position that does not fit into the cache leaves it alone and gives NaN: a kernel cannot raise.
ATTENTION_CACHED = OpenClKernel(
    "blocks",
    attention.ATTENTION_CACHED,
    _cached,
    lambda node: FLOAT * node.input_specs[0].rows * int(node.attrs["heads"]),
)
