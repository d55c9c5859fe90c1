"""Decides by costs where nodes run: one of the list schedulers, or the best of many plans.

What was decided is kept under a hash of everything it followed from: what each node takes on each
device, transfers, contention and power, the policy and its settings, and the memory of described
devices. It is kept in memory, and in a folder where one is given. A file there that cannot be
read is made anew, which `notes` then says.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from aieflow.devices.base import Device
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph
from aieflow.ops.kernel import Kernels
from aieflow.profiles.cost import CostModel
from aieflow.runtime.device_memory import require_memory
from aieflow.runtime.expansion import Expansion, Expansions
from aieflow.runtime.layout import compiled, laid_out
from aieflow.runtime.policies.best import Effort, Found, Judged, Option, Tried, best, listed
from aieflow.runtime.policies.division import WHOLE, Division, divisions, lean
from aieflow.runtime.policies.estimate import Estimator
from aieflow.runtime.policies.objective import Objective
from aieflow.runtime.policies.tasks import Tasks, tasks_of
from aieflow.runtime.policies.ways import with_ways
from aieflow.runtime.schedule import Schedule, Times
from aieflow.runtime.simulate import joules, simulate
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.runtime.transfer import reaches

FORMAT = 3  # of the files; another one is made anew


@dataclass(slots=True)
class Choices:
    """What was decided so far, by hash; in a folder, too, where there is one."""

    folder: Path | None = None
    notes: list[str] = field(default_factory=list)  # what a user may want to know
    _held: dict[str, Found] = field(default_factory=dict)

    def get(self, key: str) -> Found | None:
        """What was decided under a hash, if anything was."""
        if key not in self._held and self.folder is not None:
            file = self._file(key)
            try:
                self._held[key] = _read(file.read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.notes.append(f"{file}: not a readable schedule ({error}): it is made anew")
                return None
        return self._held.get(key)

    def put(self, key: str, found: Found) -> None:
        """Keep a decision. That the folder cannot be written is noted, and no fault."""
        self._held[key] = found
        if self.folder is None:
            return
        file = self._file(key)
        hidden = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            hidden.write_text(_text(found), encoding="utf-8")
            hidden.replace(file)
        except OSError as error:
            self.notes.append(f"{file}: the schedule cannot be kept: {error.strerror}")
            with contextlib.suppress(OSError):
                hidden.unlink()

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"schedule-{key[:32]}.json"


def choose(
    graphs: Mapping[int, Graph],
    devices: Mapping[str, Device],
    policy: str,
    places: Mapping[str, str],
    slots: int,
    cost: MachineStepCost,
    objective: Objective,
    choices: Choices,
    effort: Effort | None = None,
) -> Found:
    """The decision of one of `fixed.COSTED`; `graphs` by number of shards, `places` by hand.

    Of the list schedulers' decisions, too, the seconds are simulated. Raises PlanError where
    nothing can be placed, or no device has the memory.
    """
    options: list[Option] = []
    _require_places(places, devices)
    kernels, lanes = _kernels_and_lanes(devices)
    for shards, graph in graphs.items():
        tried: tuple[Division, ...] = (WHOLE,)
        expansions = Expansions(graph, kernels)
        if policy == "best":
            tried = divisions(expansions, lanes, cost.machine.node_s)
        for division in tried:
            tasks = _tasks_on(expansions, devices, cost.machine, slots, division)
            tasks = _placed(tasks, graph, places)
            option = Option(shards, graph, tasks, Estimator(tasks), division)
            options.append(_with_more(option, expansions, devices, cost.machine, slots))
    effort = effort or Effort()
    key = _key(options, devices, policy, slots, cost, objective, effort)
    held = choices.get(key)
    if held is not None:
        return held

    def judge(option: Option, homes: Sequence[str], times: Times | None) -> Judged:
        division = option.division
        plan = compiled(option.graph, homes, devices, policy, slots, times=times, division=division)
        require_memory(tuple(devices.values()), plan.nbytes, plan)
        trace = simulate(plan, cost)
        return Judged(trace.seconds, joules(trace, cost))

    found = (
        best(options, judge, objective, effort)
        if policy == "best"
        else listed(options, policy, judge, objective)
    )
    choices.put(key, found)
    return found


def tasks_on(
    graph: Graph,
    devices: Mapping[str, Device],
    cost: CostModel,
    slots: int = 3,
    division: Division = WHOLE,
) -> Tasks:
    """What the nodes of a graph take on devices, the host's first, as their plans would have them.

    Raises PlanError for a node that no device can do.
    """
    kernels, _ = _kernels_and_lanes(devices)
    return _tasks_on(Expansions(graph, kernels), devices, cost, slots, division)


def _tasks_on(
    expansions: Expansions,
    devices: Mapping[str, Device],
    cost: CostModel,
    slots: int,
    division: Division,
) -> Tasks:
    def lay_out(device: str) -> tuple[Expansion, Schedule]:
        expansion = expansions.on(device)
        return expansion, laid_out(expansion, devices, "costs", division)

    graph, around = expansions.graph, reaches(devices)
    return tasks_of(graph, *_kernels_and_lanes(devices), around, cost, lay_out, slots)


def _with_more(
    option: Option,
    expansions: Expansions,
    devices: Mapping[str, Device],
    cost: CostModel,
    slots: int,
) -> Option:
    """An option that knows of more ways to do nodes, where its division has lanes to spare."""
    division, (host, *_) = lean(option.division, option.graph), devices
    if division == option.division:
        return option
    fewer = _tasks_on(expansions, {host: devices[host]}, cost, slots, division)
    tasks = with_ways(option.tasks, fewer)
    more = replace(option, tasks=tasks, estimator=Estimator(tasks), division=division)
    return replace(option, more=more)


def _kernels_and_lanes(
    devices: Mapping[str, Device],
) -> tuple[Kernels, Mapping[str, tuple[str, ...]]]:
    return (
        {name: device.kernels for name, device in devices.items()},
        {name: device.lanes for name, device in devices.items()},
    )


def _require_places(places: Mapping[str, str], devices: Mapping[str, Device]) -> None:
    for op, device in places.items():
        if device not in devices or op not in devices[device].kernels:
            raise PlanError(f"{op} cannot be placed on {device}: it has no kernel for it")


def _placed(tasks: Tasks, graph: Graph, places: Mapping[str, str]) -> Tasks:
    """The same, but an op that is placed by hand can be done there alone."""
    if not places:
        return tasks
    number = {name: place for place, name in enumerate(tasks.devices)}
    rows = zip(graph.nodes, tasks.pieces, strict=True)
    pieces = tuple(
        tuple(
            found if number.get(places.get(node.op.name, ""), device) == device else ()
            for device, found in enumerate(row)
        )
        for node, row in rows
    )
    return replace(tasks, pieces=pieces)


def _key(
    options: list[Option],
    devices: Mapping[str, Device],
    policy: str,
    slots: int,
    cost: MachineStepCost,
    objective: Objective,
    effort: Effort,
) -> str:
    memory = [(name, each.free_nbytes()) for name, each in devices.items() if each.is_emulated]
    spent = replace(effort, threads=0)
    parts: list[object] = [FORMAT, policy, slots, cost.overheads, objective, spent, memory]
    parts += [(each.shards, each.division, each.tasks.fingerprint()) for each in options]
    more = [each.more for each in options if each.more is not None]
    parts += [(each.division, [row[-1] for row in each.tasks.pieces]) for each in more]
    return sha256(repr(parts).encode()).hexdigest()


def _text(found: Found) -> str:
    content = asdict(found)
    return json.dumps({"format": FORMAT, **content}, separators=(",", ":")) + "\n"


def _read(text: str) -> Found:
    """Raises ValueError, KeyError or TypeError for a text that is no decision."""
    content: Any = json.loads(text)
    if not isinstance(content, dict) or content.pop("format") != FORMAT:
        raise ValueError("of another version")
    tried = tuple(Tried(**each) for each in content.pop("tried"))
    homes = tuple(str(name) for name in content.pop("homes"))
    division = Division(**content.pop("division"))
    times = content.pop("times")
    if times is not None:
        times = {name: (begin, end) for name, (begin, end) in times.items()}
    return Found(tried=tried, homes=homes, times=times, division=division, **content)
