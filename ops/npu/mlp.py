"""A tiny MLP on the NPU, as data: relu(x W1) W2 by the designs of a product and of ReLU.

Three commands, of two xclbins: product, ReLU, product. Between them the host converts, as between
all products: the array gives fp32 and takes bf16, and C's layout is not A's. So the description is
which design runs which program in which order; each is checked, emulated and generated as it is.
Widths are padded to the product's granule; padding is zero, and ReLU of zero is zero.
"""

from dataclasses import dataclass

from aieflow.ops.errors import PlanError
from aieflow.ops.npu.checker import check
from aieflow.ops.npu.design import GemmDesign, GemmSize, gemm_program
from aieflow.ops.npu.program import Program
from aieflow.ops.npu.standard import RELU, AnyDesign
from aieflow.ops.npu.streaming import StreamDesign, check_stream, stream_program


@dataclass(frozen=True, slots=True)
class MlpDesign:
    """What the two xclbins hold."""

    product: GemmDesign
    between: StreamDesign


@dataclass(frozen=True, slots=True)
class MlpSize:
    """x (rows, inputs), W1 (inputs, hidden), W2 (hidden, outputs) -> (rows, outputs)."""

    rows: int
    inputs: int
    hidden: int
    outputs: int


@dataclass(frozen=True, slots=True)
class MlpStep:
    """One command: a program of a design."""

    name: str
    design: AnyDesign
    program: Program


def product_sizes(design: MlpDesign, size: MlpSize) -> tuple[GemmSize, GemmSize]:
    """The two products, padded."""
    first = design.product.padded(GemmSize(size.rows, size.inputs, size.hidden))
    second = design.product.padded(GemmSize(size.rows, size.hidden, size.outputs))
    return first, second


def hidden_elements(design: MlpDesign, size: MlpSize) -> int:
    """Elements that ReLU takes: the first product's result, padded once more."""
    first, _ = product_sizes(design, size)
    return design.between.padded(first.M * first.N)


def check_mlp(design: MlpDesign, size: MlpSize) -> None:
    """Raise PlanError, with value and limit, unless the NPU can compute all three steps."""
    if design.between.function != RELU:
        raise PlanError(f"an MLP has {RELU} between its products, not {design.between.function}")
    if design.between.generation != design.product.generation:
        raise PlanError(
            f"the MLP's product is for {design.product.generation.name}, its ReLU for "
            f"{design.between.generation.name}: both must be for one array"
        )
    for each in product_sizes(design, size):
        check(design.product, each)
    check_stream(design.between, hidden_elements(design, size))


def mlp_steps(design: MlpDesign, size: MlpSize) -> tuple[MlpStep, ...]:
    """The three commands in order; nothing is checked here."""
    first, second = product_sizes(design, size)
    relu = stream_program(design.between, hidden_elements(design, size))
    return (
        MlpStep("hidden", design.product, gemm_program(design.product, first)),
        MlpStep(RELU, design.between, relu),
        MlpStep("out", design.product, gemm_program(design.product, second)),
    )
