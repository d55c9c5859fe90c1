"""Products by tiles: every edge of tile, panel and block; what is added; the same bits, divided."""

import itertools
import re

import numba
import numpy as np
import pytest
from llvmlite.binding import get_host_cpu_features

from aieflow.ops.cpu import gemm, vector
from aieflow.ops.cpu.gemm import Sources
from aieflow.ops.cpu.operand import NO_FLOATS
from aieflow.ops.op import Array

ROWS, COLUMNS = vector.TILE_ROWS, vector.TILE_COLUMNS
TRANSPOSITIONS = [(False, False), (False, True), (True, False), (True, True)]


def floats(*shape: int) -> Array:
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape).astype(np.float32)


def product(
    a: Array,
    b: Array,
    transposed: tuple[bool, bool],
    bias: Array | None = None,
    addend: Array | None = None,
    blocks: list[tuple[int, int, int, int]] | None = None,
    out: Array | None = None,
) -> Array:
    """A B + bias + addend, computed block by block; whatever is not computed stays NaN."""
    rows, columns = a.shape[int(transposed[0])], b.shape[1 - int(transposed[1])]
    out = np.full((rows, columns), np.nan, np.float32) if out is None else out
    sources = Sources(
        NO_FLOATS if bias is None else bias,
        NO_FLOATS.reshape(1, 1) if addend is None else addend,
        bias is not None,
        addend is not None,
    )
    for block in blocks or [(0, rows, 0, columns)]:
        size = rows, a.shape[1 - int(transposed[0])]
        memory = np.full(
            gemm.workspace_nbytes(*size), 0xFF, np.uint8
        )  # NaN where nothing is packed
        gemm.multiply(out, a, b, transposed, block, sources, gemm.workspace(memory, *size))
    return out


def assert_product(
    out: Array, a: Array, b: Array, transposed: tuple[bool, bool], *added: Array
) -> None:
    wide_a, wide_b = (
        (x.T if turned else x).astype(np.float64)
        for x, turned in zip((a, b), transposed, strict=True)
    )
    exact = wide_a @ wide_b + sum(added)
    # Each of K products and sums rounds by 2^-24 of a partial sum, itself at most sum |a| |b|.
    size = np.abs(wide_a) @ np.abs(wide_b) + sum(np.abs(x) for x in added)
    inner = wide_a.shape[1]
    assert (np.abs(out - exact) <= (inner + 2) * 2.0**-24 * size).all()


def operands(
    rows: int, columns: int, inner: int, transposed: tuple[bool, bool]
) -> tuple[Array, Array]:
    a = floats(inner, rows) if transposed[0] else floats(rows, inner)
    return a, floats(columns, inner) if transposed[1] else floats(inner, columns)


@pytest.mark.parametrize("transposed", TRANSPOSITIONS)
@pytest.mark.parametrize("rows", [1, ROWS, 2 * ROWS + 3, 3 * ROWS])
@pytest.mark.parametrize("columns", [1, COLUMNS, 2 * COLUMNS + 17])
@pytest.mark.parametrize("inner", [1, 3, 16, 50, gemm.BLOCK_INNER, gemm.BLOCK_INNER + 1])
def test_every_edge(rows: int, columns: int, inner: int, transposed: tuple[bool, bool]) -> None:
    a, b = operands(rows, columns, inner, transposed)
    bias, addend = floats(columns), floats(rows, columns)
    assert_product(product(a, b, transposed), a, b, transposed)
    assert_product(product(a, b, transposed, bias), a, b, transposed, bias)
    out = product(a, b, transposed, bias, addend)
    assert_product(out, a, b, transposed, bias, addend)
    in_place = addend.copy()
    product(a, b, transposed, None, in_place, out=in_place)
    assert_product(in_place, a, b, transposed, addend)


@pytest.mark.parametrize("transposed", TRANSPOSITIONS)
def test_several_blocks_of_rows_and_of_inner(transposed: tuple[bool, bool]) -> None:
    rows, columns, inner = gemm.BLOCK_ROWS + 9, COLUMNS + 5, 2 * gemm.BLOCK_INNER + 37
    a, b = operands(rows, columns, inner, transposed)
    addend = floats(rows, columns)
    out = product(a, b, transposed, None, addend)
    assert_product(out, a, b, transposed, addend)


@pytest.mark.parametrize("transposed", TRANSPOSITIONS)
def test_bits_do_not_hang_on_the_division(transposed: tuple[bool, bool]) -> None:
    rows, columns, inner = 45, 130, 400
    a, b = operands(rows, columns, inner, transposed)
    bias, addend = floats(columns), floats(rows, columns)
    whole = product(a, b, transposed, bias, addend)
    for cuts in itertools.product([(0, 45), (0, 7, 45)], [(0, 130), (0, 48, 130), (0, 1, 77, 130)]):
        across, along = (list(itertools.pairwise(each)) for each in cuts)
        blocks = [(*i, *j) for i in across for j in along]
        divided = product(a, b, transposed, bias, addend, blocks)
        assert (divided == whole).all(), blocks


def test_a_block_writes_nothing_beside_it() -> None:
    a, b = operands(40, 120, 33, (False, False))
    out = product(a, b, (False, False), blocks=[(3, 30, 5, 110)])
    inside = np.zeros(out.shape, bool)
    inside[3:30, 5:110] = True
    assert np.isfinite(out[inside]).all()
    assert np.isnan(out[~inside]).all()


def test_nan_and_infinity_stay_in_their_row() -> None:
    a, b = operands(12, 60, 37, (False, False))
    a[5, 36], a[9, 0] = np.nan, np.inf
    out = product(a, b, (False, False))
    assert np.isnan(out[5]).all()
    assert np.isinf(out[9]).all()
    assert np.isfinite(np.delete(out, (5, 9), axis=0)).all()


@numba.njit(error_model="numpy", fastmath={"contract", "nsz"})  # type: ignore[untyped-decorator,unused-ignore]
def one_tile(K: int, a: int, b: int, c: int, lines: int) -> None:
    vector.multiply_tile(K, a, b, c, vector.TILE_COLUMNS, 0, 0, 0, 0, b, lines, c, lines)


@pytest.mark.skipif(
    not get_host_cpu_features().get("avx512f"), reason="a tile fits only AVX-512's registers"
)
def test_a_tile_stays_in_registers() -> None:
    a, b = floats(vector.UNROLLED, ROWS), floats(vector.UNROLLED, COLUMNS)
    out, lines = np.empty((ROWS, COLUMNS), np.float32), np.zeros(1, np.int64)
    one_tile(len(a), a.ctypes.data, b.ctypes.data, out.ctypes.data, lines.ctypes.data)
    assert_product(out, a, b, (True, False))
    (assembly,) = getattr(one_tile, "inspect_asm")().values()  # noqa: B009
    sums = [found.start() for found in re.finditer(r"vfmadd\w+ps\s.*%zmm", assembly)]
    assert len(sums) == vector.UNROLLED * ROWS * vector.TILE_VECTORS
    assert not re.findall(r"zmm\d+, -?\d*\(%rsp\)", assembly), "sums are spilt to memory"
