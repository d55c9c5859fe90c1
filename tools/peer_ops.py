"""The peer of `aieflow bench ops --peer torch`: PyTorch's ops on the CPU, as a child process.

It prints its version as a JSON object, and then answers each line of its standard input, a JSON
object that describes one node (`case`, `op`, `inputs`, `attrs`, `integers_below`, `repeats`), with
the seconds that PyTorch's equivalent takes, the median of the repeats, or null where it has none. A
case is made ready when it is first asked for.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from aieflow.tools.peer_training import keep_freed_memory

Attrs = Mapping[str, float]


def main() -> None:
    """Serve timings until the input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, required=True)
    threads = parser.parse_args().threads
    keep_freed_memory()
    torch: Any = import_module("torch")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(json.dumps({"version": str(torch.__version__)}), flush=True)
    calls: dict[int, Callable[[], object] | None] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        case = int(asked["case"])
        if case not in calls:
            calls[case] = _ready(torch, asked)
        call = calls[case]
        seconds = None if call is None else _median(call, int(asked["repeats"]))
        print(json.dumps({"seconds": seconds}), flush=True)


def _median(call: Callable[[], object], repeats: int) -> float:
    taken: list[float] = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def _ready(torch: Any, asked: Mapping[str, Any]) -> Callable[[], object] | None:
    """The call of the equivalent of a node, with operands of its own."""
    make = MAKERS.get(asked["op"])
    if make is None:
        return None
    limit = int(asked["integers_below"])
    inputs = [_values(torch, shape, dtype, limit) for shape, dtype in asked["inputs"]]
    return make(torch, inputs, asked["attrs"])


def _values(torch: Any, shape: list[int], dtype: str, integers_below: int) -> Any:
    if "int" in dtype:
        return torch.randint(0, integers_below, shape)
    return torch.rand(shape, dtype=getattr(torch, dtype)) + 0.5


def _layernorm(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    x, weight, bias = inputs
    return lambda: torch.native_layer_norm(x, weight.shape, weight, bias, attrs["epsilon"])


def _layernorm_backward(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    dy, x, weight, mean, rstd = inputs[:5]
    backward = torch.ops.aten.native_layer_norm_backward
    mean, rstd = mean.unsqueeze(-1), rstd.unsqueeze(-1)

    def call() -> object:
        mask = [True, False, False]
        dx = backward(dy, x, weight.shape, mean, rstd, weight, weight, mask)[0]
        return dx.add_(inputs[5]) if len(inputs) == 6 else dx

    return call


def _layernorm_backward_params(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    x, dy, mean, rstd = inputs[:4]
    weight = torch.ones(x.shape[-1:])
    backward = torch.ops.aten.native_layer_norm_backward
    mean, rstd, mask = mean.unsqueeze(-1), rstd.unsqueeze(-1), [False, True, True]
    return lambda: backward(dy, x, weight.shape, mean, rstd, weight, weight, mask)


def _attended(torch: Any, qkv: Any, attrs: Attrs) -> Any:
    B, T, three_c = qkv.shape
    heads = int(attrs["heads"])
    parts = qkv.view(B, T, 3, heads, three_c // 3 // heads).permute(2, 0, 3, 1, 4)
    attention = torch.nn.functional.scaled_dot_product_attention
    out = attention(*parts, dropout_p=attrs.get("rate", 0.0), is_causal=True)
    return out.transpose(1, 2).reshape(B, T, three_c // 3)


def _attention(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    qkv = inputs[0].requires_grad_()
    return lambda: _attended(torch, qkv, attrs)


def _attention_backward(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    qkv, dout = inputs[0].requires_grad_(), inputs[3]
    out = _attended(torch, qkv, attrs)
    return lambda: torch.autograd.grad(out, qkv, dout, retain_graph=True)


def _gelu(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    return lambda: torch.nn.functional.gelu(inputs[0], approximate="tanh")


def _gelu_backward(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    x, dy = inputs
    return lambda: torch.ops.aten.gelu_backward(dy, x, approximate="tanh")


def _cross_entropy(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    logits = inputs[0].view(-1, inputs[0].shape[-1]).requires_grad_()
    targets = inputs[1].view(-1)

    def call() -> object:
        return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, targets), logits)

    return call


def _embedding(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    tokens, wte, wpe = inputs
    positions = torch.arange(tokens.shape[1])
    embedding = torch.nn.functional.embedding
    return lambda: embedding(tokens, wte) + embedding(positions, wpe)


def _embedding_backward_tokens(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    tokens, dx = inputs[:2]
    backward, rows = torch.ops.aten.embedding_dense_backward, int(attrs["rows"])

    def call() -> object:
        dense = backward(dx, tokens, rows, -1, False)
        return inputs[2].add_(dense) if len(inputs) == 3 else dense

    return call


def _embedding_backward_positions(
    torch: Any, inputs: list[Any], attrs: Attrs
) -> Callable[[], object]:
    positions = torch.arange(inputs[0].shape[1])
    backward, rows = torch.ops.aten.embedding_dense_backward, int(attrs["rows"])
    return lambda: backward(inputs[0].sum(0), positions, rows, -1, False)


def _adamw(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    parameter, gradient, m, v = ([each] for each in inputs[:4])
    steps = [torch.ones(())]
    options = {
        "lr": 1e-4,
        "beta1": attrs["beta1"],
        "beta2": attrs["beta2"],
        "weight_decay": attrs["weight_decay"],
        "eps": attrs["epsilon"],
        "amsgrad": False,
        "maximize": False,
    }
    return lambda: torch._fused_adamw_(parameter, gradient, m, v, [], steps, **options)


def _dropout(torch: Any, inputs: list[Any], attrs: Attrs) -> Callable[[], object]:
    x, rate = inputs[0], attrs["rate"]

    def call() -> object:
        out = torch.nn.functional.dropout(x, rate)
        return out.add_(inputs[2]) if len(inputs) == 3 else out

    return call


MAKERS: Mapping[str, Callable[[Any, list[Any], Attrs], Callable[[], object]]] = {
    "adamw": _adamw,
    "add": lambda torch, inputs, attrs: lambda: torch.add(*inputs),
    "attention": _attention,
    "attention_backward": _attention_backward,
    "column_sum": lambda torch, inputs, attrs: lambda: inputs[0].flatten(0, -2).sum(0),
    "cross_entropy_gradient": _cross_entropy,
    "dropout": _dropout,
    "embedding": _embedding,
    "embedding_backward_positions": _embedding_backward_positions,
    "embedding_backward_tokens": _embedding_backward_tokens,
    "gelu": _gelu,
    "gelu_backward": _gelu_backward,
    "layernorm": _layernorm,
    "layernorm_backward": _layernorm_backward,
    "layernorm_backward_params": _layernorm_backward_params,
    "squared_norm": lambda torch, inputs, attrs: lambda: torch.linalg.vector_norm(inputs[0]),
}

if __name__ == "__main__":
    main()
