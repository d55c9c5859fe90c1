"""What each lane did with every moment of a run: five states, whose times add up to the run.

- `executing` a step, also one that moves or converts data
- `waiting_for_data`: the next step waits for a transfer, a conversion or a saved state
- `waiting_for_dependencies`: it waits for something that is computed, on any device
- `overhead`: all that it follows has ended, and it has not begun
- `idle`: nothing is left for the lane in this run

The states are StarPU's (Augonnet et al. 2011, section 5), and which of them a moment has follows
`runtime.gap`: a step *follows* the one before it on its lane and those it waits for; the last of
them to end leads back through time, to what ran at that moment.

Time is in whole nanoseconds and the pieces of a lane touch, so sums are exact.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from aieflow.runtime.outline import Outline, Recording

State = Literal["executing", "waiting_for_data", "waiting_for_dependencies", "overhead", "idle"]
STATES: tuple[State, ...] = (
    *("executing", "waiting_for_data", "waiting_for_dependencies"),
    *("overhead", "idle"),
)


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval of a lane in one state; `step` is what it executes or waits for."""

    start_ns: int
    end_ns: int
    state: State
    step: int | None = None


def lane_pieces(outline: Outline, recording: Recording) -> dict[str, tuple[Piece, ...]]:
    """For each lane the pieces of its time, in order, from the start of the run to its end."""
    followed = _followed(outline, recording)
    return {
        lane: tuple(_pieces(outline, recording, program, followed))
        for lane, program in outline.lanes.items()
    }


def state_ns(pieces: Sequence[Piece]) -> dict[State, int]:
    """Nanoseconds of each state, in the order of `STATES`."""
    sums = dict.fromkeys(STATES, 0)
    for piece in pieces:
        sums[piece.state] += piece.end_ns - piece.start_ns
    return sums


def shares(states: Mapping[State, int]) -> dict[str, float]:
    """Each state's share of all of them; they sum to 1.

    >>> shares({"executing": 3, "idle": 1})
    {'executing': 0.75, 'idle': 0.25}
    """
    total = sum(states.values())
    return {state: ns / total if total else 0.0 for state, ns in states.items()}


def _followed(outline: Outline, recording: Recording) -> list[int | None]:
    """For each step the last to end of those that it follows; of equals one it waits for."""
    ends = recording.ends_ns
    followed: list[int | None] = []
    for step, before in zip(outline.steps, outline.before, strict=True):
        found = before
        for wait in step.waits:
            if found is None or ends[wait] >= ends[found]:
                found = wait
        followed.append(found)
    return followed


def _pieces(
    outline: Outline,
    recording: Recording,
    program: Sequence[int],
    followed: Sequence[int | None],
) -> list[Piece]:
    pieces: list[Piece] = []
    free = 0
    for index in program:
        start, end = recording.starts_ns[index], recording.ends_ns[index]
        pieces += _waiting(outline, recording, free, start, index, followed)
        pieces.append(Piece(max(free, start), end, "executing", index))
        free = end
    if free < recording.wall_ns:
        pieces.append(Piece(free, recording.wall_ns, "idle"))
    return pieces


def _waiting(
    outline: Outline,
    recording: Recording,
    begin: int,
    end: int,
    step: int,
    followed: Sequence[int | None],
) -> list[Piece]:
    """What a lane does between its steps, before `step`; looked at from the end backwards."""
    pieces: list[Piece] = []
    while end > begin:
        cause = followed[step]
        ended = begin if cause is None else max(begin, recording.ends_ns[cause])
        if ended < end:  # what the step follows had ended: it could have begun
            pieces.append(Piece(ended, end, "overhead", step))
            end = ended
        if cause is None:
            break
        began = max(begin, recording.starts_ns[cause])
        if began < end:
            is_data = outline.steps[cause].is_data
            state: State = "waiting_for_data" if is_data else "waiting_for_dependencies"
            pieces.append(Piece(began, end, state, cause))
            end = began
        step = cause
    return pieces[::-1]
