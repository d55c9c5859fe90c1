"""What policy `best` tried, what it gained, and what it cost: choosing shards, and saying so.

Gains are simulated; the seconds spent are this computer's own.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import typer

from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.errors import InputError
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import chosen
from aieflow.runtime.policies.best import QUICK, Found
from aieflow.runtime.policies.fixed import COSTED
from aieflow.runtime.policies.objective import KINDS, Objective, kind_of

SHARDS = (1, 2, 4)
ObjectiveName = Annotated[
    str | None,
    typer.Option(
        "--objective",
        help=f"What policies that weigh costs aim at: {', '.join(KINDS)}; default: {KINDS[0]}.",
    ),
]
PowerCap = Annotated[
    float | None,
    typer.Option(
        "--power-cap", metavar="WATTS", help="With --objective power-cap: the most, as a mean."
    ),
]


@dataclass(frozen=True, slots=True)
class Aim:
    """What the two options say; a cap alone is an objective, too."""

    objective: str | None = None
    power_cap_w: float | None = None

    def taken_by(self, machine: Machine) -> Machine:
        """The machine with this objective; raises InputError for what is none, or has no effect."""
        name, cap_w, policy = self.objective, self.power_cap_w, machine.placement.policy
        if name is None and cap_w is None:
            return machine
        if policy not in COSTED:
            option = "--objective" if name is not None else "--power-cap"
            raise InputError(
                f"{option}: policy {policy} weighs no costs: give another: "
                f"--policy {', '.join(COSTED)}"
            )
        objective = Objective(kind_of(name or "power-cap"), cap_w)
        return replace(machine, placement=replace(machine.placement, objective=objective))


@dataclass(frozen=True, slots=True)
class Searched:
    """One search: the run's settings with its shards, a machine that follows it, and its price."""

    config: RunConfig
    machine: Machine
    found: Found
    spent_s: float  # lowering included; next to nothing where the schedule was kept

    @property
    def gained_s(self) -> float | None:
        """Simulated seconds of a training step less than by the best trivial plan looked at."""
        reached = self.found.trivial_s
        return None if reached is None else reached - self.found.seconds


def searched(
    config: RunConfig, machine: Machine, is_free: bool, is_quick: bool = False
) -> Searched:
    """Let `best` decide; where `is_free`, among lowerings in 1, 2 and 4 shards, too.

    Where it is to be quick, it looks at less, and at one shard and those of `config` alone.
    Raises PlanError and ProfileError as planning does.
    """
    begin = time.perf_counter()
    batch = config.batch_size
    counts = [each for each in SHARDS if batch % each == 0] if is_free else [config.shards]
    if is_quick:
        counts = sorted({1, config.shards}) if is_free else counts
        machine = replace(machine, placement=replace(machine.placement, effort=QUICK))
    graphs = {count: training_graph(replace(config, shards=count)) for count in counts}
    devices = {device.name: device for device in machine.devices}
    found = chosen(graphs, devices, machine.placement)
    decided = {graphs[found.shards].name: found}
    placement = replace(machine.placement, decided=decided)
    return Searched(
        replace(config, shards=found.shards),
        replace(machine, placement=placement),
        found,
        time.perf_counter() - begin,
    )


def search_report(searched: Searched) -> dict[str, object]:
    """What `--json` says of a search."""
    found = searched.found
    return {
        "policy": found.policy,
        "shards": found.shards,
        "most_lanes": found.division.lanes,  # of a node; null: all of its device
        "seconds_spent": searched.spent_s,
        "estimates": found.estimates,
        "simulations": found.simulations,
        "gained_seconds": searched.gained_s,
        "tried": [
            {
                "policy": each.policy,
                "shards": each.shards,
                "most_lanes": each.most_lanes,
                "estimated_seconds": each.estimated_s,
                "simulated_seconds": each.simulated_s,
                "dropped": each.dropped,
            }
            for each in found.tried
        ],
    }


def search_lines(searched: Searched) -> Mapping[str, str]:
    """A heading and a line for each thing worth knowing of a search."""
    return dict(_lines(searched))


def _lines(searched: Searched) -> Iterator[tuple[str, str]]:
    found, spent = searched.found, searched.spent_s
    most = found.division.lanes
    division = "" if most is None else f", a node on {most} lanes at most"
    yield (
        "chosen",
        f"{found.policy}, {found.shards} shards{division}: {found.seconds:.4g} s (simulated)",
    )
    yield (
        "planning",
        f"{spent:.1f} s for {found.estimates} estimates and {found.simulations} simulated plans",
    )
    gained = searched.gained_s
    if gained is not None:
        yield (
            "gained",
            f"{gained:.3g} s a training step on the best trivial plan (simulated), "
            f"{gained / spent:.2g} s for each second of planning",
        )
