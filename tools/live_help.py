"""The help of the live view: its keys, the signs of states, and why what is not known is not.

On a terminal that is too low for all of it, it has pages; what belongs together stays on one.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.text import Text

from aieflow.runtime.lane_states import STATES, State
from aieflow.tools.live_link import Watched
from aieflow.tools.sensor_log import Sensed
from aieflow.tools.sensor_text import sources

SIGNS: Mapping[State, tuple[str, str]] = {
    "executing": ("█", "green"),
    "waiting_for_data": ("▓", "yellow"),
    "waiting_for_dependencies": ("▒", "magenta"),
    "overhead": ("░", "red"),
    "idle": ("·", "bright_black"),
}
CALLED: Mapping[State, str] = {
    "executing": "executing",
    "waiting_for_data": "waiting for data",
    "waiting_for_dependencies": "for dependencies",
    "overhead": "overhead",
    "idle": "idle",
}
EXPLAINED: Mapping[State, str] = {
    "executing": "a step runs, also one that moves or converts data",
    "waiting_for_data": "the next step waits for a transfer, a conversion or a saved state",
    "waiting_for_dependencies": "the next step waits for something that is computed",
    "overhead": "the next step could begin, and has not",
    "idle": "nothing is left for the lane in this training step",
}
KEYS = (
    "q  leave; a run that was attached to goes on",
    "p  pause the picture, and go on",
    "s  sort lanes: as in the plan, the busiest first, those that wait first",
    "h  this help, and back; space, j, ↓ its next page, k, ↑ the one before",
)
NARROWEST = 20  # columns that texts are wrapped to at least
LOWEST = 3  # rows from which a page has a title

Block = Sequence[Text]  # lines that belong together; one that is empty parts others


def help_pages(
    watched: Watched, sensed: Sensed, width: int, height: int
) -> tuple[tuple[Text, ...], ...]:
    """The help in pages of at most `height` lines: at least one, each under a title of its own."""
    blocks = _blocks(watched, sensed, max(NARROWEST, width))
    title = Text("aieflow live", "bold")
    whole = _parted(blocks, max(1, height - 2))
    if len(whole) == 1 and height >= LOWEST:
        return ((title, Text(), *whole[0]),)
    if height < LOWEST:
        return tuple(map(tuple, _parted(blocks, max(1, height))))
    parted = _parted(blocks, height - 1)
    return tuple(
        (Text.assemble(title, f"  page {number} of {len(parted)} (space: the next)"), *lines)
        for number, lines in enumerate(parted, 1)
    )


def _parted(blocks: Sequence[Block], room: int) -> list[list[Text]]:
    """Blocks on pages of so many lines; one is cut only where it is longer than a page."""
    pages: list[list[Text]] = [[]]
    for block in blocks:
        if pages[-1] and len(pages[-1]) + max(1, len(block)) > room:
            pages.append([])
        if not block and pages[-1]:
            pages[-1].append(Text())
        for line in block:
            if len(pages[-1]) == room:
                pages.append([])
            pages[-1].append(line)
    return pages if pages[-1] else pages[:-1]


def _blocks(watched: Watched, sensed: Sensed, width: int) -> list[Block]:
    blocks: list[Block] = [_wrapped(key, width, 3) for key in KEYS]
    blocks.append(())
    for state in STATES:
        sign, colour = SIGNS[state]
        first, *more = _wrapped(f"{CALLED[state]}: {EXPLAINED[state]}", width - 2, 0)
        line = Text(f"{sign} ", colour)
        blocks.append([line.append_text(first), *(Text("  ").append_text(each) for each in more)])
    blocks += [_wrapped(text, width, 5) for text in _texts(watched, sensed)]
    return blocks


def _texts(watched: Watched, sensed: Sensed) -> list[str]:
    """What columns mean, and of each thing that is not known why."""
    texts = [
        "q N on a lane: N steps of its program are left in this training step",
        "busy, W, °C, GHz are the whole device's, on each of its lanes",
    ]
    subject, figures = watched.subject, watched.figures()
    if subject is not None and subject.foretold is None:
        texts.append(f"n/a: predicted, bound, plan: {subject.reason}")
    if figures is not None:
        joules = replace(figures, sensed=sensed).joules
        texts.append(f"{'n/a: ' if joules.value is None else ''}J/step: {joules.source}")
    if watched.recording_share is None:
        texts.append(
            "what recording takes is told by training steps that are not recorded: none yet"
        )
    if subject is not None and not any(".copy" in lane for lane in subject.outline.lanes):
        texts.append("n/a: overlap: nothing is copied, so nothing is to be hidden")
    return texts + sources(sensed)


def _wrapped(text: str, width: int, indent: int) -> list[Text]:
    lines = textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False)
    return [Text(line, "default") for line in lines]
