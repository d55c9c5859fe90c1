"""The static part of a recorded program: fifos, ends at shims, channels of tiles."""

from collections.abc import Iterator

from iron_recorder import End, Fifo, Link, Recorded, Transfer
from iron_signatures import RecordError

# Channels of a tile's DMA, in and out: shim, memory tile, core.
CHANNELS = {0: (2, 2), 1: (6, 6), 2: (2, 2)}


def check_tiles(recorded: Recorded, links: dict[str, Link]) -> None:
    """Raise RecordError where tiles are taken twice, or have too few channels."""
    tiles = [(worker.tile.col, worker.tile.row) for worker in recorded.workers]
    if len(set(tiles)) != len(tiles):
        raise RecordError("two workers are on one tile")
    used: dict[tuple[int, int], list[int]] = {}

    def use(col: int, row: int, direction: int) -> None:
        counts = used.setdefault((col, row), [0, 0])
        counts[direction] += 1
        if counts[direction] > CHANNELS[min(row, 2)][direction]:
            raise RecordError(f"tile {(col, row)}: more channels than it has")

    for col, row in tiles:
        for direction in (0, 0, 1):  # A, B, C
            use(col, row, direction)
    for link in links.values():
        for _ in link.sources:
            use(link.tile.col, link.tile.row, 0)
        for _ in link.targets:
            use(link.tile.col, link.tile.row, 1)
    for _, col, is_out in shim_ends(recorded):
        use(col, 0, 0 if is_out else 1)


def shim_ends(recorded: Recorded) -> Iterator[tuple[str, int, bool]]:
    """Fifos that end at a shim: name, column, whether they lead out of the array."""
    seen: set[str] = set()
    for event in recorded.events:
        if isinstance(event, Transfer) and event.end.fifo.name not in seen:
            seen.add(event.end.fifo.name)
            assert event.end.tile is not None
            yield event.end.fifo.name, event.end.tile.col, not event.end.is_producer


def fifos(recorded: Recorded) -> dict[str, Fifo]:
    """All fifos, by name."""
    found: dict[str, Fifo] = {}

    def visit(fifo: Fifo) -> None:
        if fifo.name in found:
            if found[fifo.name] is not fifo:
                raise RecordError(f"two fifos are called {fifo.name}")
            return
        found[fifo.name] = fifo
        for end in (fifo.producer, *fifo.consumers):
            if end is not None and isinstance(end.owner, Link):
                for other in (*end.owner.sources, *end.owner.targets):
                    visit(other)

    for worker in recorded.workers:
        for argument in worker.fn_args:
            if isinstance(argument, End):
                visit(argument.fifo)
    return found
