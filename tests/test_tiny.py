"""The whole library on one page: a GPT-2 is lowered, placed, trained and traced."""

import numpy as np

from aieflow.devices.cpu import CpuDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import Optimizer, training_step
from aieflow.gpt2.params import initial_parameters
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import place
from aieflow.runtime.trace import Trace


def test_tiny() -> None:
    config = ModelConfig(vocab_size=64, seq_len=16, layers=2, heads=2, channels=32)
    optimizer = Optimizer(beta1=0.9, beta2=0.95, weight_decay=0.1, grad_clip=1.0)

    # 1. Forward, backward and AdamW over one batch, as a graph that prints and checks itself.
    graph = training_step(config, batch_size=4, seq_len=16, optimizer=optimizer)
    assert "%loss: float32[1] = mean(%losses)" in str(graph)

    # 2. Who runs what, where every value lies, who waits for whom.
    device = CpuDevice(lanes=2)
    plan = place(graph, device)
    assert plan.memory.accounts["parameters"] == 4 * config.parameters
    assert list(plan.lanes) == ["cpu.compute.0", "cpu.compute.1"]

    # 3. Memory for parameters and moments, and a fixed batch: the next token of a cycle.
    states = allocate_states(graph, device)
    for name, values in initial_parameters(config, seed=0):
        states[name][...] = values
    tokens = (np.arange(4 * 16, dtype=np.int32) * 7 % 64).reshape(4, 16)
    targets = (tokens + 7) % 64

    # 4. The same plan is run for every training step; each lane is a thread.
    losses: list[float] = []
    traces: list[Trace | None] = []
    with Executor(plan, {"cpu": device}, states) as executor:
        for t in range(1, 31):
            rates = np.array([1e-2, 1 - optimizer.beta1**t, 1 - optimizer.beta2**t])
            feeds = {"tokens": tokens, "targets": targets, "rates": rates}
            traces.append(executor.run(feeds, traced=True))
            losses.append(float(executor.array("loss")[0]))
    device.close()
    assert abs(losses[0] - np.log(64)) < 0.2
    assert losses[-1] < 0.2

    # 5. What the last run did: a span for every step of the plan.
    trace = traces[-1]
    assert trace is not None
    assert len(trace.spans) == len(plan.steps)
    assert list(trace.seconds_by_op())
