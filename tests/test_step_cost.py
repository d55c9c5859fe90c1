"""What a machine's cost model says of each kind of step of a plan."""

import pytest

from aieflow.devices.described import described_cpu, described_igpu, described_npu
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.step_cost import MachineStepCost, StepWork

TINY = ModelConfig(vocab_size=64, seq_len=8, layers=1, heads=2, channels=16)


def planned(policy: str, **places: str) -> tuple[Plan, MachineCost]:
    devices = {
        "cpu": described_cpu(8, 1 << 34),
        "igpu": described_igpu(1, 1 << 34),
        "npu": described_npu("npu1", 1, 1 << 34),
    }
    plan = place_on(training_step(TINY, 2, 8), devices, Placement(policy, places))
    return plan, MachineCost(load_machine("phoenix"))


def works(plan: Plan, cost: MachineCost) -> list[tuple[Step, StepWork]]:
    return list(zip(plan.steps, MachineStepCost(cost).of(plan), strict=True))


def test_the_array_does_its_products_and_the_host_all_that_is_around_them() -> None:
    plan, cost = planned("gemm-on-npu")
    devices = {(step.kind, plan.work_of(step)): work.device for step, work in works(plan, cost)}
    assert {kind for kind, _ in devices} == {"node", "in", "out"}
    assert {work for (_, work), device in devices.items() if device == "npu"} == {"npu_gemm"}
    assert {"npu_pack", "npu_repack", "npu_unpack"} <= {work for _, work in devices}
    assert set(devices.values()) == {"cpu", "npu"}


def test_each_kind_of_step_has_its_seconds() -> None:
    plan, cost = planned("gemm-on-npu", layernorm="igpu", adamw="igpu")
    nbytes = {value.name: value.spec.nbytes for value in plan.graph.values}
    seen: set[str] = set()
    for step, work in works(plan, cost):
        link = step.lane.partition(".")[0]
        if step.kind == "save":
            expected = cost.copy_s(nbytes[step.value])
        elif step.kind in ("in", "out"):
            flushed = 0.55e-6 + nbytes[step.value] / 63e9
            expected = 10e-6 if link == "igpu" else flushed
        elif plan.work_of(step) == "npu_gemm":
            assert step.lane == "npu.compute"
            expected = cost.node_s("npu", plan.node_of(step))
        else:
            expected = cost.node_s(link, plan.node_of(step), step.parts)
        assert work.seconds == pytest.approx(expected, rel=1e-12), plan.name_of(step)
        assert work.watts == {"cpu": 31 / 8, "igpu": 10, "npu": 2.88}[work.device]
        seen.add(f"{link} {step.kind}")
    assert seen >= {"host save", "npu in", "npu out", "igpu in", "igpu out", "igpu node"}


def test_a_part_takes_its_share() -> None:
    """Eight parts of the head of a larger vocabulary: launch and an eighth of the rest each."""
    graph = training_step(ModelConfig(4096, 32, 1, 2, 64), 2, 32)
    plan = place_on(graph, {"cpu": described_cpu(8, 1 << 34)}, Placement("cpu"))
    cost = MachineCost(load_machine("phoenix"))
    parted = [(step, work) for step, work in works(plan, cost) if step.parts == 8]
    assert len(parted) >= 8
    for step, work in parted:
        whole_s = cost.node_s("cpu", plan.node_of(step))
        assert work.seconds == pytest.approx(5e-6 + (whole_s - 5e-6) / 8)


def test_name_power_and_slowdown_are_the_machines() -> None:
    cost = MachineStepCost(MachineCost(load_machine("phoenix", "battery")))
    assert cost.name == "phoenix on battery"
    assert cost.idle_w == 15
    assert cost.slowdown("igpu", ["cpu", "npu"]) == 1.05 * 1.07
