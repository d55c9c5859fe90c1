"""`aieflow plan gpt2`: the graph, the memory plan and the lanes of a training step.

Nothing is trained and no tensor is allocated, so any size can be looked at on any computer. The
plan is the one that `aieflow train` would follow with the same options.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.errors import InputError, ProfileError
from aieflow.ops.graph import Graph
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine, machine_names
from aieflow.runtime.export import dot_text, graphml_text, json_text, memory_accounts
from aieflow.runtime.machine import Machine
from aieflow.runtime.plan import Plan
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.computer_profile import measured_step_cost
from aieflow.tools.console import OUT
from aieflow.tools.folding import print_line
from aieflow.tools.forecast import (
    Forecast,
    figures_table,
    forecast,
    print_gap,
    print_lanes,
    print_table,
    report,
    summary,
)
from aieflow.tools.machine_options import Settings, settings_among
from aieflow.tools.machines import machine_of, opened_machine
from aieflow.tools.model_options import Model, require_gpt2
from aieflow.tools.run_options import new_config
from aieflow.tools.simulate import described
from aieflow.tools.step_options import RUN_OPTIONS, STEP_OPTIONS, asked_among, with_options

MB = 10**6


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, what it was made for, and what making it took."""

    config: RunConfig
    plan: Plan
    free_nbytes: int  # on the device
    graph_s: float
    plan_s: float
    machine: str = "this computer"
    forecast: Forecast | None = None


@with_options({**STEP_OPTIONS, **RUN_OPTIONS})
def plan(
    given: Settings,
    model: Model,
    bound: Annotated[
        bool,
        typer.Option(
            "--bound",
            help="Also foretell its seconds, hold them against a bound, and say where the gap "
            "lies. With --machine everything is as on that machine.",
        ),
    ] = False,
    full: Annotated[
        bool, typer.Option("--full", help="Also every node, slot, and step of each lane.")
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the whole plan as JSON, and nothing else; with --bound what is foretold.",
        ),
    ] = False,
    dot: Annotated[Path | None, typer.Option(help="Write the graph in Graphviz's DOT.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the graph as GraphML.")] = None,
) -> None:
    """Show the graph, the memory plan and the lanes of one training step, without training.

    Example: aieflow plan gpt2 --preset 124M --batch-size 4 --dot step.dot
    """
    require_gpt2(model, "plan")
    config = new_config(asked_among(given))
    where = settings_among(given)
    planned = _foretold(config, where) if bound else _planned(config, where)
    drawings = {"--dot": (dot, dot_text), "--graphml": (graphml, graphml_text)}
    written: list[tuple[str, Path]] = []
    for option, (file, text) in drawings.items():
        if file is not None:
            _write(option, file, text(planned.plan))
            written.append((option.strip("-"), file))
    if as_json:
        if planned.forecast is None:
            OUT.out(json_text(planned.plan), highlight=False, end="")
        else:
            OUT.out(json.dumps(_report(planned), indent=2), highlight=False)
        return
    _print_summary(planned)
    if planned.forecast is not None:
        _print_forecast(planned.machine, planned.forecast)
    if full:
        for section in _everything(planned.plan):
            OUT.out(f"\n{section}", highlight=False)
    for kind, file in written:
        OUT.print(f"{kind:<11} {file}", markup=False, emoji=False)


def _planned(config: RunConfig, given: Settings) -> _Planned:
    with opened_machine(machine_of(config), given) as machine:
        begin = time.perf_counter()
        graph = training_graph(config)
        middle = time.perf_counter()
        made = machine.plan(graph)
        end = time.perf_counter()
        return _Planned(config, made, machine.free_nbytes(), middle - begin, end - middle)


def _foretold(config: RunConfig, given: Settings) -> _Planned:
    """With what is foretold of it; on a described machine the plan is that machine's own."""
    if config.machine is None:
        with opened_machine(machine_of(config), given) as machine:
            return _with_forecast(config, machine, machine.plan, _computer_cost(machine))
    around = described(config, load_machine(config.machine))
    cost = MachineStepCost(MachineCost(around.profile))
    return _with_forecast(config, around.machine, around.plan, cost)


def _computer_cost(machine: Machine) -> MachineStepCost:
    try:
        return measured_step_cost({device.name: device for device in machine.devices})
    except ProfileError as error:
        raise ProfileError(
            f"{error}, or name a described machine: --machine {machine_names()[0]}"
        ) from None


def _with_forecast(
    config: RunConfig, machine: Machine, place: Callable[[Graph], Plan], cost: MachineStepCost
) -> _Planned:
    begin = time.perf_counter()
    graph = training_graph(config)
    middle = time.perf_counter()
    made = place(graph)
    end = time.perf_counter()
    found = forecast(config, graph, machine.devices, made, cost)
    free_nbytes = machine.free_nbytes()
    return _Planned(config, made, free_nbytes, middle - begin, end - middle, cost.name, found)


def _report(planned: _Planned) -> dict[str, object]:
    assert planned.forecast is not None
    return {"simulated": True, "machine": planned.machine, **report(planned.forecast)}


def _print_forecast(machine: str, found: Forecast) -> None:
    OUT.print()
    lines = {"foretold": f"for {machine} (simulated)", **summary(found)}
    for name, line in lines.items():
        print_line(name, line)
    print_lanes(found.trace)
    print_gap(found)


def _write(option: str, file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"{option} {file}: cannot be written: {error.strerror}") from None


def _print_summary(planned: _Planned) -> None:
    config, made = planned.config, planned.plan
    model, graph = config.model, made.graph
    passes = config.grad_accumulation
    accumulated = f" x {passes} passes" if passes > 1 else ""
    tokens = config.batch_size * passes * config.seq_len
    divided = sum(len(lanes) > 1 for lanes in made.schedule.placements)
    lines = {
        "model": f"GPT-2: L={model.layers} H={model.heads} C={model.channels} "
        f"V={model.vocab_size}, at most {model.seq_len} tokens",
        "parameters": f"{model.parameters:,}",
        "batch": f"B={config.batch_size} T={config.seq_len}{accumulated}: "
        f"{tokens:,} tokens in a training step",
        "graph": f"{len(graph.nodes)} nodes, {graph.flops / 1e9:,.1f} GFLOP, "
        f"{graph.nbytes / MB:,.0f} MB of operands",
        "plan": f"{len(made.steps)} steps on {_count(len(made.lanes), 'lane')}, "
        f"{_count(made.edges, 'wait')} between lanes, "
        f"{_count(divided, 'node')} divided",
        "planning": f"{planned.graph_s + planned.plan_s:.2f} s "
        f"(graph {planned.graph_s:.2f}, plan {planned.plan_s:.2f})",
    }
    for name, line in lines.items():
        print_line(name, line)
    for table in (_op_table(made), _memory_table(planned), _lane_table(made)):
        print_table(table)


def _op_table(made: Plan) -> Table:
    """Nodes by op, the one with most FLOPs first."""
    graph = made.graph
    sums: dict[str, list[int]] = {}
    for node, lanes in zip(graph.nodes, made.schedule.placements, strict=True):
        row = sums.setdefault(node.op.name, [0, 0, 0, 0])
        for column, amount in enumerate((1, len(lanes) > 1, node.flops, node.nbytes)):
            row[column] += amount
    table = figures_table("op", "nodes", "divided", "GFLOP", "share", "MB")
    for op, (count, divided, flops, nbytes) in sorted(
        sums.items(), key=lambda item: (-item[1][2], item[0])
    ):
        table.add_row(
            Text(op),
            f"{count}",
            f"{divided}",
            f"{flops / 1e9:,.3f}",
            f"{flops / graph.flops:.1%}",
            f"{nbytes / MB:,.1f}",
        )
    return table


def _memory_table(planned: _Planned) -> Table:
    """Bytes of each account when most is in use, and what the computer has."""
    table = figures_table("memory at the peak", "MB", "share")
    total = planned.plan.nbytes
    for account, nbytes in memory_accounts(planned.plan).items():
        if nbytes:
            table.add_row(account, f"{nbytes / MB:,.2f}", f"{nbytes / total:.1%}")
    table.add_row("total", f"{total / MB:,.2f}", "", style="bold")
    table.add_row(f"free on {planned.machine}", f"{planned.free_nbytes / MB:,.2f}", "")
    return table


def _lane_table(made: Plan) -> Table:
    """What each lane has to do; a divided node's work is shared by its lanes."""
    table = figures_table("lane", "steps", "parts of nodes", "waits", "GFLOP", "workspace kB")
    for lane, program in made.lanes.items():
        steps = [made.steps[index] for index in program]
        nodes = [step for step in steps if step.kind == "node"]
        flops = sum(made.node_of(step).flops / step.parts for step in nodes)
        table.add_row(
            lane,
            f"{len(steps)}",
            f"{sum(step.parts > 1 for step in steps)}",
            f"{sum(len(step.waits) for step in steps)}",
            f"{flops / 1e9:,.1f}",
            f"{made.workspace[lane] / 1e3:,.1f}",
        )
    return table


def _everything(made: Plan) -> Iterator[str]:
    """The graph, the slots, and each lane's program, one text each."""
    yield str(made.graph)
    slots = [
        f"  %{value.name}: {slot.nbytes} bytes at {slot.offset} of {slot.space}"
        for value in made.graph.values
        for slot in (made.memory.slots[value],)
    ]
    yield "\n".join(["slots", *slots])
    for lane, program in made.lanes.items():
        lines = [f"lane {lane}"]
        for step in (made.steps[index] for index in program):
            part = f" part {step.part + 1} of {step.parts}" if step.parts > 1 else ""
            waits = f" waits for {', '.join(map(str, step.waits))}" if step.waits else ""
            lines.append(f"  {step.index:5d}  {made.name_of(step)}{part}{waits}")
        yield "\n".join(lines)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
