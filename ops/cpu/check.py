"""The check of another device's matrix product; it allocates, being asked for in doubt only."""

from collections.abc import Callable

from aieflow.ops.check import MATMUL_CHECK, matmul_check_reference
from aieflow.ops.errors import DeviceError
from aieflow.ops.kernel import Call, HostKernel


def _bind(call: Call) -> Callable[[], None]:
    def run() -> None:
        (worst,) = matmul_check_reference(call.inputs, call.attrs)
        call.outputs[0][...] = worst
        if not worst[0] <= 1:
            raise DeviceError(
                f"wrong result: a matrix product deviates {worst[0]:.3g} times as far from the "
                "host's as bfloat16 operands may: check the device, or run without it"
            )

    return run


MATMUL_CHECK_KERNEL = HostKernel("freivalds", MATMUL_CHECK, _bind)
