"""Every design that can be built, from its description to numbers over the emulated XRT.

What the emulator computes is held against numpy, and against the same IRON program as recorded.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from iron_dataflow import Machine
from iron_proof import record
from iron_recorder import FUNCTIONS as KERNELS
from iron_recorder import Recorded, Recorder, Transfer

from aieflow.devices.xclbin import (
    describe_design,
    emulated_xclbin,
    read_any_design,
    read_design,
    read_xclbin,
    write_xclbin,
)
from aieflow.devices.xrt_emulator import XrtEmulator
from aieflow.devices.xrt_emulator_buffers import SyncDirection
from aieflow.devices.xrt_emulator_moves import BadAccessError, StallError, write_zeros
from aieflow.devices.xrt_emulator_stream import FUNCTIONS, execute_stream, prepare_stream
from aieflow.ops.errors import InputError, PlanError
from aieflow.ops.npu.design import DESIGNS, GemmDesign, GemmSize
from aieflow.ops.npu.generation import GENERATIONS, NPU1, NPU2
from aieflow.ops.npu.instructions import decode, encode_program
from aieflow.ops.npu.iron_streaming import stream_module
from aieflow.ops.npu.layout import a_layout, b_layout, c_layout, gathered, scattered
from aieflow.ops.npu.mlp import (
    MlpDesign,
    MlpSize,
    check_mlp,
    hidden_elements,
    mlp_steps,
    product_sizes,
)
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.npu.program import Command, DmaTask, LockSet, ParameterWrite, Program, Sync
from aieflow.ops.npu.standard import (
    NAMES,
    PARTS,
    STANDARD,
    AnyDesign,
    buffers_of,
    smallest_program,
)
from aieflow.ops.npu.streaming import INPUTS, StreamDesign, stream_program
from aieflow.tools import npu_compile

Bits = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Arrays = list[npt.NDArray[Any]]
IN, OUT = SyncDirection.XCL_BO_SYNC_BO_TO_DEVICE, SyncDirection.XCL_BO_SYNC_BO_FROM_DEVICE
COMPLETED = 4


class Slot:
    """An emulated NPU set up with one design; commands as the device sends them."""

    def __init__(self, xrt: XrtEmulator, folder: Path, design: AnyDesign) -> None:
        file = folder / f"{type(design).__name__}.xclbin"
        write_xclbin(file, emulated_xclbin(design))
        self.xrt, self.device, xclbin = xrt, xrt.device(0), xrt.xclbin(str(file))
        self.device.register_xclbin(xclbin)
        self.context = xrt.hw_context(self.device, xclbin.get_uuid())
        self.kernel = xrt.kernel(self.context, "MLIR_AIE")

    def run(self, program: Program, arrays: Arrays) -> int:
        """Send, start, wait and bring the last array back; the state in which it ended."""
        words = encode_program(program)
        run = self.xrt.run(self.kernel)
        given: list[Any] = [3, None, words.nbytes]
        for index, array in ((1, words), *enumerate(arrays, 3)):
            flags = self.xrt.bo.cacheable if index == 1 else self.xrt.bo.host_only
            buffer = self.xrt.bo(self.device, array.nbytes, flags, self.kernel.group_id(index))
            buffer.write(array, 0)
            buffer.sync(IN)
            given[index:] = [buffer, *given[index + 1 :]]
        for index, value in enumerate(given):
            run.set_arg(index, value)
        run.start()
        state = int(run.wait())
        given[-1].sync(OUT)
        arrays[-1][:] = np.frombuffer(given[-1].map(), arrays[-1].dtype)
        return state


def drawn(design: StreamDesign, elements: int) -> Arrays:
    """Inputs, and an output of a value that no function gives."""
    draw = np.random.default_rng(elements)
    return [
        *(
            to_bfloat16(3 * draw.standard_normal(elements, np.float32))
            for _ in range(design.inputs)
        ),
        np.full(elements, 0xFFFF, np.uint16),
    ]


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_design_is_described(generation: str, tmp_path: Path) -> None:
    assert set(STANDARD[generation]) == set(NAMES)
    assert set(FUNCTIONS) == set(INPUTS)
    assert all(set(parts) <= set(NAMES) for parts in PARTS.values())
    for name, design in STANDARD[generation].items():
        write_xclbin(tmp_path / name, emulated_xclbin(design))
        found = read_xclbin(tmp_path / name)
        assert read_any_design(found) == design
        assert len(found.arguments) >= 3 + buffers_of(design)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("function", INPUTS)
def test_elementwise_designs_compute_on_the_emulated_npu(
    generation: str, function: str, tmp_path: Path
) -> None:
    """Three sizes by one xclbin, against numpy and against the recorded program's dataflow."""
    design = STANDARD[generation][function]
    assert isinstance(design, StreamDesign)
    slot = Slot(XrtEmulator(GENERATIONS[generation]), tmp_path, design)
    machine = None
    for tiles in (3, 1, 2):
        elements = design.granule * tiles
        arrays = drawn(design, elements)
        assert slot.run(stream_program(design, elements), arrays) == COMPLETED
        assert np.array_equal(arrays[-1], KERNELS[f"{function}_bf16"](*arrays[:-1]))
        recorded = stream_recorded(design, elements)
        machine = machine or Machine(recorded)
        memory: Arrays = drawn(design, elements)
        machine.run(recorded, memory)
        assert np.array_equal(memory[-1], arrays[-1])
        for worker in recorded.workers:
            *_, parameters, barrier = worker.fn_args
            assert parameters.address == design.parameters_address
            assert barrier.lock == design.barrier_lock


def stream_recorded(design: StreamDesign, elements: int) -> Recorded:
    recorded = stream_module(design, elements, Recorder().iron())
    assert isinstance(recorded, Recorded)
    return recorded


RELU = StreamDesign(NPU1, "relu", 4)
SIZE = 2 * RELU.granule


def edited(commands: Sequence[Command | None]) -> Program:
    return Program(NPU1, 4, tuple(each for each in commands if each is not None))


def changed(kind: type[Command], **change: Any) -> Program:  # noqa: ANN401
    """A program whose commands of a kind in column 1 are others; None: left out."""
    return edited(
        [
            (replace(each, **change) if change else None)
            if isinstance(each, kind) and each.column == 1
            else each
            for each in stream_program(RELU, SIZE).commands
        ]
    )


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (changed(LockSet), "1 cores wait at their barriers"),
        (changed(ParameterWrite, value=1), "cores were given different parameters"),
        (changed(ParameterWrite, address=0), "cores were given different parameters"),
        (changed(DmaTask, sizes=(512,)), r"stream \(1, 'in', 0\) moves 2048 bytes, the cores take"),
        (changed(DmaTask, channel=1, direction="in"), "waits for a token that no task sends"),
        (changed(DmaTask, has_token=False), "waits for a token that no task sends"),
        (
            edited(
                [
                    *stream_program(RELU, SIZE).commands,
                    DmaTask(2, "in", 1, 9, 0, 0, (512,), (1,)),
                ]
            ),
            r"channels that the design does not use: \[\(2, 'in', 1\)\]",
        ),
    ],
)
def test_a_bad_program_stalls(program: Program, message: str) -> None:
    prepare_stream(stream_program(RELU, SIZE), RELU)
    with pytest.raises(StallError, match=message):
        prepare_stream(program, RELU)


def test_what_nobody_awaits_is_left_undone_and_bounds_are_kept() -> None:
    program = changed(Sync)
    x, out = drawn(RELU, SIZE)
    memory = {0: x.view(np.uint8), 1: out.view(np.uint8)}
    execute_stream(prepare_stream(decode(encode_program(program)), RELU), memory)
    share = slice(SIZE // 4, SIZE // 2)
    assert (out[share] == 0xFFFF).all()
    assert (np.delete(out, np.r_[share]) != 0xFFFF).all()
    with pytest.raises(BadAccessError, match="of a buffer of 4096 bytes"):
        execute_stream(
            prepare_stream(stream_program(RELU, SIZE), RELU),
            {**memory, 0: out[:2048].view(np.uint8)},
        )
    write_zeros(prepare_stream(stream_program(RELU, SIZE), RELU), memory)
    assert not out.any()


def test_a_design_of_another_generation_gives_zeros(tmp_path: Path) -> None:
    design = StreamDesign(NPU2, "relu", 4)
    slot = Slot(XrtEmulator(NPU1), tmp_path, design)
    arrays = drawn(design, design.granule)
    assert slot.run(stream_program(design, design.granule), arrays) == COMPLETED
    assert not arrays[-1].any()


def test_a_design_without_products_is_none_for_the_device(tmp_path: Path) -> None:
    write_xclbin(tmp_path / "relu", emulated_xclbin(RELU))
    with pytest.raises(InputError, match="computes relu, no products: make one: `aieflow npu bui"):
        read_design(read_xclbin(tmp_path / "relu"))
    description = {**describe_design(RELU), "function": "tanh"}
    other = replace(emulated_xclbin(RELU), design=description)
    with pytest.raises(InputError, match="computes 'tanh': there are gelu, gelu_backward, relu"):
        read_any_design(other)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_every_design_makes_a_program(generation: str) -> None:
    for design in STANDARD[generation].values():
        recorded = npu_compile.smallest_module(design, Recorder().iron())  # which checks the limits
        rows = design.rows if isinstance(design, GemmDesign) else 1
        assert len(recorded.workers) == rows * design.columns
        assert len(recorded.buffers) == buffers_of(design)
        tasks = [each for each in smallest_program(design).commands if isinstance(each, DmaTask)]
        for place, buffer in enumerate(recorded.buffers):
            moved = sum(task.nbytes for task in tasks if task.argument == place)
            taps = [
                event.tap
                for event in recorded.events
                if isinstance(event, Transfer) and event.buffer is buffer
            ]
            element_nbytes = 4 if isinstance(design, GemmDesign) and place == 2 else 2
            assert sum(prod(tap.sizes) for tap in taps) * element_nbytes == moved


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_every_design_is_handed_to_the_compiler(
    generation: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its kernels, which lie compiled in the folder where the compiler works."""
    design = STANDARD[generation][name]
    recorder = Recorder()
    monkeypatch.setattr(npu_compile, "load_iron", recorder.iron)
    npu_compile.compile_design(design, tmp_path)
    asked = recorder.compiled
    assert isinstance(asked["mlir_module"], Recorded)
    assert (asked["device"].name, asked["device"].columns) == (generation, design.columns)
    assert len(recorder.built) == 1
    assert asked["work_dir"] == str(tmp_path)
    assert asked["xclbin_path"] == str(tmp_path / npu_compile.XCLBIN)
    assert asked["insts_path"] == str(tmp_path / npu_compile.INSTRUCTIONS)


# --- a tiny MLP: two products with ReLU between


MLP = MlpDesign(GemmDesign(NPU1, 16, 8, 16, columns=4), RELU)
MLP_SIZE = MlpSize(rows=50, inputs=24, hidden=60, outputs=100)


def mlp_operands(size: MlpSize) -> tuple[Floats, Floats, Floats]:
    """Whole numbers: hidden ones are 96 at most, which bf16 holds, so results are equal."""
    draw = np.random.default_rng(3)
    shapes = (
        (size.rows, size.inputs),
        (size.inputs, size.hidden),
        (size.hidden, size.outputs),
    )
    x, w1, w2 = (draw.integers(-2, 3, shape).astype(np.float32) for shape in shapes)
    return x, w1, w2


def padded(x: Floats, rows: int, columns: int) -> Floats:
    return np.pad(x, ((0, rows - x.shape[0]), (0, columns - x.shape[1])))


def computed(size: MlpSize, design: MlpDesign, run: Any) -> Floats:  # noqa: ANN401
    """relu(x W1) W2 by the description's steps; `run` does a step on its arrays."""
    x, w1, w2 = mlp_operands(size)
    first, second = product_sizes(design, size)
    hidden, relu, out = mlp_steps(design, size)

    def product(step: Any, at: GemmSize, a: Floats, b: Floats) -> Floats:  # noqa: ANN401
        arrays = [
            scattered(a_layout(design.product, at), to_bfloat16(padded(a, at.M, at.K))),
            scattered(b_layout(design.product, at), to_bfloat16(padded(b, at.K, at.N))),
            np.full(at.M * at.N, np.nan, np.float32),
        ]
        run(step, at, arrays)
        return gathered(c_layout(design.product, at), arrays[2])

    before = product(hidden, first, x, w1)
    elements = hidden_elements(design, size)
    arrays: Arrays = [np.zeros(elements, np.uint16), np.full(elements, 0xFFFF, np.uint16)]
    arrays[0][: before.size] = to_bfloat16(before).reshape(-1)
    run(relu, elements, arrays)
    after = from_bfloat16(arrays[1][: before.size]).reshape(before.shape)
    return product(out, second, after[:, : size.hidden], w2)[: size.rows, : size.outputs]


@pytest.mark.parametrize("design", [MLP, MlpDesign(DESIGNS["npu2"], StreamDesign(NPU2, "relu", 8))])
def test_a_tiny_mlp_computes_on_the_emulated_npu(design: MlpDesign, tmp_path: Path) -> None:
    """Two contexts, of two xclbins, on one NPU: what it takes is switched between commands."""
    check_mlp(design, MLP_SIZE)
    xrt = XrtEmulator(design.product.generation)
    slots = {each: Slot(xrt, tmp_path, each) for each in (design.product, design.between)}

    def run(step: Any, size: object, arrays: Arrays) -> None:  # noqa: ANN401
        assert slots[step.design].run(step.program, arrays) == COMPLETED

    x, w1, w2 = mlp_operands(MLP_SIZE)
    assert np.array_equal(computed(MLP_SIZE, design, run), np.maximum(x @ w1, 0) @ w2)


def test_a_tiny_mlps_programs_flow_as_recorded() -> None:
    """The same by the dataflow of the IRON programs; one array for the products, one for ReLU."""
    machines: dict[AnyDesign, Machine] = {}

    def run(step: Any, size: Any, arrays: Arrays) -> None:  # noqa: ANN401
        if isinstance(step.design, GemmDesign):
            recorded = record(step.design, size)
        else:
            recorded = stream_recorded(step.design, size)
        machine = machines.setdefault(step.design, Machine(recorded))
        machine.run(recorded, arrays)

    x, w1, w2 = mlp_operands(MLP_SIZE)
    assert np.array_equal(computed(MLP_SIZE, MLP, run), np.maximum(x @ w1, 0) @ w2)


@pytest.mark.parametrize(
    ("design", "size", "message"),
    [
        (replace(MLP, between=replace(RELU, function="gelu")), MLP_SIZE, "relu .* not gelu"),
        (replace(MLP, between=StreamDesign(NPU2, "relu", 4)), MLP_SIZE, "npu1, its ReLU for npu2"),
        (replace(MLP, product=replace(MLP.product, n=8)), MLP_SIZE, r"n \(kernel\) is 8"),
        (MLP, replace(MLP_SIZE, hidden=64 * 65), "column blocks"),
        (MLP, replace(MLP_SIZE, outputs=64 * 65), "column blocks"),
        (MLP, replace(MLP_SIZE, rows=0), "M is 0"),
    ],
)  # fmt: skip
def test_an_mlp_that_breaks_a_limit_is_refused(
    design: MlpDesign, size: MlpSize, message: str
) -> None:
    check_mlp(MLP, MLP_SIZE)
    with pytest.raises(PlanError, match=message):
        check_mlp(design, size)
