"""The peer of `aieflow bench train --peer torch`: GPT-2 in PyTorch on the CPU, as a child process.

The model is written for speed (fused attention, fused AdamW, tied head, no dropout), fp32 like
aieflow's. The script prints a JSON object when it is warm, and then for each line on its standard
input does one training step and prints another: its seconds, and the memory it has used.
"""

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from aieflow.gpt2.config import PRESETS, ModelConfig

WARM_UP = 3  # training steps before the first that counts
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def main() -> None:
    """Warm up, then serve training steps until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--preset", required=True, choices=sorted(PRESETS))
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--seq-len", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    keep_freed_memory()
    torch: Any = import_module("torch")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    before = _resident("VmRSS")
    step = _training_step(
        torch, PRESETS[given.preset], given.batch_size, given.seq_len, given.compile
    )
    for _ in range(WARM_UP):
        step()
    print(json.dumps({"version": f"torch {torch.__version__}"}), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        step()
        seconds = time.perf_counter() - begin
        memory = {"peak_nbytes": _resident("VmHWM") - before}
        print(json.dumps({"seconds": seconds, **memory}), flush=True)


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed: PyTorch allocates its activations anew each time.

    Otherwise it gives large blocks back to the system and touches fresh pages in every training
    step, which takes longer than the arithmetic where page faults are slow (virtual machines).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _training_step(
    torch: Any, sizes: ModelConfig, B: int, T: int, is_compiled: bool
) -> Callable[[], None]:
    """A call that draws a batch, runs forward and backward, clips, and updates."""
    functional = torch.nn.functional
    C = sizes.channels

    class Block(torch.nn.Module):  # type: ignore[misc]  # torch is absent where this is checked
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = torch.nn.LayerNorm(C), torch.nn.LayerNorm(C)
            self.qkv, self.proj = torch.nn.Linear(C, 3 * C), torch.nn.Linear(C, C)
            self.fc, self.fcproj = torch.nn.Linear(C, 4 * C), torch.nn.Linear(4 * C, C)

        def forward(self, x: Any) -> Any:
            qkv = self.qkv(self.ln_1(x)).view(B, T, 3, sizes.heads, C // sizes.heads)
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(out.transpose(1, 2).reshape(B, T, C))
            return x + self.fcproj(functional.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    class Model(torch.nn.Module):  # type: ignore[misc]  # likewise
        def __init__(self) -> None:
            super().__init__()
            self.wte = torch.nn.Embedding(sizes.vocab_size, C)
            self.wpe = torch.nn.Embedding(sizes.seq_len, C)
            self.blocks = torch.nn.Sequential(*(Block() for _ in range(sizes.layers)))
            self.ln_f = torch.nn.LayerNorm(C)
            self.positions = torch.arange(T)

        def forward(self, tokens: Any, targets: Any) -> Any:
            x = self.blocks(self.wte(tokens) + self.wpe(self.positions))
            logits = functional.linear(self.ln_f(x), self.wte.weight)
            return functional.cross_entropy(logits.view(B * T, -1), targets.view(-1))

    model = Model()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:  # as GPT-2 begins; PyTorch's embeddings would give logits of
            torch.nn.init.normal_(parameter, std=0.02)  # some 28, and gradients below 1e-38: slow
        elif name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if is_compiled else model

    def step() -> None:
        batch = torch.randint(0, sizes.vocab_size, (2, B, T))
        loss = forward(batch[0], batch[1])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def _resident(key: str) -> int:
    """Bytes under `key` in the kernel's account of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"no {key} in /proc/self/status")


if __name__ == "__main__":
    main()
