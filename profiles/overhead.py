"""What a step takes beside its work: until it begins, and because its span is noted.

A *gap* lies between the end of what a step follows (its lane's last step, and those it waits for)
and its start. It depends on the kind of lane and on what the step waits for: nothing, a lane of its
own device, or one of another device. The first step of a lane begins with the run; what that takes
is `run_s`. Spans are noted in a traced run, which may take longer than another: a device without a
clock of its own is waited for after every step. So a step of an untraced run takes `untraced_s`
more, or less.

What is known of the same devices together goes before what is known of others.

>>> known = Overheads(gaps={("cpu", "cpu.compute waits"): 2e-5})
>>> known.seconds(1e-3, "cpu.compute.0", ["cpu.compute.1"], is_first=False, devices="cpu")
0.00102
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LEAST_SHARE = 0.1  # of a measured span that a step of an untraced run takes at least


@dataclass(frozen=True, slots=True)
class Overheads:
    """Seconds beside the work of steps, by devices (names with commas); 0 where unknown."""

    run_s: Mapping[str, float] = field(default_factory=dict)
    gaps: Mapping[tuple[str, str], float] = field(default_factory=dict)  # and by `gap_kind`
    untraced_s: Mapping[str, float] = field(default_factory=dict)  # by the device of the step

    def seconds(
        self, work_s: float, lane: str, after: Sequence[str], is_first: bool, devices: str
    ) -> float:
        """What a step on `lane` takes that waits for steps on the lanes `after`.

        `devices` are those of the plan's compute lanes.
        """
        seconds = work_s
        if is_first and not after:
            seconds += self.run_s.get(devices, max(self.run_s.values(), default=0.0))
        else:
            kind = gap_kind(lane, after)
            others = [gap for (_, other), gap in self.gaps.items() if other == kind]
            seconds += self.gaps.get((devices, kind), max(others, default=0.0))
        if ".compute" not in lane:
            return seconds
        noted = self.untraced_s.get(lane.partition(".")[0], 0.0)
        return max(LEAST_SHARE * work_s, seconds + noted)


NO_OVERHEADS = Overheads()


def gap_kind(lane: str, after: Sequence[str]) -> str:
    """The kind of a gap: the lane without its number, and what its step waits for.

    >>> gap_kind("cpu.compute.1", []), gap_kind("igpu.copy.in", ["cpu.compute.0"])
    ('cpu.compute goes on', 'igpu.copy crosses')
    """
    device = lane.partition(".")[0]
    others = {other.partition(".")[0] for other in after}
    what = "goes on" if not after else "waits" if others == {device} else "crosses"
    return f"{'.'.join(lane.split('.')[:2])} {what}"
