"""Every op's backward rule against finite differences in float64, and what references promise.

A graph is built around one node, its backward pass is appended with random gradients as seeds, and
`ops.interpret` runs it in float64. Central differences with h = 1e-5 are right to about 1e-9 there;
1e-6 leaves room for the curvature of normalisation and softmax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from aieflow.ops.builder import Builder
from aieflow.ops.catalogue import OPS
from aieflow.ops.errors import GraphError
from aieflow.ops.grad import append_backward
from aieflow.ops.graph import Graph, Value
from aieflow.ops.interpret import interpret
from aieflow.ops.op import Array, Attrs
from aieflow.ops.random import keep_mask
from aieflow.ops.spec import Spec

H = 1e-5
TOLERANCE = 1e-6
RNG = np.random.default_rng(2)


def doubles(*shape: int) -> Array:
    return RNG.standard_normal(shape)


@dataclass(frozen=True, slots=True)
class Case:
    """One node: its op, its operands by name, and which outputs get a gradient."""

    op: str
    inputs: Mapping[str, Array]
    attrs: Attrs = field(default_factory=dict)
    outputs: tuple[str, ...] = ("y",)
    seeded: int = 1  # the first outputs
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.note}" if self.note else self.op

    @property
    def differentiable(self) -> list[str]:
        return [name for name, x in self.inputs.items() if x.dtype == np.float64]


@dataclass(frozen=True, slots=True)
class Built:
    """The graph of a case, forward and backward, and the name of each operand's gradient."""

    graph: Graph
    gradients: Mapping[str, str]
    seeds: Mapping[str, str]  # output -> feed


def spec_of(x: Array) -> Spec:
    return Spec(x.shape, "float32" if x.dtype == np.float64 else str(x.dtype))


def build(case: Case, partial: Sequence[str] = ()) -> Built:
    """Operands named in `partial` start with the feed `partial:NAME` as gradient."""
    builder = Builder(str(case))
    operands = {
        name: builder.state(name, spec_of(x), "parameter") for name, x in case.inputs.items()
    }
    outputs = builder.apply(OPS[case.op], list(operands.values()), case.outputs, case.attrs)
    forward = builder.nodes
    seeds = {y: builder.feed(f"seed:{y.name}", y.spec) for y in outputs[: case.seeded]}
    so_far = {
        operands[name]: builder.feed(f"partial:{name}", operands[name].spec) for name in partial
    }
    gradients = append_backward(builder, forward, seeds, so_far)
    names = {name: gradients[operands[name]].name for name in case.differentiable}
    results = [*outputs, *dict.fromkeys(gradients[operands[name]] for name in names)]
    return Built(builder.finish(results), names, {y.name: feed.name for y, feed in seeds.items()})


def finite_differences(case: Case, seeds: Mapping[str, Array], name: str) -> Array:
    """The gradient of sum(output * seed) by one operand, element by element."""
    op = OPS[case.op]
    operands = {key: x.copy() for key, x in case.inputs.items()}

    def value() -> float:
        outputs = dict(
            zip(case.outputs, op.reference(tuple(operands.values()), case.attrs), strict=True)
        )
        return sum(float((outputs[key] * seed).sum()) for key, seed in seeds.items())

    flat = operands[name].reshape(-1)
    slopes = np.empty_like(flat)
    for index, centre in enumerate(flat.copy()):
        flat[index] = centre + H
        above = value()
        flat[index] = centre - H
        slopes[index] = (above - value()) / (2 * H)
        flat[index] = centre
    return slopes.reshape(operands[name].shape)


def cases() -> list[Case]:
    x, key = doubles(2, 3, 8), np.array([7], np.uint64)
    tokens = np.array([[1, 4, 1], [0, 4, 6]], np.int32)
    dropped = {"rate": 0.4, "stream": 3}
    products = {
        "plain": ({"x": x, "w": doubles(8, 5)}, {}),
        "transposed": ({"x": x, "w": doubles(5, 8)}, {"transpose_b": 1}),
        "bias": ({"x": x, "w": doubles(8, 5), "b": doubles(5)}, {"bias": 1}),
        "addend": ({"x": x, "w": doubles(8, 5), "r": doubles(2, 3, 5)}, {"addend": 1}),
        "all": (
            {"x": x, "w": doubles(5, 8), "b": doubles(5), "r": doubles(2, 3, 5)},
            {"transpose_b": 1, "bias": 1, "addend": 1},
        ),
    }
    qkv = {"qkv": doubles(2, 5, 18)}
    heads = {"heads": 3}
    return [
        *(Case("matmul", inputs, attrs, note=note) for note, (inputs, attrs) in products.items()),
        Case(
            "layernorm",
            {"x": x, "w": doubles(8), "b": doubles(8)},
            {"epsilon": 1e-5},
            ("y", "mean", "rstd"),
        ),
        Case("add", {"x": x, "z": doubles(2, 3, 8)}),
        Case("gelu", {"x": 2 * x}),
        Case("slice", {"x": doubles(5, 2, 3)}, {"first": 1, "count": 3}),
        Case("dropout", {"x": x, "key": key}, dropped),
        Case("dropout", {"x": x, "key": key, "r": doubles(2, 3, 8)}, dropped, note="addend"),
        Case("attention", qkv, heads, ("y", "lse")),
        Case("attention", {**qkv, "key": key}, {**heads, **dropped}, ("y", "lse"), note="dropout"),
        Case("embedding", {"tokens": tokens, "wte": doubles(7, 4), "wpe": doubles(5, 4)}),
    ]


CASES = cases()


def test_every_differentiable_op_has_a_case() -> None:
    assert {case.op for case in CASES} == {name for name, op in OPS.items() if op.backward}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_agrees_with_finite_differences(case: Case) -> None:
    built = build(case)
    outputs = OPS[case.op].reference(tuple(case.inputs.values()), case.attrs)
    seeds = {
        name: doubles(*x.shape)
        for name, x in zip(case.outputs, outputs, strict=True)
        if name in built.seeds
    }
    given = {built.seeds[name]: seed for name, seed in seeds.items()}
    values = interpret(built.graph, {**case.inputs, **given})
    for name in case.differentiable:
        gradient = values[built.gradients[name]]
        assert gradient.dtype == np.float64
        np.testing.assert_allclose(
            gradient, finite_differences(case, seeds, name), rtol=TOLERANCE, atol=TOLERANCE
        )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_backward_adds_to_what_was_collected(case: Case) -> None:
    if case.op == "attention":
        with pytest.raises(GraphError, match="qkv must have one reader"):
            build(case, partial=case.differentiable)
        return
    plain, adding = build(case), build(case, partial=case.differentiable)
    values = interpret(plain.graph, given := feeds(case, plain))
    so_far = {f"partial:{name}": doubles(*case.inputs[name].shape) for name in case.differentiable}
    totals = interpret(adding.graph, {**given, **so_far})
    for name in case.differentiable:
        expected = values[plain.gradients[name]] + so_far[f"partial:{name}"]
        np.testing.assert_allclose(totals[adding.gradients[name]], expected, atol=1e-12)


def feeds(case: Case, built: Built) -> dict[str, Array]:
    """The operands, and seeds that are random but the same for every graph of the case."""
    rng = np.random.default_rng(3)
    given = dict(case.inputs)
    for value in built.graph.feeds:
        if value.name in built.seeds.values():
            given[value.name] = rng.standard_normal(value.spec.shape)
    return given


def test_cross_entropy_gradient_agrees_with_finite_differences() -> None:
    logits, targets = 2 * doubles(2, 3, 7), np.array([[0, 6, 2], [2, 2, 5]], np.int32)
    scale = 1 / 6
    case = Case("cross_entropy", {"logits": logits, "targets": targets}, outputs=("losses",))
    expected = finite_differences(case, {"losses": np.full((2, 3), scale)}, "logits")
    losses, gradient = OPS["cross_entropy_gradient"].reference((logits, targets), {"scale": scale})
    np.testing.assert_allclose(gradient, expected, rtol=TOLERANCE, atol=TOLERANCE)
    (alone,) = OPS["cross_entropy"].reference((logits, targets), {})
    assert (losses == alone).all()
    (mean,) = OPS["mean"].reference((losses, losses + 1), {})
    np.testing.assert_allclose(mean, [losses.mean() + 0.5])


def test_attention_one_token_at_a_time_is_attention() -> None:
    """
    prompt of 3, then one token each: the cache holds what attention sees at once
    """
    qkv = doubles(2, 6, 12)
    whole, _ = OPS["attention"].reference((qkv,), {"heads": 2})
    keys = values = np.zeros((2, 8, 4))
    pieces = []
    for first, last in ((0, 3), (3, 4), (4, 5), (5, 6)):
        new, position = qkv[:, first:last], np.array([first])
        out, keys, values = OPS["attention_cached"].reference(
            (new, keys, values, position), {"heads": 2}
        )
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-12)


def test_adamw_by_hand() -> None:
    attrs = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1}
    parameter, gradient = np.array([2.0, -1.0]), np.array([3.0, 0.5])
    zeros, rates = np.zeros(2), np.array([0.01, 1 - 0.9, 1 - 0.99])
    # after one training step the corrected moments are g and g², so each weight moves by the rate
    updated, m, v = OPS["adamw"].reference((parameter, gradient, zeros, zeros, rates), attrs)
    np.testing.assert_allclose(updated, parameter * (1 - 0.001) - 0.01 * np.sign(gradient))
    np.testing.assert_allclose(m, 0.1 * gradient)
    np.testing.assert_allclose(v, 0.01 * gradient**2)
    factor = np.array([0.5], np.float32)
    _, m, _ = OPS["adamw"].reference((parameter, gradient, zeros, zeros, rates, factor), attrs)
    np.testing.assert_allclose(m, 0.05 * gradient)


def test_clipping_scales_to_the_greatest_norm() -> None:
    x, y = doubles(3, 70000), doubles(5)
    norm = float(np.sqrt((x * x).sum() + (y * y).sum()))
    sums = tuple(OPS["squared_norm"].reference((z,), {})[0] for z in (x, y))
    assert [part.shape for part in sums] == [(4,), (1,)]
    factor, measured = OPS["clip_factor"].reference(sums, {"max_norm": 1.0})
    np.testing.assert_allclose(measured, norm, rtol=1e-6)
    np.testing.assert_allclose(factor, 1 / norm, rtol=1e-5)
    for max_norm in (0.0, 2 * norm):
        factor, _ = OPS["clip_factor"].reference(sums, {"max_norm": max_norm})
        assert factor == 1


def test_a_mask_depends_on_place_alone() -> None:
    whole = keep_mask(5, 2, (1000,), 0.3)
    assert abs(whole.mean() - 0.7) < 0.05
    assert (keep_mask(5, 2, (400,), 0.3, first=600) == whole[600:]).all()
    assert (keep_mask(5, 3, (1000,), 0.3) != whole).any()
    assert (keep_mask(6, 2, (1000,), 0.3) != whole).any()


def node_inputs(*shapes: tuple[tuple[int, ...], str]) -> tuple[Builder, list[Value]]:
    builder = Builder("shapes")
    values = [
        builder.feed(f"input{index}", Spec(shape, dtype))
        for index, (shape, dtype) in enumerate(shapes)
    ]
    return builder, values


FLOAT, INT, DOUBLE, KEY = "float32", "int32", "float64", "uint64"


@pytest.mark.parametrize(
    ("op", "inputs", "attrs", "message"),
    [
        ("matmul", [((2, 3), FLOAT), ((4, 5), FLOAT)], {}, "inner sizes differ"),
        ("matmul", [((2, 3), FLOAT)], {}, "takes 2 operands, given 1"),
        ("matmul", [((2, 3), FLOAT), ((3, 5), FLOAT)], {"swap": 1}, "takes the options"),
        (
            "matmul",
            [((2, 3), FLOAT), ((3, 5), FLOAT), ((4,), FLOAT)],
            {"bias": 1},
            r"bias must have shape \(5,\)",
        ),
        (
            "matmul",
            [((2, 3), FLOAT), ((3, 5), FLOAT), ((5,), FLOAT)],
            {"addend": 1},
            r"addend must have shape \(2, 5\)",
        ),
        ("column_sum", [((2, 3), FLOAT), ((2,), FLOAT)], {}, "addend must be"),
        ("layernorm", [((2, 3), FLOAT), ((3,), FLOAT), ((2,), FLOAT)], {}, "bias must"),
        ("layernorm", [((2, 3), FLOAT), ((3,), FLOAT), ((3,), FLOAT)], {}, "epsilon"),
        ("add", [((2, 3), FLOAT), ((3, 2), FLOAT)], {}, "must be alike"),
        ("dropout", [((2,), FLOAT), ((1,), INT)], {"rate": 0.5}, "key must be"),
        ("dropout", [((2,), FLOAT), ((1,), KEY)], {"rate": 1.0}, "between 0 and 1"),
        ("attention", [((2, 3, 10), FLOAT)], {"heads": 2}, "no multiple of 3 x 2 heads"),
        ("attention", [((2, 3, 12), FLOAT)], {"heads": 2, "rate": 0.5}, "takes a key"),
        ("cross_entropy", [((2, 7), FLOAT), ((2,), FLOAT)], {}, "targets must be int32"),
        ("cross_entropy", [((2, 7), FLOAT), ((3,), INT)], {}, "do not fit"),
        ("cross_entropy_gradient", [((2, 7), FLOAT), ((2,), INT)], {}, "scale"),
        (
            "embedding",
            [((2, 9), INT), ((7, 4), FLOAT), ((5, 4), FLOAT)],
            {},
            "sequence of 9 tokens, but wpe has 5 positions",
        ),
        ("clip_factor", [((2,), FLOAT)], {"max_norm": 1.0}, "float64"),
        ("adamw", [((2,), FLOAT)], {}, "takes 5 or 6 operands"),
        ("adamw", [((2,), FLOAT)] * 4 + [((2,), DOUBLE)], {}, "rates must be"),
    ],
)
def test_shape_rules_refuse(
    op: str, inputs: list[tuple[tuple[int, ...], str]], attrs: Attrs, message: str
) -> None:
    builder, values = node_inputs(*inputs)
    with pytest.raises(GraphError, match=message):
        builder.apply(OPS[op], values, ["y", "z", "w"], attrs)


def test_tables_move_the_rows_that_are_read_or_added_to() -> None:
    """Of 7 words in rows of 4 floats: 6 tokens read 6 rows, and 3 positions, however long it is."""
    builder, (tokens, wte, wpe, dx, so_far) = node_inputs(
        ((2, 3), INT), ((7, 4), FLOAT), ((5, 4), FLOAT), ((2, 3, 4), FLOAT), ((7, 4), FLOAT)
    )
    (out,) = builder.apply(OPS["embedding"], [tokens, wte, wpe], ["x"])
    add = OPS["embedding_backward_tokens"]
    (first,) = builder.apply(add, [tokens, dx], ["first"], {"rows": 7})
    (both,) = builder.apply(add, [tokens, dx, so_far], ["both"], {"rows": 7})
    nbytes = {node.name: node.nbytes for node in builder.finish([out, first, both]).nodes}
    rows, float_ = 2 * 3 * 4, wte.spec.nbytes // 28
    read = tokens.spec.nbytes + rows * float_
    assert nbytes == {
        "x": read + rows * float_ + 3 * 4 * float_,  # and the result, and positions
        "first": read + 7 * 4 * float_,  # a new table is written whole
        "both": read + 2 * rows * float_,  # one that is there is read and written where it changes
    }
