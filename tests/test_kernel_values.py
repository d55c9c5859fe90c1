"""CPU kernels at the edges: values far out, scalars that change, refused operands, other BLAS.

Also what their speed rests on: exp is right to 3e-7 and loops over it are vectorised.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
import pytest

from aieflow.ops.catalogue import OPS
from aieflow.ops.cpu.catalogue import KERNELS
from aieflow.ops.cpu.compile import compiled, forget_stale
from aieflow.ops.cpu.exponential import exponential
from aieflow.ops.errors import DeviceError, GraphError
from aieflow.ops.kernel import Call
from aieflow.ops.op import Array, Arrays, Attrs

RNG = np.random.default_rng(5)
WORKSPACE = 1 << 16  # bytes, enough for every call here


def floats(*shape: int) -> Array:
    return RNG.standard_normal(shape, dtype=np.float32)


def bind(op: str, inputs: Arrays, outputs: Arrays, attrs: Attrs) -> Callable[[], None]:
    return KERNELS[op].bind(Call(inputs, outputs, attrs, np.zeros(WORKSPACE, np.uint8)))


def test_rates_and_factor_of_adamw_are_read_when_called() -> None:
    attrs = {"beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "weight_decay": 0.1}
    parameter, gradient, m, v = floats(9), floats(9), floats(9), abs(floats(9))
    rates, factor = np.array([1e-2, 0.1, 0.05]), np.array([0.5], np.float32)
    inputs = (parameter, gradient, m, v, rates, factor)
    call = bind("adamw", inputs, (parameter, m, v), attrs)
    rates[:] = (0.5, 0.3, 0.2)
    factor[:] = 2
    expected = OPS["adamw"].reference(inputs, attrs)
    call()
    for given, wanted in zip((parameter, m, v), expected, strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-5, atol=1e-6)


def test_the_key_of_dropout_is_read_when_called() -> None:
    attrs = {"rate": 0.5, "stream": 1}
    x, key, out = floats(4, 50), np.array([2], np.uint64), np.empty((4, 50), np.float32)
    call = bind("dropout", (x, key), (out,), attrs)
    call()
    before = out.copy()
    key[:] = 2**64 - 1
    call()
    (expected,) = OPS["dropout"].reference((x, key), attrs)
    np.testing.assert_allclose(out, expected)
    assert (out != before).any()


def test_the_position_of_a_cache_is_read_when_called_and_must_fit() -> None:
    qkv, position, out = floats(1, 2, 12), np.array([3]), np.empty((1, 2, 4), np.float32)
    keys, values = floats(1, 8, 4), floats(1, 8, 4)
    inputs = (qkv, keys, values, position)
    call = bind("attention_cached", inputs, (out, keys, values), {"heads": 1})
    for place in (0, 6):
        position[:] = place
        expected = OPS["attention_cached"].reference(inputs, {"heads": 1})
        call()
        for given, wanted in zip((out, keys, values), expected, strict=True):
            np.testing.assert_allclose(given, wanted, atol=1e-6)
    for place in (7, -1):
        position[:] = place
        with pytest.raises(DeviceError, match=rf"2 tokens at position {place} .* cache of 8"):
            call()


def test_another_dtype_or_a_gap_is_refused() -> None:
    wide, gap = np.zeros((2, 3)), np.zeros((2, 6), np.float32)[:, ::2]
    for x in (wide, gap):
        with pytest.raises(GraphError, match="contiguous float32"):
            bind("gelu", (x,), (np.zeros((2, 3), np.float32),), {})


@pytest.mark.parametrize("op", ["cross_entropy", "cross_entropy_gradient"])
def test_a_loss_that_is_not_a_number_stays_so(op: str) -> None:
    logits, targets = floats(4, 3000), RNG.integers(1, 3000, 4).astype(np.int32)
    logits[0, 2500], logits[1, 7] = np.nan, np.inf
    logits[2] = 1e30
    logits[3, targets[3] - 1] = -np.inf
    losses, dlogits = np.empty(4, np.float32), np.empty_like(logits)
    has_gradient = op == "cross_entropy_gradient"
    outputs = (losses, dlogits) if has_gradient else (losses,)
    bind(op, (logits, targets), outputs, {"scale": 1.0})()
    assert np.isnan(losses[:2]).all()
    assert losses[2] == pytest.approx(np.log(3000), rel=1e-6)
    assert np.isfinite(losses[3])
    if has_gradient:
        assert np.isnan(dlogits[0]).any()
        assert np.isfinite(dlogits[2:]).all()


def test_a_softmax_far_below_zero_is_a_softmax() -> None:
    logits, targets, losses = floats(4, 9) - 500, np.arange(4, dtype=np.int32), np.empty(4, "f4")
    bind("cross_entropy", (logits, targets), (losses,), {})()
    (expected,) = OPS["cross_entropy"].reference((logits.astype(np.float64), targets), {})
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    qkv, out, lse = floats(1, 3, 12), np.empty((1, 3, 4), "f4"), np.empty((1, 1, 3), "f4")
    qkv[..., :4], qkv[..., 4:8] = 20, -20  # each score is -800
    bind("attention", (qkv,), (out, lse), {"heads": 1})()
    means = qkv[0, :, 8:].cumsum(axis=0) / np.arange(1, 4)[:, None]
    np.testing.assert_allclose(out[0], means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse[0, 0], -800 + np.log(np.arange(1, 4)), rtol=1e-6)


def test_values_that_are_not_numbers_pass_through() -> None:
    x = floats(2, 8)
    x[0, 3] = np.nan
    ones, row = np.ones(8, np.float32), np.empty(2, np.float32)
    out, sums = np.empty_like(x), np.empty(1)
    bind("layernorm", (x, ones, ones), (out, row, row.copy()), {"epsilon": 1e-5})()
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
    bind("squared_norm", (x,), (sums,), {})()
    assert np.isnan(sums).all()


def test_gelu_far_from_zero() -> None:
    x = np.array([-1e4, -100, -20, -6, 0, 6, 20, 100, 1e4, np.nan], np.float32)
    for op, inputs in (("gelu", (x,)), ("gelu_backward", (x, np.ones_like(x)))):
        out = np.empty_like(x)
        bind(op, inputs, (out,), {})()
        wide = tuple(operand.astype(np.float64) for operand in inputs)
        (expected,) = OPS[op].reference(wide, {})
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@numba.njit(error_model="numpy", fastmath={"contract", "reassoc", "nsz"})  # type: ignore[untyped-decorator,unused-ignore]
def exponentials(x: Array, out: Array) -> None:
    for i in range(x.size):
        out[i] = exponential(x[i])


def test_exp_is_right_to_3e_7() -> None:
    x = np.concatenate([np.linspace(-87, 88, 400_001), np.linspace(-1, 1, 100_001)])
    x = x.astype(np.float32)
    out = np.empty_like(x)
    exponentials(x, out)
    expected = np.exp(x.astype(np.float64))
    assert (np.abs(out - expected) / expected).max() < 3e-7
    edges = np.array([-np.inf, -1e30, -100, 0, 100, np.inf, np.nan], np.float32)
    out = np.empty_like(edges)
    exponentials(edges, out)
    assert (out[:3] < 2e-38).all()
    assert out[3] == 1
    assert (out[4:6] > 1e38).all()
    assert np.isnan(out[6])


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly")
def test_loops_over_exp_are_vectorised() -> None:
    exponentials(floats(8), floats(8))
    (assembly,) = getattr(exponentials, "inspect_asm")().values()  # noqa: B009
    assert len(re.findall(r"(?:vfmadd|vmulps|mulps)\S*\s.*%[xyz]mm", assembly)) > 5
    assert not re.findall(r"call.*\bexpf?\b", assembly)


def test_machine_code_older_than_any_source_is_forgotten(tmp_path: Path) -> None:
    folder = tmp_path / "ops" / "cpu"
    (folder / "__pycache__").mkdir(parents=True)
    index = folder / "__pycache__" / "kernel.nbi"
    sources = [folder / "kernel.py", folder / "callee.py", folder.parent / "random.py"]
    for source in sources:
        for path in (*sources, index):
            path.touch()
            os.utime(path, (1000, 1000))
        forget_stale(folder)
        assert index.exists()
        os.utime(source, (2000, 2000))
        forget_stale(folder)
        assert not index.exists()


WITH_ANOTHER_BLAS = """
import sys
from aieflow.ops.cpu import blas
blas.load = {load}
blas.{register}
sys.path.insert(0, {tests!r})
import test_kernels as tests
for case in tests.CASES:
    if case.op.startswith(("matmul", "attention")):
        bound = tests.bind(case, {{}}, 2)
        for call in bound.calls:
            call()
        tests.assert_right(case, bound)
print("right")
"""


@pytest.mark.parametrize(
    ("load", "register"),
    [
        pytest.param("lambda: False", "register_plain()", id="none"),
        pytest.param("lambda: True", "register_address(blas.plain(32), 32)", id="32-bit-sizes"),
    ],
)
def test_other_libraries_than_numpys(load: str, register: str) -> None:
    """In a process of its own, since compiled code keeps the library it was linked to."""
    tests = str(Path(__file__).parent)
    program = WITH_ANOTHER_BLAS.format(load=load, register=register, tests=tests)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "right\n", done.stderr


def test_without_a_place_for_a_cache_kernels_are_compiled_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_locator(self: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    def twice(x: float) -> float:
        return 2 * x

    monkeypatch.setattr("numba.core.dispatcher.Dispatcher.enable_caching", no_locator)
    assert compiled(twice)(21.0) == 42.0
