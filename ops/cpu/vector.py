"""Vector instructions that compiled kernels can call; numba itself has none.

Each function here writes LLVM's instructions into the kernel that calls it. Vectors are 16 floats,
one register of AVX-512; LLVM takes several smaller ones on a processor without, and the results are
the same. Addresses are integers, need no alignment, and are trusted.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import llvmlite.binding
import llvmlite.ir
import numba.core.cgutils
import numba.core.types
import numba.extending

LANES = 16  # floats in a vector
TILE_ROWS = 8  # of a tile of the product that is kept in registers
TILE_VECTORS = 3  # in each of its rows: 24 of 32 registers, one for A and three for B beside them
TILE_COLUMNS = LANES * TILE_VECTORS
OPEN_ROWS = 8  # of an open tile: a smaller one, whose operands lie unpacked
OPEN_VECTORS = 2
OPEN_COLUMNS = LANES * OPEN_VECTORS
UNROLLED = 4  # steps along K in one turn of the tile's loop
FLOAT = 4  # bytes
LINE = 64  # bytes of a cache line
NUMBER = 8  # bytes of an int64

# llvmlite and numba's extension interface are not annotated
_ir: Any = llvmlite.ir
_cgutils: Any = numba.core.cgutils
_types: Any = numba.core.types
_extending: Any = numba.extending
Builder: TypeAlias = Any  # llvmlite's IRBuilder
Value: TypeAlias = Any  # of llvmlite: what an instruction gives; numbers are int64
_intrinsic: Callable[[Callable[..., object]], Callable[..., None]] = _extending.intrinsic

_FLOAT, _INT32, _INT64 = _ir.FloatType(), _ir.IntType(32), _ir.IntType(64)
_BYTE_POINTER = _ir.IntType(8).as_pointer()
_VECTOR = _ir.VectorType(_FLOAT, LANES)


@functools.cache
def has_wide_registers() -> bool:
    """Whether this processor has AVX-512, so that a tile fits into its registers."""
    return bool(llvmlite.binding.get_host_cpu_features().get("avx512f"))


def _instructions(write: Callable[..., None], arguments: int) -> tuple[object, object]:
    """What numba asks of an intrinsic: its signature, and who writes its instructions."""

    def generate(context: Value, builder: Builder, signature: Value, values: Value) -> Value:
        write(builder, *values)
        return context.get_dummy_value()

    return _types.void(*[_types.int64] * arguments), generate


def _number(value: int) -> Value:
    return _ir.Constant(_INT64, value)


def _offset(builder: Builder, address: Value, nbytes: int) -> Value:
    return builder.add(address, _number(nbytes)) if nbytes else address


def _load(builder: Builder, address: Value) -> Value:
    loaded = builder.load(builder.inttoptr(address, _VECTOR.as_pointer()))
    loaded.align = FLOAT
    return loaded


def _store(builder: Builder, vector: Value, address: Value) -> None:
    stored = builder.store(vector, builder.inttoptr(address, vector.type.as_pointer()))
    stored.align = FLOAT


def _shuffle(builder: Builder, a: Value, b: Value, indices: Sequence[int]) -> Value:
    mask = _ir.Constant(_ir.VectorType(_INT32, len(indices)), list(indices))
    return builder.shuffle_vector(a, b, mask)


def _broadcast(builder: Builder, address: Value) -> Value:
    """A vector of the float at `address`."""
    one = builder.load(builder.inttoptr(address, _FLOAT.as_pointer()))
    empty = _ir.Constant(_VECTOR, _ir.Undefined)
    first = builder.insert_element(empty, one, _ir.Constant(_INT32, 0))
    return _shuffle(builder, first, empty, [0] * LANES)


def _prefetch(builder: Builder, address: Value) -> None:
    """Ask for the cache line at `address`, into the second level; any address is allowed."""
    signature = _ir.FunctionType(_ir.VoidType(), [_BYTE_POINTER, _INT32, _INT32, _INT32])
    function = _cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    to_read, second_level, data = (_ir.Constant(_INT32, value) for value in (0, 2, 1))
    pointer = builder.inttoptr(address, _BYTE_POINTER)
    builder.call(function, [pointer, to_read, second_level, data])


@_intrinsic
def copy_tile_row(context: Value, source: Value, target: Value) -> object:
    """Copy TILE_COLUMNS floats."""
    return _instructions(_write_copy_tile_row, 2)


def _write_copy_tile_row(builder: Builder, source: Value, target: Value) -> None:
    vectors = [_load(builder, _offset(builder, source, LINE * i)) for i in range(TILE_VECTORS)]
    for i, vector in enumerate(vectors):
        _store(builder, vector, _offset(builder, target, LINE * i))


@_intrinsic
def copy_tile_column(context: Value, source: Value, target: Value) -> object:
    """Copy TILE_ROWS floats."""
    return _instructions(_write_copy_tile_column, 2)


def _write_copy_tile_column(builder: Builder, source: Value, target: Value) -> None:
    pointer = _ir.VectorType(_FLOAT, TILE_ROWS).as_pointer()
    loaded = builder.load(builder.inttoptr(source, pointer))
    loaded.align = FLOAT
    _store(builder, loaded, target)


@_intrinsic
def transpose_block(
    context: Value, source: Value, step: Value, target: Value, target_step: Value
) -> object:
    """Transpose 16 x 16 floats; rows of the source and of the target lie `step` floats apart."""
    return _instructions(_write_transpose_block, 4)


def _write_transpose_block(
    builder: Builder, source: Value, step: Value, target: Value, target_step: Value
) -> None:
    for i, vector in enumerate(_transposed(builder, source, step)):
        place = builder.mul(target_step, _number(FLOAT * i))
        _store(builder, vector, builder.add(target, place))


@_intrinsic
def transpose_to_panels(
    context: Value, source: Value, step: Value, upper: Value, lower: Value
) -> object:
    """Transpose 16 x 16 floats to two panels of 8: source rows 0-7 to `upper`, 8-15 to `lower`."""
    return _instructions(_write_transpose_to_panels, 4)


def _write_transpose_to_panels(
    builder: Builder, source: Value, step: Value, upper: Value, lower: Value
) -> None:
    for i, vector in enumerate(_transposed(builder, source, step)):
        for half, panel in enumerate((upper, lower)):
            rows = range(TILE_ROWS * half, TILE_ROWS * (half + 1))
            target = _offset(builder, panel, FLOAT * TILE_ROWS * i)
            _store(builder, _shuffle(builder, vector, vector, rows), target)


def _transposed(builder: Builder, source: Value, step: Value) -> list[Value]:
    """16 vectors loaded from 16 rows, transposed: vector i holds column i of the rows."""
    rows = [
        _load(builder, builder.add(source, builder.mul(step, _number(FLOAT * i))))
        for i in range(LANES)
    ]

    def interleaved(a: Value, b: Value, width: int, is_high: bool) -> Value:
        # pieces of `width` floats of a and b in turn, from the half of each four that is asked for
        within = range(2, 4) if is_high else range(2)
        indices: list[int] = []
        for quarter in range(0, LANES, 4):
            one, other = [quarter + i for i in within], [LANES + quarter + i for i in within]
            pairs = zip(one, other, strict=True)
            indices += [i for pair in pairs for i in pair] if width == 1 else [*one, *other]
        return _shuffle(builder, a, b, indices)

    def quarters(a: Value, b: Value, chosen: tuple[int, int]) -> Value:
        # quarters (four floats) of a, then of b
        of_a = [4 * quarter + i for quarter in chosen for i in range(4)]
        return _shuffle(builder, a, b, [*of_a, *(LANES + i for i in of_a)])

    ones = [
        interleaved(rows[i], rows[i + 1], 1, is_high)
        for i in range(0, LANES, 2)
        for is_high in (False, True)
    ]
    fours: list[list[Value]] = []  # [j][g]: quarter q is column 4 q + j of the rows from 4 g on
    for j in range(4):
        low = [ones[4 * group + j // 2] for group in range(4)]
        high = [ones[4 * group + 2 + j // 2] for group in range(4)]
        pairs = zip(low, high, strict=True)
        fours.append([interleaved(a, b, 2, bool(j % 2)) for a, b in pairs])
    columns: list[Value] = [None] * LANES
    for j, (a, b, c, d) in enumerate(fours):
        for odd in range(2):
            upper = quarters(a, b, (odd, odd + 2))
            lower = quarters(c, d, (odd, odd + 2))
            columns[4 * odd + j] = quarters(upper, lower, (0, 2))
            columns[4 * (odd + 2) + j] = quarters(upper, lower, (1, 3))
    return columns


@_intrinsic
def multiply_tile(
    context: Value,
    K: Value,
    a: Value,
    b: Value,
    c: Value,
    ldc: Value,
    first: Value,
    ld_first: Value,
    second: Value,
    ld_second: Value,
    ahead_b: Value,
    lines_b: Value,
    ahead_c: Value,
    lines_c: Value,
) -> object:
    """C = A B + first + second for one tile of TILE_ROWS x TILE_COLUMNS, kept in registers.

    a is a panel (K, TILE_ROWS), b one (K, TILE_COLUMNS); K is a positive multiple of UNROLLED.
    Address 0 as `first` (or `second`) stands for none; without first there is no second. In each
    turn of the loop the lines at ahead_b + lines_b[turn] and ahead_c + lines_c[turn] are prefetched
    (int64 offsets): so memory is read while the tile is computed.
    """
    return _instructions(_write_multiply_tile, 13)


def _write_multiply_tile(builder: Builder, *arguments: Value) -> None:
    K, a, b, c, ldc, *more = arguments
    first, ld_first, second, ld_second, ahead_b, lines_b, ahead_c, lines_c = more

    def prefetch(k: Value) -> None:
        turn = builder.mul(k, _number(NUMBER // UNROLLED))
        for ahead, lines in ((ahead_b, lines_b), (ahead_c, lines_c)):
            entry = builder.inttoptr(builder.add(lines, turn), _INT64.as_pointer())
            _prefetch(builder, builder.add(ahead, builder.load(entry)))

    steps = _number(TILE_ROWS), _number(TILE_COLUMNS)
    totals = _product(builder, (TILE_ROWS, TILE_VECTORS), K, (a, b), steps, prefetch)
    none = _number(0)
    with builder.if_else(builder.icmp_signed("==", first, none)) as (alone, more_than_none):
        with alone:
            _write_tile(builder, totals, c, ldc)
        with more_than_none, builder.if_else(builder.icmp_signed("==", second, none)) as (one, two):
            with one:
                _write_tile(builder, totals, c, ldc, (first, ld_first))
            with two:
                _write_tile(builder, totals, c, ldc, (first, ld_first), (second, ld_second))


@_intrinsic
def multiply_open_tile(
    context: Value,
    K: Value,
    a: Value,
    a_step: Value,
    b: Value,
    b_step: Value,
    c: Value,
    ldc: Value,
    is_added: Value,
) -> object:
    """C = A B, or C += A B, for OPEN_ROWS x OPEN_COLUMNS, where A and B lie unpacked.

    a holds OPEN_ROWS floats at each step along K, b OPEN_COLUMNS of them; steps and ldc count
    floats. K is a positive multiple of UNROLLED.
    """
    return _instructions(_write_multiply_open_tile, 8)


def _write_multiply_open_tile(builder: Builder, *arguments: Value) -> None:
    K, a, a_step, b, b_step, c, ldc, is_added = arguments
    shape = OPEN_ROWS, OPEN_VECTORS
    totals = _product(builder, shape, K, (a, b), (a_step, b_step), lambda k: None)
    with builder.if_else(builder.icmp_signed("!=", is_added, _number(0))) as (added, alone):
        with added:
            _write_tile(builder, totals, c, ldc, (c, ldc))
        with alone:
            _write_tile(builder, totals, c, ldc)


def _product(
    builder: Builder,
    shape: tuple[int, int],
    K: Value,
    operands: tuple[Value, Value],
    steps: tuple[Value, Value],
    each_turn: Callable[[Value], None],
) -> dict[tuple[int, int], Value]:
    """A loop along K that multiplies rows of A with vectors of B; the sums, by row and vector.

    `steps` are the floats from one k to the next in A and in B; `each_turn` is written into the
    loop, given its k.
    """
    rows, vectors = shape
    signature = _ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fma = _cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")
    nbytes = [builder.mul(step, _number(FLOAT)) for step in steps]
    before = builder.block
    turn, done = builder.append_basic_block("turn"), builder.append_basic_block("done")
    builder.branch(turn)
    builder.position_at_end(turn)
    k, at_a, at_b = (builder.phi(_INT64) for _ in range(3))
    tile = [(i, j) for i in range(rows) for j in range(vectors)]
    sums = {place: builder.phi(_VECTOR) for place in tile}
    totals: dict[tuple[int, int], Value] = dict(sums)
    each_turn(k)
    row_a, row_b = at_a, at_b
    for _ in range(UNROLLED):
        of_b = [_load(builder, _offset(builder, row_b, LINE * j)) for j in range(vectors)]
        for i in range(rows):
            of_a = _broadcast(builder, _offset(builder, row_a, FLOAT * i))
            for j in range(vectors):
                totals[i, j] = builder.call(fma, [of_a, of_b[j], totals[i, j]])
        row_a, row_b = builder.add(row_a, nbytes[0]), builder.add(row_b, nbytes[1])
    following = _offset(builder, k, UNROLLED)
    starts = (_number(0), *operands)
    for phi, start, after in zip((k, at_a, at_b), starts, (following, row_a, row_b), strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(after, turn)
    for place, phi in sums.items():
        phi.add_incoming(_ir.Constant(_VECTOR, [0.0] * LANES), before)
        phi.add_incoming(totals[place], turn)
    builder.cbranch(builder.icmp_signed("<", following, K), turn, done)
    builder.position_at_end(done)
    return totals


def _write_tile(
    builder: Builder,
    totals: dict[tuple[int, int], Value],
    c: Value,
    ldc: Value,
    *sources: tuple[Value, Value],
) -> None:
    """Write the sums to rows of C, each plus what stands there in the sources (address, ld)."""

    def place(base: Value, ld: Value, i: int, j: int) -> Value:
        row = builder.add(base, builder.mul(ld, _number(FLOAT * i)))
        return _offset(builder, row, LINE * j)

    for (i, j), total in totals.items():
        result = total
        for base, ld in sources:
            result = builder.fadd(result, _load(builder, place(base, ld, i, j)))
        _store(builder, result, place(c, ldc, i, j))
