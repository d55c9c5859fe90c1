"""A matmul becomes nodes for the NPU: they compute it, are cut where limits demand, share packs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.cpu.catalogue import KERNELS
from aieflow.ops.errors import GraphError
from aieflow.ops.graph import Graph, Node
from aieflow.ops.interpret import interpret
from aieflow.ops.kernel import Call, ChainKernel, HostKernel, Kernel
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.catalogue import design_kernels, kernels
from aieflow.ops.npu.design import DESIGNS, GemmDesign
from aieflow.ops.npu.expansion import chunks, expand_matmul
from aieflow.ops.npu.generation import NPU1, NPU2
from aieflow.ops.npu.kernels import CONVERSIONS, NpuKernel
from aieflow.ops.npu.ops import OPS
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.op import Array
from aieflow.ops.spec import Spec
from aieflow.runtime.expansion import expand

SMALL1 = GemmDesign(NPU1, 16, 8, 16, columns=4)  # granule 64 x 8 x 64
SMALL2 = GemmDesign(NPU2, 8, 8, 32, columns=8)  # granule 32 x 8 x 256
FEW = replace(NPU1, iterations_max=2)  # at most 128 columns a product


@dataclass(frozen=True, slots=True)
class Product:
    """A matmul to expand: sizes, options, how it is cut."""

    M: int
    K: int
    N: int
    options: tuple[str, ...] = ()
    inner_max: int = 8192
    buffer_nbytes: int = 1 << 20
    three_axes: bool = False

    @property
    def graph(self) -> Graph:
        builder = Builder("product")
        rows = (2, self.M // 2) if self.three_axes else (self.M,)
        a = (self.K, self.M) if "transpose_a" in self.options else (*rows, self.K)
        b = (self.N, self.K) if "transpose_b" in self.options else (self.K, self.N)
        operands = [builder.feed("a", Spec(a)), builder.feed("b", Spec(b))]
        if "bias" in self.options:
            operands.append(builder.feed("bias", Spec((self.N,))))
        if "addend" in self.options:
            operands.append(builder.feed("addend", Spec((*rows, self.N))))
        (y,) = builder.apply(MATMUL, operands, ["y"], dict.fromkeys(self.options, 1))
        return builder.finish([y])

    def expanded(self, design: GemmDesign) -> Graph:
        graph = self.graph
        chain = expand_matmul(graph.nodes[0], design, self.inner_max, self.buffer_nbytes)
        expanded = Graph("expanded", graph.feeds, (), chain, graph.results)
        expanded.check()
        return expanded


def integers(graph: Graph) -> dict[str, Array]:
    """Feeds of small integers: exact in bf16, and sums exact in fp32 in any order."""
    random = np.random.default_rng(len(graph.feeds))
    return {
        value.name: random.integers(-8, 9, value.spec.shape).astype(np.float32)
        for value in graph.feeds
    }


def run_kernels(
    graph: Graph, feeds: Mapping[str, Array], all_kernels: Mapping[str, Kernel]
) -> Array:
    """The result, with host kernels in two parts each and in place where the op allows."""
    values = dict(feeds)
    for node in graph.nodes:
        inputs = tuple(values[value.name] for value in node.inputs)
        kernel = all_kernels[node.op.name]
        (output,) = node.outputs
        if not isinstance(kernel, HostKernel):
            (values[output.name],) = node.op.reference(inputs, node.attrs)
            continue
        out = np.full(output.spec.shape, np.nan, np.float32)
        if output.spec.dtype == "bfloat16":
            out = np.full(output.spec.shape, 0xFFFF, np.uint16)
        elif node.attrs.get("addend") or node.attrs.get("so_far"):
            out = values[node.inputs[-1].name]  # its last reader
        for part in range(2):
            workspace = np.empty(kernel.workspace(node), np.uint8)
            kernel.bind(Call(inputs, (out,), node.attrs, workspace, part, 2))()
        values[output.name] = out
    return values[graph.results[0].name]


# C 48, 40 tokens, 301 words: GPT-2's products, all of a training step, small
GPT2 = [
    Product(40, 48, 144, ("bias",), three_axes=True),
    Product(40, 48, 48, ("bias", "addend"), three_axes=True),
    Product(40, 192, 48, ("bias", "addend"), three_axes=True),
    Product(40, 144, 48, ("transpose_b",), three_axes=True),
    Product(40, 48, 192, ("transpose_b", "addend"), three_axes=True),
    Product(48, 40, 144, ("transpose_a",)),
    Product(192, 40, 48, ("transpose_a", "addend")),
    Product(40, 48, 301, ("transpose_b",)),
    Product(40, 301, 48, (), inner_max=104),
    Product(301, 40, 48, ("transpose_a", "addend"), buffer_nbytes=32768),
]
CUT = [
    Product(200, 100, 300, ("bias",), inner_max=32, buffer_nbytes=40000),
    Product(200, 100, 300, ("transpose_a", "transpose_b", "addend"), 32, 40000),
    Product(200, 100, 300, ("transpose_b", "bias", "addend"), 32, 40000),
    Product(1, 1, 1),
    Product(64, 8, 64),
    Product(65, 9, 257),
]


@pytest.mark.parametrize("design", [SMALL1, replace(SMALL1, generation=FEW), SMALL2])
@pytest.mark.parametrize("product", [*GPT2, *CUT], ids=str)
def test_an_expansion_computes_the_product(product: Product, design: GemmDesign) -> None:
    given_ = integers(product.graph)
    expected = interpret(product.graph, given_)["y"]
    expanded = product.expanded(design)
    assert np.array_equal(interpret(expanded, given_)["y"], expected)
    out = run_kernels(expanded, given_, design_kernels(design))
    assert np.array_equal(out, expected)
    assert sum(node.flops for node in expanded.nodes if node.op.name == "npu_gemm") == (
        2 * product.M * product.K * product.N
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.data())
def test_any_product(data: st.DataObject) -> None:
    options = ("transpose_a", "transpose_b", "bias", "addend")
    M, K, N = (data.draw(st.integers(1, most)) for most in (150, 60, 400))
    product = Product(
        M,
        K,
        N,
        tuple(option for option in options if data.draw(st.booleans())),
        data.draw(st.sampled_from((8, 24, 8192))),
        data.draw(st.sampled_from((1, 50000, 1 << 20))),
    )
    given_ = integers(product.graph)
    expected = interpret(product.graph, given_)["y"]
    for design in (replace(SMALL1, generation=FEW), SMALL2):
        assert np.array_equal(interpret(product.expanded(design), given_)["y"], expected)


def test_operands_are_rounded_and_sums_are_not() -> None:
    product = Product(70, 300, 90, inner_max=104)
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((70, 300), (300, 90)))
    y = interpret(product.expanded(SMALL1), {"a": a, "b": b})["y"]
    rounded = [from_bfloat16(to_bfloat16(x)).astype(np.float64) for x in (a, b)]
    scale = np.abs(rounded[0]) @ np.abs(rounded[1])
    # 300 sums in fp32 in any order are off by less than 300 eps of the absolute sum; bf16's own
    # rounding is 2^-9, and shows against the product of what was not rounded
    assert (np.abs(y - rounded[0] @ rounded[1]) <= 300 * 2.0**-24 * scale).all()
    assert np.abs(y - a.astype(np.float64) @ b).max() > 300 * 2.0**-24 * scale.max()


def test_names_and_order() -> None:
    """Two chunks of columns by two of inner size: A's chunks are packed once, B's each."""
    product = Product(40, 16, 100, ("bias", "addend"), inner_max=8)
    expanded = product.expanded(replace(SMALL1, generation=replace(NPU1, iterations_max=1)))
    assert [(node.name, [value.name for value in node.inputs]) for node in expanded.nodes] == [
        ("y:pack_a.k0", ["a"]),
        ("y:pack_b.n0.k0", ["b"]),
        ("y:gemm.n0.k0", ["y:pack_a.k0", "y:pack_b.n0.k0"]),
        ("y:unpack.n0.k0", ["y:gemm.n0.k0", "bias", "addend"]),
        ("y:pack_a.k1", ["a"]),
        ("y:pack_b.n0.k1", ["b"]),
        ("y:gemm.n0.k1", ["y:pack_a.k1", "y:pack_b.n0.k1"]),
        ("y:unpack.n0.k1", ["y:gemm.n0.k1", "y:unpack.n0.k0"]),
        ("y:pack_b.n1.k0", ["b"]),
        ("y:gemm.n1.k0", ["y:pack_a.k0", "y:pack_b.n1.k0"]),
        ("y:unpack.n1.k0", ["y:gemm.n1.k0", "bias", "y:unpack.n0.k1"]),
        ("y:pack_b.n1.k1", ["b"]),
        ("y:gemm.n1.k1", ["y:pack_a.k1", "y:pack_b.n1.k1"]),
        ("y:unpack.n1.k1", ["y:gemm.n1.k1", "y:unpack.n1.k0"]),
    ]
    assert expanded.nodes[-1].outputs == product.graph.nodes[0].outputs
    assert all(node.outputs[0].name == node.name for node in expanded.nodes[:-1])


def test_an_uncut_product_has_plain_names() -> None:
    names = [node.name for node in Product(1, 1, 1).expanded(SMALL1).nodes]
    assert names == ["y:pack_a", "y:pack_b", "y:gemm", "y:unpack"]


def pack_keys(graph: Graph, node: Node, design: GemmDesign) -> dict[str, set[str]]:
    """What the runtime would merge packs by: op, input, attributes; for each source."""
    keys: dict[str, set[str]] = {value.name: set() for value in graph.feeds}
    for part in expand_matmul(node, design):
        if part.op.name == "npu_pack":
            keys[part.inputs[0].name].add(str(sorted(part.attrs.items())))
    return keys


def test_packs_of_one_source_and_layout_are_equal() -> None:
    """Two linear layers read x: whatever their widths, its pack is the same; transposed, not."""
    builder = Builder("layers")
    x = builder.feed("x", Spec((300, 768)))
    wide, narrow = (builder.feed(f"w{n}", Spec((768, n))) for n in (2304, 100))
    builder.apply(MATMUL, [x, wide], ["y"])
    builder.apply(MATMUL, [x, narrow], ["z"])
    builder.apply(MATMUL, [x, builder.feed("d", Spec((300, 40)))], ["dw"], {"transpose_a": 1})
    graph = builder.finish([])
    first, second, third = (pack_keys(graph, node, DESIGNS["npu1"]) for node in graph.nodes)
    assert first["x"] == second["x"]
    assert len(first["x"]) == 1
    assert not first["x"] & third["x"]
    # the head's chunks of a weight do not depend on the number of tokens
    weights = []
    for tokens in (256, 1024):
        builder = Builder("head")
        operands = [builder.feed("x", Spec((tokens, 768))), builder.feed("wte", Spec((50257, 768)))]
        builder.apply(MATMUL, operands, ["logits"], {"transpose_b": 1})
        graph = builder.finish([])
        weights.append(pack_keys(graph, graph.nodes[0], DESIGNS["npu1"])["wte"])
    assert weights[0] == weights[1]
    assert len(weights[0]) == 7


def test_the_head_is_cut_in_chunks_of_columns() -> None:
    """50257 words in 7 chunks of at most 8192 (the transfers' limit), A packed once."""
    product = Product(1024, 768, 50257, ("transpose_b",), buffer_nbytes=32 << 20)
    chain = expand_matmul(product.graph.nodes[0], DESIGNS["npu1"])
    kinds = [node.op.name for node in chain]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "npu_pack": 1 + 7,
        "npu_gemm": 7,
        "npu_unpack": 7,
    }
    widths = [int(node.attrs["N"]) for node in chain if node.op.name == "npu_gemm"]
    assert widths == [7296] * 6 + [50257 - 6 * 7296]


@pytest.mark.parametrize("can_convert", [True, False])
def test_conversions_are_the_hosts_where_it_can(can_convert: bool) -> None:
    """Packed weights, renewed after their update, too; otherwise they stay with the device."""
    graph = training_step(
        ModelConfig(vocab_size=40, seq_len=8, layers=1, channels=16, heads=2), 2, 8
    )
    host = {**KERNELS, **CONVERSIONS} if can_convert else KERNELS
    around = {"cpu": host, "npu": kernels(NPU1)}
    places = ["npu" if node.op is MATMUL else "cpu" for node in graph.nodes]
    expansion = expand(graph, places, around)
    found = {
        (node.op.name, home)
        for node, home in zip(expansion.graph.nodes, expansion.homes, strict=True)
        if node.op.name.startswith("npu")
    }
    converting = "cpu" if can_convert else "npu"
    assert found == {
        ("npu_gemm", "npu"),
        *((name, converting) for name in ("npu_pack", "npu_repack", "npu_unpack")),
    }
    assert len(expansion.derived) == 2 * 5  # each weight in two layouts


@pytest.mark.parametrize("product", [*GPT2, *CUT], ids=str)
def test_conversions_move_their_ranges_alone(product: Product) -> None:
    """However a product is cut, its unpacks together read and write each element once a pass."""
    nodes = product.expanded(SMALL1).nodes
    chunks_of_k = len({node.attrs["first_column"] for node in nodes if ":pack_a" in node.name})
    adds = chunks_of_k - 1 + ("addend" in product.options)
    bias = 4 * product.N * len({n.attrs["first_row"] for n in nodes if ":unpack" in n.name})
    moved = sum(node.nbytes for node in nodes if node.op.name == "npu_unpack")
    assert moved == 4 * product.M * product.N * (2 * chunks_of_k + adds) + (
        bias if "bias" in product.options else 0
    )
    read = sum(n.nbytes - n.outputs[0].spec.nbytes for n in nodes if ":pack_a" in n.name)
    assert read == 4 * product.M * product.K


@pytest.mark.parametrize(
    ("total", "limit", "sizes"),
    [
        (1, 256, [1]),
        (256, 256, [256]),
        (257, 256, [192, 65]),
        (640, 256, [256, 256, 128]),
        (641, 256, [256, 256, 129]),
        (300, 1, [64, 64, 64, 64, 44]),
    ],
)
def test_chunks(total: int, limit: int, sizes: list[int]) -> None:
    pieces = chunks(total, 64, limit)
    assert [piece.size for piece in pieces] == sizes
    assert [piece.first for piece in pieces] == np.cumsum([0, *sizes[:-1]]).tolist()
    assert [piece.index for piece in pieces] == list(range(len(sizes)))


def test_the_catalogue() -> None:
    for generation in (NPU1, NPU2):
        found = kernels(generation)
        assert set(found) == {*OPS, "matmul"}
        assert all(name == kernel.op.name for name, kernel in found.items())
        chain, gemm = found["matmul"], found["npu_gemm"]
        assert isinstance(chain, ChainKernel)
        assert isinstance(gemm, NpuKernel)
        node = Product(300, 768, 768).graph.nodes[0]
        assert [part.name for part in chain.expand(node)] == [
            part.name for part in expand_matmul(node, DESIGNS[generation.name])
        ]
        assert (chain.split(node).units, chain.workspace(node)) == (1, 0)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, {"first_row": 1}, r"takes up to \(41, 48\) of \(40, 48\)"),
        (0, {"rows": 32}, r"takes \(40, 48\), more than the layout's \(32, 48\)"),
        (2, {"N": 200}, r"packed B must be bfloat16\[12288\], given bfloat16\[9216\]"),
        (2, {"M": 65}, r"packed A must be bfloat16\[6144\], given bfloat16\[3072\]"),
        (3, {"addend": 1}, "takes 3 operands, given 2"),
        (3, {"so_far": 1, "addend": 1}, "takes 3 operands, given 2"),
        (3, {"axis_1": 145}, r"bias must have shape \(145,\)"),
        (3, {"axis_0": 39}, r"takes up to \(40, 144\) of \(39, 144\)"),
        (3, {"rows": 128}, r"packed C must be float32\[24576\], given float32\[12288\]"),
    ],
)
def test_shape_rules_refuse(place: int, change: dict[str, int], message: str) -> None:
    node = Product(40, 48, 144, ("bias",)).expanded(SMALL1).nodes[place]
    node.op.infer(node.input_specs, node.attrs)
    with pytest.raises(GraphError, match=message):
        node.op.infer(node.input_specs, {**node.attrs, **change})
