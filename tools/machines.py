"""Opens the devices that a command was asked to run on, and wraps them as a machine.

Devices of this computer come from the registry. With a described machine its NPU is emulated: the
emulator is given the latencies of the machine's profile, and every identity says "emulated". The
CPU and the iGPU are this computer's in either case.
"""

import difflib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from aieflow.devices.base import Device
from aieflow.devices.registry import DEVICES, cache_folder, open_device, survey
from aieflow.gpt2.run_config import RunConfig
from aieflow.ops.catalogue import OPS
from aieflow.ops.errors import InputError
from aieflow.profiles.machine_file import load_machine
from aieflow.profiles.measured_cost import NO_WATTS
from aieflow.runtime.choice import Choices
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.policies.fixed import COSTED, POLICIES, RULES, default_policy
from aieflow.tools.computer_profile import measured_step_cost
from aieflow.tools.emulation import open_emulated_npu
from aieflow.tools.machine_conflicts import require_effect
from aieflow.tools.machine_options import SETTINGS, Settings
from aieflow.tools.npu_here import built_xclbin
from aieflow.tools.search import Aim

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class MachineAsked:
    """What the options of `machine_options` said."""

    devices: str | None = None
    machine: str | None = None
    policy: str | None = None
    place: str | None = None
    slots: int = 3
    lanes: int | None = None
    on_device_failure: str = "stop"
    check_devices: bool = False
    xclbin: str | None = None
    allow_fp16: bool = False
    objective: str | None = None
    power_cap_w: float | None = None


def machine_of(config: RunConfig) -> MachineAsked:
    """What a run's settings say of its machine."""
    return MachineAsked(**{name: getattr(config, name) for name in SETTINGS})


@contextmanager
def opened_machine(asked: MachineAsked, given: Settings | None = None) -> Iterator[Machine]:
    """The machine asked for, closed at the end; raises InputError for what does not exist.

    And for what was `given` on the command line, but would have no effect.
    """
    names = _names(asked)
    policy = policy_for(asked.policy, names)
    places = placed_by_hand(asked.place, names)
    is_auto = asked.devices == AUTO
    require_effect(given or {}, names, asked.machine, policy, places, is_auto)
    if asked.check_devices and "cpu" not in names:
        raise InputError(
            f"--check-devices: products of {', '.join(names)} are held against the CPU's: add it: "
            f"--devices cpu,{','.join(names)}"
        )
    profile = None if asked.machine is None else load_machine(asked.machine)
    with ExitStack() as stack:
        devices: list[Device] = []
        for name in names:
            if name == "npu" and profile is not None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                device: Device = open_emulated_npu(profile, folder)
            else:
                device = open_device(
                    name,
                    asked.lanes,
                    cache=cache_folder(),
                    xclbin=_file(asked.xclbin) or (built_xclbin() if name == "npu" else None),
                    allow_fp16=asked.allow_fp16,
                )
            stack.callback(device.close)
            devices.append(device)
        require_kernels(places, devices)
        require_all_ops(devices)
        by_name = {device.name: device for device in devices}
        placement = Placement(
            policy,
            places,
            asked.slots,
            asked.check_devices,
            cost=measured_step_cost(by_name) if policy in COSTED else None,
            choices=Choices(cache_folder()),
        )
        machine = Machine(tuple(devices), placement, asked.on_device_failure == "exclude")
        is_given = any((given or {}).get(name) is not None for name in ("objective", "power_cap_w"))
        if policy in COSTED or is_given:
            machine = Aim(asked.objective, asked.power_cap_w).taken_by(machine)
        require_watts(machine)
        yield machine


def policy_for(asked: str | None, names: tuple[str, ...]) -> str:
    """The policy asked for, or the one for these devices; raises InputError where it is none."""
    policy = asked or default_policy(names)
    if policy not in POLICIES:
        raise InputError(
            f"--policy {policy}: must be one of {', '.join(POLICIES)}{_like(policy, POLICIES)}"
        )
    absent = sorted(set(RULES.get(policy, {}).values()) - {"*", "cpu", *names})
    if absent:
        raise InputError(
            f"--policy {policy}: {', '.join(absent)} is none of the devices, which are "
            f"{', '.join(names)}: add it with --devices, or give another --policy"
        )
    return policy


def _names(asked: MachineAsked) -> tuple[str, ...]:
    """The devices' names, the CPU first where it is among them."""
    text = asked.devices or ("cpu" if asked.machine is None else "cpu,npu")
    if text == AUTO:
        if asked.machine is not None:
            return "cpu", "npu"
        found = [each for each in survey() if each.works]
        chosen = {each.device for each in found if each.is_automatic}
        chosen |= {each.device for each in found if each.device == "npu" and asked.xclbin}
        return tuple(name for name in DEVICES if name in chosen)
    return named_devices(text)


def named_devices(text: str) -> tuple[str, ...]:
    """The devices that `--devices` names, the CPU first; raises InputError for what is none."""
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in DEVICES:
            known = ", ".join((*DEVICES, AUTO))
            if name == AUTO:
                raise InputError(f"--devices {text}: {AUTO} stands alone")
            raise InputError(f"--devices {text}: {name!r} is none of {known}{_like(name, DEVICES)}")
        if names.count(name) > 1:
            raise InputError(f"--devices {text}: {name} stands there twice")
    return tuple(name for name in DEVICES if name in names)


def placed_by_hand(text: str | None, names: tuple[str, ...]) -> dict[str, str]:
    """The device of each op that `--place` names; raises InputError."""
    places: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        op, equals, device = (each.strip() for each in part.partition("="))
        if not equals or not op or not device:
            raise InputError(f"--place {text}: {part!r} is not OP=DEVICE, such as matmul=npu")
        if op not in OPS:
            raise InputError(f"--place {text}: no op is called {op!r}{_like(op, OPS)}")
        if device not in names:
            raise InputError(
                f"--place {text}: {device!r} is none of the devices, which are {', '.join(names)}: "
                'add it with --devices, or give another --place (--place "" for none)'
            )
        if op in places:
            raise InputError(f"--place {text}: {op} stands there twice")
        places[op] = device
    return places


def require_kernels(places: Mapping[str, str], devices: Sequence[Device]) -> None:
    """Raise InputError where an op is placed by hand on a device that has no kernel for it."""
    for op, name in places.items():
        able = [device.name for device in devices if op in device.kernels]
        if name not in able:
            raise InputError(
                f"--place {op}={name}: {name} has no kernel for {op}; "
                f"{', '.join(able) or 'none of the devices'} has"
            )


def require_watts(machine: Machine) -> None:
    """Raise InputError where the objective weighs energy, of which nothing is known."""
    cost, kind = machine.placement.cost, machine.placement.objective.kind
    if cost is not None and kind != "time" and not cost.idle_w:
        raise InputError(
            f"--objective {kind}: {NO_WATTS}: leave it out, or look at a described machine: "
            "aieflow simulate --machine NAME"
        )


def require_all_ops(devices: Sequence[Device]) -> None:
    """Raise InputError where some op has no kernel on any device."""
    missing = [op for op in OPS if not any(op in device.kernels for device in devices)]
    if missing:
        names = ",".join(device.name for device in devices)
        raise InputError(
            f"--devices {names}: no kernel of {', '.join(missing)}: add the CPU: "
            f"--devices cpu,{names}"
        )


def _file(path: str | None) -> Path | None:
    return None if path is None else Path(path)


def _like(name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    """A suggestion, where some name is near."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f": did you mean {near[0]}?" if near else ""
