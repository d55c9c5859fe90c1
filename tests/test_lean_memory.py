"""What takes less memory: computing cheap values a second time, the head by slices of the batch.

The first changes no bit; the second adds the same terms in another order.
"""

import numpy as np

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.gpt2.params import initial_parameters
from aieflow.ops.op import Array
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import place

MODEL = ModelConfig(vocab_size=401, seq_len=24, layers=2, heads=3, channels=24)
B, T = 4, 24


def trained(recompute: bool = False, head_slices: int = 1) -> tuple[list[Array], int, list[str]]:
    """Loss, norm and gradients of one training step; bytes of the arena; the ops run."""
    graph = training_step(
        MODEL,
        B,
        T,
        keep_gradients=True,
        dropout=0.1,
        shards=2,
        recompute=recompute,
        head_slices=head_slices,
    )
    device = CpuDevice(lanes=2)
    plan = place(graph, device)
    states = allocate_states(graph, device)
    for _ in initial_parameters(MODEL, 3, states):
        pass
    rng = np.random.default_rng(5)
    feeds: dict[str, Array] = {
        "rates": np.array([1e-3, 0.1, 0.05]),
        "key": np.array([7], np.uint64),
    }
    for name in ("shard.0.tokens", "shard.0.targets", "shard.1.tokens", "shard.1.targets"):
        feeds[name] = rng.integers(0, MODEL.vocab_size, (B // 2, T), np.int32)
    with Executor(plan, {device.name: device}, states) as executor:
        executor.run(feeds)
        results = [executor.array(value).copy() for value in graph.results]
    ops = [node.op.name for node in graph.nodes]
    return [*results, states["wte.weight"].copy()], plan.memory.arena_nbytes, ops


def test_same_bits_in_less_memory() -> None:
    kept, kept_nbytes, kept_ops = trained()
    again, again_nbytes, again_ops = trained(recompute=True)
    for ours, theirs in zip(kept, again, strict=True):
        assert np.array_equal(ours, theirs)
    assert again_ops.count("gelu") == 2 * kept_ops.count("gelu")
    last = 2  # of each shard, read by the head at once
    assert again_ops.count("layernorm") == 2 * kept_ops.count("layernorm") - last
    assert again_nbytes < 0.9 * kept_nbytes


def test_slices_of_the_head_give_the_same_gradients_in_less_memory() -> None:
    whole, whole_nbytes, whole_ops = trained()
    sliced, sliced_nbytes, sliced_ops = trained(head_slices=2)
    for ours, theirs in zip(sliced, whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)  # rounding of the sums
    losses = "cross_entropy_gradient"
    assert sliced_ops.count(losses) == 2 * whole_ops.count(losses) == 4
    assert sliced_nbytes < whole_nbytes
