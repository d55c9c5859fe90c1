"""XRT without hardware: an object shaped like the module `pyxrt`, and an NPU behind it.

    xrt = XrtEmulator(NPU1)
    device = xrt.device(0)

Names, signatures, exceptions and traps are those of pyxrt 2.20 as the runtime's facts list them:
`bo.map` and `sync` with sides that do not follow each other, group ids that hold the context,
`kernel(...)` that drops what it cannot convert, `wait` that never raises. Arithmetic is the real
design's (bf16 in, fp32 sums), time is modelled: see `xrt_emulator_clock`. What identifies it says
"emulated".

Where this differs from hardware: a sync moves exactly its range, not whole cache lines; a bad
command fails at once instead of after two seconds; what hardware leaves undefined fails.
"""

import weakref
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from aieflow.devices.xclbin import Bank, Xclbin, read_any_design, read_xclbin
from aieflow.devices.xrt_emulator_buffers import (
    NO_BANK,
    BufferFlags,
    EmulatedBuffer,
    Memory,
    SyncDirection,
    new_buffer,
    sub_buffer,
)
from aieflow.devices.xrt_emulator_clock import EmulatedClock, Latencies, Mode
from aieflow.devices.xrt_emulator_commands import (
    CommandQueue,
    CommandState,
    EmulatedArray,
    EmulatedRun,
    EmulatedRunlist,
    Setup,
)
from aieflow.devices.xrt_emulator_faults import CallKind, Fault, Faults
from aieflow.ops.errors import InputError
from aieflow.ops.npu.generation import Generation

CONTEXTS = {"npu1": 6, "npu2": 16}
CHIPS = {"npu1": "NPU Phoenix", "npu2": "NPU Strix"}
MEMORY_NBYTES = 8 << 30


class DeviceInfo:
    """`pyxrt.xrt_info_device`, as far as it is answered."""

    name = "name"
    bdf = "bdf"


@dataclass(frozen=True, slots=True)
class EmulatedUuid:
    """`pyxrt.uuid`."""

    value: UUID

    def to_string(self) -> str:
        """The usual text."""
        return str(self.value)


@dataclass(frozen=True, slots=True)
class EmulatedKernelInfo:
    """`pyxrt.xclbin.xclbinkernel`."""

    xclbin: Xclbin

    def get_name(self) -> str:
        """The kernel's name."""
        return self.xclbin.kernel

    def get_num_args(self) -> int:
        """The number of its arguments."""
        return len(self.xclbin.arguments)


@dataclass(frozen=True, slots=True)
class EmulatedBankInfo:
    """`pyxrt.xclbin.xclbinmem`."""

    bank: Bank
    index: int

    def get_tag(self) -> str:
        """The bank's name."""
        return self.bank.tag

    def get_base_address(self) -> int:
        """Where it begins."""
        return self.bank.base

    def get_size_kb(self) -> int:
        """Its size in KiB."""
        return self.bank.nbytes >> 10

    def get_index(self) -> int:
        """Its number."""
        return self.index


class EmulatedXclbin:
    """`pyxrt.xclbin`."""

    def __init__(self, path: object) -> None:
        if not isinstance(path, str):
            raise TypeError(f"xclbin(): incompatible constructor arguments: {path!r} is no str")
        try:
            self.content = read_xclbin(Path(path))
        except InputError as error:
            raise RuntimeError(f"failed to open xclbin: {error}") from None

    def get_uuid(self) -> EmulatedUuid:
        """What `hw_context` is given."""
        return EmulatedUuid(self.content.uuid)

    def get_kernels(self) -> list[EmulatedKernelInfo]:
        """The one kernel."""
        return [EmulatedKernelInfo(self.content)]

    def get_xsa_name(self) -> str:
        """The platform."""
        return self.content.platform

    def get_mems(self) -> list[EmulatedBankInfo]:
        """The memory banks."""
        return [EmulatedBankInfo(bank, index) for index, bank in enumerate(self.content.banks)]


class EmulatedDevice:
    """`pyxrt.device`."""

    def __init__(self, emulator: "XrtEmulator", index: int) -> None:
        self.emulator = emulator
        self.registered: dict[UUID, Xclbin] = {}
        self._index = index

    def register_xclbin(self, xclbin: EmulatedXclbin) -> EmulatedUuid:
        """Make an xclbin known; hardware is set up by `hw_context`."""
        if not isinstance(xclbin, EmulatedXclbin):
            raise TypeError("register_xclbin(): incompatible function arguments")
        self.emulator.faults.check("register")
        self.registered[xclbin.content.uuid] = xclbin.content
        return xclbin.get_uuid()

    def get_info(self, key: str) -> str:
        """Name or address."""
        if key == DeviceInfo.name:
            return f"emulated {self.emulator.chip}"
        if key == DeviceInfo.bdf:
            return f"emulated:{self._index}"
        raise TypeError("get_info(): incompatible function arguments")


class EmulatedContext:
    """`pyxrt.hw_context`: a slot of the device, a design, a thread for its commands."""

    def __init__(self, emulator: "XrtEmulator", xclbin: Xclbin) -> None:
        try:
            design = read_any_design(xclbin) if xclbin.design is not None else None
        except InputError as error:
            raise RuntimeError(f"hw_context: {error}") from None
        self.slot = emulator.take_slot()
        self.array = emulator.array
        self.commands = CommandQueue(emulator.array, self.slot)
        self.xclbin = xclbin
        self.setup = Setup(xclbin.generation or "", design, xclbin.arguments, dict(xclbin.bank_of))
        weakref.finalize(self, emulator.release_slot, self.slot, self.commands).atexit = False


class EmulatedKernel:
    """`pyxrt.kernel`."""

    def __init__(self, context: EmulatedContext) -> None:
        self.context = context

    def group_id(self, index: int) -> int:
        """The bank of an argument in its low half, the context in its high half."""
        setup = self.context.setup
        if not 0 <= index < len(setup.arguments):
            raise IndexError(f"argument {index} of a kernel that declares {len(setup.arguments)}")
        return self.context.slot << 16 | setup.bank_of.get(index, NO_BANK)

    def __call__(self, *arguments: object) -> EmulatedRun:
        """A started run; what is neither a buffer nor an int32 is left out without a word."""
        run = new_run(self)
        for index, argument in enumerate(arguments):
            try:
                run.set_arg(index, argument)
            except TypeError:
                continue
        run.start()
        return run


def new_run(kernel: object) -> EmulatedRun:
    """`run(kernel)`."""
    if not isinstance(kernel, EmulatedKernel):
        raise TypeError("run(): incompatible constructor arguments")
    run = EmulatedRun(kernel.context.setup, kernel.context.commands, kernel.context.array)
    run.keep(kernel)
    return run


class BufferType:
    """`pyxrt.bo`: makes buffers, and holds the names of their flags."""

    flags = BufferFlags
    normal = BufferFlags.normal
    cacheable = BufferFlags.cacheable
    device_only = BufferFlags.device_only
    host_only = BufferFlags.host_only
    p2p = BufferFlags.p2p
    svm = BufferFlags.svm

    def __init__(self, emulator: "XrtEmulator") -> None:
        self._emulator = emulator

    def __call__(self, *arguments: object) -> EmulatedBuffer:
        """`bo(device, size, flags, group)` or `bo(parent, size, offset)`."""
        match arguments:
            case (EmulatedDevice(), int(size), BufferFlags() as flags, int(group)):
                return new_buffer(self._emulator.memory, size, flags, group)
            case (EmulatedBuffer() as parent, int(size), int(offset)):
                return sub_buffer(parent, size, offset)
        raise TypeError(f"bo(): incompatible constructor arguments: {arguments!r}")


class XrtEmulator:
    """One computer's XRT with `devices` emulated NPUs of one kind; hand it where pyxrt would go."""

    xclBOSyncDirection = SyncDirection  # noqa: N815  # pyxrt's name
    ert_cmd_state = CommandState
    xrt_info_device = DeviceInfo

    def __init__(
        self,
        generation: Generation,
        latencies: Latencies | None = None,
        mode: Mode = "counted",
        *,
        contexts: int | None = None,
        memory_nbytes: int = MEMORY_NBYTES,
        devices: int = 1,
        chip: str | None = None,
    ) -> None:
        self.generation = generation
        self.chip = chip or CHIPS[generation.name]
        self.clock = EmulatedClock(latencies or Latencies(), mode)
        self.faults = Faults()
        self.memory = Memory(memory_nbytes, self.clock, self.faults)
        self.messages: list[str] = []  # what XRT would have printed
        self.array = EmulatedArray(generation, self.clock, self.faults, self.messages)
        self.bo = BufferType(self)
        self._devices = devices
        self._slots = contexts or CONTEXTS[generation.name]
        self._free_slots: deque[int] = deque(range(1, 1 + self._slots))

    @property
    def open_contexts(self) -> int:
        """How many contexts exist."""
        return self._slots - len(self._free_slots)

    def fail(
        self, kind: CallKind, at: int = 1, how: Fault = "refused", words: str | None = None
    ) -> None:
        """Let the `at`-th call of `kind` from now on fail; see `xrt_emulator_faults`."""
        self.faults.plan(kind, at, how, words)

    def device(self, index: int) -> EmulatedDevice:
        """`pyxrt.device(index)`; raises RuntimeError where there is none."""
        if not isinstance(index, int):
            raise TypeError("device(): incompatible constructor arguments")
        self.faults.check("device")
        if not 0 <= index < self._devices:
            raise RuntimeError(f"No such device with index '{index}'")
        return EmulatedDevice(self, index)

    def enumerate_devices(self) -> int:
        """How many there are."""
        return self._devices

    def xclbin(self, path: str) -> EmulatedXclbin:
        """`pyxrt.xclbin(path)`; raises RuntimeError for what is none."""
        return EmulatedXclbin(path)

    def hw_context(self, device: EmulatedDevice, uuid: EmulatedUuid) -> EmulatedContext:
        """`pyxrt.hw_context(device, uuid)`; raises RuntimeError for an unregistered uuid."""
        if not isinstance(device, EmulatedDevice) or not isinstance(uuid, EmulatedUuid):
            raise TypeError("hw_context(): incompatible constructor arguments")
        self.faults.check("hw_context")
        xclbin = device.registered.get(uuid.value)
        if xclbin is None:
            raise RuntimeError(f"No xclbin with uuid '{uuid.to_string()}': Invalid argument")
        return EmulatedContext(self, xclbin)

    def kernel(self, context: EmulatedContext, name: str) -> EmulatedKernel:
        """`pyxrt.kernel(hw_context, name)`; raises RuntimeError for another name."""
        if not isinstance(context, EmulatedContext) or not isinstance(name, str):
            raise TypeError("kernel(): incompatible constructor arguments")
        if name != context.xclbin.kernel:
            raise RuntimeError(f"No such kernel '{name}'")
        return EmulatedKernel(context)

    def run(self, kernel: EmulatedKernel) -> EmulatedRun:
        """`pyxrt.run(kernel)`."""
        return new_run(kernel)

    def runlist(self, context: EmulatedContext) -> EmulatedRunlist:
        """`pyxrt.runlist(hw_context)`."""
        if not isinstance(context, EmulatedContext):
            raise TypeError("runlist(): incompatible constructor arguments")
        return EmulatedRunlist(context.commands)

    def take_slot(self) -> int:
        """A context's number; raises RuntimeError when the device has no more."""
        try:
            return self._free_slots.popleft()
        except IndexError:
            raise RuntimeError(
                "DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-2): No such file or "
                f"directory (firmware status 0x2000003, {self._slots} contexts are in use)"
            ) from None

    def release_slot(self, slot: int, commands: CommandQueue) -> None:
        """A context is gone."""
        commands.stop()
        self._free_slots.append(slot)
