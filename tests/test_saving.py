"""Which states are copied before an update: those that a failure could leave changed."""

import random
from collections.abc import Mapping

import pytest

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.described import described_igpu, described_npu
from aieflow.devices.fake import FakeDevice, random_graph
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import Optimizer, training_step
from aieflow.ops.builder import Builder
from aieflow.ops.check import MATMUL_CHECK
from aieflow.ops.graph import Graph, Role, Value
from aieflow.ops.optim import ADAMW
from aieflow.ops.pointwise import GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan
from aieflow.runtime.schedule import device_of

TINY = ModelConfig(vocab_size=40, seq_len=8, layers=2, heads=2, channels=16)
STATES = 3 * 28  # parameters and both moments: 12 a layer, 4 around


def planned(placement: Placement, clip: float = 1.0) -> Plan:
    devices: dict[str, Device] = {
        "cpu": CpuDevice(2),
        "igpu": described_igpu(1, 1 << 34),
        "npu": described_npu("npu1", 1, 1 << 34),
    }
    return place_on(
        training_step(TINY, 2, 8, optimizer=Optimizer(grad_clip=clip)), devices, placement
    )


def late(plan: Plan, host: str) -> set[str]:
    """Updated states of the host for which some step that may fail is not sure to be over.

    From the plan's steps alone: those of a lane follow each other, and their waits.
    """
    before = [0] * len(plan.steps)
    last: dict[str, int] = {}
    fallible = 0
    updates: dict[str, list[int]] = {}
    home = plan.graph.state_of
    for step in plan.steps:
        for other in (*step.waits, *([last[step.lane]] if step.lane in last else [])):
            before[step.index] |= before[other] | 1 << other
        last[step.lane] = step.index
        is_node = step.kind == "node"
        if step.kind == "save":
            continue
        if device_of(step.lane) != host or (is_node and plan.node_of(step).op is MATMUL_CHECK):
            fallible |= 1 << step.index
        if is_node:
            node = plan.node_of(step)
            for position in node.op.updates:
                updates.setdefault(home[node.outputs[position]].name, []).append(step.index)
    return {
        name
        for name, steps in updates.items()
        if name not in plan.memory.separate
        and any(
            fallible & ~before[index] & ~(1 << index) or fallible >> index & 1 for index in steps
        )
    }


def test_adamw_on_the_host_after_clipping_needs_no_copy() -> None:
    plan = planned(Placement("gemm-on-npu"))
    assert plan.saved == ()
    assert plan.keeps_states
    assert plan.memory.accounts["saved"] == 0
    assert not late(plan, "cpu")


@pytest.mark.parametrize(
    ("placement", "clip"),
    [
        (Placement("gemm-on-npu"), 0.0),  # AdamW follows each gradient, products of others follow
        (Placement("gemm-on-npu", checks=True), 1.0),  # nothing waits for a check
        (Placement("igpu"), 1.0),
        (Placement("gemm-on-npu", {"adamw": "igpu"}), 1.0),
        (Placement("gemm-on-npu", {"clip_factor": "igpu"}), 1.0),  # the norm is read at the end
    ],
    ids=["unclipped", "checked", "on the igpu", "adamw on the igpu", "norm on the igpu"],
)
def test_what_may_be_changed_when_a_device_fails_is_copied(
    placement: Placement, clip: float
) -> None:
    plan = planned(placement, clip)
    assert plan.keeps_states
    assert late(plan, "cpu") <= set(plan.saved)
    assert len(plan.saved) == STATES


SETTINGS = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
SHAPE = Spec((4, 8))


def begun(name: str) -> tuple[Builder, list[Value], Value]:
    """A graph with a parameter, its moments and the rates of AdamW."""
    b = Builder(name)
    roles: tuple[tuple[str, Role], ...] = (("w", "parameter"), ("m", "moment"), ("v", "moment"))
    kept = [b.state(state, SHAPE, role) for state, role in roles]
    return b, kept, b.feed("rates", Spec((3,), "float64"))


def placed(graph: Graph, *homes: str) -> Plan:
    around: dict[str, Device] = {"fake": FakeDevice(lanes=1), "far": FakeRemoteDevice("far")}
    return place_on(graph, around, Placement(), by_node=homes)


def test_the_first_update_of_a_state_counts() -> None:
    """
    fake  [w']           [gelu][w'']
    far       [ gelu w' ]
    """
    b, (w, m, v), rates = begun("twice")
    w, m, v = b.apply(ADAMW, [w, b.feed("g", SHAPE), m, v, rates], ["w1", "m1", "v1"], SETTINGS)
    (there,) = b.apply(GELU, [w], ["there"])
    (here,) = b.apply(GELU, [there], ["here"])
    b.apply(ADAMW, [w, here, m, v, rates], ["w2", "m2", "v2"], SETTINGS)
    plan = placed(b.finish([]), "fake", "far", "fake", "fake")
    assert set(plan.saved) == late(plan, "fake") == {"w", "m", "v"}


@pytest.mark.parametrize(("is_result", "saved"), [(False, set()), (True, {"w", "m", "v"})])
def test_what_is_read_of_a_device_at_the_end_may_fail_after_the_update(
    is_result: bool, saved: set[str]
) -> None:
    """
    fake                      [gelu][w']
    far    [ first ][ second ]          [out first?]
    """
    b, (w, m, v), rates = begun("late")
    (first,) = b.apply(GELU, [b.feed("x", SHAPE)], ["first"])
    (second,) = b.apply(GELU, [first], ["second"])
    (here,) = b.apply(GELU, [second], ["here"])
    b.apply(ADAMW, [w, here, m, v, rates], ["w1", "m1", "v1"], SETTINGS)
    plan = placed(b.finish([first] if is_result else []), "far", "far", "fake", "fake")
    assert set(plan.saved) == late(plan, "fake") == saved


def test_one_device_keeps_nothing() -> None:
    plan = place_on(training_step(TINY, 2, 8), {"fake": FakeDevice(lanes=2)}, Placement())
    assert (plan.saved, plan.keeps_states) == ((), False)


@pytest.mark.parametrize("seed", range(30))
def test_no_state_is_left_out_on_any_placement(seed: int) -> None:
    draw = random.Random(seed)
    around: Mapping[str, Device] = {
        "fake": FakeDevice(lanes=2),
        "far": FakeRemoteDevice("far"),
        "remote": FakeRemoteDevice("remote"),
    }
    graph = random_graph(draw, 14) if seed % 2 else training_step(TINY, 2, 8)
    names = [draw.choice(list(around)) for _ in graph.nodes]
    if seed % 3 == 0:  # what updates states on the host, so that some need no copy
        names = [
            "fake" if n.op.updates else name for n, name in zip(graph.nodes, names, strict=True)
        ]
    plan = place_on(graph, around, Placement(), by_node=names)
    assert late(plan, "fake") <= set(plan.saved)
