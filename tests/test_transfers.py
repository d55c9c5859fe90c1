"""Values that live on several devices: any placement computes the same, each transfer counts."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from aieflow.devices.fake import FakeDevice, random_graph, random_values
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.gpt2.params import initial_parameters
from aieflow.ops.graph import Graph
from aieflow.ops.op import Array
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan, Step

TINY = ModelConfig(vocab_size=11, seq_len=6, layers=1, heads=2, channels=8)


def devices() -> dict[str, FakeDevice]:
    return {
        "fake": FakeDevice(lanes=2),
        "far": FakeRemoteDevice("far"),
        "remote": FakeRemoteDevice("remote"),
    }


def planned(graph: Graph, homes: Sequence[str], around: dict[str, FakeDevice]) -> Plan:
    return place_on(graph, around, Placement(), by_node=homes)


def run(
    plan: Plan, around: dict[str, FakeDevice], values: dict[str, Array], times: int = 1
) -> dict[str, Array]:
    """Results and states after some runs."""
    graph = plan.graph
    states = allocate_states(graph, around)
    for name, array in states.items():
        array[...] = values[name]
    feeds = {value.name: values[value.name] for value in graph.feeds}
    with Executor(plan, around, states) as executor:
        for _ in range(times):
            executor.run(feeds)
        found = {value.name: executor.array(value).copy() for value in graph.results}
    return {**found, **{name: array.copy() for name, array in states.items()}}


@pytest.mark.parametrize("seed", range(25))
def test_any_placement_gives_the_same_bits(seed: int) -> None:
    draw = random.Random(seed)
    graph = random_graph(draw, 14)
    values = random_values(graph, seed)
    plain = {"fake": FakeDevice(lanes=1)}
    expected = run(planned(graph, ["fake"] * len(graph.nodes), plain), plain, values, times=2)
    around = devices()
    homes = [draw.choice(list(around)) for _ in graph.nodes]
    found = run(planned(graph, homes, around), around, values, times=2)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def training(graph: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    values: dict[str, Array] = {
        value.name: np.zeros(value.spec.shape, value.spec.storage) for value in graph.states
    }
    for _ in initial_parameters(TINY, 0, values):
        pass
    for value in graph.feeds:
        values[value.name] = rng.integers(0, TINY.vocab_size, value.spec.shape, np.int32)
    values["rates"] = np.array([1e-2, 0.1, 0.001])
    return values


@pytest.mark.parametrize("seed", range(6))
def test_a_training_step_learns_the_same_on_any_placement(seed: int) -> None:
    draw = random.Random(seed)
    graph = training_step(TINY, 2, 6, shards=2)
    values = training(graph)
    plain = {"fake": FakeDevice(lanes=1)}
    expected = run(planned(graph, ["fake"] * len(graph.nodes), plain), plain, values, times=3)
    around = devices()
    homes = [draw.choice(list(around)) for _ in graph.nodes]
    found = run(planned(graph, homes, around), around, values, times=3)
    for name, array in expected.items():  # the same kernels on the same values: the same bits
        np.testing.assert_array_equal(found[name], array, err_msg=name)


class _Forgetful(Executor):
    """Leaves one step out."""

    def __init__(
        self,
        plan: Plan,
        around: dict[str, FakeDevice],
        states: dict[str, Array],
        dropped: int,
    ) -> None:
        self._dropped = dropped
        super().__init__(plan, around, states)

    def _bind(self, step: Step, workspace: Array) -> Callable[[], None]:
        return (lambda: None) if step.index == self._dropped else super()._bind(step, workspace)


def test_every_transfer_of_a_plan_is_needed() -> None:
    """Leave out one transfer after the other: each time some number differs."""
    draw = random.Random(3)
    graph = training_step(TINY, 2, 6)
    values = training(graph)
    around = devices()
    homes = [draw.choice(list(around)) for _ in graph.nodes]
    plan = planned(graph, homes, around)
    expected = [run(plan, around, values, times) for times in (1, 2)]
    transfers = [step for step in plan.steps if step.kind in ("in", "out")]
    assert len(transfers) > 60
    for step in transfers:
        fresh = devices()
        states = allocate_states(graph, fresh)
        for name, array in states.items():
            array[...] = values[name]
        feeds = {value.name: values[value.name] for value in graph.feeds}
        with _Forgetful(plan, fresh, states, step.index) as executor:
            for right in expected:  # the second run tells what the first leaves to it
                executor.run(feeds)
                found = {value.name: executor.array(value) for value in graph.results} | states
                if any(not np.array_equal(found[name], array) for name, array in right.items()):
                    break
            else:
                pytest.fail(plan.name_of(step))
