"""The NPU of a described machine, emulated: XRT's emulator with the latencies of a profile."""

from pathlib import Path

from aieflow.devices.npu import DEADLINE_S, NpuDevice
from aieflow.devices.xclbin import emulated_xclbin, write_xclbin
from aieflow.devices.xrt_emulator import XrtEmulator
from aieflow.devices.xrt_emulator_clock import Latencies, Mode
from aieflow.ops.npu.design import DESIGNS, GemmSize
from aieflow.profiles.schema import MachineProfile


def latencies_of(profile: MachineProfile) -> Latencies:
    """What the emulator's clock spends; a command's fixed part is counted with its dispatch."""
    npu, link = profile.npu, profile.links.npu
    return Latencies(
        dispatch_s=npu.first_dispatch_s.value + npu.gemm_fixed_s.value,
        further_dispatch_s=npu.further_dispatch_s.value + npu.gemm_fixed_s.value,
        flops_per_s=npu.gemm_flops_per_s.value,
        bytes_per_s=npu.memory_bytes_per_s.value,
        sync_s=link.latency_s.value,
        sync_bytes_per_s=link.bytes_per_s.value,
        switch_s=npu.context_switch_s.value,
        wake_up_s=npu.wake_up_s.value,
        idle_after_s=npu.idle_before_sleep_s.value,
        noise=profile.noise.npu.value,
    )


def emulated_xrt(profile: MachineProfile, mode: Mode = "counted") -> XrtEmulator:
    """The XRT of a described machine; `mode` says whether its latencies are waited for."""
    design = DESIGNS[profile.npu.generation]
    return XrtEmulator(
        design.generation,
        latencies_of(profile),
        mode,
        contexts=int(profile.npu.contexts.value),
        memory_nbytes=int(profile.npu.memory_nbytes.value),
    )


def open_emulated_npu(
    profile: MachineProfile,
    folder: Path,
    xrt: XrtEmulator | None = None,
    deadline_s: float = DEADLINE_S,
) -> NpuDevice:
    """The emulated NPU; its xclbin is written into `folder`. Raises DeviceError."""
    npu = profile.npu
    design = DESIGNS[npu.generation]
    file = folder / f"{npu.generation}.xclbin"
    write_xclbin(file, emulated_xclbin(design))
    emulator = emulated_xrt(profile) if xrt is None else xrt

    def expected_s(size: GemmSize) -> float:
        fixed = npu.first_dispatch_s.value + npu.gemm_fixed_s.value + npu.wake_up_s.value
        return fixed + size.flops / npu.gemm_flops_per_s.value

    return NpuDevice(
        emulator,
        file,
        design,
        memory_nbytes=int(npu.memory_nbytes.value),
        expected_s=expected_s,
        deadline_s=deadline_s,
    )
