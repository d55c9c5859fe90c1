"""Matrix products on the emulated NPU against float64, over GPT-2's shapes and random ones."""

import random
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.ops.builder import Builder
from aieflow.ops.graph import Node
from aieflow.ops.matmul import MATMUL, matmul_operands, matmul_reference
from aieflow.ops.op import Array
from aieflow.ops.spec import Spec
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import Placement, place_on
from aieflow.tools.emulation import open_emulated_npu

SAMPLED = 48  # rows of a large product that are computed again in float64


@pytest.fixture(scope="module", params=["phoenix", "strix"])
def devices(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Device]]:
    folder = tmp_path_factory.mktemp("xclbin")
    npu = open_emulated_npu(load_machine(request.param), folder)
    with closing(npu), closing(CpuDevice(1)) as cpu:
        yield {"cpu": cpu, "npu": npu}


def rounded(x: Array) -> Array:
    """To bf16's 8 significant bits, nearest even; x holds no NaN."""
    bits = x.view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.astype(np.uint32).view(np.float32)


def check(devices: dict[str, Device], node: Node, seed: int) -> None:
    """Run one matmul node on the NPU, and hold it against float64, element by element."""
    rng = np.random.default_rng(seed)
    builder = Builder("one product")
    given = [builder.feed(f"x{place}", spec) for place, spec in enumerate(node.input_specs)]
    (out,) = builder.apply(MATMUL, given, ["y"], node.attrs)
    graph = builder.finish([out])
    feeds: dict[str, Array] = {
        value.name: rng.standard_normal(value.spec.shape, np.float32) for value in given
    }
    plan = place_on(graph, devices, Placement("gemm-on-npu"))
    with Executor(plan, devices, {}) as executor:
        executor.run(feeds)
        found = executor.array("y").reshape(-1, out.spec.columns).copy()
    a, b = (x.reshape(-1, x.shape[-1]) for x in (feeds["x0"], feeds["x1"]))
    a = a.T if node.attrs.get("transpose_a") else a
    b = b.T if node.attrs.get("transpose_b") else b
    rows = np.sort(rng.permutation(len(a))[:SAMPLED]) if len(a) > SAMPLED else np.arange(len(a))
    extra, size = np.zeros(found[rows].shape), np.zeros(found[rows].shape)
    bias, addend = matmul_operands(node.attrs)
    for place in (bias, addend):
        if place is not None:
            added = feeds[f"x{place}"]
            added = added if place == bias else added.reshape(found.shape)[rows]
            extra, size = extra + added, size + np.abs(added)
    a = np.ascontiguousarray(a[rows])
    b = np.ascontiguousarray(b)
    mass = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
    last = 2.0**-24 * size * 3  # bias and addend are added in float32
    # bf16 keeps 8 bits: each operand is off by 2^-8 of itself at most, their product by 2^-7.
    exact = a.astype(np.float64) @ b.astype(np.float64) + extra
    assert np.all(np.abs(found[rows] - exact) <= 2.0**-7 * 1.01 * mass + last)
    # Products of such operands are exact in float32; a sum of K of them is off by K 2^-24.
    sums = rounded(a).astype(np.float64) @ rounded(b).astype(np.float64) + extra
    inner = a.shape[1] + 2
    assert np.all(np.abs(found[rows] - sums) <= inner * 2.0**-24 * 1.01 * mass + last)


def products() -> list[Node]:
    """Every kind of matrix product of the 124M training step at 256 tokens, once."""
    graph = training_step(PRESETS["124M"], 4, 64)
    kinds: dict[object, Node] = {}
    for node in graph.nodes:
        if node.op is MATMUL:
            kinds.setdefault((node.input_specs, tuple(sorted(node.attrs.items()))), node)
    return list(kinds.values())


def is_the_heads(node: Node) -> bool:
    return any(PRESETS["124M"].vocab_size in spec.shape for spec in node.input_specs)


@pytest.mark.parametrize(
    "node",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.slow] if is_the_heads(each) else [])
        for each in products()
    ],
)
def test_products_of_gpt2(devices: dict[str, Device], node: Node) -> None:
    check(devices, node, seed=1)


@pytest.mark.parametrize("part", range(10))
def test_random_products(devices: dict[str, Device], part: int) -> None:
    """300 in all, on two generations."""
    draw = random.Random(part)
    for number in range(15):
        M, K, N = (draw.choice([1, 2, 63, 64, 65, 257, draw.randint(1, 600)]) for _ in range(3))
        attrs = dict.fromkeys(("transpose_a", "transpose_b", "bias", "addend"), 1)
        attrs = {name: 1 for name in attrs if draw.random() < 0.5}
        builder = Builder("random")
        specs = [
            Spec((K, M) if "transpose_a" in attrs else (M, K)),
            Spec((N, K) if "transpose_b" in attrs else (K, N)),
        ]
        specs += [Spec((N,))] if "bias" in attrs else []
        specs += [Spec((M, N))] if "addend" in attrs else []
        operands = [builder.feed(f"x{place}", spec) for place, spec in enumerate(specs)]
        builder.apply(MATMUL, operands, ["y"], attrs)
        check(devices, builder.nodes[0], seed=part * 100 + number)


def test_the_bound_sees_an_operand_rounded_one_bit_too_far() -> None:
    x, w = (np.random.default_rng(seed).standard_normal((64, 64), np.float32) for seed in (0, 1))
    coarse = (x.view(np.uint32) & np.uint32(0xFFFE0000)).view(np.float32)
    (found,) = matmul_reference((coarse, rounded(w)), {})
    sums = rounded(x).astype(np.float64) @ rounded(w).astype(np.float64)
    mass = np.abs(x).astype(np.float64) @ np.abs(w)
    assert np.any(np.abs(found - sums) > 66 * 2.0**-24 * 1.01 * mass)
