"""`aieflow plan gpt2`: the graph, the memory plan and the lanes of a training step.

Nothing is trained and no tensor is allocated, so any size can be looked at on any computer. The
plan is the one that `aieflow train` would follow with the same options.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.errors import InputError
from aieflow.runtime.export import dot_text, graphml_text, json_text, memory_accounts
from aieflow.runtime.plan import Plan
from aieflow.tools.console import OUT
from aieflow.tools.machine_options import (
    AllowFp16,
    CheckDevices,
    Devices,
    MachineName,
    OnDeviceFailure,
    Place,
    Policy,
    Shards,
    Slots,
    Xclbin,
    settings_among,
)
from aieflow.tools.machines import machine_of, opened_machine
from aieflow.tools.model_options import (
    BatchSize,
    Channels,
    Dropout,
    GradAccumulation,
    GradClip,
    Heads,
    Lanes,
    Layers,
    Model,
    Preset,
    SeqLen,
    VocabSize,
    require_gpt2,
)
from aieflow.tools.run_options import asked_for, new_config

MB = 10**6
WIDEST = 160  # columns of a table


@dataclass(frozen=True, slots=True)
class _Planned:
    """A plan, what it was made for, and what making it took."""

    config: RunConfig
    plan: Plan
    free_nbytes: int  # on the device
    graph_s: float
    plan_s: float


def plan(
    model: Model,
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
    lanes: Lanes = None,
    devices: Devices = None,
    machine: MachineName = None,
    policy: Policy = None,
    place: Place = None,
    shards: Shards = None,
    slots: Slots = None,
    on_device_failure: OnDeviceFailure = None,
    check_devices: CheckDevices = False,
    xclbin: Xclbin = None,
    allow_fp16: AllowFp16 = False,
    full: Annotated[
        bool, typer.Option("--full", help="Also every node, slot, and step of each lane.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the whole plan as JSON, and nothing else.")
    ] = False,
    dot: Annotated[Path | None, typer.Option(help="Write the graph in Graphviz's DOT.")] = None,
    graphml: Annotated[Path | None, typer.Option(help="Write the graph as GraphML.")] = None,
) -> None:
    """Show the graph, the memory plan and the lanes of one training step, without training.

    Example: aieflow plan gpt2 --preset 124M --batch-size 4 --dot step.dot
    """
    machine_settings = settings_among(locals())
    require_gpt2(model, "plan")
    sizes = {"layers": layers, "heads": heads, "channels": channels, "vocab_size": vocab_size}
    settings = {
        "seq_len": seq_len,
        "batch_size": batch_size,
        "grad_accumulation": grad_accumulation,
        "dropout": dropout,
        "grad_clip": grad_clip,
        "shards": shards,
        **machine_settings,
    }
    planned = _planned(new_config(asked_for(preset, None, {**sizes, **settings})))
    drawings = {"--dot": (dot, dot_text), "--graphml": (graphml, graphml_text)}
    written: list[tuple[str, Path]] = []
    for option, (file, text) in drawings.items():
        if file is not None:
            _write(option, file, text(planned.plan))
            written.append((option.strip("-"), file))
    if as_json:
        OUT.out(json_text(planned.plan), highlight=False, end="")
        return
    _print_summary(planned)
    if full:
        for section in _everything(planned.plan):
            OUT.out(f"\n{section}", highlight=False)
    for kind, file in written:
        OUT.print(f"{kind:<11} {file}", markup=False, emoji=False)


def _planned(config: RunConfig) -> _Planned:
    with opened_machine(machine_of(config)) as machine:
        begin = time.perf_counter()
        graph = training_graph(config)
        middle = time.perf_counter()
        made = machine.plan(graph)
        end = time.perf_counter()
        return _Planned(config, made, machine.free_nbytes(), middle - begin, end - middle)


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
        OUT.print(f"{name:<11} {line}", markup=False, emoji=False)
    for table in (_op_table(made), _memory_table(planned), _lane_table(made)):
        OUT.print()
        # As wide as its figures: a narrower terminal wraps the lines, and nothing is cut short.
        table.width = OUT.measure(table, options=OUT.options.update(max_width=WIDEST)).maximum
        OUT.print(table, soft_wrap=False, crop=False)


def _op_table(made: Plan) -> Table:
    """Nodes by op, the one with most FLOPs first."""
    graph = made.graph
    sums: dict[str, list[int]] = {}
    for node, lanes in zip(graph.nodes, made.schedule.placements, strict=True):
        row = sums.setdefault(node.op.name, [0, 0, 0, 0])
        for column, amount in enumerate((1, len(lanes) > 1, node.flops, node.nbytes)):
            row[column] += amount
    table = _table("op", "nodes", "divided", "GFLOP", "share", "MB")
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
    table = _table("memory at the peak", "MB", "share")
    total = planned.plan.nbytes
    for account, nbytes in memory_accounts(planned.plan).items():
        if nbytes:
            table.add_row(account, f"{nbytes / MB:,.2f}", f"{nbytes / total:.1%}")
    table.add_row("total", f"{total / MB:,.2f}", "", style="bold")
    table.add_row("free on this computer", f"{planned.free_nbytes / MB:,.2f}", "")
    return table


def _lane_table(made: Plan) -> Table:
    """What each lane has to do; a divided node's work is shared by its lanes."""
    table = _table("lane", "steps", "parts of nodes", "waits", "GFLOP", "workspace kB")
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


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
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
