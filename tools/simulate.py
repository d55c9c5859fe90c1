"""`aieflow simulate --machine NAME`: a training step on a machine that is not here.

The plan is the one that the described machine would follow; it runs in virtual time, at the costs
that the machine's profile foretells. No device of this computer is opened and no tensor allocated.
Every figure is a prediction, and is printed with the word "simulated".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from aieflow.devices.base import Device
from aieflow.devices.described import described_cpu, described_igpu, described_npu
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.errors import InputError
from aieflow.ops.graph import Graph
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine, machine_names
from aieflow.profiles.schema import POWERS, MachineProfile
from aieflow.runtime.choice import Choices
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.plan import Plan
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.runtime.timeline import Recorded
from aieflow.tools.console import OUT
from aieflow.tools.folding import print_line
from aieflow.tools.forecast import Forecast, forecast, print_gap, print_lanes, report, summary
from aieflow.tools.machine_options import Settings
from aieflow.tools.machines import (
    AUTO,
    named_devices,
    placed_by_hand,
    policy_for,
    require_all_ops,
    require_kernels,
)
from aieflow.tools.model_options import MODEL, Model, require_gpt2
from aieflow.tools.run_options import new_config
from aieflow.tools.search import (
    Aim,
    ObjectiveName,
    PowerCap,
    Searched,
    search_lines,
    search_report,
    searched,
)
from aieflow.tools.step_options import STEP_OPTIONS, asked_among, with_options
from aieflow.tools.sweep import Planner, Sweep, sweep
from aieflow.tools.sweep_report import print_sweep, sweep_report
from aieflow.tools.trace_files import TRACE_HELP, write_trace

DescribedDevices = Annotated[
    str | None,
    typer.Option(help="Devices of the described machine, with commas; default: all that it has."),
]
SIMULATE_OPTIONS = {**STEP_OPTIONS, "devices": DescribedDevices}
DRAWS = 64


@dataclass(frozen=True, slots=True)
class Described:
    """A described machine, as far as a plan may use it."""

    profile: MachineProfile
    machine: Machine

    def plan(self, graph: Graph) -> Plan:
        """The plan that it would follow; raises PlanError also where memory does not suffice."""
        plan = self.machine.plan(graph)
        self.machine.require_memory(plan.nbytes, plan)
        return plan

    def with_policy(self, policy: str) -> "Described":
        """The same with another policy, and nothing placed by hand."""
        placement = replace(self.machine.placement, policy=policy, places={})
        return Described(self.profile, Machine(self.machine.devices, placement))


def described(config: RunConfig, profile: MachineProfile) -> Described:
    """The described machine with the devices, lanes and policy of a run; raises InputError."""
    available = described_devices(profile, config.lanes)
    names = tuple(device.name for device in available)
    if config.devices is not None and config.devices != AUTO:
        names = named_devices(config.devices)
    policy = policy_for(config.policy, names)
    places = placed_by_hand(config.place, names)
    devices = tuple(device for device in available if device.name in names)
    require_kernels(places, devices)
    require_all_ops(devices)
    cost = MachineStepCost(MachineCost(profile))
    placement = Placement(policy, places, config.slots, cost=cost)
    return Described(profile, Machine(devices, placement))


def simulated(
    config: RunConfig, profile: MachineProfile, around: Described | None = None
) -> Forecast:
    """One training step of a run on a described machine; raises PlanError and InputError."""
    graph, around = training_graph(config), around or described(config, profile)
    cost = MachineStepCost(MachineCost(profile))
    return forecast(config, graph, around.machine.devices, around.plan(graph), cost)


def described_devices(machine: MachineProfile, lanes: int | None = None) -> tuple[Device, ...]:
    """The devices of a described machine, the CPU first, with as many lanes as it says.

    `lanes` is how many of the CPU's are used; raises InputError where it has fewer.
    """
    cpu, igpu, npu = machine.cpu, machine.igpu, machine.npu
    most = int(cpu.lanes.value)
    if lanes is not None and not 1 <= lanes <= most:
        raise InputError(
            f"--lanes = {lanes}: must be from 1 to {most}, the lanes of {machine.name}"
        )
    return (
        described_cpu(lanes or most, int(cpu.memory_nbytes.value)),
        described_igpu(int(igpu.lanes.value), int(igpu.memory_nbytes.value)),
        described_npu(npu.generation, int(npu.lanes.value), int(npu.memory_nbytes.value)),
    )


def swept(
    config: RunConfig,
    profile: MachineProfile,
    draws: int,
    seed: int,
    around: Described | None = None,
    planner: Planner | None = None,
) -> Sweep:
    """How the simulated step changes over the ranges of the machine's figures.

    A single device is taken with as few shards as the step allows, too, if it has more.
    """
    around = around or described(config, profile)
    able = [device.name for device in around.machine.devices if device.name != "npu"]
    singles: dict[str, Plan] = {}
    for shards in sorted({1, config.shards}):
        graph = training_graph(replace(config, shards=shards))
        called = "" if shards == config.shards else f", {shards} shard"
        singles |= {f"{name}{called}": around.with_policy(name).plan(graph) for name in able}
    return sweep(profile, around.plan(training_graph(config)), singles, draws, seed, planner)


@with_options(SIMULATE_OPTIONS)
def simulate_command(
    given: Settings,
    model: Model = MODEL,
    machine: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="The described machine; required.")
    ] = None,
    power: Annotated[str, typer.Option(help=f"What it runs on: {', '.join(POWERS)}.")] = POWERS[0],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIGURE=VALUE",
            help="Another value for a figure of the machine, such as npu.gemm_flops_per_s=0.5x; "
            "may be given several times.",
        ),
    ] = None,
    objective: ObjectiveName = None,
    power_cap: PowerCap = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Vary every uncertain figure over its range.")
    ] = False,
    draws: Annotated[
        int, typer.Option(min=2, help="With --sweep: draws of all figures together.")
    ] = DRAWS,
    seed: Annotated[int, typer.Option(help="With --sweep: of the draws.")] = 1,
    replan: Annotated[
        bool,
        typer.Option(
            "--replan", help="With --sweep: plan anew for each choice of figures, with less effort."
        ),
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help=f"Write the simulated trace: {TRACE_HELP}.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object, and nothing else.")
    ] = False,
) -> None:
    """Foretell a training step on a described machine: time, energy, use, distance to a bound.

    Example: aieflow simulate gpt2 --machine phoenix --preset 124M --batch-size 4 --seq-len 64
    """
    require_gpt2(model, "simulate")
    varied = vary or []
    profile = _varied(_machine(machine, power), varied)
    config = new_config(asked_among(given))
    is_free = given.get("shards") is None
    aim = Aim(objective, power_cap)
    config, around, search = _chosen(config, profile, is_free, aim)
    found = simulated(config, profile, around)
    swings = None
    if sweep:
        decided = Choices()

        def plan_anew(machine: MachineProfile) -> Plan:
            lowered, there, _ = _chosen(config, machine, is_free, aim, decided)
            return there.plan(training_graph(lowered))

        swings = swept(config, profile, draws, seed, around, plan_anew if replan else None)
    if trace is not None:
        cost = MachineStepCost(MachineCost(profile))
        kernels = {device.name: device.kernels for device in around.machine.devices}
        write_trace([Recorded(1, 0.0, found.trace)], [trace], cost, kernels)
    if as_json:
        content = machine_report(found, profile, varied)
        if search is not None:
            content["search"] = search_report(search)
        if swings is not None:
            content["sweep"] = sweep_report(swings, draws, seed)
        OUT.out(json.dumps(content, indent=2), highlight=False)
        return
    _print(found, profile, varied)
    for name, line in search_lines(search).items() if search is not None else ():
        print_line(name, line)
    if swings is not None:
        print_sweep(swings)
    if trace is not None:
        OUT.print(f"\n{'trace':<11} {trace} (simulated)", markup=False, emoji=False)


def _chosen(
    config: RunConfig,
    profile: MachineProfile,
    is_free: bool,
    aim: Aim,
    quick: Choices | None = None,
) -> tuple[RunConfig, Described, Searched | None]:
    """The described machine, with what the policy `best` found where it is asked for.

    With `quick` it makes less effort, and none for what was decided there before.
    """
    around = described(config, profile)
    around = replace(around, machine=aim.taken_by(around.machine))
    if around.machine.placement.policy != "best":
        return config, around, None
    machine = around.machine
    if quick is not None:
        machine = replace(machine, placement=replace(machine.placement, choices=quick))
    search = searched(config, machine, is_free, is_quick=quick is not None)
    return search.config, Described(profile, search.machine), search


def machine_report(
    found: Forecast, machine: MachineProfile, varied: Sequence[str] = ()
) -> dict[str, object]:
    """What `--json` prints: the forecast, and for what machine it is."""
    return {
        "simulated": True,
        "machine": machine.name,
        "power": machine.power,
        "varied": list(varied),
        **report(found),
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


def _print(found: Forecast, machine: MachineProfile, varied: Sequence[str]) -> None:
    config = found.config
    sizes = config.model
    sure = ", ".join(f"{count} {mark}" for mark, count in marks(machine).items())
    lines = {
        "machine": f"{machine.name} on {machine.power}, described: {machine.chip}",
        "figures": f"{sure}; {machine.provenance}",
        **({"varied": ", ".join(varied)} if varied else {}),
        "model": f"GPT-2: L={sizes.layers} H={sizes.heads} C={sizes.channels} "
        f"V={sizes.vocab_size}, {sizes.parameters:,} parameters",
        "batch": f"B={config.batch_size} T={config.seq_len}: {found.tokens:,} tokens in a "
        "training step",
        **summary(found),
    }
    for name, line in lines.items():
        print_line(name, line)
    print_lanes(found.trace)
    print_gap(found)
