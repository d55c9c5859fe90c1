"""What the NPU's driver tells through its `GET_INFO` ioctl: sensors and clocks.

Layouts are those of Linux' `include/uapi/drm/amdxdna_accel.h` (6.14 and later; temperatures came
after). Kernels before 7.0 know no sensors, and Phoenix and Hawk Point (XDNA 1) refuse them on all:
that is OSError here. A record's value counts in units of 10^`unitm`.

To be asked keeps an NPU awake: the driver resumes it, and its pause before sleep begins anew. A
refusal is an error in the kernel's log, so who is refused must not ask twice.
"""

import ctypes
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

# Called with a descriptor, a request and its argument, which it changes; raises OSError.
Ioctl = Callable[[int, int, bytearray], int]
Kind = Literal["power", "utilization", "temperature"]

KINDS: tuple[Kind, ...] = ("power", "utilization", "temperature")  # amdxdna_sensor_type
GET_INFO = struct.Struct("=IIQ")  # amdxdna_drm_get_info: param, buffer_size, buffer
SENSOR = struct.Struct("=64s4I64s16sbB6x")  # amdxdna_drm_query_sensor
CLOCKS = struct.Struct("=16sI4x16sI4x")  # amdxdna_drm_query_clock_metadata: MP-NPU, H
QUERY_CLOCKS, QUERY_SENSORS = 3, 4  # amdxdna_drm_get_param
# _IOWR('d', DRM_COMMAND_BASE + DRM_AMDXDNA_GET_INFO, struct amdxdna_drm_get_info)
REQUEST = 3 << 30 | GET_INFO.size << 16 | ord("d") << 8 | (0x40 + 7)
MOST_SENSORS = 32  # there are power, temperature, and one for each of 8 columns
UNKNOWN = (0xFFFF, 0xFFFFFFFF)  # what drivers say where the platform told them nothing


@dataclass(frozen=True, slots=True)
class NpuSensor:
    """One record: W, a share of 1 or degrees C; None where the driver has no value."""

    kind: Kind
    label: str
    value: float | None


def query_sensors(ioctl: Ioctl, descriptor: int) -> list[NpuSensor]:
    """All that the driver has; raises OSError where it refuses."""
    answer = _query(ioctl, descriptor, QUERY_SENSORS, MOST_SENSORS * SENSOR.size)
    found = []
    for place in range(len(answer) // SENSOR.size):
        label, value, _, _, _, _, _, unitm, kind = SENSOR.unpack_from(answer, place * SENSOR.size)
        if kind >= len(KINDS):
            continue  # of a newer driver
        scale = 10.0**unitm / (100 if KINDS[kind] == "utilization" else 1)
        text = label.partition(b"\0")[0].decode(errors="replace")
        found.append(NpuSensor(KINDS[kind], text, None if value in UNKNOWN else value * scale))
    return found


def query_clock_hz(ioctl: Ioctl, descriptor: int) -> float | None:
    """The clock of the array (H clock); None where it is off. Raises OSError."""
    answer = _query(ioctl, descriptor, QUERY_CLOCKS, CLOCKS.size)
    if len(answer) < CLOCKS.size:
        return None
    _, _, _, mhz = CLOCKS.unpack(answer)
    return mhz * 1e6 or None


def _query(ioctl: Ioctl, descriptor: int, param: int, nbytes: int) -> bytes:
    buffer = ctypes.create_string_buffer(nbytes)
    request = bytearray(GET_INFO.pack(param, nbytes, ctypes.addressof(buffer)))
    ioctl(descriptor, REQUEST, request)
    _, written, _ = GET_INFO.unpack(request)
    return buffer.raw[: min(written, nbytes)]
