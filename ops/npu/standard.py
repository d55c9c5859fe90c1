"""The designs that can be built for a generation, by name, and what is common to all of them.

`gemm` is what training needs. The elementwise functions are designs of their own. A tiny MLP is two
products with ReLU between, so `mlp` stands for two of the others.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from aieflow.ops.npu.design import DESIGNS, GemmDesign, gemm_program
from aieflow.ops.npu.generation import GENERATIONS
from aieflow.ops.npu.program import Program
from aieflow.ops.npu.streaming import INPUTS, StreamDesign, stream_program

AnyDesign: TypeAlias = GemmDesign | StreamDesign
GEMM, RELU, MLP = "gemm", "relu", "mlp"
PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType({MLP: (GEMM, RELU)})
STANDARD: Mapping[str, Mapping[str, AnyDesign]] = MappingProxyType(
    {
        name: MappingProxyType(
            {
                GEMM: DESIGNS[name],
                **{
                    function: StreamDesign(generation, function, generation.columns)
                    for function in INPUTS
                },
            }
        )
        for name, generation in GENERATIONS.items()
    }
)
NAMES = (GEMM, *INPUTS)


def name_of(design: AnyDesign) -> str:
    """`gemm`, or the function."""
    return GEMM if isinstance(design, GemmDesign) else design.function


def buffers_of(design: AnyDesign) -> int:
    """How many buffers a command is given: inputs and output."""
    return 3 if isinstance(design, GemmDesign) else design.inputs + 1


def smallest_program(design: AnyDesign) -> Program:
    """The commands for the smallest work that the design can do."""
    if isinstance(design, GemmDesign):
        return gemm_program(design, design.granule)
    return stream_program(design, design.granule)
