"""What is known of the GPU while it works: watts, degrees, clock, how busy it is.

From amdgpu's hwmon and `gpu_busy_percent`; of Intel's drivers (i915, xe) fdinfo alone is read. On
an APU the watts that amdgpu tells are those of the whole package (`power1_average`, or
`power1_input` on newer kernels), so they are a package's meter where RAPL is closed. It is an APU's
where amdgpu has a voltage called vddnb: other cards have none.
"""

from pathlib import Path

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
from aieflow.devices.surroundings import Surroundings, device_nodes, read_text

DRIVERS = ("amdgpu", "i915", "xe")
ENGINES = ("gfx", "compute", "render")
NO_CARD = f"no GPU of {', '.join(DRIVERS)} in /dev/dri"
POWER = ("power1_average", "power1_input")


class GpuSensors:
    """The sensors of the GPU: of several the first that is a part of the processor."""

    def __init__(self, around: Surroundings, pid: int) -> None:
        self._around = around
        self._usage = DrmUsage(around, pid, DRIVERS, ENGINES)

    def read(self, now_s: float) -> DeviceReadings:
        """What they say now."""
        folder = self._card()
        if folder is None:
            return nothing(NO_CARD)
        hwmon = hwmon_of(folder)
        busy = self._read(folder / "gpu_busy_percent", "all programs, amdgpu", 1e-2)
        if busy.value is None:
            busy = first_of((busy, self._usage.read(now_s)))
        if hwmon is None:
            known = nothing(f"{self._around.shown(folder)}: its driver has no hwmon")
            return DeviceReadings(known.power_w, known.temperature_c, known.clock_hz, busy)
        label = read_text(hwmon / "temp1_label").strip()
        clock = self._read(hwmon / "freq1_input", "shaders, amdgpu freq1")
        if clock.value == 0:
            clock = absent("the GPU's clock is off")
        return DeviceReadings(
            self._power(hwmon),
            self._read(hwmon / "temp1_input", f"amdgpu {label}".strip(), 1e-3),
            clock,
            busy,
        )

    def package_power(self) -> Reading:
        """Watts of the whole package, where the GPU is a part of it and tells them."""
        folder = self._card()
        hwmon = None if folder is None else hwmon_of(folder)
        if hwmon is None or not _is_apu(hwmon):
            return absent("no amdgpu on the package tells its watts")
        return self._power(hwmon)

    def _power(self, hwmon: Path) -> Reading:
        of = "package" if _is_apu(hwmon) else "the card"
        found = first_of([self._read(hwmon / name, f"{of}, amdgpu {name}", 1e-6) for name in POWER])
        return found if found.value != 0 else absent(f"{found.source}: tells 0 W")

    def _read(self, file: Path, source: str, scale: float = 1.0) -> Reading:
        return read_number(self._around, file, source, scale)

    def _card(self) -> Path | None:
        """What sysfs has of the GPU's device."""
        nodes = device_nodes(self._around, "/dev/dri", "renderD*", "/sys/class/drm")
        folders = [
            self._around.path(f"/sys/class/drm/{Path(node.path).name}/device")
            for node in nodes
            if node.driver in DRIVERS
        ]
        for folder in folders:
            hwmon = hwmon_of(folder)
            if hwmon is not None and _is_apu(hwmon):
                return folder
        return next(iter(folders), None)


def _is_apu(hwmon: Path) -> bool:
    return read_text(hwmon / "in1_label").strip() == "vddnb"
