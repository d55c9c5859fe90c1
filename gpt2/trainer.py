"""One model in training on one machine: its plans, its memory, and what a training step takes.

The training step's plan and the evaluation's share the parameters and one arena, for they never
run at the same time. Where a run is kept and how often what happens is `gpt2.train`'s concern.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from aieflow.gpt2.checkpoint import Moments
from aieflow.gpt2.energy import Energy, Meter
from aieflow.gpt2.lower import Optimizer, evaluation, training_step
from aieflow.gpt2.params import initial_parameters, parameter_specs
from aieflow.gpt2.run_config import RunConfig, learning_rate
from aieflow.gpt2.sampler import Sampler
from aieflow.ops.errors import DeviceError, InputError, PlanError, TrainingError
from aieflow.ops.graph import Graph
from aieflow.ops.op import Array
from aieflow.runtime.executor import Executor
from aieflow.runtime.machine import Machine
from aieflow.runtime.plan import Plan, Step
from aieflow.runtime.replan import Plans, Replan, Replanner, replanner
from aieflow.runtime.states import States
from aieflow.runtime.trace import Trace

WORTH_RECOMPUTING_NBYTES = 64 << 20  # less is not worth up to 1 % of a small model's time
LARGEST_LOGITS_NBYTES = 128 << 20  # of one slice: smaller ones would slow the products down
_SMALLER = (
    "use a smaller --batch-size (with --grad-accumulation) or --seq-len, or a smaller --preset"
)


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one training step gave; `training_step` counts those completed."""

    training_step: int
    loss: float
    lr: float
    grad_norm: float
    seconds: float
    tokens_per_s: float
    trace: Trace | None = None
    energy: Energy | None = None  # of the same time as `seconds`; None: without a meter


def training_graph(config: RunConfig) -> Graph:
    """The graph of one training step of a run."""
    return training_step(
        config.model,
        config.batch_size * config.grad_accumulation,
        config.seq_len,
        shards=config.grad_accumulation * config.shards,
        optimizer=Optimizer(config.beta1, config.beta2, config.weight_decay, config.grad_clip),
        dropout=config.dropout,
        recompute=_recomputed_nbytes(config) >= WORTH_RECOMPUTING_NBYTES,
        head_slices=_head_slices(config),
    )


def _head_slices(config: RunConfig) -> int:
    """The fewest slices of the batch whose logits stay below the limit, if any do."""
    B = config.batch_size // config.shards
    nbytes = 4 * B * config.seq_len * config.model.vocab_size
    divisors = [slices for slices in range(1, B + 1) if B % slices == 0]
    return next((each for each in divisors if nbytes <= each * LARGEST_LOGITS_NBYTES), B)


def _recomputed_nbytes(config: RunConfig) -> int:
    """What outputs of GELU (4C a token and layer) and layernorm (2C) would occupy until read."""
    model = config.model
    return 4 * config.batch_size * config.seq_len * model.layers * 6 * model.channels


@dataclass(frozen=True, slots=True)
class Exclusion:
    """A device that a run goes on without; `training_step` is the one that was repeated."""

    training_step: int
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replanned:
    """What came of a drift; `training_step` is the first after it."""

    training_step: int
    replan: Replan


T = TypeVar("T")
# Of a machine, its plans and what makes others: whoever plans again, if anyone does.
Watch = Callable[[Machine, Plans, Callable[[Machine], Plans]], Replanner | None]


class Trainer:
    """Holds parameters and moments, and does training steps and evaluations.

    Raises InputError when the plan needs more memory than the machine has free. A device that fails
    is left out from then on where the machine says so, and what it was doing is repeated without
    it; otherwise DeviceError is raised, with the states as they were before the run. Where training
    steps drift, `watch` makes another plan, which the next training step follows.
    """

    def __init__(self, config: RunConfig, machine: Machine, watch: Watch = replanner) -> None:
        self.config = config
        self.machine = machine
        self.emulated = machine.emulated  # also those lost since: their times are in the records
        self.exclusions: list[Exclusion] = []
        self.replans: list[Replanned] = []
        self._watch = watch
        self._replanner: Replanner | None = None
        self._next_plans: Plans | None = None  # that are made already
        self._done = 0  # training steps completed, as far as `step` was told
        self._states: States | None = None
        self._opened: list[Executor] = []
        self._arena: Array | None = None
        _require_least(config, machine)
        shape = (config.batch_size, config.seq_len)
        self._batches = [
            (np.zeros(shape, np.int32), np.zeros(shape, np.int32))
            for _ in range(config.grad_accumulation)
        ]
        while True:
            try:
                self._open()
            except DeviceError as error:
                self._exclude(error)
            else:
                return

    def _open(self) -> None:
        """Plan for the machine as it is now, and bind the plans to memory."""
        machine = self.machine
        plans, self._next_plans = self._next_plans or self._plans_for(machine), None
        self.plan, evaluation_plan = plans
        arena_nbytes = max(plan.memory.arena_nbytes for plan in (self.plan, evaluation_plan))
        self.planned_nbytes = (
            self.plan.nbytes
            + arena_nbytes
            - self.plan.memory.arena_nbytes
            + evaluation_plan.memory.accounts["feeds"]
            + sum(evaluation_plan.workspace.values())
        )
        if self._states is None:
            _require_memory(self.planned_nbytes, machine, self.plan, evaluation_plan)
            parameters = [value for value in self.plan.graph.states if value.role != "cache"]
            self._states = machine.allocate_states(self.plan.graph, parameters)
        if self._arena is None or self._arena.nbytes < arena_nbytes:
            if self._arena is not None:
                machine.release(self._arena)
                self._arena = None
            self._arena = machine.allocate(arena_nbytes)
        observer = _require_finite if self.config.check_finite else None
        for plan, seen_by in ((self.plan, observer), (evaluation_plan, None)):
            self._opened.append(machine.open(plan, self._states, self._arena, seen_by))
        if self._replanner is None and self.config.replan == "auto" and observer is None:
            self._replanner = self._watch(machine, plans, self._plans_for)

    def _plans_for(self, machine: Machine) -> tuple[Plan, Plan]:
        """The plans of a training step and of an evaluation; for any thread."""
        config = self.config
        graph = evaluation(config.model, config.batch_size, config.seq_len)
        plan = machine.plan(training_graph(config), divided=not config.check_finite)
        return plan, machine.plan(graph)

    @property
    def _executor(self) -> Executor:
        return self._opened[0]

    @property
    def _evaluator(self) -> Executor:
        return self._opened[1]

    @property
    def states(self) -> States:
        """The memory of parameters and moments."""
        assert self._states is not None
        return self._states

    def _exclude(self, error: DeviceError) -> None:
        """Go on without the device that failed, from the same state; raises `error` if not asked.

        Its lanes are idle and the states are those before the run.
        """
        machine, device = self.machine, error.device
        if not machine.excludes_failed or device not in machine.expendable:
            raise error
        self._rest()
        self.machine = machine.without(device)
        self._next_plans = self._replanner = None
        self.exclusions.append(Exclusion(self._done + 1, device, str(error)))

    def _rest(self) -> None:
        """Let the plans go that are open: the next run opens others, from the same states."""
        while self._opened:
            self._opened.pop().close()
        if self._states is not None:
            self._states.drop_derived()

    def _take_up(self, index: int) -> None:
        """Follow the plans that were made beside training, if there are any."""
        replan = None if self._replanner is None else self._replanner.answer()
        if replan is None:
            return
        if replan.plans is not None:
            self._rest()
            self._next_plans = replan.plans
        self.replans.append(Replanned(index + 1, replan))

    def _insist(self, call: Callable[[], T]) -> T:
        """What `call` gives, with as many devices as it takes."""
        while True:
            try:
                if not self._opened:
                    self._open()
                return call()
            except DeviceError as error:
                self._exclude(error)

    @property
    def parameters(self) -> Mapping[str, Array]:
        """The parameters by name, float32: the memory itself, which the caller may write."""
        self.states.touch()
        return {name: self.states[name] for name in parameter_specs(self.config.model)}

    @property
    def moments(self) -> Moments:
        """AdamW's moments by parameter name, float32: the memory itself, which he may write."""
        self.states.touch()
        names = parameter_specs(self.config.model)
        first, second = ({name: self.states[f"{k}:{name}"] for name in names} for k in "mv")
        return Moments(first, second)

    def initialise(self) -> None:
        """Fill the parameters from the run's seed."""
        for _ in initial_parameters(self.config.model, self.config.seed, self.parameters):
            pass  # each was written in place

    def warm_up(self) -> None:
        """Run both plans once, so that kernels are compiled and pages present; clears all states.

        To be called before the parameters are filled.
        """
        self._clear()
        self._insist(lambda: self._executor.run(self._feeds(0, 0.0)))
        tokens, targets = self._batches[0]
        self._insist(lambda: self._evaluator.run({"tokens": tokens, "targets": targets}))
        self._clear()

    def _clear(self) -> None:
        for array in self.states.values():
            array[...] = 0
        self.states.touch()

    def step(
        self, index: int, sampler: Sampler, traced: bool = False, meter: Meter | None = None
    ) -> StepRecord:
        """Do training step `index`, counted from 0; a meter measures it from begin to end.

        Raises TrainingError when the loss or the gradients' norm is not finite, or with
        `check_finite` at the first node that gives such a value.
        """
        config = self.config
        self._done = index
        self._take_up(index)
        watch = self._replanner
        wanted = traced or (watch is not None and watch.wants_trace)
        if not self._opened:
            self._insist(lambda: None)  # so that what opening plans takes is in no record
        if meter is not None:
            meter.begin()
        begin = time.perf_counter()
        for number, (tokens, targets) in enumerate(self._batches):
            sampler.fill(index, number, tokens, targets)
        lr = learning_rate(config, index)
        feeds = self._feeds(index, lr)
        try:
            trace = self._insist(lambda: self._executor.run(feeds, wanted))
        except TrainingError as error:
            raise TrainingError(f"training step {index + 1}: {error}") from None
        loss = float(self._executor.array("loss")[0])
        grad_norm = float(self._executor.array("grad_norm")[0])
        seconds = time.perf_counter() - begin
        energy = None if meter is None else meter.end()
        if watch is not None and watch is self._replanner:
            watch.note(seconds, trace, is_usual=wanted == traced)
        for name, value in (("loss", loss), ("gradients' norm", grad_norm)):
            if not np.isfinite(value):
                raise TrainingError(
                    f"training step {index + 1}: the {name} is {value}: try a lower --lr, or "
                    "--grad-clip; --check-finite names the first node that gives such a value"
                )
        return StepRecord(
            index + 1,
            loss,
            lr,
            grad_norm,
            seconds,
            config.batch_size * config.grad_accumulation * config.seq_len / seconds,
            trace if traced else None,
            energy,
        )

    def evaluate(self, batches: Iterable[tuple[Array, Array]]) -> float:
        """Mean loss over batches of tokens and targets int32 (B, T).

        Raises TrainingError when it is not finite.
        """
        losses = []
        for tokens, targets in batches:
            feeds = {"tokens": tokens, "targets": targets}
            self._insist(partial(self._evaluator_run, feeds))
            losses.append(float(self._evaluator.array("loss")[0]))
        loss = float(np.mean(losses))
        if not np.isfinite(loss):
            raise TrainingError(f"the validation loss is {loss}: try a lower --lr")
        return loss

    def lane_progress(self) -> dict[str, int]:
        """How many steps of the training step's plan each lane has done; for any thread."""
        opened = self._opened[:1]  # empty while another plan is made
        return opened[0].progress() if opened else {}

    def require_finite(self) -> None:
        """Raise TrainingError that names the first parameter which holds NaN or infinity."""
        for name, array in self.parameters.items():
            if not np.isfinite(array).all():
                raise TrainingError(f"parameter {name} is not finite: try a lower --lr")

    def close(self) -> None:
        """End the lanes' workers."""
        for executor in self._opened:
            executor.close()

    def _evaluator_run(self, feeds: Mapping[str, Array]) -> None:
        self._evaluator.run(feeds)

    def _feeds(self, index: int, lr: float) -> dict[str, Array]:
        config = self.config
        t = index + 1
        rates = np.array([lr, 1 - config.beta1**t, 1 - config.beta2**t])
        feeds: dict[str, Array] = {"rates": rates}
        if config.dropout:
            sequence = np.random.SeedSequence((config.seed, index))
            feeds["key"] = sequence.generate_state(1, np.uint64)
        shards = [
            (tokens[first : first + rows], targets[first : first + rows])
            for rows in (config.batch_size // config.shards,)
            for tokens, targets in self._batches
            for first in range(0, config.batch_size, rows)
        ]
        for number, (tokens, targets) in enumerate(shards):
            prefix = f"shard.{number}." if len(shards) > 1 else ""
            feeds[f"{prefix}tokens"], feeds[f"{prefix}targets"] = tokens, targets
        return feeds


def _require_least(config: RunConfig, machine: Machine) -> None:
    """Refuse at once what no plan can fit: lowering and planning it would take minutes."""
    states = 3 * 4 * config.model.parameters  # with both moments
    logits = 4 * config.batch_size * config.seq_len * config.model.vocab_size
    tokens = 2 * 4 * config.grad_accumulation * config.batch_size * config.seq_len
    free = machine.free_nbytes()
    if states + logits + tokens > free:
        gib = [f"{nbytes / 2**30:,.2f} GiB" for nbytes in (states, logits + tokens, free)]
        raise InputError(
            f"--batch-size {config.batch_size} and --seq-len {config.seq_len} with "
            f"{config.model.parameters:,} parameters: at least {gib[0]} of memory for parameters "
            f"and moments and {gib[1]} for the batch, {machine.name} has {gib[2]} free: {_SMALLER}"
        )


def _require_memory(nbytes: int, machine: Machine, *plans: Plan) -> None:
    try:
        machine.require_memory(nbytes, *plans)
    except PlanError as error:
        raise InputError(f"{error}: {_SMALLER}") from None


def _require_finite(step: Step, outputs: Mapping[str, Array]) -> None:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(np.argmin(np.isfinite(array)))
            raise TrainingError(
                f"%{name} is the first value that is not finite: "
                f"element {bad} is {array.reshape(-1)[bad]}"
            )
