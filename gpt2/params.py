"""The parameters of a GPT-2: names, shapes, initial values.

Names are those of Hugging Face's checkpoints without the prefix `transformer.`; linear weights lie
(in, out), as there. The head shares `wte.weight`.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from aieflow.gpt2.config import ModelConfig
from aieflow.ops.spec import Spec

INITIAL_DEVIATION = 0.02  # Radford et al. 2019 code; residual projections are scaled by (2L)^-1/2


def parameter_specs(config: ModelConfig) -> dict[str, Spec]:
    """Shape of every parameter, in the order of the forward pass."""
    return dict(_specs(config))


def _specs(config: ModelConfig) -> Iterator[tuple[str, Spec]]:
    C = config.channels
    yield "wte.weight", Spec((config.vocab_size, C))
    yield "wpe.weight", Spec((config.seq_len, C))
    for layer in range(config.layers):
        h = f"h.{layer}"
        yield f"{h}.ln_1.weight", Spec((C,))
        yield f"{h}.ln_1.bias", Spec((C,))
        yield f"{h}.attn.c_attn.weight", Spec((C, 3 * C))
        yield f"{h}.attn.c_attn.bias", Spec((3 * C,))
        yield f"{h}.attn.c_proj.weight", Spec((C, C))
        yield f"{h}.attn.c_proj.bias", Spec((C,))
        yield f"{h}.ln_2.weight", Spec((C,))
        yield f"{h}.ln_2.bias", Spec((C,))
        yield f"{h}.mlp.c_fc.weight", Spec((C, 4 * C))
        yield f"{h}.mlp.c_fc.bias", Spec((4 * C,))
        yield f"{h}.mlp.c_proj.weight", Spec((4 * C, C))
        yield f"{h}.mlp.c_proj.bias", Spec((C,))
    yield "ln_f.weight", Spec((C,))
    yield "ln_f.bias", Spec((C,))


def initial_parameters(
    config: ModelConfig, seed: int, into: Mapping[str, npt.NDArray[np.float32]] | None = None
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Initial float32 values, one parameter at a time; written to `into` where that is given.

    Matrices are normal with deviation 0.02, the projections back into the residual stream scaled
    by (2L)^-1/2; layernorm weights are one; biases are zero. The same seed gives the same bits.
    """
    rng = np.random.default_rng(seed)
    residual_scale = (2 * config.layers) ** -0.5
    for name, spec in _specs(config):
        value = np.empty(spec.shape, np.float32) if into is None else into[name]
        if len(spec.shape) == 1:
            value[:] = 0 if name.endswith(".bias") else 1
        else:
            is_residual = name.endswith("c_proj.weight")
            rng.standard_normal(dtype=np.float32, out=value)
            value *= np.float32(INITIAL_DEVIATION * (residual_scale if is_residual else 1))
        yield name, value
