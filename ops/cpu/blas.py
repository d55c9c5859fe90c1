"""One symbol, `aieflow_sgemm`, that compiled kernels call for small matrix products.

`load` makes it stand for the `cblas_sgemm` of the BLAS that NumPy brought along, found among the
libraries in this process. Kernels name the symbol and hold no address, so their code can be cached
on disk. A BLAS with 32-bit sizes is called through a thunk; where there is none (NumPy built on
Accelerate, say) the symbol stands for a plain loop, right but slow, and `load` says so. BLAS's own
threads are for the device to switch off.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import llvmlite.binding
import numba
import numpy as np
import threadpoolctl

from aieflow.ops.cpu.compile import compiled

SYMBOL = "aieflow_sgemm"
SYMBOL_32 = "aieflow_sgemm_32"
CANDIDATES = (
    ("scipy_cblas_sgemm64_", 64),
    ("cblas_sgemm64_", 64),
    ("cblas_sgemm_64", 64),
    ("scipy_cblas_sgemm", 32),
    ("cblas_sgemm", 32),
)
ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # CBLAS's own numbers

_numba: Any = numba  # whose annotations differ from version to version
types, carray = _numba.types, _numba.carray


def _signature(size: object, pointer: object) -> object:
    # order, transpose a, transpose b, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc
    flag, number = types.int32, types.float32
    return types.void(
        *(flag, flag, flag, size, size, size, number, pointer, size),
        *(pointer, size, number, pointer, size),
    )


_Pointer: TypeAlias = Any  # of a float32, in compiled code
_Sgemm: TypeAlias = Callable[..., None]
_SGEMM: _Sgemm = types.ExternalFunction(SYMBOL, _signature(types.int64, types.intp))
_SGEMM_32: _Sgemm = types.ExternalFunction(SYMBOL_32, _signature(types.int32, types.intp))


@compiled
def sgemm(
    transpose_a: bool,
    transpose_b: bool,
    M: int,
    N: int,
    K: int,
    alpha: np.float32,
    a: int,
    lda: int,
    b: int,
    ldb: int,
    beta: np.float32,
    c: int,
    ldc: int,
) -> None:
    """C = alpha A B + beta C; a, b, c are addresses of row-major matrices. For compiled code."""
    ta = TRANSPOSED if transpose_a else PLAIN
    tb = TRANSPOSED if transpose_b else PLAIN
    _SGEMM(ROW_MAJOR, ta, tb, M, N, K, alpha, a, lda, b, ldb, beta, c, ldc)


def _thunk(
    order: int,
    ta: int,
    tb: int,
    M: int,
    N: int,
    K: int,
    alpha: np.float32,
    a: int,
    lda: int,
    b: int,
    ldb: int,
    beta: np.float32,
    c: int,
    ldc: int,
) -> None:
    m, n, k = np.int32(M), np.int32(N), np.int32(K)
    la, lb, lc = np.int32(lda), np.int32(ldb), np.int32(ldc)
    _SGEMM_32(order, ta, tb, m, n, k, alpha, a, la, b, lb, beta, c, lc)


def _plain(
    order: int,
    ta: int,
    tb: int,
    M: int,
    N: int,
    K: int,
    alpha: np.float32,
    a: _Pointer,
    lda: int,
    b: _Pointer,
    ldb: int,
    beta: np.float32,
    c: _Pointer,
    ldc: int,
) -> None:
    A = carray(a, ((K if ta == TRANSPOSED else M) * lda,))
    B = carray(b, ((N if tb == TRANSPOSED else K) * ldb,))
    C = carray(c, (M * ldc,))
    row_step, inner_step = (1, lda) if ta == TRANSPOSED else (lda, 1)
    for i in range(M):
        out = C[i * ldc : i * ldc + N]
        for j in range(N):
            out[j] = beta * out[j] if beta != 0 else np.float32(0)
        for k in range(K):
            factor = alpha * A[i * row_step + k * inner_step]
            if tb == TRANSPOSED:
                for j in range(N):
                    out[j] += factor * B[j * ldb + k]
            else:
                row = B[k * ldb : k * ldb + N]
                for j in range(N):
                    out[j] += factor * row[j]


@functools.cache
def load() -> bool:
    """Make the symbol stand for the BLAS of this process; whether there is one."""
    libraries = [
        library["filepath"]
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    ]
    for name, bits in CANDIDATES:
        if any(register(path, name, bits) for path in libraries):
            return True
    register_plain()
    return False


def register(path: str, name: str, bits: int) -> bool:
    """Let the symbol stand for `name` in the library at `path`; False where it has none."""
    function = getattr(ctypes.CDLL(path), name, None)
    if function is None:
        return False
    register_address(ctypes.cast(function, ctypes.c_void_p).value or 0, bits)
    return True


def register_address(address: int, bits: int) -> None:
    """Let the symbol stand for a cblas_sgemm at `address` whose sizes have `bits` bits."""
    if bits == 64:
        llvmlite.binding.add_symbol(SYMBOL, address)
    else:
        llvmlite.binding.add_symbol(SYMBOL_32, address)
        llvmlite.binding.add_symbol(SYMBOL, callback(_thunk, 64, types.intp))


def register_plain() -> None:
    """Let the symbol stand for a plain loop."""
    llvmlite.binding.add_symbol(SYMBOL, plain(64))


def plain(bits: int) -> int:
    """The address of a plain loop that is called like cblas_sgemm, with sizes of `bits` bits."""
    return callback(_plain, bits, types.CPointer(types.float32))


_callbacks: list[object] = []  # compiled code lives as long as its object


def callback(function: Callable[..., None], bits: int, pointer: object) -> int:
    """The address of `function`, compiled to be called like cblas_sgemm."""
    signature = _signature(types.int64 if bits == 64 else types.int32, pointer)
    machine_code = _numba.cfunc(signature, cache=True, error_model="numpy")(function)
    _callbacks.append(machine_code)
    return int(machine_code.address)
