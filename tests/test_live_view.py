"""The picture of a run: sums, sizes, and what it says where something is not known."""

import random
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.text import Text
from test_lane_states import jittered

from aieflow.devices.readings import DeviceReadings, absent
from aieflow.ops.npu.kernels import CONVERSIONS
from aieflow.runtime.lane_states import STATES, Piece, lane_pieces, shares, state_ns
from aieflow.runtime.outline import Recording, outline, recording
from aieflow.tools.live import PAGE_KEYS, _after, keys_in
from aieflow.tools.live_help import EXPLAINED, KEYS, SIGNS, help_pages
from aieflow.tools.live_link import Watched
from aieflow.tools.live_view import (
    WIDE,
    Look,
    Process,
    one_line,
    picture,
    sparkline,
    timeline,
    whole_shares,
)
from aieflow.tools.profile_report import figures_report
from aieflow.tools.profile_subject import DeviceLine, Foretold, Subject, subject_message
from aieflow.tools.sensor_log import Sensed
from aieflow.tools.sensor_text import COLUMNS, sources

SIZES = [(80, 24), (120, 40), (200, 60), (40, 10), (20, 5), (1, 1)]
PLAIN = Look()
PROCESS = Process(151.0, 512_000_000)


def watched(is_foretold: bool = True, is_emulated: bool = False, steps: int = 5) -> Watched:
    """A run of a random plan on two devices, of which some training steps were recorded."""
    trace = jittered(7, random.Random(7))
    told, times = outline(trace.plan, CONVERSIONS), recording(trace)
    foretold = Foretold(trace.seconds, trace.seconds / 2, (1e-6,) * len(told.steps), times)
    subject = Subject(
        "GPT-2 2.0 M",
        (DeviceLine("fake", "a fake", False), DeviceLine("far", "a far one", is_emulated)),
        "by hand",
        64,
        1_000_000,
        3_000_000,
        told,
        foretold if is_foretold else None,
        "" if is_foretold else "no calibration of far: run `aieflow calibrate --device far`",
    )
    seen = Watched(Path("runs/gpt2-001"))
    seen.take({"kind": "subject", "pid": 1, "training_steps": 9, **subject_message(subject)})
    for number in range(1, steps + 1):
        seen.take(step_message(number, trace.seconds * 1.5, times))
    seen.take({"kind": "now", "done": dict.fromkeys(told.lanes, 1)})
    seen.take({"kind": "event", "text": "checkpoint step-4"})
    return seen


def step_message(number: int, seconds: float, times: Recording | None = None) -> dict[str, object]:
    """What is said of a training step, recorded or not."""
    message: dict[str, object] = {
        "kind": "step",
        "training_step": number,
        "loss": 4.0 - number / 10,
        "seconds": seconds,
        "tokens_per_s": 64 / seconds,
        "copied_nbytes": 2_000_000 * number,
    }
    if times is not None:
        spans = {"starts_ns": list(times.starts_ns), "ends_ns": list(times.ends_ns)}
        message |= {"wall_ns": times.wall_ns, **spans}
    return message


def text(seen: Watched, look: Look = PLAIN, width: int = 120, height: int = 40) -> str:
    return "\n".join(line.plain for line in picture(seen, PROCESS, look, width, height))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("look", [Look(), Look("waiting", True), Look(shows_help=True)])
def test_a_picture_fits_its_terminal(width: int, height: int, look: Look) -> None:
    for seen in (watched(), watched(False, True), watched(steps=0), Watched(Path("a"))):
        lines = picture(seen, PROCESS, look, width, height)
        assert len(lines) <= height
        assert max((line.cell_len for line in lines), default=0) <= width
    assert width < 80 or len(text(watched(), look, width, height)) > 500


def test_the_header_tells_the_figures() -> None:
    seen = watched()
    figures = seen.figures()
    assert figures is not None
    shown = text(seen)
    for part in (
        f"step 5/9  {figures.seconds * 1e3:,.1f} ms",
        f"{64 / figures.seconds:,.0f} tokens/s",
        "loss 3.500",
        "(simulated, measured +50%)",
        "(3.00x)",
        f"overlap {figures.account.overlap or 0:.0%}",
        "moved 2.0 MB/step",
        "memory 512 MB (tensors 3 by plan)  cpu 151 %",
        "checkpoint step-4",
    ):
        assert part in shown
    assert "emulated" not in shown
    assert "emulated: far: these are the emulation's times" in text(watched(is_emulated=True))


def test_what_recording_takes_is_told_by_both_kinds_of_training_steps() -> None:
    seen = watched(steps=8)
    assert seen.recording_share is None
    assert "none yet" in " ".join(text(seen, Look(shows_help=True)).split())
    (seconds,) = set(seen.seconds)
    for number in range(9, 17):
        seen.take(step_message(number, seconds / 1.02))
    figures = seen.figures()
    assert figures is not None
    assert figures.recording_share == pytest.approx(0.02)  # one division and its inverse
    assert "; recording +2.0%" in text(seen)
    assert "recording +2.0%" in one_line(seen, figures)
    assert figures_report(figures)["recording_overhead"] == figures.recording_share


def test_another_plan_begins_anew() -> None:
    seen = watched(steps=8)
    assert seen.subject is not None
    seen.take({"kind": "subject", "pid": 1, "training_steps": 9, **subject_message(seen.subject)})
    assert seen.figures() is None
    assert "waiting for the first training step" in text(seen)
    seen.take(step_message(9, 1e-3, recording(jittered(7, random.Random(7)))))
    figures = seen.figures()
    assert figures is not None
    assert figures.account.runs == 1
    assert figures.recording_share is None


def test_a_title_fits_eighty_columns_and_no_name_is_cut() -> None:
    """What stands in bold at 80 columns ends as it does at 200, and so does each node's name."""
    for seen in (watched(), watched(False)):
        narrow, wide = text(seen, width=80, height=60), text(seen, width=200, height=60)
        titles = [line for line in wide.splitlines() if line.startswith("last training step")]
        assert titles
        assert set(titles) <= set(narrow.splitlines())
        figures = seen.figures()
        assert figures is not None
        for device, name, _ in figures.account.nodes[:10]:
            assert f" {device} {name}" in narrow
    explained = " ".join(text(watched(), Look(shows_help=True), width=50).split())
    assert "the next step waits for a transfer, a conversion or a saved state" in explained


def test_what_is_not_known_is_not_zero_and_help_says_why() -> None:
    seen = watched(is_foretold=False)
    assert "predicted n/a  bound n/a (h says why)" in text(seen)
    drawn = text(seen).split("recorded: ")[1].split("most time")[0].splitlines()
    assert [line[15:19] for line in drawn if line.startswith("f")] == ["run "] * 5
    wrapped = " ".join(text(seen, Look(shows_help=True)).split())
    assert "predicted, bound, plan: no calibration of far: run `aieflow calibrate" in wrapped
    assert "n/a: J/step: no sensor was read" in wrapped
    unknown = "\n".join(line.plain for line in picture(seen, Process(), Look(), 120, 40))
    assert "memory n/a" in unknown
    assert "cpu n/a" in unknown


def test_the_plan_stands_above_what_was_measured() -> None:
    lines = text(watched()).splitlines()
    first = next(
        i for i, line in enumerate(lines) if line.startswith("last training step recorded")
    )
    rows = lines[first + 1 : first + 1 + 2 * 5]
    assert [row[15:19] for row in rows] == ["plan", "run "] * 5
    assert all(above[20:] == below[20:] for above, below in zip(rows[::2], rows[1::2], strict=True))


@pytest.mark.parametrize("width", [60, 80, 133, 200])
def test_a_lanes_bar_and_percents_sum_to_the_whole(width: int) -> None:
    seen = watched()
    figures = seen.figures()
    assert figures is not None
    lines = text(seen, width=width).splitlines()
    for lane in figures.account.lanes:
        row = next(line for line in lines if line.startswith(lane.lane))
        bar = row[15:].split(" ")[0]
        counts = {sign: bar.count(sign) for sign, _ in SIGNS.values()}
        room = width - 60 - (COLUMNS if width >= WIDE else 0)
        assert sum(counts.values()) == len(bar) == max(10, min(50, room // 2))
        percents = [int(part) for part in row[15 + len(bar) :].split("%")[0].split()]
        assert sum(percents) == 100
        for state, percent in zip(STATES, percents, strict=True):
            assert percent == pytest.approx(100 * shares(lane.states)[state], abs=1)


def test_whole_shares_are_the_nearest_that_sum() -> None:
    assert whole_shares([1, 1, 1], 100) == [34, 33, 33]
    assert whole_shares([0, 0], 7) == [0, 0]
    assert whole_shares([0.996, 0.004], 100) == [100, 0]
    draw = random.Random(1)
    for _ in range(200):
        parts = [draw.random() for _ in range(5)]
        found = whole_shares(parts, 37)
        assert sum(found) == 37
        exact = [part * 37 / sum(parts) for part in parts]
        assert all(abs(a - b) < 1 for a, b in zip(found, exact, strict=True))


def test_sparklines_and_timelines() -> None:
    assert sparkline([0, 1, 2, 3], 4) == "▁▃▆█"
    assert sparkline([0, 0, 7, 7], 2) == "▁█"
    assert sparkline([2, 2], 9) == "▁▁"
    assert sparkline([], 5) == sparkline([1], 0) == ""
    pieces = (Piece(0, 30, "executing"), Piece(30, 34, "overhead"), Piece(34, 80, "idle"))
    assert timeline(pieces, 80, 8).plain == "███·····"
    assert timeline(pieces, 160, 8).plain == "██··    "  # of 20 to 40, 10 are executing


def test_every_lane_of_a_timeline_is_what_most_of_a_cell_is() -> None:
    trace = jittered(3, random.Random(3))
    told, times = outline(trace.plan), recording(trace)
    for pieces in lane_pieces(told, times).values():
        drawn = timeline(pieces, times.wall_ns, 5000).plain  # cells of about a microsecond
        for state, ns in state_ns(pieces).items():
            share = drawn.count(SIGNS[state][0]) / 5000
            # Each of its pieces may win or lose a cell at each end.
            count = sum(piece.state == state for piece in pieces)
            assert share == pytest.approx(ns / times.wall_ns, abs=2 * count / 5000)


def test_keys_change_the_look() -> None:
    look = Look()
    assert _after("x", look) == look
    assert _after("p", _after("p", look)) == look
    assert _after("p", look).is_paused
    assert _after("h", look).shows_help
    sorts = [look.sort]
    for _ in range(3):
        look = _after("s", look)
        sorts.append(look.sort)
    assert sorts == ["plan", "busiest", "waiting", "plan"]


FILE = "/sys/class/powercap/intel-rapl:0/energy_uj"
REASONS = Sensed(
    {
        device: DeviceReadings(
            absent(f"{device}: {FILE}: permission denied: let its group read it, then log in anew"),
            absent(f"{device}: no hwmon of k10temp, coretemp or zenpower is here: load the module"),
            absent(f"{device}: no cpufreq: a virtual machine has none"),
            absent(f"{device}: its driver (amdxdna) tells it from Linux 6.14 on: this is 6.8"),
        )
        for device in ("cpu", "igpu", "npu")
    }
)


def letters(lines: Iterable[str]) -> str:
    """All but blanks: a line may end anywhere."""
    return "".join("".join(lines).split())


def turned(seen: Watched, look: Look, key: str, width: int, height: int) -> Look:
    return _after(key, look, lambda: len(help_pages(seen, REASONS, width, height)))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60), (40, 10), (40, 4)])
def test_every_line_of_the_help_can_be_reached(width: int, height: int) -> None:
    """Page by page on the screen; what belongs together is whole on one of them."""
    seen = watched(is_foretold=False)
    assert seen.subject is not None
    process = Process(sensed=REASONS)
    look, screens = _after("h", Look()), list[list[Text]]()
    while not screens or look.help_page:
        screens.append(picture(seen, process, look, width, height))
        look = turned(seen, look, " ", width, height)
    for number, screen in enumerate(screens, 1):
        assert 1 < len(screen) <= height
        assert max(line.cell_len for line in screen) <= width
        title = screen[0].plain
        of = f"page {number} of {len(screens)} (space: the next)" if len(screens) > 1 else "live"
        assert title == f"aieflow live  {of}"[: len(title)]
    assert (len(screens) > 1) == (height < 30)  # at 120 columns it has 27 lines and more
    told = [*KEYS, *EXPLAINED.values(), *sources(REASONS), seen.subject.reason]
    shown = [letters(line.plain for line in screen[1:]) for screen in screens]
    for part in map(letters, told):
        assert part in "".join(shown)
        assert height < 10 or sum(part in each for each in shown) == 1


def test_pages_of_the_help_turn_both_ways_and_a_grown_terminal_shows_the_last() -> None:
    seen, process = watched(), Process(sensed=REASONS)
    count = len(help_pages(seen, REASONS, 80, 12))
    assert count > 2
    first = _after("h", Look())
    for key, step in PAGE_KEYS.items():
        assert turned(seen, first, key, 80, 12).help_page == step % count, key
        assert _after(key, Look(), lambda: 9) == Look()  # without help it does nothing
    fewer = help_pages(seen, REASONS, 80, 24)
    assert len(fewer) == 2
    for page in (2, 3):  # that the terminal had when it was lower
        look = replace(first, help_page=page)
        assert picture(seen, process, look, 80, 24) == list(fewer[1])
        assert turned(seen, look, " ", 80, 24).help_page == 0
        assert turned(seen, look, "k", 80, 24).help_page == 0
        (whole,) = help_pages(seen, REASONS, 200, 60)
        assert picture(seen, process, look, 200, 60) == list(whole)
        assert _after("h", _after("h", look)) == first  # it begins anew


def test_keys_of_several_characters_are_whole() -> None:
    assert keys_in("h\x1b[B\x1bOA\x1b[6~ q\x1b") == [
        "h",
        "\x1b[B",
        "\x1bOA",
        "\x1b[6~",
        " ",
        "q",
        "\x1b",
    ]


def test_sorting_puts_the_busiest_first() -> None:
    seen = watched()
    figures = seen.figures()
    assert figures is not None
    lanes = {lane.lane: lane for lane in figures.account.lanes}
    lines = text(seen, Look("busiest")).splitlines()
    shown = [line.split()[0] for line in lines if line.split(" ")[0] in lanes][: len(lanes)]
    busy = [lanes[lane].states["executing"] for lane in shown]
    assert busy == sorted(busy, reverse=True)
    assert shown != list(lanes)


def test_one_line_has_the_same_figures() -> None:
    seen = watched()
    figures = seen.figures()
    assert figures is not None
    line = one_line(seen, figures)
    assert "\n" not in line
    assert f"training step 5/9  loss 3.500  {figures.seconds * 1e3:.1f} ms" in line
    assert f"predicted {figures.seconds / 1.5 * 1e3:.1f} ms (simulated, measured +50%)" in line
    assert "moved 2.0 MB" in line
    assert "emulated" not in line
    emulated = watched(is_emulated=True)
    figures = emulated.figures()
    assert figures is not None
    assert "emulated: far" in one_line(emulated, figures)
