"""Every OpenCL kernel but the product's, against its op's reference, in each way to lay memory.

The cases are those of the CPU's kernels and some more. All operands of a case lie in one adopted
arena, in gaps that must stay as they were, and inputs must too. Tolerance as in `test_kernels`:
1e-5 of the tensor's greatest magnitude, for the same reasons.
"""

import gc
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from test_kernels import CASES as CPU_CASES
from test_kernels import KEY, TOLERANCE, Case, assert_close, floats, overwrites, tokens

from aieflow.devices.base import PAGE
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import Optimizer, training_step
from aieflow.gpt2.params import initial_parameters
from aieflow.ops.catalogue import OPS
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Graph
from aieflow.ops.interpret import interpret
from aieflow.ops.kernel import Call
from aieflow.ops.op import Array, Arrays, Attrs
from aieflow.ops.opencl.source import FOLDER
from aieflow.ops.random import keep_mask
from aieflow.ops.spec import Spec

try:
    from aieflow.devices.opencl import OpenClDevice
    from aieflow.devices.opencl_driver import list_devices
except DeviceError as error:
    pytest.skip(str(error), allow_module_level=True)

DEVICES = list_devices()
if not DEVICES:
    pytest.skip("no OpenCL driver has a device: install PoCL", allow_module_level=True)
pytestmark = pytest.mark.opencl


GAP = 256  # between operands in the arena; a driver's alignment divides it
FILL = 0xFF  # of gaps and outputs: floats that are not numbers


def more_cases() -> list[Case]:
    """Sizes that the CPU's cases lack: one element, odd columns, GPT-2's heads, many operands."""
    attrs = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.0}
    one, rates = floats(1), np.array([1e-3, 0.1, 0.05])
    cases = [
        Case("add", (one, one), {}, "one"),
        Case("gelu", (100 * floats(2, 9),), {}, "large"),
        Case("adamw", (one, one, one, abs(one), rates), attrs, "one"),
        Case("layernorm", (floats(3, 1), floats(1), floats(1)), {"epsilon": 1e-5}, "column"),
        Case("layernorm", (floats(17, 771), floats(771), floats(771)), {"epsilon": 1e-5}, "771"),
        Case("column_sum", (floats(700, 3),), {}, "many-rows"),
        Case("squared_norm", (floats(5),), {}, "five"),
        Case("cross_entropy_gradient", (floats(3, 1), tokens(1, 3)), {"scale": 0.5}, "one"),
        Case("cross_entropy", (300 * floats(4, 9), tokens(9, 4)), {}, "far"),
        Case("mean", tuple(floats(size) for size in range(1, 12)), {}, "eleven"),
        Case(
            "clip_factor",
            tuple(np.abs(floats(size)).astype(np.float64) for size in range(1, 20)),
            {"max_norm": 2.0},
            "nineteen",
        ),
        Case("slice", (np.arange(21).reshape(3, 7).astype(np.uint64),), {"first": 1, "count": 1}),
        Case("slice_backward", (floats(2, 3),), {"first": 1, "rows": 4}, "rows"),
        Case("embedding", (tokens(9, 2, 3), floats(9, 13), floats(3, 13)), {}, "odd"),
        Case(
            "embedding_backward_tokens", (tokens(2, 5, 9), floats(5, 9, 13)), {"rows": 3}, "crowded"
        ),
        Case("embedding_backward_positions", (floats(1, 1, 3),), {"rows": 1}, "one"),
    ]
    for heads, width, length in ((2, 64, 70), (1, 11, 33), (1, 200, 5)):
        qkv = floats(1, length, 3 * heads * width)
        case = Case("attention", (qkv,), {"heads": heads}, f"{width}-wide")
        out, lse = (x.astype(np.float32) for x in case.expected)
        inputs = (qkv, out, lse, floats(*out.shape))
        cases += [case, Case("attention_backward", inputs, case.attrs, f"{width}-wide")]
    return cases


CASES = [case for case in [*CPU_CASES, *more_cases()] if case.op != "matmul"]
WAYS = [
    pytest.param(
        case, overwrite, id=f"{case}-{'+'.join(f'{o}on{i}' for o, i in overwrite.items())}"
    )
    for case in CASES
    for overwrite in overwrites(case)
]


@pytest.fixture(scope="module")
def device() -> Iterator[OpenClDevice]:
    opened = OpenClDevice(DEVICES[0].device)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def without_fp64() -> Iterator[OpenClDevice]:
    opened = OpenClDevice(DEVICES[0].device, fp64=False)
    yield opened
    opened.close()


class Arena:
    """Adopted memory in which arrays are laid one behind the other, with gaps."""

    def __init__(self, device: OpenClDevice, nbytes: int) -> None:
        whole = np.full(nbytes + PAGE, FILL, np.uint8)
        start = -whole.ctypes.data % PAGE
        self.memory = whole[start : start + nbytes]
        self._is_gap = np.ones(nbytes, bool)
        self._end = GAP
        device.adopt(self.memory)

    def lay(self, nbytes: int) -> Array:
        piece = self.memory[self._end : self._end + nbytes]
        assert piece.nbytes == nbytes
        self._is_gap[self._end : self._end + nbytes] = False
        self._end += -(-nbytes // GAP) * GAP + GAP
        return piece

    def lay_spec(self, spec: Spec) -> Array:
        return self.lay(spec.nbytes).view(spec.storage).reshape(spec.shape)

    def lay_copy(self, x: Array) -> Array:
        copy = self.lay_spec(Spec(x.shape, str(x.dtype)))
        copy[...] = x
        return copy

    def assert_gaps(self) -> None:
        assert (self.memory[self._is_gap] == FILL).all(), "wrote outside its operands"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a case left."""

    inputs: Arrays
    outputs: Arrays


def run(device: OpenClDevice, case: Case, overwrite: Mapping[int, int]) -> Ran:
    node, kernel = case.node, device.kernels[case.op]
    workspace_nbytes = kernel.workspace(node)
    sizes = [x.nbytes for x in case.inputs] + [spec.nbytes for spec in node.output_specs]
    arena = Arena(device, sum(sizes) + workspace_nbytes + 2 * GAP * (len(sizes) + 2))
    inputs = tuple(arena.lay_copy(x) for x in case.inputs)
    homes = {**overwrite, **kernel.op.updates}
    outputs = tuple(
        inputs[homes[index]].reshape(spec.shape) if index in homes else arena.lay_spec(spec)
        for index, spec in enumerate(node.output_specs)
    )
    workspace = arena.lay(workspace_nbytes)
    call = device.bind(node, Call(inputs, outputs, case.attrs, workspace))
    gc.collect()  # what only the driver holds would go now
    finish = device.finish(device.lanes[0])
    assert finish is not None
    device.transfer(arena.memory, "in")
    call()
    finish()
    device.transfer(arena.memory, "out")
    arena.assert_gaps()
    found = Ran(tuple(x.copy() for x in inputs), tuple(x.copy() for x in outputs))
    del call
    device.disown(arena.memory)
    return found


def test_every_op_has_a_kernel(device: OpenClDevice) -> None:
    assert set(device.kernels) == set(OPS)
    assert all(kernel.op is OPS[name] for name, kernel in device.kernels.items())
    assert {case.op for case in CASES} | {"matmul"} == set(OPS)


@pytest.mark.parametrize(("case", "overwrite"), WAYS)
def test_gives_the_reference(device: OpenClDevice, case: Case, overwrite: dict[int, int]) -> None:
    ran = run(device, case, overwrite)
    for index, (given, expected) in enumerate(zip(ran.outputs, case.expected, strict=True)):
        assert_close(given, expected, f"output {index}")
    taken = {*overwrite.values(), *OPS[case.op].updates.values()}
    for index, (now, before) in enumerate(zip(ran.inputs, case.inputs, strict=True)):
        assert index in taken or (now == before).all(), f"input {index} was written"


@pytest.mark.parametrize(
    "name",
    ["attention_backward", "cross_entropy_gradient", "embedding_backward_tokens", "squared_norm"],
)
def test_bits_are_the_same_each_time_and_in_place(device: OpenClDevice, name: str) -> None:
    for case in [case for case in CASES if case.op == name][:3]:
        once = run(device, case, {})
        for overwrite in ({}, *overwrites(case)):
            again = run(device, case, overwrite)
            for first, second in zip(once.outputs, again.outputs, strict=True):
                assert (first == second).all()


def test_token_gradients_are_added_in_the_order_of_the_batch(device: OpenClDevice) -> None:
    """Bit for bit what numpy adds row by row in float32."""
    words, dx, addend = tokens(3, 4, 50), floats(4, 50, 20), floats(3, 20)
    case = Case("embedding_backward_tokens", (words, dx, addend), {"rows": 3})
    (expected,) = OPS[case.op].reference(case.inputs, case.attrs)
    assert (run(device, case, {}).outputs[0] == expected).all()


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.9])
@pytest.mark.parametrize("key", [0, 2**64 - 1, int(KEY[0])])
@pytest.mark.parametrize("stream", [0, 77])
def test_masks_are_those_of_the_host(
    device: OpenClDevice, rate: float, key: int, stream: int
) -> None:
    attrs: Attrs = {"rate": rate, "stream": stream}
    case = Case("dropout", (np.ones((3, 1667), np.float32), np.array([key], np.uint64)), attrs)
    kept = run(device, case, {}).outputs[0] != 0
    assert (kept == keep_mask(key, stream, (3, 1667), rate)).all()


def test_masks_of_attention_are_those_of_the_host(device: OpenClDevice) -> None:
    """All scores are 0 and values are unit vectors: outputs show which keys a query kept."""
    length = width = 16
    qkv = np.zeros((2, length, 3 * width), np.float32)
    qkv[:, :, 2 * width :] = np.eye(length, dtype=np.float32)
    attrs: Attrs = {"heads": 1, "rate": 0.4, "stream": 3}
    out = run(device, Case("attention", (qkv, KEY), attrs), {}).outputs[0]
    mask = keep_mask(int(KEY[0]), 3, (2, 1, length, length), 0.4)[:, 0]
    assert ((out != 0) == (mask & np.tri(length, dtype=bool))).all()


def test_a_position_beyond_the_cache_gives_nan_and_writes_nothing(device: OpenClDevice) -> None:
    cache = floats(1, 6, 8)
    for position in (-1, 5):
        case = Case(
            "attention_cached", (floats(1, 2, 24), cache, cache, np.array([position])), {"heads": 2}
        )
        out, keys, values = run(device, case, {}).outputs
        assert np.isnan(out).all()
        assert (keys == cache).all()
        assert (values == cache).all()


DOUBLE_OPS = ("adamw", "clip_factor", "mean", "squared_norm")


@pytest.mark.parametrize("case", [case for case in CASES if case.op in DOUBLE_OPS], ids=str)
def test_without_float64_results_are_as_right(without_fp64: OpenClDevice, case: Case) -> None:
    """A pair of floats has 48 bits; 65536 squares may lose some of the last: 1e-12 is 40 bits."""
    ran = run(without_fp64, case, {})
    for index, (given, expected) in enumerate(zip(ran.outputs, case.expected, strict=True)):
        assert_close(given, expected, f"output {index}")
        if given.dtype == np.float64:
            assert np.abs(given / expected - 1).max() < 1e-12


def test_pairs_of_floats_lose_less_than_floats_do(without_fp64: OpenClDevice) -> None:
    """1 and many 1e-9: a float32 sum would be 1 exactly."""
    x = np.full(50001, 1e-9, np.float32)
    x[0] = 1
    case = Case("squared_norm", (np.sqrt(x),))
    (found,) = run(without_fp64, case, {}).outputs
    assert abs(found[0] / case.expected[0][0] - 1) < 1e-12
    assert found[0] > 1 + 4e-5


@pytest.mark.parametrize("norm", [0.0, 1.5, 1e-15, 3.3e18, 1e25, np.inf, np.nan, 0.1 + 2.0**-40])
@pytest.mark.parametrize("name", ["device", "without_fp64"])
def test_norms_of_any_size_pass(request: pytest.FixtureRequest, name: str, norm: float) -> None:
    """Beyond the range of float32, a pair's sum of squares is infinite: 1e25 squared."""
    opened: OpenClDevice = request.getfixturevalue(name)
    case = Case("clip_factor", (np.array([norm * norm]),), {"max_norm": 1.0})
    factor, found = (float(x[0]) for x in run(opened, case, {}).outputs)
    if name == "without_fp64" and norm == 1e25:
        norm = np.inf
    assert np.isnan(found) if np.isnan(norm) else found == pytest.approx(norm, rel=2e-7)
    expected = min(1.0, 1 / (norm + 1e-6)) if norm == norm else 1.0
    assert factor == pytest.approx(expected, rel=3e-7)


def test_a_training_step_gives_the_references_numbers(device: OpenClDevice) -> None:
    """All ops together, states updated in place, dropout and clipping on; every value is compared.

    Moments are not zero at first: where they are, AdamW takes whole steps in directions where
    the gradient is nothing but rounding, such as the biases of keys.
    """
    config = ModelConfig(vocab_size=50, seq_len=12, layers=2, heads=3, channels=24)
    optimizer = Optimizer(beta1=0.9, beta2=0.95, weight_decay=0.1, grad_clip=0.5)
    graph = training_step(config, batch_size=3, seq_len=12, optimizer=optimizer, dropout=0.2)
    given: dict[str, Array] = {
        value.name: 1e-3 + 1e-3 * np.abs(floats(*value.spec.shape)) for value in graph.states
    }
    given.update(initial_parameters(config, seed=1))
    given["tokens"], given["targets"] = tokens(50, 3, 12), tokens(50, 3, 12)
    given["rates"] = np.array([1e-2, 0.1, 0.05])
    given["key"] = KEY
    expected = interpret(graph, given)
    found = run_graph(device, graph, given)
    assert set(found) == set(expected) - {value.name for value in graph.states}
    for name, array in found.items():
        # 30 layers of float32 on either side, gradients of differences: 10 times a single op's
        right = expected[name].astype(np.float64)
        top = max(float(np.abs(right).max()), 1e-6)
        error = np.abs(array - right).max()
        assert error <= 10 * TOLERANCE * top, name


def run_graph(device: OpenClDevice, graph: Graph, given: Mapping[str, Array]) -> dict[str, Array]:
    """Every value of a graph, in memory of its own, but states' new values in the states'."""
    kernels = device.kernels
    total = sum(value.spec.nbytes + 2 * GAP for value in graph.values)
    workspace_nbytes = max(kernels[node.op.name].workspace(node) for node in graph.nodes)
    arena = Arena(device, total + workspace_nbytes + 2 * GAP)
    arrays = {name: arena.lay_copy(array) for name, array in given.items()}
    workspace = arena.lay(workspace_nbytes)
    calls = []
    for node in graph.nodes:
        for index, value in enumerate(node.outputs):
            source = node.op.updates.get(index)
            arrays[value.name] = (
                arena.lay_spec(value.spec) if source is None else arrays[node.inputs[source].name]
            )
        inputs, outputs = (
            tuple(arrays[value.name] for value in values) for values in (node.inputs, node.outputs)
        )
        calls.append(device.bind(node, Call(inputs, outputs, node.attrs, workspace)))
    device.transfer(arena.memory, "in")
    for call in calls:
        call()
    finish = device.finish(device.lanes[0])
    assert finish is not None
    finish()
    device.transfer(arena.memory, "out")
    arena.assert_gaps()
    states = {value.name for value in graph.states}  # their new values took their memory
    return {name: array.copy() for name, array in arrays.items() if name not in states}


LARGE = r"(?:u?long|double)8|(?:u?int|float)16"  # 64 bytes
PASSED = re.compile(
    rf"^[\w ]*\b(?:{LARGE}) \w+\(|^\w[\w ]+\([^)]*\b(?:{LARGE})\b|_(?:{LARGE})\(", re.M
)


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.cl")), ids=lambda file: file.stem)
def test_no_function_is_given_64_bytes(file: Path) -> None:
    """Where a driver takes an AMD Zen 4 for less than it is, they get lost: see `vector.cl`."""
    assert PASSED.findall(file.read_text(encoding="utf-8")) == []
