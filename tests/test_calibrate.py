"""`aieflow calibrate`: what it measures, keeps, leaves out, goes on with and shows.

The grid is replaced by two tiny training steps; all else is real: the CPU's kernels run and are
timed, so no time is asserted, only that it is there.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import Command

from aieflow.devices.base import Device
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.fake_remote import FakeRemoteDevice
from aieflow.devices.surroundings import Finding
from aieflow.gpt2.config import PRESETS, ModelConfig
from aieflow.gpt2.generate import Generator
from aieflow.gpt2.lower import decoding, evaluation, inference
from aieflow.gpt2.params import initial_parameters
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.trainer import training_graph
from aieflow.ops.errors import ProfileError
from aieflow.profiles.measured import MeasuredProfile
from aieflow.profiles.samples import MOST, TRUSTED
from aieflow.profiles.store import read_profile, write_profile
from aieflow.runtime.machine import Machine
from aieflow.runtime.placement import Placement
from aieflow.runtime.simulate import simulate
from aieflow.tools import calibration, calibration_links, fingerprint
from aieflow.tools.calibration import Job, Progress, calibrate_devices, jobs_for, trusted_share
from aieflow.tools.calibration_grid import Case, cases
from aieflow.tools.calibration_links import measure_slowdown
from aieflow.tools.calibration_visit import visit
from aieflow.tools.check_prediction import Outcome, Pairs, ordered, report, trials
from aieflow.tools.computer_profile import fingerprints, measured_step_cost, profile_file
from aieflow.tools.machines import MachineAsked, opened_machine

TINY = tuple(
    Case(
        f"C={C}",
        RunConfig(
            model=ModelConfig(vocab_size=64, seq_len=16, layers=1, heads=2, channels=C),
            seq_len=16,
            batch_size=2,
        ),
    )
    for C in (16, 32)
)
Take = Callable[..., MeasuredProfile]


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "cases", lambda quick: TINY)
    monkeypatch.setattr(calibration_links, "LINK_NBYTES", (1 << 12, 1 << 16))
    monkeypatch.setattr(calibration_links, "PAIR_MODEL", TINY[0].config.model)
    monkeypatch.setattr(calibration_links, "PAIR_RUN_S", 0.001)
    monkeypatch.setattr(calibration, "PAIR_ROUNDS", 2)


@pytest.fixture
def take() -> Take:
    """Calibrate the CPU with two lanes, with little of each work."""

    def run(
        profile: MeasuredProfile | None = None,
        seen: list[str] | None = None,
        stop_after: int = 1000,
        op: str | None = None,
        wanted: int = TRUSTED,
    ) -> MeasuredProfile:
        kept: list[MeasuredProfile] = []

        def note(now: MeasuredProfile, done: Progress) -> None:
            kept.append(now)
            if seen is not None:
                seen.append(done.what)
            if len(kept) == stop_after:
                raise KeyboardInterrupt

        with closing(CpuDevice(2)) as cpu:
            start = (profile or MeasuredProfile()).with_device("cpu", {"power": "mains"}, 2)
            jobs = jobs_for({"cpu": cpu}, None, quick=True)
            try:
                return calibrate_devices(
                    start, {"cpu": cpu}, jobs, note, runs=5, op=op, wanted=wanted
                )
            except KeyboardInterrupt:
                return kept[-1]

    return run


def require_kept(part: MeasuredProfile, whole: MeasuredProfile) -> None:
    """All samples of `part` are in `whole`, but for those that made room for later ones."""
    kept = 0
    for key, point in part.points.items():
        now, before = whole.points[key].samples, point.samples
        if now.count < MOST:
            assert now.values[: before.count] == before.values
            kept += before.count
    assert kept > 0


def test_every_work_of_a_training_step_is_measured(take: Take) -> None:
    profile = take()
    with closing(CpuDevice(2)) as cpu:
        jobs = jobs_for({"cpu": cpu}, None, quick=True)
        wanted = {work.key for job in jobs for work in job.works.values()}
        ops = {node.op.name for node in training_graph(TINY[0].config).nodes}
    assert profile.points.keys() == wanted
    assert {point.work.op for point in profile.points.values()} == ops
    assert all(point.samples.is_trusted for point in profile.points.values())
    assert all(min(point.samples.values) > 0 for point in profile.points.values())
    assert trusted_share(profile) == (len(wanted), len(wanted))
    kinds = {kind for kind, _, _ in profile.series}
    assert kinds == {"copy", "gap", "gaps", "step", "run"}
    assert ("gap", "cpu", "untraced") in profile.series
    for (kind, names, subject), means in profile.series.items():
        if kind == "gap":
            assert means.count == profile.series["gaps", names, subject].count


def test_the_training_steps_take_turns(take: Take) -> None:
    """Ten samples by visits of five runs: two rounds, each of both."""
    seen: list[str] = []
    take(seen=seen)
    assert seen == ["C=16 on cpu", "C=32 on cpu"] * 2


def test_what_is_known_is_not_measured_again(take: Take) -> None:
    known = take()
    seen: list[str] = []
    assert take(known, seen) == known
    assert seen == []
    forgotten = known.without("cpu", "gelu")
    again = take(forgotten, seen, op="gelu")
    assert seen == ["C=16 on cpu", "C=32 on cpu"] * 2
    assert again.points.keys() == known.points.keys()
    for key, point in again.points.items():
        assert (point == known.points[key]) == (point.work.op != "gelu")
    assert again.series == known.series


def test_after_an_interruption_it_goes_on(take: Take) -> None:
    """Stopped after three of four visits: one is left."""
    part = take(stop_after=3)
    counts = {point.work.sizes: point.samples.count for point in part.points.values()}
    assert set(counts.values()) >= {5, 10}
    seen: list[str] = []
    whole = take(part, seen)
    assert seen == ["C=32 on cpu"]
    require_kept(part, whole)


def test_a_stale_device_is_measured_anew(take: Take) -> None:
    known = take()
    newer = known.with_device("cpu", {"power": "battery"}, 2)
    assert newer.points == {}
    seen: list[str] = []
    take(newer, seen)
    assert len(seen) == 4


def test_beside_others_the_hosts_nodes_are_measured_on_half_of_its_lanes_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = replace(TINY[0].config, model=PRESETS["mini"], seq_len=64, batch_size=8)
    several = (Case("training", large), Case("evaluation", large, "evaluation"))
    monkeypatch.setattr(calibration, "cases", lambda quick: several)
    with closing(CpuDevice(4)) as cpu:
        devices: dict[str, Device] = {"cpu": cpu, "igpu": FakeRemoteDevice("igpu")}
        jobs = [job for job in jobs_for(devices, None, quick=False) if job.devices == "cpu"]
        parts = [{work.parts for work in job.works.values()} for job in jobs]
        assert [max(each) for each in parts] == [4, 2, 4]
        assert len({job.name for job in jobs}) == 3
        assert len(jobs_for({"cpu": cpu}, None, quick=False)) == 2
        assert all("half" not in job.name for job in jobs_for(devices, None, quick=True))


def test_where_time_is_short_every_op_is_known_before_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Decoding, the last of many, holds ops of its own: it comes with the first, in all rounds."""
    config = TINY[0].config
    steps = tuple(Case(f"B={B}", replace(config, batch_size=B)) for B in range(9, 1, -1))
    several = (*steps, Case("decoding", replace(config, seq_len=1), "decoding"))
    monkeypatch.setattr(calibration, "cases", lambda quick: several)
    kept: list[MeasuredProfile] = []
    with closing(CpuDevice(1)) as cpu:
        devices: dict[str, Device] = {"cpu": cpu}
        jobs = jobs_for(devices, None, quick=True)
        ops = {work.op for job in jobs for work in job.works.values()}
        calibrate_devices(
            MeasuredProfile().with_device("cpu", {}, 1),
            devices,
            jobs,
            lambda profile, done: kept.append(profile),
            quick=True,
        )
    assert len(kept) == 2 * len(jobs)
    visited = kept[2 * 2 - 1]  # two steps hold every op, and came twice
    assert {point.work.op for point in visited.points.values()} == ops
    assert all(point.samples.is_trusted for point in visited.points.values())


def test_devices_are_measured_alone_and_together() -> None:
    """Works are those of one device; where two share a step, what crosses is noted alone."""
    with closing(CpuDevice(2)) as cpu:
        devices: dict[str, Device] = {"cpu": cpu, "igpu": FakeRemoteDevice("igpu")}
        jobs = jobs_for(devices, None, quick=True)
        names = [(job.devices, bool(job.works)) for job in jobs]
        assert names == [("cpu", True), ("igpu", True), *[("cpu,igpu", False)] * 2] * 2
        assert [job.devices for job in jobs_for(devices, "igpu", True)] == ["igpu"] * 2
        profile = MeasuredProfile()
        for name, device in devices.items():
            profile = profile.with_device(name, {}, len(device.lanes))
        profile = calibrate_devices(
            profile, devices, jobs[:4], lambda now, done: None, runs=2, wanted=2
        )
        assert all(job.missing(profile, 2, None) <= 0 for job in jobs[:4])
        assert all(job.missing(profile, 3, None) > 0 for job in jobs[4:])
    assert {point.work.device for point in profile.points.values()} == {"cpu", "igpu"}
    crossing = {name for name in profile.series if name[2].endswith("crosses")}
    assert {name[1] for name in crossing} >= {"cpu,igpu"}
    assert {("in", "igpu"), ("out", "igpu"), ("copy", "cpu")} <= {n[:2] for n in profile.series}
    assert {name[1] for name in profile.series if name[0] == "slowdown"} == {
        "cpu,igpu",
        "igpu,cpu",
    }


def test_a_pair_is_measured_both_ways() -> None:
    """No figure is asserted: the fake device holds the interpreter, as no true one does."""
    with closing(CpuDevice(1)) as cpu:
        found = measure_slowdown({"cpu": cpu, "igpu": FakeRemoteDevice("igpu")}, ("cpu", "igpu"), 2)
    assert {name: len(each) for name, each in found.items()} == {
        ("slowdown", "cpu,igpu", ""): 2,
        ("slowdown", "igpu,cpu", ""): 2,
    }
    assert all(factor > 0 for each in found.values() for factor in each)


def test_the_grid_spans_the_presets() -> None:
    quick, full = cases(True), cases(False)
    assert {case.name for case in quick} <= {case.name for case in full}
    channels = {case.config.model.channels for case in full}
    assert {192, 768, 1024, 1280} <= channels
    ops = {node.op.name for case in quick for node in training_graph(case.config).nodes}
    assert {"dropout", "matmul", "adamw", "attention_backward"} <= ops
    unseen = {
        (t.config.model.channels, t.config.batch_size, t.config.seq_len) for t in trials({})
    } & {(c.config.model.channels, c.config.batch_size, c.config.seq_len) for c in full}
    assert unseen == set()


def test_the_grid_has_every_op_that_programs_run() -> None:
    config = replace(TINY[0].config, dropout=0.1, batch_size=4)
    model = config.model
    graphs = [
        *(training_graph(replace(config, shards=count)) for count in (1, 2, 4)),
        training_graph(replace(config, grad_accumulation=2, dropout=0.0)),
        evaluation(model, 2, 16),
        inference(model, 1, 16),
        decoding(model, 1, 1),
    ]
    run = {node.op.name for graph in graphs for node in graph.nodes}
    for quick in (True, False):
        assert run <= {node.op.name for case in cases(quick) for node in case.graph.nodes}


def test_what_was_calibrated_suffices_to_decode_and_to_be_foretold(
    aieflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    config = TINY[0].config
    asked = ("calibrate", "--devices", "cpu", "--lanes", 1, "--quick")
    prompt = np.arange(5, dtype=np.int32)

    def decode(policy: str) -> list[int]:
        parameters = dict(initial_parameters(config.model, 1))
        with (
            opened_machine(MachineAsked("cpu", policy=policy, lanes=1)) as machine,
            Generator(config.model, parameters, machine) as generator,
        ):
            return generator.greedy(prompt, 4)

    assert aieflow(*asked).code == 0
    with pytest.raises(ProfileError, match="no calibration of attention_cached on cpu"):
        decode("best")
    passes = Case("decoding", replace(config, seq_len=4), "decoding")
    monkeypatch.setattr(calibration, "cases", lambda quick: (*TINY, passes))
    assert aieflow(*asked, "--op", "attention_cached").code == 0
    assert decode("best") == decode("cpu")

    sizes = ("--layers", 1, "--heads", 2, "--channels", 16, "--vocab-size", 64, "--seq-len", 16)
    result = aieflow("plan", "gpt2", *sizes, "--batch-size", 2, "--lanes", 1, "--bound", "--json")
    foretold = json.loads(result.out)
    assert foretold["simulated"] is True
    assert foretold["machine"].startswith("this computer")
    assert foretold["seconds"] > 0
    assert foretold["bound_seconds"] > 0
    assert foretold["joules"] is None  # no meter is read


def test_the_command_measures_shows_and_draws(
    aieflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, drawn = tmp_path / "profile.json", tmp_path / "profile.svg"
    asked = ("calibrate", "--devices", "cpu", "--lanes", 2, "--profile", file)
    missing = aieflow(*asked, "--show")
    assert (missing.code, "aieflow calibrate" in missing.err) == (2, True)
    result = aieflow(*asked, "--quick", "--plot", drawn)
    assert result.code == 0
    assert "100%" in result.err
    assert "matmul" in result.out
    assert "no power meter is read" in result.out
    profile = read_profile(file)
    assert profile is not None
    assert profile.lanes == {"cpu": 2}
    assert {"model", "BLAS", "numpy", "numba", "power", "kernels", "lanes"} <= (
        profile.fingerprints["cpu"].keys()
    )
    circles = [e for e in ET.parse(drawn).iter() if e.tag.endswith("circle")]
    assert len(circles) == len(profile.points) + 1  # and one in the legend

    again = aieflow(*asked, "--quick", "--json")
    document = json.loads(again.out)
    assert document["works"] == document["trusted"] == len(profile.points)
    assert read_profile(file) == profile  # nothing was missing
    shown = aieflow("calibrate", "--profile", file, "--show")
    assert shown.code == 0
    assert re.search(r"cpu +\d[^\n]*#", shown.out)

    checked = json.loads(aieflow(*asked, "--check", "--json").out)["checks"]
    assert {each["device"] for each in checked} == {"cpu"}
    assert all(each["seconds"] > 0 and each["known_s"] > 0 for each in checked)
    assert read_profile(file) == profile
    one_op = json.loads(aieflow(*asked, "--check", "--op", "gelu", "--json").out)["checks"]
    assert {each["op"] for each in one_op} == {"gelu"}

    monkeypatch.setattr(fingerprint, "power_source", lambda: "battery")
    monkeypatch.setattr("aieflow.tools.computer_profile.power_source", lambda: "battery")
    stale = aieflow(*asked, "--check")
    assert stale.code == 2
    assert "run `aieflow calibrate --device cpu`" in stale.err.replace("\n", " ")
    anew = aieflow(*asked, "--quick")
    assert "cpu is measured anew: power:" in anew.err
    fresh = read_profile(file)
    assert fresh is not None
    assert fresh.power == "battery"
    assert fresh.points.keys() == profile.points.keys()
    assert all(fresh.points[key].samples != profile.points[key].samples for key in fresh.points)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--check", "--show"), "--check measures nothing new"),
        (("--show", "--quick"), "--show measures nothing"),
        (("--op", "gulu"), "did you mean gelu?"),
        (("--devices", "cpu", "--op", "add"), "--op add: no graph that calibration runs has it"),
        (("--plot", "x.png"), "must end with .svg"),
        (("--device", "gpu"), "there are cpu, igpu, npu"),
        (("--devices", "cpu,gpu"), "--devices gpu"),
        (("--devices", "cpu", "--device", "igpu"), "is none of --devices cpu"),
        (("--devices", "cpu", "--lanes", "0"), "--lanes = 0"),
    ],
)
def test_misuse_is_an_error(
    aieflow: Command, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    result = aieflow("calibrate", "--profile", tmp_path / "p.json", *options)
    assert result.code == 2
    assert message in result.err.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_what_was_measured(
    aieflow: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "profile.json"
    visits: list[Job] = []
    whole = visit

    def cut_short(machine: Machine, plan: object, *rest: object) -> object:
        if len(visits) == 1:
            raise KeyboardInterrupt
        visits.append(plan)  # type: ignore[arg-type]  # only counted
        return whole(machine, plan, *rest)  # type: ignore[arg-type]  # as given

    monkeypatch.setattr(calibration, "visit", cut_short)
    asked = ("calibrate", "--devices", "cpu", "--lanes", 1, "--quick", "--profile", file)
    assert aieflow(*asked).code == 130
    part = read_profile(file)
    assert part is not None
    assert {point.samples.count for point in part.points.values()} >= {5}
    monkeypatch.setattr(calibration, "visit", whole)
    assert aieflow(*asked).code == 0
    done = read_profile(file)
    assert done is not None
    require_kept(part, done)


def test_a_plan_is_foretold_by_the_computers_profile(take: Take, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    with closing(CpuDevice(2)) as cpu:
        devices = {"cpu": cpu}
        with pytest.raises(ProfileError, match="run `aieflow calibrate --device cpu`"):
            measured_step_cost(devices, file)
        profile = take()
        write_profile(profile, file)
        with pytest.raises(ProfileError, match=r"is stale .*model: absent then"):
            measured_step_cost(devices, file)
        current = MeasuredProfile(
            fingerprints([cpu]), profile.lanes, profile.points, profile.series
        )
        write_profile(current, file)
        plan = Machine((cpu,), Placement("cpu")).plan(training_graph(TINY[0].config))
        trace = simulate(plan, measured_step_cost(devices, file))
    longest = max(point.samples.median for point in profile.points.values())
    assert trace.seconds > longest
    assert all("(simulated)" in span.executor for span in trace.spans)
    assert profile_file().name == "profile.json"


def test_a_fingerprint_does_not_depend_on_the_order_of_libraries() -> None:
    with closing(CpuDevice(1)) as cpu:
        found = [
            fingerprint.fingerprint(cpu, Finding("cpu", True, "Some CPU", {"BLAS": blas}), "mains")
            for blas in ("openblas 1; mkl 2", "mkl 2; openblas 1", "mkl 3; openblas 1")
        ]
    assert found[0] == found[1] != found[2]
    assert found[0]["numpy"] != "absent"
    assert found[0]["lanes"] == "1"


def test_pairs_are_counted() -> None:
    """a and b differ by 3 %: no pair. The model has c and d the wrong way round."""
    rows = [
        Outcome("a", "cpu", 1.0, 1.0, 1.0, 1.0),
        Outcome("b", "cpu", 1.5, 1.03, 1.0, 1.0),
        Outcome("c", "cpu", 3.0, 2.0, 1.0, 1.0),
        Outcome("c", "igpu", 2.5, 2.6, 1.0, 1.0),
    ]
    assert ordered(rows, same_step=False) == Pairs(count=5, right=4)
    assert ordered(rows, same_step=True) == Pairs(count=1, right=0)
    said = report(rows)
    assert said["worst_error"] == pytest.approx(0.5)
    assert said["median_error"] == pytest.approx((1.5 / 1.03 - 1 + 1 - 2.5 / 2.6) / 2, rel=0.5)
