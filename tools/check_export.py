"""Hold a checkpoint folder, read by `transformers`, against the same folder read by aieflow.

    python -m aieflow.tools.check_export RUN/checkpoints/latest

needs an environment with aieflow, torch and transformers. It compares the logits of one prompt and
50 greedily decoded tokens, and the token ids of the prompt where the folder has a tokenizer. Exit
code 0 if they agree, 1 if not.
"""

import argparse
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aieflow.devices.registry import open_device
from aieflow.gpt2.generate import Generator
from aieflow.gpt2.tokenizer import Tokenizer
from aieflow.runtime.machine import Machine
from aieflow.tools.oracle import relative_error

TOLERANCE = 1e-4  # of the logits, ‖ours - theirs‖ / ‖theirs‖
PROMPT = "The value of an expression is"
PROMPT_TOKENS = 16  # at most
NEW_TOKENS = 50  # fewer where the model's sequence is shorter


@dataclass(frozen=True, slots=True)
class Answer:
    """What one implementation makes of a prompt."""

    logits: npt.NDArray[np.float32]  # (T, V)
    continuation: list[int]


def peer_prompt(folder: Path) -> list[int] | None:
    """Return the prompt's token ids by the folder's own tokenizer; None if it has none."""
    if not ((folder / "vocab.json").exists() or (folder / "tokenizer.json").exists()):
        return None
    tokenizer = import_module("transformers").AutoTokenizer.from_pretrained(folder)
    return [int(token) for token in tokenizer(PROMPT)["input_ids"]]


def peer_sizes(folder: Path) -> tuple[int, int]:
    """Return vocabulary size V and longest sequence T by the folder's `config.json`."""
    config = import_module("transformers").AutoConfig.from_pretrained(folder)
    return int(config.vocab_size), int(config.n_positions)


def peer_answer(folder: Path, tokens: list[int], count: int) -> Answer:
    """Return what `transformers` computes in float32, its cache of keys and values included."""
    torch = import_module("torch")
    model = import_module("transformers").GPT2LMHeadModel.from_pretrained(
        folder, dtype=torch.float32
    )
    model.eval()
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = None  # aieflow goes on after an end of text, too
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits = model(ids).logits[0].numpy()
    sequence = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=count,
        pad_token_id=0,
    )[0]
    return Answer(logits, [int(token) for token in sequence[len(tokens) :]])


def our_answer(folder: Path, tokens: list[int], count: int) -> Answer:
    """Return what aieflow computes on the CPU, its cache of keys and values included."""
    ids = np.array(tokens, np.int32)
    device = open_device("cpu")
    with Generator.from_folder(folder, Machine((device,))) as generator:
        answer = Answer(generator.logits(ids), generator.greedy(ids, count))
    device.close()
    return answer


def disagreements(ours: Answer, theirs: Answer) -> list[str]:
    """Return one line for each way in which two answers differ; none if they agree."""
    found = []
    error = relative_error(ours.logits, theirs.logits)
    if not error <= TOLERANCE:
        found.append(f"logits differ by {error:.1e}, allowed are {TOLERANCE:.0e}")
    pairs = zip(ours.continuation, theirs.continuation, strict=False)
    first = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
    if first is not None:
        found.append(
            f"greedy token {first} is {ours.continuation[first]}, "
            f"transformers has {theirs.continuation[first]}"
        )
    elif len(ours.continuation) != len(theirs.continuation):
        found.append(
            f"{len(ours.continuation)} greedy tokens, transformers has {len(theirs.continuation)}"
        )
    return found


def main() -> int:
    """Compare and print; return the exit code."""
    parser = argparse.ArgumentParser(description="Hold aieflow against transformers.")
    parser.add_argument("folder", type=Path, help="a checkpoint in Hugging Face's layout")
    folder = parser.parse_args().folder.resolve()
    found = []
    vocab_size, seq_len = peer_sizes(folder)
    tokens = peer_prompt(folder)
    if tokens is None:
        print("tokenizer: none in the folder; the prompt is made of token ids")
        tokens = [int(t) for t in np.random.default_rng(0).integers(0, vocab_size, PROMPT_TOKENS)]
    else:
        print(f"tokenizer: {PROMPT!r} is {tokens}")
        encoded = [int(token) for token in Tokenizer.from_folder(folder).encode(PROMPT)]
        if encoded != tokens:
            found.append(f"the prompt's tokens are {encoded}, transformers has {tokens}")
    tokens = tokens[: min(PROMPT_TOKENS, max(1, seq_len // 2))]
    count = min(NEW_TOKENS, seq_len - len(tokens))
    theirs = peer_answer(folder, tokens, count)
    ours = our_answer(folder, tokens, count)
    found += disagreements(ours, theirs)
    print(f"prompt: {len(tokens)} tokens {tokens}")
    print(f"logits {ours.logits.shape}: {relative_error(ours.logits, theirs.logits):.1e}")
    print(f"greedy, {count} tokens: {ours.continuation}")
    print("\n".join(found) or "agree")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
