"""What a profile is of: model, devices, plan, and what is foretold of it.

A running training sends it to whoever attaches, as one JSON object; so a profile of this process
and one that is watched from outside are made of the same things.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from aieflow.gpt2.trainer import Trainer, training_graph
from aieflow.ops.errors import InputError, PlanError, ProfileError
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.runtime.bounds import bound
from aieflow.runtime.machine import Machine
from aieflow.runtime.needs import needs
from aieflow.runtime.outline import Outline, OutlinedStep, Recording, outline, recording
from aieflow.runtime.schedule import device_of
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.computer_profile import measured_cost


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """A device as it is shown."""

    name: str
    identity: str
    is_emulated: bool


@dataclass(frozen=True, slots=True)
class Foretold:
    """What this computer's calibration says of a training step; all simulated."""

    seconds: float
    bound_s: float
    steps_s: tuple[float, ...]  # each step's work, by its index
    recording: Recording


@dataclass(frozen=True, slots=True)
class Subject:
    """What is profiled."""

    model: str
    devices: tuple[DeviceLine, ...]
    policy: str
    tokens: int  # of one training step
    flops: int
    planned_nbytes: int
    outline: Outline
    foretold: Foretold | None
    reason: str  # why nothing is foretold

    @property
    def emulated(self) -> tuple[str, ...]:
        """The names of the devices whose times are no hardware's."""
        return tuple(device.name for device in self.devices if device.is_emulated)

    def device_of(self, lane: str) -> str:
        """What a lane's device is; that of the host for what copies states."""
        known = {device.name: device.identity for device in self.devices}
        return known.get(device_of(lane), self.devices[0].identity)


def device_lines(machine: Machine) -> tuple[DeviceLine, ...]:
    """A machine's devices as they are shown."""
    return tuple(DeviceLine(each.name, each.identity, each.is_emulated) for each in machine.devices)


def subject_of(trainer: Trainer) -> Subject:
    """The subject that a trainer is now; asks the calibration of this computer."""
    config, plan, machine = trainer.config, trainer.plan, trainer.machine
    model = config.model
    sizes = (
        f"GPT-2 {model.parameters / 1e6:.1f} M: L={model.layers} H={model.heads} "
        f"C={model.channels} V={model.vocab_size} B={config.batch_size} T={config.seq_len}"
    )
    if config.grad_accumulation > 1:
        sizes += f" x {config.grad_accumulation}"
    foretold, reason = None, ""
    try:
        foretold = _foretold(trainer)
    except (PlanError, InputError) as error:
        reason = str(error)
    return Subject(
        sizes,
        device_lines(machine),
        plan.schedule.policy,
        config.batch_size * config.grad_accumulation * config.seq_len,
        plan.graph.flops,
        trainer.planned_nbytes,
        outline(plan, CONVERSIONS),
        foretold,
        reason,
    )


def _foretold(trainer: Trainer) -> Foretold:
    plan, devices = trainer.plan, trainer.machine.devices
    if trainer.emulated:
        raise ProfileError(f"{', '.join(trainer.emulated)} emulated: its times are no hardware's")
    cost = measured_cost(devices)
    trace = simulate(plan, MachineStepCost(cost, cost.overheads))
    graph = training_graph(trainer.config)
    least = bound(graph, needs(graph, {device.name: device for device in devices}, cost))
    works = MachineStepCost(cost).of(plan)
    steps_s = tuple(work.seconds for work in works)
    return Foretold(trace.seconds, least.seconds, steps_s, recording(trace))


def subject_message(subject: Subject) -> dict[str, object]:
    """The subject as JSON's types."""
    lanes = list(subject.outline.lanes)
    number = {lane: place for place, lane in enumerate(lanes)}
    foretold = subject.foretold
    return {
        "model": subject.model,
        "devices": [asdict(device) for device in subject.devices],
        "policy": subject.policy,
        "tokens": subject.tokens,
        "flops": subject.flops,
        "planned_nbytes": subject.planned_nbytes,
        "lanes": lanes,
        "steps": [
            [number[s.lane], s.name, s.work, s.cause, list(s.waits), s.flops, s.nbytes]
            for s in subject.outline.steps
        ],
        "foretold": None if foretold is None else asdict(foretold),
        "reason": subject.reason,
    }


def subject_from(message: Mapping[str, object]) -> Subject:
    """The subject that a message holds; raises KeyError, TypeError or ValueError for another."""
    content: Any = message
    lanes = [str(lane) for lane in content["lanes"]]
    steps = tuple(
        OutlinedStep(lanes[lane], name, work, cause, tuple(waits), flops, nbytes)
        for lane, name, work, cause, waits, flops, nbytes in content["steps"]
    )
    programs: dict[str, list[int]] = {lane: [] for lane in lanes}
    for index, step in enumerate(steps):
        programs[step.lane].append(index)
    found = content["foretold"]
    foretold = None
    if found is not None:
        times = found["recording"]
        foretold = Foretold(
            found["seconds"],
            found["bound_s"],
            tuple(found["steps_s"]),
            Recording(times["wall_ns"], tuple(times["starts_ns"]), tuple(times["ends_ns"])),
        )
    return Subject(
        content["model"],
        tuple(DeviceLine(**device) for device in content["devices"]),
        content["policy"],
        content["tokens"],
        content["flops"],
        content["planned_nbytes"],
        Outline(steps, {lane: tuple(program) for lane, program in programs.items()}),
        foretold,
        content["reason"],
    )
