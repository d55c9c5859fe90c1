"""Who must wait for whom: by hand, and against a model that compares every pair of bytes."""

from dataclasses import dataclass

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from aieflow.runtime.hazards import Hazards, Region


@dataclass(frozen=True)
class Part:
    """One step of a node: what it reads and what it writes."""

    reads: list[Region]
    writes: list[Region]


def bytes_of(regions: list[Region]) -> set[tuple[str, int]]:
    return {(r.space, place) for r in regions for place in range(r.first, r.last)}


def conflict(earlier: Part, later: Part) -> bool:
    old, new = bytes_of(earlier.writes), bytes_of(later.writes)
    return bool(old & (new | bytes_of(later.reads)) or bytes_of(earlier.reads) & new)


def enter(nodes: list[list[Part]]) -> list[set[int]]:
    """What each step must directly follow; steps are numbered through."""
    hazards = Hazards()
    befores: list[set[int]] = []
    for number, parts in enumerate(nodes):
        steps = range(len(befores), len(befores) + len(parts))
        befores += [hazards.before(part.reads, part.writes) for part in parts]
        reads, writes = [part.reads for part in parts], [part.writes for part in parts]
        hazards.record(f"node {number}", reads, writes, list(steps))
    return befores


A, A_LEFT, A_RIGHT, A_MIDDLE = (Region("a", *at) for at in ((0, 8), (0, 4), (4, 8), (2, 6)))
B = Region("b", 0, 8)


@pytest.mark.parametrize(
    ("first", "second", "must_wait"),
    [
        pytest.param(Part([], [A]), Part([A], []), True, id="read after write"),
        pytest.param(Part([A], []), Part([], [A]), True, id="write after read"),
        pytest.param(Part([], [A]), Part([], [A]), True, id="write after write"),
        pytest.param(Part([A], []), Part([A], []), False, id="read after read"),
        pytest.param(Part([], [A_LEFT]), Part([A_MIDDLE], []), True, id="overlap"),
        pytest.param(Part([A_MIDDLE], []), Part([], [A_RIGHT]), True, id="overlap, write"),
        pytest.param(Part([], [A_LEFT]), Part([A_RIGHT], [A_RIGHT]), False, id="neighbours"),
        pytest.param(Part([A], [A]), Part([B], [B]), False, id="two spaces"),
        pytest.param(Part([A], [B]), Part([B], [A]), True, id="both ways"),
    ],
)
def test_two_steps(first: Part, second: Part, must_wait: bool) -> None:
    assert enter([[first], [second]])[1] == ({0} if must_wait else set())


def test_a_write_hides_what_came_before() -> None:
    befores = enter([[Part([], [A])], [Part([A], [])], [Part([], [A])], [Part([A], [])]])
    assert befores == [set(), {0}, {0, 1}, {2}]


def test_a_write_to_a_part_hides_only_that_part() -> None:
    befores = enter([[Part([], [A])], [Part([], [A_LEFT])], [Part([A], [])], [Part([A_RIGHT], [])]])
    assert befores == [set(), {0}, {0, 1}, {0}]


def test_parts_follow_what_they_touch_and_not_each_other() -> None:
    left, right = Part([A_LEFT], [A_LEFT]), Part([A_RIGHT], [A_RIGHT])
    assert enter([[left, right], [left, right]]) == [set(), set(), {0}, {1}]


def test_each_part_follows_all_parts_where_nothing_is_divided() -> None:
    whole = Part([A], [A])
    assert enter([[whole, whole], [whole, whole]]) == [set(), set(), {0, 1}, {0, 1}]


def test_a_parts_read_outlives_the_write_of_its_sibling() -> None:
    befores = enter([[Part([A], []), Part([], [A])], [Part([], [A])]])
    assert befores == [set(), set(), {0, 1}]


@st.composite
def some_regions(draw: st.DrawFn) -> list[Region]:
    count = draw(st.integers(0, 2))
    regions: list[Region] = []
    for _ in range(count):
        first = draw(st.integers(0, 10))
        last = draw(st.integers(first + 1, 12))
        regions.append(Region(draw(st.sampled_from("ab")), first, last))
    return regions


PARTS = st.lists(st.builds(Part, some_regions(), some_regions()), min_size=1, max_size=3)


@given(st.lists(PARTS, max_size=8))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_against_every_pair_of_bytes(nodes: list[list[Part]]) -> None:
    befores = enter(nodes)
    parts = [part for node in nodes for part in node]
    owner = [number for number, node in enumerate(nodes) for _ in node]
    known: list[set[int]] = []  # all that must have ended, directly or not
    for step, before in enumerate(befores):
        conflicts = {
            other
            for other in range(step)
            if owner[other] != owner[step] and conflict(parts[other], parts[step])
        }
        known.append(before.union(*(known[other] for other in before)))
        assert before <= conflicts
        assert conflicts <= known[step]
