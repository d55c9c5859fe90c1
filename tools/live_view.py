"""Draws a run as it is now: lines of text for a terminal of any size, never wider nor more.

Shares are drawn in whole cells and whole percents that sum to the whole (largest remainder), and
each state has a sign of its own, so that colours may be absent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import Literal

from rich.text import Text

from aieflow.runtime.account import LaneAccount
from aieflow.runtime.lane_states import STATES, Piece, State, lane_pieces, shares
from aieflow.runtime.outline import Recording
from aieflow.runtime.schedule import device_of
from aieflow.tools.live_help import CALLED, SIGNS, help_pages
from aieflow.tools.live_link import Watched
from aieflow.tools.profile_report import NOTHING_SENSED, Figures, memory_words
from aieflow.tools.sensor_log import Sensed
from aieflow.tools.sensor_text import COLUMNS, in_columns, in_words, joules_text

NARROWEST = 30  # cells of a node among those that take most time
SPARKS = "▁▂▃▄▅▆▇█"
WIDE = 110  # columns from which a lane's row has its device's sensors
Sort = Literal["plan", "busiest", "waiting"]
SORTS: tuple[Sort, ...] = ("plan", "busiest", "waiting")
SORTED: Mapping[Sort, str] = {"plan": "", "busiest": "busiest first", "waiting": "waiting first"}


@dataclass(frozen=True, slots=True)
class Look:
    """What the keys have chosen."""

    sort: Sort = "plan"
    is_paused: bool = False
    shows_help: bool = False
    help_page: int = 0  # from 0; beyond the last it is the last


@dataclass(frozen=True, slots=True)
class Process:
    """What the system says of the process that trains and its devices; None where it does not."""

    cpu_percent: float | None = None  # 100 for each core
    resident_nbytes: int | None = None
    sensed: Sensed = NOTHING_SENSED


def picture(watched: Watched, process: Process, look: Look, width: int, height: int) -> list[Text]:
    """The lines of a screen: at most `height`, none wider than `width` cells."""
    if look.shows_help:
        pages = help_pages(watched, process.sensed, width, height)
        lines = list(pages[min(look.help_page, len(pages) - 1)])
    else:
        figures = watched.figures()
        if figures is not None:
            figures = replace(
                figures, sensed=process.sensed, resident_nbytes=process.resident_nbytes
            )
        lines = _header(watched, figures, process, look, width)
        if figures is None:
            lines.append(_plain("waiting for the first training step that is recorded …"))
        else:
            lines += _body(watched, figures, look, width, height - len(lines))
    lines = lines[:height]
    for line in lines:
        line.no_wrap = True
        line.truncate(width)
    return lines


def whole_shares(parts: Sequence[float], total: int) -> list[int]:
    """Whole numbers in the ratio of `parts` that sum to `total`, by the largest remainder.

    >>> whole_shares([1, 1, 1], 100)
    [34, 33, 33]
    """
    amount = sum(parts)
    if amount <= 0:
        return [0] * len(parts)
    exact = [part * total / amount for part in parts]
    whole = [int(each) for each in exact]
    order = sorted(range(len(parts)), key=lambda i: (whole[i] - exact[i], i))
    for index in order[: total - sum(whole)]:
        whole[index] += 1
    return whole


def sparkline(values: Sequence[float], width: int) -> str:
    """The course of some numbers in so many cells, the last at the right.

    >>> sparkline([0, 1, 2, 3], 4)
    '▁▃▆█'
    """
    if not values or width < 1:
        return ""
    cells = min(width, len(values))
    edges = [len(values) * cell // cells for cell in range(cells + 1)]
    means = [sum(values[first:last]) / (last - first) for first, last in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((mean - low) * scale)] for mean in means)


def timeline(pieces: Sequence[Piece], wall_ns: int, width: int) -> Text:
    """A lane's time in `width` cells of `wall_ns` together; each shows what most of it is."""
    cells: list[dict[State, int]] = [{} for _ in range(width)]
    for piece in pieces:
        first = piece.start_ns * width // wall_ns
        last = min(width - 1, (piece.end_ns - 1) * width // wall_ns)
        for cell in range(first, last + 1):
            begin, end = cell * wall_ns // width, (cell + 1) * wall_ns // width
            ns = min(end, piece.end_ns) - max(begin, piece.start_ns)
            cells[cell][piece.state] = cells[cell].get(piece.state, 0) + ns
    line = Text()
    for drawn, alike in groupby(map(_most, cells)):  # few pieces of text, for each costs rich much
        sign, colour = drawn
        line.append(sign * len(list(alike)), colour)
    return line


def _most(sums: Mapping[State, int]) -> tuple[str, str]:
    """Sign and colour of the state that most of a cell is in; blank where it is in none."""
    if not sums:
        return (" ", "default")
    filled = dict.fromkeys(STATES, 0) | dict(sums)
    return SIGNS[max(STATES, key=filled.__getitem__)]


def one_line(watched: Watched, figures: Figures) -> str:
    """A run in one line of plain text, for where there is no terminal."""
    predicted = "n/a"
    if figures.predicted_s is not None and figures.error is not None:
        predicted = f"{figures.predicted_s * 1e3:.1f} ms (simulated, measured {figures.error:+.0%})"
    lanes = "  ".join(
        f"{lane.lane} " + "/".join(map(str, _percents(lane))) for lane in figures.account.lanes
    )
    fields = [
        f"training step {watched.training_step}/{watched.training_steps}",
        f"loss {watched.losses[-1]:.3f}",
        f"{figures.seconds * 1e3:.1f} ms",
        f"{figures.tokens_per_s:,.0f} tokens/s",
        f"predicted {predicted}",
        f"overlap {_overlap(figures)}",
        f"moved {_megabytes(figures.moved_nbytes)}",
        f"recording {_share(figures.recording_share)}",
        f"{lanes} % (executing/data/dependencies/overhead/idle)",
        *(f"{name} {in_words(each)}" for name, each in figures.sensed.devices.items()),
        f"J/step {joules_text(figures.joules)}",
        *(f"emulated: {name}" for name in figures.subject.emulated),
    ]
    return "  ".join(fields)


def _header(
    watched: Watched, figures: Figures | None, process: Process, look: Look, width: int
) -> list[Text]:
    subject = watched.subject
    states = [
        "ended" if watched.has_ended else "paused" if look.is_paused else "",
        SORTED[look.sort],
    ]
    first = Text("aieflow live ", "bold")
    for state in filter(None, states):
        first.append(f"[{state}] ", "bold yellow")
    first.append(subject.model if subject else "…", "default")
    first.append(f"  {watched.run.name}")
    lines = [first]
    if subject is None:
        return lines
    devices = "; ".join(f"{each.name}: {each.identity}" for each in subject.devices)
    lines.append(_plain(f"policy {subject.policy}; {devices}"))
    if subject.emulated:
        names = ", ".join(subject.emulated)
        lines.append(Text(f"emulated: {names}: these are the emulation's times", "yellow"))
    loss = f"{watched.losses[-1]:.3f}" if watched.losses else "n/a"
    fields = [f"step {watched.training_step}/{watched.training_steps}"]
    if figures is not None:
        fields += [
            f"{figures.seconds * 1e3:,.1f} ms",
            f"{figures.tokens_per_s:,.0f} tokens/s",
            f"{figures.gflops_per_s:,.1f} GFLOP/s",
        ]
    fields.append(f"loss {loss} ")
    line = _plain("  ".join(fields))
    room = min(40, width - line.cell_len)
    line.append(sparkline(list(watched.losses), room), "cyan")
    lines.append(line)
    if figures is not None:
        lines.append(_plain(_expectations(figures)))
        cores = "n/a" if process.cpu_percent is None else f"{process.cpu_percent:.0f} %"
        lines += _packed(
            (
                f"overlap {_overlap(figures)}",
                f"moved {_megabytes(figures.moved_nbytes)}/step",
                f"memory {memory_words(figures)}",
                f"cpu {cores}",
                f"J/step {joules_text(figures.joules)}",
            ),
            width,
        )
    return lines


def _packed(fields: Iterable[str], width: int) -> list[Text]:
    """Fields in as few lines as they fit into."""
    lines: list[str] = []
    for field in fields:
        if lines and len(lines[-1]) + 2 + len(field) <= width:
            lines[-1] += f"  {field}"
        else:
            lines.append(field)
    return [_plain(line) for line in lines]


def _overlap(figures: Figures) -> str:
    """The share of what copy lanes do that is hidden; n/a where they do nothing."""
    overlap = figures.account.overlap
    return "n/a" if overlap is None else f"{overlap:.0%}"


def _expectations(figures: Figures) -> str:
    foretold = figures.subject.foretold
    if foretold is None or figures.error is None:
        return "predicted n/a  bound n/a (h says why)"
    return (
        f"predicted {foretold.seconds * 1e3:,.1f} ms (simulated, measured {figures.error:+.0%})  "
        f"bound {foretold.bound_s * 1e3:,.1f} ms ({figures.bound_ratio:.2f}x)"
    )


def _body(watched: Watched, figures: Figures, look: Look, width: int, height: int) -> list[Text]:
    """Lanes, then as much as there is room for: the last training step, nodes, events."""
    lanes = _sorted(figures.account.lanes, look.sort)
    legend = Text()
    for state in STATES:
        sign, colour = SIGNS[state]
        legend.append(sign, colour)
        legend.append(f" {CALLED[state]}  ")
    lines = [Text(), legend]
    lines += [_lane_line(watched, figures, lane, width) for lane in lanes]
    if width < WIDE:
        lines += [
            _plain(f"{name:<14} {in_words(readings)}")
            for name, readings in figures.sensed.devices.items()
        ]
    room = height - len(lines)
    gantt = _gantt(figures, watched.recordings[-1], lanes, width)
    lines += gantt[:room] if room >= 3 else []
    room = height - len(lines)
    if room >= 3:
        events = [Text(), Text("events", "bold"), *map(_plain, reversed(watched.events))]
        if not watched.events:
            events = []
        kept = min(len(events), max(0, room - 3), 7)
        lines += _nodes(figures, width, room - kept)
        lines += events[:kept] if kept >= 3 else []
    return lines


def _lane_line(watched: Watched, figures: Figures, lane: LaneAccount, width: int) -> Text:
    """`cpu.compute.0 ████▒░  81  0  9  6  4 %  3,120 steps/s  1.2 GB/s  q 45  matmul h.3.mlp`."""
    line = _plain(f"{lane.lane:<14} ")
    bar = max(10, min(50, (width - 60 - (COLUMNS if width >= WIDE else 0)) // 2))
    for state, cells in zip(STATES, whole_shares(_parts(lane), bar), strict=True):
        sign, colour = SIGNS[state]
        line.append(sign * cells, colour)
    line.append(" " + " ".join(f"{percent:3d}" for percent in _percents(lane)) + " %")
    wall_s = figures.account.wall_ns / 1e9
    line.append(f" {lane.steps / wall_s:6,.0f}/s {lane.nbytes / wall_s / 1e9:5.1f} GB/s")
    program = figures.subject.outline.lanes[lane.lane]
    done = watched.done.get(lane.lane, 0)
    left = len(program) - done
    line.append(f" q {left:<4d}")
    if width >= WIDE:
        line.append(in_columns(figures.sensed.of(device_of(lane.lane))))
    if 0 < left < len(program):
        line.append(f" {figures.subject.outline.steps[program[done]].name}", "cyan")
    return line


def _gantt(
    figures: Figures, last: Recording, lanes: Sequence[LaneAccount], width: int
) -> list[Text]:
    """The last recorded training step: for each lane what was planned above what was measured."""
    subject = figures.subject
    planned = None if subject.foretold is None else subject.foretold.recording
    wall_ns = max(last.wall_ns, 0 if planned is None else planned.wall_ns, 1)
    told = "plan: simulated" if planned is not None else "no plan (h says why)"
    share = figures.recording_share
    cost = "" if share is None else f"; recording {share:+.1%}"
    title = f"last training step recorded: {wall_ns / 1e6:,.1f} ms; {told}{cost}"
    lines = [Text(), Text(title, "bold")]
    cells = max(1, width - 20)
    rows: list[tuple[str, Mapping[str, tuple[Piece, ...]]]] = []
    if planned is not None:
        rows.append(("plan", lane_pieces(subject.outline, planned)))
    rows.append(("run", lane_pieces(subject.outline, last)))
    for lane in lanes:
        called = lane.lane
        for name, pieces in rows:
            line = _plain(f"{called[:14]:<14} {name:<4} ")
            line.append(timeline(pieces[lane.lane], wall_ns, cells))
            lines.append(line)
            called = ""
    return lines


def _nodes(figures: Figures, width: int, height: int) -> list[Text]:
    """The nodes that take most time, in as many columns and lines as there is room for."""
    seconds = figures.account.wall_ns / 1e9 / figures.account.runs
    found = [
        f"{s * 1e3:8.2f} ms {s / seconds:5.1%} {device} {name}"
        for device, name, s in figures.account.nodes[: height * width // NARROWEST]
    ]
    wide = max(map(len, found), default=0) + 2
    columns = max(1, (width + 2) // wide)
    shown = found[: (height - 2) * columns]
    lines = [Text(), Text("most time", "bold")]
    for first in range(0, len(shown), columns):
        row = [f"{text:<{wide}}" for text in shown[first : first + columns]]
        lines.append(_plain("".join(row).rstrip()))
    return lines


def _sorted(lanes: Iterable[LaneAccount], sort: Sort) -> list[LaneAccount]:
    keys = {
        "plan": lambda lane: 0,
        "busiest": lambda lane: -lane.states["executing"],
        "waiting": lambda lane: -lane.waiting_ns,
    }
    return sorted(lanes, key=keys[sort])


def _parts(lane: LaneAccount) -> list[float]:
    return [lane.states[state] for state in STATES]


def _percents(lane: LaneAccount) -> list[int]:
    states = shares(lane.states)
    return whole_shares([states[state] for state in STATES], 100)


def _megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def _share(share: float | None) -> str:
    return "n/a" if share is None else f"{share:+.1%}"


def _plain(text: str) -> Text:
    return Text(text, "default")
