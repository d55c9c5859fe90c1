"""Plans with an emulated NPU: packed weights are kept, each sync is needed, gradients are right."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.gpt2.params import initial_parameters
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph
from aieflow.ops.op import Array
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.states import States
from aieflow.tools.emulation import open_emulated_npu

TINY = ModelConfig(vocab_size=40, seq_len=8, layers=1, heads=2, channels=16)
ON_NPU = Placement("gemm-on-npu")


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[dict[str, Device]]:
    npu = open_emulated_npu(load_machine("phoenix"), tmp_path)
    with closing(npu), closing(CpuDevice(1)) as cpu:
        yield {"cpu": cpu, "npu": npu}


def values_for(graph: Graph, config: ModelConfig) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    values: dict[str, Array] = {
        value.name: np.zeros(value.spec.shape, value.spec.storage) for value in graph.states
    }
    for _ in initial_parameters(config, 0, values):
        pass
    for value in graph.feeds:
        values[value.name] = rng.integers(0, config.vocab_size, value.spec.shape, np.int32)
    values["rates"] = np.array([1e-2, 0.1, 0.001])
    return values


def opened_states(graph: Graph, devices: Mapping[str, Device], values: dict[str, Array]) -> States:
    states = States(allocate_states(graph, devices))
    for name, array in states.items():
        array[...] = values[name]
    return states


def feeds_of(graph: Graph, values: dict[str, Array]) -> dict[str, Array]:
    return {value.name: values[value.name] for value in graph.feeds}


def results(executor: Executor, graph: Graph) -> dict[str, Array]:
    found = {value.name: executor.array(value).copy() for value in graph.results}
    return found | {value.name: executor.states[value.name].copy() for value in graph.states}


class _Forgetful(Executor):
    """Leaves one step out."""

    def __init__(
        self, plan: Plan, devices: Mapping[str, Device], states: States, dropped: int
    ) -> None:
        self._dropped = dropped
        super().__init__(plan, devices, states)

    def _bind(self, step: Step, workspace: Array) -> Callable[[], None]:
        return (lambda: None) if step.index == self._dropped else super()._bind(step, workspace)


def test_every_sync_of_a_plan_is_needed(devices: dict[str, Device]) -> None:
    """Leave out one sync after the other: each time some number differs."""
    graph = training_step(TINY, 2, 8)
    values = values_for(graph, TINY)
    plan = place_on(graph, devices, ON_NPU)
    syncs = [step for step in plan.steps if step.kind in ("in", "out")]
    assert len(syncs) > 40
    assert {step.lane for step in syncs} == {"npu.copy.in", "npu.copy.out"}
    with Executor(plan, devices, opened_states(graph, devices, values)) as executor:
        for _ in range(3):
            executor.run(feeds_of(graph, values))
        expected = results(executor, graph)
    for step in syncs:
        states = opened_states(graph, devices, values)
        with _Forgetful(plan, devices, states, step.index) as executor:
            for _ in range(3):
                executor.run(feeds_of(graph, values))
            found = results(executor, graph)
        differs = [name for name in expected if not np.array_equal(found[name], expected[name])]
        assert differs, plan.name_of(step)


def test_weights_are_packed_once_for_each_optimizer_update(devices: dict[str, Device]) -> None:
    graph = training_step(TINY, 2, 8, shards=2)
    plan = place_on(graph, devices, ON_NPU)
    updated = {node.inputs[0].name for node in plan.graph.nodes if node.op.name == "adamw"}
    packs = [node for node in plan.graph.nodes if node.op.name == "npu_pack"]
    repacks = [node for node in plan.graph.nodes if node.op.name == "npu_repack"]
    assert not [node for node in packs if node.inputs[0].name in updated]
    # each weight for its forward product and for dX, for both shards together
    matrices = 4 * TINY.layers + 1
    assert len(repacks) == 2 * matrices
    places = {node.name: index for index, node in enumerate(plan.graph.nodes)}
    for node in repacks:
        producer = plan.graph.producer[node.inputs[0]]
        assert plan.graph.nodes[producer].op.name == "adamw"
        assert places[node.name] > producer


def test_states_that_the_host_writes_are_packed_anew(devices: dict[str, Device]) -> None:
    graph = training_step(TINY, 2, 8)
    values = values_for(graph, TINY)
    plan = place_on(graph, devices, ON_NPU)
    states = opened_states(graph, devices, values)
    with Executor(plan, devices, states) as executor:
        executor.run(feeds_of(graph, values))
        first = executor.array("loss").copy()
        executor.run(feeds_of(graph, values))
        assert executor.array("loss") != first
        for name, array in states.items():
            if name in values:
                array[...] = values[name]
        states.touch()
        executor.run(feeds_of(graph, values))
        np.testing.assert_array_equal(executor.array("loss"), first)


@pytest.mark.parametrize("shards", [1, 2])
def test_gradients_are_within_one_percent_of_fp32(devices: dict[str, Device], shards: int) -> None:
    """bf16 rounds operands to 8 bits, 2^-8 of each at most, which partly cancels in sums."""
    config = ModelConfig(vocab_size=200, seq_len=32, layers=2, heads=4, channels=64)
    graph = training_step(config, 4, 32, shards=shards, keep_gradients=True)
    values = values_for(graph, config)
    found = {}
    for placement in (Placement("cpu"), ON_NPU):
        plan = place_on(graph, devices, placement)
        with Executor(plan, devices, opened_states(graph, devices, values)) as executor:
            executor.run(feeds_of(graph, values))
            found[placement.policy] = {
                value.name: executor.array(value).copy() for value in graph.results
            }
    for name, exact in found["cpu"].items():
        error = np.linalg.norm(found["gemm-on-npu"][name] - exact) / np.linalg.norm(exact)
        assert error < 0.01, f"{name}: {error:.3%}"
        assert error > 0 or name == "loss", f"{name} was not computed in bf16"


def test_the_same_plan_gives_the_same_bits(devices: dict[str, Device]) -> None:
    graph = training_step(TINY, 2, 8)
    values = values_for(graph, TINY)
    plan = place_on(graph, devices, ON_NPU)
    runs = []
    for _ in range(2):
        with Executor(plan, devices, opened_states(graph, devices, values)) as executor:
            for _ in range(3):
                executor.run(feeds_of(graph, values))
            runs.append(results(executor, graph))
    for name, array in runs[0].items():
        np.testing.assert_array_equal(runs[1][name], array, err_msg=name)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_streamed_operands_have_their_slots(devices: dict[str, Device], slots: int) -> None:
    graph = training_step(TINY, 2, 8)
    plan = place_on(graph, devices, Placement("gemm-on-npu", slots=slots))
    spaces = {slot.space for slot in plan.memory.slots.values() if slot.space.startswith("npu.")}
    assert spaces == {f"npu.{ring}.{k}" for ring in ("in0", "in1", "out0") for k in range(slots)}
    values = values_for(graph, TINY)
    with Executor(plan, devices, opened_states(graph, devices, values)) as executor:
        executor.run(feeds_of(graph, values))
        loss = float(executor.array("loss")[0])
    with Executor(
        place_on(graph, devices, ON_NPU), devices, opened_states(graph, devices, values)
    ) as executor:
        executor.run(feeds_of(graph, values))
        assert float(executor.array("loss")[0]) == loss


def test_memory_that_the_npu_lacks_is_missed_before_it_is_asked_for(tmp_path: Path) -> None:
    profile = load_machine("phoenix").with_value("npu.memory_nbytes", 2e6)
    with closing(open_emulated_npu(profile, tmp_path)) as npu, closing(CpuDevice(1)) as cpu:
        machine = Machine((cpu, npu), ON_NPU)
        plan = machine.plan(training_step(TINY, 2, 8))
        packed = sum(nbytes for _, nbytes in plan.memory.separate.values())
        assert packed < npu.free_nbytes()
        machine.require_memory(plan.nbytes, plan)
        held = npu.allocate(npu.free_nbytes() - packed + 1)
        assert held.nbytes + packed > 2e6 - 4096
        with pytest.raises(PlanError, match=r"npu has .* free: .* missing"):
            machine.require_memory(plan.nbytes, plan)
