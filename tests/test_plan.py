"""Plans: exact steps and waits of small graphs, drawn; hazards of random ones, byte by byte."""

import itertools
import random
from collections.abc import Iterator, Mapping

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from aieflow.devices.fake import REFERENCE_KERNELS, FakeDevice, random_graph, random_values
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.ops.interpret import interpret
from aieflow.ops.kernel import Call, HostKernel, Kernels, Split, share
from aieflow.ops.op import Array
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.memory import ARENA
from aieflow.runtime.placement import place
from aieflow.runtime.plan import Plan, Step, compile_plan
from aieflow.runtime.schedule import Schedule
from aieflow.runtime.state import RunState

KERNELS: Kernels = {"fake": REFERENCE_KERNELS}
LANES = ("fake.a", "fake.b", "fake.c")
A, B, C = LANES


def plan_of(graph: Graph, *placements: tuple[str, ...]) -> Plan:
    return compile_plan(graph, Schedule("by hand", LANES[:2], placements), KERNELS)


def drawn(plan: Plan) -> list[str]:
    """Each step as `node.part@lane <- waits`."""
    return [
        f"{plan.node_of(step).name}.{step.part}@{step.lane[-1]} <- {list(step.waits)}"
        for step in plan.steps
    ]


def test_a_wait_only_where_lanes_meet() -> None:
    """
    a   [ p ][ q ]       [ s ]
    b        [ r      ]
    """
    b = Builder("diamond")
    (p,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["p"])
    (q,) = b.apply(GELU, [p], ["q"])
    (r,) = b.apply(GELU, [p], ["r"])
    (s,) = b.apply(ADD, [q, r], ["s"])
    plan = plan_of(b.finish([s]), (A,), (A,), (B,), (A,))
    assert drawn(plan) == ["p.0@a <- []", "q.0@a <- []", "r.0@b <- [0]", "s.0@a <- [2]"]
    assert plan.lanes == {A: (0, 1, 3), B: (2,)}
    assert plan.edges == 2


def test_divided_nodes_of_one_shape_meet_nowhere() -> None:
    """
    a   [ p.0 ][ q.0 ]
    b   [ p.1 ][ q.1 ]
    """
    b = Builder("rows")
    (p,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["p"])
    (q,) = b.apply(GELU, [p], ["q"])
    plan = plan_of(b.finish([q]), (A, B), (A, B))
    assert drawn(plan) == ["p.0@a <- []", "p.1@b <- []", "q.0@a <- []", "q.1@b <- []"]
    crossed = plan_of(b.finish([q]), (A, B), (B, A))
    assert drawn(crossed)[2:] == ["q.0@b <- [0]", "q.1@a <- [1]"]


def test_whole_after_divided_waits_for_the_other_part() -> None:
    """
    a   [ p.0 ]     [ q ][ r.0 ]
    b   [ p.1    ]       [ r.1 ]
    """
    b = Builder("gather")
    (p,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["p"])
    (q,) = b.apply(GELU, [p], ["q"])
    (r,) = b.apply(GELU, [q], ["r"])
    plan = plan_of(b.finish([p, q, r]), (A, B), (A,), (A, B))
    assert drawn(plan)[2:] == ["q.0@a <- [1]", "r.0@a <- []", "r.1@b <- [2]"]


def test_a_wait_that_follows_from_another_is_left_out() -> None:
    """
    a   [ p ]          [ s ]      s reads p, q and r, and waits for r alone
    b        [ q ]
    c             [ r ]
    """
    b = Builder("chain")
    (p,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["p"])
    (q,) = b.apply(GELU, [p], ["q"])
    (r,) = b.apply(ADD, [p, q], ["r"])
    (t,) = b.apply(ADD, [p, q], ["t"])
    (s,) = b.apply(ADD, [r, t], ["s"])
    graph = b.finish([p, q, r, s])
    plan = compile_plan(graph, Schedule("by hand", LANES, ((A,), (B,), (C,), (C,), (B,))), KERNELS)
    assert drawn(plan) == [
        "p.0@a <- []",
        "q.0@b <- [0]",
        "r.0@c <- [1]",
        "t.0@c <- []",
        "s.0@b <- [3]",
    ]


def test_reused_memory_waits_for_its_readers() -> None:
    """
    a   [ p ][ q ]         [ r ]       r takes p's place, which s reads on b
    b        [ s     ]
    """
    b = Builder("reuse")
    x = b.feed("x", Spec((4, 8)))
    (p,) = b.apply(GELU, [x], ["p"])
    (q,) = b.apply(GELU, [x], ["q"])
    (s,) = b.apply(GELU, [p], ["s"])
    (r,) = b.apply(GELU, [q], ["r"])
    plan = plan_of(b.finish([q, s, r]), (A,), (A,), (B,), (A,))
    assert plan.memory.slots[r] == plan.memory.slots[p]
    assert drawn(plan)[2:] == ["s.0@b <- [0]", "r.0@a <- [2]"]


@pytest.mark.parametrize(("lanes", "taken"), [((A,), "y"), ((A, B), "z"), ((B, A), "z")])
def test_a_divided_node_takes_over_only_what_is_divided(lanes: tuple[str, ...], taken: str) -> None:
    """The kernel reads its first input anywhere: where it is divided, only the second may go."""
    split = Split(4, frozenset({1}), frozenset({0}))
    kernel = HostKernel("odd", ADD, REFERENCE_KERNELS["add"].bind, lambda node: split)
    b = Builder("take over")
    x = b.feed("x", Spec((4, 16)))
    (y,) = b.apply(GELU, [x], ["y"])
    (z,) = b.apply(GELU, [x], ["z"])
    (s,) = b.apply(ADD, [y, z], ["s"])
    kernels = {"fake": {**REFERENCE_KERNELS, "add": kernel}}
    plan = compile_plan(b.finish([s]), Schedule("", LANES[:2], ((A,), (B,), lanes)), kernels)
    slots = {value.name: slot for value, slot in plan.memory.slots.items()}
    assert slots["s"] == slots[taken]


def test_workspace_is_the_largest_of_each_lane() -> None:
    def kernel(nbytes: int) -> HostKernel:
        return HostKernel("k", GELU, REFERENCE_KERNELS["gelu"].bind, workspace=lambda node: nbytes)

    b = Builder("workspace")
    (p,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["p"])
    (q,) = b.apply(ADD, [p, p], ["q"])
    (r,) = b.apply(ADD, [q, q], ["r"])
    kernels = {"fake": {**REFERENCE_KERNELS, "gelu": kernel(640)}}
    plan = compile_plan(b.finish([r]), Schedule("", LANES[:2], ((A,), (A,), (B,))), kernels)
    assert plan.workspace == {A: 640, B: 0}
    assert plan.nbytes == plan.memory.nbytes + 640


def one_node() -> Graph:
    b = Builder("one")
    return b.finish(b.apply(GELU, [b.feed("x", Spec((3, 8)))], ["p"]))


@pytest.mark.parametrize(
    ("lanes", "placements", "message"),
    [
        (LANES, (), "places 0 nodes, one has 1"),
        (LANES, ((),), "places p on no lane"),
        (LANES, ((A, A),), "places p on"),
        (LANES, (("fake.z",),), "lanes are fake.a, fake.b, fake.c"),
        ((A, "npu.x"), ((A, "npu.x"),), "p: divided over several devices: fake, npu"),
        (("npu.x",), (("npu.x",),), "p: no kernel of gelu on npu"),
        ((*LANES, "fake.d"), ((*LANES, "fake.d"),), "divides into 3 parts at most, placed on 4"),
    ],
)
def test_what_cannot_be_placed(
    lanes: tuple[str, ...], placements: tuple[tuple[str, ...], ...], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        compile_plan(one_node(), Schedule("odd", lanes, placements), KERNELS)


def test_operands_that_do_not_divide_into_the_units() -> None:
    split = Split(7, frozenset({0}), frozenset({0}))
    kernel = HostKernel("odd", GELU, REFERENCE_KERNELS["gelu"].bind, lambda node: split)
    with pytest.raises(PlanError, match="%x: 96 bytes do not divide into 7 units"):
        compile_plan(one_node(), Schedule("", LANES, ((A, B),)), {"fake": {"gelu": kernel}})


def random_schedule(draw: random.Random, graph: Graph) -> Schedule:
    placements: list[tuple[str, ...]] = []
    for _ in graph.nodes:
        count = draw.choice((1, 1, 2, 3))
        placements.append(tuple(draw.sample(LANES, count)))
    return Schedule("random", LANES, tuple(placements))


def touched(
    plan: Plan, step: Step, values: tuple[Value, ...], divided: frozenset[int], units: int
) -> Iterator[tuple[str, int, int]]:
    """The bytes [first, last) of each operand that a part may touch, by the rule of ops.kernel."""
    for position, value in enumerate(values):
        slot = plan.memory.slots[value]
        low, high = 0, slot.nbytes
        if position in divided and step.parts > 1:
            low, high = (
                slot.nbytes * unit // units for unit in share(units, step.part, step.parts)
            )
        yield slot.space, slot.offset + low, slot.offset + high


def conflicts(plan: Plan) -> Iterator[tuple[int, int]]:
    """All pairs of steps of different nodes that touch a byte that one of them writes."""
    reads, writes = [], []
    for step in plan.steps:
        node = plan.node_of(step)
        split = REFERENCE_KERNELS[node.op.name].split(node)
        reads.append(list(touched(plan, step, node.inputs, split.inputs, split.units)))
        writes.append(list(touched(plan, step, node.outputs, split.outputs, split.units)))

    def meet(some: list[tuple[str, int, int]], others: list[tuple[str, int, int]]) -> bool:
        return any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a in some for b in others)

    for later in plan.steps:
        for earlier in plan.steps[: later.index]:
            i, j = earlier.index, later.index
            if earlier.node != later.node and (
                meet(writes[i], reads[j]) or meet(writes[i], writes[j]) or meet(reads[i], writes[j])
            ):
                yield i, j


def direct(plan: Plan) -> list[set[int]]:
    """What each step directly follows: its waits and the step before it on its lane."""
    follows = [set(step.waits) for step in plan.steps]
    for program in plan.lanes.values():
        for earlier, later in itertools.pairwise(program):
            follows[later].add(earlier)
    return follows


def reach(follows: list[set[int]]) -> list[set[int]]:
    """All that has ended when a step starts."""
    ended: list[set[int]] = []
    for before in follows:
        ended.append(before.union(*(ended[step] for step in before)))
    return ended


@given(st.randoms(use_true_random=False), st.integers(1, 12))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_waits_suffice_and_none_is_idle(draw: random.Random, nodes: int) -> None:
    graph = random_graph(draw, nodes)
    plan = compile_plan(graph, random_schedule(draw, graph), KERNELS)
    follows = direct(plan)
    ended = reach(follows)
    for earlier, later in conflicts(plan):
        assert earlier in ended[later]
    for step in plan.steps:
        for wait in step.waits:
            assert plan.steps[wait].lane != step.lane
            assert not any(wait in ended[other] for other in follows[step.index])


def test_waits_suffice_for_gpt2() -> None:
    config = ModelConfig(vocab_size=12, seq_len=4, layers=2, heads=2, channels=8)
    plan = place(training_step(config, 2, 4, shards=2, dropout=0.1), FakeDevice(lanes=3))
    ended = reach(direct(plan))
    assert all(earlier in ended[later] for earlier, later in conflicts(plan))


def run_by_hand(plan: Plan, given_: Mapping[str, Array], draw: random.Random) -> dict[str, Array]:
    """The results of a plan whose steps are done one at a time, in a random legal order."""
    arena = np.full(plan.memory.arena_nbytes, 0xFF, np.uint8)  # float32 NaN
    spaces = {name: np.array(array).view(np.uint8).reshape(-1) for name, array in given_.items()}
    spaces[ARENA] = arena

    def array(value: Value) -> Array:
        slot = plan.memory.slots[value]
        raw = spaces[slot.space][slot.offset : slot.offset + slot.nbytes]
        return raw.view(value.spec.dtype).reshape(value.spec.shape)

    def operands(node: Node, step: Step) -> Call:
        inputs, outputs = (tuple(map(array, side)) for side in (node.inputs, node.outputs))
        return Call(inputs, outputs, node.attrs, np.empty(0, np.uint8), step.part, step.parts)

    state = RunState(plan)
    while not state.is_done:
        step = draw.choice(state.ready())
        node = plan.node_of(step)
        state.start(step.index)
        REFERENCE_KERNELS[node.op.name].bind(operands(node, step))()
        state.finish(step.index)
    return {value.name: array(value) for value in plan.graph.results}


@given(st.randoms(use_true_random=False), st.integers(1, 12))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_every_legal_order_gives_the_same_bits(draw: random.Random, nodes: int) -> None:
    graph = random_graph(draw, nodes)
    plan = compile_plan(graph, random_schedule(draw, graph), KERNELS)
    values = random_values(graph)
    expected = interpret(graph, values)
    for name, array in run_by_hand(plan, values, draw).items():
        np.testing.assert_array_equal(array, expected[name], strict=True)
