"""The variants of the OpenCL matrix product: tile sizes, where each is legal, which to try.

There are two families. `CpuVariant` packs both operands into panels and keeps a large tile of sums
in vector registers: for run-times on a CPU. `GpuVariant` shares tiles of the operands in the local
memory of a work-group; it was not run on AMD hardware, and runs under PoCL in tests only. Sizes of
the CPU family follow Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
(2008).

With 16-bit storage (`half`) operands are rounded to 16-bit floats first and summed in fp32. That
halves the bytes that a GPU reads, changes the result by about 2^-10 of sum |a||b|, and turns what
is beyond 65504 into infinity: a caller must allow it.

>>> default_variant(Product(1024, 3072, 768), Traits(True, 0, 1, 2, 16)).name
'cpu-8x48'
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from aieflow.ops.graph import Node
from aieflow.ops.opencl.launch import Traits

FLOAT = 4  # bytes
PAD = 4  # floats behind each row of a tile in local memory, as in matmul_tiles.cl
DEPTH = 16  # K of a panel is a multiple of it, and so are a panel's columns


@dataclass(frozen=True, slots=True)
class Product:
    """The sizes of one product: A (M, K) or transposed times B (K, N) or transposed."""

    M: int
    N: int
    K: int
    transpose_a: bool = False
    transpose_b: bool = False


def product_of(node: Node) -> Product:
    """The sizes of a `matmul` node; operands of more axes are matrices of their last."""
    a, b = node.input_specs[:2]
    transpose_a, transpose_b = (
        bool(node.attrs.get("transpose_a")),
        bool(node.attrs.get("transpose_b")),
    )
    M, K = (a.columns, a.rows) if transpose_a else (a.rows, a.columns)
    return Product(M, b.rows if transpose_b else b.columns, K, transpose_a, transpose_b)


@dataclass(frozen=True, slots=True)
class CpuVariant:
    """A register tile of `rows` x `vectors` vectors of `width` floats, over packed panels."""

    rows: int  # 4, 6, 8 or 12: those that matmul_panels.cl spells out
    vectors: int  # 2 or 3
    width: int  # 8 or 16
    inner: int = 384  # along K between two additions to C: the panel of B stays near
    group: int = 16  # tiles below each other of one work-item

    @property
    def columns(self) -> int:
        """Columns of the register tile."""
        return self.vectors * self.width

    @property
    def name(self) -> str:
        """`cpu-ROWSxCOLUMNS`, which tells the variants apart."""
        return f"cpu-{self.rows}x{self.columns}"


@dataclass(frozen=True, slots=True)
class GpuVariant:
    """A tile of C for a work-group, from tiles `inner` deep, and a tile for each work-item."""

    rows: int
    columns: int
    inner: int  # a multiple of 4
    item_rows: int
    item_columns: int  # a multiple of 4
    half: bool = False  # operands are stored as 16-bit floats

    @property
    def group(self) -> tuple[int, int]:
        """Work-items of a group, across and down."""
        return self.columns // self.item_columns, self.rows // self.item_rows

    @property
    def local_nbytes(self) -> int:
        """Local memory of a group."""
        return FLOAT * self.inner * (self.rows + PAD + self.columns + PAD)

    @property
    def name(self) -> str:
        """`gpu-ROWSxCOLUMNSxINNER-items`, with `-half`; tells the variants apart."""
        tile = f"{self.rows}x{self.columns}x{self.inner}"
        return f"gpu-{tile}-{self.item_rows}x{self.item_columns}{'-half' * self.half}"


Variant: TypeAlias = CpuVariant | GpuVariant

# 24 sums and what they need fill the 32 registers of AVX-512; 12 the 16 of AVX2.
CPU_VARIANTS = (CpuVariant(8, 3, 16), CpuVariant(12, 2, 16), CpuVariant(6, 2, 8))
GPU_VARIANTS = (
    GpuVariant(64, 64, 16, 4, 4),
    GpuVariant(128, 64, 16, 8, 4),
    GpuVariant(128, 128, 8, 8, 8),
    GpuVariant(128, 128, 16, 8, 8),
    GpuVariant(32, 32, 16, 2, 4),
)
VARIANTS: tuple[Variant, ...] = (
    *CPU_VARIANTS,
    *GPU_VARIANTS,
    *(replace(variant, half=True) for variant in GPU_VARIANTS),
)


def refusal(variant: Variant, traits: Traits, allow_fp16: bool = False) -> str | None:
    """Why a variant must not run on a device, or None where it may."""
    if isinstance(variant, CpuVariant):
        return None if traits.is_cpu else f"{variant.name} is for run-times on a CPU"
    items = variant.group[0] * variant.group[1]
    if items > traits.max_group:
        return f"{variant.name} needs groups of {items} items, the device has {traits.max_group}"
    if variant.local_nbytes > traits.local_nbytes:
        return (
            f"{variant.name} needs {variant.local_nbytes} bytes of local memory, "
            f"the device has {traits.local_nbytes}"
        )
    if variant.half and not allow_fp16:
        return f"{variant.name} rounds operands to 16 bits, which was not allowed"
    if variant.half and not traits.has_fp16:
        return f"{variant.name} gains nothing: the device has no 16-bit floats"
    return None


def candidates(product: Product, traits: Traits, allow_fp16: bool = False) -> tuple[Variant, ...]:
    """The variants worth a measurement for a product on a device, the likely best first.

    A CPU gets its own family; tiles more than twice as large as C are left out. There is always
    one at least where groups of 64 items and 5 KiB of local memory are; else none may be left.
    """
    family: Iterable[Variant] = (v for v in VARIANTS if isinstance(v, CpuVariant) == traits.is_cpu)
    legal = [v for v in family if refusal(v, traits, allow_fp16) is None]
    smallest = min((v.rows * v.columns for v in legal), default=0)
    chosen = [
        v
        for v in legal
        if (v.rows < 2 * product.M and v.columns < 2 * product.N) or v.rows * v.columns == smallest
    ]
    return tuple(sorted(chosen, key=lambda v: _unlikeliness(v, product, traits)))


def default_variant(product: Product, traits: Traits, allow_fp16: bool = False) -> Variant:
    """The choice without a measurement; raises ValueError where no variant is legal."""
    found = candidates(product, traits, allow_fp16)
    if not found:
        reasons = "; ".join(str(refusal(v, traits, allow_fp16)) for v in GPU_VARIANTS)
        raise ValueError(f"no variant of matmul suits the device: {reasons}")
    return found[0]


def _unlikeliness(variant: Variant, product: Product, traits: Traits) -> tuple[float, ...]:
    """Sorts the likely best first.

    On a CPU the order above, vectors wider than the registers last. On a GPU: the largest tile of
    which there are two groups for each compute unit, else the one with the most groups.
    """
    if isinstance(variant, CpuVariant):
        return variant.width > max(traits.vector_width, 8), CPU_VARIANTS.index(variant)
    groups = -(-product.M // variant.rows) * -(-product.N // variant.columns)
    enough = min(groups / (2 * traits.compute_units), 1.0)
    return -enough, -variant.rows * variant.columns, variant.half, VARIANTS.index(variant)
