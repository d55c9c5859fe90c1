"""What a run that was cut short leaves behind: states as they were, nothing adopted, a way on."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from event_watcher import EventWatcher
from short_run import CONFIG, run_once

from aieflow.devices.cpu import CpuDevice
from aieflow.devices.fake import FakeDevice
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.gpt2.run_folder import RunFolder, create_run
from aieflow.gpt2.trainer import Trainer, training_graph
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call
from aieflow.ops.op import Array
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.executor import Executor
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.worker import Instruction, Worker
from aieflow.tools.bench_train import RandomTokens
from aieflow.tools.emulation import emulated_xrt, open_emulated_npu

SPREAD = {"layernorm": "far", "gelu": "far", "matmul": "far", "adamw": "far"}
SAMPLER = RandomTokens(50)


@contextmanager
def ready(machine: Machine) -> Iterator[Trainer]:
    with closing(Trainer(CONFIG, machine)) as trainer:
        trainer.warm_up()
        trainer.initialise()
        yield trainer


def copied(trainer: Trainer) -> dict[str, Array]:
    return {name: array.copy() for name, array in trainer.parameters.items()}


def states_of(trainer: Trainer) -> dict[str, Array]:
    """Copies of parameters and moments."""
    moments = trainer.moments
    kinds = {"p": trainer.parameters, "m": moments.m, "v": moments.v}
    return {f"{k}:{n}": array.copy() for k, each in kinds.items() for n, array in each.items()}


def spread(far: FakeRemoteDevice) -> Machine:
    return Machine((FakeDevice(lanes=2), far), Placement("cpu", SPREAD), True)


def test_a_step_counts_as_done_once_its_call_is_whatever_its_signals_meet() -> None:
    """Cancelling releases locks that a step would have signalled; what it did stays done."""
    waiting, free = threading.Lock(), threading.Lock()
    waiting.acquire()

    def call() -> None:
        worker.is_cancelled = True

    worker = Worker("host.copy", [Instruction(0, (), call, (waiting, free))], lambda: None)
    worker.prepare(False)
    worker.start()
    worker.wait()
    assert worker.completed == 1
    worker.prepare(False)
    assert worker.completed == 0
    worker.close()


def test_ctrl_c_while_lanes_are_started_keeps_the_states(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Worker.start

    def interrupted(self: Worker) -> None:
        if self.lane == "host.copy":
            raise KeyboardInterrupt
        start(self)

    with ready(spread(FakeRemoteDevice("far"))) as trainer:
        for index in range(2):
            trainer.step(index, SAMPLER)
        before = copied(trainer)
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                trainer.step(2, SAMPLER)
        after = copied(trainer)
    assert all(np.array_equal(before[name], after[name]) for name in before)


def interrupt_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when every step of a run is done, the last update too, but `run` has not returned."""
    wait = Executor._wait

    def interrupted(self: Executor) -> None:
        wait(self)
        patch.undo()
        raise KeyboardInterrupt

    patch.setattr(Executor, "_wait", interrupted)


def test_every_state_is_given_back_though_the_last_update_was_done() -> None:
    with ready(spread(FakeRemoteDevice("far"))) as trainer:
        trainer.step(0, SAMPLER)
        before = states_of(trainer)
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at_the_end(patch)
            with pytest.raises(KeyboardInterrupt):
                trainer.step(1, SAMPLER)
        after = states_of(trainer)
        trainer.step(1, SAMPLER)
        done = states_of(trainer)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    # Parameters and both moments: nothing would have stayed as it was by itself.
    assert all(not np.array_equal(done[name], array) for name, array in before.items())


def test_a_lost_device_is_excluded_though_it_cannot_be_closed() -> None:
    class Lost(FakeRemoteDevice):
        def close(self) -> None:
            super().close()
            raise DeviceError("far: waiting for far.compute: the device is lost", "far")

    far = Lost("far")
    with ready(spread(far)) as trainer:
        far.fail(len(far.calls) + 3, DeviceError("fell off the bus", "far"))
        trainer.step(0, SAMPLER)
        assert [each.device for each in trainer.exclusions] == ["far"]


def test_an_exclusion_adopts_no_second_arena() -> None:
    far, kept = FakeRemoteDevice("far"), FakeRemoteDevice("kept")
    places = {"layernorm": "far", "gelu": "kept"}
    with ready(
        Machine((FakeDevice(lanes=2), far, kept), Placement("cpu", places), True)
    ) as trainer:
        before = kept.adopted
        far.fail(len(far.calls) + 3, DeviceError("fell off the bus", "far"))
        trainer.step(0, SAMPLER)
        assert kept.adopted <= before


def test_an_executor_that_cannot_be_opened_leaves_nothing_adopted() -> None:
    class Full(FakeRemoteDevice):
        is_broken = False

        def bind(self, node: Node, call: Call) -> Callable[[], None]:
            if self.is_broken:
                raise DeviceError("far: cannot compile")
            return super().bind(node, call)

    far, kept = Full("far"), FakeRemoteDevice("kept")
    machine = Machine((FakeDevice(lanes=2), kept, far), Placement("cpu", SPREAD))
    plan = machine.plan(training_graph(CONFIG))
    states = machine.allocate_states(plan.graph)
    before = kept.adopted
    far.is_broken = True
    with pytest.raises(DeviceError, match="cannot compile") as caught:
        machine.open(plan, states)
    assert caught.value.device == "far"
    assert kept.adopted == before


def test_a_sync_that_fails_before_a_run_excludes_the_npu(tmp_path: Path) -> None:
    profile = load_machine("phoenix")
    emulator = emulated_xrt(profile)
    npu = open_emulated_npu(profile, tmp_path, emulator)
    machine = Machine((CpuDevice(2), npu), Placement("gemm-on-npu"), True)
    with closing(npu), ready(machine) as trainer:
        trainer.step(0, SAMPLER)
        emulator.fail("sync.in", 1, "refused")
        tokens = np.zeros((2, 8), np.int32)
        trainer.evaluate([(tokens, tokens)])
        assert [each.device for each in trainer.exclusions] == ["npu"]


def test_an_exclusion_keeps_the_policy_that_does_without_the_device() -> None:
    igpu, npu = FakeRemoteDevice("igpu"), FakeRemoteDevice("npu")
    by_hand = Placement("cpu", {"gelu": "igpu", "matmul": "npu"})
    left = Machine((FakeDevice(lanes=2), igpu, npu), by_hand, True).without("npu")
    assert left.placement == Placement("cpu", {"gelu": "igpu"})
    needed = Machine((FakeDevice(lanes=2), igpu, npu), Placement("gemm-on-npu"), True)
    assert needed.without("npu").placement.policy != "gemm-on-npu"


def test_the_only_device_stops_with_a_checkpoint_too(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=5, eval_every=0, checkpoint_every=0)
    run = create_run(tmp_path / "run", config)
    far = FakeRemoteDevice("far")

    def spoil(trainer: Trainer) -> None:
        nodes = sum(step.lane == "far.compute" for step in trainer.plan.steps)
        far.fail(len(far.calls) + 2 * nodes + 5, DeviceError("fell off the bus", "far"))

    watcher = EventWatcher()
    with pytest.raises(DeviceError, match="fell off the bus") as caught:
        run_once(run, Machine((far,)), spoil, watcher)
    assert watcher.events == ["step 1", "step 2", "step-2"]
    assert run.latest == run.checkpoint(2)
    assert "--on-device-failure" not in str(caught.value)  # there is nothing to go on with


@pytest.mark.parametrize(
    ("failing", "resumed"),
    [
        (2, ["evaluation 2", "step-2", "step 3", "step 4", "evaluation 4", "step-4"]),
        (4, ["evaluation 4", "step-4"]),
    ],
)
def test_an_evaluation_that_failed_is_done_when_the_run_goes_on(
    tmp_path: Path, failing: int, resumed: list[str]
) -> None:
    config = replace(CONFIG, steps=4, eval_every=2, eval_batches=1, checkpoint_every=0)
    run = create_run(tmp_path / "run", config)
    far = FakeRemoteDevice("far")

    def spoil(trainer: Trainer) -> None:
        evaluate = trainer.evaluate

        def fails(batches: Iterable[tuple[Array, Array]]) -> float:
            if len(events_of(run)) == failing:
                far.fail(len(far.calls) + 1, DeviceError("fell off the bus", "far"))
            return evaluate(batches)

        trainer.evaluate = fails  # type: ignore[method-assign]  # the moment is what matters

    machine = Machine((FakeDevice(lanes=2), far), Placement("cpu", SPREAD))
    with pytest.raises(DeviceError, match="fell off the bus"):
        run_once(run, machine, spoil)
    assert run_once(run, Machine((FakeDevice(lanes=2),))) == resumed


def events_of(run: RunFolder) -> list[str]:
    """The lines of training steps so far."""
    lines = run.metrics_file.read_text().splitlines()
    return [line for line in lines if '"loss"' in line]
