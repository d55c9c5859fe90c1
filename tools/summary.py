"""What `aieflow train` prints before and after: the run in a few lines."""

import math
import shlex
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np
from rich.markup import escape

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice, measure_gemm_rate
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.data import TokenData
from aieflow.gpt2.energy import Energy
from aieflow.gpt2.generate import Generator, Sampling
from aieflow.gpt2.run_folder import RunFolder
from aieflow.gpt2.tokenizer import Tokenizer
from aieflow.gpt2.train import Outcome
from aieflow.gpt2.trainer import Trainer
from aieflow.ops.op import Array
from aieflow.runtime.machine import Machine
from aieflow.runtime.plan import Plan
from aieflow.runtime.schedule import device_of
from aieflow.tools.console import ERR, OUT
from aieflow.tools.energy_meter import energy_text

PROMPT = "This is the"
SAMPLE_TOKENS = 150
LAST = 20  # training steps that the final training loss is the mean of


def print_header(run: RunFolder, machine: Machine, trainer: Trainer, data: TokenData) -> None:
    """Say what is going to be trained, on what, and how much memory it takes."""
    config = run.config
    model, plan = config.model, trainer.plan
    accumulated = f" x {config.grad_accumulation}" if config.grad_accumulation > 1 else ""
    ERR.print(
        f"model       GPT-2, {model.parameters / 1e6:.1f} M parameters: L={model.layers} "
        f"H={model.heads} C={model.channels} V={model.vocab_size}, "
        f"B={config.batch_size}{accumulated} T={config.seq_len}"
    )
    source = config.data or "the built-in text (Python's language reference)"
    held_out = 0 if data.validation is None else len(data.validation)
    ERR.print(
        f"data        {escape(source)}\n"
        f"            {len(data.train):,} tokens to train, {held_out:,} to validate"
    )
    if config.init:
        ERR.print(f"weights     {escape(config.init)}")
    accounts = ", ".join(
        f"{name} {nbytes / 1e6:,.0f}"
        for name, nbytes in plan.memory.accounts.items()
        if nbytes >= 500_000
    )
    ERR.print(
        f"plan        {len(plan.graph.nodes)} nodes, {plan.graph.flops / 1e9:,.1f} GFLOP for each "
        "training step\n"
        f"memory      {trainer.planned_nbytes / 1e6:,.0f} MB; at the peak, in MB:\n"
        f"            {accounts or 'each account below 0.5'}"
    )
    heading = "device" if len(machine.devices) == 1 else "devices"
    for device in machine.devices:
        ERR.print(f"{heading:<11} {escape(_on_device(device, plan))}", highlight=False)
        heading = ""


def _on_device(device: Device, plan: Plan) -> str:
    """What a device is, and what it does of a plan."""
    lanes = "1 compute lane" if len(device.lanes) == 1 else f"{len(device.lanes)} compute lanes"
    what = f": {device.identity}" if device.identity != device.name else ""
    if device.copy_lanes is None:
        return f"{device.name}{what}: {lanes}"
    nodes = sum(device_of(placed[0]) == device.name for placed in plan.schedule.placements)
    return f"{device.name}{what}: {lanes}, {len(device.copy_lanes)} copy lanes, {nodes} nodes"


def print_notes(machine: Machine) -> None:
    """Say what devices and planning have to say, such as a damaged cache that was built again."""
    for device in machine.devices:
        for note in device.notes:
            ERR.print(f"note        {escape(note)}")
    for note in machine.placement.choices.notes:
        ERR.print(f"note        {escape(note)}")


def print_sample(
    model: ModelConfig, parameters: Mapping[str, Array], tokenizer: Tokenizer, lanes: int | None
) -> None:
    """Print a text by the model, computed on the CPU."""
    prompt = tokenizer.encode(PROMPT).astype(np.int32)
    with (
        closing(CpuDevice(lanes)) as device,
        Generator(model, parameters, Machine((device,))) as generator,
    ):
        stream = generator.stream(prompt, Sampling(temperature=0.6, top_p=0.9))
        ids = [next(stream)[0] for _ in range(SAMPLE_TOKENS)]
    OUT.print()
    OUT.out(tokenizer.decode([*prompt, *ids]).strip(), highlight=False)
    OUT.print()


def print_summary(
    run: RunFolder,
    trainer: Trainer,
    outcome: Outcome,
    records: Sequence[tuple[float, float]],
    seconds: float,
    has_tokenizer: bool,
    energies: Sequence[Energy] = (),
) -> None:
    """Print losses, throughput, the run's folder, and how to generate where that is possible.

    Energy, too, where training steps were measured.
    """
    state = outcome.state
    if records:
        losses = [loss for loss, _ in records[-LAST:]]
        OUT.print(
            f"train       loss {np.mean(losses):.3f} (mean of the last {len(losses)} training "
            f"steps)\n            {state.training_step} training steps, "
            f"{state.tokens_seen:,} tokens, {seconds:,.1f} s"
        )
    if state.validation_loss is not None:
        OUT.print(
            f"validation  loss {state.validation_loss:.3f}, "
            f"perplexity {math.exp(min(state.validation_loss, 700)):,.1f}"
        )
    if records:
        _print_throughput(run, trainer, [each for _, each in records])
    if energies:
        OUT.print(f"energy      {escape(energy_text(energies))}")
    OUT.print(f"run         {escape(str(run.path))}")
    if outcome.is_complete and has_tokenizer:
        folder = escape(shlex.quote(str(run.path)))
        OUT.print(f'next        aieflow generate --from {folder} "{PROMPT}"')


def _print_throughput(run: RunFolder, trainer: Trainer, seconds: Sequence[float]) -> None:
    config = run.config
    median = statistics.median(seconds)
    tokens = config.batch_size * config.grad_accumulation * config.seq_len
    rate = trainer.plan.graph.flops / median
    share = ""
    (device, *others) = trainer.machine.devices
    if isinstance(device, CpuDevice) and not others and not trainer.emulated:
        peak = measure_gemm_rate(device)
        share = (
            f"\n            {rate / 1e9:.1f} GFLOP/s, {rate / peak:.0%} of the "
            f"{peak / 1e9:.0f} GFLOP/s that GEMM reaches here"
        )
    if trainer.emulated:
        names = ", ".join(trainer.emulated)
        share = f"\n            emulated: {names}; these are the emulation's times, no hardware's"
    OUT.print(
        f"throughput  {tokens / median:,.0f} tokens/s (median training step "
        f"{median * 1e3:.1f} ms){share}"
    )
