"""A timeline as an SQLite database, to be asked questions; docs/trace-files.md is its manual.

The schema is part of the interface: columns are added, never renamed or given another meaning, and
`PRAGMA user_version` grows when that must be broken. The same timeline gives the same bytes.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from aieflow.ops.errors import InputError
from aieflow.runtime.schedule import device_of
from aieflow.runtime.timeline import Arrow, Counter, Run, Slice, Timeline

APPLICATION = 0x61696566  # "aief": marks a database as ours
VERSION = 1
SCHEMA = """
CREATE TABLE run (
    run INTEGER PRIMARY KEY, training_step INTEGER NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
    graph TEXT NOT NULL, policy TEXT NOT NULL);
CREATE TABLE lane (lane INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, device TEXT NOT NULL);
CREATE TABLE slice (
    slice INTEGER PRIMARY KEY,
    run INTEGER NOT NULL REFERENCES run, lane INTEGER NOT NULL REFERENCES lane,
    step INTEGER NOT NULL, name TEXT NOT NULL, op TEXT NOT NULL,
    part INTEGER NOT NULL, parts INTEGER NOT NULL,
    start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
    executor TEXT NOT NULL, kernel TEXT, inputs TEXT NOT NULL, outputs TEXT NOT NULL,
    flops INTEGER NOT NULL, nbytes INTEGER NOT NULL, predicted_ns INTEGER);
CREATE TABLE arrow (
    source INTEGER NOT NULL REFERENCES slice, target INTEGER NOT NULL REFERENCES slice,
    carries TEXT NOT NULL, nbytes INTEGER NOT NULL);
CREATE TABLE counter (counter INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, unit TEXT NOT NULL);
CREATE TABLE sample (
    counter INTEGER NOT NULL REFERENCES counter, time_ns INTEGER NOT NULL, value REAL NOT NULL);
"""
SEPARATOR = "; "  # of specs


def write_database(timeline: Timeline, path: Path) -> None:
    """Write a timeline as a database, in the place of a file that is there; raises OSError."""
    lane = {name: number for number, name in enumerate(timeline.lanes)}
    rows: dict[str, list[tuple[str | int | float | None, ...]]] = {
        "run": [
            (place, run.number, run.start_ns, run.end_ns, run.graph, run.policy)
            for place, run in enumerate(timeline.runs)
        ],
        "lane": [(number, name, device_of(name)) for name, number in lane.items()],
        "slice": [
            (place, *_row(each, lane[each.lane])) for place, each in enumerate(timeline.slices)
        ],
        "arrow": [(each.source, each.target, each.values, each.nbytes) for each in timeline.arrows],
        "counter": [(place, each.name, each.unit) for place, each in enumerate(timeline.counters)],
        "sample": [
            (place, at_ns, value)
            for place, each in enumerate(timeline.counters)
            for at_ns, value in each.samples
        ],
    }
    with closing(sqlite3.connect(":memory:")) as database:
        database.executescript(
            f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION}; {SCHEMA}"
        )
        with database:
            for table, content in rows.items():
                if content:
                    places = ", ".join("?" * len(content[0]))
                    database.executemany(f"INSERT INTO {table} VALUES ({places})", content)
        image = database.serialize()
    path.write_bytes(image)


def read_database(path: Path) -> Timeline:
    """The timeline that a database holds; raises InputError for a file that is none of ours."""
    try:
        image = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        with closing(sqlite3.connect(":memory:")) as database:
            database.deserialize(image)
            (application,) = database.execute("PRAGMA application_id").fetchone()
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if application != APPLICATION:
                raise InputError(f"{path}: is no trace of aieflow: give one of --trace FILE.sqlite")
            if version != VERSION:
                raise InputError(
                    f"{path}: has version {version} of the schema, this aieflow reads {VERSION}: "
                    "record the trace again"
                )
            return _timeline(database)
    except (sqlite3.Error, IndexError, TypeError) as error:
        raise InputError(
            f"{path}: is no database of a trace ({error}): give one of --trace FILE.sqlite"
        ) from None


def _row(each: Slice, lane: int) -> tuple[str | int | None, ...]:
    return (
        *(each.run, lane, each.step, each.name, each.op, each.part, each.parts),
        *(each.start_ns, each.end_ns, each.executor, each.kernel or None),
        *(SEPARATOR.join(each.inputs), SEPARATOR.join(each.outputs)),
        *(each.flops, each.nbytes, each.predicted_ns),
    )


def _timeline(database: sqlite3.Connection) -> Timeline:
    ask = database.execute
    runs = ask("SELECT training_step, start_ns, end_ns, graph, policy FROM run ORDER BY run")
    lanes = ask("SELECT name FROM lane ORDER BY lane")
    slices = ask(
        "SELECT run, step, lane.name, slice.name, op, part, parts, start_ns, end_ns, executor, "
        "coalesce(kernel, ''), inputs, outputs, flops, nbytes, predicted_ns "
        "FROM slice JOIN lane USING (lane) ORDER BY slice"
    )
    arrows = ask("SELECT source, target, carries, nbytes FROM arrow ORDER BY rowid")
    counters = ask("SELECT counter, name, unit FROM counter ORDER BY counter").fetchall()
    samples = "SELECT time_ns, value FROM sample WHERE counter = ? ORDER BY rowid"
    return Timeline(
        tuple(Run(*row) for row in runs),
        tuple(name for (name,) in lanes),
        tuple(_slice(row) for row in slices),
        tuple(Arrow(*row) for row in arrows),
        tuple(Counter(name, unit, tuple(ask(samples, (at,)))) for at, name, unit in counters),
    )


def _slice(row: tuple[Any, ...]) -> Slice:
    fields: tuple[Any, ...] = (*row[:11], _specs(row[11]), _specs(row[12]), *row[13:])
    return Slice(*fields)


def _specs(text: str) -> tuple[str, ...]:
    return tuple(text.split(SEPARATOR)) if text else ()
