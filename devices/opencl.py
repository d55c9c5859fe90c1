"""The iGPU, or whatever device an OpenCL driver offers: one compute lane, a copy lane each way.

A bound node is a list of kernel objects with their arguments set, and a call only enqueues them;
so does a transfer that copies nothing. Each lane has a queue of its own, in order, and `finish`
waits for it: the copy lanes run beside the compute lane, and of transfers that nothing waits for
only the last is waited for. Memory is in `opencl_memory`, compiled programs in
`opencl_program`, which device it is in `opencl_driver`.

With `profile` on, the driver's time stamps say when each node and transfer ran, told in the host's
`time.perf_counter_ns`: the offset of the two clocks is measured with short commands, and is right
to half of the shortest one's time (`clock_error_ns`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from aieflow.devices.base import Buffer, Clock, Device, Direction, Moved, Ran
from aieflow.devices.opencl_driver import choose, cl, describe, list_devices, naming, refusal
from aieflow.devices.opencl_memory import AdoptedMemory, address, page_aligned
from aieflow.devices.opencl_program import Programs
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call
from aieflow.ops.op import Array
from aieflow.ops.opencl.catalogue import kernels_for
from aieflow.ops.opencl.launch import Launch, OpenClKernel, Operand

LANES = COMPUTE, COPY_IN, COPY_OUT = "igpu.compute", "igpu.copy.in", "igpu.copy.out"
CLOCK_ROUNDS = 20  # short commands that the clocks' offset is measured with


@dataclass(frozen=True, slots=True)
class DeviceSpan:
    """When a node ran, in the host's `perf_counter_ns`, as the driver's time stamps say."""

    node: str
    begin_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class Timed:
    """The events of the first and last command of a node, or of a transfer."""

    what: str
    first: cl.Event
    last: cl.Event


@dataclass(frozen=True, slots=True)
class Prepared:
    """A launch with its arguments set; pyopencl does not keep these alive, so they are here."""

    function: str
    kernel: cl.Kernel
    arguments: tuple[cl.Buffer | np.generic, ...]
    global_size: tuple[int, ...]
    local_size: tuple[int, ...] | None


class OpenClDevice(Device):
    """One OpenCL device.

    `cache` is a folder for compiled kernels (None: none are kept), `zero_copy` decides whether
    memory is shared instead of what the driver says and a probe finds, `fp64=False` does without
    doubles where the device has them (both for tests), and `kernels` replaces the catalogue's.
    """

    def __init__(
        self,
        device: cl.Device,
        cache: Path | None = None,
        zero_copy: bool | None = None,
        fp64: bool = True,
        kernels: Mapping[str, OpenClKernel] | None = None,
        notes: list[str] | None = None,
    ) -> None:
        self.info = describe(device)
        self._notes: list[str] = [] if notes is None else notes
        self.clock_error_ns = 0
        self._kernels = kernels_for(self.info.traits) if kernels is None else kernels
        self._fp64 = fp64
        self._offset_ns = 0
        self._timed: dict[str, list[Timed]] | None = None  # by lane; None: not profiling
        with naming(f"opening {self.info.identity}"):
            self._context = cl.Context([device])
            self._queues = {lane: cl.CommandQueue(self._context) for lane in LANES}
        self._memory = AdoptedMemory(self._context, self._queues[COMPUTE], zero_copy)
        self._programs = Programs(self._context, self.info, cache, self._notes)

    @property
    def name(self) -> str:
        """`igpu`."""
        return "igpu"

    @property
    def identity(self) -> str:
        """Device and driver; "(OpenCL on the CPU)" where it is no GPU."""
        return self.info.identity

    @property
    def notes(self) -> Sequence[str]:
        """What a user may want to know, such as a damaged cache that was built again."""
        return self._notes

    @property
    def lanes(self) -> tuple[str, ...]:
        """`igpu.compute`."""
        return (COMPUTE,)

    @property
    def copy_lanes(self) -> tuple[str, str]:
        """`igpu.copy.in`, `igpu.copy.out`."""
        return COPY_IN, COPY_OUT

    @property
    def kernels(self) -> Mapping[str, OpenClKernel]:
        """The kernels of `ops.opencl`."""
        return self._kernels

    @property
    def moved(self) -> Moved:
        """What transfers did so far; maps copy nothing."""
        return self._memory.moved

    @property
    def is_zero_copy(self) -> bool:
        """Whether the device works on the host's own pages."""
        return self._memory.is_zero_copy

    def allocate(self, nbytes: int) -> Buffer:
        """Page-aligned host memory, adopted; raises DeviceError when there is none left."""
        self._memory.require_size(nbytes)
        if nbytes > self.free_nbytes():
            raise refusal(
                f"no memory for a buffer of {nbytes} bytes: {self.free_nbytes()} are free"
            )
        data = page_aligned(nbytes)
        self.adopt(data)
        return Buffer(self.name, data)

    def adopt(self, memory: Array) -> None:
        """Make page-aligned host memory reachable until `close`; raises DeviceError."""
        self._require_open()
        self._memory.adopt(memory)

    def disown(self, memory: Array) -> None:
        """Forget memory that was adopted; nothing of it may be in use."""
        self._require_open()
        self._memory.disown(memory)

    def free_nbytes(self) -> int:
        """The device's global memory less what was adopted."""
        return max(0, self.info.nbytes - self._memory.nbytes)

    def bind(self, node: Node, call: Call) -> Callable[[], None]:
        """The call that enqueues the node's launches; raises DeviceError, as the call may."""
        self._require_open()
        if call.parts != 1:
            raise refusal(f"node {node.name} is one of {call.parts} parts: it takes one")
        kernel = self._kernels[node.op.name]
        prepared = tuple(self._prepare(node, call, launch) for launch in kernel.launches(node))
        return lambda: self._run(node.name, prepared)

    def bind_transfer(self, region: Array, direction: Direction) -> Callable[[], None]:
        """The call that brings bytes of adopted memory to the other side; raises DeviceError."""
        lane = COPY_IN if direction == "in" else COPY_OUT
        self._require_open()
        transfer = self._memory.transfer(region, direction)

        def run() -> None:
            first, last = transfer(self._queue(lane))
            if self._timed is not None:
                self._timed[lane].append(Timed(direction, first, last))

        return run

    def finish(self, lane: str) -> Callable[[], None] | None:
        """The call that waits for all enqueued work of a lane; raises DeviceError."""
        return lambda: self._finish(lane)

    def profile(self, on: bool) -> Mapping[str, Clock]:
        """Begin or end to note when work runs; waits for what is under way. Raises DeviceError.

        The clocks drift apart, so each call with `on` compares them again.
        """
        if on != (self._timed is not None):
            timed = cl.command_queue_properties.PROFILING_ENABLE
            for lane in LANES:
                self._finish(lane)
                with naming("opening a queue"):
                    self._queues[lane] = (
                        cl.CommandQueue(self._context, properties=timed)
                        if on
                        else cl.CommandQueue(self._context)
                    )
        self._timed = {lane: [] for lane in LANES} if on else None
        if not on:
            return {}
        self._offset_ns, self.clock_error_ns = self._compare_clocks(self._queue(COMPUTE))
        return {lane: partial(self._ran, lane) for lane in LANES}

    def spans(self) -> list[DeviceSpan]:
        """When nodes ran since `profile` or the last call of this; call it after `finish`."""
        return self._spans(self._taken(COMPUTE))

    def _spans(self, timed: list[Timed]) -> list[DeviceSpan]:
        with naming("reading time stamps"):
            return [
                DeviceSpan(
                    one.what,
                    int(one.first.profile.start) + self._offset_ns,
                    int(one.last.profile.end) + self._offset_ns,
                )
                for one in timed
            ]

    def _taken(self, lane: str) -> list[Timed]:
        if self._timed is None:
            return []
        timed, self._timed[lane] = self._timed[lane], []
        return timed

    def _ran(self, lane: str) -> Ran:
        timed = self._taken(lane)

        def ran() -> tuple[int, int] | None:
            spans = self._spans(timed)
            return (spans[0].begin_ns, spans[-1].end_ns) if spans else None

        return ran

    def close(self) -> None:
        """Wait for work under way and release everything; bound calls then raise DeviceError."""
        if not self._queues:
            return
        try:
            for lane in LANES:
                self._finish(lane)
        finally:
            self._queues.clear()
            self._timed = None
            self._memory.close()
            self._programs.close()

    def _prepare(self, node: Node, call: Call, launch: Launch) -> Prepared:
        constants = launch.constants if self._fp64 else (*launch.constants, ("NO_FP64", 1))
        program = self._programs.program(launch.source, constants, node.name)
        arguments = tuple(
            self._operand(call, argument) if isinstance(argument, Operand) else argument
            for argument in launch.arguments
        )
        with naming(f"node {node.name}: {launch.function} of {launch.source}.cl"):
            kernel = cl.Kernel(program, launch.function)
            kernel.set_args(*arguments)
        return Prepared(launch.function, kernel, arguments, launch.global_size, launch.local_size)

    def _operand(self, call: Call, operand: Operand) -> cl.Buffer:
        if operand.kind == "workspace":
            start = address(call.workspace) + operand.offset
            return self._memory.operand(start, int(call.workspace.nbytes) - operand.offset)
        arrays = call.inputs if operand.kind == "input" else call.outputs
        array = arrays[operand.position]
        return self._memory.operand(address(array), int(array.nbytes))

    def _run(self, node: str, prepared: tuple[Prepared, ...]) -> None:
        queue, events = self._queue(COMPUTE), []
        for launch in prepared:
            try:
                events.append(
                    cl.enqueue_nd_range_kernel(
                        queue, launch.kernel, launch.global_size, launch.local_size
                    )
                )
            except cl.Error as error:
                raise refusal(f"node {node}: {launch.function}: {error}") from error
        with naming(f"node {node}"):
            queue.flush()  # begin at once: the lane's next call may be far
        if self._timed is not None:
            self._timed[COMPUTE].append(Timed(node, events[0], events[-1]))

    def _finish(self, lane: str) -> None:
        with naming(f"waiting for {lane}"):
            self._queue(lane).finish()

    def _require_open(self) -> None:
        if not self._queues:
            raise refusal("the device was closed")

    def _queue(self, lane: str) -> cl.CommandQueue:
        self._require_open()
        return self._queues[lane]

    def _compare_clocks(self, queue: cl.CommandQueue) -> tuple[int, int]:
        """What to add to a device time, and how much it may be off, in nanoseconds."""
        best: tuple[int, int] | None = None
        with naming("comparing clocks"):
            cell = cl.Buffer(self._context, cl.mem_flags.READ_WRITE, 4)
            for _ in range(CLOCK_ROUNDS):
                before = time.perf_counter_ns()
                event = cl.enqueue_fill_buffer(queue, cell, np.zeros(1, np.uint32), 0, 4)
                event.wait()
                after = time.perf_counter_ns()
                begin, end = int(event.profile.start), int(event.profile.end)
                # the command lay somewhere in [before, after]: put it into the middle
                error = max(0, (after - before) - (end - begin)) // 2 + 1
                if best is None or error < best[1]:
                    best = (before + after) // 2 - (begin + end) // 2, error
            cell.release()
        assert best is not None
        return best


def open_opencl_device(with_cpu: bool, cache: Path | None = None) -> OpenClDevice:
    """The best GPU, else (`with_cpu`) a CPU under OpenCL; raises DeviceError."""
    return OpenClDevice(choose(list_devices(), with_cpu).device, cache)
