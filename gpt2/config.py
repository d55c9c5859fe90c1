"""The sizes of a GPT-2, under the paper's letters, and the named presets.

B batch, T sequence length, C channels, H heads, L layers, V vocabulary. `ModelConfig` is what a
checkpoint's `config.json` holds; B and the length trained on belong to `RunConfig`
(`gpt2.run_config`), not to the model.

>>> PRESETS["124M"].parameters
124439808
"""

from dataclasses import dataclass

from aieflow.ops.errors import InputError


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of one GPT-2; raises InputError where the sizes do not fit together."""

    vocab_size: int  # V
    seq_len: int  # T: the longest sequence, the rows of wpe
    layers: int  # L
    heads: int  # H
    channels: int  # C
    layernorm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        for name in ("vocab_size", "seq_len", "layers", "heads", "channels"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name} = {value}: must be at least 1")
        if self.channels % self.heads:
            raise InputError(
                f"channels = {self.channels} is not a multiple of heads = {self.heads}: "
                f"choose for instance channels = {self.heads * max(1, self.channels // self.heads)}"
            )

    @property
    def parameters(self) -> int:
        """Number of trained parameters; the head shares the token embedding."""
        C = self.channels
        layer = 12 * C * C + 13 * C
        return (self.vocab_size + self.seq_len) * C + self.layers * layer + 2 * C


def _published(layers: int, heads: int, channels: int) -> ModelConfig:
    return ModelConfig(50257, 1024, layers, heads, channels)


PRESETS: dict[str, ModelConfig] = {
    "mini": ModelConfig(vocab_size=1024, seq_len=128, layers=4, heads=6, channels=192),
    "124M": _published(12, 12, 768),
    "medium": _published(24, 16, 1024),
    "large": _published(36, 20, 1280),
    "xl": _published(48, 25, 1600),
}
