"""Compiles one GEMM design with mlir-aie: run as a process of its own by `aieflow npu build`.

    python -m aieflow.tools.npu_compile npu1 '{"m": 64, ...}' FOLDER

mlir-aie keeps its current device and its kernels for the whole process, so two designs at once take
two processes. What fails is printed, and the exit code is 1.
"""

import json
import sys
from importlib import import_module
from pathlib import Path

from aieflow.ops.errors import AieflowError
from aieflow.ops.npu.design import GemmDesign
from aieflow.ops.npu.generation import GENERATIONS
from aieflow.ops.npu.iron_gemm import gemm_module
from aieflow.ops.npu.iron_release import load_iron

XCLBIN, INSTRUCTIONS = "design.xclbin", "instructions.bin"


def compile_gemm(design: GemmDesign, folder: Path) -> None:
    """Leave the xclbin, and the instruction stream of the smallest product, in a folder."""
    iron = load_iron()
    module = gemm_module(design, design.granule, iron)
    device = iron.device.from_name(design.generation.name, n_cols=design.columns)
    import_module("aie.utils.compile").compile_mlir_module(
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
        compile_gemm(GemmDesign(GENERATIONS[generation], **json.loads(fields)), Path(folder))
    except (AieflowError, RuntimeError, OSError) as error:  # aiecc's words are in RuntimeErrors
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
