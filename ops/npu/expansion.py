"""How a matmul becomes nodes for the NPU: packs, products, unpacks.

A product that is too large for one transfer, or whose buffers would be, is cut in chunks of rows,
columns and inner size, as equal as whole tiles allow. Each chunk of A and of B is packed once and
shared; each chunk of C has its own product and unpack. Chunks of one inner sum follow each other:
the later ones add to what the earlier ones wrote. While one chunk is multiplied, the next can be
packed and the one before unpacked.
"""

from dataclasses import dataclass

from aieflow.ops.graph import Node, Value
from aieflow.ops.matmul import matmul_operands
from aieflow.ops.npu.design import IN_NBYTES, OUT_NBYTES, GemmDesign, GemmSize
from aieflow.ops.npu.layout import Range, a_layout, b_layout, c_layout
from aieflow.ops.npu.ops import GEMM, PACK, UNPACK, gemm_attrs, range_attrs, shape_attrs
from aieflow.ops.op import Attrs, Op

INNER_MAX = 8192  # of one product: beyond, its operands' buffers would be large
BUFFER_NBYTES = 32 << 20  # of each packed operand, unless one block needs more


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one axis: [first, first + size)."""

    index: int
    first: int
    size: int


def chunks(total: int, granule: int, limit: int) -> tuple[Chunk, ...]:
    """The axis cut in pieces of at most `limit`, equal up to whole granules.

    >>> [(chunk.first, chunk.size) for chunk in chunks(500, 64, 256)]
    [(0, 256), (256, 244)]
    """
    blocks, most = -(-total // granule), max(1, limit // granule)
    pieces = -(-blocks // most)
    size = -(-blocks // pieces) * granule
    return tuple(
        Chunk(index, first, min(size, total - first))
        for index, first in enumerate(range(0, total, size))
    )


def matmul_size(node: Node) -> GemmSize:
    """The product that a matmul node computes."""
    a, b = node.input_specs[:2]
    transposed = bool(node.attrs.get("transpose_a"))
    rows, inner = (a.columns, a.rows) if transposed else (a.rows, a.columns)
    return GemmSize(rows, inner, b.rows if node.attrs.get("transpose_b") else b.columns)


def expand_matmul(
    node: Node,
    design: GemmDesign,
    inner_max: int = INNER_MAX,
    buffer_nbytes: int = BUFFER_NBYTES,
) -> tuple[Node, ...]:
    """The nodes that compute a matmul node with `design`; the last one defines its output.

    Names begin with the node's name and a colon; every node is named like its output, but the last.
    """
    return _Expansion(node, design, inner_max, buffer_nbytes).nodes()


class _Expansion:
    """The nodes of one matmul, as they are written."""

    def __init__(self, node: Node, design: GemmDesign, inner_max: int, buffer_nbytes: int) -> None:
        self.node = node
        self.design = design
        size, granule = matmul_size(node), design.granule
        self.inner = chunks(size.K, granule.K, inner_max)
        inner = design.padded(GemmSize(1, self.inner[0].size, 1)).K
        columns_max = min(design.columns_max, buffer_nbytes // (IN_NBYTES * inner))
        self.columns = chunks(size.N, granule.N, columns_max)
        columns = design.padded(GemmSize(1, 1, self.columns[0].size)).N
        row_nbytes = max(IN_NBYTES * inner, OUT_NBYTES * columns)
        self.rows = chunks(size.M, granule.M, buffer_nbytes // row_nbytes)
        self.packs: dict[str, Value] = {}
        self.written: list[Node] = []

    def nodes(self) -> tuple[Node, ...]:
        """Chunk after chunk, rows outermost."""
        bias, addend = matmul_operands(self.node.attrs)
        before = None if addend is None else self.node.inputs[addend]
        is_addend = addend is not None
        for rows in self.rows:
            for columns in self.columns:
                for inner in self.inner:
                    packed = self._product(rows, columns, inner)
                    with_bias = None if bias is None or inner.index else self.node.inputs[bias]
                    before = self._unpack(
                        packed,
                        with_bias,
                        before,
                        is_addend or inner.index > 0,
                        rows,
                        columns,
                        inner,
                    )
        *first, last = self.written
        return (*first, Node(last.name, last.op, last.inputs, self.node.outputs, last.attrs))

    def _product(self, rows: Chunk, columns: Chunk, inner: Chunk) -> Value:
        size = GemmSize(rows.size, inner.size, columns.size)
        operands = (
            self._pack("a", size, rows, inner),
            self._pack("b", size, inner, columns),
        )
        name = self._name("gemm", rows, columns, inner)
        return self._write(name, GEMM, operands, gemm_attrs(self.design, size))

    def _pack(self, side: str, size: GemmSize, down: Chunk, across: Chunk) -> Value:
        """The packed chunk of A or B, written at its first use."""
        if side == "a":
            name, layout = self._name("pack_a", down, None, across), a_layout(self.design, size)
        else:
            name, layout = self._name("pack_b", None, across, down), b_layout(self.design, size)
        if name not in self.packs:
            transpose = bool(self.node.attrs.get(f"transpose_{side}"))
            taken = Range(down.size, across.size, down.first, across.first, transpose)
            source = self.node.inputs["ab".index(side)]
            attrs = {**layout.attrs, **range_attrs(taken)}
            self.packs[name] = self._write(name, PACK, (source,), attrs)
        return self.packs[name]

    def _unpack(
        self,
        packed: Value,
        bias: Value | None,
        before: Value | None,
        adds: bool,
        rows: Chunk,
        columns: Chunk,
        inner: Chunk,
    ) -> Value:
        size = GemmSize(rows.size, inner.size, columns.size)
        taken = Range(rows.size, columns.size, rows.first, columns.first)
        attrs = {
            **c_layout(self.design, size).attrs,
            **range_attrs(taken),
            **shape_attrs(self.node.outputs[0].spec.shape),
        }
        if bias is not None:
            attrs["bias"] = 1
        if before is not None:
            attrs["addend" if adds else "so_far"] = 1
        operands = tuple(value for value in (packed, bias, before) if value is not None)
        name = self._name("unpack", rows, columns, inner)
        return self._write(name, UNPACK, operands, attrs)

    def _write(self, name: str, op: Op, inputs: tuple[Value, ...], attrs: Attrs) -> Value:
        (spec,) = op.infer(tuple(value.spec for value in inputs), attrs)
        value = Value(name, spec)
        self.written.append(Node(name, op, inputs, (value,), attrs))
        return value

    def _name(
        self, kind: str, rows: Chunk | None, columns: Chunk | None, inner: Chunk | None
    ) -> str:
        """The node's name, and the chunk's place on each axis that is cut."""
        axes = (("m", rows, self.rows), ("n", columns, self.columns), ("k", inner, self.inner))
        place = "".join(
            f".{axis}{chunk.index}" for axis, chunk, pieces in axes if chunk and len(pieces) > 1
        )
        return f"{self.node.name}:{kind}{place}"
