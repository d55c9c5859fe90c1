"""The settings of a run that nobody chose: by the size of the model, and whether it is pretrained.

The mini preset is tuned so that about two minutes on two cores turn the built-in text into
recognisable English. Larger models get what fits a laptop; rates follow the GPT-3 paper's table
2.1 (Brown et al. 2020) for training from scratch, and are gentle for fine-tuning.
"""

from dataclasses import dataclass

from aieflow.gpt2.config import ModelConfig

SMALL_CHANNELS = 384  # models up to this width train like the mini preset


@dataclass(frozen=True, slots=True)
class Defaults:
    """Settings that depend on the model; all others have their default in `RunConfig`."""

    batch_size: int
    seq_len: int
    steps: int
    lr: float
    warmup: int


def default_settings(model: ModelConfig, is_pretrained: bool) -> Defaults:
    """The defaults for training `model`."""
    if is_pretrained:
        return Defaults(4, min(model.seq_len, 256), steps=100, lr=3e-5, warmup=10)
    if model.channels <= SMALL_CHANNELS:
        return Defaults(8, min(model.seq_len, 128), steps=1400, lr=2e-3, warmup=50)
    return Defaults(4, min(model.seq_len, 256), steps=1000, lr=6e-4, warmup=100)
