"""Estimates of products on an NPU: its buffers are used in turn, as plans use them."""

from dataclasses import replace

import pytest
from made_up_costs import on_slots, product, published

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.choice import tasks_on
from aieflow.runtime.layout import compiled
from aieflow.runtime.policies.best import trivial
from aieflow.runtime.policies.estimate import estimate
from aieflow.runtime.policies.heft import upward_ranks
from aieflow.runtime.policies.tasks import Piece
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.simulate import described_devices


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_all_products_on_the_npu_take_what_the_simulator_says(slots: int) -> None:
    """Within 2 %: left out are waits for the host's memory and copy lanes' fixed order.

    The head's products are several commands each; were others let in between them, or slots taken
    in any order, the estimate would be too short.
    """
    profile = load_machine("strix")
    cost = MachineCost(profile)
    config = ModelConfig(vocab_size=8192, seq_len=64, layers=2, heads=12, channels=768)
    graph = training_step(config, 4, 64, shards=4)
    devices = {device.name: device for device in described_devices(profile)}
    tasks = tasks_on(graph, devices, cost, slots)
    (homes,) = (homes for policy, homes in trivial(tasks) if policy == "gemm-on-npu")
    held = estimate(tasks, homes, upward_ranks(tasks))
    plan = compiled(graph, tasks.named(homes), devices, "test", slots, times=held.times)
    seconds = simulate(plan, MachineStepCost(cost)).seconds
    assert held.seconds == pytest.approx(seconds, rel=0.02)


def test_a_slot_is_free_for_the_next_in_turn_alone() -> None:
    """
    Two slots for three products; the first one's unpack waits for a late node of the host.

    far   [a][b]                 [c]
    host  [ late     ][a's]
                [b's]               [c's]      b's slot is free at 3, but c's turn is a's at 11
    """
    tasks = published([[10, 20], [9, 1], [9, 1], [9, 1]], [(1, 2, 0)])
    tasks = on_slots(tasks, 2)
    host, *others = tasks.resources
    tasks = replace(
        tasks,
        resources=(replace(host, width=2), *others),
        pieces=(tasks.pieces[0], product("a", (0, 1)), product("b"), product("c")),
    )
    held = estimate(tasks, (0, 1, 1, 1), (4.0, 3.0, 2.0, 1.0))
    assert (held.times["b"][0], held.times["c"][0], held.seconds) == (1, 11, 13)


def test_what_a_device_waits_for_goes_first_on_the_host() -> None:
    """
    The unpack has the lowest rank of all, and is next as soon as it can be.

    far   [a ]
    host  [first  ][a's][second ]
          0  1     3    4       7
    """
    tasks = published([[3, 20], [3, 20], [9, 1]], [])
    unpacked = (
        Piece(1, 1.0, name="a"),
        Piece(0, 1.0, after=(0,), name="a:unpack"),
    )
    tasks = replace(tasks, pieces=(*tasks.pieces[:2], ((), unpacked)))
    held = estimate(tasks, (0, 0, 1), (3.0, 2.0, 1.0))
    assert held.times["a:unpack"][0] == 3
    assert held.seconds == 7
