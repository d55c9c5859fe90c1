"""How long the emulated NPU takes: the latencies that it is given, and the clock that spends them.

A clock either only *counts* (virtual seconds, summed by kind, nothing waits) or also *paces*: what
has a modelled duration then takes at least that long on the wall clock, however fast the emulator
computed it. It may take longer: nothing here can make a slow host fast. So a paced emulation shows
what overlaps what; its figures are emulated ones all the same.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal

Kind = Literal["dispatch", "kernel", "sync.in", "sync.out", "switch", "wake_up"]
Mode = Literal["counted", "paced"]
KINDS: tuple[Kind, ...] = ("dispatch", "kernel", "sync.in", "sync.out", "switch", "wake_up")


@dataclass(frozen=True, slots=True)
class Latencies:
    """What a machine's profile says of its NPU; the default costs nothing."""

    dispatch_s: float = 0.0  # from start to completion of a run, beyond the array's own work
    further_dispatch_s: float = 0.0  # of each run of a runlist after its first
    flops_per_s: float = math.inf  # of a GEMM; its seconds are the larger of the two quotients
    bytes_per_s: float = math.inf  # that its shim DMAs move
    sync_s: float = 0.0  # of each buffer sync, whatever its size
    sync_bytes_per_s: float = math.inf
    switch_s: float = 0.0  # of a command after one of another context: the array is set up anew
    wake_up_s: float = 0.0  # of the first command, and of one after `idle_after_s` of pause
    idle_after_s: float = 5.0
    noise: float = 0.0  # relative; kernels take one of two durations, that much above and below
    seed: int = 0  # of the noise

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_rate = field.name.endswith("_per_s")
            if math.isnan(value) or value < 0 or (is_rate and value == 0):
                raise ValueError(f"Latencies.{field.name} = {value}: must be positive")

    def kernel_s(self, flops: int, nbytes: int) -> float:
        """Seconds of the array for one run, without dispatch and noise."""
        return max(flops / self.flops_per_s, nbytes / self.bytes_per_s)

    def transfer_s(self, nbytes: int) -> float:
        """Seconds of one buffer sync."""
        return self.sync_s + nbytes / self.sync_bytes_per_s


class EmulatedClock:
    """Spends modelled seconds and keeps account of them; `mode` says whether anyone waits."""

    def __init__(self, latencies: Latencies, mode: Mode = "counted") -> None:
        self.latencies = latencies
        self.mode = mode
        self._lock = threading.Lock()
        self._seconds: dict[Kind, float] = dict.fromkeys(KINDS, 0.0)
        self._counts: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._random = random.Random(latencies.seed)
        self._last_command: float | None = None

    @property
    def seconds(self) -> Mapping[Kind, float]:
        """Emulated seconds spent so far, by kind."""
        with self._lock:
            return dict(self._seconds)

    @property
    def counts(self) -> Mapping[Kind, int]:
        """How often each kind was spent."""
        with self._lock:
            return dict(self._counts)

    def now(self) -> float:
        """Wall seconds; what `spend` measures from."""
        return time.perf_counter()

    def spend(
        self,
        costs: Mapping[Kind, float],
        begun: float,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """Note modelled seconds; a paced clock then waits until they have passed since `begun`."""
        with self._lock:
            for kind, seconds in costs.items():
                self._seconds[kind] += seconds
                self._counts[kind] += 1
        if self.mode == "paced":
            left = begun + sum(costs.values()) - self.now()
            if left > 0:
                wait(left)

    def noisy(self, seconds: float) -> float:
        """`seconds` in one of the two modes that kernels were seen to run in."""
        if not self.latencies.noise:
            return seconds
        with self._lock:
            sign = self._random.choice((-1, 1))
        return seconds * (1 + sign * self.latencies.noise)

    def wake_up_s(self) -> float:
        """Seconds that a command beginning now waits for the array to wake.

        Pauses are seen on a paced clock only: a counted one sleeps before its first command alone.
        """
        now = self.now()
        with self._lock:
            last, self._last_command = self._last_command, now
        if last is None or (self.mode == "paced" and now - last > self.latencies.idle_after_s):
            return self.latencies.wake_up_s
        return 0.0

    def note_command_end(self) -> None:
        """From here on the array is idle."""
        with self._lock:
            self._last_command = self.now()
