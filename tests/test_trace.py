"""What a run leaves behind: spans that the rule allows, and the account of its time."""

import numpy as np
import pytest

from aieflow.devices.fake import FakeDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.errors import PlanError
from aieflow.ops.op import Array
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.schedule import Schedule
from aieflow.runtime.state import RunState
from aieflow.runtime.trace import Span, Trace

CONFIG = ModelConfig(vocab_size=19, seq_len=8, layers=1, heads=2, channels=8)
FEEDS: dict[str, Array] = {
    "tokens": np.arange(16, dtype=np.int32).reshape(2, 8),
    "targets": np.arange(1, 17, dtype=np.int32).reshape(2, 8),
    "rates": np.array([0.0, 0.1, 0.05]),
}


def plan_on(device: FakeDevice) -> Plan:
    """A training step whose nodes go to the lanes in turn, every third divided where it can be."""
    graph = training_step(CONFIG, 2, 8)
    lanes = device.lanes
    placements = tuple(
        lanes
        if index % 3 == 0 and device.kernels[node.op.name].split(node).units >= len(lanes)
        else (lanes[index % len(lanes)],)
        for index, node in enumerate(graph.nodes)
    )
    return compile_plan(graph, Schedule("in turn", lanes, placements), {"fake": device.kernels})


@pytest.fixture
def traces() -> list[Trace]:
    """Two runs on two lanes."""
    device = FakeDevice(lanes=2)
    plan = plan_on(device)
    states = allocate_states(plan.graph, device)
    with Executor(plan, {"fake": device}, states) as executor:
        assert executor.run(FEEDS) is None
        found = [executor.run(FEEDS, traced=True) for _ in range(2)]
    return [trace for trace in found if trace is not None]


def replay(plan: Plan, spans: tuple[Span, ...]) -> RunState:
    """Feed the events to the rule in the order of their times; raises PlanError if illegal."""
    starts = [(span.start_s, 1, span.step) for span in spans]
    ends = [(span.end_s, 0, span.step) for span in spans]
    state = RunState(plan)
    for _, is_start, step in sorted(starts + ends):
        if is_start:
            state.start(step)
        else:
            state.finish(step)
    return state


def test_recorded_spans_are_legal(traces: list[Trace]) -> None:
    assert len(traces) == 2
    for trace in traces:
        assert trace.plan.edges > 20
        assert [span.step for span in trace.spans] == list(range(len(trace.plan.steps)))
        assert all(span.lane == trace.plan.steps[span.step].lane for span in trace.spans)
        assert {span.executor for span in trace.spans} == {"fake"}
        assert all(0 <= s.start_s <= s.end_s <= trace.seconds for s in trace.spans)
        assert replay(trace.plan, trace.spans).is_done


def test_a_replay_finds_a_step_that_did_not_wait(traces: list[Trace]) -> None:
    trace = traces[0]
    late = next(step for step in trace.plan.steps if step.waits)
    moved = Span(late.index, late.lane, "fake", 0.0, 1e-12)
    spans = tuple(moved if span.step == late.index else span for span in trace.spans)
    with pytest.raises(PlanError, match=f"step {late.index} started"):
        replay(trace.plan, spans)


def test_the_account_of_time(traces: list[Trace]) -> None:
    for trace in traces:
        assert 0 <= trace.outside_kernels <= 1
        busy = [trace.busy_seconds(lane) for lane in trace.plan.lanes]
        assert all(0 < seconds <= trace.seconds for seconds in busy)
        by_op = trace.seconds_by_op()
        assert sum(by_op.values()) == pytest.approx(sum(busy))
        assert list(by_op.values()) == sorted(by_op.values(), reverse=True)
        assert set(by_op) == {node.op.name for node in trace.plan.graph.nodes}


def test_the_account_of_a_trace_made_by_hand(traces: list[Trace]) -> None:
    plan = traces[0].plan
    one, two = plan.lanes
    spans = (Span(0, one, "fake", 0.0, 1.0), Span(1, two, "fake", 1.0, 1.5))
    trace = Trace(plan, spans, seconds=2.0)
    assert trace.outside_kernels == 1 - 1.5 / 4
    assert (trace.busy_seconds(one), trace.busy_seconds(two)) == (1.0, 0.5)
    assert Trace(plan, (), seconds=0.0).outside_kernels == 0
