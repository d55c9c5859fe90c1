"""Training on OpenCL, on CPU and iGPU together, and on all three devices, with an emulated NPU."""

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.gpt2.params import initial_parameters
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import Trainer
from aieflow.ops.graph import Graph
from aieflow.ops.op import Array
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.states import States
from aieflow.tools.bench_train import RandomTokens
from aieflow.tools.emulation import open_emulated_npu

pytest.importorskip("pyopencl", reason="pyopencl is not installed")
from aieflow.devices.opencl import OpenClDevice, open_opencl_device
from aieflow.devices.opencl_driver import list_devices

pytestmark = [
    pytest.mark.opencl,
    pytest.mark.skipif(not list_devices(), reason="no OpenCL device here"),
]

MODEL = ModelConfig(vocab_size=120, seq_len=16, layers=2, heads=2, channels=32)
CONFIG = RunConfig(model=MODEL, batch_size=4, seq_len=16, steps=60, warmup=5, lr=3e-3)
MIXED = {"matmul": "npu", "layernorm": "igpu", "attention": "igpu", "gelu_backward": "igpu"}


@contextmanager
def opened(names: str, folder: Path) -> Iterator[tuple[Device, ...]]:
    """Devices by name; the NPU is emulated."""
    with ExitStack() as stack:
        devices: list[Device] = []
        for name in names.split(","):
            if name == "cpu":
                device: Device = CpuDevice(2)
            elif name == "igpu":
                device = open_opencl_device(with_cpu=True)
            else:
                device = open_emulated_npu(load_machine("phoenix"), folder)
            devices.append(stack.enter_context(closing(device)))
        yield tuple(devices)


def losses(machine: Machine, steps: int, config: RunConfig = CONFIG) -> list[float]:
    with closing(Trainer(config, machine)) as trainer:
        trainer.warm_up()
        trainer.initialise()
        sampler = RandomTokens(MODEL.vocab_size)
        return [trainer.step(index, sampler).loss for index in range(steps)]


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    with opened("cpu", tmp_path_factory.mktemp("none")) as devices:
        return losses(Machine(devices), 50)


def test_a_whole_training_step_lives_on_the_igpu(on_cpu: list[float], tmp_path: Path) -> None:
    """Sums in another order than the CPU's: float32's rounding, grown over 50 training steps."""
    with opened("igpu", tmp_path) as devices:
        machine = Machine(devices, Placement("igpu"))
        plan = machine.plan(training_step(MODEL, 4, 16))
        assert set(plan.schedule.placements) == {("igpu.compute",)}
        np.testing.assert_allclose(losses(machine, 50), on_cpu, rtol=1e-4)
        assert devices[0].moved.copied_nbytes == 0


def test_cpu_and_igpu_take_turns_and_copy_nothing(on_cpu: list[float], tmp_path: Path) -> None:
    places = {
        op: ("cpu", "igpu")[number % 2]
        for number, op in enumerate(sorted({n.op.name for n in training_step(MODEL, 4, 16).nodes}))
    }
    with opened("cpu,igpu", tmp_path) as devices:
        machine = Machine(devices, Placement("cpu", places))
        np.testing.assert_allclose(losses(machine, 50), on_cpu, rtol=1e-4)
        assert devices[1].moved.transfers > 1000
        assert devices[1].moved.copied_nbytes == 0


def test_copies_are_made_where_memory_is_not_shared(on_cpu: list[float]) -> None:
    device = OpenClDevice(list_devices()[0].device, zero_copy=False)
    with closing(device), closing(CpuDevice(2)) as cpu:
        machine = Machine((cpu, device), Placement("cpu", {"layernorm": "igpu", "adamw": "igpu"}))
        np.testing.assert_allclose(losses(machine, 10), on_cpu[:10], rtol=1e-4)
        assert device.moved.copied_nbytes > 0


def values_of(graph: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    values: dict[str, Array] = {
        value.name: np.zeros(value.spec.shape, value.spec.storage) for value in graph.states
    }
    for _ in initial_parameters(MODEL, 0, values):
        pass
    for value in graph.feeds:
        values[value.name] = rng.integers(0, MODEL.vocab_size, value.spec.shape, np.int32)
    values["rates"] = np.array([1e-3, 0.1, 0.001])
    return values


def gradients(graph: Graph, homes: list[str], devices: dict[str, Device]) -> dict[str, Array]:
    values = values_of(graph)
    plan = place_on(graph, devices, Placement(), by_node=homes)
    states = States(allocate_states(graph, devices))
    for name, array in states.items():
        array[...] = values[name]
    with Executor(plan, devices, states) as executor:
        executor.run({value.name: values[value.name] for value in graph.feeds})
        return {value.name: executor.array(value).copy() for value in graph.results}


@pytest.mark.parametrize("seed", range(10))
def test_any_placement_on_cpu_and_igpu_gives_the_same_gradients(seed: int, tmp_path: Path) -> None:
    """Within what float32 sums of some hundred terms in another order differ by."""
    draw = random.Random(seed)
    graph = training_step(MODEL, 4, 16, shards=draw.choice((1, 2)), keep_gradients=True)
    with opened("cpu,igpu", tmp_path) as (cpu, igpu):
        devices = {"cpu": cpu, "igpu": igpu}
        expected = gradients(graph, ["cpu"] * len(graph.nodes), {"cpu": cpu})
        found = gradients(graph, [draw.choice(["cpu", "igpu"]) for _ in graph.nodes], devices)
        for name, exact in expected.items():
            error = np.linalg.norm(found[name] - exact) / np.linalg.norm(exact)
            assert error < 1e-5, f"{name}: {error:.2e}"


@pytest.mark.parametrize("seed", range(5))
def test_any_placement_on_three_devices_gives_gradients_within_bf16(
    seed: int, tmp_path: Path
) -> None:
    """The NPU's operands have 8 bits; the rest is as above."""
    draw = random.Random(seed)
    graph = training_step(MODEL, 4, 16, keep_gradients=True)
    with opened("cpu,igpu,npu", tmp_path) as opened_devices:
        devices = {device.name: device for device in opened_devices}
        expected = gradients(graph, ["cpu"] * len(graph.nodes), {"cpu": devices["cpu"]})
        homes = [
            draw.choice(
                [name for name, device in devices.items() if node.op.name in device.kernels]
            )
            for node in graph.nodes
        ]
        assert set(homes) == set(devices)
        found = gradients(graph, homes, devices)
        for name, exact in expected.items():
            error = np.linalg.norm(found[name] - exact) / np.linalg.norm(exact)
            assert error < 0.01, f"{name}: {error:.2e}"


def handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_nothing_grows_over_many_training_steps_on_three_devices(tmp_path: Path) -> None:
    """`tools/check_growth.py` does a thousand of the mini preset."""
    with opened("cpu,igpu,npu", tmp_path) as devices:
        machine = Machine(devices, Placement("gemm-on-npu", MIXED))
        with closing(Trainer(CONFIG, machine)) as trainer:
            trainer.warm_up()
            trainer.initialise()
            sampler = RandomTokens(MODEL.vocab_size)
            process = psutil.Process()
            for index in range(20):
                trainer.step(index, sampler)
            before = threading.active_count(), handles(), process.memory_info().rss
            for index in range(20, 60):
                trainer.step(index, sampler)
            after = threading.active_count(), handles(), process.memory_info().rss
    assert after[:2] == before[:2]
    assert after[2] - before[2] < 8 << 20  # a leak of one training step's buffers is more


def test_a_device_that_is_closed_gives_its_threads_and_files_back(tmp_path: Path) -> None:
    def once() -> tuple[int, int]:
        with opened("cpu,igpu,npu", tmp_path) as devices:
            losses(Machine(devices, Placement("gemm-on-npu", MIXED)), 2)
        return threading.active_count(), handles()

    first = once()
    for _ in range(3):
        assert once() == first
