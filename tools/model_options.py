"""Options that name a model and its batch: the same words in every command.

None stands for "not given"; what then holds follows from the model and from `RunConfig`.
"""

from dataclasses import replace
from typing import Annotated, TypeAlias

import typer

from aieflow.gpt2.config import PRESETS, ModelConfig
from aieflow.ops.errors import InputError

DEFAULT_PRESET = "mini"
MODEL = "gpt2"

Model: TypeAlias = Annotated[str, typer.Argument(help="The model: gpt2.")]
Preset: TypeAlias = Annotated[
    str | None, typer.Option(help=f"{', '.join(PRESETS)}; default: {DEFAULT_PRESET}.")
]
Layers: TypeAlias = Annotated[int | None, typer.Option(help="L, transformer blocks.")]
Heads: TypeAlias = Annotated[int | None, typer.Option(help="H, attention heads of a block.")]
Channels: TypeAlias = Annotated[int | None, typer.Option(help="C, width of the residual stream.")]
VocabSize: TypeAlias = Annotated[int | None, typer.Option(help="V, ids of the vocabulary.")]
SeqLen: TypeAlias = Annotated[int | None, typer.Option(help="T, tokens of one sequence.")]
BatchSize: TypeAlias = Annotated[int | None, typer.Option(help="B, sequences of one pass.")]
GradAccumulation: TypeAlias = Annotated[
    int | None, typer.Option(help="Passes averaged into one training step.")
]
Dropout: TypeAlias = Annotated[float | None, typer.Option(help="Share dropped; 0: none.")]
GradClip: TypeAlias = Annotated[
    float | None, typer.Option(help="Largest global gradient norm; 0: off.")
]
Lanes: TypeAlias = Annotated[
    int | None, typer.Option(help="CPU compute lanes; default: one for each core.")
]


def require_gpt2(model: str, command: str) -> None:
    """Raise InputError unless `model` is the one that there is."""
    if model != MODEL:
        raise InputError(f"{command} {model}: must be {MODEL}: aieflow {command} {MODEL}")


def model_from(
    preset: str | None = None,
    layers: int | None = None,
    heads: int | None = None,
    channels: int | None = None,
    seq_len: int | None = None,
    vocab_size: int | None = None,
) -> ModelConfig:
    """The preset with the given sizes in place of its own.

    Raises InputError for a preset that does not exist and for sizes that do not fit together.
    """
    name = DEFAULT_PRESET if preset is None else preset
    if name not in PRESETS:
        raise InputError(f"--preset {name}: must be one of {', '.join(PRESETS)}")
    sizes = {
        "layers": layers,
        "heads": heads,
        "channels": channels,
        "seq_len": seq_len,
        "vocab_size": vocab_size,
    }
    return replace(PRESETS[name], **{key: size for key, size in sizes.items() if size is not None})
