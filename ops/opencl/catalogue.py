"""All OpenCL kernels, by the name of their op. Products run in the variant that suits the device.

`kernels_for` gives what a device with certain traits runs; `choose` overrides the choice of the
product's variant, where it was measured.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from aieflow.ops.graph import Node
from aieflow.ops.opencl import (
    attention,
    batch,
    column_sum,
    embedding,
    loss,
    norm,
    optim,
    pointwise,
)
from aieflow.ops.opencl.launch import OpenClKernel, Traits
from aieflow.ops.opencl.matmul import default_choice, matmul_kernel
from aieflow.ops.opencl.variants import Variant

WITHOUT_MATMUL: Mapping[str, OpenClKernel] = MappingProxyType(
    {
        kernel.op.name: kernel
        for kernel in (
            attention.ATTENTION,
            attention.ATTENTION_BACKWARD,
            attention.ATTENTION_CACHED,
            batch.SLICE,
            batch.SLICE_BACKWARD,
            column_sum.COLUMN_SUM,
            embedding.EMBEDDING,
            embedding.EMBEDDING_BACKWARD_POSITIONS,
            embedding.EMBEDDING_BACKWARD_TOKENS,
            loss.CROSS_ENTROPY,
            loss.CROSS_ENTROPY_GRADIENT,
            loss.MEAN,
            norm.LAYERNORM,
            norm.LAYERNORM_BACKWARD,
            norm.LAYERNORM_BACKWARD_PARAMS,
            optim.ADAMW,
            optim.CLIP_FACTOR,
            optim.SQUARED_NORM,
            pointwise.ADD,
            pointwise.DROPOUT,
            pointwise.GELU,
            pointwise.GELU_BACKWARD,
        )
    }
)


def kernels_for(
    traits: Traits, choose: Callable[[Node], Variant] | None = None
) -> Mapping[str, OpenClKernel]:
    """The kernels by op for a device; products in the variant that `choose` names."""
    product = matmul_kernel(choose or default_choice(traits))
    return MappingProxyType({**WITHOUT_MATMUL, product.op.name: product})
