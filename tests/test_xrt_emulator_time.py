"""The emulated NPU's clock and its scripted faults, by themselves."""

import itertools
import math
import random
from typing import Any

import pytest

from aieflow.devices.xrt_emulator_clock import EmulatedClock, Latencies
from aieflow.devices.xrt_emulator_faults import Faults


def test_the_default_costs_nothing() -> None:
    latencies = Latencies()
    assert latencies.kernel_s(10**12, 10**12) == 0.0
    assert latencies.transfer_s(10**12) == 0.0


def test_a_kernel_takes_the_longer_of_flops_and_bytes() -> None:
    latencies = Latencies(flops_per_s=1e12, bytes_per_s=1e10, sync_s=0.5, sync_bytes_per_s=8.0)
    assert latencies.kernel_s(10**12, 10**9) == 1.0
    assert latencies.kernel_s(10**12, 10**11) == 10.0
    assert latencies.transfer_s(4) == 1.0


@pytest.mark.parametrize(
    "values",
    [{"dispatch_s": -1.0}, {"flops_per_s": 0.0}, {"noise": math.nan}, {"sync_bytes_per_s": -1.0}],
    ids=str,
)
def test_latencies_that_are_none_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        Latencies(**values)


def test_a_counted_clock_counts_and_does_not_wait() -> None:
    waits: list[float] = []
    clock = EmulatedClock(Latencies())
    clock.spend({"dispatch": 1.0, "kernel": 2.0}, clock.now(), waits.append)
    clock.spend({"kernel": 3.0}, clock.now(), waits.append)
    assert clock.seconds["dispatch"] == 1.0
    assert clock.seconds["kernel"] == 5.0
    assert (clock.counts["dispatch"], clock.counts["kernel"]) == (1, 2)
    assert waits == []


def test_a_paced_clock_waits_for_what_is_left() -> None:
    """Of 100 s that began 40 s ago at most 60 are left; of 30 s nothing."""
    waits: list[float] = []
    clock = EmulatedClock(Latencies(), "paced")
    clock.spend({"dispatch": 25.0, "kernel": 75.0}, clock.now() - 40.0, waits.append)
    clock.spend({"kernel": 30.0}, clock.now() - 40.0, waits.append)
    assert len(waits) == 1
    assert 59.0 < waits[0] <= 60.0  # a second for a slow computer
    assert clock.seconds["kernel"] == 105.0


def test_a_paced_clock_takes_at_least_the_modelled_time() -> None:
    clock = EmulatedClock(Latencies(), "paced")
    begun = clock.now()
    clock.spend({"sync.in": 0.02}, begun)
    assert clock.now() - begun >= 0.02


def test_noise_has_two_modes_and_repeats() -> None:
    clock = EmulatedClock(Latencies(noise=0.25, seed=3))
    draws = [clock.noisy(1.0) for _ in range(50)]
    assert set(draws) == {0.75, 1.25}
    again = EmulatedClock(Latencies(noise=0.25, seed=3))
    assert [again.noisy(1.0) for _ in range(50)] == draws
    assert EmulatedClock(Latencies()).noisy(1.0) == 1.0


def test_the_array_wakes_up_once_on_a_counted_clock() -> None:
    clock = EmulatedClock(Latencies(wake_up_s=0.1, idle_after_s=0.0))
    assert [clock.wake_up_s() for _ in range(3)] == [0.1, 0.0, 0.0]


def test_the_array_wakes_up_after_a_pause_on_a_paced_clock() -> None:
    clock = EmulatedClock(Latencies(wake_up_s=0.1, idle_after_s=5.0), "paced")
    now = itertools.count(step=4.0)
    clock.now = lambda: next(now)  # type: ignore[method-assign]  # time under the test's control
    assert clock.wake_up_s() == 0.1  # at 0
    assert clock.wake_up_s() == 0.0  # at 4
    clock.note_command_end()  # at 8
    assert clock.wake_up_s() == 0.0  # at 12
    next(now)
    assert clock.wake_up_s() == 0.1  # at 20, more than 5 after 12


def test_the_planned_call_fails_and_no_other() -> None:
    faults = Faults()
    faults.check("bo")
    faults.plan("bo", 2, "refused", "no more")
    faults.plan("start", 1, "refused")
    faults.check("bo")
    with pytest.raises(RuntimeError, match="no more"):
        faults.check("bo")
    faults.check("bo")
    with pytest.raises(RuntimeError, match="EXEC_CMD"):
        faults.check("start")


def test_an_execution_fails_in_its_own_ways() -> None:
    faults = Faults()
    faults.plan("execution", 2, "hang")
    faults.plan("execution", 3, "flip")
    assert [faults.check("execution") for _ in range(4)] == [None, "hang", "flip", None]


def test_a_lost_device_stays_lost() -> None:
    faults = Faults()
    faults.plan("sync.in", 1, "lost")
    faults.check("sync.out")
    for kind in ("sync.in", "sync.out", "bo"):
        with pytest.raises(RuntimeError, match="No such device"):
            faults.check(kind)
    assert faults.check("execution") == "lost"


@pytest.mark.parametrize(
    "plan", [("bo", 0, "refused"), ("bo", 1, "hang"), ("execution", 1, "refused"), ("x", 1, "lost")]
)
def test_a_fault_that_is_none_is_refused(plan: tuple[Any, int, Any]) -> None:
    with pytest.raises(ValueError, match="no fault"):
        Faults().plan(*plan)


def test_random_plans_fail_exactly_where_planned() -> None:
    draw = random.Random(0)
    for _ in range(20):
        faults = Faults()
        planned = {draw.randint(1, 30) for _ in range(draw.randint(1, 6))}
        for at in planned:
            faults.plan("set_arg", at, "refused")
        failed = set()
        for call in range(1, 31):
            try:
                faults.check("set_arg")
            except RuntimeError:
                failed.add(call)
        assert failed == planned
