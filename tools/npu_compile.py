"""Compiles one design with mlir-aie: run as a process of its own by `aieflow npu build`.

    python -m aieflow.tools.npu_compile npu1 '{"m": 64, ...}' FOLDER

mlir-aie keeps its current device and its kernels for the whole process, so two designs at once take
two processes. What fails is printed, and the exit code is 1.
"""

import json
import sys
from pathlib import Path

from aieflow.devices.xclbin import design_of
from aieflow.ops.errors import AieflowError
from aieflow.ops.npu.design import GemmDesign
from aieflow.ops.npu.generation import NPU1, NPU2
from aieflow.ops.npu.iron_gemm import gemm_module
from aieflow.ops.npu.iron_release import Handle, Iron, load_iron
from aieflow.ops.npu.iron_streaming import stream_module
from aieflow.ops.npu.standard import AnyDesign

XCLBIN, INSTRUCTIONS = "design.xclbin", "instructions.bin"
ARCHITECTURES = {NPU1.name: "aie2", NPU2.name: "aie2p"}  # as Peano calls them


def smallest_module(design: AnyDesign, iron: Iron) -> Handle:
    """The MLIR module of a design, with the sequence for its smallest work."""
    if isinstance(design, GemmDesign):
        return gemm_module(design, design.granule, iron)
    return stream_module(design, design.granule, iron)


def compile_design(design: AnyDesign, folder: Path) -> None:
    """Leave the xclbin, and the instruction stream of the smallest work, in a folder."""
    iron = load_iron()
    module = smallest_module(design, iron)
    device = iron.device.from_name(design.generation.name, n_cols=design.columns)
    # Left to itself, mlir-aie compiles only kernels that are files, and GELU on aie2 is none. It
    # has no public list of what a module calls.
    for kernel in list(iron.iron.ExternalFunction._instances):
        architecture = ARCHITECTURES[design.generation.name]
        iron.compile.compile_external_kernel(kernel, str(folder), architecture)
    iron.compile.compile_mlir_module(
        module,
        insts_path=str(folder / INSTRUCTIONS),
        xclbin_path=str(folder / XCLBIN),
        work_dir=str(folder),
        device=device,
    )


def main() -> None:
    """Compile what the command line says."""
    generation, fields, folder = sys.argv[1:]
    try:
        compile_design(design_of(generation, json.loads(fields)), Path(folder))
    except (AieflowError, RuntimeError, OSError) as error:  # aiecc's words are in RuntimeErrors
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
