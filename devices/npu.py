"""The NPU, driven through a module shaped like pyxrt: the real one, or the emulator.

One xclbin sets the array up once; each size of GEMM has its own instruction stream, which is made
when the first node of that size is bound and kept. Packing and unpacking are kernels of the CPU
that work on the buffers' host side; the lanes `npu.copy.in` and `npu.copy.out` bring bytes to the
device side and back.

`run.wait` holds the GIL and ignores its time-out, so a call polls `run.state` with growing pauses
and has a deadline of its own. XRT's objects are given back in the order runs, instructions,
buffers, kernel, context, device; anything else can crash the interpreter when it ends.
"""

import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import psutil

from aieflow.devices.base import Buffer, Device, Direction, Moved
from aieflow.devices.npu_memory import NpuMemory, new_buffer
from aieflow.devices.xclbin import MAKE, REMEDY, Xclbin, read_design, read_xclbin
from aieflow.devices.xrt import COMPLETED, PENDING, Handle, Xrt, XrtBuffer, XrtRun
from aieflow.devices.xrt_errors import state_error, xrt_error
from aieflow.ops.errors import AieflowError, DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, Kernel
from aieflow.ops.npu.catalogue import design_kernels
from aieflow.ops.npu.design import GemmDesign, GemmSize
from aieflow.ops.npu.generation import GENERATIONS
from aieflow.ops.npu.instructions import Words, encode
from aieflow.ops.npu.kernels import NpuKernel
from aieflow.ops.npu.ops import gemm_size_of
from aieflow.ops.op import Array

OPCODE = 3  # run an instruction stream
OPCODE_ARGUMENT, INSTRUCTIONS, LENGTH, BUFFERS = 0, 1, 2, 3  # places of a kernel's arguments
DEADLINE_S = 5.0  # of a command, at least; the driver's watchdog acts after 2
DEADLINE_FACTOR = 20  # of its modelled time
SLOW_FLOPS_PER_S = 1e11  # without a model: a tenth of what the slowest published GEMM reaches
SPINS = 20  # polls without a pause
FIRST_PAUSE_S, LAST_PAUSE_S, PAUSE_GROWTH = 20e-6, 1e-3, 1.5
KNOWN_SHARE = 0.9  # of the least time of a command that is slept through
ONE = 0x3F80  # 1.0 in bf16
# Parts of the names that XRT gives to chips of a generation.
CHIPS = {
    "npu1": ("npu1", "phoenix", "hawk"),
    "npu2": ("npu2", "npu4", "npu5", "npu6", "strix", "krackan"),
}


def slow_gemm_s(size: GemmSize) -> float:
    """Seconds that no working NPU exceeds."""
    return size.flops / SLOW_FLOPS_PER_S


class NpuDevice(Device):
    """One NPU set up with `xclbin`, which must hold `design`.

    `memory_nbytes` is what buffers may take together (default: the memlock limit or the free
    memory), `expected_s` the modelled time of a GEMM, `deadline_s` the least time that a command is
    given. Opening it computes one small product as a check, since an xclbin of the wrong generation
    gives zeros without an error. Raises DeviceError and InputError.
    """

    def __init__(
        self,
        xrt: Xrt,
        xclbin: Path,
        design: GemmDesign,
        *,
        index: int = 0,
        memory_nbytes: int | None = None,
        expected_s: Callable[[GemmSize], float] = slow_gemm_s,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        content = read_xclbin(xclbin)
        self._xrt = xrt
        self._design = design
        self._kernels = design_kernels(design)
        self._expected_s = expected_s
        self._deadline_s = deadline_s
        self._moved = Moved()
        self._lock = threading.Lock()
        self._memory: NpuMemory | None = None
        self._kernel: Handle = None
        self._context: Handle = None
        self._device: Handle = None
        self._gemms: weakref.WeakSet[_Gemm] = weakref.WeakSet()
        self._instructions: dict[GemmSize, tuple[XrtBuffer, int]] = {}
        doing = f"opening device {index}"
        failure: AieflowError | None = None
        try:
            self._device = xrt.device(index)
            chip = str(self._device.get_info(xrt.xrt_info_device.name))
            self._is_emulated = "emulated" in chip
            self._identity = (
                f"{chip} with XRT, bf16 GEMM in tiles of {design.m}x{design.k}x{design.n}"
            )
            check_xclbin(xclbin, content, design, chip)
            doing = f"setting up {xclbin}"
            handle = xrt.xclbin(str(xclbin))
            kernels = {info.get_name(): info.get_num_args() for info in handle.get_kernels()}
            arguments = kernels.get(content.kernel, 0)
            if arguments < BUFFERS + 3:
                raise DeviceError(
                    f"npu: {xclbin}: kernel {content.kernel} has {arguments} arguments, a GEMM "
                    f"needs {BUFFERS + 3}: {REMEDY}"
                )
            check_banks(xclbin, content)
            self._device.register_xclbin(handle)
            self._context = xrt.hw_context(self._device, handle.get_uuid())
            self._kernel = xrt.kernel(self._context, content.kernel)
            self._instruction_group = self._kernel.group_id(INSTRUCTIONS)
            budget = usable_nbytes() if memory_nbytes is None else memory_nbytes
            self._memory = NpuMemory(xrt, self._device, self._kernel.group_id(BUFFERS), budget)
            self._check_result()
        except (RuntimeError, TypeError, IndexError) as error:
            failure = xrt_error(doing, error)
        except AieflowError as error:
            failure = type(error)(*error.args)
        if failure is not None:
            # What was raised is gone by now, and with it the frames that held XRT's objects.
            self.close()
            raise failure

    @property
    def name(self) -> str:
        """`npu`."""
        return "npu"

    @property
    def identity(self) -> str:
        """Chip and design; holds "emulated" where no hardware is."""
        return self._identity

    @property
    def is_emulated(self) -> bool:
        """True over the emulator, whose chips say so by their name."""
        return self._is_emulated

    @property
    def lanes(self) -> tuple[str, ...]:
        """`npu.compute`."""
        return ("npu.compute",)

    @property
    def copy_lanes(self) -> tuple[str, str]:
        """`npu.copy.in`, `npu.copy.out`."""
        return ("npu.copy.in", "npu.copy.out")

    @property
    def is_separate(self) -> bool:
        """True: operands lie in packed layouts, in XRT's buffers."""
        return True

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """The GEMM, and the packing and unpacking around it."""
        return self._kernels

    @property
    def moved(self) -> Moved:
        """Buffer syncs so far."""
        return self._moved

    def allocate(self, nbytes: int) -> Buffer:
        """A persistent XRT buffer object; `data` is its host side."""
        return Buffer(self.name, self._open_memory.allocate(nbytes))

    def free_nbytes(self) -> int:
        """What is left of the memory that buffers may take."""
        return self._open_memory.free_nbytes

    def bind(self, node: Node, call: Call) -> Callable[[], None]:
        """A kernel of the CPU on the host side, or a command of the array."""
        kernel = self._kernels.get(node.op.name)
        if kernel is None:
            raise DeviceError(
                f"npu: node {node.name}: no kernel for {node.op.name}; there are "
                f"{', '.join(self._kernels)}"
            )
        if isinstance(kernel, HostKernel):
            return kernel.bind(call)
        if not isinstance(kernel, NpuKernel):
            raise DeviceError(f"npu: node {node.name}: {node.op.name} is several nodes: expand it")
        what = f"node {node.name}"
        memory = self._open_memory
        operands = (*call.inputs, *call.outputs)
        buffers = [memory.sub_buffer(memory.find(operand, what), what) for operand in operands]
        size = self._design.padded(gemm_size_of(node.attrs))
        if size not in self._instructions:
            self._instructions[size] = self._send(kernel.instructions(node))
        return self._gemm(what, size, buffers, operands)

    def bind_transfer(self, region: Array, direction: Direction) -> Callable[[], None]:
        """A buffer sync of the region: a flush of its cache lines."""
        what = f"sync of {region.nbytes} bytes {direction}"
        memory = self._open_memory
        place = memory.find(region, what)
        sync = memory.sync(place, direction == "in", what)

        def run() -> None:
            sync()
            with self._lock:
                self._moved.transfers += 1
                self._moved.copied_nbytes += place.nbytes

        return run

    def close(self) -> None:
        """Give back runs, instructions, buffers, kernel, context and device, in this order."""
        for gemm in list(self._gemms):
            gemm.close()
        self._instructions.clear()
        if self._memory is not None:
            self._memory.close()
        self._memory = self._kernel = self._context = self._device = None

    @property
    def _open_memory(self) -> NpuMemory:
        if self._memory is None:
            raise DeviceError("npu: the device is closed: open it again")
        return self._memory

    def _gemm(
        self, what: str, size: GemmSize, buffers: list[XrtBuffer], operands: tuple[Array, ...]
    ) -> "_Gemm":
        instructions, nbytes = self._instructions[size]
        try:
            run = self._xrt.run(self._kernel)
            run.set_arg(OPCODE_ARGUMENT, OPCODE)
            run.set_arg(INSTRUCTIONS, instructions)
            run.set_arg(LENGTH, nbytes)
            for place, buffer in enumerate(buffers):
                run.set_arg(BUFFERS + place, buffer)
        except (RuntimeError, TypeError) as error:
            raise xrt_error(f"{what}: setting the arguments", error) from error
        deadline_s = max(self._deadline_s, DEADLINE_FACTOR * self._expected_s(size))
        gemm = _Gemm(what, run, deadline_s, (instructions, buffers, operands))
        self._gemms.add(gemm)
        return gemm

    def _send(self, words: Words) -> tuple[XrtBuffer, int]:
        """A buffer with instructions, on the device side, and their length in bytes."""
        flags, group = self._xrt.bo.cacheable, self._instruction_group
        data, buffer = new_buffer(self._xrt, self._device, words.nbytes, flags, group)
        data[:] = words.view(np.uint8)
        direction = self._xrt.xclBOSyncDirection.XCL_BO_SYNC_BO_TO_DEVICE
        try:
            buffer.sync(direction, words.nbytes, 0)
        except RuntimeError as error:
            raise xrt_error("sending instructions", error) from error
        return buffer, words.nbytes

    def _check_result(self) -> None:
        """Multiply two matrices of ones; raises DeviceError unless every element is K."""
        size = self._design.granule
        memory = self._open_memory
        # All elements are equal, so that no layout matters.
        sides = [
            memory.allocate(nbytes)
            for nbytes in (2 * size.M * size.K, 2 * size.K * size.N, 4 * size.M * size.N)
        ]
        places = [memory.find(side, "check") for side in sides]
        for side, place in zip(sides[:2], places[:2], strict=True):
            side.view(np.uint16)[:] = ONE
            memory.sync(place, True, "check")()
        sides[2][:] = 0
        memory.sync(places[2], True, "check")()
        self._instructions[size] = self._send(encode(self._design, size))
        self._gemm(
            "check", size, [memory.sub_buffer(place, "check") for place in places], tuple(sides)
        )()
        memory.sync(places[2], False, "check")()
        found = sides[2].view(np.float32)
        if np.all(found == size.K):
            return
        if not found.any():
            mine = self._design.generation.name
            other = " or ".join(name for name in GENERATIONS if name != mine)
            raise DeviceError(
                "npu: a product of ones gives zeros: the xclbin is for another generation than "
                f"this NPU ({self._identity}): build it for the right one: "
                f"`aieflow npu build --generation {other}`"
            )
        raise DeviceError(
            f"npu: a product of ones gives {found[found != size.K][0]} instead of {size.K}: the "
            "xclbin holds another design than it says, or the NPU is in a bad state: "
            f"{REMEDY}, and reload the amdxdna module"
        )


class _Gemm:
    """One command, bound: its run, and what its arguments refer to."""

    __slots__ = ("__weakref__", "_deadline_s", "_kept", "_least_s", "_run", "_what")

    def __init__(self, what: str, run: XrtRun, deadline_s: float, kept: tuple[object, ...]) -> None:
        self._what = what
        self._run: XrtRun | None = run
        self._deadline_s = deadline_s
        self._least_s = 0.0  # that the command has ever taken, once it has
        self._kept: tuple[object, ...] | None = kept

    def __call__(self) -> None:
        """Start the run and wait until it has ended; raises DeviceError."""
        run = self._run
        if run is None:
            raise DeviceError(f"npu: {self._what}: the device is closed: open it again")
        try:
            begin = time.monotonic()
            run.start()
            state = poll(run, self._deadline_s, self._least_s)
            taken_s = time.monotonic() - begin
        except (RuntimeError, TypeError) as error:
            raise xrt_error(self._what, error) from error
        finally:
            del run  # or the error's traceback would keep it beyond `close`
        if state in PENDING:
            raise DeviceError(
                f"npu: {self._what}: still in state {state} after {self._deadline_s:g} s: the NPU "
                "hangs: reload the amdxdna module (`modprobe -r amdxdna && modprobe amdxdna`) or "
                "reboot"
            )
        if state != COMPLETED:
            raise state_error(self._what, state)
        self._least_s = min(self._least_s or taken_s, taken_s)

    def close(self) -> None:
        """Give the run back, then its arguments."""
        self._run = None
        self._kept = None


def poll(run: XrtRun, deadline_s: float, least_s: float = 0.0) -> int:
    """The state in which a started run ended, or the pending one it has at the deadline.

    `least_s` is what the same run took at least so far: the first pause is most of it, and short
    ones follow, so that the end is seen within some 50 us of it without polling all the time.
    """
    end = time.monotonic() + deadline_s
    pause_s = FIRST_PAUSE_S
    polls = 0
    while (state := int(run.state())) in PENDING:
        polls += 1
        if polls < SPINS:
            continue
        if time.monotonic() >= end:
            break
        if polls == SPINS and least_s:
            time.sleep(KNOWN_SHARE * least_s)
        else:
            time.sleep(pause_s)
            pause_s = min(pause_s * PAUSE_GROWTH, LAST_PAUSE_S)
    return state


def usable_nbytes() -> int:
    """Bytes that buffers may take: the memlock limit, or the free memory where there is none."""
    free = int(psutil.virtual_memory().available)
    if sys.platform == "win32":
        return free
    import resource  # not on Windows

    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return free if limit == resource.RLIM_INFINITY else min(free, limit)


def check_banks(path: Path, content: Xclbin) -> None:
    """Raise DeviceError unless A, B and C lie in one bank, where this device's buffers are.

    For a buffer in another bank XRT would make a copy, and leave the result there without an error.
    """
    found = {place: content.bank_of.get(place) for place in range(BUFFERS, BUFFERS + 3)}
    if None in found.values() or len(set(found.values())) != 1:
        banks = ", ".join(f"argument {place} in {bank}" for place, bank in found.items())
        raise DeviceError(
            f"npu: {path}: its buffers are in different memory banks: {banks}: {REMEDY}"
        )


def check_xclbin(path: Path, content: Xclbin, design: GemmDesign, chip: str) -> None:
    """Raise DeviceError unless xclbin, design and chip are for each other, as far as is known."""
    wanted = design.generation.name
    for generation, names in CHIPS.items():
        if generation != wanted and any(name in chip.lower() for name in names):
            raise DeviceError(
                f"npu: the chip {chip!r} is of the generation {generation}, the design is of "
                f"{wanted}: use the design for {generation}: "
                f"`aieflow npu build --generation {generation}`"
            )
    is_emulated = "emulated" in chip
    if content.is_emulated and not is_emulated:
        raise DeviceError(
            f"npu: {path} is for the emulator and holds no program for {chip}: make one: {MAKE}"
        )
    if content.generation is not None and content.generation != wanted:
        raise DeviceError(
            f"npu: {path} is for the generation {content.generation}, not {wanted}: it would give "
            f"zeros: build it for this one: `aieflow npu build --generation {wanted}`"
        )
    if content.design is not None and read_design(content) != design:
        raise DeviceError(
            f"npu: {path} holds the design {dict(content.design)}, not {design}: {REMEDY}"
        )
