"""How fast a device runs what decides a training step: one matrix product, one sum of two arrays.

The nodes run as they do in training, through a plan and an executor, and their spans are what is
timed: operands lie on the device by then, and moving results is not counted. A rate of wrong
results is none, so they are compared with NumPy's.
"""

from collections.abc import Sequence

import numpy as np

from aieflow.devices.base import Device
from aieflow.devices.cpu import COPY_NBYTES, GEMM_SIZE, Rates
from aieflow.ops.builder import Builder
from aieflow.ops.errors import DeviceError
from aieflow.ops.matmul import MATMUL
from aieflow.ops.op import Array, Op
from aieflow.ops.pointwise import ADD
from aieflow.ops.spec import Spec
from aieflow.runtime.binding import allocate_states
from aieflow.runtime.executor import Executor
from aieflow.runtime.placement import place

ROUNDS = 5
# Sums of 1536 products of normal numbers: about 40, in float32 right to 1e-4 in any order.
TOLERANCE = 1e-2


def measure_device_rates(
    device: Device,
    rounds: int = ROUNDS,
    size: int = GEMM_SIZE,
    nbytes: int = COPY_NBYTES,
) -> Rates:
    """Best rates of `rounds`: a float32 product of `size` x `size`, a sum of arrays of `nbytes`.

    The first run, which compiles and moves operands, is not counted. Takes three times `nbytes` of
    the device's memory. Raises DeviceError where the device fails or computes something else,
    PlanError where it has no kernel.
    """
    rng = np.random.default_rng(0)
    sample = slice(None, None, max(1, size // 8))  # of rows of a matrix, of elements of an array
    a, b = (rng.standard_normal((size, size), np.float32) for _ in range(2))
    gemm_s = _best_seconds(device, MATMUL, (a, b), sample, a[sample] @ b, rounds)
    x, y = (rng.random(nbytes // 4, np.float32) for _ in range(2))
    add_s = _best_seconds(device, ADD, (x, y), sample, x[sample] + y[sample], rounds)
    return Rates(len(device.lanes), 2 * size**3 / gemm_s, 3 * x.nbytes / add_s)


def _best_seconds(
    device: Device,
    op: Op,
    operands: Sequence[Array],
    sample: slice,
    expected: Array,
    rounds: int,
) -> float:
    """Seconds of the op's node in the best of `rounds` runs; a sample must be as `expected`."""
    builder = Builder(f"rate of {op.name}")
    # States, since feeds would be moved to the device in every run.
    inputs = [
        builder.state(f"operand.{position}", Spec(operand.shape), "parameter")
        for position, operand in enumerate(operands)
    ]
    (out,) = builder.apply(op, inputs, ["out"])
    graph = builder.finish([out])
    plan = place(graph, device)
    states = allocate_states(graph, device)
    for value, operand in zip(inputs, operands, strict=True):
        states[value.name][...] = operand
    with Executor(plan, {device.name: device}, states) as executor:
        executor.run({})
        found = executor.array(out)[sample]
        if not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
            error = float(np.abs(found - expected).max())
            raise DeviceError(
                f"{device.identity} computes {op.name} wrong, by up to {error:.3g}: update its "
                "driver, and do without the device until then",
                device.name,
            )
        seconds = []
        for _ in range(rounds):
            trace = executor.run({}, traced=True)
            assert trace is not None
            # divided over several lanes: from the first part's start to the last one's end
            spans = [span for span in trace.spans if plan.steps[span.step].kind == "node"]
            begin = min(span.start_s for span in spans)
            seconds.append(max(span.end_s for span in spans) - begin)
    return min(seconds)
