"""The public interface of the pinned release of mlir-aie, as far as the generators use it.

Taken from the sources and examples of that generation (see `ops.npu.iron_release`): names, order,
kinds and defaults of parameters. What a parameter may be beyond its name is checked where the call
is recorded. Left out is what is never given here, so that giving it is noticed.
"""

import inspect
from typing import Any

TEXTS = {
    "ObjectFifo": "obj_type, depth=2, name=None, dims_to_stream=None",
    "ObjectFifo.prod": "depth=None, *, tile=None",
    "ObjectFifo.cons": "depth=None, *, tile=None",
    "forward": "*, obj_type=None, name=None, dims_to_stream=None, tile=None",
    "join": "offsets, *, obj_types=None, names=None, depths=None, tile=None",
    "fill": "source, *, tap=None, wait=False, group=None",
    "drain": "dest, *, tap=None, wait=False, group=None",
    "Buffer": "type=None, initial_value=None, name=None, *, tile=None, use_write_rtp=False",
    "WorkerRuntimeBarrier": "initial_value=0",
    "set": "value",
    "Worker": "core_fn, fn_args=None, tile=None, while_true=True, stack_size=None, *, "
    "dynamic_objfifo_lowering=None",
    "Worker.grid": "rows, cols, factory",
    "Runtime": "seq_fn, fn_args=None, *, strict_task_groups=True",
    "TaskGroup": "",
    "finish": "",
    "Program": "device, rt, workers=None",
    "resolve_program": "device_name='main'",
    "from_name": "name, *, n_cols=None",
    "set_current_device": "device",
    "Tile": "col, row",
    "mm": "dim_m=64, dim_k=64, dim_n=64, input_dtype=None, output_dtype=None, vectorized=True, "
    "b_col_maj=False, c_col_maj=False, use_chess=False, emulate_bf16_mmul_with_bfp16=False",
    "gelu": "tile_size=1024",
    "relu": "tile_size=1024",
    "ExternalFunction": "name, object_file_name=None, source_file=None, source_string=None, "
    "arg_types=None, include_dirs=None, compile_flags=None",
    "TensorAccessPattern": "tensor_dims, offset, sizes, strides",
    "compile_external_kernel": "func, kernel_dir, target_arch",
    "compile_mlir_module": "mlir_module, insts_path=None, pdi_path=None, xclbin_path=None, "
    "elf_path=None, full_elf_path=None, verbose=False, work_dir=None, options=None, "
    "use_chess=False, device=None, fold_ddr_addr_offset=True",
}
# The texts are the constants above: a signature is what Python reads in them.
SIGNATURES = {name: inspect.signature(eval(f"lambda {text}: None")) for name, text in TEXTS.items()}


class RecordError(Exception):
    """A call that the release would refuse, or that would hang or compute something else."""


def bound(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, with defaults; raises RecordError where they do not fit."""
    try:
        arguments = SIGNATURES[name].bind(*args, **kwargs)
    except TypeError as error:
        raise RecordError(f"{name}: {error}; it is {name}({TEXTS[name]})") from None
    arguments.apply_defaults()
    return arguments.arguments
