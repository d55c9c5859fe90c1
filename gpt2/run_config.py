"""Every setting of a training run: what `config.json` of a run folder holds.

The sizes of the model are nested (`ModelConfig`); all else that decides the numbers of a run is
here, so that `--resume DIR` alone continues with the same bits. A setting is checked when it is
made, whether it came from the command line or from a file.

The learning rate is a pure function of the settings and the number of the training step: a linear
warmup, then constant, or half a cosine down to `min_lr_fraction` of the peak.
"""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from aieflow.gpt2.config import ModelConfig
from aieflow.ops.errors import InputError

FORMAT_KEY = "aieflow_run"  # marks a run's config.json, and says which form it has
FORMAT = 3

LR_SCHEDULES = ("constant", "cosine")
SAMPLINGS = ("random", "sequential")
ON_DEVICE_FAILURE = ("stop", "exclude")
REPLAN = ("auto", "off")

Settings = TypeVar("Settings", ModelConfig, "RunConfig")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """The settings of one run; raises InputError that names the option, its value and its range.

    A warmup longer than the run is allowed: the peak is then never reached.
    """

    model: ModelConfig
    seq_len: int  # T trained on, at most the model's
    batch_size: int = 8  # B: sequences in one forward and backward pass
    steps: int = 600  # training steps in all
    grad_accumulation: int = 1  # passes whose gradients are averaged into one training step
    lr: float = 1e-3  # the peak
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    min_lr_fraction: float = 0.1  # where the cosine ends, as a fraction of the peak
    warmup: int = 50  # training steps; 0 = none
    weight_decay: float = 0.1  # decoupled, on matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0  # largest global norm; 0 = no clipping
    dropout: float = 0.0
    seed: int = 1
    sampling: Literal["random", "sequential"] = "random"
    eval_every: int = 100  # training steps; 0 = only at the end
    eval_batches: int = 8
    checkpoint_every: int = 200  # training steps; 0 = only at the end
    data: str | None = None  # absolute path; None = the built-in text
    init: str | None = None  # what --init said; None = from scratch
    check_finite: bool = False
    lanes: int | None = None  # CPU compute lanes; None = one for each core
    shards: int = 1  # parts of a batch that are lowered separately
    devices: str | None = None  # names, or auto; None = cpu, or those of the machine
    machine: str | None = None  # a described machine; None = this computer
    policy: str | None = None  # where nodes run; None = as the devices suggest
    place: str | None = None  # ops placed by hand, such as matmul=npu,layernorm=igpu
    slots: int = 3  # buffers for each streamed operand of a device's own memory
    on_device_failure: Literal["stop", "exclude"] = "stop"
    check_devices: bool = False  # hold products of other devices against the CPU's
    xclbin: str | None = None  # the NPU's design
    allow_fp16: bool = False  # operands of the iGPU's products may be stored as fp16
    objective: str | None = None  # what a policy that weighs costs aims at; None = time
    power_cap_w: float | None = None  # the most, as a mean; goes with the objective power-cap
    replan: Literal["auto", "off"] = "auto"  # another plan where training steps drift

    def __post_init__(self) -> None:
        counts = ("seq_len", "batch_size", "steps", "grad_accumulation", "eval_batches")
        for name in (*counts, "shards", "slots"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        whole = self.batch_size % self.shards == 0
        self._require("shards", whole, f"--batch-size {self.batch_size} does not divide by it")
        for name in ("warmup", "eval_every", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 0, "must be 0 or more")
        longest = self.model.seq_len
        self._require("seq_len", self.seq_len <= longest, f"the model ends at {longest}")
        self._require("lr", 0 < self.lr < math.inf, "must be a finite number above 0")
        for name in ("weight_decay", "grad_clip"):
            finite = 0 <= getattr(self, name) < math.inf
            self._require(name, finite, "must be a finite number, 0 (off) or more")
        for name in ("beta1", "beta2", "dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "must lie in [0, 1)")
        self._require("min_lr_fraction", 0 <= self.min_lr_fraction <= 1, "must lie in [0, 1]")
        self._require("seed", 0 <= self.seed < 2**63, "must lie in [0, 2^63)")
        choosable = {
            "lr_schedule": LR_SCHEDULES,
            "sampling": SAMPLINGS,
            "on_device_failure": ON_DEVICE_FAILURE,
            "replan": REPLAN,
        }
        for name, choices in choosable.items():
            known = getattr(self, name) in choices
            self._require(name, known, f"must be {' or '.join(choices)}")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            option = name.replace("_", "-")
            raise InputError(f"--{option} = {getattr(self, name)}: {rule}")


def learning_rate(config: RunConfig, training_step: int) -> float:
    """Learning rate of a training step, counted from 0.

    The last training step of the warmup has the peak; the cosine's end lies one training step past
    the last, so that no training step is wasted on it.
    """
    if training_step < config.warmup:
        return config.lr * (training_step + 1) / config.warmup
    if config.lr_schedule == "constant":
        return config.lr
    decay_steps = max(1, config.steps - config.warmup)
    progress = min(1.0, (training_step - config.warmup) / decay_steps)
    floor = config.lr * config.min_lr_fraction
    return floor + (config.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def to_json(config: RunConfig) -> str:
    """The text of a run's `config.json`; `from_json` gives the same settings back, bit by bit."""
    return json.dumps({FORMAT_KEY: FORMAT, **asdict(config)}, indent=2) + "\n"


def from_json(text: str, file: Path) -> RunConfig:
    """The settings in `text`; raises InputError that names `file` and the key it stumbled over."""
    try:
        content: object = json.loads(text)
    except ValueError as error:
        raise InputError(
            f"{file}: not JSON ({error}): restore the file, or start a new run"
        ) from None
    if not isinstance(content, dict) or FORMAT_KEY not in content:
        raise InputError(f"{file}: not the config.json of a run (it has no key {FORMAT_KEY!r})")
    values: dict[str, object] = {str(key): value for key, value in content.items()}
    form = values.pop(FORMAT_KEY)
    if form != FORMAT:
        raise InputError(
            f"{file}: {FORMAT_KEY} = {form!r}, but this version reads {FORMAT}: "
            "use the version of aieflow that made the run"
        )
    model = values.get("model")
    if isinstance(model, dict):
        values["model"] = _read(ModelConfig, {str(k): v for k, v in model.items()}, "model.", file)
    return _read(RunConfig, values, "", file)


def _read(cls: type[Settings], values: dict[str, object], prefix: str, file: Path) -> Settings:
    known = {field.name: field.type for field in fields(cls)}
    missing = [prefix + name for name in known if name not in values]
    unknown = [prefix + name for name in values if name not in known]
    if missing or unknown:
        faults = [f"{key} is missing" for key in missing] + [f"{key} is unknown" for key in unknown]
        raise InputError(
            f"{file}: {', '.join(faults)}: use the version of aieflow that made the run"
        )
    arguments: dict[str, Any] = {
        name: _typed(kind, values[name], f"{file}: {prefix}{name}") for name, kind in known.items()
    }
    try:
        return cls(**arguments)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _typed(kind: object, value: object, place: str) -> object:
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, float, bool, ModelConfig):
        fits = type(value) is kind
        name = "object" if kind is ModelConfig else getattr(kind, "__name__", str(kind))
    elif kind == int | None:
        fits, name = value is None or type(value) is int, "int or null"
    elif kind == float | None:
        fits, name = value is None or type(value) in (int, float), "number or null"
        value = float(value) if isinstance(value, int) and fits else value
    elif kind == str | None:
        fits, name = value is None or isinstance(value, str), "text or null"
    else:
        fits, name = isinstance(value, str), "text"
    if not fits:
        raise InputError(f"{place} = {value!r}: must be {name}")
    return value


def differences(run: RunConfig, asked: RunConfig) -> list[str]:
    """One line for each setting that differs, such as `lr: 0.001 in the run, 0.01 asked for`."""
    in_run, wanted = _flat(run), _flat(asked)
    return [
        f"{name}: {in_run[name]} in the run, {wanted[name]} asked for"
        for name in in_run
        if in_run[name] != wanted[name]
    ]


def _flat(config: RunConfig) -> dict[str, object]:
    flat: dict[str, object] = {f"model.{k}": v for k, v in asdict(config.model).items()}
    flat.update((k, v) for k, v in asdict(config).items() if k != "model")
    return flat
