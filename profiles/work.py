"""What a measured point is about: one part of one node, as far as its time depends on it.

Two nodes are the same work where op, kernel, device, parts, shapes and flags are the same. Numbers
that only scale what is computed (a learning rate, a dropout's rate or stream, where a slice begins)
are left out. `variant` is what is left of that without sizes: works of one variant differ in size
alone, so that one fit can stand for all of them.
"""

from dataclasses import dataclass

from aieflow.ops.graph import Node
from aieflow.ops.kernel import Kernel

NO_SIZE = frozenset({"stream", "first"})  # whole-numbered attributes that cost no time


@dataclass(frozen=True, slots=True)
class Work:
    """One part of a node on a device; `flops` and `nbytes` are the part's share.

    Operands that divide with the work count by their share, all others whole.
    """

    device: str
    op: str
    kernel: str
    parts: int
    variant: str
    signature: str
    flops: float
    nbytes: float
    sizes: tuple[int, ...]  # elements of each operand, inputs first

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What tells it from other works."""
        return self.device, self.op, self.kernel, self.parts, self.signature


def work_of(device: str, node: Node, kernel: Kernel, parts: int) -> Work:
    """The work of each of `parts` parts of a node, as `kernel` on `device` divides it."""
    flags = sorted(name for name, value in node.attrs.items() if isinstance(value, bool) and value)
    counts = [
        f"{name}={value}"
        for name, value in sorted(node.attrs.items())
        if isinstance(value, int) and not isinstance(value, bool) and name not in NO_SIZE
    ]
    split = kernel.split(node)
    divided = [
        *(position in split.inputs for position in range(len(node.inputs))),
        *(position in split.outputs for position in range(len(node.outputs))),
    ]
    specs = (*node.input_specs, *node.output_specs)
    nbytes = sum(
        spec.nbytes / (parts if is_divided else 1)
        for spec, is_divided in zip(specs, divided, strict=True)
    )
    shapes = [", ".join(map(str, each)) for each in (node.input_specs, node.output_specs)]
    return Work(
        device=device,
        op=node.op.name,
        kernel=kernel.name,
        parts=parts,
        variant=" ".join([*flags, str(len(node.inputs))]),
        signature=" ".join([" -> ".join(shapes), *flags, *counts]),
        flops=node.flops / parts,
        nbytes=nbytes,
        sizes=tuple(spec.size for spec in specs),
    )
