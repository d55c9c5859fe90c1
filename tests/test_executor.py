"""Running plans on threads: right numbers, errors and Ctrl-C at any moment, nothing left behind."""

import faulthandler
import random
import signal
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

import numpy as np
import pytest

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.fake import FakeDevice, random_graph, random_values
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.errors import DeviceError, PlanError, TrainingError
from aieflow.ops.graph import Graph
from aieflow.ops.interpret import interpret
from aieflow.ops.kernel import Call, HostKernel
from aieflow.ops.op import Array
from aieflow.ops.pointwise import ADD, GELU
from aieflow.ops.spec import Spec
from aieflow.runtime import executor, worker
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import place
from aieflow.runtime.plan import Plan, Step, compile_plan
from aieflow.runtime.schedule import Schedule

PATIENCE_S = 20.0  # a test that hangs ends, and shows where every thread was
CONFIG = ModelConfig(vocab_size=19, seq_len=8, layers=2, heads=2, channels=8)


@pytest.fixture(autouse=True)
def no_deadlock() -> Iterator[None]:
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(2 * PATIENCE_S, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def pass_event(event: threading.Event) -> None:
    assert event.wait(PATIENCE_S)


def opened(plan: Plan, device: Device, values: Mapping[str, Array]) -> Executor:
    """An executor whose states are filled from `values`."""
    states = allocate_states(plan.graph, device)
    for name, array in states.items():
        np.copyto(array, values[name])
    return Executor(plan, {device.name: device}, states)


def divided(graph: Graph, device: Device) -> Plan:
    """Every node on as many lanes as its kernel divides into."""
    placements = tuple(
        device.lanes[: device.kernels[node.op.name].split(node).units] for node in graph.nodes
    )
    schedule = Schedule("divided", device.lanes, placements)
    return compile_plan(graph, schedule, {device.name: device.kernels})


def feeds_of(graph: Graph, values: Mapping[str, Array]) -> dict[str, Array]:
    return {value.name: values[value.name] for value in graph.feeds}


def gpt2_values(graph: Graph) -> dict[str, Array]:
    """Random parameters and tokens, moments of zero."""
    rng = np.random.default_rng(1)
    values: dict[str, Array] = {}
    for value in (*graph.feeds, *graph.states):
        if value.spec.dtype == "int32":
            values[value.name] = rng.integers(0, CONFIG.vocab_size, value.spec.shape, np.int32)
        elif value.role == "moment":
            values[value.name] = np.zeros(value.spec.shape, np.float32)
        else:
            values[value.name] = 0.3 * rng.standard_normal(value.spec.shape, np.float32)
    values["rates"] = np.array([1e-3, 1 - 0.9, 1 - 0.95])
    if "key" in values:
        values["key"] = np.array([7], np.uint64)
    return values


Tracer = Callable[[FrameType, str, object], "Tracer | None"]
DEVICES: dict[str, Callable[[int], Device]] = {"cpu": CpuDevice, "fake": FakeDevice}


@pytest.mark.parametrize(("planner", "lanes"), [(place, 1), (place, 3), (divided, 2), (divided, 3)])
@pytest.mark.parametrize("kind", DEVICES)
def test_a_training_step_is_as_interpreted(
    kind: str, planner: Callable[[Graph, Device], Plan], lanes: int
) -> None:
    graph = training_step(CONFIG, 4, 8, shards=2, dropout=0.1, keep_gradients=True)
    values = gpt2_values(graph)
    expected = interpret(graph, values)
    device = DEVICES[kind](lanes)
    with opened(planner(graph, device), device, values) as opened_:
        opened_.run(feeds_of(graph, values))
        for value in graph.results:
            actual, wanted = opened_.array(value), expected[value.name]
            np.testing.assert_allclose(actual, wanted, rtol=2e-4, atol=2e-6, err_msg=value.name)
        for state in graph.states:
            actual, wanted = opened_.array(state), expected[f"{state.name}'"]
            assert actual is opened_.states[state.name]
            if state.role == "parameter":  # AdamW makes a full step of the noise around zero
                moves = np.abs(expected[f"m:{state.name}'"]) > 1e-5
                actual, wanted = actual[moves], wanted[moves]
            np.testing.assert_allclose(actual, wanted, rtol=2e-4, atol=2e-6, err_msg=state.name)
    device.close()


@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_divided_at_random(seed: int) -> None:
    draw = random.Random(seed)
    graph = random_graph(draw, 20)
    values = random_values(graph)
    device = FakeDevice(lanes=3)
    placements = tuple(tuple(draw.sample(device.lanes, draw.randint(1, 3))) for _ in graph.nodes)
    schedule = Schedule("random", device.lanes, placements)
    plan = compile_plan(graph, schedule, {"fake": device.kernels})
    expected = interpret(graph, values)
    states = {value.name: np.array(values[value.name]) for value in graph.states}
    with Executor(plan, {"fake": device}, states) as executor_:
        executor_.run(feeds_of(graph, values))
        for value in graph.results:
            np.testing.assert_array_equal(executor_.array(value), expected[value.name])
    assert sorted(device.calls) == sorted(
        (plan.node_of(step).name, step.part) for step in plan.steps
    )


def test_the_same_run_gives_the_same_bits() -> None:
    graph = training_step(CONFIG, 4, 8)
    values = gpt2_values(graph)
    device = CpuDevice(lanes=2)
    seen: set[bytes] = set()
    with opened(divided(graph, device), device, values) as executor_:
        for _ in range(5):
            for name, array in executor_.states.items():
                np.copyto(array, values[name])
            executor_.run(feeds_of(graph, values))
            seen.add(b"".join(array.tobytes() for array in executor_.states.values()))
    assert len(seen) == 1
    device.close()


def two_chains(device: Device) -> Plan:
    """
    0   [ p0 ][ p1 ][ p2 ]          [ s ]
    1   [ q0 ]      [ q1 ][ q2 ]           q1 reads p1, s reads p2 and q2
    """
    b = Builder("two chains")
    x = b.feed("x", Spec((4, 8)))
    (p0,) = b.apply(GELU, [x], ["p0"])
    (q0,) = b.apply(GELU, [x], ["q0"])
    (p1,) = b.apply(GELU, [p0], ["p1"])
    (q1,) = b.apply(ADD, [q0, p1], ["q1"])
    (p2,) = b.apply(GELU, [p1], ["p2"])
    (q2,) = b.apply(GELU, [q1], ["q2"])
    (s,) = b.apply(ADD, [p2, q2], ["s"])
    one, two = device.lanes
    placements = tuple((lane,) for lane in (one, two, one, two, one, two, one))
    schedule = Schedule("by hand", device.lanes, placements)
    return compile_plan(b.finish([s]), schedule, {"fake": device.kernels})


X: dict[str, Array] = {"x": np.linspace(-2, 2, 32, dtype=np.float32).reshape(4, 8)}


def check_run(executor_: Executor) -> None:
    """A run of `two_chains` gives the right numbers."""
    executor_.array("s").fill(np.nan)
    executor_.run(X)
    expected = interpret(executor_.plan.graph, X)["s"]
    np.testing.assert_array_equal(executor_.array("s"), expected)


def test_lanes_run_side_by_side() -> None:
    device = FakeDevice(lanes=2)
    meeting = threading.Barrier(2)

    def meet() -> None:
        meeting.wait(PATIENCE_S)

    device.before("p0", meet)
    device.before("q0", meet)
    with Executor(two_chains(device), {"fake": device}, {}) as executor_:
        check_run(executor_)


@pytest.mark.parametrize("count", range(1, 8))
def test_the_first_error_ends_the_run_wherever_it_is(count: int) -> None:
    device = FakeDevice(lanes=2)
    with Executor(two_chains(device), {"fake": device}, {}) as executor_:
        device.fail(count, ValueError("no more"))
        with pytest.raises(DeviceError, match=r"\w\d? \(\w+\) failed on fake.* ValueError") as info:
            executor_.run(X)
        assert isinstance(info.value.__cause__, ValueError)
        assert len(device.calls) >= count
        check_run(executor_)


def test_an_error_wakes_the_lane_that_waits_for_it() -> None:
    """q1 waits for p1, which fails; nothing after it runs, on either lane."""
    device = FakeDevice(lanes=2)
    q0_begun = threading.Event()
    device.before("q0", q0_begun.set)

    def fail() -> None:
        pass_event(q0_begun)
        raise RuntimeError("broken")

    device.before("p1", fail)
    with Executor(two_chains(device), {"fake": device}, {}) as executor_:
        for _ in range(3):
            with pytest.raises(DeviceError, match=r"p1 \(gelu\) failed on fake.compute.0: Runtime"):
                executor_.run(X)
            assert sorted(device.calls) == [("p0", 0), ("p1", 0), ("q0", 0)]
            device.calls.clear()
            q0_begun.clear()
        device.forget()
        check_run(executor_)


@pytest.mark.parametrize(("failing", "busy"), [("p0", "q0"), ("q0", "p0")])
def test_run_returns_only_when_the_other_lane_is_idle(failing: str, busy: str) -> None:
    """One lane is still at work when the other fails; `run` waits for it."""
    device = FakeDevice(lanes=2)
    begun, failed, over = threading.Event(), threading.Event(), threading.Event()
    errors: list[str] = []

    def fail() -> None:
        pass_event(begun)
        failed.set()
        raise RuntimeError("broken")

    def linger() -> None:
        begun.set()
        pass_event(over)

    def run() -> None:
        with pytest.raises(DeviceError) as info:
            executor_.run(X)
        errors.append(str(info.value))

    device.before(failing, fail)
    device.before(busy, linger)
    with Executor(two_chains(device), {"fake": device}, {}) as executor_:
        runner = threading.Thread(target=run)
        runner.start()
        pass_event(failed)
        runner.join(timeout=0.05)
        assert runner.is_alive()
        over.set()
        runner.join(PATIENCE_S)
        assert [error.partition(" ")[0] for error in errors] == [failing]
        assert sorted(device.calls) == [("p0", 0), ("q0", 0)]
        device.forget()
        check_run(executor_)


def test_two_errors_at_once_end_the_run() -> None:
    device = FakeDevice(lanes=2)
    meeting = threading.Barrier(2)

    def fail() -> None:
        meeting.wait(PATIENCE_S)
        raise RuntimeError("broken")

    device.before("p0", fail)
    device.before("q0", fail)
    with Executor(two_chains(device), {"fake": device}, {}) as executor_:
        for _ in range(50):
            with pytest.raises(DeviceError, match=r"[pq]0 \(gelu\) failed"):
                executor_.run(X)
        device.forget()
        check_run(executor_)


def test_an_error_of_ours_is_raised_as_it_is() -> None:
    device = FakeDevice(lanes=2)

    def observe(step: Step, outputs: Mapping[str, Array]) -> None:
        if "q1" in outputs:
            raise TrainingError("q1 is not finite")

    plan = two_chains(device)
    with (
        Executor(plan, {"fake": device}, {}, observer=observe) as executor_,
        pytest.raises(TrainingError, match=r"^q1 is not finite$"),
    ):
        executor_.run(X)


def test_an_observer_sees_every_step_after_its_end() -> None:
    device = FakeDevice(lanes=2)
    seen: dict[str, Array] = {}

    def observe(step: Step, outputs: Mapping[str, Array]) -> None:
        seen.update({name: array.copy() for name, array in outputs.items()})

    plan = two_chains(device)
    with Executor(plan, {"fake": device}, {}, observer=observe) as executor_:
        check_run(executor_)
    expected = interpret(plan.graph, X)
    assert len(seen) == len(plan.graph.nodes)
    for name, array in seen.items():
        np.testing.assert_array_equal(array, expected[name])


@pytest.mark.parametrize("times", [1, 3])
def test_ctrl_c_while_waiting(times: int) -> None:
    """p0 sends SIGINT to the main thread, which waits in `run`; q1 has not begun."""
    device = FakeDevice(lanes=2)
    seen, main, ended = threading.Semaphore(0), threading.main_thread().ident, list[str]()
    assert main is not None

    def on_signal(number: int, frame: FrameType | None) -> None:
        seen.release()
        raise KeyboardInterrupt

    def interrupt() -> None:
        for _ in range(times):
            signal.pthread_kill(main, signal.SIGINT)
            while not seen.acquire(timeout=0.01):  # it came just before the lock began to block
                signal.pthread_kill(main, signal.SIGINT)
        ended.append("p0")

    device.before("p0", interrupt)
    previous = signal.signal(signal.SIGINT, on_signal)
    try:
        with Executor(two_chains(device), {"fake": device}, {}) as executor_:
            for _ in range(5):
                with pytest.raises(KeyboardInterrupt):
                    executor_.run(X)
                assert ended == ["p0"]
                assert ("q1", 0) not in device.calls
                ended.clear()
                device.calls.clear()
            device.forget()
            check_run(executor_)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_ctrl_c_at_every_line_of_run() -> None:
    """KeyboardInterrupt is raised in the main thread at the first, second, … line of a run."""
    files = {executor.__file__, worker.__file__}
    device = FakeDevice(lanes=2)

    def interrupted(executor_: Executor, line: int) -> bool:
        left = line

        def trace(frame: FrameType, event: str, argument: object) -> Tracer | None:
            nonlocal left
            if frame.f_code.co_filename not in files:
                return None
            left -= event == "line"
            if left == 0:
                raise KeyboardInterrupt
            return trace

        previous = sys.gettrace()
        sys.settrace(trace)
        try:
            executor_.run(X)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(previous)
        return False

    lines, was_interrupted = 0, True
    while was_interrupted:
        lines += 1
        with Executor(two_chains(device), {"fake": device}, {}) as executor_:
            was_interrupted = interrupted(executor_, lines)
            check_run(executor_)
        with Executor(two_chains(device), {"fake": device}, {}) as executor_:
            interrupted(executor_, lines)  # every lane is idle, or `close` would not return
    assert lines > 30


def test_an_interrupt_in_a_kernel_is_an_error() -> None:
    device = FakeDevice(lanes=2)
    device.fail(3, KeyboardInterrupt())
    with Executor(two_chains(device), {"fake": device}, {}) as executor_:
        with pytest.raises(DeviceError, match="KeyboardInterrupt"):
            executor_.run(X)
        check_run(executor_)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, r"feeds are \['x'\], given \[\]"),
        ({**X, "y": X["x"]}, r"given \['x', 'y'\]"),
        ({"x": X["x"][:2]}, r"feed %x is float32\[4, 8\], given float32\[2, 8\]"),
        ({"x": X["x"].astype(np.float64)}, r"feed %x is float32\[4, 8\], given float64\[4, 8\]"),
    ],
)
def test_wrong_feeds(feeds: dict[str, Array], message: str) -> None:
    device = FakeDevice(lanes=2)
    with Executor(two_chains(device), {"fake": device}, {}) as executor_:
        with pytest.raises(PlanError, match=message):
            executor_.run(feeds)
        assert device.calls == []
        check_run(executor_)


@pytest.mark.parametrize(
    "given",
    [{}, {"state.0": np.zeros((1, 1), np.float32)}, {"state.0": np.zeros((4, 3), np.float64)}],
)
def test_wrong_states(given: dict[str, Array]) -> None:
    b = Builder("states")
    state = b.state("state.0", Spec((4, 3)), "parameter")
    graph = b.finish(b.apply(GELU, [state], ["p"]))
    device = FakeDevice()
    with pytest.raises(PlanError, match=r"no memory of float32\[4, 3\] for state %state.0"):
        Executor(place(graph, device), {"fake": device}, given)


def test_states_and_arena_may_be_shared() -> None:
    device = FakeDevice(lanes=2)
    b = Builder("count")
    state = b.state("state.0", Spec((4, 3)), "parameter")
    (twice,) = b.apply(ADD, [state, state], ["twice"])
    plan = place(b.finish([twice]), device)
    states = allocate_states(plan.graph, device)
    assert not states["state.0"].any()
    with (
        Executor(plan, {"fake": device}, states) as one,
        Executor(plan, {"fake": device}, states, arena=one.arena) as two,
    ):
        states["state.0"][...] = 3
        two.run({})
        assert two.arena is one.arena
        assert (one.array(twice) == 6).all()


def test_close_twice_and_run_no_more() -> None:
    device = FakeDevice(lanes=2)
    executor_ = Executor(two_chains(device), {"fake": device}, {})
    executor_.close()
    executor_.close()
    with pytest.raises(PlanError, match="two chains: its executor is closed"):
        executor_.run(X)


def test_a_kernel_that_cannot_be_bound_leaves_no_thread() -> None:
    """`no_thread_left` looks for the first lane's."""
    device = FakeDevice(lanes=2)

    def refuse(call: Call) -> Callable[[], None]:
        raise DeviceError("fake: refused")

    kernels = {**device.kernels, "add": HostKernel("refusing", ADD, refuse)}
    broken = FakeDevice(lanes=2, kernels=kernels)
    with pytest.raises(DeviceError, match="refused"):
        Executor(two_chains(broken), {"fake": broken}, {})


def test_nothing_is_allocated_while_running() -> None:
    # What a run keeps, all keep. One may show more: numba looks names of named tuples up by new
    # strings, and the interpreter's cache of attributes holds those that it saw last.
    graph = training_step(CONFIG, 4, 8)
    values = gpt2_values(graph)
    device = CpuDevice(lanes=2)
    kept, peaks = list[int](), list[int]()
    with opened(divided(graph, device), device, values) as executor_:
        feeds = feeds_of(graph, values)
        executor_.run(feeds)
        tracemalloc.start()
        try:
            executor_.run(feeds)
            for _ in range(30):
                tracemalloc.reset_peak()
                before, _ = tracemalloc.get_traced_memory()
                executor_.run(feeds)
                after, peak = tracemalloc.get_traced_memory()
                kept, peaks = [*kept, after - before], [*peaks, peak - before]
        finally:
            tracemalloc.stop()
    device.close()
    assert len(executor_.plan.steps) > 100
    assert min(peaks) < 4096
    assert min(kept) < 256
