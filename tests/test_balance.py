"""Balances of loads, cuts, and list schedules at prices: by hand."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_costs import published

from aieflow.runtime.cut import cut
from aieflow.runtime.policies.balance import balance
from aieflow.runtime.policies.estimate import Estimator
from aieflow.runtime.policies.heft import heft, least_ranks, priced_heft, upward_ranks
from aieflow.runtime.policies.local_search import LocalSearch
from aieflow.runtime.policies.objective import Objective


def test_loads_are_balanced() -> None:
    """Six nodes of 2 s or 4 s: four on the first device and two on the second take 8 s each."""
    tasks = published([[2, 4]] * 6, [])
    found = balance(tasks)
    assert found.seconds == pytest.approx(8)
    assert sorted(found.homes) == [0, 0, 0, 0, 1, 1]


def test_prices_are_what_the_wrong_device_costs_all() -> None:
    """
    One node takes 1 s or 10, ten others take 4 or 4: 20.5 s each if the first has its device.
    There, a second more work on either makes all half a second later: 9 more make it 4.5 s.
    """
    found = balance(published([[1, 10], *([[4, 4]] * 10)], []))
    assert found.seconds == pytest.approx(20.5)
    assert found.penalties[0].tolist() == pytest.approx([0, 4.5])
    assert np.abs(found.penalties[1:]).max() == pytest.approx(0)


def test_phases_are_balanced_apart() -> None:
    """
    Nodes 1 and 2 come before node 3, nodes 4 and 5 after it. As one heap the first device would do
    1 and 2, the second 4 and 5: 8 s. But they are never done side by side, so each pair is divided.
    """
    tasks = published(
        [[4, 4], [4, 4], [1, 1], [4, 4], [4, 4]],
        [(1, 3, 0), (2, 3, 0), (3, 4, 0), (3, 5, 0)],
    )
    found = balance(tasks)
    assert found.homes[0] != found.homes[1]
    assert found.homes[3] != found.homes[4]
    assert found.seconds == pytest.approx(4.5 + 4)


def test_a_cut_is_where_most_lies_on_both_sides() -> None:
    """Nodes in a row; 2 stands between 2 s and 3 s, and 1 may not cut."""
    row = [(), (0,), (1,), (2,)]
    found = cut(row, [1.0, 1.0, 1.0, 3.0])
    assert found is not None
    assert (found.node, found.before, found.after) == (2, (0, 1), (3,))
    found = cut(row, [1.0, 1.0, 1.0, 3.0], [False, True, False, False])
    assert found is not None
    assert found.node == 1
    assert cut([(), ()], [1.0, 1.0]) is None
    assert cut([], []) is None


def test_heft_at_prices_leaves_the_quick_device_to_those_who_need_it() -> None:
    """
    Node 2 takes 2 s on the first device and 20 on the second, 1 takes 3 or 4. HEFT ranks 1 lower,
    so has 2 first; were 1 first, it would take the first device: only a price keeps it off.
    """
    tasks = published([[3, 4], [1, 20], [2, 20]], [(2, 3, 0)])
    assert heft(tasks).homes[0] == 1  # it finishes at 4 there, at 6 behind the two others
    dear = [[0.0, 5.0], [0.0, 0.0], [0.0, 0.0]]
    assert priced_heft(tasks, dear, upward_ranks(tasks)).homes[0] == 0


def test_least_ranks_are_the_longest_paths_where_each_node_is_quickest() -> None:
    tasks = published([[3, 5], [7, 2]], [(1, 2, 10)])
    assert least_ranks(tasks) == (3 + 10 / 2 * 2 + 2, 2)


def test_changes_swap_what_no_single_move_can() -> None:
    """Each of two nodes is on the device that is slow for it; to move one alone gains nothing."""
    tasks = published([[9, 5], [5, 9]], [])
    estimator = Estimator(tasks)
    start, ranks = (0, 1), upward_ranks(tasks)
    assert estimator.estimate(start, ranks).seconds == 9
    singles = [estimator.estimate(homes, ranks).seconds for homes in ((1, 1), (0, 0))]
    assert min(singles) >= 9
    found = LocalSearch(tasks, estimator, Objective()).improved(start, ranks, 100)
    assert found.homes == (1, 0)
    assert found.estimate.seconds == 5
    again = LocalSearch(tasks, estimator, Objective()).improved(start, ranks, 100)
    assert (again.homes, again.estimates) == (found.homes, 100)


@pytest.mark.parametrize(
    ("objective", "homes"),
    [
        (Objective(), (0, 1)),
        (Objective("energy"), (1, 1)),
        (Objective("power-cap", cap_w=2.5), (1, 1)),
        (Objective("power-cap", cap_w=50.0), (0, 1)),
    ],
)
def test_changes_aim_at_the_objective(objective: Objective, homes: tuple[int, ...]) -> None:
    """Two nodes of 4 s; a watt on the second device, 30 on the first: 8 J in 8 s, or 124 in 4."""
    tasks = published([[4, 4], [4, 4]], [])
    first, second, net = tasks.resources
    resources = (replace(first, watts=30.0), replace(second, watts=1.0), net)
    tasks = replace(tasks, resources=resources)
    estimator = Estimator(tasks)
    found = LocalSearch(tasks, estimator, objective).improved((0, 1), upward_ranks(tasks), 200)
    assert sorted(found.homes) == list(homes)
