"""What goes wrong in the emulated XRT, and when: the calls that a test has chosen to fail.

Calls are counted by kind. A *refused* call raises RuntimeError with the words of XRT or its driver;
after a *lost* one the device is gone, so every later call is refused too. An execution can also end
in a bad state, never end, or give a wrong result and say nothing.
"""

import threading
from dataclasses import dataclass
from typing import Literal

CallKind = Literal[
    "device", "register", "hw_context", "bo", "set_arg", "sync.in", "sync.out", "start", "execution"
]
Fault = Literal["refused", "lost", "error", "abort", "timeout", "hang", "flip"]
EXECUTION_FAULTS: tuple[Fault, ...] = ("lost", "error", "abort", "timeout", "hang", "flip")
CALL_FAULTS: tuple[Fault, ...] = ("refused", "lost")

# Seen with XRT 2.13 to 2.23 and the amdxdna driver.
WORDS: dict[CallKind, str] = {
    "device": "No such device with index '0'",
    "register": "DRM_IOCTL_AMDXDNA_GET_INFO IOCTL failed (err=-95): Operation not supported",
    "hw_context": "DRM_IOCTL_AMDXDNA_CREATE_HWCTX IOCTL failed (err=-22): Invalid argument",
    "bo": "DRM_IOCTL_AMDXDNA_CREATE_BO IOCTL failed (err=-22): Invalid argument",
    "set_arg": "DRM_IOCTL_AMDXDNA_GET_BO_INFO IOCTL failed (err=-22): Invalid argument",
    "sync.in": "DRM_IOCTL_AMDXDNA_SYNC_BO IOCTL failed (err=-22): Invalid argument",
    "sync.out": "DRM_IOCTL_AMDXDNA_SYNC_BO IOCTL failed (err=-22): Invalid argument",
    "start": "DRM_IOCTL_AMDXDNA_EXEC_CMD IOCTL failed (err=-2): No such file or directory",
    "execution": "",
}
LOST = "DRM_IOCTL_AMDXDNA_EXEC_CMD IOCTL failed (err=-19): No such device"


@dataclass(frozen=True, slots=True)
class _Planned:
    how: Fault
    words: str


class Faults:
    """Counts calls and says which of them fail; any thread may ask."""

    def __init__(self) -> None:
        self.is_lost = False
        self._lock = threading.Lock()
        self._calls: dict[CallKind, int] = dict.fromkeys(WORDS, 0)
        self._planned: dict[tuple[CallKind, int], _Planned] = {}

    def plan(self, kind: CallKind, at: int, how: Fault, words: str | None = None) -> None:
        """Fail the `at`-th call of `kind` from now on (1 is the next); raises ValueError."""
        allowed = EXECUTION_FAULTS if kind == "execution" else CALL_FAULTS
        if kind not in WORDS or how not in allowed or at < 1:
            raise ValueError(
                f"no fault ({kind!r}, {at}, {how!r}): {kind} can be {allowed}, at >= 1"
            )
        with self._lock:
            self._planned[kind, self._calls[kind] + at] = _Planned(how, words or WORDS[kind])

    def check(self, kind: CallKind) -> Fault | None:
        """Count a call. Raises RuntimeError if it is refused; returns how an execution fails."""
        with self._lock:
            self._calls[kind] += 1
            planned = self._planned.pop((kind, self._calls[kind]), None)
            if planned is not None and planned.how == "lost":
                self.is_lost = True
            if self.is_lost:
                if kind == "execution":
                    return "lost"
                raise RuntimeError(LOST)
        if planned is None:
            return None
        if planned.how == "refused":
            raise RuntimeError(planned.words)
        return planned.how
