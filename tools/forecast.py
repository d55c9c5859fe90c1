"""What is foretold of one training step: seconds, joules, the bound, and where the gap lies.

Both `aieflow simulate` and `aieflow plan --bound` print it, and give it as JSON. Every figure is a
simulator's, and is printed with the word "simulated".
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from aieflow.devices.base import Device
from aieflow.gpt2.run_config import RunConfig
from aieflow.ops.graph import Graph
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.runtime.bounds import Bound, bound
from aieflow.runtime.gap import Gap, gap
from aieflow.runtime.needs import needs
from aieflow.runtime.plan import Plan
from aieflow.runtime.simulate import joules, simulate
from aieflow.runtime.step_cost import MachineStepCost, StepCost, StepWork
from aieflow.runtime.trace import Trace
from aieflow.tools.console import OUT
from aieflow.tools.folding import fold, print_line, terminal_width

CULPRITS = 10  # of exposed transfers, in JSON
SHOWN = 3  # causes in one line
WIDEST = 160  # columns of a table
CAUSES = 30  # columns that the causes of idleness get on the narrowest terminal


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is foretold of one training step."""

    config: RunConfig
    flops: int  # of the graph, conversions apart
    trace: Trace
    joules: float | None  # None where no power is known
    bound: Bound
    gap: Gap

    @property
    def tokens(self) -> int:
        """Tokens of the training step."""
        config = self.config
        return config.batch_size * config.grad_accumulation * config.seq_len

    @property
    def bound_ratio(self) -> float:
        """How many times longer than the bound."""
        return self.trace.seconds / self.bound.seconds


@dataclass(frozen=True, slots=True)
class Priced:
    """The costs of one plan's steps, reckoned once; `simulate` and `joules` ask for them again."""

    cost: StepCost
    works: tuple[StepWork, ...]

    @property
    def name(self) -> str:
        """The machine."""
        return self.cost.name

    @property
    def idle_w(self) -> float:
        """Watts of the whole machine while nothing runs."""
        return self.cost.idle_w

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        """What each step of the one plan takes."""
        assert len(plan.steps) == len(self.works)
        return self.works

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """How many times longer a device's steps take while others are busy."""
        return self.cost.slowdown(device, others)


def forecast(
    config: RunConfig, graph: Graph, devices: Sequence[Device], plan: Plan, cost: MachineStepCost
) -> Forecast:
    """What `cost` foretells of a plan of `graph` on devices; raises PlanError and ProfileError."""
    priced = Priced(cost, cost.of(plan))
    trace = simulate(plan, priced)
    least = bound(graph, needs(graph, {device.name: device for device in devices}, cost.machine))
    energy = joules(trace, priced) if cost.idle_w else None
    return Forecast(config, graph.flops, trace, energy, least, gap(trace, CONVERSIONS))


def report(found: Forecast) -> dict[str, object]:
    """What `--json` prints of a forecast: seconds, joules and shares, all simulated."""
    trace, config = found.trace, found.config
    return {
        "simulated": True,
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
        "bound_ratio": found.bound_ratio,
        "critical_path_seconds": found.bound.critical_path_s,
        "overlap": trace.overlap,
        "lanes": {lane: trace.busy_seconds(lane) / trace.seconds for lane in trace.plan.lanes},
        "lane_seconds_by_op": trace.seconds_by_op(),
        "gap": _gap_report(found.gap),
    }


def _gap_report(found: Gap) -> dict[str, object]:
    return {
        "lanes": {
            lane: {"busy_seconds": each.busy_s, "idle_seconds": dict(each.idle)}
            for lane, each in found.lanes.items()
        },
        "exposed_seconds": found.exposed_s,
        "exposed": [
            {"name": each.name, "work": each.work, "seconds": each.seconds}
            for each in found.exposed[:CULPRITS]
        ],
        "path_steps": len(found.path),
        "path_seconds": dict(found.path_seconds),
    }


def summary(found: Forecast) -> dict[str, str]:
    """The lines of a forecast, by their headings."""
    trace = found.trace
    energy = "unknown: no power is known"
    if found.joules is not None:
        energy = (
            f"{found.joules:.4g} J a training step, "
            f"{found.joules / trace.seconds:.3g} W (simulated)"
        )
    overlap = "nothing is transferred (simulated)"
    if trace.overlap is not None:
        overlap = f"{trace.overlap:.1%} of what copy lanes do under compute (simulated)"
    return {
        "policy": trace.plan.schedule.policy,
        "seconds": f"{trace.seconds:.4g} s a training step (simulated)",
        "tokens": f"{found.tokens / trace.seconds:,.0f} tokens/s (simulated)",
        "rate": f"{found.flops / trace.seconds / 1e9:,.1f} GFLOP/s (simulated)",
        "energy": energy,
        "overlap": overlap,
        "bound": f"{found.bound.seconds:.4g} s at least on these devices, by any placement of "
        f"this graph: {found.bound_ratio:.2f}x (simulated)",
    }


def print_lanes(trace: Trace) -> None:
    """What share of the time each lane is busy."""
    table = figures_table("lane", "steps", "busy s (simulated)", "share (simulated)")
    for lane, program in trace.plan.lanes.items():
        busy_s = trace.busy_seconds(lane)
        table.add_row(lane, f"{len(program)}", f"{busy_s:.4f}", f"{busy_s / trace.seconds:.1%}")
    print_table(table)


def print_gap(found: Forecast) -> None:
    """Why lanes are idle, which transfers nothing hides, and what the run's length is made of."""
    lies = found.gap
    table = figures_table("lane", "idle s (simulated)")
    table.add_column("waits for (simulated)")
    width = terminal_width()  # the two other columns take what their longest texts take
    used = max(map(len, lies.lanes), default=0) + len("idle s (simulated)") + 4
    room = None if width is None else max(CAUSES, width - used)
    for lane, each in lies.lanes.items():
        causes = fold(_largest(each.idle), 0, room)
        table.add_row(lane, f"{sum(each.idle.values()):.4f}", causes)
    print_table(table)
    worst = {each.name: each.seconds for each in lies.exposed[:SHOWN]}
    lines = {
        "exposed": f"{lies.exposed_s:.4g} lane s of transfers and conversions with nothing "
        "computed beside them (simulated)",
        **({"the most": f"{_largest(worst)} (simulated)"} if worst else {}),
        "path": f"{len(lies.path)} steps in a row make the length: "
        f"{_largest(lies.path_seconds)} (simulated)",
    }
    OUT.print()
    for name, line in lines.items():
        print_line(name, line)


def print_table(table: Table) -> None:
    """A table after an empty line, as wide as its figures.

    A narrower terminal wraps the lines, and nothing is cut short.
    """
    OUT.print()
    table.width = OUT.measure(table, options=OUT.options.update(max_width=WIDEST)).maximum
    OUT.print(table, soft_wrap=False, crop=False)


def _largest(sums: Mapping[str, float]) -> str:
    """The largest of some seconds, and what the others sum to."""
    parts = list(sums.items())
    shown = [f"{name} {seconds:.4f}" for name, seconds in parts[:SHOWN]]
    if len(parts) > SHOWN:
        shown.append(f"others {sum(seconds for _, seconds in parts[SHOWN:]):.4f}")
    return ", ".join(shown) or "nothing"


def figures_table(first: str, *others: str) -> Table:
    """An empty table: a first column of names, and others of figures, to the right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(first)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
