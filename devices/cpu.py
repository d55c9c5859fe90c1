"""The CPU: one compute lane for each core, one thread pool.

The lanes are the only threads that compute. BLAS is held to one thread in each call, because two
pools that spin beside each other cost more than they bring.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from threadpoolctl import threadpool_limits

from aieflow.devices.base import PAGE, Buffer, Device
from aieflow.ops.cpu.catalogue import KERNELS
from aieflow.ops.cpu.check import MATMUL_CHECK_KERNEL
from aieflow.ops.cpu.gemm import workspace_nbytes
from aieflow.ops.cpu.matmul import MATMUL
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.ops.op import Array

ALL_KERNELS = {**KERNELS, **CONVERSIONS, MATMUL_CHECK_KERNEL.op.name: MATMUL_CHECK_KERNEL}
CGROUP = Path("/sys/fs/cgroup")  # as a process in a container sees its own
GEMM_SIZE = 1536  # of the matrices that the GEMM rate is measured with
COPY_NBYTES = 64 << 20  # of the array that a lane's bandwidth is measured with, at most
ALL_COPIES_NBYTES = 1 << 30  # of those of all lanes together, at most


def container_free_nbytes(cgroup: Path) -> int:
    """Bytes that the limit of a control group leaves (cgroup v2); without a limit, very many."""
    try:
        limit = int((cgroup / "memory.max").read_text(encoding="ascii"))
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or its limit is the word "max"
        return sys.maxsize
    return max(0, limit - used)


def usable_cores() -> int:
    """Number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class CpuDevice(Device):
    """The host's CPU; `lanes` compute lanes (default: one for each usable core).

    `identity` is the processor's name, where it is known.
    """

    def __init__(self, lanes: int | None = None, identity: str = "cpu") -> None:
        self._identity = identity
        self._lanes = tuple(f"cpu.compute.{i}" for i in range(lanes or usable_cores()))
        self._limits = threadpool_limits(1, user_api="blas")

    @property
    def name(self) -> str:
        """`cpu`."""
        return "cpu"

    @property
    def identity(self) -> str:
        """The processor's name, or `cpu`."""
        return self._identity

    @property
    def lanes(self) -> tuple[str, ...]:
        """`cpu.compute.0`, ...: one for each core used."""
        return self._lanes

    @property
    def kernels(self) -> Mapping[str, HostKernel]:
        """The kernels of `ops.cpu`, and what it does for other devices: conversions, checks."""
        return ALL_KERNELS

    def allocate(self, nbytes: int) -> Buffer:
        """Host memory; pages are taken from the system when they are first written."""
        try:
            data = np.empty(nbytes + PAGE, np.uint8)
        except MemoryError:
            raise DeviceError(f"cpu: no memory for a buffer of {nbytes} bytes") from None
        start = -data.ctypes.data % PAGE
        return Buffer(self.name, data[start : start + nbytes])

    def free_nbytes(self) -> int:
        """Memory that can be had without swapping, or that the container leaves."""
        return min(int(psutil.virtual_memory().available), container_free_nbytes(CGROUP))

    def bind(self, node: Node, call: Call) -> Callable[[], None]:
        """The kernel bound to its operands; calls release the GIL."""
        return ALL_KERNELS[node.op.name].bind(call)

    def close(self) -> None:
        """Give BLAS its threads back."""
        self._limits.restore_original_limits()


@dataclass(frozen=True, slots=True)
class Rates:
    """What a CPU reaches with a number of lanes."""

    lanes: int
    gemm_flops_per_s: float
    bytes_per_s: float  # read plus written


def measure_rates(device: CpuDevice, rounds: int = 5) -> Rates:
    """Best rates of `rounds`: square sgemm and array copy, on all lanes at once."""
    lanes = len(device.lanes)
    size = min(COPY_NBYTES, ALL_COPIES_NBYTES // lanes) // 4
    pairs = [(np.ones(size, np.float32), np.zeros(size, np.float32)) for _ in range(lanes)]
    copy_s = min(_together([_copy(*pair) for pair in pairs]) for _ in range(rounds))
    return Rates(lanes, measure_gemm_rate(device, rounds), lanes * 2 * 4 * size / copy_s)


def measure_gemm_rate(device: CpuDevice, rounds: int = 5) -> float:
    """Best FLOP/s of `rounds` square sgemm on all lanes at once; takes 9 MiB for each lane."""
    lanes = len(device.lanes)
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((GEMM_SIZE, GEMM_SIZE), np.float32) for _ in range(2))
    outs = [np.empty_like(a) for _ in range(lanes)]
    gemm_s = min(_together([_gemm(a, b, out) for out in outs]) for _ in range(rounds))
    return lanes * 2 * GEMM_SIZE**3 / gemm_s


def _gemm(a: Array, b: Array, out: Array) -> Callable[[], None]:
    workspace = np.empty(workspace_nbytes(*a.shape), np.uint8)
    return MATMUL.bind(Call((a, b), (out,), {}, workspace))


def _copy(source: Array, target: Array) -> Callable[[], None]:
    return lambda: np.copyto(target, source)


def _together(calls: list[Callable[[], None]]) -> float:
    """Seconds that the calls take when each has a thread of its own."""
    barrier = threading.Barrier(len(calls) + 1)

    def run(call: Callable[[], None]) -> None:
        barrier.wait()
        call()

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    barrier.wait()
    begin = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begin
