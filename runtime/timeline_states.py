"""What lanes did with every moment, by a trace file instead of a plan: the states of `lane_states`.

A file says which slice waited for which, and the lane of each; that is all that states need.
"""

from collections.abc import Collection, Mapping

from aieflow.runtime.lane_states import STATES, State, lane_pieces, state_ns
from aieflow.runtime.outline import COMPUTING, Outline, OutlinedStep, Recording
from aieflow.runtime.timeline import Slice, Timeline


def timeline_states(
    timeline: Timeline, conversions: Collection[str] = ()
) -> Mapping[str, Mapping[State, int]] | None:
    """Nanoseconds of each lane in each state, over all runs; they sum to the length of the runs.

    `conversions` are ops that prepare operands. None where a run was cut short, or there is none.
    """
    sums: dict[str, dict[State, int]] = {lane: dict.fromkeys(STATES, 0) for lane in timeline.lanes}
    for place in range(len(timeline.runs)):
        found = _outlined(timeline, place, conversions)
        if found is None:
            return None
        for lane, pieces in lane_pieces(*found).items():
            for state, ns in state_ns(pieces).items():
                sums[lane][state] += ns
    return sums if timeline.runs else None


def _outlined(
    timeline: Timeline, run: int, conversions: Collection[str]
) -> tuple[Outline, Recording] | None:
    """The outline of one run, and when its steps ran."""
    slices = sorted(
        (each for each in timeline.slices if each.run == run), key=lambda each: each.step
    )
    if [each.step for each in slices] != list(range(len(slices))):
        return None
    waits: list[list[int]] = [[] for _ in slices]
    for arrow in timeline.arrows:
        source, target = timeline.slices[arrow.source], timeline.slices[arrow.target]
        if target.run == run:
            waits[target.step].append(source.step)
    programs: dict[str, list[int]] = {lane: [] for lane in timeline.lanes}
    for each in sorted(slices, key=lambda each: (each.start_ns, each.step)):
        programs[each.lane].append(each.step)
    steps = tuple(
        OutlinedStep(
            each.lane,
            each.name,
            each.op,
            _cause(each, conversions),
            tuple(before),
            each.flops,
            each.nbytes,
        )
        for each, before in zip(slices, waits, strict=True)
    )
    begin, end = timeline.runs[run].start_ns, timeline.runs[run].end_ns
    starts = tuple(each.start_ns - begin for each in slices)
    ends = tuple(each.end_ns - begin for each in slices)
    outline = Outline(steps, {lane: tuple(program) for lane, program in programs.items()})
    return outline, Recording(max(end - begin, *ends, 0), starts, ends)


def _cause(each: Slice, conversions: Collection[str]) -> str:
    """What a lane that waits for a slice waits for: as `runtime.gap.cause_of` has it."""
    if each.op in conversions or ".copy" in each.lane:  # transfers and saved states, too
        return each.op
    return COMPUTING + each.device
