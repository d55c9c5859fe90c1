"""The policy `best`: a portfolio of assignments, improved and then judged by the simulator.

Candidates are the trivial plans (all on one device as far as it can), HEFT, PEFT, dmda, a balance
of loads, and HEFT at a price, for each way in which the graph can be lowered (its batch in 1, 2 or
4 shards) and its nodes be divided over lanes (`division`). Quick estimates rank them, and a short
local search from the best of each way, and a shorter one of its order, tells which way is worth the
effort: it has candidates at more prices. The best of all are improved by longer searches, in
rounds: a third, two at least, goes on to the next, which has as many estimates (successive halving:
Jamieson and Talwalkar, AISTATS 2016); the last round has as many for each. What is to be quick on
several devices has one round of these, and several in which its order is improved, too, and each
node may be done in more ways (`sequence_search`, `ways`). Of the most promising, plans are compiled
and simulated, and the best of those is taken; but a trivial one, if the others gain less than what
is foretold may err by. A trivial plan is left out of that only if what it takes at least (its
busiest lanes, its longest path) is worse than that allows: so none is better.

The effort is a number of nodes to look at, not of seconds: the same inputs give the same plan.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from aieflow.ops.errors import PlanError
from aieflow.ops.graph import Graph
from aieflow.runtime.policies.balance import balance
from aieflow.runtime.policies.booking import Decision
from aieflow.runtime.policies.division import WHOLE, Division
from aieflow.runtime.policies.dmda import dmda
from aieflow.runtime.policies.estimate import Estimate, Estimator
from aieflow.runtime.policies.fixed import RULES
from aieflow.runtime.policies.heft import heft, least_ranks, priced_heft, upward_ranks
from aieflow.runtime.policies.local_search import LocalSearch
from aieflow.runtime.policies.objective import Objective
from aieflow.runtime.policies.peft import peft
from aieflow.runtime.policies.sequence_search import MOST_DEVICES, SequenceSearch
from aieflow.runtime.policies.tasks import HOST, Tasks
from aieflow.runtime.policies.ways import division_with
from aieflow.runtime.schedule import Times

LISTS: Mapping[str, Callable[[Tasks], Decision]] = {"heft": heft, "peft": peft, "dmda": dmda}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much planning may do; nodes count once for each estimate, or simulation, of a graph."""

    estimated_nodes: int = 9_000_000
    simulated_nodes: int = 3_000
    changes: int = 600_000  # of an assignment and its order
    bases: int = 6  # assignments that are improved
    most: int = 6_000  # estimates of a small graph; simulations
    prices: tuple[float, ...] = (300.0, 100.0, 30.0)  # factors on those of a balance
    threads: int = 8  # searches at once, at most; changes nothing in what is found


QUICK = Effort(600_000, 2_500, changes=10_000, bases=2, prices=(30.0,))
ROUNDS, KEPT = 3, 3  # of the search; one of so many goes on to the next
LOOK = 50  # one of so many changes of an order shows which way to lower and divide is best
WORTH = 0.02  # of the score: what more than a trivial plan has to gain
MOST_SLOWDOWN = 1.25  # of a device by others: beyond, orders are not searched, which reckon it late


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """One way to lower the computation, and to divide its nodes.

    `more` is the same with more ways to do each node, and a division that has lanes for these: what
    is searched together with an order.
    """

    shards: int
    graph: Graph
    tasks: Tasks
    estimator: Estimator
    division: Division = WHOLE
    more: "Option | None" = None


@dataclass(frozen=True, slots=True)
class Judged:
    """What the simulator says of a plan."""

    seconds: float
    joules: float


# Of an option, the device of each node, and when nodes run (None: program order). Raises
# PlanError where a plan cannot be made, or memory does not suffice.
Judge = Callable[[Option, Sequence[str], Times | None], Judged]


@dataclass(frozen=True, slots=True)
class Tried:
    """One candidate: what was estimated, and what was simulated where it came to that."""

    policy: str
    shards: int
    most_lanes: int | None  # of a node; None: all of its device
    estimated_s: float
    simulated_s: float | None = None
    simulated_joules: float | None = None
    dropped: str = ""  # why it was not simulated, or cannot be used

    @property
    def key(self) -> tuple[str, int, int | None]:
        """What tells it from other candidates: policy, shards, most lanes."""
        return self.policy, self.shards, self.most_lanes


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The assignment chosen, and how it was found. `seconds` and `joules` are simulated."""

    policy: str  # whose assignment it is
    shards: int
    homes: tuple[str, ...]
    times: Times | None  # of expanded nodes; None: program order
    division: Division
    seconds: float
    joules: float
    tried: tuple[Tried, ...]
    estimates: int
    simulations: int
    trivial_s: float | None = None  # of the quickest trivial plan; estimated if not simulated


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    policy: str
    option: Option
    homes: tuple[int, ...]
    estimate: Estimate
    times: Times | None
    ranks: tuple[float, ...]
    is_trivial: bool = False

    @property
    def key(self) -> tuple[str, int, int | None]:
        """As of `Tried`."""
        return self.policy, self.option.shards, self.option.division.lanes


def listed(options: Sequence[Option], policy: str, judge: Judge, objective: Objective) -> Found:
    """The decision of one of `LISTS`, for the option where it is judged best.

    Raises PlanError where none can be used.
    """
    return _Search(judge, objective, Effort()).run_list(options, policy)


def best(
    options: Sequence[Option],
    judge: Judge,
    objective: Objective | None = None,
    effort: Effort | None = None,
) -> Found:
    """The best assignment of the options; raises PlanError where none can be used."""
    return _Search(judge, objective or Objective(), effort or Effort()).run(options)


class _Search:
    """One search: candidates, and what was found out about them."""

    def __init__(self, judge: Judge, objective: Objective, effort: Effort) -> None:
        self._judge, self._objective, self._effort = judge, objective, effort
        self._tried: list[Tried] = []
        self._chosen: tuple[_Candidate, Judged] | None = None
        self._plain: tuple[_Candidate, Judged] | None = None  # the best trivial one
        self._estimates = self._simulations = 0
        self._simulated_nodes = 0
        self._fault: PlanError | None = None

    def run(self, options: Sequence[Option]) -> Found:
        """Candidates, their improvement, and the judgement."""
        pool = [candidate for option in options for candidate in self._portfolio(option)]
        self._estimates = len(pool)
        pool += self._improved(pool)
        pool.sort(key=lambda each: self._score(each.estimate))  # stable: trivial ones first
        for candidate in pool:
            if self._may_simulate(candidate):
                self._simulate(candidate)
            elif not candidate.is_trivial:
                self._note(candidate, dropped="estimated only")
        for candidate in pool:
            if candidate.is_trivial and not self._is_judged(candidate):
                if self._could_win(candidate):
                    self._simulate(candidate)
                else:
                    self._note(candidate, dropped="takes longer at least")
        if self._plain is not None and self._is_near(self._judged_score(self._plain)):
            self._chosen = self._plain
        trivial = {each.key for each in pool if each.is_trivial}
        taken = (each for each in self._tried if each.key in trivial)
        quickest = min(
            each.estimated_s if each.simulated_s is None else each.simulated_s for each in taken
        )
        return replace(self._found(), trivial_s=quickest)

    def run_list(self, options: Sequence[Option], policy: str) -> Found:
        """One candidate for each option, all of them judged."""
        for option in options:
            self._estimates += 2
            self._simulate(_by_list(option, policy, self._objective))
        return self._found()

    def _found(self) -> Found:
        if self._chosen is None:
            assert self._fault is not None
            raise self._fault
        candidate, judged = self._chosen
        option = candidate.option
        return Found(
            candidate.policy,
            option.shards,
            option.tasks.named(candidate.homes),
            candidate.times,
            option.division,
            judged.seconds,
            judged.joules,
            tuple(self._tried),
            self._estimates,
            self._simulations,
        )

    def _portfolio(self, option: Option) -> Iterator[_Candidate]:
        tasks = option.tasks
        in_order = tuple(-float(node) for node in range(tasks.count))
        ranks = upward_ranks(tasks)
        for name, homes in trivial(tasks):
            if option.division == WHOLE:
                held = option.estimator.estimate(homes, in_order)
                yield _Candidate(name, option, homes, held, None, in_order, is_trivial=True)
            yield _ordered(f"{name}, reordered", option, homes, ranks)
            yield _ordered(f"{name}, updates on host", option, ended(tasks, homes), ranks)
        for policy in LISTS:
            found = _by_list(option, policy, self._objective)
            yield found
            moved = ended(tasks, found.homes)
            if moved != found.homes:
                yield _ordered(f"{policy}, updates on host", option, moved, found.ranks)
        yield from self._priced(option, self._effort.prices[:1])

    def _priced(
        self, option: Option, factors: Sequence[float], ends_on_host: bool = False
    ) -> Iterator[_Candidate]:
        """A balance of loads, and HEFT that weighs what a device costs all others, by factors."""
        tasks = option.tasks
        ranks, least = upward_ranks(tasks), least_ranks(tasks)
        ideal = balance(tasks, _ends_on_host(tasks) if ends_on_host else None)
        suffix = ", updates on host" if ends_on_host else ""
        yield _ordered(f"balanced{suffix}", option, ideal.homes, least)
        for factor in factors:
            prices = factor * ideal.penalties
            for by, ranked in (("", ranks), (", by least ranks", least)):
                decision = priced_heft(tasks, prices, ranked)
                label = f"heft at {factor:g} times the price{by}{suffix}"
                yield _ordered(label, option, decision.homes, ranked)

    def _improved(self, pool: Sequence[_Candidate]) -> list[_Candidate]:
        """One of each option, improved; of the most promising more, and these improved, too."""
        searches: dict[Option, LocalSearch] = {}
        pool = sorted(pool, key=lambda each: self._score(each.estimate))
        leaders: list[_Candidate] = []
        for candidate in pool:
            if all(candidate.option is not other.option for other in leaders):
                leaders.append(candidate)
        count = min(self._effort.bases, len(pool))
        if len(leaders) > 1:
            leaders = [self._searched([each], count, searches)[0] for each in leaders]
            leaders = self._by_order(sorted(leaders, key=lambda each: self._score(each.estimate)))
        option = leaders[0].option
        prices = self._effort.prices
        priced = [*self._priced(option, prices[1:]), *self._priced(option, prices, True)]
        self._estimates += len(priced)
        pool = [*(each for each in pool if each.option is option), *priced]
        bases = sorted(pool, key=lambda each: self._score(each.estimate))[: self._effort.bases]
        improved: list[_Candidate] = []
        has_order = self._is_worth_an_order(option.tasks)
        for number in range(1 if has_order else ROUNDS):
            of = 1 if number == ROUNDS - 1 else len(bases)  # the last have as much as one would
            improved = self._searched(bases, of, searches)
            improved.sort(key=lambda each: self._score(each.estimate))
            bases = improved[: max(2, len(improved) // KEPT)]
        found = [*improved, *leaders[1:]]
        found = [replace(each, policy=f"{each.policy}, improved") for each in found]
        sequenced = self._sequenced(found[: len(improved)]) if has_order else []
        return [*sequenced, *found, *priced]

    def _by_order(self, leaders: list[_Candidate]) -> list[_Candidate]:
        """The same, but of several lowerings the one first whose order a few changes make shortest.

        More shards gain more by an order than estimates of list schedules show.
        """
        is_due = [self._is_worth_an_order(each.option.tasks, each.homes) for each in leaders]
        if len({each.option.shards for each in leaders}) == 1 or not all(is_due):
            return leaders
        changes = self._effort.changes // LOOK

        def seconds(leader: _Candidate) -> float:
            search = SequenceSearch(leader.option.tasks, leader.option.estimator)
            return search.looked(leader.homes, leader.ranks, changes)

        self._estimates += changes * len(leaders)
        with ThreadPoolExecutor(self._effort.threads) as pool:
            found = dict(zip(leaders, pool.map(seconds, leaders), strict=True))
        return sorted(leaders, key=lambda each: found[each])

    def _is_worth_an_order(self, tasks: Tasks, homes: Sequence[int] | None = None) -> bool:
        """Whether the order of tasks is searched, or of an assignment of them."""
        slowest, devices = max(map(max, tasks.slowdowns)), len(tasks.devices)
        is_wanted = self._effort.changes > 0 and self._objective.kind == "time"
        used = devices if homes is None else len(set(homes))
        return is_wanted and used > 1 and devices <= MOST_DEVICES and slowest <= MOST_SLOWDOWN

    def _sequenced(self, candidates: Sequence[_Candidate]) -> list[_Candidate]:
        """The best of candidates of one option, on several devices each, with another order."""
        devices = len(candidates[0].option.tasks.devices)
        option = candidates[0].option.more or candidates[0].option
        candidates = [each for each in candidates if len(set(each.homes)) > 1]
        if not candidates:
            return []
        search = SequenceSearch(option.tasks, option.estimator)
        listed = [search.listed(each.homes, each.ranks) for each in candidates]
        found = search.best_of(listed, self._effort.changes, self._effort.threads)
        self._estimates += found.changes
        ordered, candidate = found.ordered, candidates[found.number]
        if ordered.seconds >= candidate.estimate.seconds:
            return []
        held = option.estimator.estimate(ordered.home, candidate.ranks)
        division = division_with(option.division, option.graph, ordered.home, devices)
        return [
            replace(
                candidate,
                policy=f"{candidate.policy} with its order",
                option=replace(option, division=division),
                homes=tuple(ordered.home.tolist()),
                estimate=replace(held, seconds=ordered.seconds),
                times=search.times(ordered),
            )
        ]

    def _searched(
        self, bases: Sequence[_Candidate], of: int, searches: dict[Option, LocalSearch]
    ) -> list[_Candidate]:
        """Candidates of one option, each after one `of` so many shares of a round."""
        option = bases[0].option
        if option not in searches:
            searches[option] = LocalSearch(option.tasks, option.estimator, self._objective)
        estimates = self._effort.estimated_nodes // max(1, option.tasks.count)
        estimates = max(2, min(estimates, self._effort.most) // (ROUNDS * of))
        starts = [(base.homes, base.ranks) for base in bases]
        found: list[_Candidate] = []
        better = searches[option].all_improved(starts, estimates - 1, self._effort.threads)
        for base, each in zip(bases, better, strict=True):
            self._estimates += each.estimates + 1
            found.append(
                replace(base, is_trivial=False)
                if each.homes == base.homes
                else _ordered(base.policy, option, each.homes, base.ranks)
            )
        return found

    def _may_simulate(self, candidate: _Candidate) -> bool:
        """One at least; then as long as the effort lasts, and while it could be the best.

        An estimate leaves out some waits, so a plan that would be as good as another's is not to be
        hoped for where the estimate is no better than that.
        """
        if self._chosen is None:
            return True
        if self._score(candidate.estimate) >= self._judged_score(self._chosen):
            return False
        nodes = candidate.option.tasks.count
        if self._simulated_nodes + nodes > self._effort.simulated_nodes:
            return False
        return self._simulations < self._effort.most and self._could_win(candidate)

    def _could_win(self, candidate: _Candidate) -> bool:
        if self._chosen is None:
            return True
        seconds, joules = candidate.option.estimator.floor(candidate.homes)
        # Sums in another order than the simulator's may differ by rounding.
        least = self._objective.least(seconds * (1 - 1e-9), joules * (1 - 1e-9))
        if candidate.is_trivial and self._is_near(least):
            return True
        return least < self._judged_score(self._chosen)

    def _is_near(self, score: tuple[int, float]) -> bool:
        """Whether what was chosen gains too little on a score to be worth it."""
        assert self._chosen is not None
        kind, value = self._judged_score(self._chosen)
        return score[0] == kind and score[1] * (1 - WORTH) <= value

    def _judged_score(self, each: tuple[_Candidate, Judged]) -> tuple[int, float]:
        return self._objective.score(each[1].seconds, each[1].joules)

    def _simulate(self, candidate: _Candidate) -> None:
        option = candidate.option
        self._simulations += 1
        self._simulated_nodes += option.tasks.count
        try:
            judged = self._judge(option, option.tasks.named(candidate.homes), candidate.times)
        except PlanError as error:
            self._fault = self._fault or error
            self._note(candidate, dropped=str(error))
            return
        self._note(candidate, judged)
        found = (candidate, judged)
        score = self._judged_score(found)
        if self._chosen is None or score < self._judged_score(self._chosen):
            self._chosen = found
        if candidate.is_trivial and (
            self._plain is None or score < self._judged_score(self._plain)
        ):
            self._plain = found

    def _note(self, candidate: _Candidate, judged: Judged | None = None, dropped: str = "") -> None:
        self._tried.append(
            Tried(
                candidate.policy,
                candidate.option.shards,
                candidate.option.division.lanes,
                candidate.estimate.seconds,
                None if judged is None else judged.seconds,
                None if judged is None else judged.joules,
                dropped,
            )
        )

    def _is_judged(self, candidate: _Candidate) -> bool:
        return any(each.key == candidate.key for each in self._tried)

    def _score(self, held: Estimate) -> tuple[int, float]:
        return self._objective.score(held.seconds, held.joules)


def trivial(tasks: Tasks) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """For each device a policy's name and an assignment: all that it can do there, else the first.

    The name is that of the first of the fixed `RULES` that uses the device, where one does.
    """
    found: list[tuple[str, tuple[int, ...]]] = []
    for device, name in enumerate(tasks.devices):
        able = (tasks.able(node) for node in range(tasks.count))
        homes = tuple(device if device in each else each[0] for each in able)
        rules = (policy for policy, rule in RULES.items() if name in rule.values())
        found.append((next(rules, f"all on {name}"), homes))
    return tuple(found)


def ended(tasks: Tasks, homes: Sequence[int]) -> tuple[int, ...]:
    """The same, but for nodes whose outputs must be on the host's side in the end: they are there.

    Then most states need no copy while a run lasts: see `runtime.saving`.
    """
    fixed = _ends_on_host(tasks)
    return tuple(
        home if device is None else device for home, device in zip(homes, fixed, strict=True)
    )


def _ends_on_host(tasks: Tasks) -> list[int | None]:
    """The device that does a node on the host's side, where its outputs must be in the end."""
    ends = set(tasks.ends)
    found: list[int | None] = [None] * tasks.count
    for node, values in enumerate(tasks.outputs):
        if not ends.isdisjoint(values):
            on_host = [device for device in tasks.able(node) if tasks.sides[device] == HOST]
            found[node] = (*on_host, None)[0]
    return found


def _ordered(
    policy: str, option: Option, homes: tuple[int, ...], ranks: tuple[float, ...]
) -> _Candidate:
    """An assignment in the order of its list schedule; on one device alone in program order.

    What a list schedule gains there is less than the caches lose, which costs do not know: 5 % were
    foretold on a CPU, and 3 to 4 % lost.
    """
    if len(set(homes)) == 1:
        in_order = tuple(-float(node) for node in range(option.tasks.count))
        return _Candidate(
            policy, option, homes, option.estimator.estimate(homes, in_order), None, in_order
        )
    held = option.estimator.estimate(homes, ranks)
    return _Candidate(policy, option, homes, held, held.times, ranks)


def _by_list(option: Option, policy: str, objective: Objective) -> _Candidate:
    """The decision of a list scheduler, in the better of two orders."""
    decision = LISTS[policy](option.tasks)
    by_start = tuple(-start for start in decision.starts)
    tried = [
        _ordered(policy, option, decision.homes, ranks)
        for ranks in (upward_ranks(option.tasks), by_start)
    ]
    return min(tried, key=lambda each: objective.score(each.estimate.seconds, each.estimate.joules))
