"""What a profile says: the object that `--json` prints, and the sentences of its diagnosis.

The live view, its plain lines and `aieflow profile` all take their figures from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from aieflow.devices.cpu import Rates
from aieflow.devices.readings import Reading, absent
from aieflow.runtime.account import WAITING, Account, LaneAccount, WorkAccount
from aieflow.runtime.gap import Gap
from aieflow.runtime.lane_states import shares
from aieflow.runtime.outliers import outliers
from aieflow.runtime.schedule import device_of
from aieflow.runtime.what_if import Gain, WhatIf
from aieflow.tools.profile_run import Profiled
from aieflow.tools.profile_subject import Subject
from aieflow.tools.sensor_log import Sensed
from aieflow.tools.sensor_text import no_hardware

LEAST = 0.02  # of the wall: less is not worth a sentence
SENTENCES = 4
NOTHING_SENSED = Sensed()


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a profile, in this process or watched from outside."""

    subject: Subject
    account: Account
    seconds: float  # of the median training step
    moved_nbytes: float  # of one training step, by transfers
    recording_share: float | None = None  # by what share recording lengthens a training step
    sensed: Sensed = NOTHING_SENSED
    resident_nbytes: int | None = None  # of the process that trains; None where it is not told

    @property
    def predicted_s(self) -> float | None:
        """Seconds of a training step by this computer's calibration (simulated)."""
        foretold = self.subject.foretold
        return None if foretold is None else foretold.seconds

    @property
    def error(self) -> float | None:
        """By what share the measured seconds lie above those predicted."""
        return None if self.predicted_s is None else self.seconds / self.predicted_s - 1

    @property
    def bound_ratio(self) -> float | None:
        """How many times longer than the bound."""
        foretold = self.subject.foretold
        return None if foretold is None else self.seconds / foretold.bound_s

    @property
    def tokens_per_s(self) -> float:
        """Tokens of a training step by its seconds."""
        return self.subject.tokens / self.seconds

    @property
    def gflops_per_s(self) -> float:
        """The graph's FLOPs by the seconds of a training step."""
        return self.subject.flops / self.seconds / 1e9

    @property
    def joules(self) -> Reading:
        """Joules of the median training step: its seconds by the package's watts in the mean.

        They are of all that the package did meanwhile, also for other programs. None with the
        reason where no meter of the package can be read, and where a device is emulated.
        """
        if self.subject.emulated:
            return absent(no_hardware(self.subject.emulated))
        watts = self.sensed.package_w
        return watts if watts.value is None else Reading(watts.value * self.seconds, watts.source)


def memory_words(figures: Figures) -> str:
    """`512 MB (tensors 3 by plan)`: all that the process has, and what of it is planned."""
    resident = figures.resident_nbytes
    used = "n/a" if resident is None else f"{resident / 1e6:,.0f} MB"
    return f"{used} (tensors {figures.subject.planned_nbytes / 1e6:,.0f} by plan)"


def figures_report(figures: Figures) -> dict[str, object]:
    """The object of `--json`, which others rely on; seconds, bytes and shares.

    `overlap` is the share of what copy lanes do that is hidden under compute; null where nothing is
    copied. A sensor that is absent is null, and `sensors` tells the reason as its source.
    """
    subject, account = figures.subject, figures.account
    foretold = subject.foretold
    return {
        "model": subject.model,
        "devices": {device.name: device.identity for device in subject.devices},
        "emulated": list(subject.emulated),
        "policy": subject.policy,
        "training_steps": account.runs,
        "seconds": figures.seconds,
        "predicted_seconds": figures.predicted_s,
        "predicted_reason": subject.reason or None,
        "predicted_error": figures.error,
        "bound_seconds": None if foretold is None else foretold.bound_s,
        "bound_ratio": figures.bound_ratio,
        "tokens_per_s": figures.tokens_per_s,
        "gflops_per_s": figures.gflops_per_s,
        "overlap": account.overlap,
        "bytes_moved": figures.moved_nbytes,
        "resident_bytes": figures.resident_nbytes,
        "planned_bytes": subject.planned_nbytes,
        "recording_overhead": figures.recording_share,
        "joules": figures.joules.value,
        "joules_source": figures.joules.source,
        "sensors": sensors_report(figures.sensed),
        "lanes": [_lane_report(figures, lane) for lane in account.lanes],
    }


def _lane_report(figures: Figures, lane: LaneAccount) -> dict[str, object]:
    wall_s = figures.account.wall_ns / 1e9
    readings = figures.sensed.of(device_of(lane.lane))
    return {
        "name": lane.lane,
        "device": device_of(lane.lane),
        "executor": figures.subject.device_of(lane.lane),
        "states": shares(lane.states),
        "steps_per_s": lane.steps / wall_s,
        "bytes_per_s": lane.nbytes / wall_s,
        # of the whole device, not of the lane's share in it
        **{name: reading.value for name, reading in readings.by_name.items()},
    }


def sensors_report(sensed: Sensed) -> dict[str, object]:
    """What the sensors said: values with their sources, null with the reason."""
    return {
        "devices": {
            name: {quantity: asdict(reading) for quantity, reading in readings.by_name.items()}
            for name, readings in sensed.devices.items()
        },
        "package_w": asdict(sensed.package_w),
        "battery_w": asdict(sensed.battery_w),
        "power_source": sensed.power_source,
        "readings": sensed.readings,
    }


def work_report(
    row: WorkAccount, runs: int, rates: Mapping[str, Rates]
) -> dict[str, int | float | str | None]:
    """A row of the table by op and device; rates are those of one lane."""
    return {
        "device": row.device,
        "op": row.work,
        "count": row.count // runs,  # in one training step
        "median_seconds": row.median_s,
        "seconds": row.seconds / runs,
        "share": row.share,
        "model_error": row.error,
        "bytes_per_s": row.bytes_per_s,
        "flops_per_s": row.flops_per_s,
        "share_of_peak": share_of_peak(row, rates.get(row.device)),
    }


def share_of_peak(row: WorkAccount, rates: Rates | None) -> float | None:
    """How near a lane comes to its part of the device's GEMM rate, or of its memory's.

    The larger of the two, as on a roofline; what stays in caches may exceed 1. None where the
    device's rates were not measured.
    """
    if rates is None or not row.seconds:
        return None
    lanes = rates.lanes
    return max(
        row.flops_per_s * lanes / rates.gemm_flops_per_s,
        row.bytes_per_s * lanes / rates.bytes_per_s,
    )


def gains_report(found: WhatIf) -> dict[str, object]:
    """The replay and what is foretold to be gained."""
    return {
        "simulated": True,
        "measured_seconds": found.measured_s,
        "replay_seconds": found.replay_s,
        "gains": [
            {
                "what": gain_words(gain),
                "device": gain.device,
                "work": gain.work,
                "seconds": gain.seconds,
                "ratio": gain.ratio,
            }
            for gain in found.gains
        ],
    }


def gain_words(gain: Gain) -> str:
    """What would be otherwise."""
    if gain.change == "half":
        return f"{gain.work} on {gain.device} in half the time"
    return f"without {gain.work} on {gain.device}"


def outliers_report(done: Profiled) -> list[dict[str, object]]:
    """Steps that took far longer than usual, the worst first."""
    return [
        {
            "training_step": done.records[each.run].training_step,
            "lane": done.subject.outline.steps[each.step].lane,
            "name": done.subject.outline.steps[each.step].name,
            "seconds": each.seconds,
            "median_seconds": each.median_s,
        }
        for each in outliers(done.subject.outline, done.recordings)
    ]


def path_report(found: Gap) -> dict[str, object]:
    """What the last training step's critical path is made of."""
    return {"steps": len(found.path), "seconds": dict(found.path_seconds)}


def diagnosis(figures: Figures, found: WhatIf | None = None) -> list[str]:
    """What limits the training step, in sentences: the worst first.

    A device's idle time is whatever its lanes do not spend executing.
    """
    account = figures.account
    ranked: list[tuple[float, str]] = []
    groups: dict[str, list[LaneAccount]] = {}
    for lane in account.lanes:
        groups.setdefault(_lane_group(lane.lane), []).append(lane)
    for name, lanes in groups.items():
        wall = account.wall_ns * len(lanes)
        states = {state: sum(lane.states[state] for lane in lanes) for state in lanes[0].states}
        idle = wall - states["executing"]
        if ".copy" in name or not idle:
            continue
        waiting = sum(states[state] for state in WAITING)
        if waiting >= LEAST * wall:
            cause, node = (
                _most([lane.awaited for lane in lanes]),
                _most([lane.awaited_steps for lane in lanes]),
            )
            ranked.append(
                (
                    waiting / wall,
                    f"{cause[1] / idle:.0%} of {name}'s idle time ({idle / wall:.0%} of the wall) "
                    f"waits for {cause[0]}, longest for {node[0]} ({node[1] / idle:.0%})",
                )
            )
        if states["overhead"] >= LEAST * wall:
            steps = sum(lane.steps for lane in lanes)
            ranked.append(
                (
                    states["overhead"] / wall,
                    f"{states['overhead'] / wall:.0%} of {name}'s wall is overhead, "
                    f"{states['overhead'] / 1e3 / steps:.0f} µs before each of its "
                    f"{steps // account.runs} steps: larger batches or fewer lanes lower it",
                )
            )
    sentences = [text for _, text in sorted(ranked, key=lambda each: -each[0])][:SENTENCES]
    executing = sum(lane.states["executing"] for lane in account.lanes)
    total = account.wall_ns * len(account.lanes)
    if account.works and total:
        first = account.works[0]
        sentences.append(
            f"lanes execute {executing / total:.0%} of the wall, {first.share:.0%} of that "
            f"{first.work} on {first.device}"
        )
    if figures.error is not None:
        sentences.append(_about_prediction(figures))
    if found is not None and found.gains and found.gains[0].ratio < 1 - LEAST:
        best = found.gains[0]
        sentences.append(f"{gain_words(best)}: {best.ratio - 1:+.0%} (simulated)")
    return sentences


def _about_prediction(figures: Figures) -> str:
    assert figures.error is not None
    assert figures.predicted_s is not None
    text = (
        f"the calibration foretells {figures.predicted_s * 1e3:,.1f} ms (simulated), measured is "
        f"{abs(figures.error):.0%} {'more' if figures.error > 0 else 'less'}"
    )
    errors = [
        (abs(row.seconds - row.foretold_s), row)
        for row in figures.account.works
        if row.foretold_s is not None
    ]
    if errors:
        _, worst = max(errors, key=lambda each: each[0])
        text += f"; {worst.work} on {worst.device} is furthest off ({worst.error or 0:+.0%})"
    return text


def _lane_group(lane: str) -> str:
    """Lanes that are spoken of together: all compute lanes of a device.

    >>> _lane_group("cpu.compute.1"), _lane_group("npu.copy.in")
    ('cpu', 'npu.copy.in')
    """
    return lane if ".copy" in lane else device_of(lane)


def _most(sums: Sequence[Mapping[str, int]]) -> tuple[str, int]:
    """The name with the largest sum, and that."""
    total: dict[str, int] = {}
    for each in sums:
        for name, ns in each.items():
            total[name] = total.get(name, 0) + ns
    name = max(total, key=lambda name: (total[name], name))
    return name, total[name]
