"""All ops by name."""

from collections.abc import Mapping
from types import MappingProxyType

from aieflow.ops import attention, batch, embedding, loss, matmul, norm, optim, pointwise
from aieflow.ops.op import Op

OPS: Mapping[str, Op] = MappingProxyType(
    {
        op.name: op
        for op in (
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
