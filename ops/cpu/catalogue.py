"""All CPU kernels, by the name of their op."""

from collections.abc import Mapping
from types import MappingProxyType

from aieflow.ops.cpu import attention, batch, embedding, loss, matmul, norm, optim, pointwise
from aieflow.ops.kernel import HostKernel

KERNELS: Mapping[str, HostKernel] = MappingProxyType(
    {
        kernel.op.name: kernel
        for kernel in (
            attention.ATTENTION,
            attention.ATTENTION_BACKWARD,
            attention.ATTENTION_CACHED,
            batch.SLICE,
            batch.SLICE_BACKWARD,
            embedding.EMBEDDING,
            embedding.EMBEDDING_BACKWARD_POSITIONS,
            embedding.EMBEDDING_BACKWARD_TOKENS,
            loss.CROSS_ENTROPY,
            loss.CROSS_ENTROPY_GRADIENT,
            loss.MEAN,
            matmul.COLUMN_SUM,
            matmul.MATMUL,
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
