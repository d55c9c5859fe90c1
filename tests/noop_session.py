"""One session with XRT's noop driver, in a process of its own; prints what happened as JSON.

    python noop_session.py FOLDER

Started by `test_npu_noop_xrt`, with the environment that the driver needs.
"""

import gc
import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from noop_xrt import NoopXrt

from aieflow.devices.npu import NpuDevice
from aieflow.devices.xclbin import HOST_BANK, SRAM_BANK, emulated_xclbin, write_xclbin
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node, Value
from aieflow.ops.kernel import Call
from aieflow.ops.matmul import MATMUL
from aieflow.ops.npu.design import DESIGNS, GemmSize
from aieflow.ops.npu.expansion import expand_matmul
from aieflow.ops.npu.ops import GEMM
from aieflow.ops.spec import Spec
from aieflow.tools.npu_smoke import smoke_test

DESIGN = DESIGNS["npu1"]


def open_npu(
    xrt: Any,  # noqa: ANN401
    folder: Path,
    buffers: int = 5,
    bank: int = HOST_BANK,
) -> NpuDevice:
    """With so many buffer arguments, B's in a bank."""
    file, content = folder / "design.xclbin", emulated_xclbin(DESIGN, buffers)
    write_xclbin(file, replace(content, bank_of={**content.bank_of, 4: bank}))
    return NpuDevice(xrt, file, DESIGN, memory_nbytes=256 << 20)


def refused(xrt: NoopXrt, what: Callable[[], object]) -> dict[str, object]:
    """The error, and the calls of the library that were made meanwhile."""
    before = len(xrt.library.log), xrt.library.counts["xrtBOSync"]
    try:
        what()
    except (DeviceError, ValueError) as error:
        message = str(error)
    else:
        message = "not refused"
    after = xrt.library.counts["xrtBOSync"] - before[1]
    return {"message": message, "calls": xrt.library.log[before[0] :] + ["xrtBOSync"] * after}


def bind_host_memory(device: NpuDevice) -> None:
    """A product whose operands are not the device's buffers."""
    a, b = Value("a", Spec((64, 64))), Value("b", Spec((64, 64)))
    node = Node("product", MATMUL, (a, b), (Value("c", Spec((64, 64))),), {})
    (product,) = (each for each in expand_matmul(node, DESIGN) if each.op is GEMM)
    inputs, outputs = (
        tuple(np.zeros(value.spec.shape, value.spec.storage) for value in values)
        for values in (product.inputs, product.outputs)
    )
    device.bind(product, Call(inputs, outputs, product.attrs, np.empty(0, np.uint8)))


def refused_ranges(xrt: NoopXrt, device: NpuDevice) -> dict[str, object]:
    """A sync beyond a buffer's end, and a write that is longer than its place."""
    memory = device.allocate(4096).data
    wide = np.lib.stride_tricks.as_strided(memory, (8192,))

    def write() -> None:
        memory[:8] = np.zeros(9)

    return {
        "too_large": refused(xrt, lambda: device.bind_transfer(wide, "in")),
        "write": refused(xrt, write),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    xrt = NoopXrt()
    report: dict[str, object] = {
        "too_few_buffers": refused(xrt, lambda: open_npu(xrt, folder, 2)),
        "wrong_group": refused(xrt, lambda: open_npu(xrt, folder, bank=SRAM_BANK)),
    }
    opened = len(xrt.library.log)
    with closing(open_npu(xrt, folder)) as device:
        report["opening"] = xrt.library.log[opened:]
        found = smoke_test(device, DESIGN, GemmSize(300, 200, 500))
        report["identity"], report["is_emulated"] = found.identity, found.is_emulated
        report["host_memory"] = refused(xrt, partial(bind_host_memory, device))
        report |= refused_ranges(xrt, device)
        closed = len(xrt.library.log)
    del device
    gc.collect()
    report["closing"] = xrt.library.log[closed:]
    report["counts"] = dict(xrt.library.counts)
    report["groups"] = xrt.library.groups
    report["allocated"] = sorted(xrt.library.allocated)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
