"""What is known of the NPU while it works, by its driver amdxdna.

Watts, degrees and how busy its columns are come from the driver's ioctl (`devices.amdxdna`); where
it refuses, watts and degrees from the driver's hwmon (2026 kernels), and how busy it is from what
the process itself has used of it. XDNA 1 tells its clock alone.
"""

import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from aieflow.devices.amdxdna import Ioctl, Kind, NpuSensor, query_clock_hz, query_sensors
from aieflow.devices.drm_usage import DrmUsage
from aieflow.devices.readings import (
    DeviceReadings,
    Reading,
    absent,
    first_of,
    hwmon_of,
    nothing,
    read_number,
)
from aieflow.devices.surroundings import JOIN_RENDER, DeviceNode, Surroundings, device_nodes

T = TypeVar("T")
DRIVERS = ("amdxdna_accel_driver", "amdxdna")
ENGINES = ("amdxdna_accel_driver", "npu-amdxdna")  # in fdinfo; the second of older drivers
REFUSED = (
    "the NPU's driver does not tell it: XDNA 1 (Phoenix, Hawk Point), Linux before 7.0, or a BIOS "
    "without AMD's PMF"
)


def _ioctl(descriptor: int, request: int, argument: bytearray) -> int:
    return int(fcntl.ioctl(descriptor, request, argument, True))


class NpuSensors:
    """The NPU's sensors; holds its device node open until `close`."""

    def __init__(self, around: Surroundings, pid: int, ioctl: Ioctl = _ioctl) -> None:
        self._around = around
        self._ioctl = ioctl
        self._usage = DrmUsage(around, pid, DRIVERS, ENGINES)
        self._descriptor: int | None = None
        self._refusals: dict[str, str] = {}  # query -> why it is not asked again

    def read(self, now_s: float) -> DeviceReadings:
        """What they say now."""
        nodes = device_nodes(self._around, "/dev/accel", "accel*", "/sys/class/accel")
        ours = [node for node in nodes if node.driver in (None, "amdxdna")]
        if not ours:
            return nothing("no NPU in /dev/accel")
        found = self._ask(ours[0], query_sensors)
        busy = _of(found, "utilization")
        if busy.value is None:
            busy = first_of((busy, self._usage.read(now_s)))
        hwmon = self._hwmon(ours[0])
        return DeviceReadings(
            first_of((_of(found, "power"), hwmon["power1_input"])),
            first_of((_of(found, "temperature"), hwmon["temp1_input"])),
            self._clock(ours[0]),
            busy,
        )

    def close(self) -> None:
        """Let go of the device node; idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _clock(self, node: DeviceNode) -> Reading:
        answer = self._ask(node, query_clock_hz)
        if isinstance(answer, str):
            return absent(answer)
        if answer is None:
            return absent("the NPU's clock is off, or not told")
        return Reading(answer, "H clock as set, amdxdna")

    def _ask(self, node: DeviceNode, query: Callable[[Ioctl, int], T]) -> T | str:
        """What the driver answers, or why it does not; who was refused does not ask again."""
        name = query.__name__
        if name in self._refusals:
            return self._refusals[name]
        try:
            if self._descriptor is None:
                file = self._around.path(node.path)
                self._descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
            return query(self._ioctl, self._descriptor)
        except OSError as error:
            if error.errno == errno.EACCES:
                return f"you may not open the NPU: {JOIN_RENDER}"
            if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY):
                self._refusals[name] = REFUSED
                return REFUSED
            with suppress(OSError):  # gone, say: the next time it is opened anew
                self.close()
            return f"the NPU's driver: {error.strerror}"

    def _hwmon(self, node: DeviceNode) -> dict[str, Reading]:
        folder = hwmon_of(self._around.path(f"/sys/class/accel/{Path(node.path).name}/device"))
        scales = {"power1_input": 1e-6, "temp1_input": 1e-3}
        if folder is None:
            return dict.fromkeys(scales, absent("amdxdna has no hwmon: it came in 2026"))
        return {
            name: read_number(self._around, folder / name, f"the NPU, amdxdna {name}", scale)
            for name, scale in scales.items()
        }


def _of(found: list[NpuSensor] | str, kind: Kind) -> Reading:
    """The mean of the records of a kind; columns have one each."""
    if isinstance(found, str):
        return absent(found)
    values = [each.value for each in found if each.kind == kind and each.value is not None]
    if not values:
        return absent(f"the NPU's driver tells no {kind}")
    label = f"mean of its columns ({len(values)})" if kind == "utilization" else "the NPU"
    return Reading(fmean(values), f"{label}, amdxdna")
