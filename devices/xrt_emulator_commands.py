"""The emulated XRT's commands: runs, run lists, and the thread that executes those of a context.

A command holds the addresses of its buffers, not the buffers: one that is freed before the command
runs makes it fail. As on the driver, `HWCTX_MAX_CMDS` commands of a context are in flight at most;
`start` then waits. A context's thread begins with its first command and ends with the context;
commands that are left are aborted.
"""

import operator
import queue
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from aieflow.devices.xclbin import Argument
from aieflow.devices.xrt_emulator_array import Work, execute, prepare
from aieflow.devices.xrt_emulator_buffers import NO_BANK, Allocation, EmulatedBuffer, clone_buffer
from aieflow.devices.xrt_emulator_clock import EmulatedClock, Kind
from aieflow.devices.xrt_emulator_faults import Faults
from aieflow.devices.xrt_emulator_moves import BadAccessError, StallError, write_zeros
from aieflow.devices.xrt_emulator_stream import StreamWork, execute_stream, prepare_stream
from aieflow.ops.errors import InputError
from aieflow.ops.npu.design import GemmDesign
from aieflow.ops.npu.generation import Generation
from aieflow.ops.npu.instructions import decode
from aieflow.ops.npu.program import Program
from aieflow.ops.npu.standard import AnyDesign

Bytes = npt.NDArray[np.uint8]

HWCTX_MAX_CMDS = 4
OPCODE = 3  # run an instruction stream
INSTRUCTIONS, BUFFERS = 1, 3  # kernel arguments: 0 opcode, 1 instructions, 2 length, 3... buffers
RUNNING = 3  # a state that pyxrt has no name for
WORKS_KEPT = 512  # understood instruction streams


class CommandState(Enum):
    """`pyxrt.ert_cmd_state`; like pybind's enums no number, and RUNNING has no name."""

    ERT_CMD_STATE_NEW = 1
    ERT_CMD_STATE_QUEUED = 2
    ERT_CMD_STATE_COMPLETED = 4
    ERT_CMD_STATE_ERROR = 5
    ERT_CMD_STATE_ABORT = 6
    ERT_CMD_STATE_SUBMITTED = 7
    ERT_CMD_STATE_TIMEOUT = 8
    ERT_CMD_STATE_NORESPONSE = 9

    @classmethod
    def _missing_(cls, value: object) -> "CommandState | None":
        if value != RUNNING:
            return None
        member = object.__new__(cls)
        member._name_, member._value_ = "???", RUNNING
        return member

    def __int__(self) -> int:
        return int(self.value)


NEW = CommandState.ERT_CMD_STATE_NEW.value
QUEUED = CommandState.ERT_CMD_STATE_QUEUED.value
COMPLETED = CommandState.ERT_CMD_STATE_COMPLETED.value
ERROR = CommandState.ERT_CMD_STATE_ERROR.value
ABORT = CommandState.ERT_CMD_STATE_ABORT.value
TIMEOUT = CommandState.ERT_CMD_STATE_TIMEOUT.value
_ENDS = {"lost": ABORT, "error": ERROR, "abort": ABORT, "timeout": TIMEOUT}


AnyWork: TypeAlias = Work | StreamWork


@dataclass(frozen=True, slots=True)
class Setup:
    """What an xclbin makes of the array."""

    generation: str
    design: AnyDesign | None
    arguments: tuple[Argument, ...]
    bank_of: dict[int, int]


@dataclass(slots=True, eq=False)
class Execution:
    """One run on its way: what it was given at its start, and its state."""

    setup: Setup
    opcode: int | None
    length: int | None
    instructions: Bytes | None  # device sides
    buffers: dict[int, Bytes]
    state: int = QUEUED
    done: threading.Event = field(default_factory=threading.Event)

    def end(self, state: int) -> None:
        """Publish the final state."""
        self.state = state
        self.done.set()


class EmulatedArray:
    """The one array of a device: it executes for one context at a time."""

    def __init__(
        self, generation: Generation, clock: EmulatedClock, faults: Faults, messages: list[str]
    ) -> None:
        self.generation = generation
        self.clock = clock
        self.faults = faults
        self.messages = messages
        self.multiplies = True  # False: commands take their time and leave results as they are
        self.lock = threading.Lock()
        self._context: int | None = None
        self._works: dict[tuple[AnyDesign, bytes], tuple[AnyWork, bool]] = {}

    def execute(
        self, one: Execution, context: int, is_first: bool, begun: float, stopped: threading.Event
    ) -> None:
        """Do one run; it ends in some state, unless a fault lets it hang until `stopped`."""
        fault = self.faults.check("execution")
        if fault == "hang":
            stopped.wait()
            one.end(ABORT)
            return
        if fault in _ENDS:
            one.end(_ENDS[fault])
            return
        with self.lock:
            latencies = self.clock.latencies
            dispatch_s = latencies.dispatch_s if is_first else latencies.further_dispatch_s
            costs: dict[Kind, float] = {"dispatch": dispatch_s}
            if wake_up_s := self.clock.wake_up_s():
                costs["wake_up"] = wake_up_s
            if self._context not in (None, context):
                costs["switch"] = latencies.switch_s
            self._context = context
            try:
                work, is_match = self._understand(one)
                if is_match and self.multiplies:
                    with np.errstate(all="ignore"):  # the array knows no warnings
                        _run(work, one.buffers)
                elif not is_match:
                    write_zeros(work, one.buffers)
                state = COMPLETED
                costs["kernel"] = self.clock.noisy(latencies.kernel_s(work.flops, work.nbytes))
                if fault == "flip":
                    _flip(work, one.buffers)
            except StallError as error:
                self.messages.append(f"the array stalls: {error}")
                state = TIMEOUT  # at once; the driver takes two seconds to notice
            except (BadAccessError, InputError, MemoryError, ValueError) as error:
                self.messages.append(f"the command fails: {error}")
                state = ERROR
            self.clock.spend(costs, begun, stopped.wait)
            self.clock.note_command_end()
        one.end(state)

    def _understand(self, one: Execution) -> tuple[AnyWork, bool]:
        """The work of an instruction stream, and whether array, xclbin and stream match."""
        design = one.setup.design
        if design is None:
            raise InputError("the xclbin holds no description of its design to emulate")
        if one.opcode != OPCODE or one.instructions is None or one.length is None:
            raise InputError(
                f"opcode {one.opcode}, length {one.length}: instructions need opcode {OPCODE}, "
                "a live buffer and its length"
            )
        # Callers give the length in bytes, as mlir-aie does today, or in words, as it once did.
        stream = one.instructions[: len(one.instructions) // 4 * 4].view(np.uint32)
        said = int(stream[3]) if len(stream) > 3 else -1
        if said not in (one.length, 4 * one.length) or said % 4 or said > stream.nbytes:
            raise InputError(f"instructions of {said} bytes with a length argument {one.length}")
        content = stream[: said // 4].tobytes()
        found = self._works.get((design, content))
        if found is None:
            program = decode(np.frombuffer(content, np.uint32))
            names = {self.generation.name, one.setup.generation, program.generation.name}
            found = _prepared(program, design), len(names) == 1
            if len(self._works) >= WORKS_KEPT:
                self._works.clear()
            self._works[design, content] = found
        return found


def _prepared(program: Program, design: AnyDesign) -> AnyWork:
    if isinstance(design, GemmDesign):
        return prepare(program, design)
    return prepare_stream(program, design)


def _run(work: AnyWork, buffers: dict[int, Bytes]) -> None:
    if isinstance(work, Work):
        execute(work, buffers)
    else:
        execute_stream(work, buffers)


def _flip(work: AnyWork, buffers: dict[int, Bytes]) -> None:
    """Turn sign and exponent of the first number that each task writes."""
    for task in work.outputs:
        buffers[task.argument][task.offset_nbytes + 3] ^= 0xFF


class _Worker(threading.Thread):
    """The thread of some context."""


class CommandQueue:
    """One context's commands, in order, on one thread."""

    def __init__(self, array: EmulatedArray, context: int) -> None:
        self._array = array
        self._context = context
        self._pending: queue.SimpleQueue[tuple[float, Sequence[Execution]] | None] = (
            queue.SimpleQueue()
        )
        self._slots = threading.BoundedSemaphore(HWCTX_MAX_CMDS)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def submit(self, chain: Sequence[Execution]) -> None:
        """Queue runs as one command; waits while too many are in flight."""
        self._slots.acquire()
        with self._lock:
            if self._thread is None:
                self._thread = _Worker(
                    target=self._serve, name=f"emulated NPU context {self._context}", daemon=True
                )
                self._thread.start()
        self._pending.put((self._array.clock.now(), chain))

    def stop(self) -> None:
        """Abort what is left and end the thread."""
        self._stopped.set()
        self._pending.put(None)
        with self._lock:
            thread = self._thread
        # The garbage collector may call this on another worker, which must not wait for this one.
        if thread is not None and not isinstance(threading.current_thread(), _Worker):
            thread.join()

    def _serve(self) -> None:
        ended = 0.0
        while (command := self._pending.get()) is not None:
            submitted, chain = command
            failed = self._stopped.is_set()
            for place, one in enumerate(chain):
                if failed:
                    one.end(ABORT)
                    continue
                one.state = RUNNING
                begun = max(submitted, ended)
                self._array.execute(one, self._context, place == 0, begun, self._stopped)
                failed = one.state != COMPLETED
                ended = self._array.clock.now()
            self._slots.release()


class EmulatedRun:
    """`pyxrt.run`."""

    def __init__(self, setup: Setup, commands: CommandQueue, array: EmulatedArray) -> None:
        self._setup = setup
        self._commands = commands
        self._array = array
        self._scalars: dict[int, int] = {}
        self._buffers: dict[int, tuple[weakref.ref[Allocation], int, int]] = {}
        self._copies: dict[int, EmulatedBuffer] = {}
        self._current: Execution | None = None
        self._kept: object = None

    def keep(self, owner: object) -> None:
        """Let `owner` (kernel and context) live as long as the run."""
        self._kept = owner

    @property
    def commands(self) -> CommandQueue:
        """The context's queue."""
        return self._commands

    def set_arg(self, index: int, value: object) -> None:
        """Give an argument: a buffer or an int32; TypeError for anything else."""
        self._array.faults.check("set_arg")
        arguments = self._setup.arguments
        if isinstance(value, EmulatedBuffer):
            self._expect(index)
            if not arguments[index].is_pointer:
                raise RuntimeError(f"argument {index} ({arguments[index].name}) takes no buffer")
            bank = self._setup.bank_of.get(index, NO_BANK)
            self._copies.pop(index, None)
            if value.bank != bank:
                self._array.messages.append(
                    f"argument {index} lies in bank {value.bank} instead of {bank}: "
                    "a local copy is used"
                )
                value = self._copies[index] = clone_buffer(value, bank)
            reference = weakref.ref(value.allocation)
            self._buffers[index] = (reference, value.offset, value.size())
            return
        try:
            number = operator.index(value)  # type: ignore[arg-type]  # the TypeError is wanted
        except TypeError:
            number = 1 << 31
        if not -(1 << 31) <= number < 1 << 31:
            raise TypeError(f"set_arg(): incompatible function arguments: {index}, {value!r}")
        self._expect(index)
        self._scalars[index] = number

    def _expect(self, index: int) -> None:
        if not 0 <= index < len(self._setup.arguments):
            raise RuntimeError(
                f"emulated segmentation fault: argument {index} of a kernel that declares "
                f"{len(self._setup.arguments)}"
            )

    def launch(self) -> Execution:
        """Take the arguments as they are now; raises RuntimeError while the run is under way."""
        self._array.faults.check("start")
        if self._current is not None and not self._current.done.is_set():
            raise RuntimeError("bad command state, can't launch")
        sides: dict[int, Bytes] = {}
        for index, (reference, offset, nbytes) in self._buffers.items():
            allocation = reference()
            if allocation is None:
                self._array.messages.append(f"argument {index} was freed before the start")
            else:
                sides[index] = allocation.device[offset : offset + nbytes]
        instructions = sides.pop(INSTRUCTIONS, None)
        buffers = {index - BUFFERS: side for index, side in sides.items()}
        length = self._scalars.get(INSTRUCTIONS + 1)
        self._current = Execution(self._setup, self._scalars.get(0), length, instructions, buffers)
        return self._current

    def start(self) -> None:
        """Begin; returns at once, unless too many commands are in flight."""
        self._commands.submit([self.launch()])

    def state(self) -> CommandState:
        """Where the run is."""
        return CommandState(NEW if self._current is None else self._current.state)

    def wait(self, timeout_ms: int = 0) -> CommandState:
        """Block until the run has ended, whatever the time-out says; never raises."""
        if not isinstance(timeout_ms, int):
            raise TypeError("wait(): incompatible function arguments")
        if self._current is not None:
            self._current.done.wait()
        return self.state()

    def wait2(self, *timeout: object) -> None:
        """Block until the run has ended; raises RuntimeError unless it completed."""
        if timeout:
            raise TypeError("wait2(): incompatible function arguments")
        state = self.wait()
        if int(state) != COMPLETED:
            raise RuntimeError(f"Command failed to complete successfully ({state.name})")


class EmulatedRunlist:
    """`pyxrt.runlist`: runs of one context, executed as one command."""

    def __init__(self, commands: CommandQueue) -> None:
        self._commands = commands
        self._runs: list[EmulatedRun] = []
        self._current: list[Execution] = []

    def add(self, run: object) -> None:
        """Append a run; raises RuntimeError for one of another context or while executing."""
        if not isinstance(run, EmulatedRun):
            raise TypeError("add(): incompatible function arguments")
        if run.commands is not self._commands:
            raise RuntimeError("run object belongs to another hw_context")
        self._expect_idle()
        self._runs.append(run)

    def execute(self) -> None:
        """Start all runs; raises RuntimeError while they are under way."""
        self._expect_idle()
        self._current = [run.launch() for run in self._runs]
        if self._current:
            self._commands.submit(self._current)

    def wait(self, *timeout: object) -> None:
        """Block until all have ended; raises RuntimeError unless all completed."""
        if timeout:
            raise TypeError("wait(): incompatible function arguments")
        for one in self._current:
            one.done.wait()
        for place, one in enumerate(self._current):
            if one.state != COMPLETED:
                raise RuntimeError(f"runlist failed execution: run {place} in state {one.state}")

    def _expect_idle(self) -> None:
        if any(not one.done.is_set() for one in self._current):
            raise RuntimeError("runlist must be idle")
