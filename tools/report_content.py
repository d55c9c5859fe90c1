"""What a report shows of a run, as plain data: curves, slices, the graph, sums.

Read from the run's own files: `metrics.jsonl`, `plan.json`, and a trace where there is one.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from aieflow.ops.errors import InputError
from aieflow.runtime.export import FAMILIES
from aieflow.runtime.timeline import Slice, Timeline

POINTS = 1000  # of one curve: more are averaged
SHOWN = ("attention", "matmul", "norm", "npu", "optim", "pointwise")  # families with their colour
TRANSFERS = ("in", "out", "save")
UNTOLD = "of a meter that is not named"
Line = Mapping[str, Any]  # of metrics.jsonl
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Metrics:
    """The lines of a run's metrics, by what they tell."""

    steps: tuple[Line, ...]  # with a loss
    evaluations: tuple[Line, ...]
    events: tuple[Line, ...]  # all others: a device excluded, another plan

    @property
    def emulated(self) -> tuple[str, ...]:
        """The devices whose times are an emulation's."""
        return tuple(dict.fromkeys(str(one["emulated"]) for one in self.steps if "emulated" in one))


@dataclass(frozen=True, slots=True)
class OpTime:
    """An op (or kind of transfer) on a device: of one training step, all lanes together."""

    op: str
    device: str
    count: float
    seconds: float
    median_s: float
    share: float  # of all lanes' busy time
    flops_per_s: float | None
    predicted_s: float | None  # the sum over a training step, as `seconds`

    @property
    def error(self) -> float | None:
        """The prediction's share too much (below 0: too little)."""
        if self.predicted_s is None or not self.seconds:
            return None
        return self.predicted_s / self.seconds - 1


def read_metrics(file: Path) -> Metrics:
    """The metrics of a run; a line that is torn or foreign is left out. Raises InputError."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    lines: list[Line] = []
    for each in text.splitlines():
        try:
            line: object = json.loads(each)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("training_step"), int):
            lines.append(line)
    steps = tuple(line for line in lines if "loss" in line)
    evaluations = tuple(line for line in lines if "validation_loss" in line)
    told = {id(line) for line in (*steps, *evaluations)}
    return Metrics(steps, evaluations, tuple(line for line in lines if id(line) not in told))


def read_plan(file: Path) -> Mapping[str, Any] | None:
    """What `plan.json` holds; None where there is none. Raises InputError for a damaged one."""
    try:
        found: object = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    return found if isinstance(found, dict) else None


def curve(lines: Iterable[Line], key: str) -> list[Point]:
    """A quantity by training step, finite numbers only; long ones by the means of equal parts.

    >>> curve([{"training_step": 1, "loss": 2.0}, {"training_step": 2, "loss": None}], "loss")
    [(1.0, 2.0)]
    """
    points = [
        (float(line["training_step"]), float(line[key]))
        for line in lines
        if isinstance(line.get(key), int | float) and math.isfinite(line[key])
    ]
    size = math.ceil(len(points) / POINTS)
    if size <= 1:
        return points
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def charts(metrics: Metrics) -> list[dict[str, object]]:
    """The curves of the page: each the id of its place, and its series."""

    def series(name: str, lines: Iterable[Line], key: str, colour: str) -> dict[str, object]:
        return {"name": name, "colour": colour, "points": curve(lines, key)}

    training = series("training loss", metrics.steps, "loss", "matmul")
    validation = series("validation loss", metrics.evaluations, "validation_loss", "attention")
    losses = [training, *([validation] if metrics.evaluations else [])]
    found: list[dict[str, object]] = [{"id": "loss", "x": "training step", "series": losses}]
    for place, key in (("speed", "tokens_per_s"), ("energy", "joules")):
        if middle(metrics.steps, key) is not None:
            only = [series(key, metrics.steps, key, "norm")]
            found.append({"id": place, "x": "training step", "zero": True, "series": only})
    return found


def joules_sources(metrics: Metrics) -> str:
    """What the joules of training steps are of, and by which meter; nothing where none was read.

    Also how many training steps have none though a meter was read, and why.
    """
    asked = [line for line in metrics.steps if "joules" in line]
    found: dict[bool, list[str]] = {True: [], False: []}  # by whether they have joules
    for line in asked:
        found[isinstance(line["joules"], int | float)].append(
            str(line.get("joules_source", UNTOLD))
        )
    told = ", ".join(dict.fromkeys(found[True]))
    if found[False]:
        told += f"; {len(found[False])} of {len(asked)} training steps " if told else ""
        told += f"n/a: {', '.join(dict.fromkeys(found[False]))}"
    return told


def family(op: str) -> str:
    """The family of an op whose colour it has on the page."""
    if op in TRANSFERS:
        return "transfer"
    found = FAMILIES.get(op, "")
    return found if found in SHOWN else "other"


class _Table:
    """Texts by number, so that each stands in the page once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)


def trace_data(trace: Timeline) -> dict[str, object] | None:
    """What the Gantt draws: rows of numbers, times in ns from the start of their training step.

    A slice is [lane, start, duration, name, op, prediction or null, detail, step], an arrow [step,
    step that waits, name of the values].
    """
    if not trace.runs:
        return None
    names, ops, details = _Table(), _Table(), _Table()
    lane = {name: number for number, name in enumerate(trace.lanes)}
    slices: list[list[list[int | None]]] = [[] for _ in trace.runs]
    for each in trace.slices:
        slices[each.run].append(
            [
                *(lane[each.lane], each.start_ns - trace.runs[each.run].start_ns),
                *(each.duration_ns, names.number(each.name), ops.number(each.op)),
                *(each.predicted_ns, details.number(_detail(each)), each.step),
            ]
        )
    arrows: list[list[tuple[int, int, int]]] = [[] for _ in trace.runs]
    for arrow in trace.arrows:
        source, target = trace.slices[arrow.source], trace.slices[arrow.target]
        values = names.number(arrow.values)
        arrows[source.run].append((source.step, target.step, values))
    return {
        "lanes": list(trace.lanes),
        "names": names.texts,
        "ops": ops.texts,
        "families": [family(op) for op in ops.texts],
        "details": details.texts,
        "runs": [
            {
                "number": run.number,
                "wall": run.end_ns - run.start_ns,
                "slices": slices[place],
                "arrows": arrows[place],
            }
            for place, run in enumerate(trace.runs)
        ],
    }


def _detail(each: Slice) -> str:
    part = f"part {each.part + 1} of {each.parts}" if each.parts > 1 else ""
    kernel = f"kernel {each.kernel}" if each.kernel else ""
    shapes = f"{', '.join(each.inputs)} -> {', '.join(each.outputs)}"
    return "\n".join(filter(None, (part, kernel, shapes, each.executor)))


def graph_data(plan: Mapping[str, Any]) -> dict[str, object]:
    """What the graph's drawing needs of `plan.json`: nodes, and edges as pairs of their places."""
    graph, ops = plan["graph"], _Table()
    lanes: dict[int, list[str]] = defaultdict(list)
    for lane in plan["plan"]["lanes"]:
        for step in lane["steps"]:
            if step.get("kind", "node") == "node":
                lanes[step["node"]].append(lane["name"])
    producer: dict[str, int] = {}
    nodes: list[tuple[str, int, str, int, str]] = []
    edges: list[tuple[int, int]] = []
    for place, node in enumerate(graph["nodes"]):
        edges += [
            (producer[name], place) for name in dict.fromkeys(node["inputs"]) if name in producer
        ]
        producer.update((value["name"], place) for value in node["outputs"])
        outputs = ", ".join(
            f"{value['name']}: {value['dtype']}{value['shape']}" for value in node["outputs"]
        )
        text = f"{', '.join(node['inputs'])} -> {outputs}"
        where = ", ".join(dict.fromkeys(lanes[place]))
        nodes.append((node["name"], ops.number(node["op"]), where, node["flops"], text))
    return {
        "nodes": nodes,
        "edges": edges,
        "ops": ops.texts,
        "families": [family(op) for op in ops.texts],
    }


def op_times(trace: Timeline) -> list[OpTime]:
    """Each op on each device, over a training step; the longest first."""
    groups: dict[tuple[str, str], list[Slice]] = defaultdict(list)
    for each in trace.slices:
        groups[each.op, each.device].append(each)
    runs = max(len(trace.runs), 1)
    total_ns = sum(each.duration_ns for each in trace.slices) or 1
    found = []
    for (op, device), slices in groups.items():
        spent_ns = sum(each.duration_ns for each in slices)
        flops = sum(each.flops for each in slices)
        known = [each.predicted_ns for each in slices if each.predicted_ns is not None]
        found.append(
            OpTime(
                op,
                device,
                len(slices) / runs,
                spent_ns / 1e9 / runs,
                median(each.duration_ns for each in slices) / 1e9,
                spent_ns / total_ns,
                flops / spent_ns * 1e9 if flops and spent_ns else None,
                sum(known) / 1e9 / runs if len(known) == len(slices) else None,
            )
        )
    return sorted(found, key=lambda each: -each.seconds)


def model_points(trace: Timeline) -> list[dict[str, object]]:
    """Each kind of work that was predicted: median measured and predicted ns, and what it is."""
    groups: dict[tuple[str, str, str], list[tuple[int, int]]] = defaultdict(list)
    for each in trace.slices:
        if each.predicted_ns and each.duration_ns:
            shapes = f"{', '.join(each.inputs)} -> {', '.join(each.outputs)}"
            part = f", 1 of {each.parts} parts" if each.parts > 1 else ""
            groups[each.op, each.device, shapes + part].append(
                (each.duration_ns, each.predicted_ns)
            )
    return [
        {
            "op": op,
            "device": device,
            "text": text,
            "family": family(op),
            "measured": median(measured for measured, _ in pairs),
            "predicted": median(predicted for _, predicted in pairs),
        }
        for (op, device, text), pairs in groups.items()
    ]


def busy_shares(trace: Timeline) -> dict[str, float]:
    """The share of the wall time in which each lane executed steps."""
    wall_ns = sum(run.end_ns - run.start_ns for run in trace.runs) or 1
    spent: dict[str, int] = dict.fromkeys(trace.lanes, 0)
    for each in trace.slices:
        spent[each.lane] += each.duration_ns
    return {lane: ns / wall_ns for lane, ns in spent.items()}


def middle(lines: Sequence[Line], key: str) -> float | None:
    """The median of a quantity; None where no line has it."""
    values = [float(line[key]) for line in lines if isinstance(line.get(key), int | float)]
    return median(values) if values else None
