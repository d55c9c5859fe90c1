"""The cost model of this computer: what was measured goes before what is foretold.

`true_cost` stands for a computer: it takes times by a rule, with nothing random. Its plan is
"run" in the simulator, which leaves spans as a real run does; what is learnt from those must
foretell the same run, and runs of other shapes nearly.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import pytest

from aieflow.devices.described import described_cpu, described_igpu
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.lower import training_step
from aieflow.ops.errors import ProfileError
from aieflow.ops.kernel import Kernels
from aieflow.profiles.measured import MeasuredProfile
from aieflow.profiles.measured_cost import MeasuredCost
from aieflow.profiles.overhead import Overheads, PerStep, gap_kind
from aieflow.profiles.samples import TRUSTED
from aieflow.profiles.work import work_of
from aieflow.runtime.observed import works_in
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan
from aieflow.runtime.schedule import device_of
from aieflow.runtime.simulate import simulate
from aieflow.runtime.step_cost import MachineStepCost, StepWork
from aieflow.tools.calibration_visit import Seen, note_trace

CPU, IGPU = described_cpu(2, 1 << 34), described_igpu(1, 1 << 34)
DEVICES = {"cpu": CPU, "igpu": IGPU}
KERNELS: Kernels = {name: device.kernels for name, device in DEVICES.items()}


def planned(channels: int, policy: str = "cpu", T: int = 32, V: int = 2048, **places: str) -> Plan:
    model = ModelConfig(vocab_size=V, seq_len=T, layers=2, heads=4, channels=channels)
    names = ("cpu", "igpu") if policy == "igpu" or places else ("cpu",)
    devices = {name: DEVICES[name] for name in names}
    return place_on(training_step(model, 4, T), devices, Placement(policy, places))


@dataclass(frozen=True)
class TrueCost:
    """Launch 5 us, 20 GFLOP/s, 5 GB/s on a lane; the igpu three times as fast."""

    name: str = "true"
    idle_w: float = 0.0

    def of(self, plan: Plan) -> tuple[StepWork, ...]:
        nbytes = {value.name: value.spec.nbytes for value in plan.graph.values}
        works = []
        for step in plan.steps:
            device = device_of(step.lane)
            if step.kind == "node":
                work = work_of(
                    device, plan.node_of(step), KERNELS[device][plan.work_of(step)], step.parts
                )
                seconds = 5e-6 + work.flops / 20e9 + work.nbytes / 5e9
                seconds /= 3 if device == "igpu" else 1
            elif step.kind == "save":
                seconds = nbytes[step.value] / 4e9
            else:
                seconds = 2e-6 + nbytes[step.value] / 8e9
            works.append(StepWork("cpu" if ".copy" in step.lane else device, seconds))
        return tuple(works)

    def slowdown(self, device: str, others: Collection[str]) -> float:
        return 1.0


def learnt(*plans: Plan, runs: int = TRUSTED) -> MeasuredProfile:
    """What calibration keeps of so many noted runs of plans, and of links of known speed."""
    profile = MeasuredProfile()
    for name, device in DEVICES.items():
        profile = profile.with_device(name, {"power": "mains"}, len(device.lanes))
    for plan in plans:
        seen, trace = Seen(), simulate(plan, TrueCost())
        names = ",".join(sorted({device_of(x) for x in plan.lanes if ".compute" in x}))
        for _ in range(runs):
            note_trace(trace, names, works_in(plan, KERNELS), seen)
        profile = profile.with_samples(
            [(work, tuple(each)) for work, each in seen.works.items()],
            {name: tuple(each) for name, each in seen.series.items()},
        )
    series = {
        (kind, device, str(nbytes)): ((latency_s + nbytes / rate),) * TRUSTED
        for kind, device, latency_s, rate in (
            ("copy", "cpu", 0.0, 4e9),
            ("in", "igpu", 2e-6, 8e9),
            ("out", "igpu", 2e-6, 8e9),
        )
        for nbytes in (1 << 12, 1 << 20)
    }
    return profile.with_samples(series=series)


def predicted(profile: MeasuredProfile, plan: Plan) -> float:
    cost = MeasuredCost(profile, KERNELS)
    return simulate(plan, MachineStepCost(cost, cost.overheads)).seconds


@pytest.mark.parametrize(
    "plan",
    [planned(128), planned(128, "igpu"), planned(128, "igpu", matmul="cpu")],
    ids=["cpu", "igpu", "both"],
)
def test_a_run_that_was_seen_is_foretold(plan: Plan) -> None:
    """Spans are exact to the rounding of sums of some hundred terms."""
    both = [plan] if plan.schedule.policy == "cpu" else [plan, planned(128)]
    found = predicted(learnt(*both), plan)
    assert found == pytest.approx(simulate(plan, TrueCost()).seconds, rel=1e-9)


def test_runs_of_other_shapes_are_foretold_nearly() -> None:
    """Between measured widths and lengths; the rule has no caches, so the fit is near exact."""
    profile = learnt(*(planned(C, T=T) for C in (64, 128, 256) for T in (16, 64)))
    for C, T in ((96, 32), (192, 48), (160, 64)):
        plan = planned(C, T=T)
        assert predicted(profile, plan) == pytest.approx(
            simulate(plan, TrueCost()).seconds, rel=0.02
        )


def test_a_measured_work_goes_before_the_curve() -> None:
    plan = planned(128)
    profile = learnt(plan)
    step = next(step for step in plan.steps if plan.work_of(step) == "gelu")
    node, work = plan.node_of(step), works_in(plan, KERNELS)[step.node]
    smaller = replace(work, signature="smaller", sizes=tuple(size // 2 for size in work.sizes))
    slower = profile.without("cpu", "gelu").with_samples(
        [(work, (0.5,) * TRUSTED), (smaller, (1e-3,) * TRUSTED)]
    )
    cost = MeasuredCost(slower, KERNELS)
    assert cost.foretold(work) != 0.5
    assert cost.node_s("cpu", node, step.parts) == 0.5


def test_too_few_samples_do_not_count() -> None:
    plan = planned(128)
    step = next(step for step in plan.steps if plan.work_of(step) == "gelu")
    node, work = plan.node_of(step), works_in(plan, KERNELS)[step.node]
    few = learnt(plan).without("cpu", "gelu").with_samples([(work, (0.5,) * (TRUSTED - 1))])
    with pytest.raises(ProfileError, match="aieflow calibrate --device cpu --op gelu"):
        MeasuredCost(few, KERNELS).node_s("cpu", node, step.parts)


def test_what_is_missing_is_named_with_its_command() -> None:
    plan = planned(128)
    node = plan.graph.nodes[0]
    empty = MeasuredCost(MeasuredProfile(), KERNELS)
    cases: dict[str, Callable[[], object]] = {
        "--device cpu --op embedding": lambda: empty.node_s("cpu", node),
        "--device npu --op embedding": lambda: empty.node_s("npu", node),
        "--device igpu`": lambda: empty.transfer_s("igpu", 1.0),
        "--device cpu`": lambda: empty.copy_s(1.0),
        "--device npu`": lambda: empty.lanes("npu"),
        "--op npu_pack": lambda: empty.work_s("cpu", "npu_pack", 1.0, 1.0),
    }
    for text, call in cases.items():
        with pytest.raises(ProfileError, match="run `aieflow calibrate") as caught:
            call()
        assert text in str(caught.value)


def test_another_kernel_is_another_work() -> None:
    """A profile made with the CPU's kernels says nothing of kernels of another name."""
    plan = planned(128)
    node = plan.graph.nodes[0]
    cost = MeasuredCost(learnt(plan), {"cpu": IGPU.kernels})
    if IGPU.kernels[node.op.name].name != CPU.kernels[node.op.name].name:
        with pytest.raises(ProfileError):
            cost.node_s("cpu", node)


def test_works_differ_by_what_costs_time_alone() -> None:
    graph = training_step(ModelConfig(64, 8, 2, 2, 16), 2, 8, dropout=0.1)
    attention = [node for node in graph.nodes if node.op.name == "attention"]
    kernel = CPU.kernels["attention"]
    first, second = (work_of("cpu", node, kernel, 1) for node in attention)
    assert attention[0].attrs["stream"] != attention[1].attrs["stream"]
    assert first.key == second.key
    assert "heads=2" in first.signature
    products = [node for node in graph.nodes if node.op.name == "matmul"]
    variants = {work_of("cpu", node, CPU.kernels["matmul"], 1).variant for node in products}
    assert {"bias 3", "transpose_a 2", "transpose_b 2"} <= variants


def test_a_part_has_its_share() -> None:
    """Rows of A and C divide; B is read whole by each part."""
    plan = planned(128)
    step = next(s for s in plan.steps if plan.work_of(s) == "matmul" and s.parts == 2)
    node = plan.node_of(step)
    kernel = CPU.kernels["matmul"]
    whole, half = (work_of("cpu", node, kernel, parts) for parts in (1, 2))
    split = kernel.split(node)
    shared = sum(
        spec.nbytes for place, spec in enumerate(node.input_specs) if place not in split.inputs
    )
    shared += sum(
        spec.nbytes for place, spec in enumerate(node.output_specs) if place not in split.outputs
    )
    assert half.flops == whole.flops / 2
    assert half.nbytes == shared + (node.nbytes - shared) / 2
    assert half.key != whole.key


def test_pairs_slow_each_other_down() -> None:
    profile = MeasuredProfile().with_samples(
        series={
            ("slowdown", "cpu,igpu", ""): (1.9, 2.0, 2.1),
            ("slowdown", "cpu,npu", ""): (1.5,),
            ("slowdown", "igpu,cpu", ""): (0.9,),
        }
    )
    cost = MeasuredCost(profile, KERNELS)
    assert cost.slowdown("cpu", ["igpu"]) == 2.0
    assert cost.slowdown("cpu", ["cpu", "npu", "igpu"]) == pytest.approx(3.0)
    assert cost.slowdown("igpu", ["cpu"]) == 1.0  # none is faster beside another
    assert cost.slowdown("npu", ["cpu"]) == 1.0


def test_gaps_are_part_of_steps() -> None:
    plan = planned(128)
    cost = MeasuredCost(learnt(plan), KERNELS)
    known = Overheads(
        run_s={"cpu": 1e-3},
        gaps={
            ("cpu", "cpu.compute waits"): PerStep(((9, 1e-3, 2e-5),)),
            ("cpu", "cpu.compute goes on"): PerStep(((9, 1e-3, 1e-6),)),
        },
    )
    plain = MachineStepCost(cost).of(plan)
    more = MachineStepCost(cost, known).of(plan)
    begun: set[str] = set()
    for step, without, with_gap in zip(plan.steps, plain, more, strict=True):
        first = step.lane not in begun
        begun.add(step.lane)
        expected = 2e-5 if step.waits else 1e-3 if first else 1e-6
        assert with_gap.seconds - without.seconds == pytest.approx(expected, rel=1e-9)
    assert len(begun) == 2


def test_gaps_of_the_same_devices_count_first() -> None:
    known = Overheads(
        gaps={
            ("cpu", "cpu.compute waits"): PerStep(((9, 1e-3, 1e-5),)),
            ("cpu,igpu", "cpu.compute waits"): PerStep(((9, 1e-3, 3e-5),)),
        },
        untraced={"igpu": PerStep(((5, 1e-3, -4e-5),))},
    )
    after = ["cpu.compute.1"]
    for devices, gap in (("cpu", 1e-5), ("cpu,igpu", 3e-5), ("cpu,npu", 3e-5)):
        beside = known.of(devices, {"cpu.compute waits": 5}, 1e-3)
        assert beside.seconds(1.0, "cpu.compute.0", after, False) == 1.0 + gap
    # nothing is known of this gap; the span was noted at a cost of 40 us, down to a tenth
    beside = known.of("igpu", {"igpu.compute goes on": 5, "igpu.copy goes on": 1}, 1e-3)
    assert beside.seconds(1e-4, "igpu.compute", [], False) == pytest.approx(6e-5)
    assert beside.seconds(1e-5, "igpu.compute", [], False) == pytest.approx(1e-6)
    assert beside.seconds(1e-4, "igpu.copy.in", [], False) == 1e-4


def test_what_noting_spans_costs_is_taken_from_the_whole_step() -> None:
    """A kernel of 10 us, 60 us until it ran because each was waited for, 55 us of that in vain."""
    gaps = {("igpu", "igpu.compute goes on"): PerStep(((9, 1e-5, 6e-5),))}
    known = Overheads(gaps=gaps, untraced={"igpu": PerStep(((9, 1e-5, -5.5e-5),))})
    found = known.of("igpu", {"igpu.compute goes on": 9}, 1e-5)
    assert found.seconds(1e-5, "igpu.compute", [], False) == pytest.approx(1.5e-5)


def test_what_noting_costs_is_that_of_plans_like_it() -> None:
    """Short steps, beside which noting takes its share of the cores, and long ones."""
    short = [
        (count, 1e-4, more_s) for count, more_s in ((190, -2e-5), (200, -2.1e-5), (210, -2.2e-5))
    ]
    seen = PerStep((*short, (20, 1e-1, 0.0)))
    known = Overheads(untraced={"igpu": seen})
    training = {"igpu.compute goes on": 150, "igpu.compute waits": 50, "igpu.copy goes on": 900}
    few = {"igpu.compute goes on": 20}
    assert known.of("igpu", training, 1e-4).untraced_s["igpu"] == pytest.approx(-2.1e-5, rel=0.02)
    assert known.of("igpu", few, 1e-1).untraced_s["igpu"] == pytest.approx(0, abs=1e-7)


def test_gaps_are_those_of_plans_like_it() -> None:
    """Many short steps, few long ones: a lane that slept for long takes longer to wake."""
    short = [(100.0, 1e-4, gap_s) for gap_s in (2e-5, 2.1e-5, 90e-5)]
    long = [(20.0, 1e-2, gap_s) for gap_s in (6e-5, 6.1e-5, 6.2e-5)]
    gaps = PerStep((*short, *long))
    for count, step_s, gap_s in (
        (120, 1.2e-4, 2.05e-5),  # one disturbed run moves nothing
        (20, 8e-3, 6.1e-5),
        (100, 1e-2, 6.1e-5),  # five times as many, but a hundred times as long
        (1, 1e3, 6.1e-5),  # like none: the nearest
        (1e9, 0.0, 2.05e-5),
    ):
        # the others weigh less than a hundredth, and lie at most twice as far away
        assert gaps.seconds(count, step_s) == pytest.approx(gap_s, rel=0.02)
    assert gaps.median_s == 6e-5
    copies = PerStep(((50.0, 1e-3, 2e-5), (2.0, 1e-3, 4e-4)))  # many follow each other: all awake
    assert copies.seconds(40, 1e-3) == pytest.approx(2e-5)
    assert copies.seconds(2, 1e-3) == pytest.approx(4e-4, rel=0.02)
    late = PerStep(tuple((50.0, 1e-3, gap_s) for gap_s in (2e-5, 2.2e-5, 1.8e-5, 2.1e-5, 2.8e-5)))
    assert late.seconds(50, 1e-3) == pytest.approx(2.18e-5)  # a tail counts


def test_transfers_of_a_run_are_noted_where_it_has_several() -> None:
    plan = planned(128, gelu="igpu", gelu_backward="igpu", embedding="igpu")
    trace = simulate(plan, TrueCost())
    seen = Seen()
    note_trace(trace, "cpu,igpu", {}, seen)
    nbytes = {value.name: value.spec.nbytes for value in plan.graph.values}
    moved = [(step.kind, nbytes[step.value]) for step in plan.steps if step.kind in ("in", "out")]
    noted = {name: each for name, each in seen.series.items() if name[0] in ("in", "out")}
    assert {each for each in moved if moved.count(each) >= 3}
    assert {(way, int(size)) for way, _, size in noted} == {
        each for each in moved if moved.count(each) >= 3
    }
    assert any(moved.count(each) < 3 for each in moved)
    for (_, device, size), (seconds,) in noted.items():
        assert device == "igpu"
        assert seconds == pytest.approx(2e-6 + int(size) / 8e9)


def test_kinds_of_gaps() -> None:
    assert gap_kind("cpu.compute.0", []) == "cpu.compute goes on"
    assert gap_kind("cpu.compute.0", ["cpu.compute.1"]) == "cpu.compute waits"
    assert gap_kind("cpu.compute.0", ["cpu.compute.1", "igpu.compute"]) == "cpu.compute crosses"
    assert gap_kind("host.copy", ["igpu.copy.out"]) == "host.copy crosses"


def test_the_gap_before_a_step_is_noted() -> None:
    """
    lane 0  [ a ]   [ c ]      c waits for b: its gap is what lies between b's end and c's start
    lane 1  [  b  ]
    """
    plan = planned(128)
    trace = simulate(plan, TrueCost())
    later = [
        replace(s, start_s=s.start_s * 2, end_s=s.start_s * 2 + (s.end_s - s.start_s))
        for s in trace.spans
    ]
    moved = replace(trace, spans=tuple(later), seconds=max(s.end_s for s in later))
    seen = Seen()
    note_trace(moved, "cpu", works_in(plan, KERNELS), seen)
    ends, last, total = {s.step: s.end_s for s in later}, dict[str, float](), 0.0
    for span in later:
        step = plan.steps[span.step]
        before = max([last.get(step.lane, 0.0), *(ends[wait] for wait in step.waits)])
        total += (span.start_s - before) if step.lane in last or step.waits else 0.0
        last[step.lane] = span.end_s
    noted = {name[2]: each for name, each in seen.series.items() if name[0] == "gap"}
    waiting = sum(bool(step.waits) for step in plan.steps)
    going_on = (
        len(plan.steps)
        - waiting
        - sum(not plan.steps[program[0]].waits for program in plan.lanes.values())
    )
    assert sum(map(len, noted.values())) == 2
    assert seen.series["gaps", "cpu", "cpu.compute waits"] == [waiting]
    assert seen.series["gaps", "cpu", "cpu.compute goes on"] == [going_on]
    found = noted["cpu.compute waits"][0] * waiting + noted["cpu.compute goes on"][0] * going_on
    assert found == pytest.approx(total)
    (run_s,) = seen.series["run", "cpu", ""]
    assert run_s == pytest.approx(min(s.start_s for s in later))
