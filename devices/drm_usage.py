"""How busy one process keeps the engines of a GPU or an NPU: DRM's usage statistics.

`/proc/PID/fdinfo` tells for each open device how long its engines worked for it, in nanoseconds
(kernel documentation, gpu/drm-usage-stats). A client that is open twice (dup, fork) is counted
once. Only the same user may look.
"""

from collections.abc import Collection

from aieflow.devices.readings import Rates, Reading, absent, why_unreadable
from aieflow.devices.surroundings import Surroundings, read_text

Client = tuple[str, str]  # PCI address and number


class DrmUsage:
    """The engines of a driver, as far as one process has used them."""

    def __init__(
        self, around: Surroundings, pid: int, drivers: Collection[str], engines: Collection[str]
    ) -> None:
        self._around = around
        self._pid = pid
        self._drivers, self._engines = drivers, engines
        self._rates = Rates()

    def read(self, now_s: float) -> Reading:
        """The share of time that the busiest kind of engine worked for the process."""
        shown = f"/proc/{self._pid}/fdinfo"
        try:
            clients = self._clients()
        except OSError as error:
            return absent(f"{shown}: {why_unreadable(error)}")
        if not clients:
            return absent(f"{shown}: the process has no {' or '.join(self._drivers)} open")
        shares: dict[str, float | None] = {}  # of each engine; None: known the next time
        for client, fields in clients.items():
            for engine in self._engines:
                text = fields.get(f"drm-engine-{engine}", "").removesuffix("ns").strip()
                if not text.isdecimal():
                    continue
                per_s = self._rates.per_second(f"{client} {engine}", int(text), now_s)
                count = fields.get(f"drm-engine-capacity-{engine}", "")
                engines = int(count) if count.isdecimal() and int(count) else 1
                before = shares.setdefault(engine, None)
                if per_s is not None:
                    shares[engine] = (before or 0.0) + per_s / 1e9 / engines
        known = {engine: share for engine, share in shares.items() if share is not None}
        if not shares:
            return absent(f"{shown}: this driver does not count its engines' time")
        if not known:
            return absent(f"{shown}: two readings are needed")
        busiest = max(known, key=known.__getitem__)
        return Reading(min(1.0, known[busiest]), f"this process, fdinfo drm-engine-{busiest}")

    def _clients(self) -> dict[Client, dict[str, str]]:
        """The fields of each client; raises OSError."""
        folder = self._around.path(f"/proc/{self._pid}/fd")
        found: dict[Client, dict[str, str]] = {}
        for entry in sorted(folder.iterdir()):
            try:
                target = entry.readlink()
            except OSError:  # closed since
                continue
            if target.parent.as_posix() not in ("/dev/dri", "/dev/accel"):
                continue
            text = read_text(self._around.path(f"/proc/{self._pid}/fdinfo/{entry.name}"))
            pairs = (line.partition(":") for line in text.splitlines())
            fields = {key.strip(): value.strip() for key, _, value in pairs}
            if fields.get("drm-driver") in self._drivers:
                client = fields.get("drm-pdev", ""), fields.get("drm-client-id", entry.name)
                found[client] = fields
        return found
