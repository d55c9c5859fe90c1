"""Options that say where a program runs: the same words in every command."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import typer

from aieflow.devices.registry import DEVICES
from aieflow.runtime.policies.fixed import POLICIES

Settings: TypeAlias = dict[str, int | float | str | bool | None]
Devices: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(DEVICES)}, several with commas, or auto: all that work. Default: cpu; "
        "with --machine cpu,npu."
    ),
]
MachineName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--machine", metavar="NAME|FILE", help="A described machine: what it has is emulated."
    ),
]
Policy: TypeAlias = Annotated[
    str | None,
    typer.Option(help=f"Where nodes run: {', '.join(POLICIES)}; default: as the devices suggest."),
]
Place: TypeAlias = Annotated[
    str | None,
    typer.Option(metavar="OP=DEVICE,...", help="Ops placed by hand: matmul=npu,layernorm=igpu."),
]
Shards: TypeAlias = Annotated[
    int | None, typer.Option(help="Parts of each batch that are lowered separately.")
]
Slots: TypeAlias = Annotated[
    int | None, typer.Option(help="NPU buffers for each streamed operand; default: 3.")
]
OnDeviceFailure: TypeAlias = Annotated[
    Literal["stop", "exclude"] | None,
    typer.Option(help="Stop with a checkpoint (the default), or go on without the device."),
]
CheckDevices: TypeAlias = Annotated[
    bool,
    typer.Option("--check-devices", help="Hold other devices' products against the CPU's. Slow."),
]
AllowFp16: TypeAlias = Annotated[
    bool, typer.Option("--allow-fp16", help="Let the iGPU's products store operands as fp16.")
]
Replan: TypeAlias = Annotated[
    Literal["auto", "off"] | None,
    typer.Option(
        help="auto (the default): with several devices and a policy that weighs costs, plan anew "
        "where training steps take other times than before."
    ),
]
Xclbin: TypeAlias = Annotated[
    str | None, typer.Option(metavar="FILE", help="The NPU's design, where it is not emulated.")
]

# The settings of a run that these options set, and `--lanes`.
SETTINGS = (
    *("lanes", "devices", "machine", "policy", "place", "slots", "on_device_failure"),
    *("check_devices", "xclbin", "allow_fp16", "objective", "power_cap_w"),
)


def settings_among(options: Mapping[str, int | float | str | bool | None]) -> Settings:
    """Those of a command's options that say where it runs; a flag that is off was not given."""
    return {name: None if options[name] is False else options[name] for name in SETTINGS}
