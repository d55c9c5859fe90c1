"""Lower bounds on the seconds of a graph's run: no schedule on the devices there are is shorter.

A bound holds for every assignment of the graph's nodes to devices that have a kernel for them, for
every order, and however nodes are divided over a device's lanes. It is of the graph as it stands:
one that is lowered with other shards is another graph. What a plan could do without is left out.
`runtime.needs` says what a node needs at least on a device: span_s, lane_s, host_s, copy_s, forms.

- Call the *end* of a node the end of its first part to end. Each part of a reader reads something
  that some part of the node wrote, so it begins after that end; hence end(reader) >= end(node) +
  span(reader), also where lanes run ahead of each other. Where the one writes on another side than
  the other reads, a transfer lies between, which waits for the node and is waited for.
- In a run of T seconds the lanes of a device have T seconds each, so the nodes that it does have
  lane_s of at most T times its lanes in all. The host's compute lanes have host_s besides, forms
  included. Copy lanes do one step at a time each: copy_s is at most T times their number in all.

The *critical path* follows the first rule with every node on the device of its least span. The
*area and precedence* bound keeps both rules for nodes that are cut into shares x[node, device] >= 0
with sum 1, a linear program (the relaxation of HLP: Kedad-Sidhoum, Monna and Trystram, "Scheduling
tasks with precedence constraints on hybrid multi-core machines", IPDPS workshops 2015; for more
than two kinds of device: Amaris, Lucarelli, Mommessin and Trystram, "Generic algorithms for
scheduling applications on hybrid multi-core machines", Euro-Par 2017). The rules of transfers and
of the host are ours. With x[j, D] also for the sum of j's shares that read and write on side D:

    minimise T over x, y, end, T
        end(j) >= end(i) + sum_d span[j, d] x[j, d]       for each j that reads v of i
        the same + move[v, D] (x[j, D] - x[i, D])         and for each side D: v is brought in
        the same + move[v, D] (x[i, D] - x[j, D])         or out
        T >= end(j) + sum_D move[v, D] x[j, D]            if v is a result: it is brought out
        lanes(d) A(d) >= sum_j lane_s[j, d] x[j, d]       for each device d; for the host, too,
                        + sum_j,e host_s[j, e] x[j, e] + sum_f host_s[f] y[f]
        copy_lanes A(host) >= sum_j,e copy_s[j, e] x[j, e] + sum_f copy_s[f] y[f]
        y[f] >= x[j, d]                                   for each j that needs form f on d

A(d) is T where devices do not slow each other down. Where they do, let t[S] be the seconds during
which S is exactly the set of the busy devices: these times do not overlap, so their sum is at most
T. A device that takes slowdown[d, S] times longer beside the others of S gets through at most
t[S] / slowdown[d, S] seconds of work on each lane meanwhile, and through none while it is not busy:

        T >= sum_S t[S]          A(d) = sum over S with d of t[S] / slowdown[d, S]

(The host is busy while its copy lanes are.) Slowdowns only lengthen paths, which leave them out.

Where a node c that no device divides needs much work and is needed for much (`runtime.cut`), a run
has two phases: until c begins, and since it has ended. A part of a node that c needs has ended when
c begins: the parts of a reader read all that was written, so some part of the reader followed it,
and so on up to c, which is one part. In the same way what needs c begins when it has ended. So with
times of their own for each phase p, t[S] = t[S, 1] + t[S, 2], and A(d, p) as above:

        lanes(d) A(d, p) >= sum_j lane_s[j, d] x[j, d]    over the nodes j before c, or after it

and the same for the host's work; all other nodes have both phases. A form that is renewed belongs
where the node is that updates its source, whom it follows. Any other form whose readers all lie
before c is packed before c begins: some part of a reader read it.

Every assignment is one of its points with all shares 0 or 1, and y[f] = 1 where somebody needs f: a
difference of shares is then 1 where v is brought over, and takes nothing away from the plain rule
where it is 0 or -1. So the least T is below every run's. What is returned is not the solver's T,
which is right to its tolerances only, but the value that its multipliers prove: any nonnegative
multipliers give a lower bound by weak duality, and these give one that is as good as the T to
rounding.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog  # type: ignore[import-untyped]  # ships no types
from scipy.sparse import csr_array  # type: ignore[import-untyped]

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph, Node, Value
from aieflow.runtime.cut import Cut, cut
from aieflow.runtime.needs import Choice, Choices, Form, FormNeed, Needs, Slowdowns

Floats = npt.NDArray[np.float64]
Entries = list[tuple[int, float]]  # columns and their values


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds that no schedule undercuts."""

    critical_path_s: float
    area_s: float  # of area and precedence

    @property
    def seconds(self) -> float:
        """The larger of the two."""
        return max(self.critical_path_s, self.area_s)


def bound(graph: Graph, needs: Needs) -> Bound:
    """Both bounds; raises PlanError where no device has a kernel for a node."""
    return Bound(critical_path(graph, needs.choices), area_and_precedence(graph, needs))


def critical_path(graph: Graph, choices: Choices) -> float:
    """Seconds of the longest path with each node on the device that is fastest for it."""
    ends: list[float] = []
    for node, choice, before in zip(graph.nodes, choices, _before(graph), strict=True):
        span_s = min(each.span_s for each in _required(node, choice).values())
        ends.append(max((ends[other] for other in before), default=0.0) + span_s)
    return max(ends, default=0.0)


def area_and_precedence(graph: Graph, needs: Needs) -> float:
    """Seconds that the linear program above proves; raises PlanError if it has no solution."""
    if not graph.nodes:
        return 0.0
    program = _Builder(graph, needs).program()
    found = linprog(
        program.objective,
        program.upper,
        np.zeros(program.inequalities),
        program.equal,
        np.ones(len(graph.nodes)),
        bounds=np.stack([np.zeros_like(program.most), program.most], axis=1),
        method="highs",
    )
    if found.status != 0:
        raise PlanError(f"{graph.name}: no bound was found: {found.message}")
    # The right sides are 0 and 1, so this is what the multipliers prove: see the module's text.
    above = np.minimum(found.ineqlin.marginals, 0.0)
    shares = found.eqlin.marginals
    reduced = program.objective - program.upper.T @ above - program.equal.T @ shares
    proven = float(shares.sum() + (np.minimum(reduced, 0.0) * program.most).sum())
    return max(0.0, proven) * program.scale_s


@dataclass(frozen=True, slots=True)
class _Program:
    """Minimise objective @ v with upper @ v <= 0, equal @ v = 1, 0 <= v <= most.

    Variables are the shares, the forms, the end of each node, T, and the times of sets of devices;
    times in units of `scale_s`.
    """

    objective: Floats
    upper: csr_array
    equal: csr_array
    inequalities: int  # rows of `upper`
    most: Floats
    scale_s: float


class _Builder:
    """Writes the linear program: which variable has which column, and the rows one by one."""

    def __init__(self, graph: Graph, needs: Needs) -> None:
        self._graph, self._needs = graph, needs
        self._results = frozenset(graph.results)
        choices = needs.choices
        for node, choice in zip(graph.nodes, choices, strict=True):
            _required(node, choice)
        slowest_lane = max(each.lane_s for choice in choices for each in choice.values())
        self._scale_s = critical_path(graph, choices) or slowest_lane or 1.0
        self._shares: list[dict[str, int]] = []
        columns = 0
        for choice in choices:
            self._shares.append({device: columns + at for at, device in enumerate(choice)})
            columns += len(choice)
        self._forms = {form: columns + at for at, form in enumerate(needs.exchange.forms)}
        self._first_end = columns + len(self._forms)
        self._last = self._first_end + len(graph.nodes)  # T
        self._cut = self._found_cut()
        self._phase_of = self._form_phases()
        slowdowns = needs.slowdowns or self._undisturbed()
        phases = range(1 if self._cut is None else 2)
        each_time = [(phase, busy) for phase in phases for busy in slowdowns]
        self._times = {key: self._last + 1 + at for at, key in enumerate(each_time)}
        self._slowdowns = slowdowns
        self._width = self._last + 1 + len(self._times)
        self._upper = _Rows(self._width)
        self._sides = sorted({each.side for choice in choices for each in choice.values()} - {""})

    def program(self) -> _Program:
        """All rows."""
        for index, before in enumerate(_before(self._graph)):
            self._follow(index, before)
            self._end(index)
        self._occupy()
        equal = _Rows(self._width)
        for shares in self._shares:
            equal.add([(column, 1.0) for column in shares.values()])
        most = np.ones(self._width)
        most[self._first_end :] = self._longest_s() / self._scale_s
        objective = np.zeros(self._width)
        objective[self._last] = 1.0
        upper = self._upper
        return _Program(objective, upper.matrix(), equal.matrix(), upper.count, most, self._scale_s)

    def _follow(self, index: int, before: Mapping[int, Sequence[Value]]) -> None:
        """A node after those that it reads of, and after the transfers between."""
        choice, end = self._needs.choices[index], self._first_end + index
        spans = [
            (column, choice[device].span_s / self._scale_s)
            for device, column in self._shares[index].items()
        ]
        if not before:
            self._upper.add([*spans, (end, -1.0)])
        for other, values in before.items():
            follows: Entries = [*spans, (self._first_end + other, 1.0), (end, -1.0)]
            brought = False
            for side in self._sides:
                move = max(self._move(side, value) for value in values)
                mine, theirs = self._on(side, index, move), self._on(side, other, move)
                if not mine and not theirs:
                    continue
                brought = True  # the sum of both rows is twice the plain one
                self._upper.add(_sum(follows, mine, _negative(theirs)))
                self._upper.add(_sum(follows, theirs, _negative(mine)))
            if not brought:
                self._upper.add(follows)

    def _end(self, index: int) -> None:
        """A node before the end of the run; results are brought to the host."""
        entries: Entries = [(self._first_end + index, 1.0), (self._last, -1.0)]
        returned = [value for value in self._graph.nodes[index].outputs if value in self._results]
        for side in self._sides if returned else ():
            entries += self._on(side, index, max(self._move(side, value) for value in returned))
        self._upper.add(entries)

    def _found_cut(self) -> Cut | None:
        """Where the run is divided in two, if anywhere."""
        if not any(self._needs.undivided):
            return None
        work = [min(each.lane_s for each in choice.values()) for choice in self._needs.choices]
        return cut([tuple(each) for each in _before(self._graph)], work, self._needs.undivided)

    def _undisturbed(self) -> Slowdowns:
        """All devices at once, each as fast as alone."""
        return {frozenset(self._needs.lanes): dict.fromkeys(self._needs.lanes, 1.0)}

    def _occupy(self) -> None:
        """Lanes of devices, and of the host with all that it does; in each phase, and in all."""
        self._work(range(len(self._shares)), None)
        if self._cut is not None:
            self._work(self._cut.before, 0)
            self._work(self._cut.after, 1)
        for shares, choice in zip(self._shares, self._needs.choices, strict=True):
            for device, column in shares.items():
                for form in choice[device].forms:
                    if form in self._forms:
                        self._upper.add([(column, 1.0), (self._forms[form], -1.0)])
        times = [(column, 1.0) for column in self._times.values()]
        self._upper.add([*times, (self._last, -1.0)])

    def _work(self, nodes: Iterable[int], phase: int | None) -> None:
        """What some nodes take of devices is there, in a phase or, without one, in all."""
        nodes, exchange = tuple(nodes), self._needs.exchange
        for device, lanes in self._needs.lanes.items():
            used = [
                (self._shares[node][device], choice[device].lane_s / self._scale_s)
                for node in nodes
                if device in (choice := self._needs.choices[node])
            ]
            if device == exchange.host:
                used = _sum(used, self._hosts(nodes, phase, lambda each: each.host_s))
            self._upper.add([*used, *self._able(device, lanes, phase)])
        if exchange.copy_lanes:
            copied = self._hosts(nodes, phase, lambda each: each.copy_s)
            able = self._able(exchange.host, exchange.copy_lanes, phase)
            self._upper.add([*copied, *able])

    def _hosts(
        self, nodes: Iterable[int], phase: int | None, seconds: Callable[[Choice | FormNeed], float]
    ) -> Entries:
        """The host's work for some nodes, and the forms of a phase; of all without one."""
        work = [
            (column, seconds(self._needs.choices[node][device]) / self._scale_s)
            for node in nodes
            for device, column in self._shares[node].items()
        ]
        forms = [
            (column, seconds(self._needs.exchange.forms[form]) / self._scale_s)
            for form, column in self._forms.items()
            if phase is None or self._phase_of.get(form) == phase
        ]
        return [entry for entry in (*work, *forms) if entry[1]]

    def _form_phases(self) -> dict[Form, int]:
        """The phase of each form that has one."""
        if self._cut is None:
            return {}
        before, after = set(self._cut.before), set(self._cut.after)
        readers: dict[Form, set[int]] = {}
        for node, choice in enumerate(self._needs.choices):
            for each in choice.values():
                for form in each.forms:
                    readers.setdefault(form, set()).add(node)
        found: dict[Form, int] = {}
        for form, need in self._needs.exchange.forms.items():
            if need.renewed_by is None and readers.get(form, set()) <= before:
                found[form] = 0
            elif need.renewed_by in after:
                found[form] = 1
        return found

    def _able(self, device: str, lanes: int, phase: int | None) -> Entries:
        """Less the work that so many lanes of a device can get through."""
        return [
            (column, -lanes / self._slowdowns[busy][device])
            for (when, busy), column in self._times.items()
            if device in busy and phase in (None, when)
        ]

    def _longest_s(self) -> float:
        """Enough for one thing after the other: no time needs to be longer."""
        nodes = sum(
            max(each.span_s + each.lane_s + each.host_s + each.copy_s for each in choice.values())
            for choice in self._needs.choices
        )
        exchange = self._needs.exchange
        forms = sum(each.host_s + each.copy_s for each in exchange.forms.values())
        return nodes + forms + 2 * sum(exchange.move_s.values())

    def _move(self, side: str, value: Value) -> float:
        return self._needs.exchange.move_s.get((side, value.name), 0.0) / self._scale_s

    def _on(self, side: str, index: int, factor: float) -> Entries:
        """The shares of a node on a side, times a factor."""
        choice = self._needs.choices[index]
        return [
            (column, factor)
            for device, column in self._shares[index].items()
            if factor and choice[device].side == side
        ]


def _negative(entries: Entries) -> Entries:
    return [(column, -value) for column, value in entries]


def _sum(*rows: Entries) -> Entries:
    """One row; what several have in a column is added."""
    values: dict[int, float] = {}
    for column, value in chain.from_iterable(rows):
        values[column] = values.get(column, 0.0) + value
    return list(values.items())


class _Rows:
    """A sparse matrix, written row by row."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._values: list[float] = []
        self._columns: list[int] = []
        self._starts = [0]

    def add(self, entries: Sequence[tuple[int, float]]) -> None:
        """One row: its columns and their values."""
        for column, value in entries:
            self._columns.append(column)
            self._values.append(value)
        self._starts.append(len(self._values))

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._starts) - 1

    def matrix(self) -> csr_array:
        """The rows so far."""
        shape = (self.count, self._width)
        return csr_array((self._values, self._columns, self._starts), shape=shape)


def _before(graph: Graph) -> Iterator[dict[int, list[Value]]]:
    """For each node those that it reads of, and what."""
    for node in graph.nodes:
        before: dict[int, list[Value]] = {}
        for value in dict.fromkeys(node.inputs):
            if value in graph.producer:
                before.setdefault(graph.producer[value], []).append(value)
        yield before


def _required(node: Node, choice: Mapping[str, Choice]) -> Mapping[str, Choice]:
    if not choice:
        raise PlanError(f"{node.name}: no device has a kernel of {node.op.name}")
    return choice
