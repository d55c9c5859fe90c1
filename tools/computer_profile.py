"""The measured profile of this computer: where it lies, and the cost model that comes of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import platformdirs

from aieflow.devices.base import Device
from aieflow.devices.registry import survey
from aieflow.ops.errors import ProfileError
from aieflow.profiles.measured import Fingerprint, MeasuredProfile
from aieflow.profiles.measured_cost import MeasuredCost, missing
from aieflow.profiles.store import read_profile
from aieflow.runtime.step_cost import MachineStepCost
from aieflow.tools.fingerprint import fingerprint, power_source


def profile_file() -> Path:
    """Where the profile is kept: in a folder of the user's, which need not exist yet."""
    return platformdirs.user_data_path("aieflow", appauthor=False) / "profile.json"


def fingerprints(devices: Iterable[Device]) -> dict[str, Fingerprint]:
    """The facts of opened devices, by name, as they are now."""
    opened = {device.name: device for device in devices}
    findings = {finding.device: finding for finding in survey(names=opened)}
    power = power_source()
    return {name: fingerprint(device, findings[name], power) for name, device in opened.items()}


def measured_cost(devices: Iterable[Device], file: Path | None = None) -> MeasuredCost:
    """The cost model of opened devices, by the profile in `file` (default: the computer's).

    Raises ProfileError where a device was not calibrated or has changed since, and InputError for
    a file that is damaged.
    """
    opened = list(devices)
    profile = read_profile(file or profile_file()) or MeasuredProfile()
    for name, facts in fingerprints(opened).items():
        if name not in profile.fingerprints:
            raise missing(name)
        changes = profile.changes(name, facts)
        if changes:
            raise ProfileError(
                f"the calibration of {name} is stale ({'; '.join(changes)}): run "
                f"`aieflow calibrate --device {name}`"
            )
    return MeasuredCost(profile, {device.name: device.kernels for device in opened})


def measured_step_cost(devices: Mapping[str, Device], file: Path | None = None) -> MachineStepCost:
    """The step costs of plans on opened devices; raises as `measured_cost` does."""
    cost = measured_cost(devices.values(), file)
    return MachineStepCost(cost, cost.overheads)
