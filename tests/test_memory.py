"""Where values lie: no two that live at once overlap, unless one takes the other's memory over."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from aieflow.devices.fake import FakeDevice, random_graph
from aieflow.gpt2.config import PRESETS, ModelConfig
from aieflow.gpt2.lower import Optimizer, training_step
from aieflow.ops.builder import Builder
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Value
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.machine import Machine
from aieflow.runtime.memory import ALIGNMENT, ARENA, MemoryPlan, Slot, plan_memory
from aieflow.runtime.placement import place

TINY = ModelConfig(vocab_size=19, seq_len=8, layers=2, heads=2, channels=8)


def always(index: int, output: int, source: int) -> bool:
    return True


def never(index: int, output: int, source: int) -> bool:
    return False


def lives(graph: Graph) -> dict[Value, tuple[int, int]]:
    """The nodes, first to last, during which each value of the arena must stay whole."""
    spans: dict[Value, tuple[int, int]] = {}
    for index, node in enumerate(graph.nodes):
        for value in node.outputs:
            if value not in graph.state_of:
                spans[value] = (index, index)
        for value in node.inputs:
            if value in spans:
                spans[value] = (spans[value][0], index)
    for value in graph.results:
        if value in spans:
            spans[value] = (spans[value][0], len(graph.nodes))
    return spans


def may_take_over(graph: Graph, old: Value, new: Value, meeting: int) -> bool:
    """True if `new` is an output of the node that reads `old` last, and its op allows it."""
    node = graph.nodes[meeting]
    return (
        new in node.outputs
        and node.inputs.count(old) == 1
        and node.inputs.index(old) in node.op.may_overwrite.get(node.outputs.index(new), ())
    )


def check_places(graph: Graph, memory: MemoryPlan) -> None:
    spans = lives(graph)
    values = list(spans)
    for place_, a in enumerate(values):
        slot = memory.slots[a]
        assert (slot.space, slot.nbytes) == (ARENA, a.spec.nbytes)
        assert slot.offset % ALIGNMENT == 0
        assert slot.offset + slot.nbytes <= memory.arena_nbytes
        for b in values[place_ + 1 :]:
            other = memory.slots[b]
            if slot.offset + slot.nbytes <= other.offset:
                continue
            if other.offset + other.nbytes <= slot.offset:
                continue
            if spans[a][1] < spans[b][0]:
                continue
            assert slot == other
            assert spans[a][1] == spans[b][0]
            assert may_take_over(graph, a, b, spans[b][0])


def live_peak(graph: Graph, memory: MemoryPlan) -> int:
    """The most bytes, rounded up to whole lines, that hold live values at any one node."""
    spans = lives(graph)
    peak = 0
    for index in range(len(graph.nodes) + 1):
        blocks = {
            memory.slots[value].offset: -(-value.spec.nbytes // ALIGNMENT) * ALIGNMENT
            for value, (first, last) in spans.items()
            if first <= index <= last
        }
        peak = max(peak, sum(blocks.values()))
    return peak


def chain(length: int) -> Graph:
    """x -> gelu -> gelu …, whose op never works in place."""
    b = Builder("chain")
    x = b.feed("x", Spec((4, 8)))
    for _ in range(length):
        (x,) = b.apply(GELU, [x], ["y"])
    return b.finish([x])


def test_a_chain_needs_two_slots() -> None:
    graph = chain(5)
    memory = plan_memory(graph, always)
    offsets = [memory.slots[node.outputs[0]].offset for node in graph.nodes]
    assert offsets == [0, ALIGNMENT, 0, ALIGNMENT, 0]
    assert memory.arena_nbytes == memory.live_nbytes == 2 * ALIGNMENT


def test_an_addition_takes_over_the_input_that_dies() -> None:
    b = Builder("in place")
    x = b.feed("x", Spec((4, 8)))
    (y,) = b.apply(GELU, [x], ["y"])
    (z,) = b.apply(GELU, [y], ["z"])
    (s,) = b.apply(ADD, [y, z], ["s"])  # y is read again: only z may be taken over
    (t,) = b.apply(ADD, [s, y], ["t"])
    graph = b.finish([t])
    slots = plan_memory(graph, always).slots
    assert slots[z] == slots[s] == slots[t] != slots[y]
    slots = plan_memory(graph, never).slots
    assert len({slots[value].offset for value in (y, z, s)}) == 3


def test_a_value_read_twice_by_one_node_is_not_taken_over() -> None:
    b = Builder("twice")
    (y,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["y"])
    (z,) = b.apply(ADD, [y, y], ["z"])
    slots = plan_memory(b.finish([z]), always).slots
    assert slots[y] != slots[z]


def test_results_and_feeds_are_never_taken_over() -> None:
    b = Builder("results")
    x = b.feed("x", Spec((4, 8)))
    (y,) = b.apply(ADD, [x, x], ["y"])
    (z,) = b.apply(ADD, [x, y], ["z"])
    (w,) = b.apply(GELU, [z], ["w"])
    graph = b.finish([y, w])
    memory = plan_memory(graph, always)
    assert memory.slots[x] == Slot("x", 0, 128)
    assert memory.slots[y].offset not in (memory.slots[z].offset, memory.slots[w].offset)
    check_places(graph, memory)


def test_updated_states_share_the_states_slot() -> None:
    graph = training_step(TINY, 2, 8)
    memory = plan_memory(graph, always)
    parameters = [value for value in graph.states if value.role == "parameter"]
    updated = {value.name: value for value in graph.values}
    for state in graph.states:
        assert memory.slots[state] == Slot(state.name, 0, state.spec.nbytes)
        assert memory.slots[updated[f"{state.name}'"]] == memory.slots[state]
    assert memory.accounts["parameters"] == sum(value.spec.nbytes for value in parameters)
    assert memory.accounts["moments"] == 2 * memory.accounts["parameters"]


@given(st.randoms(use_true_random=False), st.integers(1, 14), st.booleans())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_random_graphs(draw: random.Random, nodes: int, in_place: bool) -> None:
    graph = random_graph(draw, nodes)
    memory = plan_memory(graph, always if in_place else never)
    check_places(graph, memory)
    assert memory.live_nbytes == live_peak(graph, memory) <= memory.arena_nbytes
    assert set(memory.slots) == set(graph.values)


GPT2_GRAPHS = {
    "tiny": training_step(TINY, 2, 8),
    "tiny, 2 shards, dropout": training_step(TINY, 4, 8, shards=2, dropout=0.1),
    "mini": training_step(PRESETS["mini"], 8, 128),
    "mini, no clipping": training_step(PRESETS["mini"], 8, 128, optimizer=Optimizer(grad_clip=0)),
    "mini, 4 shards": training_step(PRESETS["mini"], 8, 128, shards=4),
    "124M": training_step(PRESETS["124M"], 4, 64),
    "124M, no clipping": training_step(PRESETS["124M"], 4, 64, optimizer=Optimizer(grad_clip=0)),
}


@pytest.mark.parametrize("name", GPT2_GRAPHS)
def test_gpt2_wastes_little(name: str) -> None:
    graph = GPT2_GRAPHS[name]
    memory = plan_memory(graph, always)
    assert memory.live_nbytes == live_peak(graph, memory)
    assert memory.live_nbytes <= memory.arena_nbytes <= 1.05 * memory.live_nbytes
    accounts = memory.accounts
    assert accounts["gradients"] + accounts["activations"] == memory.arena_nbytes
    assert sum(accounts.values()) == memory.nbytes
    assert accounts["feeds"] == sum(value.spec.nbytes for value in graph.feeds)
    if "tiny" in name:
        check_places(graph, memory)


def test_without_clipping_gradients_are_freed_at_once() -> None:
    clipped, free = (
        plan_memory(GPT2_GRAPHS[name], always) for name in ("124M", "124M, no clipping")
    )
    assert clipped.accounts["gradients"] > 0.9 * clipped.accounts["parameters"]
    assert free.accounts["gradients"] < 0.5 * clipped.accounts["gradients"]
    assert free.nbytes < clipped.nbytes


def test_short_memory_is_refused_with_the_accounts() -> None:
    device = FakeDevice(nbytes=2**20)
    plan = place(training_step(PRESETS["mini"], 1, 8), device)
    Machine((device,)).require_memory(2**20, plan)
    wanted = r"needs 0\.50 GiB .*parameters 7\.63 MiB.*fake has 1\.00 MiB free: 0"
    with pytest.raises(PlanError, match=wanted):
        Machine((device,)).require_memory(2**29, plan)
