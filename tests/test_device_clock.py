"""Spans by a device's own clock: when its work ran, not how long the host waited for it."""

import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from aieflow.devices.base import Clock, Device, Ran
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.fake import FakeDevice
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.errors import DeviceError, PlanError
from aieflow.ops.op import Array
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.state import RunState
from aieflow.runtime.trace import Trace
from aieflow.runtime.worker import Instruction, Worker, settled

GRAPH = training_step(ModelConfig(vocab_size=19, seq_len=8, layers=1, heads=2, channels=8), 2, 8)
FEEDS: dict[str, Array] = {
    "tokens": np.arange(16, dtype=np.int32).reshape(2, 8),
    "targets": np.arange(1, 17, dtype=np.int32).reshape(2, 8),
    "rates": np.array([0.0, 0.1, 0.05]),
}


def traces_of(*devices: Device, traced: tuple[bool, ...] = (True,)) -> list[Trace]:
    """Runs of a training step whose layernorm, GELU and products are the last device's."""
    by_name = {device.name: device for device in devices}
    places: dict[str, str] = dict.fromkeys(("layernorm", "gelu", "matmul"), devices[-1].name)
    plan = place_on(GRAPH, by_name, Placement("cpu", places))
    found: list[Trace] = []
    with Executor(plan, by_name, allocate_states(plan.graph, by_name)) as executor:
        for each in traced:
            trace = executor.run(FEEDS, traced=each)
            assert (trace is not None) == each
            found += [] if trace is None else [trace]
    return found


def require_legal(trace: Trace) -> None:
    """Raise PlanError unless the recorded order is one that the rule allows."""
    starts = [(span.start_s, 1, span.step) for span in trace.spans]
    ends = [(span.end_s, 0, span.step) for span in trace.spans]
    state = RunState(trace.plan)
    for _, is_start, step in sorted(starts + ends):
        (state.start if is_start else state.finish)(step)
    assert state.is_done


class Clocked(FakeRemoteDevice):
    """Its clock says that nodes took `length_ns`, and began at `begin_ns` (0: long ago)."""

    def __init__(self, begin_ns: int = 0, length_ns: int = 0) -> None:
        super().__init__("far")
        self.asked: list[bool] = []
        self._ran = begin_ns, begin_ns + length_ns

    def profile(self, on: bool) -> Mapping[str, Clock]:
        self.asked.append(on)
        return {"far.compute": lambda: lambda: self._ran} if on else {}


@pytest.mark.parametrize(
    ("ran", "span"),
    [
        (None, (100, 200)),
        ((120, 150), (120, 150)),
        ((90, 150), (100, 150)),  # the clocks' offset is known to some error
        ((120, 230), (120, 200)),
        ((10, 20), (100, 101)),  # at least a nanosecond, so that an order can be told
        ((300, 400), (199, 200)),
    ],
)
def test_a_clock_counts_within_what_the_worker_saw(
    ran: tuple[int, int] | None, span: tuple[int, int]
) -> None:
    assert settled([(100, 200)], [True], [ran]) == [span]


def test_steps_that_are_not_waited_for_follow_each_other() -> None:
    """
    host    |call|call|call, finish ............|
            100  110  120                     200
    device       [ 1st    ][ 2nd  ][ 3rd ]
    """
    seen, ends = [(100, 105), (110, 115), (120, 200)], [False, False, True]
    ran: list[tuple[int, int] | None] = [(108, 140), (140, 160), (162, 190)]
    assert settled(seen, ends, ran) == ran  # the first two end after their calls returned
    late = [(158, 190), (190, 210), (212, 240)]  # 50 ns, by which the clock is wrong
    assert settled(seen, ends, late) == [(158, 190), (190, 199), (199, 200)]
    overlapping = [(108, 150), (140, 160), None]
    assert settled(seen, ends, overlapping) == [(108, 150), (150, 160), (160, 200)]


def test_work_behind_an_end_that_was_seen_begins_no_sooner() -> None:
    seen, ends = [(100, 150), (160, 200)], [True, True]
    assert settled(seen, ends, [(120, 180), (130, 190)]) == [(120, 150), (160, 190)]


def test_spans_of_a_lane_with_a_clock_are_what_it_says() -> None:
    far = Clocked(begin_ns=0, length_ns=0)  # long ago: spans are as short as can be
    (trace,) = traces_of(FakeDevice(lanes=2), far)
    for span in trace.spans:
        length_s = span.end_s - span.start_s
        # 1 ns against some microseconds of a copy or a kernel of numpy's
        assert (length_s < 2e-9) == (span.lane == "far.compute"), span
    assert {span.lane for span in trace.spans} > {"far.compute", "far.copy.in", "far.copy.out"}
    require_legal(trace)


def test_a_clock_that_goes_wrong_leaves_a_legal_trace() -> None:
    ever = 1 << 62
    for far in (Clocked(0, ever), Clocked(ever, ever)):
        (trace,) = traces_of(FakeDevice(lanes=2), far)
        require_legal(trace)


def test_each_run_says_whether_it_is_timed() -> None:
    far = Clocked()
    assert len(traces_of(FakeDevice(lanes=2), far, traced=(False, True, True, False))) == 2
    assert far.asked == [False, True, True, False]


def test_a_device_without_steps_is_not_asked() -> None:
    class Idle(Clocked):
        def profile(self, on: bool) -> Mapping[str, Clock]:
            raise AssertionError("nobody needed it")

    idle, host = Idle(), FakeDevice(lanes=2)
    by_name = {host.name: host, idle.name: idle}
    plan = place_on(GRAPH, by_name, Placement("cpu"))
    with Executor(plan, by_name, allocate_states(plan.graph, by_name)) as executor:
        assert executor.run(FEEDS, traced=True) is not None


def test_a_clock_that_fails_is_a_failure_of_its_step() -> None:
    def ran() -> tuple[int, int]:
        raise DeviceError("igpu: reading time stamps: the device is lost", "igpu")

    answers = iter((lambda: None, ran, lambda: None))
    program = [Instruction(step, (), lambda: None, ()) for step in (6, 7, 8)]
    worker = Worker("igpu.compute", program, lambda: None)
    worker.prepare(True, lambda: next(answers))
    worker.start()
    worker.wait()
    assert worker.error is None  # the lane is idle: only now may the clock be asked
    worker.settle()
    assert worker.error is not None
    assert worker.error[0] == 7
    assert "time stamps" in str(worker.error[1])
    worker.close()


@pytest.mark.parametrize(("has_clock", "waits"), [(True, 1), (False, 3)])
def test_a_timed_lane_is_waited_for_no_more_often_than_an_untraced_one(
    has_clock: bool, waits: int
) -> None:
    finished: list[int] = []

    def finish() -> None:
        finished.append(worker.completed)

    calls = [Instruction(step, (), lambda: None, ()) for step in (0, 1)]
    worker = Worker(
        "igpu.compute", [*calls, Instruction(2, (), lambda: None, (), finish)], lambda: None, finish
    )
    worker.prepare(True, (lambda: lambda: None) if has_clock else None)
    worker.start()
    worker.wait()
    worker.close()
    assert worker.error is None
    assert len(finished) == waits
    assert all(a < b for a, b in zip(worker.starts, worker.ends, strict=True))


@pytest.mark.opencl
def test_an_igpus_spans_are_the_drivers_and_legal() -> None:
    pytest.importorskip("pyopencl", reason="pyopencl is not installed")
    from aieflow.devices.opencl import OpenClDevice
    from aieflow.devices.opencl_driver import list_devices

    if not list_devices():
        pytest.skip("no OpenCL device here")
    told: list[int] = []  # how long nodes and transfers ran by the driver's time stamps, in ns
    finished: list[str] = []  # the lanes that were waited for

    class Noting(OpenClDevice):
        def profile(self, on: bool) -> Mapping[str, Clock]:
            return {lane: noting(clock) for lane, clock in super().profile(on).items()}

        def finish(self, lane: str) -> Callable[[], None]:
            wait = super().finish(lane)
            assert wait is not None

            def finish() -> None:
                finished.append(lane)
                wait()

            return finish

    def noting(clock: Clock) -> Clock:
        def ask() -> Ran:
            ran = clock()

            def answer() -> tuple[int, int] | None:
                begin_and_end = ran()
                assert begin_and_end is not None
                told.append(begin_and_end[1] - begin_and_end[0])
                return begin_and_end

            return answer

        return ask

    device = Noting(list_devices()[0].device)
    try:
        traces = traces_of(CpuDevice(2), device, traced=(False, True, True))
    finally:
        device.close()
    for trace in traces:
        require_legal(trace)
    spans = [span for trace in traces for span in trace.spans if span.lane.startswith("igpu.")]
    assert len(spans) == len(told) > 20
    for lane in (device.lanes[0], *device.copy_lanes):
        ordered = [span for span in traces[0].spans if span.lane == lane]
        ordered.sort(key=lambda span: span.start_s)
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(ordered))
        # of steps that nothing else waits for only the last of a run is waited for
        assert len(traces) + 1 <= finished.count(lane) < (len(traces) + 1) * len(ordered)
    found = sorted((span.end_s - span.start_s) * 1e9 for span in spans)
    # What the clocks' comparison is off by may cut a span short, and does so seldom; seconds since
    # the run's begin hold less than a nanosecond.
    assert all(length <= most + 1 for length, most in zip(found, sorted(told), strict=True))
    assert sum(found) > 0.5 * sum(told)


def test_an_illegal_order_would_be_found() -> None:
    (trace,) = traces_of(FakeDevice(lanes=2), Clocked())
    late = next(step for step in trace.plan.steps if step.waits)
    spans = tuple(
        span
        if span.step != late.index
        else type(span)(span.step, span.lane, span.executor, -1.0, -0.5)
        for span in trace.spans
    )
    with pytest.raises(PlanError, match=f"step {late.index} started"):
        require_legal(Trace(trace.plan, spans, trace.seconds))
