"""Holds a built design against what the device code passes to it and what the encoder writes.

One xclbin serves every size with streams of our own, so the compiler must have put parameters,
barriers and channels where the encoder expects them. Its own stream for the smallest work shows
where they are: it is decoded, and must say the same as our program.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aieflow.devices.npu import BUFFERS
from aieflow.devices.xclbin import Xclbin, gemm_arguments, read_xclbin
from aieflow.ops.errors import AieflowError, InputError
from aieflow.ops.npu.checker import check_generation, check_program
from aieflow.ops.npu.instructions import decode
from aieflow.ops.npu.program import DmaTask, LockSet, ParameterWrite, Program
from aieflow.ops.npu.standard import AnyDesign, buffers_of, name_of, smallest_program

KERNEL = "MLIR_AIE"
Streams = Mapping[tuple[int, str, int], npt.NDArray[np.int64]]  # column, direction, channel


def container_faults(file: Path, design: AnyDesign) -> Iterator[str]:
    """What is wrong with an xclbin; nothing where the device can use it."""
    try:
        found = read_xclbin(file)
    except InputError as error:
        yield str(error)
        return
    if found.is_emulated:
        yield "it holds no AIE_PARTITION: nothing that hardware could run"
    if found.kernel != KERNEL:
        yield f"its kernel is called {found.kernel}, not {KERNEL}"
    yield from _argument_faults(found, design)
    if found.generation is not None and found.generation != design.generation.name:
        yield f"it says {found.generation}, not {design.generation.name}"


def _argument_faults(found: Xclbin, design: AnyDesign) -> Iterator[str]:
    buffers = buffers_of(design)
    needed = gemm_arguments(buffers)
    if len(found.arguments) < len(needed):
        yield (
            f"its kernel has {len(found.arguments)} arguments, {name_of(design)} needs "
            f"{len(needed)}"
        )
        return
    for place, (ours, theirs) in enumerate(zip(needed, found.arguments, strict=False)):
        if (ours.is_pointer, ours.size) != (theirs.is_pointer, theirs.size):
            yield (
                f"argument {place} ({theirs.name}) is "
                f"{'a pointer' if theirs.is_pointer else 'a scalar'} of {theirs.size} bytes, not "
                f"{'a pointer' if ours.is_pointer else 'a scalar'} of {ours.size}"
            )
        if ours.is_pointer and place not in found.bank_of:
            yield f"argument {place} ({theirs.name}) is in no memory bank"
    banks = {found.bank_of.get(place) for place in range(BUFFERS, BUFFERS + buffers)}
    if len(banks) != 1:
        yield f"its buffers are in different banks: {sorted(map(str, banks))}"


def instruction_faults(file: Path, design: AnyDesign) -> Iterator[str]:
    """What the compiler's stream for the smallest work says otherwise than the encoder's."""
    try:
        program = decode(np.frombuffer(file.read_bytes(), np.uint32))
        check_generation(design, program)
        check_program(program)
    except (AieflowError, ValueError, OSError) as error:
        yield f"its instructions: {error}"
        return
    yield from differences(program, smallest_program(design))


def differences(found: Program, expected: Program) -> Iterator[str]:
    """Where two programs write other parameters, locks or streams."""
    for kind, what in ((ParameterWrite, "parameters"), (LockSet, "barriers")):
        ours, theirs = (
            {each for each in program.commands if isinstance(each, kind)}
            for program in (expected, found)
        )
        if ours != theirs:
            missing = sorted(map(str, ours - theirs))[:1] or sorted(map(str, theirs - ours))[:1]
            yield f"{what} lie elsewhere than the encoder writes them, such as {missing[0]}"
    ours_moved, theirs_moved = streams(expected), streams(found)
    for channel in sorted({*ours_moved, *theirs_moved}):
        column, direction, number = channel
        where = f"column {column}, {direction}, channel {number}"
        if channel not in theirs_moved:
            yield f"{where}: the encoder uses it, the compiler does not"
        elif channel not in ours_moved:
            yield f"{where}: the compiler uses it, the encoder does not"
        elif not np.array_equal(ours_moved[channel], theirs_moved[channel]):
            yield f"{where}: other bytes, or in another order"


def streams(program: Program) -> Streams:
    """For each channel the granules that go through it, as argument << 40 | granule."""
    found: dict[tuple[int, str, int], list[npt.NDArray[np.int64]]] = {}
    for task in program.commands:
        if isinstance(task, DmaTask):
            index = np.zeros(1, np.int64)
            for size, stride in zip(task.sizes, task.strides, strict=True):
                index = (index[:, None] + stride * np.arange(size)).reshape(-1)
            pieces = found.setdefault((task.column, task.direction, task.channel), [])
            pieces += [(task.argument << 40) + first // 4 + index for first in task.pass_offsets()]
    return {channel: np.concatenate(pieces) for channel, pieces in found.items()}
