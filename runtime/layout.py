"""From the device of each node to a plan: chains expanded, lanes chosen, steps laid out."""

import contextlib
from collections.abc import Mapping, Sequence

from aieflow.devices.base import Device
from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph
from aieflow.ops.kernel import Kernels
from aieflow.profiles.cost import TYPICAL_CORE
from aieflow.runtime.device_memory import require_memory
from aieflow.runtime.expansion import Expansion, expand
from aieflow.runtime.lookahead import look_ahead
from aieflow.runtime.ordering import ordered, reordered
from aieflow.runtime.plan import Plan, compile_plan
from aieflow.runtime.policies.cpu import schedule_lanes
from aieflow.runtime.policies.division import WHOLE, Division
from aieflow.runtime.schedule import Schedule, Times
from aieflow.runtime.transfer import reaches, separate_values


def laid_out(
    expansion: Expansion, devices: Mapping[str, Device], policy: str, division: Division = WHOLE
) -> Schedule:
    """The lanes of all nodes, which stand in program order; raises PlanError without a kernel."""
    return _lanes(expansion, devices, policy, True, division, None)


def compiled(
    graph: Graph,
    homes: Sequence[str],
    devices: Mapping[str, Device],
    policy: str,
    slots: int,
    divided: bool = True,
    times: Times | None = None,
    division: Division = WHOLE,
) -> Plan:
    """The plan with node n on device `homes[n]`.

    With `divided` False, undivided nodes on one lane of a device. `times` says when nodes of the
    expanded graph are to begin and end, by name: they then stand in that order, and on the lanes
    that are free by then; else devices and the host look ahead (`runtime.lookahead`). Where several
    devices run, a run that fails leaves its states as they were, and as long as the devices have
    the memory, none waits for another's. Raises PlanError for an op without a kernel, and where
    slots do not allow the order.
    """
    kernels, reach = _kernels(devices), reaches(devices)
    expansion = expand(graph, homes, kernels)
    if times is not None:
        placements = [devices[home].lanes[:1] for home in expansion.homes]
        separate = separate_values(expansion.graph, placements, reach)
        starts = {name: start for name, (start, _) in times.items()}
        order = ordered(expansion.graph, starts, separate, slots)
        places = tuple(expansion.homes[index] for index in order)
        expansion = Expansion(reordered(expansion.graph, order), places, expansion.derived)
    else:
        host_lanes = len(next(iter(devices.values())).lanes) if divided else 1
        expansion = look_ahead(expansion, kernels, reach, host_lanes, slots)
    schedule = _lanes(expansion, devices, policy, divided, division, times)
    used = set(expansion.homes)

    def plan(roomy: bool) -> Plan:
        return compile_plan(
            expansion.graph,
            schedule,
            kernels,
            reach,
            derived=expansion.derived,
            slots=slots,
            saves=any(reach[name].copy_lanes is not None for name in used),
            roomy=roomy,
        )

    if len(used) > 1:
        found = plan(roomy=True)
        with contextlib.suppress(PlanError):
            require_memory(tuple(devices.values()), found.nbytes, found)
            return found
    return plan(roomy=False)


def _kernels(devices: Mapping[str, Device]) -> Kernels:
    return {name: device.kernels for name, device in devices.items()}


def _lanes(
    expansion: Expansion,
    devices: Mapping[str, Device],
    policy: str,
    divided: bool,
    division: Division,
    times: Times | None,
) -> Schedule:
    used = [name for name in devices if name in set(expansion.homes)]
    lanes = {name: devices[name].lanes[: None if divided else 1] for name in used}
    return schedule_lanes(
        policy,
        expansion.graph,
        expansion.homes,
        _kernels(devices),
        lanes,
        reaches(devices),
        TYPICAL_CORE,
        division,
        times,
    )
