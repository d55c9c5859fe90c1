"""Another plan while training goes on: what for, what of, and that numbers stay the same.

Losses are compared exactly: all fake devices run the same kernels, so what moves keeps its bits.
"""

import json
import random
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from event_watcher import EventWatcher
from made_up_costs import MadeUp, drawn_costs, fakes, step_cost
from scripted_truth import Truth
from short_run import CONFIG, TOKENS

from aieflow.devices.base import Device
from aieflow.devices.fake import FakeDevice
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import RunFolder, create_run
from aieflow.gpt2.train import restore, train
from aieflow.gpt2.trainer import Trainer, Watch, training_graph
from aieflow.ops.errors import DeviceError, PlanError
from aieflow.profiles.history import KEPT
from aieflow.runtime.drift import DriftRule
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.plan import Plan
from aieflow.runtime.replan import EVERY, Plans, Replan, Replanner, Start, beside, replanner
from aieflow.runtime.schedule import device_of
from aieflow.tools.bench_train import RandomTokens

RULE = DriftRule(patience=3, settling=4)
TOLD = KEPT + RULE.patience  # runs from a drift to the new plan, where planning takes no time
SAMPLER = RandomTokens(CONFIG.model.vocab_size)
Script = Callable[[int], None]  # is told the number of each training step before it begins


def at_once(work: Callable[[], None]) -> None:
    work()


def drawn() -> tuple[Machine, Truth]:
    """Fake devices that differ node by node, so that a plan uses all of them."""
    found = fakes(2)
    cost = drawn_costs(random.Random(8), training_graph(CONFIG), found)
    cost = replace(cost, transfer=0.01, factor=1.0)
    return machine_of(found.values(), cost), Truth(cost)


def machine_of(devices: Iterable[Device], cost: MadeUp, policy: str = "heft") -> Machine:
    return Machine(tuple(devices), Placement(policy, cost=step_cost(cost)), True)


def watched(truth: Truth, start: Start = at_once) -> Watch:
    def watch(machine: Machine, plans: Plans, make: Callable[[Machine], Plans]) -> Replanner | None:
        return Replanner(machine, plans, make, RULE, start, truth.seen)

    return watch


def trained(
    machine: Machine, watch: Watch, steps: int, script: Script, config: RunConfig = CONFIG
) -> tuple[list[float], Trainer]:
    """The losses of so many training steps, and the closed trainer."""
    with closing(Trainer(config, machine, watch)) as trainer:
        trainer.warm_up()
        trainer.initialise()
        losses = []
        for index in range(steps):
            script(index)
            losses.append(trainer.step(index, SAMPLER).loss)
        return losses, trainer


def nothing(index: int) -> None:
    return


def slower(truth: Truth, at: int, **factors: float) -> Script:
    def script(index: int) -> None:
        if index == at:
            truth.factors.update(factors)

    return script


def share(plan: Plan, device: str) -> int:
    """How many nodes a device does."""
    return sum(device_of(lanes[0]) == device for lanes in plan.schedule.placements)


def outcomes(trainer: Trainer) -> list[str]:
    return [each.replan.outcome for each in trainer.replans]


def test_work_moves_away_from_a_device_that_became_slow(undisturbed: list[float]) -> None:
    """3 times slower from training step 20 on: one new plan, the same losses."""
    machine, truth = drawn()
    before = machine.plan(training_graph(CONFIG))
    losses, trainer = trained(machine, watched(truth), 90, slower(truth, 20, far=3.0))
    assert outcomes(trainer) == ["swapped"]
    (replanned,) = trainer.replans
    # Two of the last three show it, a few runs are traced, and then a few are timed.
    assert replanned.training_step == 20 + 2 + TOLD + 1
    assert 0 < share(trainer.plan, "far") < share(before, "far")
    assert truth.trace(trainer.plan).seconds < truth.trace(before).seconds
    told = replanned.replan
    assert told.gain is not None
    assert told.gain > 0.03
    assert told.before == f"fake {share(before, 'fake')}, far {share(before, 'far')}"
    assert "far 3.00x as long as foretold" in told.reason
    assert "fake 1.00x" in told.reason
    assert losses == undisturbed[:90]


def followed(
    machine: Machine,
    truth: Truth,
    steps: int,
    script: Script,
    make: Callable[[Machine], Plans] | None = None,
) -> tuple[list[tuple[int, Replan]], Plan]:
    """What came of drifts, with the number of the next run, and the plan followed last.

    Nothing is computed here: a run is what the truth says of it.
    """
    graph = training_graph(CONFIG)
    plan = machine.plan(graph)
    make = make or (lambda other: (other.plan(graph),))
    found = Replanner(machine, (plan,), make, RULE, at_once, truth.seen)
    answers: list[tuple[int, Replan]] = []
    for index in range(steps):
        script(index)
        answer = found.answer()
        if answer is not None:
            answers.append((index, answer))
            plan = plan if answer.plans is None else answer.plans[0]
        wanted = found.wants_trace
        found.note(0.0, truth.trace(plan) if wanted else None, is_usual=not wanted)
    return answers, plan


@pytest.fixture(scope="module")
def undisturbed() -> list[float]:
    """The losses of a run in which nothing is planned again; all machines here have the same."""
    _, truth = drawn()
    losses, quiet = trained(machine_of(fakes(1).values(), truth.base), no_watch, 90, nothing)
    assert quiet.replans == []
    return losses


def no_watch(machine: Machine, plans: Plans, make: Callable[[Machine], Plans]) -> Replanner | None:
    return None


def test_work_comes_back_when_the_device_is_quick_again() -> None:
    machine, truth = drawn()
    before = machine.plan(training_graph(CONFIG))

    def script(index: int) -> None:
        truth.factors["far"] = 3.0 if 20 <= index < 200 else 1.0

    answers, plan = followed(machine, truth, 440, script)
    assert [answer.outcome for _, answer in answers] == ["swapped", "swapped"]
    # A run is hardly quicker, as little was left on the device: its works show it.
    assert answers[1][1].reason.startswith("works on far take 0.33x as long")
    assert truth.trace(plan).seconds <= 1.03 * truth.trace(before).seconds


def test_a_prediction_that_misses_from_the_start_is_mended() -> None:
    machine, truth = drawn()
    truth.factors["far"] = 3.0
    answers, _ = followed(machine, truth, 40, nothing)
    ((index, answer),) = answers
    assert (index, answer.outcome) == (RULE.settling + TOLD, "swapped")
    assert " s foretold (simulated): " in answer.reason


def test_where_all_is_slower_the_plan_is_kept_and_no_storm_follows() -> None:
    machine, truth = drawn()
    before = machine.plan(training_graph(CONFIG))
    script = slower(truth, 20, fake=2.0, far=2.0)
    answers, plan = followed(machine, truth, 150, script)
    # Transfers are as quick as before, so another plan might gain a little: not enough.
    ((_, answer),) = answers
    assert (answer.outcome, answer.plans) == ("kept", None)
    assert plan.schedule.placements == before.schedule.placements


def mistaken() -> tuple[Machine, Truth]:
    """All is on `far`; `remote` seems to be the next best, and is the worst."""
    nodes = training_graph(CONFIG).nodes
    seconds = {("far", node.name): 0.1 for node in nodes}
    seconds |= {("remote", node.name): 0.15 for node in nodes}
    cost = MadeUp(seconds, factor=3.0)  # so that nothing is gained by two devices at once
    truth = Truth(cost, {"remote": 20.0})
    return machine_of(fakes(3).values(), cost, "best"), truth


def test_a_plan_that_is_worse_than_the_old_one_goes_again(undisturbed: list[float]) -> None:
    """The old plan is back after one short trial, and the mistake is not made twice."""
    machine, truth = mistaken()
    before = machine.plan(training_graph(CONFIG))
    losses, trainer = trained(machine, watched(truth), 90, slower(truth, 20, far=3.0))
    assert outcomes(trainer)[:2] == ["swapped", "reverted"]
    # What was learned in the trial stays: what follows may only be a plan without `remote`.
    first, second, *_ = trainer.replans
    assert second.training_step - first.training_step == RULE.patience + KEPT
    assert second.replan.after == first.replan.before
    assert len(trainer.replans) <= 3
    assert truth.trace(trainer.plan).seconds <= truth.trace(before).seconds
    assert losses == undisturbed[:90]


def test_a_device_that_always_changes_is_followed_ever_more_rarely() -> None:
    """It is 3 times slower for 60 runs out of 120, for ever: no storm of plans."""
    machine, truth = drawn()

    def script(index: int) -> None:
        truth.factors["far"] = 3.0 if index % 120 >= 60 else 1.0

    answers, _ = followed(machine, truth, 2400, script)
    assert 2 <= len(answers) <= 6  # of 39 changes


def test_few_runs_are_traced_where_nothing_changes() -> None:
    machine, truth = drawn()
    answers, _ = followed(machine, truth, 1000, nothing)
    assert truth.traced == 1000 // EVERY
    assert answers == []


def test_a_trace_that_was_asked_for_is_given_and_no_other() -> None:
    machine, truth = drawn()
    with closing(Trainer(CONFIG, machine, watched(truth))) as trainer:
        trainer.initialise()
        assert [trainer.step(index, SAMPLER).trace for index in range(40)] == [None] * 40
        record = trainer.step(40, SAMPLER, traced=True)
        assert record.trace is not None


class Held:
    """Planning that goes on until a test lets it."""

    def __init__(self) -> None:
        self.works: list[Callable[[], None]] = []

    def start(self, work: Callable[[], None]) -> None:
        self.works.append(work)


def test_training_goes_on_while_a_plan_is_made(undisturbed: list[float]) -> None:
    machine, truth = drawn()
    held, script = Held(), slower(truth, 20, far=3.0)

    def release(index: int) -> None:
        script(index)
        if index == 60:
            held.works.pop()()

    losses, trainer = trained(machine, watched(truth, held.start), 80, release)
    assert [each.training_step for each in trainer.replans] == [61 + RULE.patience]
    assert outcomes(trainer) == ["swapped"]
    assert losses == undisturbed[:80]


def run_until(
    run: RunFolder, truth: Truth, start: Start, script: Script, should_stop: Callable[[], bool]
) -> list[str]:
    """One process's worth of a run, in which a device becomes slow at training step 5."""
    machine = machine_of(fakes(2).values(), truth.base)
    watcher = EventWatcher()
    with closing(Trainer(run.config, machine, watched(truth, start))) as trainer:
        trainer.warm_up()
        state = restore(run, trainer, TOKENS, None)
        step = trainer.step

        def scripted(index: int, *arguments: object, **options: object) -> object:
            script(index)
            return step(index, *arguments, **options)  # type: ignore[arg-type]  # handed through

        trainer.step = scripted  # type: ignore[method-assign,assignment]  # the moment matters
        train(run, trainer, TOKENS, state, watcher, should_stop=should_stop)
    return watcher.events


def metrics(run: RunFolder) -> list[dict[str, object]]:
    return [json.loads(line) for line in run.metrics_file.read_text().splitlines()]


def losses_in(run: RunFolder) -> list[object]:
    return [line["loss"] for line in metrics(run) if "loss" in line]


def test_a_run_that_is_stopped_while_a_plan_is_made_goes_on(tmp_path: Path) -> None:
    """Ctrl-C while planning: a checkpoint at once; resumed, the losses of an undisturbed run."""
    config = replace(CONFIG, steps=30, eval_every=7, eval_batches=1, checkpoint_every=0)
    runs = [create_run(tmp_path / name, config) for name in ("stopped", "whole", "quiet")]
    stopped, whole, quiet = runs
    _, truth = drawn()
    held = Held()
    events = run_until(
        stopped, truth, held.start, slower(truth, 5, far=3.0), lambda: bool(held.works)
    )
    assert len(held.works) == 1  # planning had begun, and nobody waited for its end
    assert events[-1] == f"step-{5 + 2 + KEPT}"
    held.works.pop()()  # it ends after its run: to no effect
    resumed = run_until(stopped, truth, at_once, nothing, lambda: False)
    assert any(event.startswith("swapped") for event in resumed)  # slow from the start
    _, truth = drawn()
    events = run_until(whole, truth, at_once, slower(truth, 5, far=3.0), lambda: False)
    assert f"swapped {5 + 2 + TOLD + 1}" in events
    _, truth = drawn()
    run_until(quiet, truth, at_once, nothing, lambda: False)
    assert losses_in(stopped) == losses_in(whole) == losses_in(quiet)
    (line,) = [line for line in metrics(whole) if "replan" in line]
    assert line["replan"] == "swapped"
    assert line["training_step"] == 5 + 2 + TOLD + 1
    assert "far 3.00x" in str(line["reason"])
    assert line["from"] != line["to"]
    assert float(str(line["predicted_seconds"])) < float(str(line["predicted_seconds_before"]))
    assert not [line for line in metrics(quiet) if "replan" in line]
    assert whole.plan_file.read_text() != quiet.plan_file.read_text()  # of the plan followed last


def test_a_checkpoint_while_a_plan_is_made_holds_what_training_has_reached(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=20, eval_every=0, eval_batches=1, checkpoint_every=15)
    run, quiet = (create_run(tmp_path / name, config) for name in ("planning", "quiet"))
    _, truth = drawn()
    held = Held()
    run_until(run, truth, held.start, slower(truth, 5, far=3.0), lambda: False)
    assert len(held.works) == 1  # since training step 12
    _, truth = drawn()
    run_until(quiet, truth, at_once, nothing, lambda: False)
    for step in (15, 20):
        names = [path.name for path in run.checkpoint(step).iterdir()]
        assert any(name.endswith(".safetensors") for name in names)
        for name in names:
            if name.endswith(".safetensors"):
                kept, same = (each.checkpoint(step) / name for each in (run, quiet))
                assert kept.read_bytes() == same.read_bytes()


def test_ctrl_c_while_planning_waits_for_nobody() -> None:
    machine, truth = drawn()
    held = Held()

    def script(index: int) -> None:
        slower(truth, 20, far=3.0)(index)
        if held.works:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(machine, watched(truth, held.start), 80, script)
    assert len(held.works) == 1


def test_a_device_lost_while_a_plan_is_made_leaves_that_plan_unused(
    undisturbed: list[float],
) -> None:
    """The plan would use the lost device; the run goes on by one without it."""
    host, far = FakeDevice(lanes=2), FakeRemoteDevice("far")
    _, truth = drawn()
    held = Held()

    def script(index: int) -> None:
        slower(truth, 20, far=3.0)(index)
        if index == 40:
            far.fail(len(far.calls) + 3, DeviceError("fell off the bus", "far"))
        if index == 50:
            held.works.pop()()

    losses, trainer = trained(
        machine_of((host, far), truth.base), watched(truth, held.start), 80, script
    )
    assert [each.training_step for each in trainer.exclusions] == [41]
    assert trainer.replans == []
    assert share(trainer.plan, "far") == 0
    assert losses == undisturbed[:80]


def test_a_device_lost_after_a_change_is_left_out_of_the_next_plan() -> None:
    host, far = FakeDevice(lanes=2), FakeRemoteDevice("far")
    _, truth = drawn()

    def script(index: int) -> None:
        slower(truth, 20, far=3.0)(index)
        if index == 40:
            far.fail(len(far.calls) + 3, DeviceError("fell off the bus", "far"))

    _, trainer = trained(machine_of((host, far), truth.base), watched(truth), 45, script)
    assert outcomes(trainer) == ["swapped"]
    assert [each.device for each in trainer.exclusions] == ["far"]
    assert share(trainer.plan, "far") == 0


def answer_of(make: Callable[[Machine], Plans]) -> Replan:
    """What a re-planner answers to a drift, whose plans `make` makes."""
    machine, truth = drawn()
    answers, _ = followed(machine, truth, 40, slower(truth, 20, far=3.0), make)
    ((_, answer),) = answers
    return answer


def test_where_no_plan_can_be_made_the_old_one_is_kept() -> None:
    def refuse(machine: Machine) -> Plans:
        raise PlanError("no memory left")

    answer = answer_of(refuse)
    assert (answer.outcome, answer.plans) == ("kept", None)
    assert answer.reason.endswith("no plan could be made: no memory left")


def test_planning_beside_a_training_takes_one_thread() -> None:
    asked: list[int] = []

    def note(machine: Machine) -> Plans:
        asked.append(machine.placement.effort.threads)
        raise PlanError("noted")

    answer_of(note)
    assert asked == [1]


def test_a_fault_of_planning_is_not_hidden() -> None:
    def break_down(machine: Machine) -> Plans:
        raise KeyError("a fault")

    with pytest.raises(KeyError, match="a fault"):
        answer_of(break_down)


def test_planning_in_a_thread_gives_the_interpreter_back_as_it_was() -> None:
    before, inside, done = sys.getswitchinterval(), [0.0], threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        inside[0] = sys.getswitchinterval()
        threads.append(threading.current_thread())
        done.set()

    beside(work)
    assert done.wait(30)
    threads[0].join(30)
    assert threads[0] is not threading.main_thread()
    assert threads[0].daemon
    assert inside[0] < before / 10
    assert sys.getswitchinterval() == pytest.approx(before)


@pytest.mark.parametrize(
    ("policy", "count", "has_costs", "is_on"),
    [
        ("best", 2, True, True),
        ("heft", 2, True, True),
        ("cpu", 2, True, False),
        ("cpu", 2, False, False),
        ("best", 1, True, False),
    ],
)
def test_it_is_on_only_where_there_is_something_to_weigh(
    policy: str, count: int, has_costs: bool, is_on: bool
) -> None:
    cost = step_cost(MadeUp()) if has_costs else None
    machine = Machine(tuple(fakes(count).values()), Placement(policy, cost=cost))
    plans = (machine.plan(training_graph(CONFIG)),)
    found = replanner(machine, plans, lambda machine: plans)
    assert (found is not None) == is_on


@pytest.mark.parametrize("change", [{"replan": "off"}, {"check_finite": True}])
def test_it_is_off_where_a_run_says_so(change: dict[str, object]) -> None:
    machine, truth = drawn()
    config = replace(CONFIG, **change)  # type: ignore[arg-type]  # two kinds of settings
    _, trainer = trained(machine, watched(truth), 40, slower(truth, 5, far=3.0), config)
    assert (trainer.replans, truth.traced) == ([], 0)
