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
UNROLLED = 4  # steps along K in one turn of the tile's loop
FLOAT = 4  # bytes
LINE = 64  # bytes of a cache line

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
    signature = _ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fma = _cgutils.get_or_insert_function(builder.module, signature, f"llvm.fma.v{LANES}f32")
    tile = [(i, j) for i in range(TILE_ROWS) for j in range(TILE_VECTORS)]

    before = builder.block
    turn, done = builder.append_basic_block("turn"), builder.append_basic_block("done")
    builder.branch(turn)
    builder.position_at_end(turn)
    k, at_a, at_b, at_lines = (builder.phi(_INT64) for _ in range(4))
    sums = {place: builder.phi(_VECTOR) for place in tile}
    totals: dict[tuple[int, int], Value] = dict(sums)
    for ahead, lines in ((ahead_b, lines_b), (ahead_c, lines_c)):
        entry = builder.inttoptr(builder.add(lines, at_lines), _INT64.as_pointer())
        _prefetch(builder, builder.add(ahead, builder.load(entry)))
    for step in range(UNROLLED):
        row = FLOAT * TILE_COLUMNS * step
        of_b = [_load(builder, _offset(builder, at_b, row + LINE * j)) for j in range(TILE_VECTORS)]
        for i in range(TILE_ROWS):
            of_a = _broadcast(builder, _offset(builder, at_a, FLOAT * (TILE_ROWS * step + i)))
            for j in range(TILE_VECTORS):
                totals[i, j] = builder.call(fma, [of_a, of_b[j], totals[i, j]])
    steps = ((k, _number(0), UNROLLED), (at_lines, _number(0), 8))
    panels = ((at_a, a, FLOAT * UNROLLED * TILE_ROWS), (at_b, b, FLOAT * UNROLLED * TILE_COLUMNS))
    following = [_offset(builder, phi, size) for phi, _, size in (*steps, *panels)]
    for (phi, start, _), after in zip((*steps, *panels), following, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(after, turn)
    for place, phi in sums.items():
        phi.add_incoming(_ir.Constant(_VECTOR, [0.0] * LANES), before)
        phi.add_incoming(totals[place], turn)
    builder.cbranch(builder.icmp_signed("<", following[0], K), turn, done)

    builder.position_at_end(done)

    def place_of(base: Value, ld: Value, i: int, j: int) -> Value:
        row = builder.add(base, builder.mul(ld, _number(FLOAT * i)))
        return _offset(builder, row, LINE * j)

    def write(*sources: tuple[Any, Any]) -> None:
        for i, j in tile:
            total = totals[i, j]
            for base, ld in sources:
                total = builder.fadd(total, _load(builder, place_of(base, ld, i, j)))
            _store(builder, total, place_of(c, ldc, i, j))

    none = _number(0)
    with builder.if_else(builder.icmp_signed("==", first, none)) as (alone, more):
        with alone:
            write()
        with more, builder.if_else(builder.icmp_signed("==", second, none)) as (one, two):
            with one:
                write((first, ld_first))
            with two:
                write((first, ld_first), (second, ld_second))
