"""Balances of loads, cuts, and list schedules at prices: by hand."""

import numpy as np
import pytest
from made_up_costs import published

from aieflow.runtime.cut import cut
from aieflow.runtime.policies.balance import balance
from aieflow.runtime.policies.estimate import Estimator
from aieflow.runtime.policies.heft import assigned_ranks, heft, priced_heft, upward_ranks
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
    assert priced_heft(tasks, dear).homes[0] == 0


def test_ranks_of_an_assignment_are_its_longest_paths() -> None:
    tasks = published([[3, 5], [2, 7]], [(1, 2, 10)])
    assert assigned_ranks(tasks, (0, 0)) == (5, 2)
    assert assigned_ranks(tasks, (1, 0)) == (5 + 10 + 2, 2)


def test_pairs_of_moves_swap_what_no_single_move_can() -> None:
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
