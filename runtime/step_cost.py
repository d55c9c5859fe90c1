"""What each step of a plan costs: which device works, for how long alone, and at what power.

A node on a compute lane is its device's work. All else (nodes and transfers on copy lanes, saved
states) is the host's: there it costs time and power, and there it disturbs others.

Where it was measured what a step takes beyond its work (until its lane wakes, say), that is part of
its seconds, so that a simulator for which waits cost nothing foretells what a run takes.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from aieflow.profiles.cost import CostModel
from aieflow.profiles.machine_cost import HOST
from aieflow.profiles.overhead import NO_OVERHEADS, Overheads, PlanOverheads, gap_kind
from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.schedule import device_of


@dataclass(frozen=True, slots=True)
class StepWork:
    """What one step takes."""

    device: str  # that does it
    seconds: float  # while no other device is busy
    watts: float = 0.0  # on top of the idle power, meanwhile


class StepCost(Protocol):
    """The costs of the steps of any plan."""

    @property
    def name(self) -> str:
        """The machine."""
        ...

    @property
    def idle_w(self) -> float:
        """Watts of the whole machine while nothing runs."""
        ...

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        """What each step of a plan takes, by its index."""
        ...

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """How many times longer a device's steps take while other devices are busy, too."""
        ...


@dataclass(frozen=True, slots=True)
class MachineStepCost:
    """The step costs that a machine's cost model foretells, and what steps take beside work."""

    machine: CostModel
    overheads: Overheads = NO_OVERHEADS

    @property
    def name(self) -> str:
        """The machine and its power source."""
        return self.machine.name

    @property
    def idle_w(self) -> float:
        """Watts of the whole machine while nothing runs."""
        return self.machine.idle_w

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        """What each step of a plan takes, by its index."""
        nbytes = {value.name: value.spec.nbytes for value in plan.graph.values}
        work_s: list[float] = []
        for step in plan.steps:
            if step.kind == "node":
                node = plan.node_of(step)
                work_s.append(self.machine.node_s(working_device(step), node, step.parts))
            elif step.kind == "save":
                work_s.append(self.machine.copy_s(nbytes[step.value]))
            else:
                work_s.append(self.machine.transfer_s(device_of(step.lane), nbytes[step.value]))
        beside = self._beside(plan, work_s)
        works: list[StepWork] = []
        begun: set[str] = set()  # lanes
        for step, seconds in zip(plan.steps, work_s, strict=True):
            is_first = step.lane not in begun
            begun.add(step.lane)
            taken_s = beside.seconds(seconds, step.lane, _after(plan, step), is_first)
            device = working_device(step)
            works.append(StepWork(device, taken_s, self.machine.lane_w(device)))
        return tuple(works)

    def _beside(self, plan: Plan, work_s: Sequence[float]) -> PlanOverheads:
        """The overheads of a plan whose steps have so many seconds of work."""
        computing = [step for step in plan.steps if ".compute" in step.lane]
        total_s = sum(work_s[step.index] for step in computing)
        kinds = Counter(gap_kind(step.lane, _after(plan, step)) for step in plan.steps)
        devices = ",".join(sorted({device_of(step.lane) for step in computing}))
        return self.overheads.of(devices, kinds, total_s / max(1, len(computing)))

    def slowdown(self, device: str, others: Collection[str]) -> float:
        """How many times longer a device's steps take while other devices are busy, too."""
        return self.machine.slowdown(device, others)


def working_device(step: Step) -> str:
    """The device that does a step's work: the host where the lane only copies and converts."""
    return HOST if ".copy" in step.lane else device_of(step.lane)


def _after(plan: Plan, step: Step) -> list[str]:
    """The lanes that a step waits for."""
    return [plan.steps[wait].lane for wait in step.waits]
