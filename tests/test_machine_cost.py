"""What a described machine's figures foretell of one step, against hand arithmetic."""

import pytest

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.errors import InputError
from aieflow.ops.npu.catalogue import kernels
from aieflow.ops.npu.design import DESIGNS, GemmSize, gemm_program
from aieflow.ops.npu.expansion import expand_matmul
from aieflow.ops.npu.generation import NPU1
from aieflow.ops.npu.program import DmaTask
from aieflow.profiles.machine_cost import MachineCost, npu_gemm_work
from aieflow.profiles.machine_file import load_machine

FIGURES = {
    "cpu.lanes": 4,
    "cpu.gemm_flops_per_s": 8e9,
    "cpu.other_flops_per_s": 4e9,
    "cpu.memory_bytes_per_s": 2e9,
    "cpu.core_memory_bytes_per_s": 1e9,
    "cpu.launch_s": 0.5,
    "cpu.active_w": 20,
    "cpu.idle_w": 3,
    "igpu.gemm_flops_per_s": 16e9,
    "igpu.other_flops_per_s": 32e9,
    "igpu.memory_bytes_per_s": 4e9,
    "igpu.launch_s": 0.25,
    "igpu.active_w": 10,
    "igpu.idle_w": 2,
    "npu.gemm_flops_per_s": 64e9,
    "npu.memory_bytes_per_s": 1e9,
    "npu.first_dispatch_s": 1.0,
    "npu.gemm_fixed_s": 0.5,
    "npu.active_w": 5,
    "npu.idle_w": 1,
    "links.igpu.latency_s": 0.125,
    "links.npu.latency_s": 0.25,
    "links.npu.bytes_per_s": 8e9,
    "contention.cpu_beside_igpu": 1.5,
    "contention.cpu_beside_npu": 2,
    "contention.npu_beside_cpu": 1.25,
}


def plain() -> MachineCost:
    """A machine of round numbers."""
    machine = load_machine("phoenix")
    for path, value in FIGURES.items():
        machine = machine.with_value(path, value)
    return MachineCost(machine)


@pytest.mark.parametrize(
    ("device", "op", "flops", "nbytes", "seconds"),
    [
        ("cpu", "matmul", 2e9, 0, 0.5 + 1),  # a lane has 8e9 / 4 FLOP/s
        ("cpu", "matmul", 2e9, 1e9, 0.5 + 2),  # and 2e9 / 4 bytes/s: the longer of the two
        ("cpu", "gelu", 2e9, 0, 0.5 + 2),
        ("cpu", "attention", 0, 0, 0.5),
        ("cpu", "npu_pack", 0, 1e9, 0.5 + 1),  # host work has a core's own bandwidth
        ("cpu", "npu_unpack", 4e9, 1e9, 0.5 + 4),  # but a lane's FLOPs
        ("igpu", "matmul", 16e9, 0, 0.25 + 1),  # one lane: all of the device
        ("igpu", "gelu", 16e9, 0, 0.25 + 0.5),
        ("igpu", "gelu", 0, 4e9, 0.25 + 1),
        ("npu", "npu_gemm", 64e9, 0, 1 + 0.5 + 1),
        ("npu", "npu_gemm", 64e9, 3e9, 1 + 0.5 + 3),
    ],
)
def test_work_takes_launch_and_the_longer_of_flops_and_bytes(
    device: str, op: str, flops: float, nbytes: float, seconds: float
) -> None:
    assert plain().work_s(device, op, flops, nbytes) == pytest.approx(seconds, rel=1e-12)


def test_all_lanes_together_have_the_rate_of_the_device() -> None:
    cost = plain()
    config = ModelConfig(vocab_size=64, seq_len=8, layers=1, heads=2, channels=16)
    graph = training_step(config, 2, 8)
    node = next(node for node in graph.nodes if node.op.name == "matmul")
    whole_device = max(node.flops / 8e9, node.nbytes / 2e9)
    assert cost.node_s("cpu", node, 4) == pytest.approx(0.5 + whole_device, rel=1e-12)
    assert cost.node_s("cpu", node) == pytest.approx(0.5 + 4 * whole_device, rel=1e-12)


@pytest.mark.parametrize(("parts", "seconds"), [(1, 1.0), (2, 0.5), (4, 0.5), (8, 0.25)])
def test_parts_of_host_work_share_the_bandwidth(parts: int, seconds: float) -> None:
    """One core has 1e9 bytes/s, two have all there is (2e9), and eight parts are four at a time."""
    assert plain().work_s("cpu", "npu_pack", 0, 1e9 / parts, parts) == pytest.approx(0.5 + seconds)
    assert plain().work_s("cpu", "gelu", 0, 1e9 / parts, parts) == pytest.approx(0.5 + 2 / parts)


def test_the_npu_does_nothing_but_gemm() -> None:
    with pytest.raises(InputError, match="no machine describes gelu on the npu: it runs npu_gemm"):
        plain().work_s("npu", "gelu", 1, 1)


def test_transfers_copies_and_watts() -> None:
    cost = plain()
    assert cost.transfer_s("npu", 2e9) == 0.25 + 0.25
    assert cost.transfer_s("npu", 0) == 0.25
    assert cost.transfer_s("igpu", 2e9) == 0.125  # shared memory: nothing is copied
    assert cost.copy_s(1e9) == 0.5 + 2  # read and written, by one core
    assert cost.idle_w == 3 + 2 + 1
    assert [cost.lane_w(device) for device in ("cpu", "igpu", "npu")] == [5, 10, 5]
    assert [cost.lanes(device) for device in ("cpu", "igpu", "npu")] == [4, 1, 1]


def test_a_link_that_copies_takes_its_bytes() -> None:
    machine = load_machine("phoenix")
    link = machine.links.igpu
    separate = type(link)(False, link.latency_s, link.bytes_per_s)
    links = type(machine.links)(separate, machine.links.npu)
    parts = {name: getattr(machine, name) for name in machine.__dataclass_fields__}
    cost = MachineCost(type(machine)(**{**parts, "links": links}))
    assert cost.transfer_s("igpu", 13.3e9) == pytest.approx(1 + 10e-6, rel=1e-12)


def test_slowdowns_multiply_and_nobody_slows_itself() -> None:
    cost = plain()
    assert cost.slowdown("cpu", ()) == 1
    assert cost.slowdown("cpu", ("cpu",)) == 1
    assert cost.slowdown("cpu", ("igpu",)) == 1.5
    assert cost.slowdown("cpu", ("npu", "cpu", "igpu")) == 3
    assert cost.slowdown("npu", {"cpu"}) == 1.25


@pytest.mark.parametrize("call", ["lane_w", "lanes"])
def test_a_device_that_no_machine_has_is_named(call: str) -> None:
    with pytest.raises(InputError, match="no machine describes a device 'gpu': there are cpu, ig"):
        getattr(plain(), call)("gpu")
    with pytest.raises(InputError, match="cpu has no link"):
        plain().transfer_s("cpu", 1)


@pytest.mark.parametrize("generation", DESIGNS)
@pytest.mark.parametrize("size", [(1, 1, 1), (256, 768, 2304), (300, 100, 700), (1024, 64, 96)])
def test_the_traffic_is_what_the_designs_dmas_move(
    generation: str, size: tuple[int, int, int]
) -> None:
    design = DESIGNS[generation]
    padded = design.padded(GemmSize(*size))
    tasks = [each for each in gemm_program(design, padded).commands if isinstance(each, DmaTask)]
    flops, nbytes = npu_gemm_work(design, GemmSize(*size))
    assert nbytes == sum(task.nbytes for task in tasks)
    assert flops == padded.flops >= GemmSize(*size).flops


def test_a_product_on_the_npu_costs_its_padding() -> None:
    cost = plain()
    config = ModelConfig(vocab_size=64, seq_len=8, layers=1, heads=2, channels=16)
    node = next(n for n in training_step(config, 2, 8).nodes if n.op.name == "matmul")
    design = DESIGNS[NPU1.name]
    (gemm,) = [n for n in expand_matmul(node, design) if n.op.name == "npu_gemm"]
    assert "npu_gemm" in kernels(NPU1)
    flops, nbytes = 2 * 256 * 64 * 128, 2 * 256 * 64 + 2 * 64 * 128 + 4 * 256 * 128  # one granule
    assert node.flops < flops
    assert cost.node_s("npu", gemm) == pytest.approx(1.5 + max(flops / 64e9, nbytes / 1e9))


@pytest.mark.parametrize(
    ("size", "microseconds"),
    [
        ((256, 512, 512), 227),
        ((512, 512, 1024), 466),
        ((512, 1024, 1024), 798),
        ((1024, 1024, 1024), 1418),
    ],
)
def test_phoenix_foretells_published_products(
    size: tuple[int, int, int], microseconds: float
) -> None:
    """Of amd/IRON's plain design (the source of the figures), whose tiles are wider than ours.

    The fit of the profile is right to -5 and +2 %; ours re-reads more, which bandwidth hides here.
    """
    work = npu_gemm_work(DESIGNS["npu1"], GemmSize(*size))
    foretold = MachineCost(load_machine("phoenix")).npu_gemm_s(*work)
    assert 1e6 * foretold == pytest.approx(microseconds, rel=0.06)


def test_on_battery_the_same_work_takes_longer() -> None:
    mains, battery = (MachineCost(load_machine("phoenix", p)) for p in ("mains", "battery"))
    assert battery.work_s("cpu", "matmul", 1e9, 0) == pytest.approx(
        5e-6 + (mains.work_s("cpu", "matmul", 1e9, 0) - 5e-6) / 0.655
    )
    assert mains.name == "phoenix on mains"
    assert battery.name == "phoenix on battery"
