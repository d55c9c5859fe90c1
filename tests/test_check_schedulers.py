"""What a tool takes for the seconds of an order, in the model that it shares with CP-SAT."""

from aieflow.tools.check_schedulers import followed_s, plain_tasks

MOVE = {(1, 2): ((2, 0.5),), (2, 1): ((2, 0.5),)}
# a writes 0, which b and c read, and c writes 1, which d reads; each device has its own side.
TASKS = plain_tasks(
    "four",
    ("first", "second"),
    [[2.0, 4.0], [3.0, 1.0], [1.0, 1.0], [1.0, None]],
    inputs=[[], [0], [0], [1]],
    outputs=[[0], [], [1], []],
    hops=[MOVE, MOVE],
    sides=[1, 2],
)


def test_a_device_does_its_nodes_in_the_order_given() -> None:
    """All on the first: one after the other; b elsewhere: it waits for a and the transfer."""
    assert followed_s(TASKS, [0, 0, 0, 0], [0, 1, 2, 3]) == 7.0
    assert followed_s(TASKS, [0, 1, 0, 0], [0, 1, 2, 3]) == 4.0
    assert followed_s(TASKS, [0, 1, 1, 0], [0, 1, 2, 3]) == 2.0 + 0.5 + 1.0 + 1.0 + 0.5 + 1.0


def test_a_device_waits_for_what_is_next_there() -> None:
    """b is ready when d is not, but stands behind it: the first device idles until c is there."""
    assert followed_s(TASKS, [0, 0, 1, 0], [0, 2, 3, 1]) == 2.0 + 0.5 + 1.0 + 0.5 + 1.0 + 3.0
    assert followed_s(TASKS, [0, 0, 1, 0], [0, 2, 1, 3]) == 2.0 + 3.0 + 1.0
