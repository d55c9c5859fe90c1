"""How good the schedulers are where the truth is known: held against SAGA's HEFT and CP-SAT.

    python -m aieflow.tools.check_schedulers --python SCRATCH/bin/python

SCRATCH is an environment of its own: pip install anrg-saga==2.0.2 ortools. Two questions:

- Random task graphs on random networks, by SAGA's generators: the makespans of our HEFT and of
  SAGA's, in the same model (a message takes its time and waits for nobody).
- A training step of GPT-2 with one layer of the 124M sizes on described machines: what `best` makes
  of it, the optimum that CP-SAT finds, and the bound of areas and precedence, in a model that all
  can express: a device does one node at a time, for as long as it would take alone; a value that
  changes side takes its transfer's seconds (none for the bound); nobody slows down another. All
  seconds are of that model, and so are simulated. `--shards 4` says how far the bound itself lies
  from the optimum where nodes are many.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from rich.table import Table

from aieflow.gpt2.config import PRESETS
from aieflow.gpt2.lower import training_step
from aieflow.ops.errors import AieflowError, InputError
from aieflow.ops.graph import Graph
from aieflow.profiles.machine_cost import MachineCost
from aieflow.profiles.machine_file import load_machine
from aieflow.runtime.bounds import bound
from aieflow.runtime.choice import tasks_on
from aieflow.runtime.needs import Choice, Needs
from aieflow.runtime.policies.best import Found, Judged, Option, best
from aieflow.runtime.policies.booking import span_s
from aieflow.runtime.policies.estimate import Estimator
from aieflow.runtime.policies.heft import heft
from aieflow.runtime.policies.tasks import HOST, Hops, Piece, Resource, Tasks, predecessors
from aieflow.runtime.schedule import Times
from aieflow.tools.console import OUT
from aieflow.tools.simulate import described_devices


def main() -> int:
    """Compare, print two tables; exit code 1 where ours is worse than it should be."""
    parser = argparse.ArgumentParser(description="Compare schedulers with SAGA's and CP-SAT's.")
    parser.add_argument("--python", type=Path, required=True, help="that has SAGA and OR-Tools")
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--machines", default="phoenix,strix")
    parser.add_argument("--shapes", default="4x64,8x256", help="B x T of the layer")
    parser.add_argument("--shards", default="1", help="how often to cut the batch: 1, or 1,4")
    parser.add_argument("--limit-s", type=float, default=60.0, help="for each of CP-SAT's answers")
    asked = parser.parse_args()
    try:
        behind = _against_saga(asked.python, asked.instances, asked.seed)
        rows = [
            _against_optimum(asked.python, machine, shape, int(shards), asked.limit_s)
            for shards in asked.shards.split(",")
            for machine in asked.machines.split(",")
            for shape in asked.shapes.split(",")
        ]
    except AieflowError as error:
        OUT.print(f"{type(error).__name__}: {error}", markup=False)
        return 1
    headings = ("nodes", "best s", "CP-SAT s", "proven s", "ratio", "bound s", "proven / bound")
    OUT.print("one layer on a machine, B x T / shards, all simulated:")
    table = Table("", *headings, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row.cells)
    OUT.print(table)
    return int(behind or any(row.ratio > 1.03 for row in rows if row.shards == 1))


Answer: TypeAlias = dict[str, Any]  # JSON


def ask(python: Path, question: Mapping[str, object]) -> Answer:
    """The peers' answer; raises InputError where they cannot be asked."""
    command = [str(python), "-P", str(Path(__file__).with_name("peer_schedulers.py"))]
    try:
        done = subprocess.run(
            command, input=json.dumps(question), capture_output=True, text=True, check=True
        )
    except OSError as error:
        raise InputError(f"--python {python}: {error.strerror}") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"--python {python}: {last}: is it one with anrg-saga==2.0.2 and ortools?"
        ) from None
    answer: Answer = json.loads(done.stdout)
    return answer


def _against_saga(python: Path, instances: int, seed: int) -> bool:
    """Whether our HEFT's mean makespan is the longer one; prints both."""
    found = ask(python, {"instances": instances, "seed": seed})["instances"]
    theirs = [float(each["makespan"]) for each in found]
    ours = [heft(_published(each)).seconds for each in found]
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    equal = sum(abs(ratio - 1) < 1e-9 for ratio in ratios)
    OUT.print(
        f"HEFT on {len(found)} random instances: mean makespan {statistics.mean(ours):.6g} of "
        f"ours, {statistics.mean(theirs):.6g} of SAGA's; mean ratio {statistics.mean(ratios):.4f}, "
        f"least {min(ratios):.4f}, most {max(ratios):.4f}; {equal} equal, "
        f"{sum(ratio < 1 - 1e-9 for ratio in ratios)} better, "
        f"{sum(ratio > 1 + 1e-9 for ratio in ratios)} worse"
    )
    return statistics.mean(ours) > statistics.mean(theirs) * (1 + 1e-9)


def _published(instance: Mapping[str, Any]) -> Tasks:
    """An instance of SAGA's as tasks: a device for each node of the network."""
    seconds, speeds = instance["seconds"], instance["speeds"]
    devices = range(len(speeds))
    inputs: list[list[int]] = [[] for _ in seconds]
    outputs: list[list[int]] = [[] for _ in seconds]
    hops: list[Hops] = []
    for value, (source, target, size) in enumerate(instance["edges"]):
        outputs[source].append(value)
        inputs[target].append(value)
        hops.append(
            {
                (a + 1, b + 1): ((len(devices), size / speeds[a][b]),)
                for a in devices
                for b in devices
                if a != b
            }
        )
    names = tuple(f"p{device + 1}" for device in devices)
    return plain_tasks(
        "random", names, seconds, inputs, outputs, hops, [each + 1 for each in devices]
    )


def plain_tasks(
    name: str,
    devices: tuple[str, ...],
    seconds: Sequence[Sequence[float | None]],
    inputs: Sequence[Sequence[int]],
    outputs: Sequence[Sequence[int]],
    hops: Sequence[Hops],
    sides: Sequence[int],
) -> Tasks:
    """Tasks of devices that do one at a time; None where one cannot do it."""
    resources = [Resource(each, number, 1) for number, each in enumerate(devices)]
    pieces = tuple(
        tuple(
            ()
            if length is None
            else (
                Piece(
                    device,
                    length,
                    reads=tuple((value, sides[device]) for value in inputs[node]),
                    name=f"{node}",
                ),
            )
            for device, length in enumerate(row)
        )
        for node, row in enumerate(seconds)
    )
    written = {value for values in outputs for value in values}
    return Tasks(
        name=name,
        devices=devices,
        resources=(*resources, Resource("net", 0, None)),
        pieces=pieces,
        sides=tuple(sides),
        inputs=tuple(map(tuple, inputs)),
        outputs=tuple(map(tuple, outputs)),
        follows=((),) * len(seconds),
        hops=tuple(hops),
        anywhere=frozenset(set(range(len(hops))) - written),
        updated={},
        ends=(),
        renewals=(),
        saves=(),
        remote=frozenset(),
        labels=tuple((f"{node}",) for node in range(len(seconds))),
        slowdowns=((1.0,) * len(devices),) * (1 << len(devices)),
        idle_w=0.0,
    )


@dataclass(frozen=True, slots=True)
class Row:
    """One layer on one machine."""

    name: str
    shards: int
    nodes: int
    best_s: float
    bound_s: float
    answer: Mapping[str, Any]

    @property
    def ratio(self) -> float:
        """How many times longer than the best that CP-SAT has found."""
        return self.best_s / float(self.answer["seconds"])

    @property
    def cells(self) -> tuple[str, ...]:
        """What the table shows; all of it simulated."""
        answer = self.answer
        least = f"{answer['seconds']:.6f} ({str(answer['status']).lower()})"
        proven_s = float(answer["bound"])
        found = f"{self.best_s:.6f}", least, f"{proven_s:.6f}", f"{self.ratio:.4f}"
        gap = f"{self.bound_s:.6f}", f"{proven_s / self.bound_s:.3f}"
        return (self.name, f"{self.nodes}", *found, *gap)


def _against_optimum(python: Path, machine: str, shape: str, shards: int, limit_s: float) -> Row:
    batch, length = (int(each) for each in shape.split("x"))
    graph = training_step(replace(PRESETS["124M"], layers=1), batch, length, shards=shards)
    tasks = _alone(graph, machine)
    found = _best(tasks, graph)
    number = {name: place for place, name in enumerate(tasks.devices)}
    hint = [number[home] for home in found.homes]
    answer = ask(python, {"problem": _problem(tasks, hint), "limit_s": limit_s})
    name = f"{machine} {shape} / {shards}"
    held = bound(graph, _plain_needs(tasks))
    return Row(name, shards, tasks.count, found.seconds, held.seconds, answer)


def _plain_needs(tasks: Tasks) -> Needs:
    """What a bound is told of tasks in the shared model; it lets values move for nothing."""
    choices = [
        {
            device: Choice(pieces[0].seconds, pieces[0].seconds)
            for device, pieces in zip(tasks.devices, row, strict=True)
            if pieces
        }
        for row in tasks.pieces
    ]
    return Needs(choices, dict.fromkeys(tasks.devices, 1))


def _alone(graph: Graph, machine: str) -> Tasks:
    """What a machine foretells of a graph, in the model that CP-SAT shares."""
    profile = load_machine(machine)
    devices = {device.name: device for device in described_devices(profile)}
    found = tasks_on(graph, devices, MachineCost(profile))
    spans = [[span_s(pieces) if pieces else None for pieces in row] for row in found.pieces]
    net = len(found.devices)
    hops = [
        {way: tuple((net, seconds) for _, seconds in steps) for way, steps in each.items()}
        for each in found.hops
    ]
    plain = plain_tasks(
        found.name, found.devices, spans, found.inputs, found.outputs, hops, found.sides
    )
    return replace(plain, follows=found.follows, updated=found.updated, labels=found.labels)


def _best(tasks: Tasks, graph: Graph) -> Found:
    """What `best` makes of tasks if its plans are followed in the shared model."""
    number = {name: place for place, name in enumerate(tasks.devices)}

    def judge(option: Option, homes: Sequence[str], times: Times | None) -> Judged:
        nodes = range(tasks.count)
        order = sorted(nodes, key=lambda node: (0.0, node) if times is None else times[f"{node}"])
        return Judged(followed_s(tasks, [number[home] for home in homes], order), 0.0)

    return best([Option(1, graph, tasks, Estimator(tasks))], judge)


def followed_s(tasks: Tasks, homes: Sequence[int], order: Sequence[int]) -> float:
    """Seconds of nodes in an order, each after all earlier ones of its device.

    A device may stand idle for a node that is next there and has to wait, as it may for CP-SAT.
    """
    writer = {value: node for node, values in enumerate(tasks.outputs) for value in values}
    before = predecessors(tasks)
    ends, free = [0.0] * tasks.count, [0.0] * len(tasks.devices)
    for node in order:
        home = homes[node]
        begin = max([free[home], *(ends[other] for other in before[node])])
        for value in tasks.inputs[node]:
            if value in writer:
                way = tasks.sides[homes[writer[value]]], tasks.sides[home]
                moved_s = sum(seconds for _, seconds in tasks.hops[value].get(way, ()))
                begin = max(begin, ends[writer[value]] + moved_s)
        ends[node] = free[home] = begin + span_s(tasks.pieces[node][home])
    return max(ends, default=0.0)


def _problem(tasks: Tasks, hint: Sequence[int]) -> dict[str, object]:
    """The tasks as CP-SAT is told of them."""
    writer = {value: node for node, values in enumerate(tasks.outputs) for value in values}
    moves: dict[tuple[int, int], float] = {
        (other, node): 0.0 for node, before in enumerate(predecessors(tasks)) for other in before
    }
    for node, values in enumerate(tasks.inputs):
        for value in values:
            if value in writer:
                hops = tasks.hops[value]
                ways = [hops[HOST, side] for side in tasks.sides if side != HOST]
                seconds = max((way[0][1] for way in ways), default=0.0)
                edge = writer[value], node
                moves[edge] = max(moves[edge], seconds)
    rows = [[pieces[0].seconds if pieces else None for pieces in row] for row in tasks.pieces]
    edges = [
        {"source": source, "target": target, "move": move, "sides": tasks.sides}
        for (source, target), move in moves.items()
    ]
    return {"seconds": rows, "edges": edges, "hint": list(hint)}


if __name__ == "__main__":
    sys.exit(main())
