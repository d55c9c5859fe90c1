"""Devices that fail in the middle of a run: it ends cleanly, and goes on without them if asked."""

import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from short_run import CONFIG, MODEL, run_once

from aieflow.devices.cpu import CpuDevice
from aieflow.devices.fake import FakeDevice
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.devices.npu import NpuDevice
from aieflow.devices.xrt_emulator import XrtEmulator
from aieflow.devices.xrt_emulator_faults import CallKind, Fault
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import RunFolder, create_run
from aieflow.gpt2.trainer import Trainer
from aieflow.ops.errors import DeviceError
from aieflow.ops.op import Array
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.tools.bench_train import RandomTokens
from aieflow.tools.emulation import emulated_xrt, open_emulated_npu

STEPS = 4
EVERYWHERE = {"layernorm": "far", "gelu": "far", "matmul": "far", "adamw": "far"}


@contextmanager
def trained(machine: Machine, config: RunConfig = CONFIG) -> Iterator[Trainer]:
    trainer = Trainer(config, machine)
    trainer.warm_up()
    trainer.initialise()
    try:
        yield trainer
    finally:
        trainer.close()


def losses(trainer: Trainer, first: int = 0, last: int = STEPS) -> list[float]:
    sampler = RandomTokens(MODEL.vocab_size)
    return [trainer.step(index, sampler).loss for index in range(first, last)]


def parameters(trainer: Trainer) -> dict[str, Array]:
    moments = trainer.moments
    kinds = {"p": trainer.parameters, "m": moments.m, "v": moments.v}
    return {
        f"{k}:{name}": array.copy() for k, each in kinds.items() for name, array in each.items()
    }


def far_machine(far: FakeRemoteDevice, excludes: bool = True) -> Machine:
    return Machine((FakeDevice(lanes=2), far), Placement("cpu", EVERYWHERE), excludes)


@pytest.fixture(scope="module")
def never() -> tuple[list[float], dict[str, Array]]:
    """Losses and states of a run that never had the device."""
    with trained(Machine((FakeDevice(lanes=2),))) as trainer:
        return losses(trainer), parameters(trainer)


def test_a_device_that_works_changes_no_bit(never: tuple[list[float], dict[str, Array]]) -> None:
    far = FakeRemoteDevice("far")
    with trained(far_machine(far)) as trainer:
        assert losses(trainer) == never[0]
        assert far.moved.transfers > 100
        assert trainer.exclusions == []


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("kind", ["node", "transfer"])
def test_after_a_failure_at_any_moment_the_run_is_as_if_the_device_had_never_been_there(
    never: tuple[list[float], dict[str, Array]], kind: str, seed: int
) -> None:
    draw = random.Random(seed)
    far = FakeRemoteDevice("far")
    with trained(far_machine(far)) as trainer:
        begun = len(far.calls), far.moved.transfers
        found = losses(trainer, 0, 1)
        calls, transfers = len(far.calls) - begun[0], far.moved.transfers - begun[1]
        if kind == "node":
            error = DeviceError("the device fell off the bus")
            far.fail(len(far.calls) + 1 + draw.randrange(2 * calls), error)
        else:
            far.fail_transfers(draw.randrange(2 * transfers))
        found += losses(trainer, 1)
        assert found == never[0]
        for name, array in never[1].items():
            np.testing.assert_array_equal(parameters(trainer)[name], array, err_msg=name)
        (exclusion,) = trainer.exclusions
        assert exclusion.device == "far"
        assert exclusion.training_step in (2, 3, 4)
        assert far.is_closed
        assert [device.name for device in trainer.machine.devices] == ["fake"]


def refuse() -> None:
    raise DeviceError("out of resources")


def test_without_exclude_the_states_are_those_before_the_training_step() -> None:
    far = FakeRemoteDevice("far")
    with trained(far_machine(far, excludes=False)) as trainer:
        losses(trainer, 0, 2)
        before = parameters(trainer)
        updates = [node.name for node in trainer.plan.graph.nodes if node.op.name == "adamw"]
        far.before(updates[-2], refuse)  # others are updated by then
        with pytest.raises(DeviceError, match="out of resources") as caught:
            losses(trainer, 2, 3)
        assert caught.value.device == "far"
        after = parameters(trainer)
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array, err_msg=name)
        far.forget()
        expected = losses(trainer, 2, 3)  # the device works again
    with trained(Machine((FakeDevice(lanes=2),))) as trainer:
        assert losses(trainer, 0, 3)[2:] == expected


def test_the_cpu_is_not_expendable() -> None:
    device = FakeDevice(lanes=2)
    with trained(Machine((device,), excludes_failed=True)) as trainer:
        device.fail(len(device.calls) + 5, DeviceError("cosmic ray"))
        with pytest.raises(DeviceError, match="cosmic ray"):
            losses(trainer, 0, 1)


def test_an_allocation_that_fails_when_the_run_begins_excludes_the_device(
    never: tuple[list[float], dict[str, Array]],
) -> None:
    class Full(FakeRemoteDevice):
        def adopt(self, memory: Array) -> None:
            if self.adopted > 20:
                raise DeviceError("far: no memory left", "far")
            super().adopt(memory)

    with trained(far_machine(Full("far"))) as trainer:
        assert [each.device for each in trainer.exclusions] == ["far"]
        assert losses(trainer) == never[0]


def test_no_thread_is_left_after_failures() -> None:
    before = threading.active_count()
    far = FakeRemoteDevice("far")
    with trained(far_machine(far)) as trainer:
        far.fail(len(far.calls) + 3, RuntimeError("not even an error of ours"))
        losses(trainer, 0, 2)
        assert [each.device for each in trainer.exclusions] == ["far"]
    assert threading.active_count() == before


# Every kind of call that a training step makes, and what an execution can end in.
NPU_FAULTS: tuple[tuple[CallKind, Fault], ...] = (
    ("sync.in", "refused"),
    ("sync.out", "refused"),
    ("start", "refused"),
    *(("execution", how) for how in ("error", "abort", "timeout", "hang", "lost")),
    ("sync.in", "lost"),
)


@pytest.fixture
def npu(tmp_path: Path) -> Iterator[tuple[XrtEmulator, NpuDevice]]:
    profile = load_machine("phoenix")
    emulator = emulated_xrt(profile)
    with closing(open_emulated_npu(profile, tmp_path, emulator, deadline_s=0.05)) as device:
        yield emulator, device


def npu_machine(device: NpuDevice, checks: bool = False) -> Machine:
    return Machine((CpuDevice(2), device), Placement("gemm-on-npu", checks=checks), True)


@pytest.fixture(scope="module")
def on_cpu() -> list[float]:
    with trained(Machine((CpuDevice(2),))) as trainer:
        return losses(trainer)


@pytest.mark.parametrize(("kind", "how"), NPU_FAULTS)
def test_the_run_goes_on_without_an_npu_that_fails_at_any_kind_of_call(
    npu: tuple[XrtEmulator, NpuDevice], on_cpu: list[float], kind: CallKind, how: Fault
) -> None:
    emulator, device = npu
    with trained(npu_machine(device)) as trainer:
        emulator.fail(kind, 7, how)  # within the first training step
        assert losses(trainer) == on_cpu
        (exclusion,) = trainer.exclusions
        assert (exclusion.device, exclusion.training_step) == ("npu", 1)
        assert "npu" in exclusion.reason
    assert emulator.memory.live_buffers == 0
    assert emulator.open_contexts == 0


@pytest.mark.parametrize("seed", range(10))
def test_an_npu_that_fails_at_any_moment_leaves_the_state_of_the_training_step_before(
    npu: tuple[XrtEmulator, NpuDevice], seed: int
) -> None:
    """From the training step that failed on, the bits are those of the CPU from that state on."""
    emulator, device = npu
    draw = random.Random(seed)
    kind, how = draw.choice(NPU_FAULTS)
    with trained(npu_machine(device)) as trainer:
        losses(trainer, 0, 2)
        before = parameters(trainer)
        emulator.fail(kind, draw.randrange(1, 9), how)  # within one training step
        found = losses(trainer, 2)
        (exclusion,) = trainer.exclusions
        assert exclusion.training_step == 3
    with trained(Machine((CpuDevice(2),))) as trainer:
        fill(trainer, before)
        assert losses(trainer, 2) == found


def test_a_wrong_result_is_found_where_checks_are_asked_for(
    npu: tuple[XrtEmulator, NpuDevice], on_cpu: list[float]
) -> None:
    emulator, device = npu
    with trained(npu_machine(device, checks=True)) as trainer:
        emulator.fail("execution", 4, "flip")
        assert losses(trainer) == on_cpu
        (exclusion,) = trainer.exclusions
        assert exclusion.device == "npu"
        assert "wrong result" in exclusion.reason


def test_right_results_pass_the_checks(npu: tuple[XrtEmulator, NpuDevice]) -> None:
    _, device = npu
    with trained(npu_machine(device, checks=True)) as trainer:
        assert any(node.op.name == "matmul_check" for node in trainer.plan.graph.nodes)
        losses(trainer)
        assert trainer.exclusions == []


def fill(trainer: Trainer, values: dict[str, Array]) -> None:
    kinds = {"p": trainer.parameters, "m": trainer.moments.m, "v": trainer.moments.v}
    for key, array in values.items():
        kind, _, name = key.partition(":")
        kinds[kind][name][...] = array


def lines_of(run: RunFolder) -> list[dict[str, object]]:
    clocks = ("seconds", "tokens_per_s")
    lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
    return [{key: line[key] for key in line if key not in clocks} for line in lines]


SHORT = replace(CONFIG, steps=5, eval_every=0, checkpoint_every=0)


def fail_in_third_step(far: FakeRemoteDevice) -> Callable[[Trainer], None]:
    def spoil(trainer: Trainer) -> None:
        nodes = sum(step.lane == "far.compute" for step in trainer.plan.steps)
        far.fail(len(far.calls) + 2 * nodes + nodes // 2, DeviceError("fell off the bus"))

    return spoil


def test_a_run_stops_with_a_checkpoint_from_which_it_goes_on_with_the_same_bits(
    tmp_path: Path,
) -> None:
    whole = create_run(tmp_path / "whole", SHORT)
    run_once(whole, Machine((FakeDevice(lanes=2),)))
    run = create_run(tmp_path / "run", SHORT)
    far = FakeRemoteDevice("far")
    with pytest.raises(DeviceError, match=r"fell off the bus; the run is saved: .*--resume .*run"):
        run_once(run, far_machine(far, excludes=False), fail_in_third_step(far))
    assert run.latest == run.checkpoint(2)
    run_once(run, Machine((FakeDevice(lanes=2),)))
    assert lines_of(run) == lines_of(whole)


def test_a_run_tells_which_device_it_lost(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", SHORT)
    far = FakeRemoteDevice("far")
    assert run_once(run, far_machine(far), fail_in_third_step(far)) == [
        *("step 1", "step 2", "without far", "step 3", "step 4", "step 5"),
        *("evaluation 5", "step-5"),
    ]
    (told,) = [line for line in lines_of(run) if "excluded_device" in line]
    assert (told["training_step"], told["excluded_device"]) == (3, "far")
    assert "fell off the bus" in str(told["reason"])
