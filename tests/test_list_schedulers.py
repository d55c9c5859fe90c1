"""HEFT, PEFT and dmda: the examples of their papers, and small cases drawn by hand."""

import random
from dataclasses import replace

import pytest
from made_up_costs import drawn_costs, fakes, published

from aieflow.devices.fake import random_graph
from aieflow.runtime.choice import tasks_on
from aieflow.runtime.policies.booking import Decision
from aieflow.runtime.policies.dmda import dmda
from aieflow.runtime.policies.estimate import estimate
from aieflow.runtime.policies.heft import heft, upward_ranks
from aieflow.runtime.policies.peft import optimistic_costs, peft
from aieflow.runtime.policies.tasks import Tasks, labels_of, predecessors

# Topcuoglu et al. 2002, figure 2 and table 1.
TOPCUOGLU = published(
    [
        *([14, 16, 9], [13, 19, 18], [11, 13, 19], [13, 8, 17], [12, 13, 10]),
        *([13, 16, 9], [7, 15, 11], [5, 11, 14], [18, 12, 20], [21, 7, 16]),
    ],
    [
        *((1, 2, 18), (1, 3, 12), (1, 4, 9), (1, 5, 11), (1, 6, 14)),
        *((2, 8, 19), (2, 9, 16), (3, 7, 23), (4, 8, 27), (4, 9, 23)),
        *((5, 9, 13), (6, 8, 15), (7, 10, 17), (8, 10, 11), (9, 10, 13)),
    ],
)
# Arabnejad and Barbosa 2014, figure 1.
ARABNEJAD = published(
    [
        *([22, 21, 36], [22, 18, 18], [32, 27, 43], [7, 10, 4], [29, 27, 35]),
        *([26, 17, 24], [14, 25, 30], [29, 23, 36], [15, 21, 8], [13, 16, 33]),
    ],
    [
        *((1, 2, 17), (1, 3, 31), (1, 4, 29), (1, 5, 13), (1, 6, 7)),
        *((2, 8, 3), (2, 9, 30), (3, 7, 16), (4, 8, 11), (4, 9, 7)),
        *((5, 9, 57), (6, 8, 5), (7, 10, 9), (8, 10, 42), (9, 10, 7)),
    ],
)


def homes(decision: Decision) -> list[int]:
    """The processors of nodes, counted from 1 as in the papers."""
    return [home + 1 for home in decision.homes]


def test_heft_gives_the_schedule_of_its_paper() -> None:
    """
    p1            [ 2 ]           [8 ]
    p2        [4 ][6      ][9   ]    [10]
    p3  [1 ][3      ][5   ][7  ]
    """
    ranks = [108, 77, 80, 80, 69, 63.333, 42.667, 35.667, 44.333, 14.667]
    assert upward_ranks(TOPCUOGLU) == pytest.approx(ranks, abs=5e-4)  # printed to three places
    decision = heft(TOPCUOGLU)
    assert decision.seconds == 80
    assert homes(decision) == [3, 1, 3, 2, 3, 2, 3, 1, 2, 2]
    assert decision.starts == (0, 27, 9, 18, 28, 26, 38, 57, 56, 73)


def test_peft_gives_the_figures_of_its_paper() -> None:
    assert heft(ARABNEJAD).seconds == 133
    decision = peft(ARABNEJAD)
    assert decision.seconds == 122
    # Without a look ahead, node 1 would go to p2, where it finishes a second earlier.
    assert homes(decision) == [1, 1, 1, 1, 3, 2, 1, 2, 3, 2]
    first, second, *_, last = optimistic_costs(ARABNEJAD)
    assert (first, second, last) == ((64, 68, 86), (42, 39, 42), (0, 0, 0))


def test_insertion_fills_a_gap() -> None:
    """
    Node 4 has the last rank, and fits in while p1 waits for node 2's message.

    p1  [1 ][4 ]    [3 ]
    p2      [2 ]
    """
    seconds = [[2, 9], [9, 2], [2, 9], [2, 9]]
    edges = [(1, 2, 0), (2, 3, 1), (1, 3, 0)]
    decision = heft(published(seconds, edges))
    assert homes(decision) == [1, 2, 1, 1]
    assert decision.starts == (0, 2, 5, 2)
    assert decision.seconds == 7


def test_dmda_stands_in_the_queue() -> None:
    """
    Node 3 is ready when node 2 is, and goes where the queue ends first; nothing is inserted.

    p1  [1     ][2     ]
    p2          [3        ]
    """
    decision = dmda(published([[3, 5], [3, 5], [3, 4]], [(1, 2, 1), (1, 3, 1)]))
    assert homes(decision) == [1, 1, 2]
    assert decision.starts == (0, 3, 4)


def test_dmda_inserts_nothing_and_takes_nodes_as_they_become_ready() -> None:
    """
    Node 4 is ready at 4, before node 3 at 6, and is assigned first; node 5 does not go before it.

    p1  [1   ][4  ][3    ]
    p2  [2       ]
    """
    seconds = [[4, 90], [90, 6], [2, 90], [3, 90]]
    decision = dmda(published(seconds, [(2, 3, 0), (1, 4, 0)]))
    assert decision.starts == (0, 0, 7, 4)
    late = [[2, 90], [90, 9], [1, 90], [2, 90], [1, 90]]
    edges = [(2, 3, 0), (1, 4, 0), (3, 5, 0), (4, 5, 0)]
    assert dmda(published(late, edges)).starts == (0, 0, 9, 2, 10)


def test_dmda_leaves_a_gap_that_heft_fills() -> None:
    """
    Node 3 waits for a message until 6; node 4 is ready at 2, and assigned after it.

    p1  [2 ]        [3][4]      heft: [2 ][4]     [3]
    p2  [1]
    """
    tasks = published([[90, 1], [2, 90], [1, 90], [1, 90]], [(1, 3, 5), (2, 4, 0)])
    assert dmda(tasks).starts == (0, 0, 6, 7)
    assert heft(tasks).starts == (0, 0, 6, 2)


def test_what_lies_everywhere_is_not_brought() -> None:
    """A state is read on p2: it comes from the host's side in 5 s, unless nothing changes it."""
    tasks = published([[90, 1], [90, 1]], [(1, 2, 0)])
    read = tuple(
        (piece,) for piece in (replace(each, reads=((1, 2),)) for (each,) in tasks.pieces[1])
    )
    hops = (*tasks.hops, {(0, 2): ((2, 5.0),)})
    brought = replace(tasks, pieces=(tasks.pieces[0], read), inputs=((), (1,)), hops=hops)
    assert heft(brought).starts == (0, 5)
    assert heft(replace(brought, anywhere=frozenset({1}))).starts == (0, 1)


def test_a_value_is_moved_once_for_all_readers() -> None:
    """A message of 5 s arrives at 6 s; who reads the value there later moves nothing."""
    tasks = published([[1, 90], [90, 1], [90, 1]], [(1, 2, 5)])
    both = replace(tasks, pieces=(*tasks.pieces[:2], tasks.pieces[1]), inputs=((), (0,), (0,)))
    for link in (None, 1):  # of which one message at a time goes over
        net = replace(tasks.resources[2], width=link)
        decision = heft(replace(both, resources=(*tasks.resources[:2], net)))
        assert decision.starts == (0, 6, 7)
    ((_, (own,)), net) = tasks.pieces[1], replace(tasks.resources[2], width=1)
    twice = (own, replace(own, after=(0,)))  # two pieces of one node read it
    pieces = (tasks.pieces[0], ((), twice), tasks.pieces[2])
    decision = heft(replace(tasks, pieces=pieces, resources=(*tasks.resources[:2], net)))
    assert decision.seconds == 8


def drawn(seed: int, nodes: int = 14) -> Tasks:
    draw = random.Random(seed)
    graph, around = random_graph(draw, nodes), fakes()
    return tasks_on(graph, around, drawn_costs(draw, graph, around))


@pytest.mark.parametrize("seed", range(8))
def test_decisions_are_complete_and_in_order(seed: int) -> None:
    """Every node has a device that can do it, and starts after all that it follows has begun."""
    tasks = drawn(seed)
    before = predecessors(tasks)
    for policy in (heft, peft, dmda):
        decision = policy(tasks)
        for node, home in enumerate(decision.homes):
            assert home in tasks.able(node)
            assert all(decision.starts[other] < decision.starts[node] for other in before[node])
        assert decision.homes == policy(tasks).homes


def test_lists_are_better_than_one_device_on_the_whole() -> None:
    """Over 12 machines, by estimates: each list's mean is below that of the best single device."""
    sums: dict[str, float] = dict.fromkeys(("single", "heft", "peft", "dmda"), 0.0)
    for seed in range(12):
        tasks = drawn(seed, nodes=24)
        ranks = upward_ranks(tasks)
        singles = [[device] * tasks.count for device in range(3)]
        sums["single"] += min(estimate(tasks, each, ranks).seconds for each in singles)
        for name, policy in (("heft", heft), ("peft", peft), ("dmda", dmda)):
            sums[name] += estimate(tasks, policy(tasks).homes, ranks).seconds
    assert max(sums[name] for name in ("heft", "peft", "dmda")) < sums["single"]


def test_labels_tell_layers_and_slices_of_the_batch() -> None:
    assert "matmul h.*.fc" in labels_of("h.3.fc", "matmul")
    assert labels_of("h.3.fc", "matmul")[-1] == "#1"
    assert labels_of("h.3.fc#4", "matmul")[-1] == "#4"
