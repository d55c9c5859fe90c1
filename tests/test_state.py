"""The executor's rule, driven by hand."""

import random

import pytest

from aieflow.devices.fake import FakeDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.errors import PlanError
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.runtime.placement import place
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.schedule import Schedule
from aieflow.runtime.state import RunState


def diamond() -> Plan:
    """
    0   [ 0 ][ 1 ]       [ 3 ]
    1        [ 2      ]
    """
    b = Builder("diamond")
    (p,) = b.apply(GELU, [b.feed("x", Spec((4, 8)))], ["p"])
    (q,) = b.apply(GELU, [p], ["q"])
    (r,) = b.apply(GELU, [p], ["r"])
    (s,) = b.apply(ADD, [q, r], ["s"])
    device = FakeDevice(lanes=2)
    one, two = device.lanes
    schedule = Schedule("by hand", device.lanes, ((one,), (one,), (two,), (one,)))
    return compile_plan(b.finish([s]), schedule, {"fake": device.kernels})


def indices(state: RunState) -> list[int]:
    return [step.index for step in state.ready()]


def test_the_diamond_event_by_event() -> None:
    state = RunState(diamond())
    assert indices(state) == [0]
    state.start(0)
    assert indices(state) == []
    assert [step.index for step in state.finish(0)] == [1, 2]
    state.start(2)
    state.start(1)
    assert [step.index for step in state.finish(1)] == []
    assert not state.is_done
    assert [step.index for step in state.finish(2)] == [3]
    state.start(3)
    assert not state.is_done
    assert state.finish(3) == ()
    assert state.is_done


def test_illegal_starts_are_refused() -> None:
    state = RunState(diamond())
    with pytest.raises(PlanError, match=r"step 1 started on fake.compute.0, where step 0 comes"):
        state.start(1)
    with pytest.raises(PlanError, match=r"step 2 started on .* before steps \[0\] had finished"):
        state.start(2)
    state.start(0)
    with pytest.raises(PlanError, match=r"step 0 started .* where nothing comes next"):
        state.start(0)
    with pytest.raises(PlanError, match=r"step 1 started .* where nothing comes next"):
        state.start(1)  # its lane is busy
    with pytest.raises(PlanError, match=r"before steps \[0\] had finished"):
        state.start(2)
    state.finish(0)
    state.start(1)
    state.finish(1)
    with pytest.raises(PlanError, match=r"before steps \[2\] had finished"):
        state.start(3)


def test_illegal_finishes_are_refused() -> None:
    state = RunState(diamond())
    with pytest.raises(PlanError, match=r"step 0 finished on fake.compute.0, where it was not"):
        state.finish(0)
    state.start(0)
    with pytest.raises(PlanError, match="step 1 finished"):
        state.finish(1)
    state.finish(0)
    with pytest.raises(PlanError, match="step 0 finished"):
        state.finish(0)


@pytest.mark.parametrize("seed", range(10))
def test_any_legal_order_comes_to_the_end(seed: int) -> None:
    config = ModelConfig(vocab_size=12, seq_len=4, layers=1, heads=2, channels=8)
    plan = place(training_step(config, 2, 4), FakeDevice(lanes=3))
    draw = random.Random(seed)
    state, running = RunState(plan), list[int]()
    started: list[int] = []
    while not state.is_done:
        ready = indices(state)
        assert ready or running, "a deadlock"
        if ready and (not running or draw.random() < 0.5):
            started.append(draw.choice(ready))
            running.append(started[-1])
            state.start(started[-1])
        else:
            state.finish(running.pop(draw.randrange(len(running))))
    assert sorted(started) == list(range(len(plan.steps)))
    assert indices(state) == []
