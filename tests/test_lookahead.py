"""The order of nodes around an NPU: packs run ahead, unpacks wait, slots are respected."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.described import described_cpu, described_npu
from aieflow.devices.fake import FakeDevice
from aieflow.gpt2.config import PRESETS, ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.gpt2.params import initial_parameters
from aieflow.gpt2.run_config import RunConfig
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Graph
from aieflow.ops.kernel import Kernels
from aieflow.ops.matmul import MATMUL
from aieflow.ops.op import Array
from aieflow.ops.optim import ADAMW
from aieflow.ops.pointwise import ADD
from aieflow.ops.spec import Spec
from aieflow.profiles.cost import TYPICAL_CORE
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.expansion import Expansion, expand
from aieflow.runtime.lookahead import look_ahead
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.policies.cpu import schedule_lanes
from aieflow.runtime.policies.fixed import homes
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.runtime.transfer import reaches
from aieflow.tools.bench_overlap import hidden_share, ideal_seconds, products_of
from aieflow.tools.emulation import open_emulated_npu

TINY = ModelConfig(vocab_size=40, seq_len=8, layers=2, heads=2, channels=16)


def described(lanes: int = 1) -> dict[str, Device]:
    return {"cpu": described_cpu(lanes, 1 << 34), "npu": described_npu("npu1", 1, 1 << 34)}


def kernels_of(devices: Mapping[str, Device]) -> Kernels:
    return {name: device.kernels for name, device in devices.items()}


def written(graph: Graph, devices: Mapping[str, Device]) -> Expansion:
    kernels = kernels_of(devices)
    return expand(graph, homes(graph, kernels, "gemm-on-npu", {}), kernels)


def products(count: int, size: int = 1024) -> Graph:
    """Independent products of square matrices, each of operands of its own."""
    b = Builder("products")
    for place in range(count):
        pair = [b.feed(f"{side}{place}", Spec((size, size))) for side in "ab"]
        b.apply(MATMUL, pair, [f"p{place}"])
    return b.finish([])


def order(graph: Graph, slots: int, lanes: int = 1) -> list[str]:
    devices = described(lanes)
    ahead = look_ahead(written(graph, devices), kernels_of(devices), reaches(devices), lanes, slots)
    return [node.name.replace(":", " ") for node in ahead.graph.nodes if "gemm" not in node.name]


def test_with_one_slot_the_next_product_is_packed_when_the_one_before_is_done() -> None:
    """
    cpu  [a0][b0]       [a1][b1][unpack 0]
    npu          [ p0 ]         [ p1 ]
    """
    assert order(products(2), slots=1) == [
        *("p0 pack_a", "p0 pack_b", "p1 pack_a", "p1 pack_b", "p0 unpack", "p1 unpack")
    ]


def test_with_two_slots_the_next_product_is_packed_while_one_runs() -> None:
    """
    Eight lanes pack faster than the NPU computes; the third pair has to wait for a slot.

    cpu  [0][1]       [2][unpack 0]        [3][unpack 1]
    npu     [   p0   ][      p1      ]     ...
    """
    assert order(products(4), slots=2, lanes=8) == [
        *("p0 pack_a", "p0 pack_b", "p1 pack_a", "p1 pack_b"),
        *("p2 pack_a", "p2 pack_b", "p0 unpack", "p3 pack_a", "p3 pack_b", "p1 unpack"),
        *("p2 unpack", "p3 unpack"),
    ]


def test_what_has_not_to_wait_keeps_its_place() -> None:
    """Between two products that need each other: pack, product, unpack, and so on."""
    b = Builder("chain")
    x = b.feed("x", Spec((64, 64)))
    for name in ("p", "q"):
        (x,) = b.apply(MATMUL, [x, b.state(f"{name}.w", Spec((64, 64)), "parameter")], [name])
    names = order(b.finish([x]), slots=2)
    assert names == ["p pack_a", "p unpack", "q pack_a", "q unpack"]


def test_an_update_waits_for_whoever_reads_the_old_value() -> None:
    """AdamW has all its operands at once, yet what adds the product to the weight comes first."""
    b = Builder("update")
    shape = Spec((64, 64))
    x, gradient, rates = (
        b.feed("x", shape),
        b.feed("g", shape),
        b.feed("rates", Spec((3,), "float64")),
    )
    w = b.state("w", shape, "parameter")
    m, v = (b.state(f"{name}:w", shape, "moment") for name in "mv")
    (y,) = b.apply(MATMUL, [x, b.feed("z", shape)], ["y"])
    b.apply(ADD, [y, w], ["sum"])
    settings = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
    b.apply(ADAMW, [w, gradient, m, v, rates], ["w'", "m'", "v'"], settings)
    assert order(b.finish([]), slots=2) == ["y pack_a", "y pack_b", "y unpack", "sum", "w'"]


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("lanes", [1, 8])
def test_every_node_stands_after_what_it_needs(slots: int, lanes: int) -> None:
    """Values, old states, slots: the graph and the plan's memory refuse what breaks one."""
    devices = described(lanes)
    graph = training_step(TINY, 2, 8, shards=2)
    before = written(graph, devices)
    ahead = look_ahead(before, kernels_of(devices), reaches(devices), lanes, slots)
    assert ahead.graph.nodes != before.graph.nodes
    placed = dict(zip(before.graph.nodes, before.homes, strict=True))
    assert dict(zip(ahead.graph.nodes, ahead.homes, strict=True)) == placed
    ahead.graph.check()
    plan_of(ahead, devices, slots)
    on_npu = [[n.name for n in each.graph.nodes if placed[n] == "npu"] for each in (before, ahead)]
    assert on_npu[0] == on_npu[1]


def plan_of(expansion: Expansion, devices: Mapping[str, Device], slots: int) -> Plan:
    kernels, reach = kernels_of(devices), reaches(devices)
    lanes = {name: device.lanes for name, device in devices.items()}
    schedule = schedule_lanes(
        "by hand", expansion.graph, expansion.homes, kernels, lanes, reach, TYPICAL_CORE
    )
    return compile_plan(
        expansion.graph, schedule, kernels, reach, derived=expansion.derived, slots=slots
    )


def test_nothing_changes_where_there_is_nothing_to_overlap() -> None:
    graph = training_step(TINY, 2, 8)
    devices = described()
    kernels, reach = kernels_of(devices), reaches(devices)
    on_cpu = Expansion(graph, ("cpu",) * len(graph.nodes), {})
    assert look_ahead(on_cpu, kernels, reach, 1, 2) is on_cpu
    # a host that leaves conversions to copy lanes
    around: dict[str, Device] = {"fake": FakeDevice(lanes=1), "npu": devices["npu"]}
    kernels, graph = kernels_of(around), products(3)
    copied = expand(graph, homes(graph, kernels, "gemm-on-npu", {}), kernels)
    assert set(copied.homes) == {"npu"}
    assert look_ahead(copied, kernels, reaches(around), 1, 2) is copied


def test_slots_too_few_for_program_order_are_left_to_the_plan_to_refuse() -> None:
    """Chunks of an inner sum that two chunks of columns share need two slots."""
    b = Builder("wide")
    a, w = b.feed("a", Spec((64, 16384))), b.feed("w", Spec((16384, 4096)))
    b.apply(MATMUL, [a, w], ["y"])
    devices = described()
    before = written(b.finish([]), devices)
    kernels, reach = kernels_of(devices), reaches(devices)
    assert look_ahead(before, kernels, reach, 1, 1) is before
    assert look_ahead(before, kernels, reach, 1, 2) is not before


@pytest.mark.parametrize("rate", ["1.0x", "0.1x"])
@pytest.mark.parametrize("seq_len", [64, 256])
def test_two_slots_come_near_the_ideal_where_compute_is_the_longest(
    rate: str, seq_len: int
) -> None:
    """Simulated, on phoenix: within 10 % of the busiest lane, 90 % of all else under compute."""
    profile = load_machine("phoenix").with_value("npu.gemm_flops_per_s", rate)
    graph = products_of(RunConfig(model=PRESETS["124M"], batch_size=4, seq_len=seq_len))
    cost = MachineStepCost(MachineCost(profile))
    traces = [
        simulate(place_on(graph, described(8), Placement("gemm-on-npu", slots=slots)), cost)
        for slots in (1, 2)
    ]
    one, two = (trace.seconds / ideal_seconds(trace) for trace in traces)
    assert two < 1.1
    assert hidden_share(traces[1]) > 0.9
    assert two < one
    assert traces[1].busy_seconds("npu.compute") == ideal_seconds(traces[1])


def test_two_slots_come_near_the_ideal_where_the_host_is_the_longest() -> None:
    """Simulated, on phoenix with one lane of a tenth of the memory rate; pauses are filled."""
    profile = load_machine("phoenix").with_value("cpu.memory_bytes_per_s", "0.1x")
    graph = products_of(RunConfig(model=PRESETS["124M"], batch_size=4, seq_len=64))
    cost = MachineStepCost(MachineCost(profile))
    traces = [
        simulate(place_on(graph, described(1), Placement("gemm-on-npu", slots=slots)), cost)
        for slots in (1, 2, 3)
    ]
    one, two, three = (trace.seconds / ideal_seconds(trace) for trace in traces)
    assert two < 1.1
    assert three < two < one
    assert traces[1].busy_seconds("cpu.compute.0") == ideal_seconds(traces[1])


@pytest.fixture
def devices(tmp_path: Path) -> Iterator[dict[str, Device]]:
    npu = open_emulated_npu(load_machine("phoenix"), tmp_path)
    with closing(npu), closing(CpuDevice(2)) as cpu:
        yield {"cpu": cpu, "npu": npu}


@pytest.mark.parametrize("slots", [1, 2])
def test_the_order_changes_no_bit(devices: dict[str, Device], slots: int) -> None:
    graph = training_step(TINY, 2, 8, shards=2)
    before = written(graph, devices)
    ahead = look_ahead(before, kernels_of(devices), reaches(devices), 2, slots)
    plain, other = (results(plan_of(each, devices, slots), devices) for each in (before, ahead))
    for name, array in plain.items():
        np.testing.assert_array_equal(other[name], array, err_msg=name)


def results(plan: Plan, devices: dict[str, Device]) -> dict[str, Array]:
    """Parameters and moments after three training steps."""
    kept = [value for value in plan.graph.states if value.role != "cache"]
    states = allocate_states(plan.graph, devices, kept)
    for _ in initial_parameters(TINY, 0, states):
        pass
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {
        value.name: rng.integers(0, TINY.vocab_size, value.spec.shape, np.int32)
        for value in plan.graph.feeds
    }
    feeds["rates"] = np.array([1e-2, 0.1, 0.001])
    with Executor(plan, devices, states) as executor:
        for _ in range(3):
            executor.run(feeds)
    return states
