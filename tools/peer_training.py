"""A peer's training step: Hugging Face's GPT-2 in PyTorch eager with fused AdamW, on the CPU.

A script for an environment that holds torch and transformers; prints one JSON object with the
seconds of each training step and the process's memory, to be held against `aieflow bench`.

    python tools/peer_training.py --preset 124M --batch-size 4 --seq-len 64 --threads 2
"""

import argparse
import json
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from aieflow.gpt2.config import PRESETS


def main() -> None:
    """Train a few training steps on random tokens and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--preset", default="124M", choices=sorted(PRESETS))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch: Any = import_module("torch")
    transformers: Any = import_module("transformers")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    before = _resident("VmRSS")
    sizes = PRESETS[given.preset]
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=sizes.vocab_size,
            n_positions=sizes.seq_len,
            n_embd=sizes.channels,
            n_layer=sizes.layers,
            n_head=sizes.heads,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    seconds: list[float] = []
    for _ in range(given.rounds + 2):
        tokens = torch.randint(0, sizes.vocab_size, (given.batch_size, given.seq_len))
        begin = time.perf_counter()
        loss = model(tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        seconds.append(time.perf_counter() - begin)
    peak = _resident("VmHWM")
    report = {
        "peer": f"torch {torch.__version__}, transformers {transformers.__version__}, eager",
        "preset": given.preset,
        "batch_size": given.batch_size,
        "seq_len": given.seq_len,
        "threads": given.threads,
        "seconds": sorted(seconds[2:])[given.rounds // 2],
        "seconds_min": min(seconds[2:]),
        "seconds_max": max(seconds[2:]),
        "peak_nbytes": peak,
        "peak_less_imports_nbytes": peak - before,
    }
    print(json.dumps(report))


def _resident(key: str) -> int:
    """Bytes under `key` in the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {key} in /proc/self/status")


if __name__ == "__main__":
    main()
