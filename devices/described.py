"""Devices of a described machine: enough of them to plan for, and nothing that could run.

They have the names, lanes, kernels and reach of the real ones, so that a plan for them is the plan
that the machine itself would follow; whoever asks one for memory or for a bound call is refused.
"""

from collections.abc import Callable, Mapping

from aieflow.devices.base import Buffer, Device
from aieflow.ops.cpu.catalogue import KERNELS
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, Kernel
from aieflow.ops.npu import catalogue as npu_catalogue
from aieflow.ops.npu.generation import GENERATIONS
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.ops.opencl.catalogue import kernels_for
from aieflow.ops.opencl.launch import Traits

# Of an AMD GPU, as OpenCL tells them. They choose the variant of a product, of which a plan knows
# the workspace alone.
GPU = Traits(
    is_cpu=False,
    local_nbytes=65536,
    max_group=256,
    compute_units=12,
    vector_width=1,
    has_fp16=True,
)


class DescribedDevice(Device):
    """A device by name, lanes and kernels; `memory_nbytes` is what a plan may take of it."""

    def __init__(
        self,
        name: str,
        lanes: tuple[str, ...],
        kernels: Mapping[str, Kernel],
        memory_nbytes: int,
        copy_lanes: tuple[str, str] | None = None,
        is_separate: bool = False,
    ) -> None:
        self._name = name
        self._lanes = lanes
        self._kernels = kernels
        self._memory_nbytes = memory_nbytes
        self._copy_lanes = copy_lanes
        self._is_separate = is_separate

    @property
    def name(self) -> str:
        """`cpu`, `igpu` or `npu`."""
        return self._name

    @property
    def identity(self) -> str:
        """The name, and that it is described."""
        return f"{self._name} (described: it runs nothing)"

    @property
    def is_emulated(self) -> bool:
        """True: it is no hardware."""
        return True

    @property
    def lanes(self) -> tuple[str, ...]:
        """As given."""
        return self._lanes

    @property
    def copy_lanes(self) -> tuple[str, str] | None:
        """As given."""
        return self._copy_lanes

    @property
    def is_separate(self) -> bool:
        """As given."""
        return self._is_separate

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """As given."""
        return self._kernels

    def allocate(self, nbytes: int) -> Buffer:
        """Refused: raises DeviceError."""
        raise self._refusal("allocates no memory")

    def free_nbytes(self) -> int:
        """All of the memory given."""
        return self._memory_nbytes

    def bind(self, node: Node, call: Call) -> Callable[[], None]:
        """Refused: raises DeviceError."""
        raise self._refusal(f"cannot run {node.name}")

    def close(self) -> None:
        """Nothing is held."""

    def _refusal(self, what: str) -> DeviceError:
        return DeviceError(
            f"{self.name} is described and {what}: a plan for it can be simulated, not executed"
        )


def described_cpu(lanes: int, memory_nbytes: int) -> DescribedDevice:
    """A CPU that works on the host side."""
    names = tuple(f"cpu.compute.{lane}" for lane in range(lanes))
    return DescribedDevice("cpu", names, {**KERNELS, **CONVERSIONS}, memory_nbytes)


def described_igpu(lanes: int, memory_nbytes: int) -> DescribedDevice:
    """An iGPU that works in the host's memory, after a transfer each way."""
    kernels = kernels_for(GPU)
    return DescribedDevice(
        "igpu", _lane_names("igpu", lanes), kernels, memory_nbytes, _copy_lanes("igpu")
    )


def described_npu(generation: str, lanes: int, memory_nbytes: int) -> DescribedDevice:
    """An NPU of a generation ("npu1", "npu2") with its standard design, in buffers of its own."""
    kernels = npu_catalogue.kernels(GENERATIONS[generation])
    return DescribedDevice(
        "npu",
        _lane_names("npu", lanes),
        kernels,
        memory_nbytes,
        _copy_lanes("npu"),
        is_separate=True,
    )


def _lane_names(device: str, lanes: int) -> tuple[str, ...]:
    """As the real devices call them while they have one."""
    one = f"{device}.compute"
    return (one,) if lanes == 1 else tuple(f"{one}.{lane}" for lane in range(lanes))


def _copy_lanes(device: str) -> tuple[str, str]:
    return f"{device}.copy.in", f"{device}.copy.out"
