"""All sensors of this computer that concern a run, read together; no rights of root are needed.

What is absent has no value and the reason instead. Nothing is asked of a device that the run does
not use, for to be asked wakes an NPU and keeps it awake; a GPU alone is asked for the package's
watts in any case, where RAPL is closed.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from aieflow.devices.cpu_sensors import CpuSensors
from aieflow.devices.gpu_sensors import GpuSensors
from aieflow.devices.npu_sensors import NpuSensors
from aieflow.devices.power_supply import PowerSupply, power_supply
from aieflow.devices.rapl import Rapl
from aieflow.devices.readings import DeviceReadings, Reading, first_of
from aieflow.devices.surroundings import Surroundings


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What all sensors said at one time."""

    devices: Mapping[str, DeviceReadings]  # by name of the device
    package_w: Reading  # processor with all that is on it; RAPL's, else amdgpu's
    supply: PowerSupply


class Sensors:
    """The sensors of some of `cpu`, `igpu` and `npu`; `pid` is the process that uses them."""

    def __init__(
        self,
        around: Surroundings,
        devices: Collection[str],
        pid: int | None = None,
        npu: NpuSensors | None = None,
    ) -> None:
        self._around = around
        self._devices = devices
        process = os.getpid() if pid is None else pid
        self._rapl = Rapl(around)
        self._cpu = CpuSensors(around)
        self._gpu = GpuSensors(around, process)
        self._npu = npu or NpuSensors(around, process)

    def read(self, now_s: float) -> Snapshot:
        """What they say at a time, in seconds of any clock that goes forward; raises nothing.

        Rates are those since the call before.
        """
        package_w, cores_w = self._rapl.read(now_s)
        found: dict[str, DeviceReadings] = {}
        if "cpu" in self._devices:
            found["cpu"] = self._cpu.read(now_s, package_w, cores_w)
        if "igpu" in self._devices:
            found["igpu"] = self._gpu.read(now_s)
        if "npu" in self._devices:
            found["npu"] = self._npu.read(now_s)
        if package_w.value is None:
            package_w = first_of((package_w, self._gpu.package_power()))
        return Snapshot(found, package_w, power_supply(self._around))

    def close(self) -> None:
        """Let go of what is held open; idempotent."""
        self._npu.close()
