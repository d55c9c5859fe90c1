"""What is known of a described machine: its three devices, its links, and how they disturb.

How the figures are meant:

- Rates are those of a whole device with all its lanes at work. A node on one device takes launch +
  the longer of FLOPs at the class's rate (`gemm` or `other`) and bytes at the memory's.
- One GEMM call of the NPU takes `first_dispatch_s + gemm_fixed_s +` the longer of FLOPs at
  `gemm_flops_per_s` and traffic at `memory_bytes_per_s`, where traffic is what its DMAs move,
  re-reads included. In a runlist, commands after the first pay `further_dispatch_s` instead.
- What the CPU does for other devices (packs and unpacks, saved states) is bound by memory; one core
  alone gets `core_memory_bytes_per_s`, more than its share of what all cores get together.
- A transfer takes `latency_s + bytes / bytes_per_s`; over a shared link nothing is copied and only
  the latency is paid (map, unmap).
- Power is the sum of all `idle_w`, all the time, and of each device's `active_w` *on top* while it
  is busy. The idle power of the whole package is the CPU's.

A profile is on one power source. The figures of a file are those on mains; on battery rates and
active power are multiplied by the factors of `BatteryFactors`, latencies stay.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Literal, TypeAlias, TypeVar, get_args, get_type_hints

from aieflow.ops.errors import InputError
from aieflow.profiles.figure import (
    Count,
    Factor,
    Figure,
    Fraction,
    Nbytes,
    Rate,
    Rule,
    Seconds,
    Slowdown,
    Watts,
    lengthened,
    scaled,
    varied,
)

Power: TypeAlias = Literal["mains", "battery"]
Generation: TypeAlias = Literal["npu1", "npu2"]
DeviceName: TypeAlias = Literal["cpu", "igpu", "npu"]

POWERS: tuple[Power, ...] = get_args(Power)


@dataclass(frozen=True, slots=True)
class CpuProfile:
    """The CPU."""

    lanes: Count  # compute lanes, one for each core
    gemm_flops_per_s: Rate  # fp32
    other_flops_per_s: Rate  # everything but GEMM, fp32
    memory_bytes_per_s: Rate
    core_memory_bytes_per_s: Rate  # of one core while the others are idle, read and written
    launch_s: Seconds  # time to start one node
    memory_nbytes: Nbytes
    active_w: Watts  # on top of the idle power, while busy
    idle_w: Watts


@dataclass(frozen=True, slots=True)
class IgpuProfile:
    """The iGPU."""

    lanes: Count  # compute lanes
    gemm_flops_per_s: Rate  # fp32
    other_flops_per_s: Rate  # everything but GEMM, fp32
    memory_bytes_per_s: Rate
    launch_s: Seconds  # host time to start one node
    memory_nbytes: Nbytes
    active_w: Watts  # on top of the idle power, while busy
    idle_w: Watts


@dataclass(frozen=True, slots=True)
class NpuProfile:
    """The NPU, for one resident GEMM design with bf16 inputs."""

    generation: Generation
    lanes: Count
    gemm_flops_per_s: Rate
    memory_bytes_per_s: Rate  # between memory and array, re-reads included
    gemm_fixed_s: Seconds  # of each GEMM command, beyond its dispatch and its work
    first_dispatch_s: Seconds  # host and device, of a command sent alone
    further_dispatch_s: Seconds  # of each command of a runlist after its first
    reconfiguration_s: Seconds  # to load another design onto the whole array
    context_switch_s: Seconds  # when a command follows one of another hardware context
    wake_up_s: Seconds  # of the first command after a pause of `idle_before_sleep_s`
    idle_before_sleep_s: Seconds
    contexts: Count
    commands_in_flight: Count  # of one context
    memory_nbytes: Nbytes  # of all buffers together
    active_w: Watts
    idle_w: Watts


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """The path between the host's memory and a device's."""

    is_shared: bool  # one memory: a transfer maps and copies nothing
    latency_s: Seconds
    bytes_per_s: Rate  # of a copy, or of the cache flush of a buffer sync


@dataclass(frozen=True, slots=True)
class Links:
    """The two links of the host's memory."""

    igpu: LinkProfile
    npu: LinkProfile


@dataclass(frozen=True, slots=True)
class Contention:
    """How many times longer one device takes while another is busy."""

    cpu_beside_igpu: Slowdown
    cpu_beside_npu: Slowdown
    igpu_beside_cpu: Slowdown
    igpu_beside_npu: Slowdown
    npu_beside_cpu: Slowdown
    npu_beside_igpu: Slowdown

    def slowdown(self, device: DeviceName, other: DeviceName) -> Figure:
        """The factor on the durations of `device` while `other` (not itself) is busy."""
        figure = getattr(self, f"{device}_beside_{other}")
        assert isinstance(figure, Figure)
        return figure


@dataclass(frozen=True, slots=True)
class Noise:
    """How far durations scatter around what is predicted, relative, to both sides."""

    cpu: Fraction  # drift within a run
    npu: Fraction  # two modes, this much below and above


@dataclass(frozen=True, slots=True)
class BatteryFactors:
    """What running on battery multiplies, and adds."""

    cpu_rate: Factor
    igpu_rate: Factor
    npu_rate: Factor
    memory_rate: Factor  # of every device and link
    cpu_active_w: Factor
    igpu_active_w: Factor
    npu_active_w: Factor
    npu_dispatch_s: Seconds | None = None  # more for each NPU command; None: nobody knows of any


@dataclass(frozen=True, slots=True)
class MachineProfile:
    """A described machine on one power source. `machine_file.load_machine` makes it."""

    name: str
    chip: str
    provenance: str
    power: Power
    sources: Mapping[str, str] = field(hash=False)  # what the keys in figures' sources stand for
    cpu: CpuProfile
    igpu: IgpuProfile
    npu: NpuProfile
    links: Links
    contention: Contention
    noise: Noise

    def figures(self) -> Iterator[tuple[str, Figure]]:
        """Every figure with its dotted path, such as `npu.gemm_flops_per_s`, in file order."""
        return figures_of(self)

    def with_value(self, path: str, value: str | float) -> MachineProfile:
        """The machine with one figure changed: to a number, or by a factor such as "0.5x".

        Raises InputError for a path that is no figure's or a value that the figure cannot have.
        """
        known = dict(self.figures())
        if path not in known:
            meant = suggestion(path, known) or f"; there are {', '.join(known)}"
            raise InputError(f"{path} is no figure of machine {self.name}{meant}")
        number = _number(path, value, known[path].value)
        rule = RULES[path]
        if not rule.allows(number):
            raise InputError(f"{path} = {value} gives {number:g}: {rule.text}")
        return _replaced(self, path.split("."), varied(known[path], number))


def figures_of(part: object, prefix: str = "") -> Iterator[tuple[str, Figure]]:
    """Every figure within a profile or a part of one, with its dotted path."""
    if not is_dataclass(part):
        return
    for each in fields(part):
        child = getattr(part, each.name)
        if isinstance(child, Figure):
            yield prefix + each.name, child
        else:
            yield from figures_of(child, f"{prefix}{each.name}.")


def suggestion(word: str, known: Iterable[str]) -> str:
    """What was probably meant, for messages about an unknown word: "; did you mean …?" or ""."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def on_battery(machine: MachineProfile, factors: BatteryFactors) -> MachineProfile:
    """The machine (on mains) as it is on battery."""

    def by(figure: Figure, factor: Figure) -> Figure:
        return scaled(figure, factor, "on battery")

    def later(figure: Figure) -> Figure:
        extra = factors.npu_dispatch_s
        return figure if extra is None else lengthened(figure, extra, "on battery")

    def link(part: LinkProfile) -> LinkProfile:
        return replace(part, bytes_per_s=by(part.bytes_per_s, factors.memory_rate))

    cpu, igpu, npu = machine.cpu, machine.igpu, machine.npu
    return replace(
        machine,
        power="battery",
        cpu=replace(
            cpu,
            gemm_flops_per_s=by(cpu.gemm_flops_per_s, factors.cpu_rate),
            other_flops_per_s=by(cpu.other_flops_per_s, factors.cpu_rate),
            memory_bytes_per_s=by(cpu.memory_bytes_per_s, factors.memory_rate),
            core_memory_bytes_per_s=by(cpu.core_memory_bytes_per_s, factors.memory_rate),
            active_w=by(cpu.active_w, factors.cpu_active_w),
        ),
        igpu=replace(
            igpu,
            gemm_flops_per_s=by(igpu.gemm_flops_per_s, factors.igpu_rate),
            other_flops_per_s=by(igpu.other_flops_per_s, factors.igpu_rate),
            memory_bytes_per_s=by(igpu.memory_bytes_per_s, factors.memory_rate),
            active_w=by(igpu.active_w, factors.igpu_active_w),
        ),
        npu=replace(
            npu,
            gemm_flops_per_s=by(npu.gemm_flops_per_s, factors.npu_rate),
            memory_bytes_per_s=by(npu.memory_bytes_per_s, factors.memory_rate),
            active_w=by(npu.active_w, factors.npu_active_w),
            first_dispatch_s=later(npu.first_dispatch_s),
            further_dispatch_s=later(npu.further_dispatch_s),
        ),
        links=Links(igpu=link(machine.links.igpu), npu=link(machine.links.npu)),
    )


def _number(path: str, value: str | float, present: float) -> float:
    if not isinstance(value, str):
        return float(value)
    text = value.strip()
    try:
        return present * float(text[:-1]) if text.endswith("x") else float(text)
    except ValueError:
        raise InputError(
            f"{path} = {value!r}: give a number, or a factor such as 0.5x (now {present:g})"
        ) from None


Part = TypeVar("Part")


def _replaced(part: Part, keys: list[str], figure: Figure) -> Part:
    if not is_dataclass(part) or isinstance(part, type):
        raise TypeError(f"{part!r} holds no figures")
    child = figure if len(keys) == 1 else _replaced(getattr(part, keys[0]), keys[1:], figure)
    return replace(part, **{keys[0]: child})


def _rules(cls: type, prefix: str = "") -> Iterator[tuple[str, Rule]]:
    for name, kind in get_type_hints(cls, include_extras=True).items():
        rule = rule_of(kind)
        if rule is not None:
            yield prefix + name, rule
        elif is_dataclass(kind) and isinstance(kind, type):
            yield from _rules(kind, f"{prefix}{name}.")


def rule_of(kind: object) -> Rule | None:
    """The rule of a field's type, if it is a figure's: the second part of its Annotated."""
    return next((extra for extra in get_args(kind) if isinstance(extra, Rule)), None)


RULES: Mapping[str, Rule] = dict(_rules(MachineProfile))  # by the figures' dotted paths
