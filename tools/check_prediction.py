"""How well calibration foretells training steps that it has not seen, on this computer.

    python -m aieflow.tools.check_prediction --devices cpu,igpu --rounds 3

Other models, batches and lengths than calibration's are planned, simulated at the measured costs,
and run. A computer's speed drifts, so rounds of calibration and of measurement take turns in one
process; with --profile FILE the profile that an earlier `aieflow calibrate` wrote is used instead.
Prints predicted (simulated) and measured seconds, the errors, and how many pairs of training steps
that differ by more than 5 % are ordered rightly: those of one training step on different devices
apart.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.table import Table

from aieflow.devices.base import Device
from aieflow.devices.registry import DEVICES, cache_folder, open_device
from aieflow.gpt2.config import PRESETS, ModelConfig
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.errors import AieflowError
from aieflow.profiles.measured import MeasuredProfile
from aieflow.profiles.measured_cost import MeasuredCost
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.plan import Plan
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.calibration import (
    QUICK_RUNS,
    QUICK_SAMPLES,
    calibrate_devices,
    jobs_for,
)
from aieflow.tools.calibration_visit import Pool, feeds_of
from aieflow.tools.computer_profile import fingerprints, measured_cost
from aieflow.tools.console import ERR, OUT

DIFFERENT = 0.05  # relative difference of two measured durations that counts
RUNS = 4  # timed runs of a training step in each round

MINI = PRESETS["mini"]
NARROW = ModelConfig(vocab_size=2048, seq_len=128, layers=3, heads=4, channels=256)
MIDDLE = ModelConfig(vocab_size=4096, seq_len=128, layers=6, heads=5, channels=320)
WIDE = ModelConfig(vocab_size=16384, seq_len=128, layers=4, heads=8, channels=512)
# Name, model, B, T: none of them is in calibration's grid.
UNSEEN = (
    ("mini", MINI, 4, 64),
    ("mini", MINI, 6, 96),
    ("mini", MINI, 3, 128),
    ("mini", MINI, 16, 64),
    ("C=256 L=3", NARROW, 4, 96),
    ("C=256 L=3", NARROW, 8, 64),
    ("C=320 L=6", MIDDLE, 2, 128),
    ("C=320 L=6", MIDDLE, 6, 64),
    ("C=512 L=4", WIDE, 2, 96),
    ("124M", PRESETS["124M"], 1, 96),
    ("124M", PRESETS["124M"], 3, 64),
    ("124M", PRESETS["124M"], 2, 128),
)
SMALL = 320  # channels up to which a training step is also run on other devices than the CPU


@dataclass(slots=True)
class Trial:
    """One training step, where it runs, and what it took."""

    name: str
    where: str
    config: RunConfig
    machine: Machine
    plan: Plan
    seconds: list[float] = field(default_factory=list)

    @property
    def measured_s(self) -> float:
        """Seconds of a training step, the median."""
        return statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A prediction held against the clock."""

    name: str
    where: str
    predicted_s: float
    measured_s: float
    least_s: float  # of all runs
    most_s: float

    @property
    def error(self) -> float:
        """Relative; above 0 where the prediction is too long."""
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs that differ by more than `DIFFERENT`, and how many of them are ordered rightly."""

    count: int
    right: int


def trials(devices: Mapping[str, Device]) -> list[Trial]:
    """The training steps that calibration does not see, each where it can run."""
    found: list[Trial] = []
    for number, (name, model, B, T) in enumerate(UNSEEN):
        config = RunConfig(model=model, batch_size=B, seq_len=T, lr=1e-4)
        graph = training_graph(config)
        places: list[tuple[str, tuple[str, ...], Placement]] = [("cpu", ("cpu",), Placement("cpu"))]
        if model.channels <= SMALL:
            by_hand = {"matmul": "cpu"} if number % 2 else {"gelu": "cpu", "gelu_backward": "cpu"}
            places.append(("igpu", ("igpu",), Placement("igpu")))
            places.append(("both", ("cpu", "igpu"), Placement("igpu", by_hand)))
        for where, names, placement in places:
            if devices.keys() >= set(names):
                machine = Machine(tuple(devices[each] for each in names), placement)
                title = f"{name} B={B} T={T}"
                found.append(Trial(title, where, config, machine, machine.plan(graph)))
    return found


def measure(trial: Trial, pool: Pool, runs: int) -> None:
    """Run a training step `runs` times, after one that is not counted; raises DeviceError."""
    states, arena = pool.bind(trial.plan)
    feeds = feeds_of(trial.config, trial.plan.graph)
    with trial.machine.open(trial.plan, states, arena) as executor:
        executor.run(feeds)
        for _ in range(runs):
            begin = time.perf_counter()
            executor.run(feeds)
            trial.seconds.append(time.perf_counter() - begin)


def outcomes(found: Sequence[Trial], cost: MeasuredCost) -> list[Outcome]:
    """Each trial's prediction beside what it took; raises ProfileError."""
    step_cost = MachineStepCost(cost, cost.overheads)
    return [
        Outcome(
            trial.name,
            trial.where,
            simulate(trial.plan, step_cost).seconds,
            trial.measured_s,
            min(trial.seconds),
            max(trial.seconds),
        )
        for trial in found
    ]


def ordered(found: Sequence[Outcome], same_step: bool) -> Pairs:
    """How many pairs are ordered rightly: of one training step on other devices, or of all."""
    count = right = 0
    for one, other in itertools.combinations(found, 2):
        if same_step and one.name != other.name:
            continue
        if abs(one.measured_s / other.measured_s - 1) <= DIFFERENT:
            continue
        count += 1
        right += (one.measured_s < other.measured_s) == (one.predicted_s < other.predicted_s)
    return Pairs(count, right)


def run(
    devices: Mapping[str, Device], rounds: int, quick: bool, file: Path | None
) -> list[Outcome]:
    """Calibrate and measure in turns, then predict; raises AieflowError."""
    found = trials(devices)
    kernels = {name: device.kernels for name, device in devices.items()}
    jobs = [] if file is not None else jobs_for(devices, None, quick)
    profile = MeasuredProfile()
    for name, facts in fingerprints(devices.values()).items():
        profile = profile.with_device(name, facts, len(devices[name].lanes))
    wanted = 0
    for number in range(rounds):
        if jobs:
            wanted += max(QUICK_RUNS, -(-QUICK_SAMPLES // rounds))
            profile = calibrate_devices(
                profile,
                devices,
                jobs,
                lambda now, done: None,
                runs=QUICK_RUNS,
                wanted=wanted,
            )
            ERR.print(f"round {number + 1} of {rounds}: calibrated", markup=False)
        pool = Pool(Machine(tuple(devices.values())))
        try:
            for trial in found:
                measure(trial, pool, RUNS)
        finally:
            pool.close()
        ERR.print(f"round {number + 1} of {rounds}: measured", markup=False)
    cost = MeasuredCost(profile, kernels) if jobs else measured_cost(devices.values(), file)
    return outcomes(found, cost)


def report(found: Sequence[Outcome]) -> dict[str, object]:
    """What `--json` saves."""
    errors = [abs(each.error) for each in found]
    return {
        "median_error": statistics.median(errors),
        "worst_error": max(errors),
        "pairs": asdict(ordered(found, same_step=False)),
        "pairs_of_one_step": asdict(ordered(found, same_step=True)),
        "rows": [{**asdict(each), "error": each.error} for each in found],
    }


def table(found: Sequence[Outcome]) -> Table:
    """Predicted against measured seconds."""
    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown.add_column("training step")
    shown.add_column("on")
    for heading in ("predicted s (simulated)", "measured s", "range", "error"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for each in found:
        shown.add_row(
            each.name,
            each.where,
            f"{each.predicted_s:.4f}",
            f"{each.measured_s:.4f}",
            f"{each.least_s:.4f} to {each.most_s:.4f}",
            f"{each.error:+.1%}",
        )
    errors = [abs(each.error) for each in found]
    everything, one_step = ordered(found, same_step=False), ordered(found, same_step=True)
    shown.caption = (
        f"error: median {statistics.median(errors):.1%}, worst {max(errors):.1%}; ordered rightly: "
        f"{everything.right} of {everything.count} pairs, {one_step.right} of {one_step.count} of "
        "one training step"
    )
    return shown


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Predictions held against the clock.")
    parser.add_argument("--devices", default="cpu", help="cpu, or cpu,igpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="calibrate on the quick grid")
    parser.add_argument("--profile", type=Path, help="use this profile, calibrate nothing")
    parser.add_argument("--json", type=Path, help="also save the figures")
    asked = parser.parse_args()
    if asked.rounds < 1:
        parser.error(f"--rounds {asked.rounds}: must be at least 1")
    try:
        with ExitStack() as stack:
            devices: dict[str, Device] = {}
            for name in (each for each in DEVICES if each in asked.devices.split(",")):
                devices[name] = open_device(name, cache=cache_folder())
                stack.callback(devices[name].close)
            if "cpu" not in devices:
                parser.error(f"--devices {asked.devices}: must name the cpu")
            found = run(devices, asked.rounds, asked.quick, asked.profile)
    except AieflowError as error:
        sys.exit(f"error: {error}")
    OUT.print(table(found))
    if asked.json is not None:
        asked.json.write_text(json.dumps(report(found), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
