"""A stand-in for the calls of mlir-aie that the generators make: it checks and records them.

A call that does not fit the interface of the pinned release (`iron_signatures`), or a name that it
does not have, is an error. What was recorded is a `Recorded`: fifos, links, workers, and the events
of the sequence; `iron_dataflow` executes it. Nothing here compiles anything.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
from iron_signatures import RecordError, bound

from aieflow.ops.npu.iron_release import Iron
from aieflow.ops.npu.packing import from_bfloat16, to_bfloat16
from aieflow.ops.pointwise import gelu_backward_reference, gelu_reference

SHIM_DESCRIPTORS = 16
COLUMNS = {"npu1": 4, "npu2": 8}
MAC_DIMS = {"npu1": (4, 8, 4), "npu2": (4, 8, 8)}  # of bf16 in, f32 out, without emulation
DEFAULT_STACK_NBYTES, MATMUL_STACK_NBYTES = 1024, 0xD00


class Bfloat16:
    """The element type; numpy has none."""


def on_bits(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of fp32 arrays as one of bf16 bits."""
    return lambda *bits: to_bfloat16(function(*(from_bfloat16(each) for each in bits)))


FUNCTIONS = {
    "gelu_bf16": on_bits(lambda x: gelu_reference((x,), {})[0]),
    "relu_bf16": on_bits(lambda x: np.maximum(x, 0)),
    "gelu_backward_bf16": on_bits(lambda x, dy: gelu_backward_reference((x, dy), {})[0]),
}


@dataclass(frozen=True)
class ArrayType:
    """What IRON reads of `np.ndarray[shape, np.dtype[...]]`."""

    shape: tuple[int, ...]
    element: type

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))


def array_type(kind: Any) -> ArrayType:  # noqa: ANN401
    shape, dtype = get_args(kind)
    (element,) = get_args(dtype)
    return ArrayType(tuple(shape), element)


@dataclass(frozen=True)
class Tile:
    col: int
    row: int


@dataclass(eq=False)
class Fifo:
    name: str
    kind: ArrayType
    depth: int
    producer: "End | None" = None
    consumers: list["End"] = field(default_factory=list)

    def prod(self, *args: Any, **kwargs: Any) -> "End":  # noqa: ANN401
        tile = bound("ObjectFifo.prod", args, kwargs)["tile"]
        if self.producer is None:
            self.producer = End(self, True, tile)
        return self.producer

    def cons(self, *args: Any, **kwargs: Any) -> "End":  # noqa: ANN401
        self.consumers.append(End(self, False, bound("ObjectFifo.cons", args, kwargs)["tile"]))
        return self.consumers[-1]


@dataclass(eq=False)
class End:
    """One side of a fifo, and who works at it."""

    fifo: Fifo
    is_producer: bool
    tile: Tile | None
    owner: "Link | Worker | Recorder | None" = None

    def forward(self, *args: Any, **kwargs: Any) -> Fifo:  # noqa: ANN401
        given = bound("forward", args, kwargs)
        if self.is_producer:
            raise RecordError(f"{self.fifo.name}: forward is for consumers")
        kind = self.fifo.kind if given["obj_type"] is None else array_type(given["obj_type"])
        if kind.size != self.fifo.kind.size:
            raise RecordError(f"{given['name']}: {kind.shape} of {self.fifo.kind.shape}")
        out = Fifo(given["name"], kind, self.fifo.depth)
        self.owner = Link("forward", given["tile"], [self.fifo], [out], [0])
        out.prod().owner = self.owner
        return out

    def join(self, *args: Any, **kwargs: Any) -> list[Fifo]:  # noqa: ANN401
        given = bound("join", args, kwargs)
        kinds = [array_type(kind) for kind in given["obj_types"]]
        if not self.is_producer:
            raise RecordError(f"{self.fifo.name}: join is for producers")
        offsets = list(given["offsets"])
        if sum(kind.size for kind in kinds) != self.fifo.kind.size or len(offsets) != len(kinds):
            raise RecordError(f"{self.fifo.name}: parts do not fill {self.fifo.kind.shape}")
        parts = [
            Fifo(name, kind, depth)
            for name, kind, depth in zip(given["names"], kinds, given["depths"], strict=True)
        ]
        self.owner = Link("join", given["tile"], parts, [self.fifo], offsets)
        for part in parts:
            part.cons().owner = self.owner
        return parts

    def fill(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        given = bound("fill", args, kwargs)
        self._move("in", given["source"], given)

    def drain(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        given = bound("drain", args, kwargs)
        self._move("out", given["dest"], given)

    def _move(self, direction: str, buffer: Any, given: dict[str, Any]) -> None:  # noqa: ANN401
        recorder = self.owner
        if not isinstance(recorder, Recorder) or recorder.events is None:
            raise RecordError(f"{self.fifo.name}: moved outside of the sequence, or not its own")
        if (direction == "in") != self.is_producer or not isinstance(buffer, HostBuffer):
            raise RecordError(f"{self.fifo.name}: {direction} at the wrong side or without buffer")
        tap, group = given["tap"], given["group"]
        if not isinstance(tap, Pattern) or tap.tensor_dims != buffer.kind.shape:
            raise RecordError(f"{self.fifo.name}: pattern is not of the buffer {buffer.kind.shape}")
        if buffer.kind.element is not self.fifo.kind.element:
            raise RecordError(f"{self.fifo.name}: DMAs do not convert types")
        recorder.events.append(Transfer(self, buffer, tap, bool(given["wait"]), group))

    def acquire(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        raise RecordError(f"{self.fifo.name}: acquired outside of a core")


@dataclass(eq=False)
class Link:
    kind: str
    tile: Tile
    sources: list[Fifo]
    targets: list[Fifo]
    offsets: list[int]


@dataclass(frozen=True)
class HostBuffer:
    argument: int
    kind: ArrayType


@dataclass(frozen=True)
class Pattern:
    """Elements visited: offset plus sizes and strides, outer to inner."""

    tensor_dims: tuple[int, ...]
    offset: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]


def pattern(*args: Any, **kwargs: Any) -> Pattern:  # noqa: ANN401
    given = bound("TensorAccessPattern", args, kwargs)
    sizes, strides = tuple(given["sizes"]), tuple(given["strides"])
    if len(sizes) != len(strides) or min(sizes) < 1 or min(strides) < 0:
        raise RecordError(f"TensorAccessPattern: sizes {sizes}, strides {strides}")
    if len(sizes) > 4:
        raise RecordError(f"TensorAccessPattern: a shim has 4 dimensions, given {len(sizes)}")
    dims = tuple(given["tensor_dims"])
    last = given["offset"] + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
    if not 0 <= given["offset"] <= last < int(np.prod(dims)):
        raise RecordError(f"TensorAccessPattern: touches element {last} of {dims}")
    return Pattern(dims, int(given["offset"]), sizes, strides)


@dataclass(eq=False)
class Kernel:
    """A compiled function of a core."""

    name: str
    arguments: tuple[tuple[int, ...], ...]  # shapes
    zero: "Kernel | None" = None
    mac_dims: tuple[int, int, int] = (0, 0, 0)
    function: Callable[..., Any] | None = None  # of bf16 bits; None: the matrix product

    def __call__(self, *args: Any) -> None:  # noqa: ANN401
        raise RecordError(f"{self.name}: called outside of a core")


@dataclass(eq=False)
class Buffer:
    """Runtime parameters: written by the sequence."""

    recorder: "Recorder"
    name: str
    values: np.ndarray[Any, Any]
    address: int | None = None

    def __setitem__(self, index: int, value: int) -> None:
        if self.recorder.events is None:
            raise RecordError(f"{self.name}: written outside of the sequence")
        self.recorder.events.append(Parameter(self, index, int(value)))


@dataclass(eq=False)
class Barrier:
    recorder: "Recorder"
    value: int
    lock: int | None = None

    def set(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        if self.recorder.events is None:
            raise RecordError("a barrier is set outside of the sequence")
        self.recorder.events.append(Release(self, bound("set", args, kwargs)["value"]))


class Worker:
    def __init__(self, recorder: "Recorder", *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        given = bound("Worker", args, kwargs)
        self.core_fn: Callable[..., None] = given["core_fn"]
        self.fn_args: list[Any] = list(given["fn_args"] or [])
        self.tile: Tile = given["tile"]
        self.stack_size = given["stack_size"] or DEFAULT_STACK_NBYTES
        if any(isinstance(a, Fifo) for a in self.fn_args):
            raise RecordError("a worker is given a fifo: give it prod() or cons()")
        if self.stack_size < MATMUL_STACK_NBYTES:
            raise RecordError(f"stack of {self.stack_size} bytes: a matmul overflows it and hangs")
        for argument in self.fn_args:
            if isinstance(argument, End):
                argument.owner = self
        recorder.made_workers.append(self)


@dataclass(frozen=True, eq=False)
class Transfer:
    end: End
    buffer: HostBuffer
    tap: Pattern
    wait: bool
    group: "Group"


@dataclass(frozen=True, eq=False)
class Parameter:
    buffer: Buffer
    index: int
    value: int


@dataclass(frozen=True, eq=False)
class Release:
    barrier: Barrier
    value: int


@dataclass(frozen=True, eq=False)
class Finish:
    group: "Group"


class Group:
    """`TaskGroup`: only inside the sequence."""

    def __init__(self, recorder: "Recorder", *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        bound("TaskGroup", args, kwargs)
        if recorder.events is None:
            raise RecordError("TaskGroup outside of the sequence")
        self.recorder = recorder
        recorder.open_groups.append(self)

    def finish(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        bound("finish", args, kwargs)
        if self not in self.recorder.open_groups or self.recorder.events is None:
            raise RecordError("a task group is finished twice")
        self.recorder.open_groups.remove(self)
        self.recorder.events.append(Finish(self))


Event = Transfer | Parameter | Release | Finish


@dataclass(eq=False)
class Recorded:
    """A program, as far as it can be known without compiling it."""

    device: str
    columns: int
    buffers: list[HostBuffer]
    workers: list[Worker]
    events: list[Event]
    context: object = None

    @property
    def operation(self) -> "Recorded":
        return self

    def walk(self, visit: Callable[[Any], Any]) -> None:
        """The buffers and locks of the cores, as the module holds them before compilation."""
        for worker in self.workers:
            for argument in worker.fn_args:
                if isinstance(argument, Buffer | Barrier):
                    name = "aie.buffer" if isinstance(argument, Buffer) else "aie.lock"
                    attributes: dict[str, int] = {}
                    visit(SimpleNamespace(name=name, attributes=attributes))
                    if isinstance(argument, Buffer):
                        argument.address = attributes.get("address")
                    else:
                        argument.lock = attributes.get("lockID")


class Recorder:
    """The modules, for one program."""

    def __init__(self) -> None:
        self.events: list[Event] | None = None
        self.open_groups: list[Group] = []
        self.made_workers: list[Worker] = []
        self.current: SimpleNamespace | None = None
        self.kernels: list[Kernel] = []  # that are to be compiled from their sources
        self.built: list[tuple[Kernel, str]] = []  # each with its folder
        self.compiled: dict[str, Any] = {}

    def iron(self) -> Iron:
        api = SimpleNamespace(
            ObjectFifo=self._fifo,
            Buffer=self._buffer,
            WorkerRuntimeBarrier=lambda *args, **kwargs: Barrier(
                self, bound("WorkerRuntimeBarrier", args, kwargs)["initial_value"]
            ),
            Worker=self._worker_type(),
            ExternalFunction=self._external_type(),
            Runtime=lambda *args, **kwargs: SimpleNamespace(**bound("Runtime", args, kwargs)),
            TaskGroup=lambda *args, **kwargs: Group(self, *args, **kwargs),
            Program=self._program,
            set_current_device=self._set_current_device,
        )
        word = SimpleNamespace(get_signless=lambda width, context=None: width)
        return Iron(
            api,
            SimpleNamespace(
                Tile=lambda *args, **kwargs: Tile(**bound("Tile", args, kwargs)),
                from_name=self._from_name,
            ),
            SimpleNamespace(
                mm=self._mm,
                gelu=lambda **given: self._elementwise("gelu", given),
                relu=lambda **given: self._elementwise("relu", given),
            ),
            SimpleNamespace(range_=lambda *bounds: range(*bounds)),
            SimpleNamespace(TensorAccessPattern=pattern),
            SimpleNamespace(
                IntegerType=word,
                IntegerAttr=SimpleNamespace(get=lambda kind, value: value),
                WalkResult=SimpleNamespace(ADVANCE=None),
            ),
            Bfloat16,
            SimpleNamespace(
                compile_mlir_module=self._compile, compile_external_kernel=self._compile_kernel
            ),
        )

    def _fifo(self, *args: Any, **kwargs: Any) -> Fifo:  # noqa: ANN401
        given = bound("ObjectFifo", args, kwargs)
        return Fifo(given["name"], array_type(given["obj_type"]), given["depth"])

    def _buffer(self, *args: Any, **kwargs: Any) -> Buffer:  # noqa: ANN401
        given = bound("Buffer", args, kwargs)
        if not given["use_write_rtp"]:
            raise RecordError(f"{given['name']}: no runtime parameter without use_write_rtp")
        return Buffer(self, given["name"], np.array(given["initial_value"]))

    def _worker_type(self) -> Callable[..., Worker]:
        def make(*args: Any, **kwargs: Any) -> Worker:  # noqa: ANN401
            return Worker(self, *args, **kwargs)

        def grid(*args: Any, **kwargs: Any) -> list[list[Worker]]:  # noqa: ANN401
            given = bound("Worker.grid", args, kwargs)
            columns = range(given["cols"])
            return [[given["factory"](r, c) for c in columns] for r in range(given["rows"])]

        make.grid = grid  # type: ignore[attr-defined]  # a static method of the class
        return make

    def _from_name(self, *args: Any, **kwargs: Any) -> SimpleNamespace:  # noqa: ANN401
        given = bound("from_name", args, kwargs)
        if given["name"] not in COLUMNS or not 1 <= given["n_cols"] <= COLUMNS[given["name"]]:
            raise RecordError(f"no device {given['name']} with {given['n_cols']} columns")
        return SimpleNamespace(name=given["name"], columns=given["n_cols"])

    def _set_current_device(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        self.current = bound("set_current_device", args, kwargs)["device"]

    def _mm(self, *args: Any, **kwargs: Any) -> Kernel:  # noqa: ANN401
        given = bound("mm", args, kwargs)
        if self.current is None:
            raise RecordError("mm: no current device, so the kernel would be for another one")
        if (given["input_dtype"], given["output_dtype"]) != (Bfloat16, np.float32):
            raise RecordError("mm: only bf16 -> f32 is recorded")
        m, k, n = given["dim_m"], given["dim_k"], given["dim_n"]
        dims = MAC_DIMS[self.current.name]
        zero = Kernel("zero_f32", ((m, n),))
        return self._made(Kernel("matmul_bf16_f32", ((m, k), (k, n), (m, n)), zero, dims))

    def _elementwise(self, name: str, given: dict[str, Any]) -> Kernel:
        tile = bound(name, (), given)["tile_size"]
        if self.current is None or tile != 1024:
            raise RecordError(f"{name}: no current device, or a tile of {tile}, not 1024")
        function = FUNCTIONS[f"{name}_bf16"]
        return self._made(Kernel(f"{name}_bf16", ((tile,), (tile,)), function=function))

    def _made(self, kernel: Kernel) -> Kernel:
        self.kernels.append(kernel)
        return kernel

    def _external_type(self) -> Callable[..., Kernel]:
        def make(*args: Any, **kwargs: Any) -> Kernel:  # noqa: ANN401
            return self._external(*args, **kwargs)

        make._instances = self.kernels  # type: ignore[attr-defined]  # of the class
        return make

    def _external(self, *args: Any, **kwargs: Any) -> Kernel:  # noqa: ANN401
        given = bound("ExternalFunction", args, kwargs)
        name, source = given["name"], given["source_file"]
        if f"void {name}(" not in Path(source).read_text(encoding="utf-8"):
            raise RecordError(f"{name} is not in its source")
        shapes = tuple(array_type(kind).shape for kind in given["arg_types"])
        return self._made(Kernel(name, shapes, function=FUNCTIONS[name]))

    def _compile(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Notes what was asked for; kernels must have been compiled into the same folder."""
        self.compiled = bound("compile_mlir_module", args, kwargs)
        if self.built != [(kernel, self.compiled["work_dir"]) for kernel in self.kernels]:
            raise RecordError("compile_mlir_module: kernels are not in its work_dir")

    def _compile_kernel(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        given = bound("compile_external_kernel", args, kwargs)
        assert self.current is not None
        if given["target_arch"] != {"npu1": "aie2", "npu2": "aie2p"}[self.current.name]:
            raise RecordError(f"compile_external_kernel: for {given['target_arch']}")
        self.built.append((given["func"], given["kernel_dir"]))

    def _program(self, *args: Any, **kwargs: Any) -> SimpleNamespace:  # noqa: ANN401
        given = bound("Program", args, kwargs)

        def resolve(*args: Any, **kwargs: Any) -> Recorded:  # noqa: ANN401
            bound("resolve_program", args, kwargs)
            return self._resolve(given["device"], given["rt"], given["workers"])

        return SimpleNamespace(resolve_program=resolve)

    def _resolve(
        self, device: SimpleNamespace, runtime: SimpleNamespace, workers: list[Worker]
    ) -> Recorded:
        if set(workers) != set(self.made_workers):
            raise RecordError("the program lacks workers that were made, which then do nothing")
        buffers: list[HostBuffer] = []
        arguments: list[Any] = []
        for argument in runtime.fn_args:
            if get_args(argument):
                buffers.append(HostBuffer(len(buffers), array_type(argument)))
                arguments.append(buffers[-1])
            else:
                arguments.append(argument)
        for leaf in leaves(runtime.fn_args):
            if isinstance(leaf, End) and leaf.owner is None:
                if leaf.tile is None or leaf.tile.row:
                    raise RecordError(f"{leaf.fifo.name}: ends at {leaf.tile}, which is no shim")
                leaf.owner = self
        self.events = []
        runtime.seq_fn(*arguments)
        events, self.events = self.events, None
        if self.open_groups:
            raise RecordError(f"{len(self.open_groups)} task groups are not finished")
        return Recorded(device.name, device.columns, buffers, workers, events)


def leaves(values: Sequence[Any]) -> Iterator[Any]:
    """The values of nested lists."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from leaves(value)
        else:
            yield value
