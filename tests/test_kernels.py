"""Every CPU kernel against its op's reference: split, aliased, with each optional operand.

References run in float64 and kernels in float32. A result may be off by 1e-5 of the tensor's
greatest magnitude: float32 rounds by 6e-8, exp is right to 3e-7, sums have at most some hundred
terms here. A gradient of layer normalisation or GELU takes differences of like numbers, hence the
factor that is left above that.
"""

import threading
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aieflow.ops.builder import Builder
from aieflow.ops.catalogue import OPS
from aieflow.ops.cpu import blas, gemm
from aieflow.ops.cpu.catalogue import KERNELS
from aieflow.ops.cpu.matmul import bind_blas, bind_tiles, product_of
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call, HostKernel, share
from aieflow.ops.op import Array, Arrays, Attrs
from aieflow.ops.spec import Spec

TOLERANCE = 1e-5
GUARD = 1024  # bytes behind each workspace that must stay as they were
RNG = np.random.default_rng(1)
POISON = 0x7B  # bytes that make a great float
KEY = np.array([0x1234_5678_9ABC_DEF0], np.uint64)


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape, dtype=np.float32)


def tokens(vocabulary: int, *shape: int) -> Array:
    return RNG.integers(0, vocabulary, shape).astype(np.int32)


@dataclass(frozen=True, slots=True)
class Case:
    """One way to call an op."""

    op: str
    inputs: Arrays
    attrs: Attrs = field(default_factory=dict)
    note: str = ""

    def __str__(self) -> str:
        return f"{self.op}-{self.note}" if self.note else self.op

    @property
    def kernel(self) -> HostKernel:
        return KERNELS[self.op]

    @property
    def node(self) -> Node:
        builder = Builder("case")
        values = [
            builder.state(f"input{index}", Spec(x.shape, str(x.dtype)), "parameter")
            for index, x in enumerate(self.inputs)
        ]
        specs = self.kernel.op.infer(tuple(value.spec for value in values), self.attrs)
        builder.apply(
            self.kernel.op, values, [f"output{index}" for index in range(len(specs))], self.attrs
        )
        return builder.nodes[-1]

    @property
    def expected(self) -> Arrays:
        wide = tuple(x.astype(np.float64) if x.dtype == np.float32 else x for x in self.inputs)
        return self.kernel.op.reference(wide, self.attrs)


def matmul_cases() -> list[Case]:
    cases = []
    for batch, rows, inner, columns in ((2, 37, 48, 50), (1, 1, 33, 70), (1, 3, 16, 9)):
        a, residual = floats(batch, rows, inner), floats(batch, rows, columns)
        plain, turned, bias = floats(inner, columns), floats(columns, inner), floats(columns)
        shape = f"{batch * rows}x{columns}"
        cases += [
            Case("matmul", (a, plain), {}, f"{shape}"),
            Case("matmul", (a, plain, bias), {"bias": 1}, f"{shape}-bias"),
            Case(
                "matmul", (a, turned, residual), {"transpose_b": 1, "addend": 1}, f"{shape}-addend"
            ),
            Case(
                "matmul",
                (a, turned, bias, residual),
                {"transpose_b": 1, "bias": 1, "addend": 1},
                f"{shape}-both",
            ),
            Case("matmul", (a, residual), {"transpose_a": 1}, f"{shape}-weights"),
            Case(
                "matmul",
                (a, residual, floats(inner, columns)),
                {"transpose_a": 1, "addend": 1},
                f"{shape}-weights-addend",
            ),
        ]
    return cases


def norm_cases() -> list[Case]:
    x, dy, addend = floats(2, 37, 48) + 1, floats(2, 37, 48), floats(2, 37, 48)
    weight, bias = floats(48), floats(48)
    mean = x.mean(axis=-1)
    rstd = (1 / np.sqrt(x.var(axis=-1) + 1e-5)).astype(np.float32)
    name = "layernorm_backward_params"
    return [
        Case("layernorm", (x, weight, bias), {"epsilon": 1e-5}),
        Case("layernorm", (floats(7, 5), floats(5), floats(5)), {"epsilon": 1e-5}, "odd"),
        Case("layernorm_backward", (dy, x, weight, mean, rstd)),
        Case("layernorm_backward", (dy, x, weight, mean, rstd, addend), {}, "addend"),
        Case(name, (x, dy, mean, rstd)),
        Case(name, (x, dy, mean, rstd, floats(48), floats(48)), {}, "addends"),
        Case("column_sum", (x,)),
        Case("column_sum", (floats(3, 7, 11), floats(11)), {}, "addend"),
    ]


def pointwise_cases() -> list[Case]:
    x, y = 3 * floats(2, 37, 48), floats(2, 37, 48)
    attrs = {"rate": 0.3, "stream": 5}
    return [
        Case("add", (x, y)),
        Case("add", (floats(13), floats(13)), {}, "vector"),
        Case("gelu", (x,)),
        Case("gelu_backward", (x, y)),
        Case("dropout", (x, KEY), attrs),
        Case("dropout", (x, KEY, y), attrs, "addend"),
        Case("dropout", (floats(5, 700), KEY), {"rate": 0.9, "stream": 0}, "tiles"),
    ]


def batch_cases() -> list[Case]:
    x = floats(7, 5, 6)
    return [
        Case("slice", (x,), {"first": 2, "count": 4}),
        Case("slice", (tokens(50, 4, 9),), {"first": 1, "count": 3}, "ids"),
        Case("slice_backward", (x,), {"first": 2, "rows": 11}),
        Case("slice_backward", (x, floats(8, 5, 6)), {"first": 1, "rows": 8}, "addend"),
    ]


def embedding_cases() -> list[Case]:
    words, dx = tokens(211, 3, 37), floats(3, 37, 48)
    by_token, by_position = "embedding_backward_tokens", "embedding_backward_positions"
    return [
        Case("embedding", (words, floats(211, 48), floats(40, 48))),
        Case(
            "embedding",
            (words, floats(211, 48), floats(64, 48), np.array([9])),
            {},
            "position",
        ),
        Case(by_token, (words, dx), {"rows": 211}),
        Case(by_token, (tokens(4, 3, 37), dx, floats(211, 48)), {"rows": 211}, "addend"),
        Case(by_position, (dx,), {"rows": 64}),
        Case(by_position, (dx, floats(37, 48)), {"rows": 37}, "addend"),
    ]


def loss_cases() -> list[Case]:
    cases = []
    for vocabulary in (211, 5003):
        logits, targets = 4 * floats(2, 7, vocabulary), tokens(vocabulary, 2, 7)
        cases += [
            Case("cross_entropy", (logits, targets), {}, str(vocabulary)),
            Case("cross_entropy_gradient", (logits, targets), {"scale": 1 / 14}, str(vocabulary)),
        ]
    return [*cases, Case("mean", (floats(3, 5), floats(2, 4)))]


def optim_cases() -> list[Case]:
    attrs = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
    rates = np.array([1e-2, 0.1, 0.05])

    def moments(*shape: int) -> Arrays:
        return floats(*shape), floats(*shape), floats(*shape), abs(floats(*shape)), rates

    return [
        Case("adamw", moments(30, 41), attrs),
        Case("adamw", (*moments(1201), np.array([0.5], np.float32)), attrs, "factor"),
        Case("squared_norm", (floats(3, 65536),), {}, "exact"),
        Case("squared_norm", (floats(70000),), {}, "rest"),
        Case("clip_factor", (np.array([1.0, 2.0]), np.array([6.0])), {"max_norm": 1.0}),
        Case("clip_factor", (np.array([1e-4]),), {"max_norm": 1.0}, "below"),
        Case("clip_factor", (np.array([9.0]),), {"max_norm": 0.0}, "off"),
    ]


def attention_cases() -> list[Case]:
    cases = []
    for batch, length, heads, width in (
        (2, 37, 3, 16),
        (1, 150, 2, 8),
        (9, 64, 1, 4),
        (1, 1, 1, 4),
    ):
        channels = heads * width
        qkv, dout = floats(batch, length, 3 * channels), floats(batch, length, channels)
        for rate in (0.0, 0.3):
            attrs = {"heads": heads, "rate": rate, "stream": 2} if rate else {"heads": heads}
            key = (KEY,) if rate else ()
            case = Case("attention", (qkv, *key), attrs, f"{batch}x{length}-{rate}")
            out, lse = (x.astype(np.float32) for x in case.expected)
            inputs = (qkv, out, lse, dout, *key)
            cases += [case, Case("attention_backward", inputs, attrs, f"{batch}x{length}-{rate}")]
    for batch, new, position in ((2, 1, 0), (2, 1, 93), (1, 70, 9), (8, 3, 5)):
        cache = floats(batch, 100, 24)
        inputs = (floats(batch, new, 72), cache, cache + 1, np.array([position]))
        cases.append(Case("attention_cached", inputs, {"heads": 3}, f"{new}-at-{position}"))
    return cases


CASES = [
    *matmul_cases(),
    *norm_cases(),
    *pointwise_cases(),
    *batch_cases(),
    *embedding_cases(),
    *loss_cases(),
    *optim_cases(),
    *attention_cases(),
]


def overwrites(case: Case) -> list[dict[int, int]]:
    """No aliasing, and each output in the memory of each input that it may take."""
    found: list[dict[int, int]] = [{}]
    op, node = case.kernel.op, case.node
    if op.name == "layernorm_backward_params" and len(case.inputs) == 6:
        return [{}, {0: 4, 1: 5}]
    for output, inputs in op.may_overwrite.items():
        for index in inputs:
            fits = index < len(case.inputs)
            if fits and node.input_specs[index].nbytes == node.output_specs[output].nbytes:
                found.append({output: index})
    return found


WAYS = [
    pytest.param(
        case, overwrite, id=f"{case}-{'+'.join(f'{o}on{i}' for o, i in overwrite.items())}"
    )
    for case in CASES
    for overwrite in overwrites(case)
]


@dataclass(frozen=True, slots=True)
class Bound:
    """A case with memory: its operands, and one call for each part."""

    inputs: Arrays
    outputs: Arrays
    workspaces: Arrays
    calls: tuple[Callable[[], None], ...]


def bind(case: Case, overwrite: Mapping[int, int], parts: int) -> Bound:
    node, kernel = case.node, case.kernel
    inputs = tuple(x.copy() for x in case.inputs)
    homes = {**overwrite, **kernel.op.updates}
    outputs = []
    for index, spec in enumerate(node.output_specs):
        if index in homes:
            outputs.append(inputs[homes[index]].reshape(spec.shape))
        else:
            outputs.append(
                np.full(spec.nbytes, 0xFF, np.uint8).view(spec.dtype).reshape(spec.shape)
            )
    nbytes = kernel.workspace(node)
    workspaces = tuple(np.full(nbytes + GUARD, 0xFF, np.uint8) for _ in range(parts))
    calls = tuple(
        kernel.bind(
            Call(inputs, tuple(outputs), case.attrs, workspaces[part][:nbytes], part, parts)
        )
        for part in range(parts)
    )
    return Bound(inputs, tuple(outputs), workspaces, calls)


def assert_close(given: Array, expected: Array, what: str) -> None:
    assert given.shape == expected.shape, what
    error = np.abs(given.astype(np.float64) - expected).max()
    assert error <= TOLERANCE * max(np.abs(expected).max(), 1e-6), f"{what}: off by {error}"


def assert_right(case: Case, bound: Bound) -> None:
    for index, (given_, expected) in enumerate(zip(bound.outputs, case.expected, strict=True)):
        assert_close(given_, expected, f"output {index}")
    for workspace in bound.workspaces:
        assert (workspace[-GUARD:] == 0xFF).all(), "wrote behind the workspace"


def test_every_op_has_a_kernel() -> None:
    assert set(KERNELS) == set(OPS)
    assert all(kernel.op is OPS[name] for name, kernel in KERNELS.items())
    assert {case.op for case in CASES} == set(OPS)


@pytest.mark.parametrize(("case", "overwrite"), WAYS)
def test_gives_the_reference(case: Case, overwrite: dict[int, int]) -> None:
    bound = bind(case, overwrite, 1)
    bound.calls[0]()
    assert_right(case, bound)
    taken = {*overwrite.values(), *case.kernel.op.updates.values()}
    for index, (now, before) in enumerate(zip(bound.inputs, case.inputs, strict=True)):
        assert index in taken or (now == before).all(), f"input {index} was written"


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(("case", "overwrite"), WAYS)
def test_parts_in_any_order_give_the_reference(
    case: Case, overwrite: dict[int, int], parts: int
) -> None:
    if case.kernel.split(case.node).units == 1:
        return
    bound = bind(case, overwrite, parts)
    for call in reversed(bound.calls):
        call()
    assert_right(case, bound)
    whole = bind(case, overwrite, 1)
    whole.calls[0]()
    if case.op not in ("matmul", "attention", "attention_backward", "attention_cached"):
        for given_, expected in zip(bound.outputs, whole.outputs, strict=True):
            assert (given_ == expected).all(), "the split changed bits"
    together = bind(case, overwrite, parts)
    threads = [threading.Thread(target=call) for call in together.calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for given_, expected in zip(together.outputs, bound.outputs, strict=True):
        assert (given_ == expected).all(), "side by side is not one after the other"


@pytest.mark.parametrize(("case", "overwrite"), WAYS)
def test_bits_do_not_depend_on_where_operands_lie(case: Case, overwrite: dict[int, int]) -> None:
    """Operands side by side, in several orders: compiled loops test for overlap, some too wide."""
    apart = bind(case, overwrite, 1)
    apart.calls[0]()
    node, homes = case.node, {**overwrite, **case.kernel.op.updates}
    for turn in range(4):
        sizes = [x.nbytes for x in case.inputs] + [x.nbytes for x in apart.outputs]
        sizes.append(case.kernel.workspace(node))
        offsets: dict[int, int] = {}
        end = 0
        for place in range(len(sizes)):
            offsets[(turn - place if turn % 2 else turn + place) % len(sizes)] = end
            end += -(-sizes[(turn - place if turn % 2 else turn + place) % len(sizes)] // 64) * 64
        arena = np.zeros(end, np.uint8)
        pieces = [arena[offsets[at] : offsets[at] + sizes[at]] for at in range(len(sizes))]
        inputs = tuple(
            piece.view(x.dtype).reshape(x.shape)
            for piece, x in zip(pieces, case.inputs, strict=False)
        )
        for x, given_ in zip(inputs, case.inputs, strict=True):
            x[...] = given_
        outputs = tuple(
            inputs[homes[index]].reshape(x.shape)
            if index in homes
            else pieces[len(inputs) + index].view(x.dtype).reshape(x.shape)
            for index, x in enumerate(apart.outputs)
        )
        case.kernel.bind(Call(inputs, outputs, case.attrs, pieces[-1]))()
        for given_, expected in zip(outputs, apart.outputs, strict=True):
            assert (given_ == expected).all(), "the layout changed bits"


def bytes_of(x: Array) -> Array:
    return x.reshape(-1).view(np.uint8)


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize(("case", "overwrite"), WAYS)
def test_a_part_touches_only_its_share(case: Case, overwrite: dict[int, int], part: int) -> None:
    split = case.kernel.split(case.node)
    if split.units == 1:
        return
    first, last = share(split.units, part, 3)
    bound = bind(case, overwrite, 3)

    def outside(x: Array) -> tuple[Array, Array]:
        flat = bytes_of(x)
        assert flat.size % split.units == 0, f"{split.units} units do not divide {x.shape}"
        unit = flat.size // split.units
        return flat[: first * unit], flat[last * unit :]

    for index in split.inputs:
        poison = POISON if bound.inputs[index].dtype.kind == "f" else 0
        for rest in outside(bound.inputs[index]):
            rest[:] = poison
    before = tuple(x.copy() for x in bound.outputs)
    bound.calls[part]()
    for index, expected in enumerate(case.expected):
        now, earlier = bytes_of(bound.outputs[index]), bytes_of(before[index])
        if index in split.outputs:
            for after, untouched in zip(outside(now), outside(earlier), strict=True):
                assert (after == untouched).all(), f"output {index} was written outside"
        written = (now != earlier).reshape(expected.size, -1).any(axis=1)
        wrong = np.abs(bound.outputs[index].reshape(-1)[written] - expected.reshape(-1)[written])
        top = max(np.abs(expected).max(), 1e-6)
        assert (wrong <= TOLERANCE * top).all(), f"output {index} needs more than its share"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_call_allocates_nothing(case: Case) -> None:
    bound = bind(case, {}, 1)
    bound.calls[0]()
    tracemalloc.start()
    try:
        bound.calls[0]()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2048


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 150), st.integers(1, 40)),
    turned=st.sampled_from([(0, 0), (0, 1), (1, 0)]),
    added=st.tuples(st.booleans(), st.booleans()),
    parts=st.integers(1, 4),
    through_blas=st.booleans(),
)
def test_matmul_of_any_size(
    sizes: tuple[int, int, int],
    turned: tuple[int, int],
    added: tuple[bool, bool],
    parts: int,
    through_blas: bool,
) -> None:
    rows, columns, inner = sizes
    a = floats(inner, rows) if turned[0] else floats(rows, inner)
    b = floats(columns, inner) if turned[1] else floats(inner, columns)
    inputs = [a, b]
    attrs: dict[str, int | float] = {"transpose_a": turned[0], "transpose_b": turned[1]}
    if added[0]:
        inputs.append(floats(columns))
        attrs["bias"] = 1
    if added[1]:
        inputs.append(floats(rows, columns))
        attrs["addend"] = 1
    case = Case("matmul", tuple(inputs), attrs)
    out = np.full((rows, columns), np.nan, np.float32)
    for part in range(parts):
        workspace = np.full(gemm.workspace_nbytes(rows, inner), 0xFF, np.uint8)
        product = product_of(Call(case.inputs, (out,), attrs, workspace, part, parts))
        if product.is_empty:
            continue
        if through_blas:
            assert blas.load()
            bind_blas(product)()
        else:
            bind_tiles(product, workspace)()
    assert_close(out, case.expected[0], "output")


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 9),
    length=st.integers(1, 140),
    heads=st.integers(1, 3),
    width=st.integers(1, 9),
    rate=st.sampled_from([0.0, 0.5]),
    parts=st.integers(1, 4),
)
def test_attention_of_any_size(
    batch: int, length: int, heads: int, width: int, rate: float, parts: int
) -> None:
    attrs: Attrs = {"heads": heads, "rate": rate, "stream": 1} if rate else {"heads": heads}
    key = (KEY,) if rate else ()
    qkv = floats(batch, length, 3 * heads * width)
    forward = Case("attention", (qkv, *key), attrs)
    bound = bind(forward, {}, parts)
    for call in bound.calls:
        call()
    assert_right(forward, bound)
    dout = floats(*bound.outputs[0].shape)
    backward = Case("attention_backward", (qkv, *bound.outputs, dout, *key), attrs)
    bound = bind(backward, {}, parts)
    for call in bound.calls:
        call()
    assert_right(backward, bound)
