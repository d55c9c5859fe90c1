"""`aieflow simulate gpt2 --machine NAME`: a training step on a machine that is not here.

The plan is the one that the described machine would follow; it runs in virtual time, at the costs
that the machine's profile foretells. No device of this computer is opened and no tensor allocated.
Every figure is a prediction, and is printed with the word "simulated".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from aieflow.devices.base import Device
from aieflow.devices.described import described_cpu, described_igpu, described_npu
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.errors import InputError
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine, machine_names
from aieflow.profiles.schema import POWERS, MachineProfile, suggestion
from aieflow.runtime.bounds import Bound, bound, node_choices
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.policies.fixed import RULES, default_policy
from aieflow.runtime.simulate import joules, simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.runtime.trace import Trace, write_chrome
from aieflow.tools.console import OUT
from aieflow.tools.machine_options import Policy, Shards, Slots
from aieflow.tools.model_options import (
    BatchSize,
    Channels,
    Dropout,
    GradAccumulation,
    GradClip,
    Heads,
    Layers,
    Model,
    Preset,
    SeqLen,
    VocabSize,
    require_gpt2,
)
from aieflow.tools.run_options import asked_for, new_config


@dataclass(frozen=True, slots=True)
class Simulated:
    """What was foretold of one training step."""

    config: RunConfig
    machine: MachineProfile
    flops: int  # of the graph, conversions apart
    trace: Trace
    joules: float
    bound: Bound

    @property
    def tokens(self) -> int:
        """Tokens of the training step."""
        config = self.config
        return config.batch_size * config.grad_accumulation * config.seq_len


def simulated(config: RunConfig, machine: MachineProfile) -> Simulated:
    """One training step of a run on a described machine; raises PlanError and InputError."""
    cost = MachineCost(machine)
    devices = described_devices(machine)
    names = tuple(device.name for device in devices)
    policy = config.policy or default_policy(names)
    if policy not in RULES:
        meant = suggestion(policy, RULES)
        raise InputError(f"--policy {policy}: must be one of {', '.join(RULES)}{meant}")
    graph = training_graph(config)
    around = Machine(devices, Placement(policy, slots=config.slots))
    plan = around.plan(graph)
    around.require_memory(plan.nbytes, plan)
    costs = MachineStepCost(cost)
    trace = simulate(plan, costs)
    lanes = {device.name: len(device.lanes) for device in devices}
    kernels = {device.name: device.kernels for device in devices}
    least = bound(graph, node_choices(graph, kernels, lanes, cost.node_s), lanes)
    return Simulated(config, machine, graph.flops, trace, joules(trace, costs), least)


def described_devices(machine: MachineProfile) -> tuple[Device, ...]:
    """The devices of a described machine, the CPU first, with as many lanes as it says."""
    cpu, igpu, npu = machine.cpu, machine.igpu, machine.npu
    return (
        described_cpu(int(cpu.lanes.value), int(cpu.memory_nbytes.value)),
        described_igpu(int(igpu.lanes.value), int(igpu.memory_nbytes.value)),
        described_npu(npu.generation, int(npu.lanes.value), int(npu.memory_nbytes.value)),
    )


def simulate_command(
    model: Model,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The described machine; required.")
    ] = None,
    power: Annotated[str, typer.Option(help=f"What it runs on: {', '.join(POWERS)}.")] = POWERS[0],
    policy: Policy = None,
    preset: Preset = None,
    layers: Layers = None,
    heads: Heads = None,
    channels: Channels = None,
    seq_len: SeqLen = None,
    vocab_size: VocabSize = None,
    batch_size: BatchSize = None,
    grad_accumulation: GradAccumulation = None,
    dropout: Dropout = None,
    grad_clip: GradClip = None,
    shards: Shards = None,
    slots: Slots = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE=VALUE",
            help="Another value for a figure of the machine, such as npu.gemm_flops_per_s=0.5x; "
            "may be given several times.",
        ),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the simulated trace (Chrome JSON).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Foretell a training step on a described machine: time, energy, use, distance to a bound.

    Example: aieflow simulate gpt2 --machine phoenix --preset 124M --batch-size 4 --seq-len 64
    """
    require_gpt2(model, "simulate")
    sizes = {"layers": layers, "heads": heads, "channels": channels, "vocab_size": vocab_size}
    settings = {
        "seq_len": seq_len,
        "batch_size": batch_size,
        "grad_accumulation": grad_accumulation,
        "dropout": dropout,
        "grad_clip": grad_clip,
        "policy": policy,
        "shards": shards,
        "slots": slots,
    }
    varied = vary or []
    profile = _varied(_machine(machine, power), varied)
    config = new_config(asked_for(preset, None, {**sizes, **settings}))
    found = simulated(config, profile)
    if trace is not None:
        _write(trace, found.trace)
    if as_json:
        OUT.out(json.dumps(report(found, varied), indent=2), highlight=False)
        return
    _print(found, varied, trace)


def report(found: Simulated, varied: Sequence[str] = ()) -> dict[str, object]:
    """What `--json` prints: seconds, joules and shares, all simulated."""
    trace, config, machine = found.trace, found.config, found.machine
    return {
        "simulated": True,
        "machine": machine.name,
        "power": machine.power,
        "varied": list(varied),
        "policy": trace.plan.schedule.policy,
        "batch_size": config.batch_size,
        "seq_len": config.seq_len,
        "shards": config.shards,
        "parameters": config.model.parameters,
        "seconds": trace.seconds,
        "tokens_per_s": found.tokens / trace.seconds,
        "gflops_per_s": found.flops / trace.seconds / 1e9,
        "joules": found.joules,
        "bound_seconds": found.bound.seconds,
        "bound_ratio": trace.seconds / found.bound.seconds,
        "critical_path_seconds": found.bound.critical_path_s,
        "overlap": trace.overlap,
        "lanes": {lane: trace.busy_seconds(lane) / trace.seconds for lane in trace.plan.lanes},
        "lane_seconds_by_op": trace.seconds_by_op(),
        "marks": marks(machine),
    }


def marks(machine: MachineProfile) -> dict[str, int]:
    """How many figures of a machine have each mark: measured, vendor, inferred, assumed, varied."""
    counts: dict[str, int] = {}
    for _, figure in machine.figures():
        counts[figure.mark] = counts.get(figure.mark, 0) + 1
    return dict(sorted(counts.items()))


def _machine(name: str | None, power: str) -> MachineProfile:
    if name is None:
        raise InputError(f"simulate needs --machine: one of {', '.join(machine_names())}, or FILE")
    if power not in POWERS:
        raise InputError(f"--power {power}: must be {' or '.join(POWERS)}")
    return load_machine(name, power)


def _varied(machine: MachineProfile, changes: Sequence[str]) -> MachineProfile:
    """The machine with figures changed; raises InputError."""
    for change in changes:
        figure, equals, value = (part.strip() for part in change.partition("="))
        if not equals or not figure or not value:
            raise InputError(
                f"--vary {change}: not FIGURE=VALUE, such as npu.gemm_flops_per_s=0.5x"
            )
        try:
            machine = machine.with_value(figure, value)
        except InputError as error:
            raise InputError(f"--vary {change}: {error}") from None
    return machine


def _write(file: Path, trace: Trace) -> None:
    try:
        write_chrome([(0.0, trace)], file)
    except OSError as error:
        raise InputError(f"--trace {file}: cannot be written: {error.strerror}") from None


def _print(found: Simulated, varied: Sequence[str], file: Path | None) -> None:
    machine, config, trace = found.machine, found.config, found.trace
    sizes, plan = config.model, trace.plan
    sure = ", ".join(f"{count} {mark}" for mark, count in marks(machine).items())
    copies = any(".copy" in span.lane for span in trace.spans)
    ratio = trace.seconds / found.bound.seconds
    lines = {
        "machine": f"{machine.name} on {machine.power}, described: {machine.chip}",
        "figures": f"{sure}; {machine.provenance}",
        **({"varied": ", ".join(varied)} if varied else {}),
        "model": f"GPT-2: L={sizes.layers} H={sizes.heads} C={sizes.channels} "
        f"V={sizes.vocab_size}, {sizes.parameters:,} parameters",
        "batch": f"B={config.batch_size} T={config.seq_len}: {found.tokens:,} tokens in a "
        "training step",
        "policy": plan.schedule.policy,
        "seconds": f"{trace.seconds:.4g} s a training step (simulated)",
        "tokens": f"{found.tokens / trace.seconds:,.0f} tokens/s (simulated)",
        "rate": f"{found.flops / trace.seconds / 1e9:,.1f} GFLOP/s (simulated)",
        "energy": f"{found.joules:.4g} J a training step, "
        f"{found.joules / trace.seconds:.3g} W (simulated)",
        "overlap": f"{trace.overlap:.1%} of transfers and conversions under compute (simulated)"
        if copies
        else "nothing is transferred (simulated)",
        "bound": f"{found.bound.seconds:.4g} s at least on these devices, by any placement of "
        f"this graph: {ratio:.2f}x (simulated)",
    }
    for name, line in lines.items():
        OUT.print(f"{name:<11} {line}", markup=False, emoji=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("lane")
    for heading in ("steps", "busy s (simulated)", "share (simulated)"):
        table.add_column(heading, justify="right", no_wrap=True)
    for lane, program in plan.lanes.items():
        busy_s = trace.busy_seconds(lane)
        table.add_row(lane, f"{len(program)}", f"{busy_s:.4f}", f"{busy_s / trace.seconds:.1%}")
    OUT.print()
    OUT.print(table)
    if file is not None:
        OUT.print(f"\n{'trace':<11} {file} (simulated)", markup=False, emoji=False)
