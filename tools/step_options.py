"""Options that commands about one training step share, defined once.

A command that is given them by `with_options` has its own options as parameters, and gets the
shared ones together, by name, as its first argument.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TypeAlias, get_args

from aieflow.tools.machine_options import (
    AllowFp16,
    CheckDevices,
    Devices,
    MachineName,
    OnDeviceFailure,
    Place,
    Policy,
    Settings,
    Shards,
    Slots,
    Xclbin,
)
from aieflow.tools.model_options import (
    BatchSize,
    Channels,
    Dropout,
    GradAccumulation,
    GradClip,
    Heads,
    Lanes,
    Layers,
    Preset,
    SeqLen,
    VocabSize,
)
from aieflow.tools.run_options import Asked, asked_for
from aieflow.tools.search import ObjectiveName, PowerCap

Command: TypeAlias = Callable[..., None]
Options: TypeAlias = Mapping[str, object]  # the annotation of each, by its parameter's name

# What is computed, and where.
STEP_OPTIONS: Options = {
    "preset": Preset,
    "layers": Layers,
    "heads": Heads,
    "channels": Channels,
    "seq_len": SeqLen,
    "vocab_size": VocabSize,
    "batch_size": BatchSize,
    "grad_accumulation": GradAccumulation,
    "dropout": Dropout,
    "grad_clip": GradClip,
    "shards": Shards,
    "lanes": Lanes,
    "devices": Devices,
    "policy": Policy,
    "place": Place,
    "slots": Slots,
}
# Of a step that is run, or planned as if it were.
RUN_OPTIONS: Options = {
    "machine": MachineName,
    "on_device_failure": OnDeviceFailure,
    "check_devices": CheckDevices,
    "xclbin": Xclbin,
    "allow_fp16": AllowFp16,
    "objective": ObjectiveName,
    "power_cap_w": PowerCap,
}


def with_options(shared: Options) -> Callable[[Command], Command]:
    """Give a command the shared options beside its own parameters, after its first, the shared."""

    def add(command: Command) -> Command:
        _, *own = inspect.signature(command, eval_str=True).parameters.values()
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if bool in get_args(kind) else None,
                annotation=kind,
            )
            for name, kind in shared.items()
        ]

        @wraps(command)
        def run(**given: int | float | str | bool | None) -> None:
            settings = {name: given.pop(name) for name in shared}
            command(settings, **given)

        every = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
        signature = inspect.Signature([*every, *options])
        run.__signature__ = signature  # type: ignore[attr-defined]  # where inspect looks for it
        return run

    return add


def asked_among(settings: Settings) -> Asked:
    """What was asked for by the shared options."""
    preset = settings.get("preset")
    assert preset is None or isinstance(preset, str)
    rest = {name: value for name, value in settings.items() if name != "preset"}
    return asked_for(preset, None, rest)
