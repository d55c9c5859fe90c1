"""Matrix products, forward and backward, and the column sums that are bias gradients.

One op serves the three products of a linear layer: Y = X W + b (+ residual), dX = dY Wᵀ and
dW = Xᵀ dY. Operands of more than two axes are matrices of their last axis.
"""

from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node, Role
from aieflow.ops.op import Arrays, Attrs, Gradients, Op, Specs, require, total
from aieflow.ops.spec import Spec

OPTIONS = ("transpose_a", "transpose_b", "bias", "addend")


def matmul_operands(attrs: Attrs) -> tuple[int | None, int | None]:
    """The positions of the optional operands: (bias, addend)."""
    bias = 2 if attrs.get("bias") else None
    addend = (3 if bias else 2) if attrs.get("addend") else None
    return bias, addend


def _infer_matmul(inputs: Specs, attrs: Attrs) -> Specs:
    bias, addend = matmul_operands(attrs)
    expected = 2 + (bias is not None) + (addend is not None)
    require(len(inputs) == expected, f"takes {expected} operands, given {len(inputs)}")
    require(not set(attrs) - set(OPTIONS), f"takes the options {OPTIONS}, given {set(attrs)}")
    a, b = inputs[:2]
    a_size = (a.columns, a.rows) if attrs.get("transpose_a") else (a.rows, a.columns)
    b_size = (b.columns, b.rows) if attrs.get("transpose_b") else (b.rows, b.columns)
    require(a_size[1] == b_size[0], f"inner sizes differ: {a_size} x {b_size}")
    shape: tuple[int, ...] = (a_size[0], b_size[1])
    if not attrs.get("transpose_a"):
        shape = (*a.shape[:-1], b_size[1])
    out = Spec(shape, a.dtype)
    if bias is not None:
        require(inputs[bias].shape == (b_size[1],), f"bias must have shape ({b_size[1]},)")
    if addend is not None:
        require(inputs[addend].shape == shape, f"addend must have shape {shape}")
    return (out,)


def _flops_matmul(inputs: Specs, outputs: Specs, attrs: Attrs) -> int:
    a = inputs[0]
    inner = a.rows if attrs.get("transpose_a") else a.columns
    return 2 * outputs[0].size * inner


def matmul_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """A B (+ bias) (+ addend); A (M, K) or transposed, B (K, N) or transposed -> (M, N)."""
    bias, addend = matmul_operands(attrs)
    a = inputs[0].reshape(-1, inputs[0].shape[-1])
    b = inputs[1].reshape(-1, inputs[1].shape[-1])
    out = (a.T if attrs.get("transpose_a") else a) @ (b.T if attrs.get("transpose_b") else b)
    if bias is not None:
        out = out + inputs[bias]
    if not attrs.get("transpose_a"):
        out = out.reshape(*inputs[0].shape[:-1], out.shape[-1])
    if addend is not None:
        out = out + inputs[addend]
    return (out,)


def matmul_backward(
    builder: Builder, node: Node, gradients: Gradients, partial: Gradients
) -> Gradients:
    """DA = dY Bᵀ, dB = Aᵀ dY, dbias = column sums of dY, daddend = dY."""
    require(not node.attrs.get("transpose_a"), f"{node.name}: no backward rule with transpose_a")
    (dy,) = gradients
    assert dy is not None
    a, b = node.inputs[:2]
    bias, addend = matmul_operands(node.attrs)
    transposed = bool(node.attrs.get("transpose_b"))
    totals: list[Gradients] = []

    # B is (K, N), or (N, K) when transposed: dB = Aᵀ dY, or dYᵀ A
    left, right = (dy, a) if transposed else (a, dy)
    attrs: dict[str, int | float] = {"transpose_a": True}
    operands = [left, right]
    if (so_far := partial[1]) is not None:
        operands.append(so_far)
        attrs["addend"] = True
    role: Role = "gradient" if b.role == "parameter" else "activation"
    (db,) = builder.apply(MATMUL, operands, [f"d:{b.name}"], attrs, role)

    attrs = {} if transposed else {"transpose_b": True}
    operands = [dy, b]
    if (so_far := partial[0]) is not None:
        operands.append(so_far)
        attrs["addend"] = True
    (da,) = builder.apply(MATMUL, operands, [f"d:{a.name}"], attrs)

    totals.append((da, db))
    if bias is not None:
        name = f"d:{node.inputs[bias].name}"
        operands = [dy]
        if (so_far := partial[bias]) is not None:
            operands.append(so_far)
        totals.append(builder.apply(COLUMN_SUM, operands, [name], role="gradient"))
    if addend is not None:
        totals.append((total(builder, partial[addend], dy),))
    return tuple(gradient for group in totals for gradient in group)


MATMUL = Op(
    "matmul",
    _infer_matmul,
    _flops_matmul,
    matmul_reference,
    matmul_backward,
    may_overwrite={0: (3, 2)},
)


def _infer_column_sum(inputs: Specs, attrs: Attrs) -> Specs:
    require(len(inputs) in (1, 2), f"takes 1 or 2 operands, given {len(inputs)}")
    out = Spec((inputs[0].columns,), inputs[0].dtype)
    require(len(inputs) == 1 or inputs[1] == out, f"addend must be {out}")
    return (out,)


def column_sum_reference(inputs: Arrays, attrs: Attrs) -> Arrays:
    """Sum of the rows; x (..., N) (, addend (N,)) -> (N,)."""
    out = inputs[0].reshape(-1, inputs[0].shape[-1]).sum(axis=0)
    return (out + inputs[1] if len(inputs) == 2 else out,)


COLUMN_SUM = Op(
    "column_sum",
    _infer_column_sum,
    lambda inputs, outputs, attrs: inputs[0].size,
    column_sum_reference,
    may_overwrite={0: (1,)},
)
