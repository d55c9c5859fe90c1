"""Reads a described machine from its TOML file, strictly.

Every figure is a table; a file that leaves one out, misspells one or gives one outside its own
range is refused with the file, the place, the value and the remedy:

```toml
[npu.first_dispatch_s]
value = 108e-6
low = 41.6e-6                 # both ends of the range, or none
high = 170e-6
mark = "measured"             # measured, vendor, inferred, fitted or assumed
source = "SI: one C++ call"   # begins with a key of [sources]; with "unknown" if assumed
```

A file may begin with `base = "phoenix"`: what it does not say is then as in that shipped machine,
figure by figure. So a user's own file needs only what was measured on the own computer.
"""

import math
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias, TypeVar, get_args, get_type_hints

from aieflow.ops.errors import InputError
from aieflow.profiles.figure import FILE_MARKS, Figure, Rule
from aieflow.profiles.schema import (
    POWERS,
    BatteryFactors,
    Contention,
    CpuProfile,
    IgpuProfile,
    Links,
    MachineProfile,
    Noise,
    NpuProfile,
    on_battery,
    rule_of,
    suggestion,
)

SCHEMA = 1  # of the file; another number is another form

Table: TypeAlias = dict[str, object]
Part = TypeVar("Part")

_MACHINES = "aieflow.profiles.machines"
_OWN = ("name", "provenance")  # never taken over from a base
_TEXTS = ("name", "chip", "provenance")
_SECTIONS = ("sources", "cpu", "igpu", "npu", "links", "contention", "noise", "battery")
_FIGURE_KEYS = ("value", "source", "mark")
_RANGE_KEYS = ("low", "high")


def machine_names() -> tuple[str, ...]:
    """Names of the shipped machines, sorted."""
    entries = (Path(entry.name) for entry in files(_MACHINES).iterdir())
    return tuple(sorted(path.stem for path in entries if path.suffix == ".toml"))


def load_machine(name_or_path: str | Path, power: str = "mains") -> MachineProfile:
    """The described machine of that name, or in that file, on "mains" or "battery" power.

    A text with a slash or the ending `.toml` is a path. Raises InputError for a name that is none,
    for a file that cannot be read or breaks a rule, and for another kind of power.
    """
    if power not in POWERS:
        raise InputError(f"power = {power!r}: must be {' or '.join(POWERS)}")
    mains, factors = _parse(*_find(name_or_path))
    return mains if power == "mains" else on_battery(mains, factors)


def _find(name_or_path: str | Path) -> tuple[str, Table]:
    """What to call the file in messages, and what it holds."""
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or "\\" in text or text.endswith(".toml"):
        try:
            return text, _toml(text, Path(name_or_path).read_bytes())
        except OSError as error:
            raise InputError(
                f"machine file {text}: {error.strerror}; give a readable file, "
                f"or one of the names {', '.join(machine_names())}"
            ) from None
    if text not in machine_names():
        raise InputError(
            f"no machine is called {text!r}{suggestion(text, machine_names())} "
            f"There are {', '.join(machine_names())}; a file is given by its path ending in .toml"
        )
    file = f"{text}.toml"
    return file, _toml(file, files(_MACHINES).joinpath(file).read_bytes())


def _toml(file: str, content: bytes) -> Table:
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"machine file {file} is not valid TOML: {error}") from None


def _parse(file: str, table: Table) -> tuple[MachineProfile, BatteryFactors]:
    """The machine on mains, and what battery changes; raises InputError at the first fault."""
    _check_version(file, table)
    table = _with_base(file, table)
    reader = _Reader(file, _sources(file, table))
    reader.check_keys(table, ("schema", *_TEXTS, *_SECTIONS), "")
    name, chip, provenance = (reader.text(table[key], key) for key in _TEXTS)
    mains = MachineProfile(
        name=name,
        chip=chip,
        provenance=provenance,
        power="mains",
        sources=reader.sources,
        cpu=reader.part(CpuProfile, table["cpu"], "cpu"),
        igpu=reader.part(IgpuProfile, table["igpu"], "igpu"),
        npu=reader.part(NpuProfile, table["npu"], "npu"),
        links=reader.part(Links, table["links"], "links"),
        contention=reader.part(Contention, table["contention"], "contention"),
        noise=reader.part(Noise, table["noise"], "noise"),
    )
    return mains, reader.part(BatteryFactors, table["battery"], "battery")


def _check_version(file: str, table: Table) -> None:
    version = table.get("schema")
    if version != SCHEMA or isinstance(version, bool):
        said = "has no schema" if version is None else f"has schema = {version!r}"
        raise InputError(
            f"{file} {said}: this version of aieflow reads schema = {SCHEMA}; "
            f"compare it with a shipped machine ({', '.join(machine_names())})"
        )


def _with_base(file: str, table: Table) -> Table:
    """The table completed by that of the shipped machine which it names as its base, if any."""
    if "base" not in table:
        return table
    base = table["base"]
    if not isinstance(base, str) or base not in machine_names():
        raise InputError(
            f"{file}: base = {base!r}: must be a shipped machine, one of "
            f"{', '.join(machine_names())}{suggestion(str(base), machine_names())}"
        )
    base_file, base_table = _find(base)
    _parse(base_file, base_table)  # so that a fault found later is this file's
    base_table = _with_base(base_file, base_table)
    own = {key: entry for key, entry in table.items() if key != "base"}
    return _merged({key: entry for key, entry in base_table.items() if key not in _OWN}, own)


def _merged(base: Table, own: Table) -> Table:
    """Both tables; where both have an entry it is the own one, figures as a whole."""
    result = dict(base)
    for key, entry in own.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(entry, dict) and "value" not in old:
            entry = _merged(old, entry)
        result[key] = entry
    return result


def _sources(file: str, table: Table) -> Mapping[str, str]:
    """The checked table of sources: what stands behind each key."""
    reader = _Reader(file, {})
    sources = reader.table(table.get("sources", {}), "sources")
    return {key: reader.text(entry, f"sources.{key}") for key, entry in sources.items()}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns tables into parts of a profile; each refusal names file, path, value and remedy."""

    file: str
    sources: Mapping[str, str]

    def error(self, path: str, value: object, remedy: str) -> InputError:
        return InputError(f"{self.file}: {path} = {repr(value)[:80]}: {remedy}")

    def table(self, entry: object, path: str) -> Table:
        if not isinstance(entry, dict):
            raise self.error(path, entry, f"must be a table, [{path}]")
        return entry

    def text(self, entry: object, path: str) -> str:
        if not isinstance(entry, str) or not entry.strip():
            raise self.error(path, entry, "must be a text that is not empty")
        return entry

    def check_keys(
        self, table: Table, wanted: Collection[str], path: str, optional: Collection[str] = ()
    ) -> None:
        """Raise unless the table has all wanted keys and no others."""
        prefix = f"{path}." if path else ""
        missing = [key for key in wanted if key not in table]
        for key in table:
            if key not in wanted and key not in optional:
                guess = suggestion(key, missing or wanted)
                allowed = ", ".join([*wanted, *optional])
                raise self.error(
                    prefix + key, table[key], f"is an unknown key{guess} (known here: {allowed})"
                )
        if missing:
            raise InputError(
                f"{self.file}: {prefix}{missing[0]} is missing: add it, "
                "or begin the file with a base that has it"
            )

    def part(self, cls: type[Part], entry: object, path: str) -> Part:
        """A dataclass of the schema from its table, field by field."""
        table = self.table(entry, path)
        kinds = get_type_hints(cls, include_extras=True)
        optional = [
            each.name
            for each in fields(cls)  # type: ignore[arg-type]  # a part is a dataclass
            if each.default is None
        ]
        self.check_keys(table, [key for key in kinds if key not in optional], path, optional)
        children = {
            key: self.field(
                get_args(kind)[0] if key in optional else kind, table[key], f"{path}.{key}"
            )
            for key, kind in kinds.items()
            if key in table
        }
        return cls(**children)

    def field(self, kind: object, entry: object, path: str) -> object:
        """One field: a figure, a part, a choice of words, or a flag."""
        rule = rule_of(kind)
        if rule is not None:
            return self.figure(rule, entry, path)
        if isinstance(kind, type) and is_dataclass(kind):
            return self.part(kind, entry, path)
        if kind is bool:
            if not isinstance(entry, bool):
                raise self.error(path, entry, "must be true or false")
            return entry
        choices = get_args(kind)
        if entry not in choices:
            raise self.error(path, entry, f"must be {' or '.join(map(repr, choices))}")
        return entry

    def figure(self, rule: Rule, entry: object, path: str) -> Figure:
        if not isinstance(entry, dict):
            keys = ", ".join(_FIGURE_KEYS)
            raise self.error(path, entry, f"must be a table with {keys}: [{path}]")
        self.check_keys(entry, _FIGURE_KEYS, path, _RANGE_KEYS)
        numbers = {
            key: self.number(rule, entry[key], f"{path}.{key}")
            for key in ("value", *_RANGE_KEYS)
            if key in entry
        }
        mark, source = entry["mark"], self.text(entry["source"], f"{path}.source")
        if mark not in FILE_MARKS:
            raise self.error(f"{path}.mark", mark, f"must be one of {', '.join(FILE_MARKS)}")
        figure = Figure(source=source, mark=mark, **numbers)
        self.check_range(figure, path)
        self.check_source(figure, path)
        return figure

    def number(self, rule: Rule, entry: object, path: str) -> float:
        if isinstance(entry, bool) or not isinstance(entry, int | float):
            raise self.error(path, entry, f"is not a number; {rule.text}")
        try:
            number = float(entry)
        except OverflowError:
            number = math.inf
        if not rule.allows(number):
            raise self.error(path, entry, rule.text)
        return number

    def check_range(self, figure: Figure, path: str) -> None:
        """Raise unless the range is whole and holds the value; what is assumed needs one."""
        low, high = figure.low, figure.high
        if low is None and high is None:
            if figure.mark == "assumed":
                raise self.error(f"{path}.mark", "assumed", "needs a range: add low and high")
        elif low is None or high is None:
            end, missing = ("high", "low") if low is None else ("low", "high")
            value = high if low is None else low
            raise self.error(f"{path}.{end}", value, f"is half a range: add {missing}")
        elif low > high:
            raise self.error(f"{path}.low", low, f"lies above high = {high:g}: exchange them")
        elif not low <= figure.value <= high:
            raise self.error(
                f"{path}.value",
                figure.value,
                f"lies outside its own range {low:g} to {high:g}: correct one of them",
            )

    def check_source(self, figure: Figure, path: str) -> None:
        """Raise unless the source begins with a known key, or is honest about knowing nothing."""
        key = re.split(r"[\s,;:]", figure.source, maxsplit=1)[0]
        if figure.mark == "assumed" and "unknown" not in figure.source.lower():
            raise self.error(
                f"{path}.source", figure.source, 'is assumed: it must say "unknown", and why this'
            )
        if figure.mark != "assumed" and key not in self.sources:
            raise self.error(
                f"{path}.source",
                figure.source,
                f"begins with {key!r}, which is no key of [sources]"
                f"{suggestion(key, self.sources)}: add it there",
            )
