"""Copies of some sequences of a batch, and the sum that is their gradient."""

from collections.abc import Callable

import numpy as np

from aieflow.ops import batch
from aieflow.ops.cpu.operand import is_same
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Split


def _bind_slice(call: Call) -> Callable[[], None]:
    begin = int(call.attrs["first"])
    first, last = call.share(len(call.outputs[0]))
    source = call.inputs[0][begin + first : begin + last]
    target = call.outputs[0][first:last]
    return lambda: np.copyto(target, source)


def _split_slice(node: Node) -> Split:
    return Split(node.output_specs[0].shape[0], outputs=frozenset({0}))


SLICE = HostKernel("copy", batch.SLICE, _bind_slice, _split_slice)


def _bind_slice_backward(call: Call) -> Callable[[], None]:
    dy, out = call.inputs[0], call.outputs[0]
    begin = int(call.attrs["first"])
    first, last = call.share(len(out))
    inner, end = max(first, begin), max(first, begin, min(last, begin + len(dy)))
    gradient, place, share = dy[inner - begin : end - begin], out[inner:end], out[first:last]
    addend = call.inputs[1] if len(call.inputs) == 2 else None
    is_in_place = addend is not None and is_same(addend, out)
    start = None if addend is None else addend[first:last]

    def run() -> None:
        if start is None:
            share.fill(0)
        elif not is_in_place:
            np.copyto(share, start)
        np.add(place, gradient, out=place)

    return run


def _split_slice_backward(node: Node) -> Split:
    rows = node.output_specs[0].shape[0]
    return Split(rows, frozenset({1} if len(node.inputs) == 2 else ()), frozenset({0}))


SLICE_BACKWARD = HostKernel(
    "sum", batch.SLICE_BACKWARD, _bind_slice_backward, _split_slice_backward
)
