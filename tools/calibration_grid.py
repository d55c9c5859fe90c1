"""Which training steps calibration runs: shapes from the presets and between, in few layers.

Works of a real training step are as cold, and as disturbed by the other lanes, as they will be; so
whole training steps are run, not lone nodes. All layers of a model have the same shapes: one or two
stand for them all. Variants with dropout, with accumulated gradients and with a head by slices add
the works that only they have, and so do evaluations, and decoding as `aieflow generate` does it.
"""

from dataclasses import dataclass, replace
from typing import Literal

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.generate import CHUNK
from aieflow.gpt2.lower import decoding, evaluation
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.graph import Graph

# (C, H, V, L, B, T), the smallest first.
QUICK = (
    (192, 6, 1024, 2, 2, 64),
    (192, 6, 1024, 2, 4, 128),
    (192, 6, 1024, 2, 8, 128),
    (384, 6, 8192, 2, 2, 64),
    (384, 6, 8192, 2, 4, 128),
    (768, 12, 50257, 1, 2, 64),
    (768, 12, 50257, 1, 4, 64),
)
EVALUATED = (
    (192, 6, 1024, 2, 4, 64),
    (192, 6, 1024, 2, 8, 128),
    (384, 6, 8192, 2, 4, 128),
    (768, 12, 50257, 1, 2, 64),
)
DECODED = (  # T is the room of the cache
    (192, 6, 1024, 2, 1, 64),
    (192, 6, 1024, 2, 2, 128),
    (384, 6, 8192, 2, 1, 128),
    (768, 12, 50257, 1, 1, 128),
)
SLICED = (64, 2, 50257, 1, 6, 128)  # logits so large that the head goes by slices of the batch
MORE = (
    (64, 2, 512, 2, 4, 32),
    (128, 4, 1024, 2, 4, 64),
    (192, 6, 1024, 2, 8, 32),
    (192, 6, 1024, 2, 2, 128),
    (192, 6, 1024, 2, 16, 128),
    (256, 4, 4096, 2, 4, 64),
    (384, 6, 8192, 2, 8, 128),
    (512, 8, 16384, 2, 2, 128),
    (512, 8, 16384, 2, 4, 256),
    (768, 12, 50257, 1, 1, 64),
    (768, 12, 50257, 1, 1, 256),
    (768, 12, 50257, 1, 4, 128),
    (768, 12, 50257, 1, 2, 512),
    (1024, 16, 50257, 1, 1, 128),
    (1280, 20, 50257, 1, 1, 64),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One training step, evaluation or pass of decoding, and on what it is worth running.

    Decoding reads `config.seq_len` tokens at once, with a cache as long as the model allows.
    """

    name: str
    config: RunConfig
    kind: Literal["training", "evaluation", "decoding"] = "training"

    @property
    def graph(self) -> Graph:
        """What is run."""
        config = self.config
        if self.kind == "training":
            return training_graph(config)
        lower = evaluation if self.kind == "evaluation" else decoding
        return lower(config.model, config.batch_size, config.seq_len)

    @property
    def is_mixed(self) -> bool:
        """True if it is small enough to be run on several devices together, too."""
        model = self.config.model
        return model.channels * model.vocab_size <= 384 * 8192 and self.kind == "training"


def cases(quick: bool) -> tuple[Case, ...]:
    """The training steps that calibration runs, smallest first."""
    sizes = QUICK if quick else tuple(sorted({*QUICK, *MORE}, key=_flops))
    plain = [Case(_name(*each), _config(*each)) for each in sizes]
    small = (192, 6, 1024, 2, 4, 64)
    variants = [
        Case(f"{_name(*small)} dropout", _config(*small, dropout=0.1)),
        Case(f"{_name(*small)} in 2 passes", _config(*small, passes=2)),
    ]
    evaluated = [
        Case(f"{_name(*each)} evaluation", _config(*each), "evaluation") for each in EVALUATED
    ]
    decoded = [
        Case(
            f"{_name(*each)} decoding by {count}",
            replace(_config(*each), seq_len=count),
            "decoding",
        )
        for each in DECODED
        for count in (1, CHUNK)
    ]
    sliced = Case(_name(*SLICED), _config(*SLICED))
    return (*variants, *evaluated, *decoded, *plain, sliced)


def _name(C: int, H: int, V: int, L: int, B: int, T: int) -> str:
    return f"C={C} V={V} L={L} B={B} T={T}"


def _flops(sizes: tuple[int, ...]) -> int:
    C, _, V, L, B, T = sizes
    return 6 * B * T * (12 * L * C * C + V * C)


def _config(
    C: int, H: int, V: int, L: int, B: int, T: int, dropout: float = 0.0, passes: int = 1
) -> RunConfig:
    model = ModelConfig(vocab_size=V, seq_len=T, layers=L, heads=H, channels=C)
    return RunConfig(
        model=model, seq_len=T, batch_size=B, dropout=dropout, grad_accumulation=passes, lr=1e-4
    )
