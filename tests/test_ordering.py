"""Program order by planned starts: legal, as asked for where it can be, and within the slots."""

import random

import pytest
from made_up_costs import fakes

from aieflow.devices.fake import random_graph, random_values
from aieflow.ops.builder import Builder
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Value
from aieflow.ops.pointwise import GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.layout import compiled
from aieflow.runtime.ordering import ordered, reordered
from aieflow.runtime.policies.division import WHOLE, Division


def pairs(count: int) -> tuple[Graph, dict[str, str]]:
    """x -> a0 -> b0, x -> a1 -> b1, …: each b is on the far side of its a, each c unpacks it."""
    b = Builder("pairs")
    x = b.feed("x", Spec((4, 8)))
    ends: list[Value] = []
    for place in range(count):
        (a,) = b.apply(GELU, [x], [f"a{place}"])
        (far,) = b.apply(GELU, [a], [f"b{place}"])
        ends += b.apply(GELU, [far], [f"c{place}"])
    apart = {f"{name}{place}": "far" for name in "ab" for place in range(count)}
    return b.finish(ends), apart


def names(graph: Graph, order: tuple[int, ...]) -> str:
    return " ".join(graph.nodes[index].name for index in order)


def test_nodes_stand_in_the_order_of_their_starts() -> None:
    graph, _ = pairs(2)
    starts = {"a1": 0.0, "a0": 1.0, "b1": 2.0, "b0": 3.0, "c0": 4.0, "c1": 5.0}
    assert names(graph, ordered(graph, starts, {}, 2)) == "a1 a0 b1 b0 c0 c1"


def test_a_node_comes_after_what_it_reads_whatever_was_planned() -> None:
    graph, _ = pairs(1)
    assert names(graph, ordered(graph, {"c0": 0.0, "b0": 1.0, "a0": 2.0}, {}, 2)) == "a0 b0 c0"


def test_slots_hold_back_what_was_to_come_early() -> None:
    """With two slots, a2 takes a0's when b0 has read it; with four nothing holds it back."""
    graph, apart = pairs(3)
    starts = {f"a{place}": 0.1 * place for place in range(3)}
    starts |= {f"b{place}": 1.0 + place for place in range(3)}
    starts |= {f"c{place}": 9.0 + place for place in range(3)}
    assert names(graph, ordered(graph, starts, apart, 4)) == "a0 a1 a2 b0 b1 b2 c0 c1 c2"
    assert names(graph, ordered(graph, starts, apart, 2)) == "a0 a1 b0 a2 b1 c0 b2 c1 c2"


def test_nodes_that_share_an_operand_follow_each_other_from_the_first_on() -> None:
    """b0 and d0 read a0: b1 waits until its slot is free, though it was to start between them."""
    b = Builder("shared")
    x = b.feed("x", Spec((4, 8)))
    a0, a1 = (b.apply(GELU, [x], [name])[0] for name in ("a0", "a1"))
    ends = [b.apply(GELU, [a], [name])[0] for a, name in ((a0, "b0"), (a0, "d0"), (a1, "b1"))]
    graph = b.finish([b.apply(GELU, [end], [f"c-{end.name}"])[0] for end in ends])
    starts = {"b0": 1.0, "b1": 3.0, "d0": 5.0}
    starts |= {f"c-{name}": 9.0 for name in ("b0", "d0", "b1")}
    apart: dict[str, str] = dict.fromkeys(("a0", "a1", "b0", "d0", "b1"), "far")
    order = names(graph, ordered(graph, starts, apart, 3)).split()
    assert [name for name in order if name in ("b0", "d0", "b1")] == ["b0", "d0", "b1"]
    alone = names(graph, ordered(graph, starts, {}, 3)).split()
    assert [name for name in alone if name in ("b0", "d0", "b1")] == ["b0", "b1", "d0"]


def test_slots_that_do_not_allow_an_order_are_told() -> None:
    """b1 reads c0, so it needs b0's slot free; but a plan of one slot wants b1 first."""
    b = Builder("knot")
    x = b.feed("x", Spec((4, 8)))
    (a,) = b.apply(GELU, [x], ["a"])
    (first,) = b.apply(GELU, [a], ["first"])
    (between,) = b.apply(GELU, [first], ["between"])
    (again,) = b.apply(GELU, [between], ["again"])
    (second,) = b.apply(GELU, [again], ["second"])
    graph = b.finish(b.apply(GELU, [second], ["end"]))
    names_apart = ("a", "first", "again", "second")
    apart: dict[str, str] = dict.fromkeys(names_apart, "far")
    assert len(ordered(graph, {"first": 1.0, "second": 2.0}, apart, 1)) == 6
    with pytest.raises(PlanError, match=r"knot: 1 slots .* give more with --slots"):
        ordered(graph, {"first": 2.0, "second": 1.0}, apart, 1)


@pytest.mark.parametrize("seed", range(12))
def test_any_order_computes_the_same_bits(seed: int) -> None:
    """Random graphs that update states, in random orders, run for real on two fake devices."""
    draw = random.Random(seed)
    graph = random_graph(draw, 14)
    devices = fakes(2)
    homes = [draw.choice(list(devices)) for _ in graph.nodes]
    times = {node.name: (start := draw.random(), start + 0.1) for node in graph.nodes}
    values = random_values(graph)
    results: list[dict[str, bytes]] = []
    for given, division in ((None, WHOLE), (times, WHOLE), (times, Division(1))):
        plan = compiled(graph, homes, devices, "test", 3, times=given, division=division)
        states = allocate_states(graph, devices)
        for name, array in states.items():
            array[...] = values[name]
        with Executor(plan, devices, states) as executor:
            executor.run({value.name: values[value.name] for value in graph.feeds})
            found = {value.name: executor.array(value.name).tobytes() for value in graph.results}
        results.append(found | {name: array.tobytes() for name, array in states.items()})
    assert results[0] == results[1] == results[2]
    starts = {name: begin for name, (begin, _) in times.items()}
    assert reordered(graph, ordered(graph, starts, {}, 3)).nodes != graph.nodes
