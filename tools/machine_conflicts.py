"""Options that say where a program runs, but would have no effect beside each other: refused.

Only what was given on this command line counts. What a run was begun with may have lost its object
since, as when the run goes on without the device that it was for.
"""

from collections.abc import Mapping

from aieflow.ops.errors import InputError
from aieflow.runtime.policies.fixed import RULES
from aieflow.tools.machine_options import Settings

# The device that an option is for, and what messages call it.
OBJECTS = {
    "lanes": ("cpu", "the CPU"),
    "slots": ("npu", "the NPU"),
    "xclbin": ("npu", "the NPU"),
    "machine": ("npu", "the NPU, which alone is emulated"),
    "allow_fp16": ("igpu", "the iGPU"),
}


def require_effect(
    given: Settings,
    names: tuple[str, ...],
    machine: str | None,
    policy: str,
    places: Mapping[str, str],
    is_auto: bool,
) -> None:
    """Raise InputError for the first of the options `given` that nothing would come of.

    `names` are the devices, which aieflow itself chose where `is_auto` (then an option may be for
    one that is not there); `machine` is the described one, `places` the device of ops placed by
    hand.
    """
    if given.get("xclbin") is not None and machine is not None:
        raise InputError(
            f"--xclbin {given['xclbin']}: the NPU of --machine {machine} is emulated, with a "
            "design of its own: leave one of the two out"
        )
    devices = ",".join(names)
    for name, (device, called) in OBJECTS.items():
        if given.get(name) is not None and device not in names and not is_auto:
            raise InputError(
                f"{_option(given, name)}: is for {called}, but the devices are {devices}: leave "
                f"it out, or add {device}: --devices {_with(names, device)}"
            )
    if given.get("check_devices") and not is_auto:
        rule = RULES.get(policy, {"*": ""})
        home = places.get("matmul", rule.get("matmul", rule["*"]))
        if names == ("cpu",):
            raise InputError(
                "--check-devices: the CPU is the only device, and what it computes is not checked: "
                "leave it out, or name another: --devices cpu,igpu"
            )
        if home == "cpu":
            raise InputError(
                f"--check-devices: by --policy {policy} no product runs on another device than the "
                "CPU: leave it out, or place them: --place matmul=DEVICE"
            )
    if given.get("on_device_failure") == "exclude" and len(names) == 1 and not is_auto:
        raise InputError(
            f"--on-device-failure exclude: without {devices} no device is left: leave it out, or "
            f"name others: --devices {_with(names, 'cpu' if devices != 'cpu' else 'igpu')}"
        )


def _option(given: Settings, name: str) -> str:
    option, value = f"--{name.replace('_', '-')}", given[name]
    return option if value is True else f"{option} {value}"


def _with(names: tuple[str, ...], device: str) -> str:
    """The devices' names with one more, the CPU first."""
    return ",".join(sorted({*names, device}))
