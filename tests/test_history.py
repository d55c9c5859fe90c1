"""What is learned of works while a program runs, and the costs that come of it."""

import random
from dataclasses import replace

import numpy as np
import pytest
from made_up_costs import drawn_costs, fakes, step_cost
from scripted_truth import Truth
from short_run import CONFIG

from aieflow.gpt2.trainer import training_graph
from aieflow.ops.kernel import Kernels
from aieflow.profiles.history import KEPT, History, Learned
from aieflow.profiles.learned_cost import LearnedCost
from aieflow.profiles.work import Work
from aieflow.runtime.observed import Observed
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.step_cost import MachineStepCost

GELU = Work("cpu", "gelu", "k", 1, "", "a", 1.0, 1.0, (1,))
LONG_GELU = replace(GELU, signature="b")
ADD = replace(GELU, op="add")
FAR_GELU = replace(GELU, device="igpu")
UNSEEN = replace(GELU, signature="c")


def noted(*ratios: float) -> History:
    """A history in which runs took so many times what was foretold of one work."""
    history = History()
    rows = history.rows([GELU], [1.0])
    for ratio in ratios:
        history.note(rows, np.array([ratio]))
    return history


def test_one_interruption_counts_for_nothing() -> None:
    history = noted(1.0, 1.1, 70.0, 1.05, 1.1)
    assert history.learned().ratio(GELU) == pytest.approx(1.1)
    assert history.count(GELU) == 5
    assert history.count(ADD) == 0


def test_the_latest_count() -> None:
    assert noted(*[1.0] * 50, *[3.0] * KEPT).learned().ratio(GELU) == 3.0
    assert noted(2.0).learned().ratio(GELU) == 2.0


def test_works_that_never_ran_take_what_is_like_them() -> None:
    history = History()
    rows = history.rows([GELU, LONG_GELU, ADD], [1.0, 3.0, 4.0])
    history.note(rows, np.array([1.0, 2.0, 5.0]))
    learned = history.learned()
    assert learned.ratio(UNSEEN) == (1.0 * 1 + 2.0 * 3) / 4  # as gelu on the cpu
    assert learned.ratio(replace(ADD, op="norm")) == (1.0 * 1 + 2.0 * 3 + 5.0 * 4) / 8
    assert learned.ratio(FAR_GELU) == 1.0  # nothing is known of that device


def test_what_runs_do_not_show_any_more_counts_for_devices_they_leave_out() -> None:
    history = History()
    both = history.rows([GELU, FAR_GELU], [1.0, 1.0])
    history.note(both, np.array([1.0, 2.0]))
    later = history.rows([LONG_GELU], [1.0])
    for _ in range(KEPT):
        history.note(later, np.array([4.0]))
    learned = history.learned()
    assert learned.ratio(GELU) == 4.0  # what its op takes now, not what it took then
    assert learned.ratio(FAR_GELU) == 2.0
    history.forget(["igpu"])
    assert history.learned().ratio(FAR_GELU) == 1.0


def test_devices_can_be_believed_to_be_slower_than_shown() -> None:
    history = History()
    rows = history.rows([GELU, FAR_GELU], [1.0, 1.0])
    history.note(rows, np.array([3.0, 2.0]))
    learned = history.learned().slowed(["igpu", "npu"], 1.5)
    assert learned.ratio(GELU) == 3.0
    assert learned.ratio(FAR_GELU) == 3.0
    assert learned.ratio(replace(FAR_GELU, signature="c")) == 3.0
    assert learned.ratio(replace(FAR_GELU, op="norm")) == 3.0
    assert learned.ratio(replace(GELU, device="npu")) == 1.5


def test_learned_costs_scale_nodes_and_leave_the_rest() -> None:
    graph, devices = training_graph(CONFIG), fakes(2)
    base = drawn_costs(random.Random(3), graph, devices)
    kernels: Kernels = {name: device.kernels for name, device in devices.items()}
    cost = LearnedCost(base, kernels, Learned(ops={("far", "gelu"): 2.0}, devices={"far": 3.0}))
    for node in graph.nodes:
        ratio = 2.0 if node.op.name == "gelu" else 3.0
        assert cost.node_s("far", node) == pytest.approx(ratio * base.node_s("far", node))
        assert cost.node_s("fake", node, 2) == base.node_s("fake", node, 2)
    assert cost.transfer_s("far", 10.0) == base.transfer_s("far", 10.0)
    assert cost.slowdown("far", ["fake"]) == base.slowdown("far", ["fake"])
    assert cost.lane_w("far") == base.lane_w("far")


@pytest.mark.parametrize("seed", range(3))
def test_a_traced_run_tells_how_much_longer_devices_take(seed: int) -> None:
    """Devices slow each other down, and one is 3 times as slow: that alone is learned."""
    graph, devices = training_graph(CONFIG), fakes()
    base = replace(drawn_costs(random.Random(seed), graph, devices), factor=1.2)
    cost = step_cost(base)
    plan = place_on(graph, devices, Placement("heft", cost=cost))
    kernels: Kernels = {name: device.kernels for name, device in devices.items()}
    history = History()
    observed = Observed(plan, cost, kernels, history)
    assert observed.devices >= {"fake", "far"}
    truth = Truth(base)
    observed.note(truth.trace(plan))
    # The same trace as foretold: every ratio is 1, and so is every mean.
    assert all(ratio == pytest.approx(1.0) for ratio in history.learned().works.values())
    truth.factors["far"] = 3.0
    for _ in range(KEPT):
        observed.note(truth.trace(plan))
    ratios = history.learned().devices
    # With other durations other steps meet: contention, 1.2 here, shifts by less than that.
    assert ratios["far"] == pytest.approx(3.0, rel=0.2)
    assert all(ratios[name] == pytest.approx(1.0, rel=0.2) for name in ratios if name != "far")
    learned = MachineStepCost(LearnedCost(base, kernels, history.learned()))
    assert truth.trace(plan).seconds == pytest.approx(
        Observed(plan, learned, kernels, History()).foretold_s, rel=0.2
    )
