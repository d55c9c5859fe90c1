"""The account of some runs of one plan: by op and device, by lane, and what lanes waited for.

Everything is made of an outline and recordings, so a program that watches a run from outside makes
the same account as the run itself.
"""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aieflow.runtime.lane_states import STATES, State, lane_pieces, state_ns
from aieflow.runtime.outline import Outline, Recording
from aieflow.runtime.trace import overlapped

WAITING: tuple[State, ...] = ("waiting_for_data", "waiting_for_dependencies")


@dataclass(frozen=True, slots=True)
class WorkAccount:
    """One op, or kind of transfer, on one device; sums are of all runs, over all lanes."""

    device: str
    work: str
    count: int
    median_s: float  # of one step
    seconds: float
    share: float  # of what all lanes executed
    flops: int
    nbytes: int
    foretold_s: float | None  # of the same steps by the cost model; None where there is none

    @property
    def flops_per_s(self) -> float:
        """Rate of one lane."""
        return self.flops / self.seconds if self.seconds else 0.0

    @property
    def bytes_per_s(self) -> float:
        """Rate of one lane."""
        return self.nbytes / self.seconds if self.seconds else 0.0

    @property
    def error(self) -> float | None:
        """By what share the measured seconds lie above those foretold."""
        return self.seconds / self.foretold_s - 1 if self.foretold_s else None


@dataclass(frozen=True, slots=True)
class LaneAccount:
    """One lane; sums are of all runs."""

    lane: str
    states: Mapping[State, int]  # nanoseconds, which sum to the length of the runs
    steps: int
    flops: int
    nbytes: int
    awaited: Mapping[str, int]  # nanoseconds of waiting by the cause (`runtime.gap`), largest first
    awaited_steps: Mapping[str, int]  # the same by the step's name

    @property
    def waiting_ns(self) -> int:
        """Nanoseconds of waiting for data and dependencies."""
        return sum(self.states[state] for state in WAITING)


@dataclass(frozen=True, slots=True)
class Account:
    """What some runs of a plan did."""

    runs: int
    wall_ns: int  # of all runs
    works: tuple[WorkAccount, ...]  # largest first
    lanes: tuple[LaneAccount, ...]  # in the plan's order
    nodes: tuple[tuple[str, str, float], ...]  # device, name, median seconds a run; largest first
    overlap: float | None  # share of the copy lanes' time that ran under compute; None: no copies


def account(
    outline: Outline, recordings: Sequence[Recording], foretold_s: Sequence[float] | None = None
) -> Account:
    """The account of one run or more; `foretold_s` is what a model says of each step."""
    lanes = {lane: _Lane() for lane in outline.lanes}
    hidden, copied = 0.0, 0.0
    for each in recordings:
        for lane, pieces in lane_pieces(outline, each).items():
            lanes[lane].add(state_ns(pieces))
            for piece in pieces:
                if piece.state in WAITING and piece.step is not None:
                    lanes[lane].wait(outline, piece.step, piece.end_ns - piece.start_ns)
        under, of = _overlapped(outline, each)
        hidden, copied = hidden + under, copied + of
    return Account(
        len(recordings),
        sum(each.wall_ns for each in recordings),
        _works(outline, recordings, foretold_s),
        tuple(lanes[lane].total(outline, lane, len(recordings)) for lane in outline.lanes),
        _nodes(outline, recordings),
        hidden / copied if copied else None,
    )


class _Lane:
    """Sums of one lane while they grow."""

    def __init__(self) -> None:
        self._states = dict.fromkeys(STATES, 0)
        self._awaited: dict[str, int] = defaultdict(int)
        self._awaited_steps: dict[str, int] = defaultdict(int)

    def add(self, states: Mapping[State, int]) -> None:
        """One run."""
        for state, ns in states.items():
            self._states[state] += ns

    def wait(self, outline: Outline, step: int, ns: int) -> None:
        """Some waiting for a step."""
        self._awaited[outline.steps[step].cause] += ns
        self._awaited_steps[outline.steps[step].name] += ns

    def total(self, outline: Outline, lane: str, runs: int) -> LaneAccount:
        """The account."""
        steps = [outline.steps[index] for index in outline.lanes[lane]]
        return LaneAccount(
            lane,
            self._states,
            runs * len(steps),
            runs * sum(step.flops for step in steps),
            runs * sum(step.nbytes for step in steps),
            _largest_first(self._awaited),
            _largest_first(self._awaited_steps),
        )


def _works(
    outline: Outline, recordings: Sequence[Recording], foretold_s: Sequence[float] | None
) -> tuple[WorkAccount, ...]:
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, step in enumerate(outline.steps):
        groups[step.device, step.work].append(index)
    ns = {
        key: [each.ends_ns[i] - each.starts_ns[i] for each in recordings for i in indices]
        for key, indices in groups.items()
    }
    total = sum(map(sum, ns.values()))
    runs = len(recordings)
    rows = [
        WorkAccount(
            device,
            work,
            len(ns[device, work]),
            statistics.median(ns[device, work]) / 1e9 if runs else 0.0,
            sum(ns[device, work]) / 1e9,
            sum(ns[device, work]) / total if total else 0.0,
            runs * sum(outline.steps[i].flops for i in indices),
            runs * sum(outline.steps[i].nbytes for i in indices),
            None if foretold_s is None else runs * sum(foretold_s[i] for i in indices),
        )
        for (device, work), indices in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.seconds, row.device, row.work)))


def _nodes(outline: Outline, recordings: Sequence[Recording]) -> tuple[tuple[str, str, float], ...]:
    """All parts of a node together, by the median of the runs."""
    runs: dict[tuple[str, str], list[int]] = {}
    for number, each in enumerate(recordings):
        spans = zip(outline.steps, each.starts_ns, each.ends_ns, strict=True)
        for step, start, end in spans:
            sums = runs.setdefault((step.device, step.name), [0] * len(recordings))
            sums[number] += end - start
    found = [(*key, statistics.median(sums) / 1e9) for key, sums in runs.items()]
    return tuple(sorted(found, key=lambda row: (-row[2], row[0], row[1])))


def _overlapped(outline: Outline, recording: Recording) -> tuple[float, float]:
    """Nanoseconds of the copy lanes that ran under compute, and all of them."""
    copies: list[tuple[int, int]] = []
    computing: list[tuple[int, int]] = []
    spans = zip(outline.steps, recording.starts_ns, recording.ends_ns, strict=True)
    for step, start, end in spans:
        (copies if ".copy" in step.lane else computing).append((start, end))
    return overlapped(copies, computing)


def _largest_first(sums: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(sums.items(), key=lambda item: (-item[1], item[0])))
