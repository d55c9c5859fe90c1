"""A measured profile on disk: one JSON file that is always whole.

    {"aieflow_measured_profile": 1,
     "devices": {"cpu": {"lanes": 2, "fingerprint": {"model": ..., "power": "mains"}}},
     "points": [{"device": "cpu", "op": "gelu", ..., "samples_ns": [...]}, ...],
     "series": [{"kind": "gap", "devices": "cpu", "subject": ..., "samples": [...]}, ...]}

It is written beside its place, synced and renamed, so a kill at any moment leaves the old file or
the new one. What is read is checked in full: a file that is damaged, or is something else, is an
error with its remedy, and is never overwritten.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from aieflow.ops.errors import InputError
from aieflow.profiles.measured import MeasuredProfile, Point, Series, WorkKey
from aieflow.profiles.samples import Samples
from aieflow.profiles.work import Work

FORMAT_KEY = "aieflow_measured_profile"
FORMAT = 3
REMEDY = "remove or rename it and run `aieflow calibrate` again"


def write_profile(profile: MeasuredProfile, file: Path) -> None:
    """Put a profile in place of what the file held; raises InputError where it cannot be."""
    hidden = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with hidden.open("w", encoding="utf-8") as stream:
            stream.write(_text(profile))
            stream.flush()
            os.fsync(stream.fileno())
        hidden.replace(file)
    except OSError as error:
        hidden.unlink(missing_ok=True)
        raise InputError(f"{file}: the profile cannot be written: {error.strerror}") from None


def read_profile(file: Path) -> MeasuredProfile | None:
    """The profile in a file; None where there is no file.

    Raises InputError, which names file, place and remedy, for one that cannot be used.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{file}: the profile cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InputError(f"{file}: not a profile, it holds no text: {REMEDY}") from None
    try:
        content: object = json.loads(text)
        return _profile(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not a usable profile: {error}: {REMEDY}") from None


def _text(profile: MeasuredProfile) -> str:
    devices = {
        name: {"lanes": profile.lanes[name], "fingerprint": dict(facts)}
        for name, facts in sorted(profile.fingerprints.items())
    }
    points: list[dict[str, object]] = [
        {
            "device": point.work.device,
            "op": point.work.op,
            "kernel": point.work.kernel,
            "parts": point.work.parts,
            "variant": point.work.variant,
            "signature": point.work.signature,
            "flops": point.work.flops,
            "nbytes": point.work.nbytes,
            "sizes": list(point.work.sizes),
            "samples_ns": [max(1, round(1e9 * seconds)) for seconds in point.samples.values],
        }
        for _, point in sorted(profile.points.items())
    ]
    series: list[dict[str, object]] = [
        {"kind": kind, "devices": names, "subject": subject, "samples": list(samples.values)}
        for (kind, names, subject), samples in sorted(profile.series.items())
    ]
    parts = [
        f'"{FORMAT_KEY}": {FORMAT}',
        f'"devices": {json.dumps(devices, indent=1)}',
        f'"points": {_lines(points)}',
        f'"series": {_lines(series)}',
    ]
    return "{" + ",\n".join(parts) + "}\n"


def _lines(entries: list[dict[str, object]]) -> str:
    """A list with one entry a line, so that two files can be compared."""
    return "[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]"


def _profile(content: object) -> MeasuredProfile:
    if not isinstance(content, dict) or FORMAT_KEY not in content:
        raise ValueError(f"it has no key {FORMAT_KEY!r}")
    if content[FORMAT_KEY] != FORMAT:
        raise ValueError(f"{FORMAT_KEY} is {content[FORMAT_KEY]!r}, this version reads {FORMAT}")
    fingerprints: dict[str, dict[str, str]] = {}
    lanes: dict[str, int] = {}
    for name, entry in _table(content.get("devices"), "devices").items():
        device = _table(entry, f"devices.{name}")
        facts = _table(device.get("fingerprint"), f"devices.{name}.fingerprint")
        fingerprints[name] = {
            key: _words(fact, f"devices.{name}.fingerprint.{key}") for key, fact in facts.items()
        }
        lanes[name] = int(_number(device.get("lanes"), f"devices.{name}.lanes", least=1))
    points: dict[WorkKey, Point] = {}
    for number, entry in enumerate(_entries(content.get("points"), "points")):
        point = _point(entry, f"points[{number}]")
        if point.work.device not in lanes:
            raise ValueError(f"points[{number}]: {point.work.device!r} is none of its devices")
        points[point.work.key] = point
    series: dict[Series, Samples] = {}
    for number, entry in enumerate(_entries(content.get("series"), "series")):
        place = f"series[{number}]"
        kind, names, subject = (_words(entry.get(key), f"{place}.{key}") for key in _SERIES_KEYS)
        series[kind, names, subject] = _samples(
            entry.get("samples"), f"{place}.samples", -math.inf, 1.0
        )
    for (kind, names, subject), gaps in series.items():
        for beside in ("gaps", "step") if kind == "gap" else ():
            other = series.get((beside, names, subject))
            if other is None or other.count != gaps.count:
                raise ValueError(f"series: {subject!r} of {names} lacks a {beside!r} for each gap")
    return MeasuredProfile(fingerprints, lanes, points, series)


_SERIES_KEYS = ("kind", "devices", "subject")


def _point(entry: Mapping[str, object], place: str) -> Point:
    words = {
        key: _words(entry.get(key), f"{place}.{key}")
        for key in ("device", "op", "kernel", "variant", "signature")
    }
    sizes = entry.get("sizes")
    if not isinstance(sizes, list) or not sizes:
        raise ValueError(f"{place}.sizes = {sizes!r}: must be a list of sizes")
    return Point(
        Work(
            **words,
            parts=int(_number(entry.get("parts"), f"{place}.parts", least=1)),
            flops=_number(entry.get("flops"), f"{place}.flops"),
            nbytes=_number(entry.get("nbytes"), f"{place}.nbytes", least=1),
            sizes=tuple(int(_number(size, f"{place}.sizes", least=1)) for size in sizes),
        ),
        _samples(entry.get("samples_ns"), f"{place}.samples_ns", 1, 1e9),
    )


def _samples(entry: object, place: str, least: float, per_unit: float) -> Samples:
    if not isinstance(entry, list) or not entry:
        raise ValueError(f"{place} must be a list with at least one sample")
    return Samples(tuple(_number(each, place, least=least) / per_unit for each in entry))


def _table(entry: object, place: str) -> dict[str, object]:
    if not isinstance(entry, dict):
        raise ValueError(f"{place} must be an object")
    return {str(key): value for key, value in entry.items()}


def _entries(entry: object, place: str) -> list[dict[str, object]]:
    if not isinstance(entry, list):
        raise ValueError(f"{place} must be a list")
    return [_table(each, f"{place}[{number}]") for number, each in enumerate(entry)]


def _words(entry: object, place: str) -> str:
    if not isinstance(entry, str):
        raise ValueError(f"{place} = {entry!r}: must be a text")
    return entry


def _number(entry: object, place: str, least: float = 0.0) -> float:
    if isinstance(entry, bool) or not isinstance(entry, int | float) or not math.isfinite(entry):
        raise ValueError(f"{place} = {entry!r}: must be a number")
    if entry < least:
        raise ValueError(f"{place} = {entry!r}: must be at least {least:g}")
    return float(entry)
