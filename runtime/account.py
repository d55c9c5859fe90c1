"""The account of some runs of one plan: by op and device, by lane, and what lanes waited for.

Everything is made of an outline and recordings, so a program that watches a run from outside makes
the same account as the run itself. Each run is accounted for alone (`run_account`), then `joined`
with others: a watcher that keeps the last few looks at each of them once.
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


@dataclass(frozen=True, slots=True)
class RunAccount:
    """One run; what sums of several runs are made of."""

    wall_ns: int
    steps_ns: tuple[int, ...]  # what each step took, by its index
    states: Mapping[str, Mapping[State, int]]  # by lane
    awaited: Mapping[str, Mapping[str, int]]  # by lane and cause
    awaited_steps: Mapping[str, Mapping[str, int]]  # by lane and the step's name
    hidden_ns: float  # of the copy lanes' time, what ran under compute
    copied_ns: float  # all of it


def account(
    outline: Outline, recordings: Sequence[Recording], foretold_s: Sequence[float] | None = None
) -> Account:
    """The account of one run or more; `foretold_s` is what a model says of each step."""
    return joined(outline, [run_account(outline, each) for each in recordings], foretold_s)


def run_account(outline: Outline, recording: Recording) -> RunAccount:
    """The account of one run."""
    states: dict[str, Mapping[State, int]] = {}
    awaited: dict[str, Mapping[str, int]] = {}
    awaited_steps: dict[str, Mapping[str, int]] = {}
    for lane, pieces in lane_pieces(outline, recording).items():
        causes: dict[str, int] = defaultdict(int)
        names: dict[str, int] = defaultdict(int)
        for piece in pieces:
            if piece.state in WAITING and piece.step is not None:
                step, ns = outline.steps[piece.step], piece.end_ns - piece.start_ns
                causes[step.cause] += ns
                names[step.name] += ns
        states[lane], awaited[lane], awaited_steps[lane] = state_ns(pieces), causes, names
    hidden_ns, copied_ns = _overlapped(outline, recording)
    spans = zip(recording.starts_ns, recording.ends_ns, strict=True)
    steps_ns = tuple(end - start for start, end in spans)
    return RunAccount(
        recording.wall_ns, steps_ns, states, awaited, awaited_steps, hidden_ns, copied_ns
    )


def joined(
    outline: Outline, runs: Sequence[RunAccount], foretold_s: Sequence[float] | None = None
) -> Account:
    """The account of some runs together; `foretold_s` is what a model says of each step."""
    hidden_ns, copied_ns = sum(run.hidden_ns for run in runs), sum(run.copied_ns for run in runs)
    return Account(
        len(runs),
        sum(run.wall_ns for run in runs),
        _works(outline, runs, foretold_s),
        tuple(_lane(outline, lane, runs) for lane in outline.lanes),
        _nodes(outline, runs),
        hidden_ns / copied_ns if copied_ns else None,
    )


def _lane(outline: Outline, lane: str, runs: Sequence[RunAccount]) -> LaneAccount:
    steps = [outline.steps[index] for index in outline.lanes[lane]]
    return LaneAccount(
        lane,
        {state: sum(run.states[lane][state] for run in runs) for state in STATES},
        len(runs) * len(steps),
        len(runs) * sum(step.flops for step in steps),
        len(runs) * sum(step.nbytes for step in steps),
        _largest_first([run.awaited[lane] for run in runs]),
        _largest_first([run.awaited_steps[lane] for run in runs]),
    )


def _works(
    outline: Outline, runs: Sequence[RunAccount], foretold_s: Sequence[float] | None
) -> tuple[WorkAccount, ...]:
    ns = {
        key: [run.steps_ns[i] for run in runs for i in indices]
        for key, indices in outline.by_work.items()
    }
    total = sum(map(sum, ns.values()))
    rows = [
        WorkAccount(
            device,
            work,
            len(ns[device, work]),
            statistics.median(ns[device, work]) / 1e9 if runs else 0.0,
            sum(ns[device, work]) / 1e9,
            sum(ns[device, work]) / total if total else 0.0,
            len(runs) * sum(outline.steps[i].flops for i in indices),
            len(runs) * sum(outline.steps[i].nbytes for i in indices),
            None if foretold_s is None else len(runs) * sum(foretold_s[i] for i in indices),
        )
        for (device, work), indices in outline.by_work.items()
    ]
    return tuple(sorted(rows, key=lambda row: (-row.seconds, row.device, row.work)))


def _nodes(outline: Outline, runs: Sequence[RunAccount]) -> tuple[tuple[str, str, float], ...]:
    """All parts of a node together, by the median of the runs."""
    found = [
        (*key, statistics.median(sum(run.steps_ns[i] for i in indices) for run in runs) / 1e9)
        for key, indices in outline.by_name.items()
        if runs
    ]
    return tuple(sorted(found, key=lambda row: (-row[2], row[0], row[1])))


def _overlapped(outline: Outline, recording: Recording) -> tuple[float, float]:
    """Nanoseconds of the copy lanes that ran under compute, and all of them."""
    copies: list[tuple[int, int]] = []
    computing: list[tuple[int, int]] = []
    spans = zip(outline.steps, recording.starts_ns, recording.ends_ns, strict=True)
    for step, start, end in spans:
        (copies if ".copy" in step.lane else computing).append((start, end))
    return overlapped(copies, computing) if copies else (0.0, 0.0)


def _largest_first(sums: Sequence[Mapping[str, int]]) -> dict[str, int]:
    total: dict[str, int] = defaultdict(int)
    for each in sums:
        for name, ns in each.items():
            total[name] += ns
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))
