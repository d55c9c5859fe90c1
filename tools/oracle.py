"""The oracle: what PyTorch computes for three GPT-2s, read back and compared with.

`tools/make_oracle.py` writes one file a case into `tests/oracle`; this module decides what a case
is, which weights and batches it has (from seeded generators, so neither is stored whole), and how
another implementation is held against it. It needs no PyTorch.

The weights are `initial_parameters` made harder: untrained biases are zero and layernorm weights
one, which hides errors in their use, and deviation 0.02 leaves every attention row near uniform,
which hides errors in its scores.

Gradients of the 124M case are stored as sketches, 9 numbers in place of up to 38 million:
see `sketch` and `sketch_error`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from aieflow.gpt2.config import PRESETS, ModelConfig
from aieflow.gpt2.params import INITIAL_DEVIATION, initial_parameters, parameter_specs

Floats = npt.NDArray[np.float32 | np.float64]

TRAINING_STEPS = 20
BETA1, BETA2 = 0.9, 0.95
EPSILON = 1e-8
WEIGHT_DECAY = 0.1  # on parameters of two axes, wte and wpe among them
PROMPT_TOKENS = 5
NEW_TOKENS = 30
LOGITS_ROWS = (0, 21, 42, 63)  # of the (B·T, V) logits, where only their corner is stored
LOGITS_COLUMNS = 64
PROJECTIONS = 8

_INPUT_TOLERANCE = 1e-6  # of recomputed weights: a libm may differ in the last bit, no more
_CHUNK = 2**20  # elements


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration with its batch and its AdamW training."""

    config: ModelConfig
    batch_size: int  # B
    seq_len: int  # T, at most config.seq_len
    lr: float
    grad_clips: tuple[float, ...]  # one training each; 0 is without clipping
    stored_whole: bool  # logits and gradients in full, else as sketches
    seed: int = 1337


CASES: dict[str, Case] = {
    "tiny": Case(ModelConfig(64, 16, 2, 2, 16), 2, 16, 1e-3, (0.0, 1.0), stored_whole=True),
    "odd": Case(ModelConfig(211, 40, 3, 3, 39), 3, 37, 1e-3, (0.0, 1.0), stored_whole=True),
    "124M": Case(PRESETS["124M"], 1, 64, 1e-4, (1.0,), stored_whole=False),
}


def oracle_parameters(
    config: ModelConfig, seed: int
) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    """Yield name and float32 value of every parameter, in `parameter_specs` order.

    Matrices have deviation C^-1/2 (the projections back into the residual stream (2LC)^-1/2),
    biases are normal with deviation 0.1, layernorm weights normal about 1 with deviation 0.1.
    """
    rng = np.random.default_rng((seed, 1))
    gain = np.float32(config.channels**-0.5 / INITIAL_DEVIATION)
    for name, value in initial_parameters(config, seed):
        if value.ndim == 1:
            value += np.float32(0.1) * rng.standard_normal(value.shape, np.float32)
        else:
            value *= gain
        yield name, value


def oracle_batch(
    config: ModelConfig, batch_size: int, seq_len: int, seed: int, step: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Tokens and targets (B, T) of one training step; step 0 is also the batch of the gradients.

    Low token ids are much likelier than high ones, so that there is something to learn and rows
    of wte are used more than once.
    """
    u = np.random.default_rng((seed, 2, step)).random((batch_size, seq_len + 1))
    text = (config.vocab_size * (u * u * u)).astype(np.int32)
    return np.ascontiguousarray(text[:, :-1]), np.ascontiguousarray(text[:, 1:])


def relative_error(ours: Floats, reference: Floats) -> float:
    """Return ‖ours - reference‖ / ‖reference‖ over all elements, summed in float64."""
    if ours.shape != reference.shape:
        raise ValueError(f"shape {ours.shape} is held against a reference of {reference.shape}")
    difference = ours.astype(np.float64) - reference
    return float(np.linalg.norm(difference) / np.linalg.norm(reference.astype(np.float64)))


def sketch(value: Floats) -> npt.NDArray[np.float64]:
    """Return ‖value‖ and its projections on 8 fixed vectors of random signs: float64 (9,).

    Every element draws one byte from a fixed PCG64 stream (NumPy keeps the raw stream of a bit
    generator for ever); bit k of the byte is the element's sign in vector k. Elements are summed by
    byte, in float64, and the 256 sums by sign.
    """
    flat = np.ascontiguousarray(value).reshape(-1)
    stream = np.random.PCG64(0)
    by_byte = np.zeros(256)
    square = 0.0
    for start in range(0, flat.size, _CHUNK):
        chunk = flat[start : start + _CHUNK].astype(np.float64)
        raw = np.asarray(stream.random_raw(-(-chunk.size // 8)), np.uint64)
        signs = raw.astype("<u8").view(np.uint8)[: chunk.size]
        by_byte += np.bincount(signs, weights=chunk, minlength=256)
        square += float(chunk @ chunk)
    bits = np.arange(256)[:, None] >> np.arange(PROJECTIONS)[None, :] & 1
    return np.concatenate(([square**0.5], by_byte @ (1.0 - 2.0 * bits)))


def sketch_error(ours: npt.NDArray[np.float64], reference: npt.NDArray[np.float64]) -> float:
    """Estimate `relative_error` of two tensors from their sketches.

    For an error e and a vector r of random signs, the mean of ⟨e, r⟩² is ‖e‖² whatever e is, and
    ⟨e, r⟩ is the difference of the two projections on r. So the root mean square over the 8
    projections estimates ‖e‖, and divided by ‖reference‖ the relative error. It is *not* divided
    by the projections themselves: they can be small by chance. With 8 projections the estimate is
    within a factor of 2 of the truth in 98 of 100 tensors and is too small by a factor of 4 in 2
    of 10,000. A difference of the norms, a lower bound of the error, counts too.
    """
    norm = float(reference[0])
    projected = float(np.sqrt(np.mean((ours[1:] - reference[1:]) ** 2)))
    return max(projected, abs(float(ours[0]) - norm)) / norm


def gradient_parts(name: str, gradient: Floats) -> Iterator[tuple[str, Floats]]:
    """Yield the tensors to compare one by one: a gradient whole, c_attn.weight's as q, k and v.

    The v part is the largest by far and would hide an error in the others. c_attn.bias stays
    whole: its k part is zero in exact arithmetic, so an error relative to itself means nothing.
    """
    if name.endswith("c_attn.weight"):
        for letter, part in zip("qkv", np.split(gradient, 3, axis=1), strict=True):
            yield f"{name}[{letter}]", part
    else:
        yield name, gradient


@dataclass(frozen=True, slots=True)
class Training:
    """What PyTorch's AdamW did in 20 training steps, each on its own batch."""

    losses: npt.NDArray[np.float64]  # (20,) before each update
    grad_norms: npt.NDArray[np.float64]  # (20,) over all parameters, before clipping, exact
    updates: dict[str, npt.NDArray[np.float64]]  # sketch of last minus first value

    def update_error(self, name: str, first: Floats, last: Floats) -> float:
        """Estimated relative error of what the training added to one parameter.

        c_attn.bias has no answer and raises KeyError: AdamW divides the rounding noise that is the
        gradient of its k part by itself.
        """
        return sketch_error(sketch(last.astype(np.float64) - first), self.updates[name])


@dataclass(frozen=True, slots=True)
class Oracle:
    """PyTorch's numbers for one case, and the inputs that they belong to."""

    case: Case
    tensors: dict[str, npt.NDArray[np.generic]]

    def parameters(self) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Yield `oracle_parameters`, each held against what PyTorch was given.

        Raises ValueError where this NumPy's generator gives other weights than the file's.
        """
        for name, value in oracle_parameters(self.case.config, self.case.seed):
            error = sketch_error(sketch(value), self._floats(f"parameter/{name}"))
            if error > _INPUT_TOLERANCE:
                raise ValueError(
                    f"{name} differs from the oracle's by {error:.1e}: numpy {np.__version__} or "
                    "initial_parameters draws other numbers; run tools/make_oracle.py again"
                )
            yield name, value

    def batch(self, step: int = 0) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Tokens and targets (B, T) of one training step, held against what PyTorch was given."""
        case = self.case
        tokens, targets = oracle_batch(case.config, case.batch_size, case.seq_len, case.seed, step)
        if not np.array_equal(batch_sums(tokens, targets), self.tensors["batch_sums"][step]):
            raise ValueError(
                f"the batch of training step {step} differs from the oracle's: numpy "
                f"{np.__version__} draws other numbers; run tools/make_oracle.py again"
            )
        return tokens, targets

    @property
    def loss(self) -> float:
        """Mean cross-entropy over the B·T targets of batch 0, in nats."""
        return float(self._floats("loss")[0])

    def logits_error(self, logits: npt.NDArray[np.float32]) -> float:
        """Relative error of the logits (B, T, V) of batch 0, whole or as far as stored."""
        if self.case.stored_whole:
            return relative_error(logits, self._floats("logits"))
        corner = logits.reshape(-1, logits.shape[-1])[list(LOGITS_ROWS), :LOGITS_COLUMNS]
        return max(
            sketch_error(sketch(logits), self._floats("logits")),
            relative_error(corner, self._floats("logits_corner")),
        )

    def gradient_error(self, name: str, gradient: npt.NDArray[np.float32]) -> float:
        """Relative error of one parameter's gradient: the largest of its `gradient_parts`."""
        expected = parameter_specs(self.case.config)[name].shape
        if gradient.shape != expected:
            raise ValueError(f"the gradient of {name} has shape {gradient.shape}, not {expected}")
        if not self.case.stored_whole:
            return max(
                sketch_error(sketch(part), self._floats(f"gradient/{label}"))
                for label, part in gradient_parts(name, gradient)
            )
        reference = self._floats(f"gradient/{name}")
        return max(
            relative_error(ours, theirs)
            for (_, ours), (_, theirs) in zip(
                gradient_parts(name, gradient), gradient_parts(name, reference), strict=True
            )
        )

    def training(self, grad_clip: float) -> Training:
        """Return what AdamW did with this clipping norm; KeyError if the case has no such."""
        prefix = f"training/{grad_clip:g}/"
        return Training(
            losses=self._floats(f"{prefix}losses").astype(np.float64),
            grad_norms=self._floats(f"{prefix}grad_norms").astype(np.float64),
            updates={
                key.removeprefix(f"{prefix}update/"): self._floats(key).astype(np.float64)
                for key in self.tensors
                if key.startswith(f"{prefix}update/")
            },
        )

    @property
    def greedy(self) -> tuple[list[int], list[int]]:
        """A prompt and the 30 tokens that greedy decoding puts behind it (case odd only)."""
        tokens = [int(token) for token in self.tensors["greedy"]]
        return tokens[:PROMPT_TOKENS], tokens[PROMPT_TOKENS:]

    def _floats(self, key: str) -> npt.NDArray[np.float64]:
        return self.tensors[key].astype(np.float64)


def batch_sums(
    tokens: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]
) -> npt.NDArray[np.int64]:
    """Return two sums of a batch, weighted by position, that tell it from others: int64 (2,)."""
    weights = np.arange(1, tokens.size + 1)
    return np.array([tokens.reshape(-1) @ weights, targets.reshape(-1) @ weights])


def read_oracle(folder: Path, name: str) -> Oracle:
    """Read the numbers of the case `name` from a folder that `make_oracle` wrote."""
    return Oracle(CASES[name], load_file(folder / f"{name}.safetensors"))
