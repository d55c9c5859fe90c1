"""Reads sensors a few times a second, in a thread beside what is looked at, while somebody looks.

Means are weighted by the time since the reading before. A training run never makes such a log: its
watchers do, each in a process of his own; `aieflow profile` makes one in its own process.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from types import TracebackType
from typing import Protocol, Self

from aieflow.devices.readings import DeviceReadings, Reading, absent, nothing
from aieflow.devices.registry import DEVICES, here
from aieflow.devices.sensors import Sensors, Snapshot
from aieflow.runtime.transfer import HOST
from aieflow.tools.profile_subject import DeviceLine

EVERY_S = 0.5
LATEST = 4  # readings that what is shown live is the mean of: two seconds
MOST = 7200  # readings that are kept at most: an hour
JOIN_S = 1.0  # a driver that takes longer to answer is left alone
UNREAD = absent("no sensor was read")


class Readable(Protocol):
    """What a log reads: `devices.sensors.Sensors` is one."""

    def read(self, now_s: float) -> Snapshot:
        """What the sensors say now."""
        ...

    def close(self) -> None:
        """Let go of them."""
        ...


@dataclass(frozen=True, slots=True)
class Sensed:
    """What sensors said over some time, in the mean."""

    devices: Mapping[str, DeviceReadings] = field(default_factory=dict)
    package_w: Reading = UNREAD
    battery_w: Reading = UNREAD
    power_source: str = "unknown"
    readings: int = 0
    reading_s: float | None = None  # that one reading of all takes, the median

    def of(self, device: str) -> DeviceReadings:
        """Those of a device; the host's for what copies states, nothing where there are none."""
        unread = nothing(UNREAD.source)
        host = self.devices.get("cpu", unread) if device == HOST else unread
        return self.devices.get(device, host)


class SensorLog:
    """A context manager around what is looked at; `latest` readings are kept."""

    def __init__(
        self,
        sensors: Readable,
        without: Mapping[str, str] | None = None,
        latest: int = MOST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sensors = sensors
        self._without = without or {}  # devices that have none of their own, and why
        self._clock = clock
        self._lock = threading.Lock()  # of what follows
        self._snapshots: deque[tuple[float, Snapshot]] = deque(maxlen=latest)  # and seconds before
        self._costs_s: deque[float] = deque(maxlen=latest)
        self._before_s: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="aieflow sensors", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            self._sensors.close()

    def read(self) -> None:
        """Read all sensors once."""
        now_s = self._clock()
        snapshot = self._sensors.read(now_s)
        cost_s = self._clock() - now_s
        with self._lock:
            seconds = 0.0 if self._before_s is None else now_s - self._before_s
            self._before_s = now_s
            self._snapshots.append((seconds, snapshot))
            self._costs_s.append(cost_s)

    def sensed(self) -> Sensed:
        """What was read, in the mean over the time that is kept."""
        with self._lock:
            kept, costs_s = tuple(self._snapshots), tuple(self._costs_s)
        if not kept:
            return Sensed({name: nothing(reason) for name, reason in self._without.items()})
        last = kept[-1][1]
        devices = {
            name: DeviceReadings(
                **{
                    quantity: mean([(s, each.devices[name].by_name[quantity]) for s, each in kept])
                    for quantity in readings.by_name
                }
            )
            for name, readings in last.devices.items()
        }
        return Sensed(
            devices | {name: nothing(reason) for name, reason in self._without.items()},
            mean([(seconds, each.package_w) for seconds, each in kept]),
            mean([(seconds, each.supply.battery_w) for seconds, each in kept]),
            last.supply.source,
            len(kept),
            median(costs_s),
        )

    def _run(self) -> None:
        while not self._stop.is_set():
            self.read()
            self._stop.wait(EVERY_S)
        self.read()  # so that a short time, too, lies between two readings


def mean(readings: Sequence[tuple[float, Reading]]) -> Reading:
    """The mean of those with a value, each by its seconds; without one the last one's reason.

    >>> mean([(1.0, Reading(10.0, "a")), (3.0, Reading(20.0, "a")), (1.0, Reading(None, "gone"))])
    Reading(value=17.5, source='a')
    """
    known = [(seconds, each.value) for seconds, each in readings if each.value is not None]
    if not known:
        return readings[-1][1] if readings else UNREAD
    source = next(each.source for _, each in reversed(readings) if each.value is not None)
    total_s = sum(seconds for seconds, _ in known)
    if not total_s:  # a single reading
        return Reading(sum(value for _, value in known) / len(known), source)
    return Reading(sum(seconds * value for seconds, value in known) / total_s, source)


def sensor_log(
    devices: Sequence[DeviceLine], pid: int | None = None, latest: int = MOST
) -> SensorLog:
    """A log of the devices of a run that a process does (None: this one)."""
    without = {each.name: reason for each in devices if (reason := _why_none(each))}
    names = [each.name for each in devices if each.name not in without]
    return SensorLog(Sensors(here(), names, pid), without, latest)


def _why_none(device: DeviceLine) -> str:
    """Why a device has no sensors; nothing for those that may have some."""
    if device.is_emulated:
        return "emulated: no hardware works there"
    if "OpenCL on the CPU" in device.identity:
        return "OpenCL on the CPU: it has those of the CPU"
    return "" if device.name in DEVICES else "it has no sensors that are known"
