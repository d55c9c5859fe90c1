"""Lowers GPT-2 to op graphs: a training step, an evaluation, logits, and cached decoding.

A training step is forward, backward and AdamW in one graph. With several shards each slice of the
batch is lowered separately, one after the other; their gradients are added in that fixed order.
Without clipping, a parameter's AdamW node follows the node that completes its gradient, so that the
gradient's memory is free again at once; clipping needs all gradients first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.params import parameter_specs
from aieflow.ops.attention import ATTENTION, ATTENTION_CACHED
from aieflow.ops.batch import SLICE
from aieflow.ops.builder import Builder
from aieflow.ops.embedding import EMBEDDING
from aieflow.ops.grad import append_backward
from aieflow.ops.graph import Graph, Value
from aieflow.ops.loss import CROSS_ENTROPY, CROSS_ENTROPY_GRADIENT, MEAN
from aieflow.ops.matmul import MATMUL
from aieflow.ops.norm import LAYERNORM
from aieflow.ops.op import Attrs
from aieflow.ops.optim import ADAMW, CLIP_FACTOR, SQUARED_NORM
from aieflow.ops.pointwise import DROPOUT, GELU
from aieflow.ops.spec import Spec

EPSILON = 1e-8  # AdamW's
RECOMPUTED = (GELU, LAYERNORM)  # a pass over memory each: cheap beside the products around them


@dataclass(frozen=True, slots=True)
class Optimizer:
    """What of AdamW is fixed for a whole run; the learning rate is fed each training step."""

    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # on matrices only
    grad_clip: float = 1.0  # largest global gradient norm; 0: no clipping


class _Model:
    """The forward pass over parameters that are states of one builder."""

    def __init__(self, builder: Builder, config: ModelConfig, rate: float = 0.0) -> None:
        self.builder = builder
        self.config = config
        self.rate = rate
        self.streams = 0
        self.parameters = {
            name: builder.state(name, spec, "parameter")
            for name, spec in parameter_specs(config).items()
        }
        self.key = builder.feed("key", Spec((1,), "uint64")) if rate else None

    def linear(self, x: Value, name: str, out: str, addend: Value | None = None) -> Value:
        """Y = X W + b (+ addend)."""
        # x (B, T, Cin), weight (Cin, Cout), bias (Cout,) -> (B, T, Cout)
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        operands = [x, weight, bias] + ([] if addend is None else [addend])
        attrs = {"bias": True} if addend is None else {"bias": True, "addend": True}
        return self.builder.apply(MATMUL, operands, [out], attrs)[0]

    def layernorm(self, x: Value, name: str, out: str) -> Value:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        names = [out, f"{out}.mean", f"{out}.rstd"]
        attrs = {"epsilon": self.config.layernorm_epsilon}
        return self.builder.apply(LAYERNORM, [x, weight, bias], names, attrs)[0]

    def random_attrs(self) -> Attrs:
        """The attributes of one more node that draws random bits: its rate and its own stream."""
        self.streams += 1
        return {"rate": self.rate, "stream": self.streams}

    def dropped(self, x: Value, out: str, addend: Value | None = None) -> Value:
        assert self.key is not None
        operands = [x, self.key] + ([] if addend is None else [addend])
        return self.builder.apply(DROPOUT, operands, [out], self.random_attrs())[0]

    def projected(self, x: Value, name: str, out: str, residual: Value) -> Value:
        """Residual + dropout(X W + b); one node without dropout."""
        if not self.rate:
            return self.linear(x, name, out, residual)
        return self.dropped(self.linear(x, name, f"{out}.projection"), out, residual)

    def attention(self, qkv: Value) -> Value:
        attrs: dict[str, int | float] = {"heads": self.config.heads}
        operands = [qkv]
        if self.key is not None:
            attrs.update(self.random_attrs())
            operands.append(self.key)
        return self.builder.apply(ATTENTION, operands, ["attention", "lse"], attrs)[0]

    def cached_attention(self, qkv: Value, position: Value, layer: int) -> Value:
        B, capacity = qkv.spec.shape[0], self.config.seq_len
        cache = Spec((B, capacity, self.config.channels))
        keys, values = (
            self.builder.state(f"h.{layer}.{name}", cache, "cache") for name in ("keys", "values")
        )
        return self.builder.apply(
            ATTENTION_CACHED,
            [qkv, keys, values, position],
            ["attention", "keys'", "values'"],
            {"heads": self.config.heads},
        )[0]

    def logits(self, tokens: Value, position: Value | None = None) -> Value:
        """The whole forward pass; with `position`, over cached keys and values."""
        # tokens (B, T) -> logits (B, T, V)
        return self.head(self.hidden(tokens, position))

    def head(self, x: Value) -> Value:
        """The product with the token embedding; x (B, T, C) -> logits (B, T, V)."""
        operands = [x, self.parameters["wte.weight"]]
        return self.builder.apply(MATMUL, operands, ["logits"], {"transpose_b": True})[0]

    def hidden(self, tokens: Value, position: Value | None = None) -> Value:
        """The forward pass up to the last layernorm; tokens (B, T) -> (B, T, C)."""
        builder, parameters = self.builder, self.parameters
        tables = [parameters["wte.weight"], parameters["wpe.weight"]]
        starts = [] if position is None else [position]
        (x,) = builder.apply(EMBEDDING, [tokens, *tables, *starts], ["embedding"])
        if self.rate:
            x = self.dropped(x, "embedding.dropped")
        for layer in range(self.config.layers):
            h = f"h.{layer}"
            with builder.scope(h):
                normed = self.layernorm(x, f"{h}.ln_1", "ln_1")
                qkv = self.linear(normed, f"{h}.attn.c_attn", "qkv")
                if position is None:
                    attended = self.attention(qkv)
                else:
                    attended = self.cached_attention(qkv, position, layer)
                x = self.projected(attended, f"{h}.attn.c_proj", "attn", x)
                normed = self.layernorm(x, f"{h}.ln_2", "ln_2")
                wide = self.linear(normed, f"{h}.mlp.c_fc", "fc")
                (active,) = builder.apply(GELU, [wide], ["gelu"])
                x = self.projected(active, f"{h}.mlp.c_proj", "mlp", x)
        return self.layernorm(x, "ln_f", "ln_f")

    def losses(
        self, x: Value, targets: Value, slices: int, scale: float, partial: Mapping[Value, Value]
    ) -> tuple[list[Value], dict[Value, Value]]:
        """Losses of the head's slices of the batch, and the gradients of x and of wte.

        Each slice goes forward and backward before the next, so that the logits of one slice alone
        exist at a time. `partial` may hold a gradient of wte to add to.
        """
        # x (B, T, C), targets (B, T)
        builder = self.builder
        gradients, losses = dict(partial), []
        count = x.spec.shape[0] // slices
        for number in range(slices):
            first = len(builder.nodes)
            part, wanted = x, targets
            if slices > 1:
                attrs = {"first": number * count, "count": count}
                (part,) = builder.apply(SLICE, [x], ["ln_f.slice"], attrs)
                (wanted,) = builder.apply(SLICE, [targets], ["targets.slice"], attrs)
            logits = self.head(part)
            forward = builder.nodes[first:]
            loss, dlogits = builder.apply(
                CROSS_ENTROPY_GRADIENT, [logits, wanted], ["losses", "d:logits"], {"scale": scale}
            )
            losses.append(loss)
            gradients = append_backward(builder, forward, {logits: dlogits}, gradients)
        return losses, gradients


def training_step(
    config: ModelConfig,
    batch_size: int,
    seq_len: int,
    *,
    shards: int = 1,
    optimizer: Optimizer | None = None,
    dropout: float = 0.0,
    keep_gradients: bool = False,
    recompute: bool = False,
    head_slices: int = 1,
) -> Graph:
    """Forward, backward and AdamW over `shards` slices of `batch_size` / `shards` rows each.

    Feeds: for each shard `tokens` and `targets` int32 (B / shards, T), named `shard.K.tokens` where
    there are several; `rates` float64 (3,): learning rate, 1 - beta1^t, 1 - beta2^t; with dropout
    `key` uint64 (1,). States: parameters, and `m:NAME`, `v:NAME` for each. Results: `loss` and
    `grad_norm` float32 (1,); with `keep_gradients` each `d:NAME` too. With `recompute` the outputs
    of GELU and layernorm are not kept for the backward pass but computed again; `head_slices`, a
    divisor of a shard's rows, slices the head's batch. Raises GraphError.
    """
    optimizer = optimizer or Optimizer()
    builder = Builder(f"training step of gpt2, B={batch_size}, T={seq_len}, shards={shards}")
    rows = batch_size // shards
    model = _Model(builder, config, dropout)
    moments = {
        name: tuple(builder.state(f"{kind}:{name}", value.spec, "moment") for kind in "mv")
        for name, value in model.parameters.items()
    }
    rates = builder.feed("rates", Spec((3,), "float64"))
    update = _Update(builder, optimizer, rates, moments)
    scale = 1.0 / (batch_size * seq_len)
    losses: list[Value] = []
    gradients: dict[Value, Value] = {}
    for shard in range(shards):
        prefix = "" if shards == 1 else f"shard.{shard}."
        tokens = builder.feed(f"{prefix}tokens", Spec((rows, seq_len), "int32"))
        targets = builder.feed(f"{prefix}targets", Spec((rows, seq_len), "int32"))
        first = len(builder.nodes)
        hidden = model.hidden(tokens)
        forward = builder.nodes[first:]
        partial = {
            value: gradients[value] for value in model.parameters.values() if value in gradients
        }
        shard_losses, partial = model.losses(hidden, targets, head_slices, scale, partial)
        losses += shard_losses
        is_last = shard == shards - 1
        gradients = append_backward(
            builder,
            forward,
            {},
            partial,
            update.on_complete if is_last else None,
            RECOMPUTED if recompute else (),
        )
    (mean,) = builder.apply(MEAN, losses, ["loss"])
    norm = update.finish()
    kept = [gradients[value] for value in model.parameters.values()] if keep_gradients else []
    return builder.finish([mean, norm, *kept])


class _Update:
    """Appends the optimizer nodes: at once without clipping, at the end with it."""

    def __init__(
        self,
        builder: Builder,
        optimizer: Optimizer,
        rates: Value,
        moments: dict[str, tuple[Value, ...]],
    ) -> None:
        self.builder = builder
        self.optimizer = optimizer
        self.rates = rates
        self.moments = moments
        self.norms: list[Value] = []
        self.waiting: list[tuple[Value, Value]] = []

    def on_complete(self, parameter: Value, gradient: Value) -> None:
        """Take a parameter whose gradient is complete."""
        (norm,) = self.builder.apply(SQUARED_NORM, [gradient], [f"norm:{parameter.name}"])
        self.norms.append(norm)
        if self.optimizer.grad_clip:
            self.waiting.append((parameter, gradient))
        else:
            self._adamw(parameter, gradient, [])

    def finish(self) -> Value:
        """Append what had to wait; return the global gradient norm."""
        attrs = {"max_norm": self.optimizer.grad_clip}
        factor, norm = self.builder.apply(CLIP_FACTOR, self.norms, ["clip", "grad_norm"], attrs)
        for parameter, gradient in self.waiting:
            self._adamw(parameter, gradient, [factor])
        return norm

    def _adamw(self, parameter: Value, gradient: Value, factor: list[Value]) -> None:
        is_matrix = len(parameter.spec.shape) >= 2
        attrs = {
            "beta1": self.optimizer.beta1,
            "beta2": self.optimizer.beta2,
            "epsilon": EPSILON,
            "weight_decay": self.optimizer.weight_decay if is_matrix else 0.0,
        }
        m, v = self.moments[parameter.name]
        names = [f"{parameter.name}'", f"{m.name}'", f"{v.name}'"]
        self.builder.apply(ADAMW, [parameter, gradient, m, v, self.rates, *factor], names, attrs)


def evaluation(config: ModelConfig, batch_size: int, seq_len: int) -> Graph:
    """The mean loss of one batch. Feeds `tokens`, `targets` int32 (B, T); result `loss` (1,)."""
    builder = Builder(f"evaluation of gpt2, B={batch_size}, T={seq_len}")
    tokens = builder.feed("tokens", Spec((batch_size, seq_len), "int32"))
    targets = builder.feed("targets", Spec((batch_size, seq_len), "int32"))
    logits = _Model(builder, config).logits(tokens)
    (losses,) = builder.apply(CROSS_ENTROPY, [logits, targets], ["losses"])
    return builder.finish(builder.apply(MEAN, [losses], ["loss"]))


def inference(config: ModelConfig, batch_size: int, seq_len: int) -> Graph:
    """Logits of whole sequences. Feed `tokens` int32 (B, T); result `logits` (B, T, V)."""
    builder = Builder(f"logits of gpt2, B={batch_size}, T={seq_len}")
    tokens = builder.feed("tokens", Spec((batch_size, seq_len), "int32"))
    return builder.finish([_Model(builder, config).logits(tokens)])


def decoding(config: ModelConfig, batch_size: int, count: int) -> Graph:
    """Logits of `count` further tokens, with keys and values of the earlier ones cached.

    Feeds: `tokens` int32 (B, count), `position` int64 (1,), the number of tokens before them.
    States: parameters and the caches `h.L.keys`, `h.L.values` (B, Tmax, C). Result: `logits`
    (B, count, V).
    """
    builder = Builder(f"decoding of gpt2, B={batch_size}, {count} at a time")
    tokens = builder.feed("tokens", Spec((batch_size, count), "int32"))
    position = builder.feed("position", Spec((1,), "int64"))
    return builder.finish([_Model(builder, config).logits(tokens, position)])
