"""The account of recorded runs, and what a replay says would be gained: hand-drawn runs."""

import random

import pytest
from test_lane_states import jittered

from aieflow.devices.fake import FakeDevice
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.ops.builder import Builder
from aieflow.ops.pointwise import GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.account import account
from aieflow.runtime.outliers import Outlier, outliers
from aieflow.runtime.outline import Outline, OutlinedStep, Recording, outline, recording
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan
from aieflow.runtime.what_if import WhatIf, what_if

# Lane, work, what who waits for it is said to wait for, waits, FLOPs, bytes.
DRAWN = Outline(
    (
        OutlinedStep("cpu.compute", "a", "add", "nodes of cpu", (), 10, 100),
        OutlinedStep("npu.copy.in", "in a", "in", "npu in", (0,), 0, 40),
        OutlinedStep("npu.compute", "m", "matmul", "nodes of npu", (1,), 600, 60),
        OutlinedStep("cpu.compute", "b", "add", "nodes of cpu", (2,), 10, 100),
    ),
    {"cpu.compute": (0, 3), "npu.copy.in": (1,), "npu.compute": (2,)},
)


def times(*spans: tuple[int, int], wall: int) -> Recording:
    return Recording(wall, tuple(start for start, _ in spans), tuple(end for _, end in spans))


def test_the_account_of_two_runs() -> None:
    """
    cpu.compute  [a 0-4]                    [b 12-16]        [a 0-2]                  [b 9-14]
    npu.copy.in         [4-6]                                       [2-6]
    npu.compute               [m 6-12]                                    [m 6-9]
    """
    runs = [
        times((0, 4), (4, 6), (6, 12), (12, 16), wall=16),
        times((0, 2), (2, 6), (6, 9), (9, 14), wall=14),
    ]
    found = account(DRAWN, runs, foretold_s=(3e-9, 1e-9, 5e-9, 3e-9))
    assert (found.runs, found.wall_ns) == (2, 30)
    add, matmul, brought = found.works
    assert (add.work, add.device, add.count) == ("add", "cpu", 4)
    assert add.seconds == pytest.approx(15e-9)
    assert add.median_s == pytest.approx(4e-9)  # of 2, 4, 4, 5
    assert add.share == pytest.approx(15 / 30)  # of 15 + 9 + 6
    assert add.error == pytest.approx(15 / 12 - 1)
    assert add.bytes_per_s == pytest.approx(400 / 15e-9)
    assert (matmul.work, matmul.flops) == ("matmul", 1200)
    assert matmul.flops_per_s == pytest.approx(1200 / 9e-9)
    assert (brought.device, brought.work, brought.nbytes) == ("npu", "in", 80)
    lanes = {lane.lane: lane for lane in found.lanes}
    assert lanes["cpu.compute"].awaited == {"nodes of npu": 9, "npu in": 6}
    assert lanes["cpu.compute"].awaited_steps == {"m": 9, "in a": 6}
    assert lanes["cpu.compute"].waiting_ns == 15
    assert lanes["npu.compute"].awaited == {"nodes of cpu": 6, "npu in": 6}
    assert lanes["npu.compute"].states["idle"] == 4 + 5
    # the medians of 4 and 5, and of 6 and 3; then of 2 and 4
    assert [node[:2] for node in found.nodes[:2]] == [("cpu", "b"), ("npu", "m")]
    assert [node[2] for node in found.nodes[:2]] == pytest.approx([4.5e-9, 4.5e-9])
    assert found.overlap == 0.0  # nothing is computed during either transfer


def test_without_a_model_nothing_is_foretold() -> None:
    (first, *_) = account(DRAWN, [times((0, 4), (4, 6), (6, 12), (12, 16), wall=16)]).works
    assert first.foretold_s is None
    assert first.error is None


@pytest.mark.parametrize("seed", range(12))
def test_overlap_is_that_of_the_trace(seed: int) -> None:
    trace = jittered(seed, random.Random(seed))
    found = account(outline(trace.plan), [recording(trace)])
    # The trace reckons in seconds, the account in whole nanoseconds of spans of microseconds.
    assert found.overlap == pytest.approx(trace.overlap, abs=1e-4)
    assert found.overlap is not None
    assert 0 < found.overlap < 1
    assert sum(row.share for row in found.works) == pytest.approx(1)


def there_and_back() -> Plan:
    """a on the host, b of a far away, c of b on the host."""
    b = Builder("there and back")
    x = b.feed("x", Spec((4, 8)))
    (first,) = b.apply(GELU, [x], ["a"])
    (far,) = b.apply(GELU, [first], ["b"])
    (last,) = b.apply(GELU, [far], ["c"])
    devices = {"fake": FakeDevice(lanes=1), "far": FakeRemoteDevice("far")}
    homes = ("fake", "far", "fake")
    return place_on(b.finish([last]), devices, Placement(), by_node=homes)


def replayed(*delays_us: int) -> WhatIf:
    """Of a chain of five steps that take 10, 3, 40, 5, 12 µs, each begun so late."""
    plan = there_and_back()
    assert [plan.name_of(step) for step in plan.steps] == ["a", "in a", "b", "out b", "c"]
    now, spans = 0, []
    for us, delay in zip((10, 3, 40, 5, 12), delays_us, strict=True):
        spans.append((now + delay * 1000, now + (delay + us) * 1000))
        now = spans[-1][1]
    run = times(*spans, wall=now + 2000)
    return what_if(plan, outline(plan), [run, times(*spans, wall=now + 9000), run])


def test_a_replay_is_the_run_and_says_what_would_be_gained() -> None:
    """A chain: whatever takes less time makes the run as much shorter."""
    found = replayed(1, 2, 3, 4, 5)
    total = 70 + 15 + 2
    assert found.measured_s == pytest.approx(total * 1e-6)
    assert found.replay_s == pytest.approx(total * 1e-6)
    ratios = {(gain.change, gain.device, gain.work): gain.ratio for gain in found.gains}
    assert ratios == {
        ("half", "far", "gelu"): pytest.approx(1 - 20 / total),
        ("without", "every lane", "overhead"): pytest.approx(1 - 17 / total),
        ("half", "fake", "gelu"): pytest.approx(1 - 11 / total),
        ("without", "far", "out"): pytest.approx(1 - 5 / total),
        ("without", "far", "in"): pytest.approx(1 - 3 / total),
    }
    assert [gain.ratio for gain in found.gains] == sorted(ratios.values(), key=float)


def test_what_nothing_waits_for_gains_nothing() -> None:
    """Two lanes of random work: no replay is longer, and halving all overhead stays a gain."""
    trace = jittered(5, random.Random(5))
    found = what_if(trace.plan, outline(trace.plan), [recording(trace)])
    assert found.replay_s == pytest.approx(trace.seconds, rel=1e-6)  # whole nanoseconds
    assert all(gain.ratio <= 1 + 1e-9 for gain in found.gains)
    assert any(gain.ratio < 0.99 for gain in found.gains)


def test_outliers_are_held_against_their_own_median() -> None:
    """m takes 60, once 200; a takes 40, once 130, which is more than three times; of a wall of 160.

    A step that took long often is no outlier, nor is one that no run can have felt.
    """
    usual = times((0, 40), (40, 41), (41, 101), (101, 160), wall=160)
    late_m = times((0, 40), (40, 41), (41, 241), (241, 300), wall=300)
    late_a = times((0, 130), (130, 131), (131, 191), (191, 250), wall=250)
    slow = times((0, 40), (40, 41), (41, 201), (201, 260), wall=260)  # 160 for m is less than 3 x
    runs = [usual, usual, late_m, usual, late_a, slow, usual]
    assert outliers(DRAWN, runs) == (
        Outlier(2, 2, 200e-9, 60e-9),
        Outlier(4, 0, 130e-9, 40e-9),
    )
    assert not outliers(DRAWN, runs[:4])  # too few
    assert not outliers(DRAWN, [late_m] * 5)
    for taken, is_felt in ((13, False), (15, True)):  # 3 is usual: 10 more are 1 % of the run
        copies = [
            times((0, 40), (40, 40 + ns), (60, 101), (101, 1000), wall=1000)
            for ns in (3, 3, 3, 3, taken)
        ]
        assert bool(outliers(DRAWN, copies)) == is_felt
