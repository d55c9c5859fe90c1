"""The graph's form: builder, every rule of `Graph.check`, the reverse walk, and ops' doctests."""

import doctest
import importlib
import pkgutil
from itertools import pairwise

import numpy as np
import pytest

import aieflow.ops
from aieflow.ops.builder import Builder
from aieflow.ops.errors import GraphError
from aieflow.ops.grad import append_backward
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.interpret import interpret
from aieflow.ops.matmul import MATMUL
from aieflow.ops.op import Op
from aieflow.ops.optim import ADAMW
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec

SQUARE = Spec((2, 2))
RATES = Spec((3,), "float64")
ADAMW_ATTRS = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}


def module_names() -> list[str]:
    return [
        module.name
        for module in pkgutil.walk_packages(aieflow.ops.__path__, "aieflow.ops.")
        if not module.ispkg
    ]


@pytest.mark.parametrize("name", module_names())
def test_doctests(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_some_module_has_a_doctest() -> None:
    _, tried = doctest.testmod(importlib.import_module("aieflow.ops.builder"))
    assert tried > 0


def test_a_spec_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="'float8' is none of"):
        Spec((2,), "float8")
    with pytest.raises(ValueError, match="size below 1"):
        Spec((2, 0))
    assert (Spec((2, 3, 4)).rows, Spec((2, 3, 4)).columns, Spec(()).size) == (6, 4, 1)


def test_names_are_unique_and_scoped() -> None:
    builder = Builder("names")
    x = builder.feed("x", SQUARE)
    with builder.scope("block"), builder.scope("mlp"):
        (first,) = builder.apply(GELU, [x], ["y"])
        (second,) = builder.apply(GELU, [first], ["y"])
        (gradient,) = builder.apply(GELU, [first], ["d:x"])
    (last,) = builder.apply(GELU, [second], ["y"])
    names = [value.name for value in (first, second, gradient, last)]
    assert names == ["block.mlp.y", "block.mlp.y#2", "d:x", "y"]


def test_an_updated_state_keeps_its_role_and_home() -> None:
    builder, state, updated = one_update()
    graph = builder.finish([updated])
    assert updated.role == "parameter"
    assert graph.state_of[updated] == state
    assert graph.producer[updated] == 0
    assert graph.consumers[state] == (0,)


def one_update() -> tuple[Builder, Value, Value]:
    """A graph under construction with one AdamW node; the parameter before and after."""
    builder = Builder("update")
    gradient, rates = builder.feed("g", SQUARE), builder.feed("rates", RATES)
    state = builder.state("w", SQUARE, "parameter")
    m, v = builder.state("m", SQUARE, "moment"), builder.state("v", SQUARE, "moment")
    operands = [state, gradient, m, v, rates]
    updated, _, _ = builder.apply(ADAMW, operands, ["w'", "m'", "v'"], ADAMW_ATTRS)
    return builder, state, updated


def test_apply_names_the_op_and_its_operands() -> None:
    builder = Builder("refused")
    x, y = builder.feed("x", SQUARE), builder.feed("y", Spec((3, 2)))
    with pytest.raises(GraphError) as caught:
        builder.apply(MATMUL, [x, y], ["z"])
    assert str(caught.value) == (
        "matmul(%x: float32[2, 2], %y: float32[3, 2]) for 'z': inner sizes differ: (2, 2) x (3, 2)"
    )
    assert builder.nodes == ()


def test_figures_and_text_of_a_graph() -> None:
    builder = Builder("product")
    x, w = builder.feed("x", Spec((2, 3))), builder.state("w", Spec((3, 4)), "parameter")
    (y,) = builder.apply(MATMUL, [x, w], ["y"])
    graph = builder.finish([y])
    assert (graph.flops, graph.nbytes) == (2 * 2 * 3 * 4, 4 * (6 + 12 + 8))
    assert graph.node("y") is graph.nodes[0]
    with pytest.raises(KeyError):
        graph.node("z")
    assert [value.name for value in graph.values] == ["x", "w", "y"]
    assert str(graph).splitlines() == [
        "graph product",
        "  feed   %x: float32[2, 3]",
        "  state  %w: float32[3, 4]",
        "     0  %y: float32[2, 4] = matmul(%x, %w)",
        "  result %y: float32[2, 4]",
    ]


X, Y, Z = (Value(name, SQUARE) for name in "xyz")


def gelu(source: Value, target: Value, name: str = "") -> Node:
    return Node(name or target.name, GELU, (source,), (target,), {})


def graph_of(*nodes: Node, results: tuple[Value, ...] = ()) -> Graph:
    return Graph("bad", (X,), (), nodes, results)


def refusal(graph: Graph) -> str:
    with pytest.raises(GraphError) as caught:
        graph.check()
    return str(caught.value)


def test_a_right_graph_passes() -> None:
    graph_of(gelu(X, Y), gelu(Y, Z), results=(Z,)).check()


def test_feeds_and_states_have_names_of_their_own() -> None:
    graph = Graph("bad", (X,), (Value("x", SQUARE, "parameter"),), (), ())
    assert refusal(graph) == "bad: two feeds or states share a name"


def test_nodes_have_names_of_their_own() -> None:
    message = refusal(graph_of(gelu(X, Y, "same"), gelu(Y, Z, "same")))
    assert "node 1 (same) a second node is called 'same'" in message


def test_a_value_is_defined_before_it_is_read() -> None:
    message = refusal(graph_of(gelu(Y, Z), gelu(X, Y)))
    assert message.splitlines() == [
        "bad: node 0 (z) reads %y, which nothing defines before",
        ">    0  %z: float32[2, 2] = gelu(%y)",
        "     1  %y: float32[2, 2] = gelu(%x)",
    ]


def test_a_value_is_defined_once() -> None:
    message = refusal(graph_of(gelu(X, Y), gelu(X, Y, "again")))
    assert "node 1 (again) defines %y a second time" in message
    assert "defines %x a second time" in refusal(graph_of(gelu(X, X)))


def test_outputs_are_what_the_op_gives() -> None:
    message = refusal(graph_of(gelu(X, Value("y", Spec((4,))))))
    assert "has outputs ['float32[4]']; its op gives ['float32[2, 2]']" in message


def test_nobody_reads_a_state_after_its_update() -> None:
    builder, state, updated = one_update()
    builder.apply(GELU, [state], ["late"])
    with pytest.raises(GraphError, match=r"reads %w after its memory was updated"):
        builder.finish([updated])


def test_only_states_are_updated() -> None:
    builder = Builder("feed")
    w, g, m, v = (builder.feed(name, SQUARE) for name in "wgmv")
    rates = builder.feed("rates", RATES)
    outputs = builder.apply(ADAMW, [w, g, m, v, rates], ["w'", "m'", "v'"], ADAMW_ATTRS)
    with pytest.raises(GraphError, match=r"updates %w, which is no state"):
        builder.finish(outputs)


def test_an_update_keeps_the_shape() -> None:
    widen = Op(
        "widen",
        lambda inputs, attrs: (Spec((9,)),),
        lambda inputs, outputs, attrs: 0,
        lambda inputs, attrs: (np.zeros(9),),
        updates={0: 0},
    )
    builder = Builder("widen")
    state = builder.state("w", SQUARE, "parameter")
    (y,) = builder.apply(widen, [state], ["y"])
    with pytest.raises(GraphError, match="updates input 0 with another shape"):
        builder.finish([y])


def test_results_exist_at_the_end() -> None:
    assert refusal(graph_of(results=(Z,))) == "bad: result %z is not defined at the end"
    builder, state, _ = one_update()
    with pytest.raises(GraphError, match="result %w is not defined at the end"):
        builder.finish([state])


def test_an_error_shows_the_neighbourhood() -> None:
    values = [X, *(Value(f"v{index}", SQUARE) for index in range(9))]
    nodes = [gelu(a, b) for a, b in pairwise(values)]
    lines = graph_of(*nodes).neighbourhood(4).splitlines()
    assert [line[:6] for line in lines] == ["     2", "     3", ">    4", "     5", "     6"]
    assert len(graph_of(*nodes).neighbourhood(0).splitlines()) == 3


def two_layers() -> tuple[Builder, list[Value], Value]:
    """Y = (x w1 + b1) w2 with one weight read twice: w1 also multiplies the result."""
    builder = Builder("layers")
    x = builder.feed("x", SQUARE)
    w1, w2 = (builder.state(name, SQUARE, "parameter") for name in ("w1", "w2"))
    b1 = builder.state("b1", Spec((2,)), "parameter")
    (h,) = builder.apply(MATMUL, [x, w1, b1], ["h"], {"bias": 1})
    (g,) = builder.apply(MATMUL, [h, w2], ["g"])
    (y,) = builder.apply(MATMUL, [g, w1], ["y"])
    return builder, [w1, b1, w2], y


def test_a_gradient_is_complete_when_its_first_reader_is_behind() -> None:
    """
    forward   h (w1, b1)   g (w2)   y (w1)
    backward  y: d:w1 begun   g: d:w2 complete   h: d:w1 and d:b1 complete
    """
    builder, _, y = two_layers()
    told: list[tuple[str, str, int]] = []

    def on_complete(parameter: Value, gradient: Value) -> None:
        told.append((parameter.name, gradient.name, len(builder.nodes)))

    forward = builder.nodes
    seed = builder.feed("seed", SQUARE)
    gradients = append_backward(builder, forward, {y: seed}, {}, on_complete)
    backward = [node.name for node in builder.nodes[len(forward) :]]
    assert backward == ["d:w1", "d:g", "d:w2", "d:h", "d:w1#2", "d:x", "d:b1"]
    assert told == [("w2", "d:w2", 7), ("w1", "d:w1#2", 10), ("b1", "d:b1", 10)]
    added = builder.nodes[7]
    assert [value.name for value in added.inputs] == ["x", "d:h", "d:w1"]
    assert added.attrs["addend"]
    assert {gradients[value].role for value in gradients if value.role == "parameter"} == {
        "gradient"
    }


def test_partial_gradients_are_added_to_first() -> None:
    builder, (w1, b1, w2), y = two_layers()
    forward = builder.nodes
    seed = builder.feed("seed", SQUARE)
    partial = {
        w1: builder.feed("p1", SQUARE),
        b1: builder.feed("pb", Spec((2,))),
        w2: builder.feed("p2", SQUARE),
    }
    gradients = append_backward(builder, forward, {y: seed}, partial)
    graph = builder.finish([gradients[w1], gradients[b1], gradients[w2]])
    rng = np.random.default_rng(4)
    given = {
        value.name: rng.standard_normal(value.spec.shape) for value in (*graph.feeds, *graph.states)
    }
    values = interpret(graph, given)
    x, w, v, b, s = (given[name] for name in ("x", "w1", "w2", "b1", "seed"))
    dg = s @ w.T
    dh = dg @ v.T
    h = x @ w + b
    np.testing.assert_allclose(
        values[gradients[w1].name], given["p1"] + (h @ v).T @ s + x.T @ dh, atol=1e-12
    )
    np.testing.assert_allclose(values[gradients[b1].name], given["pb"] + dh.sum(axis=0))
    np.testing.assert_allclose(values[gradients[w2].name], given["p2"] + h.T @ dg)


def test_a_value_with_two_readers_collects_both() -> None:
    builder = Builder("readers")
    x = builder.state("x", SQUARE, "parameter")
    (y,) = builder.apply(GELU, [x], ["y"])
    (both,) = builder.apply(ADD, [y, x], ["both"])
    forward = builder.nodes
    seed = builder.feed("seed", SQUARE)
    gradients = append_backward(builder, forward, {both: seed}, {})
    graph = builder.finish([gradients[x]])
    point = np.array([[0.5, -1.0], [2.0, 0.0]])
    slope = interpret(graph, {"x": point, "seed": np.ones((2, 2))})[gradients[x].name]
    (above,) = GELU.reference((point + 1e-5,), {})
    (below,) = GELU.reference((point - 1e-5,), {})
    np.testing.assert_allclose(slope, 1 + (above - below) / 2e-5, atol=1e-8)


def test_a_value_with_three_readers_collects_all() -> None:
    builder = Builder("readers")
    x = builder.state("x", SQUARE, "parameter")
    (y,) = builder.apply(GELU, [x], ["y"])
    (z,) = builder.apply(GELU, [x], ["z"])
    (w,) = builder.apply(ADD, [y, z], ["w"])
    (both,) = builder.apply(ADD, [w, x], ["both"])
    forward = builder.nodes
    seed = builder.feed("seed", SQUARE)
    gradients = append_backward(builder, forward, {both: seed}, {})
    graph = builder.finish([gradients[x]])
    point = np.array([[0.5, -1.0], [2.0, 0.0]])
    slope = interpret(graph, {"x": point, "seed": np.ones((2, 2))})[gradients[x].name]
    (above,) = GELU.reference((point + 1e-5,), {})
    (below,) = GELU.reference((point - 1e-5,), {})
    np.testing.assert_allclose(slope, 1 + 2 * (above - below) / 2e-5, atol=1e-8)


def test_a_node_that_reads_a_value_twice_counts_twice() -> None:
    builder = Builder("twice")
    x = builder.state("x", SQUARE, "parameter")
    (y,) = builder.apply(ADD, [x, x], ["y"])
    (z,) = builder.apply(ADD, [y, x], ["z"])
    forward = builder.nodes
    seed = builder.feed("seed", SQUARE)
    gradients = append_backward(builder, forward, {z: seed}, {})
    graph = builder.finish([gradients[x]])
    values = interpret(graph, {"x": np.zeros((2, 2)), "seed": np.ones((2, 2))})
    np.testing.assert_array_equal(values[gradients[x].name], np.full((2, 2), 3.0))


def test_an_op_without_a_rule_is_refused() -> None:
    builder, _, updated = one_update()
    seed = builder.feed("seed", SQUARE)
    with pytest.raises(GraphError, match="op adamw has no backward rule"):
        append_backward(builder, builder.nodes, {updated: seed}, {})


def test_interpret_asks_for_every_operand() -> None:
    graph = graph_of(gelu(X, Y), results=(Y,))
    with pytest.raises(GraphError, match="no array for %x"):
        interpret(graph, {})
    with pytest.raises(GraphError, match=r"%x is float32\[2, 2\], given shape \(3,\)"):
        interpret(graph, {"x": np.zeros(3)})
