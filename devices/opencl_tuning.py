"""Which variant of the matrix product is the fastest on the OpenCL device at hand: measured, kept.

Products fall into classes: each size rounded up to a power of two, and what is transposed. The
first node of a class has the legal variants measured, one after the other in each of several
rounds, on a product of its own shape (halved along its largest sides until it is quick); the least
median wins. A class that was decided stays so as long as the process lives, so numbers do not
change while it runs.

The choices are kept in a JSON file in a folder that the caller names, one file for each device,
driver and text of aieflow's kernels. What is read is checked; a file that cannot be used is
measured anew and replaced, and a note says so.
"""

import hashlib
import inspect
import json
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from aieflow.devices.opencl import COMPUTE, OpenClDevice
from aieflow.devices.opencl_driver import OpenClInfo
from aieflow.ops import matmul as matmul_op
from aieflow.ops.builder import Builder
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.kernel import Call
from aieflow.ops.op import Array
from aieflow.ops.opencl import matmul, variants
from aieflow.ops.opencl.catalogue import kernels_for
from aieflow.ops.opencl.launch import Traits
from aieflow.ops.opencl.source import read_source
from aieflow.ops.opencl.variants import VARIANTS, Product, Variant, candidates, product_of, refusal
from aieflow.ops.spec import Spec

FORMAT = 1  # of the file
ROUNDS = 5
MOST_FLOPS = 1 << 33  # of a product that is measured
CLASS = re.compile(r"\d+x\d+x\d+ [nt][nt]")

Timer: TypeAlias = Callable[[], float]  # runs once, returns the seconds
Prepare: TypeAlias = Callable[[Variant], Timer]  # may raise DeviceError, as the timer may
Bench: TypeAlias = Callable[[Product], AbstractContextManager[Prepare]]


def class_of(product: Product) -> str:
    """The class of a product: sizes as powers of two, n or t (transposed) for A and B.

    >>> class_of(Product(1024, 50257, 768, transpose_b=True))
    '1024x65536x1024 nt'
    """
    sizes = "x".join(
        str(1 << (size - 1).bit_length()) for size in (product.M, product.N, product.K)
    )
    return f"{sizes} {'nt'[product.transpose_a]}{'nt'[product.transpose_b]}"


def sample_of(product: Product) -> Product:
    """The product that is measured for it: its largest sides halved until it is quick."""
    sizes = [product.M, product.N, product.K]
    while 2 * sizes[0] * sizes[1] * sizes[2] > MOST_FLOPS:
        largest = sizes.index(max(sizes))
        sizes[largest] = (sizes[largest] + 1) // 2
    M, N, K = sizes
    return Product(M, N, K, product.transpose_a, product.transpose_b)


def source_hash() -> str:
    """The hash of all that decides what a variant's name stands for."""
    texts = [read_source(name) for name in ("matmul_panels", "matmul_tiles")]
    texts += [inspect.getsource(module) for module in (matmul, variants)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@dataclass(slots=True)
class Tuning:
    """The choices for one device; `choose` is what `matmul_kernel` asks for.

    `identity` names device and driver; `folder` None keeps nothing; `notes` gets what a user may
    want to know.
    """

    identity: str
    traits: Traits
    bench: Bench
    folder: Path | None
    notes: list[str]
    allow_fp16: bool = False
    _chosen: dict[str, Variant] | None = None  # None: the file was not read yet
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def choose(self, node: Node) -> Variant:
        """The fastest variant for a node of op `matmul`; measures at the first of each class.

        Raises DeviceError where no variant is legal or none ran.
        """
        product = product_of(node)
        with self._lock:
            if self._chosen is None:
                self._chosen = self._read()
            which = class_of(product)
            if which not in self._chosen:
                self._chosen[which] = self._measure(product)
                self._write(self._chosen)
            return self._chosen[which]

    @property
    def file(self) -> Path | None:
        """Where the choices are kept."""
        if self.folder is None:
            return None
        key = hashlib.sha256(repr(self._subject()).encode()).hexdigest()[:24]
        return self.folder / f"matmul-{key}.json"

    def _subject(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "device": self.identity,
            "source": source_hash(),
            "allow_fp16": self.allow_fp16,
        }

    def _measure(self, product: Product) -> Variant:
        tried = candidates(product, self.traits, self.allow_fp16)
        if not tried:
            reasons = "; ".join(str(refusal(one, self.traits, self.allow_fp16)) for one in VARIANTS)
            raise DeviceError(f"igpu: no variant of matmul suits {self.identity}: {reasons}")
        if len(tried) == 1:
            return tried[0]
        timers: dict[Variant, Timer] = {}
        with self.bench(sample_of(product)) as prepare:
            for one in tried:
                try:
                    timers[one] = prepare(one)
                    timers[one]()  # compiles, and touches all memory
                except DeviceError as error:
                    timers.pop(one, None)
                    self.notes.append(f"igpu: matmul {one.name} does not run: {error}")
            if not timers:
                raise DeviceError(f"igpu: no variant of matmul runs on {self.identity}")
            seconds: dict[Variant, list[float]] = {one: [] for one in timers}
            for _ in range(ROUNDS):
                for one, timer in timers.items():
                    seconds[one].append(timer())
        return min(seconds, key=lambda one: statistics.median(seconds[one]))

    def _read(self) -> dict[str, Variant]:
        file = self.file
        if file is None:
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return self._checked(found)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            self.notes.append(
                f"igpu: the tuning file {file} is not usable ({error}): measured anew"
            )
            return {}

    def _checked(self, found: object) -> dict[str, Variant]:
        """The choices of a file's content; raises ValueError where something is off."""
        if not isinstance(found, Mapping):
            raise ValueError("it holds no object")
        for key, value in self._subject().items():
            if found.get(key) != value:
                raise ValueError(f"{key} is {found.get(key)!r} instead of {value!r}")
        choices = found.get("choices")
        if not isinstance(choices, Mapping):
            raise ValueError("it holds no choices")
        named = {one.name: one for one in VARIANTS}
        chosen: dict[str, Variant] = {}
        for which, name in choices.items():
            variant = named.get(name) if isinstance(name, str) else None
            if not isinstance(which, str) or not CLASS.fullmatch(which) or variant is None:
                raise ValueError(f"{which!r}: {name!r} is no choice")
            reason = refusal(variant, self.traits, self.allow_fp16)
            if reason is not None:
                raise ValueError(reason)
            chosen[which] = variant
        return chosen

    def _write(self, chosen: Mapping[str, Variant]) -> None:
        file = self.file
        if file is None:
            return
        choices = {which: variant.name for which, variant in sorted(chosen.items())}
        text = json.dumps({**self._subject(), "choices": choices}, indent=1)
        hidden = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            hidden.write_text(text + "\n", encoding="utf-8")
            hidden.replace(file)
        except OSError as error:
            note = f"igpu: tuning choices cannot be kept in {file.parent}: {error}"
            if note not in self.notes:
                self.notes.append(note)


def opencl_bench(info: OpenClInfo, cache: Path | None = None) -> Bench:
    """Times variants on a device, in a context of its own that ends with each product.

    `cache` is the folder of compiled kernels.
    """

    @contextmanager
    def bench(product: Product) -> Iterator[Prepare]:
        forced: dict[Node, Variant] = {}
        kernel = matmul.matmul_kernel(lambda node: forced[node])
        device = OpenClDevice(info.device, cache, kernels={kernel.op.name: kernel})
        try:
            node = _node(product)
            specs = (*node.input_specs, *node.output_specs)
            operands = [_operand(device, spec) for spec in specs]
            finish = device.finish(COMPUTE)
            assert finish is not None

            def prepare(variant: Variant) -> Timer:
                own = _node(product)
                forced[own] = variant
                space = device.allocate(max(1, kernel.workspace(own))).data
                call = Call((operands[0], operands[1]), (operands[2],), own.attrs, space)
                begin = device.bind(own, call)

                def timer() -> float:
                    start = time.perf_counter()
                    begin()
                    finish()
                    return time.perf_counter() - start

                return timer

            yield prepare
        finally:
            device.close()

    return bench


def tuning_on(
    info: OpenClInfo,
    folder: Path | None,
    notes: list[str],
    cache: Path | None = None,
    allow_fp16: bool = False,
) -> Tuning:
    """The choices for a device, measured on it: `kernels_for(info.traits, tuning.choose)`.

    `folder` keeps the choices, `cache` the compiled kernels.
    """
    identity = f"{info.identity} ({info.version})"
    bench = opencl_bench(info, cache)
    return Tuning(identity, info.traits, bench, folder, notes, allow_fp16)


def open_tuned(
    info: OpenClInfo, cache: Path | None, allow_fp16: bool = False, notes: Iterable[str] = ()
) -> OpenClDevice:
    """A device whose matrix products run in the variants that are fastest on it.

    They are measured when the first product of a class is planned; `cache` keeps the choices and
    the compiled kernels; `notes` are the device's first ones. Raises DeviceError.
    """
    notes = list(notes)
    tuning = tuning_on(info, cache, notes, cache, allow_fp16)
    kernels = kernels_for(info.traits, tuning.choose)
    return OpenClDevice(info.device, cache, kernels=kernels, notes=notes)


def _node(product: Product) -> Node:
    M, N, K = product.M, product.N, product.K
    builder = Builder("tuning")
    a = builder.state("a", Spec((K, M) if product.transpose_a else (M, K)), "parameter")
    b = builder.state("b", Spec((N, K) if product.transpose_b else (K, N)), "parameter")
    attrs = {"transpose_a": int(product.transpose_a), "transpose_b": int(product.transpose_b)}
    builder.apply(matmul_op.MATMUL, [a, b], ["product"], attrs)
    return builder.nodes[0]


def _operand(device: OpenClDevice, spec: Spec) -> Array:
    """Memory on the device with ordinary numbers in it."""
    data = device.allocate(spec.nbytes).data
    x: Array = data.view(np.float32).reshape(spec.shape)
    np.random.default_rng(0).standard_normal(out=x, dtype=np.float32)
    device.transfer(data, "in")
    return x
