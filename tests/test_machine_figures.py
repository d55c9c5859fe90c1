"""What the figures of the shipped machines foretell, held against published tables.

The tables are written down here a second time, so that a slip in a machine's file shows.
"""

import pytest

from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.profiles.cost import RooflineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.profiles.schema import MachineProfile, NpuProfile

# bf16 GEMMs of the plain IRON design with 64 x 64 x 64 tiles on XDNA1: M, K, N, microseconds
# (amd/IRON, flm/gemm/README.md at 028e9cd9).
PLAIN_IRON = [
    (256, 512, 512, 227),
    (512, 512, 1024, 466),
    (512, 1024, 1024, 798),
    (1024, 1024, 1024, 1418),
    (1024, 2048, 1024, 2738),
    (512, 1536, 1536, 1699),
    (1024, 2560, 2560, 8232),
]
# GPT-2 124M, padded vocabulary: K, N, how many.
GPT2_GEMMS = [(768, 2304, 12), (768, 768, 12), (768, 3072, 12), (3072, 768, 12), (768, 50304, 1)]


def gemm_s(npu: NpuProfile, flops: float, traffic: float = 0.0) -> float:
    """Seconds of one GEMM sent alone."""
    return (
        npu.first_dispatch_s.value
        + npu.gemm_fixed_s.value
        + max(flops / npu.gemm_flops_per_s.value, traffic / npu.memory_bytes_per_s.value)
    )


def traffic_nbytes(M: int, K: int, N: int, rows: int, columns: int, out_nbytes: int) -> float:
    """What the DMAs move (arXiv:2512.13282): A once for each block of columns, B of rows."""
    return M * K * 2 * (N / columns) + K * N * 2 * (M / rows) + M * N * out_nbytes


def test_phoenix_foretells_the_plain_iron_gemms() -> None:
    npu = load_machine("phoenix").npu
    errors = []
    for M, K, N, measured_us in PLAIN_IRON:
        # 4 x 4 cores with 64 x 64 tiles, bf16 results: the memory must not bind where the rate of
        # the fit holds.
        nbytes = traffic_nbytes(M, K, N, rows=256, columns=256, out_nbytes=2)
        predicted = gemm_s(npu, 2 * M * K * N, nbytes)
        assert predicted == gemm_s(npu, 2 * M * K * N)
        errors.append(predicted / (measured_us * 1e-6) - 1)
    # The fit's own residuals are -5 to +2 %, published rounded to a per cent.
    assert -0.055 < min(errors) < -0.04
    assert 0.01 < max(errors) < 0.025


def test_phoenix_foretells_a_training_step_of_npu_gemms() -> None:
    npu = load_machine("phoenix").npu
    step_s = sum(
        3 * count * gemm_s(npu, 2 * 256 * K * N) for K, N, count in GPT2_GEMMS
    )  # forward, dX and dW have the same FLOPs
    assert sum(3 * count for *_, count in GPT2_GEMMS) == 147
    # About 135 ms is a sum of rounded terms (21 + 115): 2 %.
    assert step_s == pytest.approx(0.135, rel=0.02)


def test_strix_foretells_a_sweep_it_was_not_fitted_to() -> None:
    npu = load_machine("strix").npu
    # vegah/Npu-Embeddings, task 10: K=1536, N=384, 64 x 64 x 48 tiles on 4 x 8 cores, fp32 results
    published = {512: (325.9, 0.111), 1024: (412.5, -0.055), 2048: (723.5, 0.002)}
    published[4096] = (1275.8, -0.014)
    for M, (measured_us, error) in published.items():
        nbytes = traffic_nbytes(M, 1536, 384, rows=256, columns=384, out_nbytes=4)
        predicted_us = gemm_s(npu, 2 * M * 1536 * 384, nbytes) * 1e6
        # Errors are published to 0.1 %, the rate to 0.15 %.
        assert measured_us / predicted_us - 1 == pytest.approx(error, abs=0.0025)


def test_strix_foretells_buffer_syncs() -> None:
    link = load_machine("strix").links.npu
    # amd/xdna-driver, pull request 1541: bytes, microseconds
    published = {4 << 10: 0.6, 32 << 10: 1.1, 1 << 20: 17.1, 16 << 20: 264, 64 << 20: 1055}
    for nbytes, measured_us in published.items():
        predicted_us = (link.latency_s.value + nbytes / link.bytes_per_s.value) * 1e6
        # Two parameters for five points that span four decades; the small ones are rounded to 8 %.
        assert predicted_us == pytest.approx(measured_us, rel=0.03, abs=0.05)


def test_the_cpu_stays_below_its_peak() -> None:
    peak = 8 * 32 * 4.4e9  # cores, FLOP in a cycle (two 256-bit FMA), clock
    gemm = load_machine("phoenix").cpu.gemm_flops_per_s
    assert gemm.high == pytest.approx(peak, rel=0.001)  # written with four digits
    assert gemm.value < peak
    paper = load_machine("phoenix-paper").cpu.gemm_flops_per_s
    assert paper.high is not None
    assert paper.high < gemm.value  # plain loops against a BLAS


def test_the_two_igpus_differ_by_units_and_clock() -> None:
    phoenix, strix = load_machine("phoenix").igpu, load_machine("strix").igpu
    ratio = (16 * 2.9) / (12 * 2.7)  # compute units x GHz
    for name in ("gemm_flops_per_s", "other_flops_per_s"):
        # Rounded to two digits in the file.
        assert getattr(strix, name).value == pytest.approx(
            ratio * getattr(phoenix, name).value, rel=0.03
        )


def test_strix_draws_what_was_measured_of_the_package() -> None:
    machine = load_machine("strix")
    idle = machine.cpu.idle_w.value + machine.igpu.idle_w.value + machine.npu.idle_w.value
    assert idle == 15.0
    assert idle + machine.cpu.active_w.value == 46.0
    # The NPU's soak is 24.2 W in all, a driver thread on the CPU included.
    assert idle < idle + machine.npu.active_w.value < 24.2


@pytest.mark.parametrize(
    ("name", "generation", "contexts", "reconfiguration_s"),
    [("phoenix", "npu1", 6, 3.4e-3), ("strix", "npu2", 16, 4.9e-3)],
)
def test_the_constants_of_the_driver(
    name: str, generation: str, contexts: int, reconfiguration_s: float
) -> None:
    npu = load_machine(name).npu
    assert npu.generation == generation
    assert (npu.contexts.value, npu.commands_in_flight.value) == (contexts, 4)
    assert npu.reconfiguration_s.value == reconfiguration_s
    assert npu.idle_before_sleep_s.value == 5.0
    assert load_machine(name).links.igpu.is_shared
    assert not load_machine(name).links.npu.is_shared


def cpu_step_s(machine: MachineProfile) -> float:
    """Seconds of a training step of GPT-2 124M on the CPU alone, B=4, T=64."""
    cpu = machine.cpu
    gemm, other = (
        RooflineCost(rate.value, cpu.memory_bytes_per_s.value, cpu.launch_s.value)
        for rate in (cpu.gemm_flops_per_s, cpu.other_flops_per_s)
    )
    return sum(
        (gemm if node.op.name == "matmul" else other).seconds(node.flops, node.nbytes)
        for node in training_step(PRESETS["124M"], 4, 64).nodes
    )


@pytest.mark.parametrize(("power", "gflops_per_s"), [("mains", 145), ("battery", 95)])
def test_phoenix_paper_foretells_the_papers_cpu_steps(power: str, gflops_per_s: int) -> None:
    # 6 x parameters x tokens = 191 GFLOP. Launches, 5 us each, do not scale, and the anchors are
    # rounded to two digits: 1 %. The paper's step sets all gradients to zero first, ours need not.
    machine, parameters = load_machine("phoenix-paper", power), PRESETS["124M"].parameters
    flops = 6 * parameters * 256
    zeroed_s = 4 * parameters / machine.cpu.memory_bytes_per_s.value
    step_s = cpu_step_s(machine) + zeroed_s
    assert flops / step_s / 1e9 == pytest.approx(gflops_per_s, rel=0.01)
