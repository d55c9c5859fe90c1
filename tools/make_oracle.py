"""Write the oracle: what `transformers.GPT2LMHeadModel` computes, fp32, on the CPU.

    python -m aieflow.tools.make_oracle --out tests/oracle

needs torch and transformers, which the project does not depend on and no test imports. For each
case of `tools.oracle` it writes one safetensors file with logits, loss, gradients, the losses and
gradient norms of 20 AdamW training steps and, where the sequence is long enough, a greedy
continuation. Everything is computed in float64, too, and the largest differences are printed: they
say how much of a disagreement is rounding.
"""

import argparse
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from aieflow.gpt2.config import ModelConfig
from aieflow.tools.oracle import (
    BETA1,
    BETA2,
    CASES,
    EPSILON,
    LOGITS_COLUMNS,
    LOGITS_ROWS,
    NEW_TOKENS,
    PROMPT_TOKENS,
    TRAINING_STEPS,
    WEIGHT_DECAY,
    Case,
    Floats,
    Oracle,
    batch_sums,
    gradient_parts,
    oracle_batch,
    oracle_parameters,
    relative_error,
    sketch,
    sketch_error,
)

Tensors = dict[str, npt.NDArray[np.generic]]


class Peer:
    """PyTorch's GPT-2 with the oracle's weights, in `dtype` "float32" or "float64"."""

    def __init__(self, config: ModelConfig, seed: int, dtype: str) -> None:
        self._torch = torch = import_module("torch")
        self._tensor = torch.from_numpy
        transformers = import_module("transformers")
        peer_config = transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.seq_len,
            n_embd=config.channels,
            n_layer=config.layers,
            n_head=config.heads,
            layer_norm_epsilon=config.layernorm_epsilon,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            attn_implementation="eager",
        )
        self._model = transformers.GPT2LMHeadModel(peer_config).to(getattr(torch, dtype))
        self._parameters = dict(self._model.transformer.named_parameters())
        if len(list(self._model.parameters())) != len(self._parameters):
            raise RuntimeError("the head of this transformers version is not tied to wte")
        missing = set(self._parameters)
        with torch.no_grad():
            for name, value in oracle_parameters(config, seed):
                self._parameters[name].copy_(torch.from_numpy(value))
                missing.remove(name)
        if missing:
            raise RuntimeError(f"{sorted(missing)} are parameters there, but not of aieflow")

    def backward(
        self, tokens: npt.NDArray[np.int32], targets: npt.NDArray[np.int32]
    ) -> tuple[Floats, float]:
        """Return logits (B, T, V) and the mean cross-entropy; leave fresh gradients behind."""
        self._model.zero_grad(set_to_none=True)
        logits = self._model(self._tensor(tokens.astype(np.int64))).logits
        loss = self._torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), self._tensor(targets.astype(np.int64)).flatten()
        )
        loss.backward()
        array: Floats = logits.detach().numpy()
        return array, float(loss.detach())

    def gradients(self) -> Iterator[tuple[str, Floats]]:
        """Yield the gradient of every parameter, as the last `backward` left it."""
        for name, parameter in self._parameters.items():
            yield name, parameter.grad.numpy()

    def values(self) -> Iterator[tuple[str, Floats]]:
        """Yield every parameter as it is now."""
        for name, parameter in self._parameters.items():
            yield name, parameter.detach().numpy()

    def train(self, case: Case, grad_clip: float) -> tuple[list[float], list[float]]:
        """Take 20 AdamW training steps; return losses and gradient norms before clipping.

        The norms are summed in float64. PyTorch clips by its own, summed in float32, which is off
        by up to 7e-4 for the 39 million elements of wte; AdamW's update hardly depends on it.
        """
        everything = list(self._parameters.values())
        groups = [
            {"params": [p for p in everything if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in everything if p.ndim == 1], "weight_decay": 0.0},
        ]
        optimizer = self._torch.optim.AdamW(groups, case.lr, betas=(BETA1, BETA2), eps=EPSILON)
        losses, norms = [], []
        for step in range(TRAINING_STEPS):
            _, loss = self.backward(*_batch(case, step))
            norms.append(sum(sketch(value)[0] ** 2 for _, value in self.gradients()) ** 0.5)
            if grad_clip:
                self._torch.nn.utils.clip_grad_norm_(everything, grad_clip)
            optimizer.step()
            losses.append(loss)
        return losses, norms

    def greedy(self, prompt: npt.NDArray[np.int32], count: int) -> tuple[list[int], float]:
        """Return prompt and continuation, and the smallest lead of a chosen token's logit."""
        out = self._model.generate(
            self._tensor(prompt[None].astype(np.int64)),
            attention_mask=self._torch.ones(1, len(prompt), dtype=self._torch.int64),
            do_sample=False,
            max_new_tokens=count,
            output_logits=True,
            return_dict_in_generate=True,
        )
        leads = [float(top[0, 0] - top[0, 1]) for top in (x.topk(2).values for x in out.logits)]
        return [int(token) for token in out.sequences[0]], min(leads)


def compute(case: Case, dtype: str) -> tuple[Tensors, float]:
    """Return the tensors of one case's file and the smallest lead in greedy decoding."""
    config = case.config
    peer = Peer(config, case.seed, dtype)
    sums = [batch_sums(*_batch(case, step)) for step in range(TRAINING_STEPS)]
    tensors: Tensors = {"batch_sums": np.stack(sums)}
    for name, value in oracle_parameters(config, case.seed):
        tensors[f"parameter/{name}"] = sketch(value)
    logits, loss = peer.backward(*_batch(case, 0))
    tensors["loss"] = np.array([loss])
    if case.stored_whole:
        tensors["logits"] = logits.copy()
        tensors |= {f"gradient/{name}": value.copy() for name, value in peer.gradients()}
    else:
        tensors["logits"] = sketch(logits)
        rows = logits.reshape(-1, config.vocab_size)[list(LOGITS_ROWS)]
        tensors["logits_corner"] = np.ascontiguousarray(rows[:, :LOGITS_COLUMNS])
        for name, gradient in peer.gradients():
            for label, part in gradient_parts(name, gradient):
                tensors[f"gradient/{label}"] = sketch(part)
    lead = float("inf")
    if case.stored_whole and config.seq_len >= PROMPT_TOKENS + NEW_TOKENS:
        prompt = _batch(case, 0)[0][0, :PROMPT_TOKENS]
        sequence, lead = peer.greedy(prompt, NEW_TOKENS)
        tensors["greedy"] = np.array(sequence)
    for grad_clip in case.grad_clips:
        peer = Peer(config, case.seed, dtype)
        losses, norms = peer.train(case, grad_clip)
        prefix = f"training/{grad_clip:g}"
        tensors[f"{prefix}/losses"] = np.array(losses)
        tensors[f"{prefix}/grad_norms"] = np.array(norms)
        first = oracle_parameters(config, case.seed)
        for (name, last), (_, value) in zip(peer.values(), first, strict=True):
            if not name.endswith("c_attn.bias"):
                tensors[f"{prefix}/update/{name}"] = sketch(last.astype(np.float64) - value)
    return tensors, lead


def report(case: Case, single: Tensors, double: Tensors) -> str:
    """Say how far PyTorch in float32 is from PyTorch in float64, as the tests would see it."""
    exact = Oracle(case, double)
    lines = []
    if case.stored_whole:
        logits = single["logits"].astype(np.float32)
        errors = {
            name.removeprefix("gradient/"): exact.gradient_error(
                name.removeprefix("gradient/"), value.astype(np.float32)
            )
            for name, value in single.items()
            if name.startswith("gradient/")
        }
        lines.append(f"logits                {exact.logits_error(logits):.1e}")
    else:
        errors = _sketch_errors(single, double, "gradient/")
        lines.append(f"logits                {_sketch_errors(single, double, 'logits')['']:.1e}")
    worst = sorted(errors, key=errors.__getitem__, reverse=True)[:4]
    lines.append("gradients, worst      " + ", ".join(f"{n} {errors[n]:.1e}" for n in worst))
    lines.append(
        f"loss                  {relative_error(_f(single['loss']), _f(double['loss'])):.1e}"
    )
    for grad_clip in case.grad_clips:
        ours, theirs = Oracle(case, single).training(grad_clip), exact.training(grad_clip)
        losses = np.abs(ours.losses / theirs.losses - 1).max()
        norms = np.abs(ours.grad_norms / theirs.grad_norms - 1).max()
        updates = _sketch_errors(single, double, f"training/{grad_clip:g}/update/")
        name = max(updates, key=updates.__getitem__)
        lines.append(
            f"training, clip {grad_clip:<4g}   losses {losses:.1e}, norms {norms:.1e}, "
            f"updates {updates[name]:.1e} ({name})\n"
            f"    loss {ours.losses[0]:.3f} -> {ours.losses[-1]:.3f}, "
            f"norm {ours.grad_norms.min():.2f} to {ours.grad_norms.max():.2f}"
        )
    return "\n".join(lines)


def _sketch_errors(single: Tensors, double: Tensors, prefix: str) -> dict[str, float]:
    return {
        key.removeprefix(prefix): sketch_error(_f(value), _f(double[key]))
        for key, value in single.items()
        if key.startswith(prefix) and value.shape == (9,)
    }


def _f(value: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    return value.astype(np.float64)


def _batch(case: Case, step: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    return oracle_batch(case.config, case.batch_size, case.seq_len, case.seed, step)


def main() -> None:
    """Write the files of the cases asked for and print what was found."""
    parser = argparse.ArgumentParser(description="Write PyTorch's numbers for the oracle tests.")
    parser.add_argument("--out", type=Path, default=Path("tests/oracle"), help="folder to write")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    made_by = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers"))
    for name in arguments.case or CASES:
        case = CASES[name]
        single, lead = compute(case, "float32")
        double, _ = compute(case, "float64")
        path = arguments.out / f"{name}.safetensors"
        path.write_bytes(save(single, {"made_by": made_by}))  # one key: several come in any order
        print(f"{path}: {path.stat().st_size} bytes; float32 against float64:")
        print(report(case, single, double))
        if "greedy" in single:
            same = np.array_equal(single["greedy"], double["greedy"])
            print(f"greedy                same tokens: {same}, smallest lead {lead:.2g}")


if __name__ == "__main__":
    main()
