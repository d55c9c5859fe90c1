"""All that `aieflow profile` prints, of simulated training steps: held against golden/profile.txt.

The figures are made up, so the text has every kind of line on every computer. When it is to change:
`python tests/test_profile_summary.py` writes it anew; read the difference before it is committed.
"""

import contextlib
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_costs import MadeUp, fakes, step_cost
from test_live_view import watched
from traced_runs import COSTS, graph

from aieflow.devices.cpu import Rates
from aieflow.devices.readings import DeviceReadings, Reading, nothing
from aieflow.gpt2.trainer import StepRecord
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.runtime.outline import outline, recording
from aieflow.runtime.placement import Placement, place_on
from aieflow.runtime.plan import Plan
from aieflow.runtime.simulate import simulate
from aieflow.runtime.trace import Trace
from aieflow.tools.live_view import Look, Process, picture
from aieflow.tools.profile import figures_of, print_profile, profile_report
from aieflow.tools.profile_report import figures_report
from aieflow.tools.profile_run import Profiled
from aieflow.tools.profile_subject import DeviceLine, Foretold, Subject
from aieflow.tools.profile_tables import print_figures
from aieflow.tools.sensor_log import Sensed

GOLDEN = Path(__file__).parent / "golden" / "profile.txt"
RUNS = 6
SLOW_RUN, SLOW_NODE, SLOWER = 3, "d:h.0.qkv", 40.0  # an outlier
OFF = 1.5  # matmul on `far` takes so many times what is foretold
RATES = {"fake": Rates(2, 80e9, 20e9), "far": Rates(1, 200e9, 30e9)}
SENSED = Sensed(
    {
        "fake": DeviceReadings(
            Reading(15.25, "cores, RAPL"),
            Reading(71.5, "k10temp Tctl"),
            Reading(4.123e9, "cpufreq"),
            Reading(0.934, "/proc/stat"),
        ),
        "far": nothing("it has none"),
    },
    Reading(40.0, "package, RAPL"),
    Reading(23.0, "the whole computer"),
    "battery",
    readings=4,
    reading_s=0.00075,
)


def costs(off: float = 1.0, slow_node: str = "", slower: float = 1.0) -> MadeUp:
    """Tens of microseconds of nodes, more for products, which take `off` times as long on `far`."""
    seconds: dict[tuple[str, str], float] = {}
    for place, node in enumerate(graph().nodes):
        for device in fakes():
            tens = (1 + place % 7) * (6 if node.op.name == "matmul" else 1)
            tens *= off if (node.op.name, device) == ("matmul", "far") else 1
            seconds[device, node.name] = 1e-5 * tens * (slower if node.name == slow_node else 1)
    return MadeUp(seconds, COSTS.transfer, COSTS.byte_s)


def plan() -> Plan:
    """Nodes on a host and two remote devices in turn."""
    lowered, devices = graph(), fakes()
    names = list(devices)
    homes = [names[index % len(names)] for index in range(len(lowered.nodes))]
    return place_on(lowered, devices, Placement(), by_node=homes)


def profiled(slow_run: int = SLOW_RUN, off: float = OFF) -> Profiled:
    """Six simulated training steps, as if they were measured, and what is foretold of them."""
    placed = plan()
    told = simulate(placed, step_cost(costs()))
    usual, slow = (
        simulate(placed, step_cost(made)) for made in (costs(off), costs(off, SLOW_NODE, SLOWER))
    )
    traces = tuple(slow if run == slow_run else usual for run in range(RUNS))
    steps_s = tuple(work.seconds for work in step_cost(costs()).of(placed))
    subject = Subject(
        "GPT-2 0.0 M: L=1 H=2 C=8 V=19 B=2 T=8",
        (DeviceLine("fake", "a fake (simulated)", False), DeviceLine("far", "a far one", False)),
        placed.schedule.policy,
        16,
        placed.graph.flops,
        340_000_000,
        outline(placed, CONVERSIONS),
        Foretold(told.seconds, told.seconds / 2, steps_s, recording(told)),
        "",
    )
    return Profiled(
        subject,
        tuple(record(number, trace) for number, trace in enumerate(traces, 4)),
        tuple(map(recording, traces)),
        traces,
        tuple(trace.seconds / (1.01 + number / 1000) for number, trace in enumerate(traces)),
        3_456.0,
        512_345_678,
        SENSED,
    )


def record(training_step: int, trace: Trace) -> StepRecord:
    return StepRecord(training_step, 3.0, 1e-3, 1.0, trace.seconds, 16 / trace.seconds, trace)


def summary(done: Profiled) -> str:
    """What is printed, without blanks at the ends of lines.

    Whether what rounds to 0 % lies above or below is the last bit's: Pythons sum differently.
    """
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_profile(done, RATES)
    lines = (line.rstrip() + "\n" for line in printed.getvalue().splitlines())
    return re.sub(r"-(0(\.0)?%)", r"+\1", "".join(lines))


def test_the_summary_is_the_golden_one() -> None:
    assert summary(profiled()) == GOLDEN.read_text(encoding="utf-8")


def test_what_was_made_up_is_what_is_said() -> None:
    """The golden text is not only what it was: products on `far` are half as slow again."""
    done = profiled()
    found: Any = profile_report(done, RATES)
    errors = {(row["device"], row["op"]): row["model_error"] for row in found["ops"]}
    assert errors["far", "matmul"] == pytest.approx(OFF - 1, abs=1e-3)  # whole nanoseconds
    slow = next(node for node in graph().nodes if node.name == SLOW_NODE)
    others = {key: error for key, error in errors.items() if key[1] not in ("matmul", slow.op.name)}
    assert len(others) > 20
    assert others == pytest.approx(dict.fromkeys(others, 0.0), abs=0.01)  # of 100 ns at least
    (outlier,) = found["outliers"]
    assert (outlier["name"], outlier["training_step"]) == (SLOW_NODE, SLOW_RUN + 4)
    assert outlier["seconds"] == pytest.approx(SLOWER * outlier["median_seconds"], rel=1e-3)
    text = summary(done)
    assert f"outliers    {SLOW_NODE} on {outlier['lane']} took " in text
    assert "matmul on far is furthest off (+50%)" in text
    for lane in found["lanes"]:
        (row,) = (line for line in text.splitlines() if line.startswith(f"{lane['name']} "))
        shown = [float(each.rstrip("%")) for each in row.split()[1:6]]
        assert sum(shown) == pytest.approx(100, abs=0.25)  # five roundings to 0.1


def test_memory_stands_against_the_plan_in_the_live_views_words() -> None:
    """One text and one source of its numbers, also where it is not known what the process has."""
    done = profiled()
    seen = watched()
    assert seen.subject is not None
    for resident, words in ((512_345_678, "512 MB"), (None, "n/a")):
        (header,) = (
            line.plain
            for line in picture(seen, Process(resident_nbytes=resident), Look(), 120, 40)
            if "memory" in line.plain
        )
        told = f"memory {words} (tensors 3 by plan)"
        assert told in header
        figures = replace(figures_of(done), subject=seen.subject, resident_nbytes=resident)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            print_figures(figures)
        assert told in [" ".join(line.split()) for line in printed.getvalue().splitlines()]
        report = figures_report(figures)
        assert (report["resident_bytes"], report["planned_bytes"]) == (resident, 3_000_000)
    assert "memory      512 MB (tensors 340 by plan)\n" in summary(done)


if __name__ == "__main__":
    GOLDEN.write_text(summary(profiled()), encoding="utf-8")
