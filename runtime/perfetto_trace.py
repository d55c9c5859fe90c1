"""A timeline in Perfetto's own format: a `Trace` of `TracePacket`s, in protocol buffers.

A process track, under it a track for each lane, in the plan's order, and one for each counter. A
slice is a begin and an end; an arrow is a flow whose number stands at the begin of both slices.
Names, and the names and texts of arguments, are interned: written once, then numbers.

Numbers of fields are those of Perfetto's `protos/perfetto/trace/perfetto_trace.proto`.
"""

from collections.abc import Iterator
from pathlib import Path

from aieflow.runtime.protobuf import (
    bytes_field,
    double_field,
    fixed_field,
    text_field,
    varint_field,
)
from aieflow.runtime.timeline import Counter, Timeline, arguments

SEQUENCE = 1  # all packets are of one writer
PROCESS = 1  # the track of everything; lanes and counters follow
PACKET = 1  # Trace
TIMESTAMP, SEQUENCE_ID, TRACK_EVENT, INTERNED, FLAGS, TRACK = 8, 10, 11, 12, 13, 60  # TracePacket
CLEARED, NEEDS_STATE = 1, 2  # flags: interning begins; interned names are used
UUID, NAME, PROCESS_INFO, PARENT, COUNTER, ORDERING, RANK = 1, 2, 3, 5, 8, 11, 12  # TrackDescriptor
EXPLICIT = 3  # ordering of child tracks by rank
PID, PROCESS_NAME = 1, 6  # ProcessDescriptor
UNIT, UNIT_NAME = 3, 6  # CounterDescriptor
UNITS = {"steps": 2, "bytes": 3}
BEGIN, END, SAMPLE = 1, 2, 4  # types of TrackEvent
CATEGORY, ANNOTATION, TYPE, NAME_ID, TRACK_ID, VALUE = 3, 4, 9, 10, 11, 44
FLOW, LAST_FLOW = 47, 48
KEY_ID, INTEGER, NUMBER, TEXT_ID = 1, 3, 5, 17  # DebugAnnotation
CATEGORIES, NAMES, KEYS, TEXTS = 1, 2, 3, 29  # InternedData
ID, CONTENT = 1, 2  # of what is interned


def write_perfetto(timeline: Timeline, path: Path) -> None:
    """Write a timeline as a Perfetto trace; raises OSError."""
    path.write_bytes(b"".join(bytes_field(PACKET, packet) for packet in _packets(timeline)))


def _packets(timeline: Timeline) -> Iterator[bytes]:
    interned = _Interned()
    events = [*_events(timeline, interned)]  # first, for they fill the table
    yield (
        varint_field(SEQUENCE_ID, SEQUENCE)
        + varint_field(FLAGS, CLEARED)
        + bytes_field(INTERNED, interned.content)
    )
    process = varint_field(PID, 1) + text_field(PROCESS_NAME, "aieflow")
    yield _track(
        varint_field(UUID, PROCESS)
        + bytes_field(PROCESS_INFO, process)
        + varint_field(ORDERING, EXPLICIT)
    )
    for place, lane in enumerate(timeline.lanes):
        yield _track(_child(timeline, place, lane))
    for place, counter in enumerate(timeline.counters, len(timeline.lanes)):
        yield _track(_child(timeline, place, counter.name) + bytes_field(COUNTER, _unit(counter)))
    yield from events


def _track(descriptor: bytes) -> bytes:
    return varint_field(SEQUENCE_ID, SEQUENCE) + bytes_field(TRACK, descriptor)


def _child(timeline: Timeline, place: int, name: str) -> bytes:
    return (
        varint_field(UUID, _uuid(place))
        + text_field(NAME, name)
        + varint_field(PARENT, PROCESS)
        + varint_field(RANK, place)
    )


def _uuid(place: int) -> int:
    """The track of a lane or counter, by its place: lanes first."""
    return PROCESS + 1 + place


def _unit(counter: Counter) -> bytes:
    if counter.unit in UNITS:
        return varint_field(UNIT, UNITS[counter.unit])
    return text_field(UNIT_NAME, counter.unit)


class _Interned:
    """Texts that were given a number, of each kind from 1 on, in order of first use."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str], int] = {}
        self._counts: dict[int, int] = {}

    def number(self, kind: int, text: str) -> int:
        """The number that stands for a text."""
        if (kind, text) not in self._numbers:
            self._counts[kind] = self._numbers[kind, text] = self._counts.get(kind, 0) + 1
        return self._numbers[kind, text]

    @property
    def content(self) -> bytes:
        """The fields of `InternedData`."""
        return b"".join(
            bytes_field(kind, varint_field(ID, number) + text_field(CONTENT, text))
            for (kind, text), number in self._numbers.items()
        )


def _events(timeline: Timeline, interned: _Interned) -> Iterator[bytes]:
    """Begins, ends and samples in the order of time, as readers without a sorter need it.

    At one moment slices come in the order of their steps: what ends there before what begins, and
    a slice that takes no time stays whole.
    """
    track = {lane: _uuid(place) for place, lane in enumerate(timeline.lanes)}
    flows: dict[int, bytes] = {}
    for number, arrow in enumerate(timeline.arrows, 1):
        for place, field in ((arrow.source, FLOW), (arrow.target, LAST_FLOW)):
            flows[place] = flows.get(place, b"") + fixed_field(field, number)
    events: list[tuple[int, bytes]] = []
    order = sorted(range(len(timeline.slices)), key=lambda i: (timeline.slices[i].start_ns, i))
    for place in order:
        each = timeline.slices[place]
        where = varint_field(TRACK_ID, track[each.lane])
        begin = (
            where
            + varint_field(TYPE, BEGIN)
            + varint_field(NAME_ID, interned.number(NAMES, each.name))
            + varint_field(CATEGORY, interned.number(CATEGORIES, each.op))
            + b"".join(
                bytes_field(ANNOTATION, _annotation(key, value, interned))
                for key, value in arguments(timeline, each).items()
            )
            + flows.get(place, b"")
        )
        events.append((each.start_ns, begin))
        events.append((each.end_ns, where + varint_field(TYPE, END)))
    for place, counter in enumerate(timeline.counters, len(timeline.lanes)):
        where = varint_field(TRACK_ID, _uuid(place))
        for at_ns, value in counter.samples:
            sample = where + varint_field(TYPE, SAMPLE) + double_field(VALUE, value)
            events.append((at_ns, sample))
    for at_ns, event in sorted(events, key=lambda event: event[0]):  # keeps the order of equals
        yield (
            varint_field(TIMESTAMP, at_ns)
            + varint_field(SEQUENCE_ID, SEQUENCE)
            + varint_field(FLAGS, NEEDS_STATE)
            + bytes_field(TRACK_EVENT, event)
        )


def _annotation(key: str, value: str | int | float, interned: _Interned) -> bytes:
    name = varint_field(KEY_ID, interned.number(KEYS, key))
    if isinstance(value, str):
        return name + varint_field(TEXT_ID, interned.number(TEXTS, value))
    if isinstance(value, int):
        return name + varint_field(INTEGER, value)
    return name + double_field(NUMBER, value)
