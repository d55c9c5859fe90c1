"""Predicts seconds and joules on a described machine, from its profile's figures.

Every figure is used as `schema` says it is meant; beyond that, this is decided here:

- A lane has its share of its device: rates and active power divided by the device's lanes. So a
  node on one lane of eight takes eight times as long as on all of them, less the launches.
- What the host does for other devices (packs and unpacks, saved states) has a core's own memory
  bandwidth, or its share of the CPU's where parts of one node side by side get less; all else is as
  on a lane. Several such nodes at once, or beside busy lanes, are not slowed down by each other:
  no source says by how much, so a plan that does much of it at once is foretold too fast.
- Beside two busy devices, both slowdowns apply, multiplied.
- A training step is one of many: no NPU command is the first after a pause (`wake_up_s`), and one
  design serves all sizes, so the array is never set up anew.

>>> from aieflow.profiles.machine_file import load_machine
>>> phoenix = MachineCost(load_machine("phoenix"))
>>> round(1e3 * phoenix.npu_gemm_s(flops=2 * 1024**3, nbytes=20 << 20), 3)  # milliseconds
1.451
"""

from collections.abc import Collection

from aieflow.ops.errors import InputError
from aieflow.ops.graph import Node
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.design import (
    IN_NBYTES,
    OUT_NBYTES,
    GemmDesign,
    GemmSize,
    column_blocks,
    row_blocks,
)
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.ops.npu.ops import GEMM, gemm_design_of, gemm_size_of
from aieflow.profiles.cost import RooflineCost
from aieflow.profiles.schema import (
    CpuProfile,
    DeviceName,
    IgpuProfile,
    LinkProfile,
    MachineProfile,
    NpuProfile,
)

HOST: DeviceName = "cpu"
DEVICES: tuple[DeviceName, ...] = ("cpu", "igpu", "npu")
COPY = "copy"  # from one place of the host's memory to another
HOST_WORK = frozenset({*CONVERSIONS, COPY})  # done for other devices


class MachineCost:
    """The costs of a described machine; durations are of one lane, with nothing beside it."""

    def __init__(self, profile: MachineProfile) -> None:
        self.profile = profile
        self._parts: dict[DeviceName, CpuProfile | IgpuProfile | NpuProfile] = {
            "cpu": profile.cpu,
            "igpu": profile.igpu,
            "npu": profile.npu,
        }
        self._node_s: dict[tuple[str, Node, int], float] = {}  # so parts are reckoned once

    @property
    def name(self) -> str:
        """The machine's name and its power source."""
        return f"{self.profile.name} on {self.profile.power}"

    @property
    def idle_w(self) -> float:
        """Watts of all devices together, all the time."""
        return sum(self._part(device).idle_w.value for device in DEVICES)

    def lanes(self, device: str) -> int:
        """How many compute lanes a device has."""
        return int(self._part(device).lanes.value)

    def lane_w(self, device: str) -> float:
        """Watts that one busy lane of a device takes on top of the idle power."""
        return self._part(device).active_w.value / self.lanes(device)

    def node_s(self, device: str, node: Node, parts: int = 1) -> float:
        """Seconds of one of `parts` equal parts of a node on one lane of a device."""
        key = device, node, parts
        if key not in self._node_s:
            if node.op.name == GEMM.name:
                flops, nbytes = npu_gemm_work(gemm_design_of(node.attrs), gemm_size_of(node.attrs))
            else:
                flops, nbytes = node.flops, node.nbytes
            work = flops / parts, nbytes / parts
            self._node_s[key] = self.work_s(device, node.op.name, *work, parts)
        return self._node_s[key]

    def work_s(self, device: str, op: str, flops: float, nbytes: float, parts: int = 1) -> float:
        """Seconds of so much work of an op on one lane of a device, one of `parts` side by side.

        Of `npu_gemm`, padding and re-reads are to be counted in: see `npu_gemm_work`. Raises
        InputError for another op on the NPU, of which nothing is known.
        """
        if op == GEMM.name:
            return self.npu_gemm_s(flops, nbytes)
        part, lanes = self._part(device), self.lanes(device)
        if isinstance(part, NpuProfile):
            raise InputError(f"no machine describes {op} on the npu: it runs {GEMM.name} alone")
        rate = part.gemm_flops_per_s if op == MATMUL.name else part.other_flops_per_s
        memory = part.memory_bytes_per_s.value
        if isinstance(part, CpuProfile) and op in HOST_WORK:
            bandwidth = min(part.core_memory_bytes_per_s.value, memory / min(parts, lanes))
        else:
            bandwidth = memory / lanes
        roofline = RooflineCost(rate.value / lanes, bandwidth, part.launch_s.value)
        return roofline.seconds(flops, nbytes)

    def npu_gemm_s(self, flops: float, nbytes: float) -> float:
        """Seconds of one GEMM command, sent alone: `nbytes` is what its DMAs move."""
        npu = self.profile.npu
        lanes = self.lanes("npu")
        rates = npu.gemm_flops_per_s.value / lanes, npu.memory_bytes_per_s.value / lanes
        begin_s = npu.first_dispatch_s.value + npu.gemm_fixed_s.value
        return RooflineCost(*rates, begin_s).seconds(flops, nbytes)

    def transfer_s(self, device: str, nbytes: float) -> float:
        """Seconds to bring bytes from the host's side to a device's or back; the same both ways."""
        link = self._link(device)
        copied = 0.0 if link.is_shared else nbytes
        return link.latency_s.value + copied / link.bytes_per_s.value

    def copy_s(self, nbytes: float) -> float:
        """Seconds in which one core copies bytes from one place of the host's memory to another."""
        return self.work_s(HOST, COPY, 0.0, 2 * nbytes)

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """How many times longer a device takes while `others` are busy; itself does not count."""
        factor = 1.0
        for other in DEVICES:
            if other in others and other != device:
                factor *= self.profile.contention.slowdown(_known(device), other).value
        return factor

    def _part(self, device: str) -> CpuProfile | IgpuProfile | NpuProfile:
        return self._parts[_known(device)]

    def _link(self, device: str) -> LinkProfile:
        links = self.profile.links
        if device not in ("igpu", "npu"):
            raise InputError(f"{device} has no link: igpu and npu have one to the host's memory")
        return links.igpu if device == "igpu" else links.npu


def npu_gemm_work(design: GemmDesign, size: GemmSize) -> tuple[int, int]:
    """FLOPs and DMA bytes of a product on the array: padded, A and B read again for each block."""
    padded = design.padded(size)
    a_nbytes = IN_NBYTES * padded.M * padded.K * column_blocks(design, padded)
    b_nbytes = IN_NBYTES * padded.K * padded.N * row_blocks(design, padded)
    return padded.flops, a_nbytes + b_nbytes + OUT_NBYTES * padded.M * padded.N


def _known(device: str) -> DeviceName:
    """A device's name; raises InputError for one that no machine has."""
    for name in DEVICES:
        if name == device:
            return name
    raise InputError(f"no machine describes a device {device!r}: there are {', '.join(DEVICES)}")
