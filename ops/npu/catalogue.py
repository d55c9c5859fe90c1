"""The kernels of the NPU device, by the name of their op.

The device itself runs `npu_gemm`; packing runs on the host; a matmul is a chain of them.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

from aieflow.ops.graph import Node
from aieflow.ops.kernel import ChainKernel, HostKernel
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.design import DESIGNS, GemmDesign
from aieflow.ops.npu.expansion import expand_matmul
from aieflow.ops.npu.generation import Generation
from aieflow.ops.npu.kernels import (
    PACK_KERNEL,
    REPACK_KERNEL,
    UNPACK_KERNEL,
    NpuKernel,
    gemm_kernel,
)
from aieflow.ops.npu.ops import PACK, REPACK

AnyKernel: TypeAlias = HostKernel | NpuKernel | ChainKernel


def kernels(generation: Generation) -> Mapping[str, AnyKernel]:
    """The kernels for a generation's standard design."""
    return design_kernels(DESIGNS[generation.name])


def design_kernels(design: GemmDesign) -> Mapping[str, AnyKernel]:
    """The kernels for one design."""
    all_kernels: tuple[AnyKernel, ...] = (
        PACK_KERNEL,
        REPACK_KERNEL,
        UNPACK_KERNEL,
        gemm_kernel(design),
        ChainKernel("npu gemm", MATMUL, _expander(design), {PACK.name: REPACK}),
    )
    return MappingProxyType({kernel.op.name: kernel for kernel in all_kernels})


def _expander(design: GemmDesign) -> Callable[[Node], tuple[Node, ...]]:
    return lambda node: expand_matmul(node, design)
