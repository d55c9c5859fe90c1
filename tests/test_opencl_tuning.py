"""Which variant of the OpenCL matrix product runs: legality, candidates, measurement, the file.

All but the last test need no device: a bench with made-up seconds stands for it.
"""

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from aieflow.ops import matmul as matmul_op
from aieflow.ops.builder import Builder
from aieflow.ops.errors import DeviceError
from aieflow.ops.graph import Node
from aieflow.ops.opencl.catalogue import kernels_for
from aieflow.ops.opencl.launch import Traits
from aieflow.ops.opencl.matmul import launches
from aieflow.ops.opencl.variants import (
    CPU_VARIANTS,
    GPU_VARIANTS,
    VARIANTS,
    Product,
    Variant,
    candidates,
    default_variant,
    refusal,
)
from aieflow.ops.spec import Spec

try:
    from aieflow.devices.opencl_driver import list_devices
    from aieflow.devices.opencl_tuning import (
        MOST_FLOPS,
        ROUNDS,
        Prepare,
        Timer,
        Tuning,
        class_of,
        sample_of,
        tuning_on,
    )
except Exception as error:  # pyopencl is missing, or its library
    pytest.skip(str(error), allow_module_level=True)

DEVICES = list_devices()
pytestmark = [
    pytest.mark.opencl,
    pytest.mark.skipif(not DEVICES, reason="no OpenCL driver has a device: install PoCL"),
]
ON_CPU = Traits(is_cpu=True, local_nbytes=1 << 20, max_group=4096, compute_units=2, vector_width=16)
ON_GPU = Traits(
    is_cpu=False,
    local_nbytes=64 << 10,
    max_group=1024,
    compute_units=16,
    vector_width=1,
    has_fp16=True,
)


def node_of(product: Product) -> Node:
    M, N, K = product.M, product.N, product.K
    builder = Builder("case")
    a = builder.state("a", Spec((K, M) if product.transpose_a else (M, K)), "parameter")
    b = builder.state("b", Spec((N, K) if product.transpose_b else (K, N)), "parameter")
    attrs = {"transpose_a": product.transpose_a, "transpose_b": product.transpose_b}
    builder.apply(matmul_op.MATMUL, [a, b], ["out"], attrs)
    return builder.nodes[-1]


@pytest.mark.parametrize(
    ("variant", "traits", "allow_fp16", "reason"),
    [
        (CPU_VARIANTS[0], ON_CPU, False, None),
        (CPU_VARIANTS[0], ON_GPU, False, "cpu-8x48 is for run-times on a CPU"),
        (GPU_VARIANTS[0], ON_GPU, False, None),
        (
            GPU_VARIANTS[0],
            replace(ON_GPU, max_group=255),
            False,
            "gpu-64x64x16-4x4 needs groups of 256 items, the device has 255",
        ),
        (
            GPU_VARIANTS[0],
            replace(ON_GPU, local_nbytes=8703),
            False,
            "gpu-64x64x16-4x4 needs 8704 bytes of local memory, the device has 8703",
        ),
        (VARIANTS[-1], ON_GPU, True, None),
        (
            VARIANTS[-1],
            ON_GPU,
            False,
            "gpu-32x32x16-2x4-half rounds operands to 16 bits, which was not allowed",
        ),
        (
            VARIANTS[-1],
            replace(ON_GPU, has_fp16=False),
            True,
            "gpu-32x32x16-2x4-half gains nothing: the device has no 16-bit floats",
        ),
    ],
)
def test_refusals_say_why(
    variant: Variant, traits: Traits, allow_fp16: bool, reason: str | None
) -> None:
    assert refusal(variant, traits, allow_fp16) == reason


def test_what_a_variant_says_it_needs_is_what_it_takes() -> None:
    """Groups and local memory as launched: a refusal that is wrong would be a driver's error."""
    product = Product(300, 300, 64)
    for variant in GPU_VARIANTS:
        (launch,) = launches(node_of(product), variant)
        assert launch.local_size == variant.group
        constants = dict(launch.constants)
        floats = constants["TILE_INNER"] * (constants["TILE_ROWS"] + constants["TILE_COLUMNS"] + 8)
        assert variant.local_nbytes == 4 * floats


def test_candidates_suit_the_device_and_the_product() -> None:
    large, small = Product(1024, 768, 768), Product(8, 8, 8)
    assert candidates(large, ON_CPU) == CPU_VARIANTS
    assert candidates(large, replace(ON_CPU, vector_width=8))[0].name == "cpu-6x16"
    assert candidates(small, ON_CPU) == (CPU_VARIANTS[2],)
    assert set(candidates(large, ON_GPU)) == set(GPU_VARIANTS)
    assert set(candidates(large, ON_GPU, allow_fp16=True)) == set(VARIANTS) - set(CPU_VARIANTS)
    assert candidates(small, ON_GPU) == (GPU_VARIANTS[-1],)
    # 48 groups of 128 x 128 are enough for 16 compute units, and too few for 64
    assert default_variant(large, ON_GPU).rows == 128
    assert default_variant(large, replace(ON_GPU, compute_units=64)).name == "gpu-64x64x16-4x4"
    with pytest.raises(ValueError, match="no variant of matmul suits the device: gpu-64x64x16"):
        default_variant(large, replace(ON_GPU, local_nbytes=1024))


@dataclass
class FakeBench:
    """Gives each variant a made-up time; notes what was measured."""

    seconds: Callable[[Variant, int], float]  # of a variant, in a round
    fails: frozenset[str] = frozenset()
    products: list[Product] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)

    @contextmanager
    def __call__(self, product: Product) -> Iterator[Prepare]:
        self.products.append(product)

        def prepare(variant: Variant) -> Timer:
            rounds = itertools.count(-1)  # -1 is the warm-up

            def timer() -> float:
                if variant.name in self.fails:
                    raise DeviceError("out of resources")
                self.runs.append(variant.name)
                return self.seconds(variant, next(rounds))

            return timer

        yield prepare


def fastest(name: str) -> Callable[[Variant, int], float]:
    return lambda variant, turn: 1.0 if variant.name == name else 2.0


def tuned(bench: FakeBench, folder: Path | None, **options: object) -> Tuning:
    made = Tuning("chip, driver 1", ON_CPU, bench, folder, [])
    return replace(made, **options)  # type: ignore[arg-type]  # of whatever field a test names


HEAD = Product(1024, 50257, 768, transpose_b=True)


def test_the_fastest_is_chosen_and_kept(tmp_path: Path) -> None:
    bench = FakeBench(fastest("cpu-12x32"))
    tuning = tuned(bench, tmp_path)
    node = node_of(HEAD)
    assert tuning.choose(node).name == "cpu-12x32"
    # warm-up and rounds take turns; the product was cut down
    names = [variant.name for variant in CPU_VARIANTS]
    assert bench.runs == names * (1 + ROUNDS)
    (measured,) = bench.products
    assert measured == sample_of(HEAD)
    assert 2 * measured.M * measured.N * measured.K <= MOST_FLOPS
    assert measured.transpose_b
    # the same class: nothing is measured, now, in this process or in the next
    again = tuned(FakeBench(fastest("cpu-8x48")), tmp_path)
    for one in (tuning, again):
        assert one.choose(node_of(replace(HEAD, N=33000))).name == "cpu-12x32"
        assert one.notes == []
    assert len(bench.products) == 1
    assert again.file == tuning.file
    # another class is
    assert again.choose(node_of(Product(64, 50257, 768))).name == "cpu-8x48"
    assert tuned(bench, tmp_path).choose(node_of(Product(64, 50257, 768))).name == "cpu-8x48"


def test_the_median_decides() -> None:
    """One bad round of the best, two good ones of another."""

    def seconds(variant: Variant, turn: int) -> float:
        table = {"cpu-8x48": [9.0, 1, 1, 1, 1], "cpu-12x32": [0.5, 0.5, 2, 2, 2]}
        return table.get(variant.name, [3.0] * ROUNDS)[turn] if turn >= 0 else 0.0

    assert tuned(FakeBench(seconds), None).choose(node_of(HEAD)).name == "cpu-8x48"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text[:-20], "Unterminated string"),
        (lambda text: "[]", "it holds no object"),
        (lambda text: text.replace('"format": 1', '"format": 0'), "format is 0 instead of 1"),
        (lambda text: text.replace("driver 1", "driver 2"), "device is 'chip, driver 2'"),
        (lambda text: text.replace('"choices"', '"choicen"'), "it holds no choices"),
        (lambda text: text.replace("cpu-12x32", "cpu-99x99"), "'cpu-99x99' is no choice"),
        (lambda text: text.replace('"cpu-12x32"', "7"), "7 is no choice"),
        (lambda text: text.replace("1024x65536", "1024x"), "is no choice"),
        (
            lambda text: text.replace("cpu-12x32", "gpu-32x32x16-2x4-half"),
            "rounds operands to 16 bits, which was not allowed",
        ),
    ],
)
def test_a_bad_file_is_noted_and_replaced(
    tmp_path: Path, change: Callable[[str], str], said: str
) -> None:
    tuning = tuned(FakeBench(fastest("cpu-12x32")), tmp_path)
    tuning.choose(node_of(HEAD))
    file = tuning.file
    assert file is not None
    good = file.read_text(encoding="utf-8")
    assert change(good) != good
    file.write_text(change(good), encoding="utf-8")
    again = tuned(FakeBench(fastest("cpu-12x32")), tmp_path)
    assert again.choose(node_of(HEAD)).name == "cpu-12x32"
    (note,) = again.notes
    assert str(file) in note
    assert said in note
    assert "measured anew" in note
    assert file.read_text(encoding="utf-8") == good
    assert [one.name for one in tmp_path.iterdir()] == [file.name]


def test_devices_and_permissions_have_files_of_their_own(tmp_path: Path) -> None:
    bench = FakeBench(fastest("cpu-8x48"))
    made = [
        tuned(bench, tmp_path),
        tuned(bench, tmp_path, identity="chip, driver 2"),
        tuned(bench, tmp_path, allow_fp16=True),
    ]
    for tuning in made:
        tuning.choose(node_of(HEAD))
    assert len({tuning.file for tuning in made}) == len(list(tmp_path.iterdir())) == 3


def test_a_variant_that_fails_is_left_out(tmp_path: Path) -> None:
    bench = FakeBench(fastest("cpu-8x48"), fails=frozenset({"cpu-8x48"}))
    tuning = tuned(bench, tmp_path)
    assert tuning.choose(node_of(HEAD)).name == "cpu-12x32"
    assert tuning.notes == ["igpu: matmul cpu-8x48 does not run: out of resources"]
    none = FakeBench(fastest(""), fails=frozenset(variant.name for variant in CPU_VARIANTS))
    with pytest.raises(DeviceError, match="no variant of matmul runs on chip, driver 1"):
        tuned(none, None).choose(node_of(HEAD))
    no_memory = replace(ON_GPU, local_nbytes=1024)
    with pytest.raises(DeviceError, match="suits chip, driver 1: cpu-8x48 is for run-times on a"):
        tuned(none, None, traits=no_memory).choose(node_of(HEAD))


def test_a_folder_that_cannot_be_made_is_noted(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    tuning = tuned(FakeBench(fastest("cpu-8x48")), tmp_path / "taken" / "folder")
    for K in (768, 64):
        assert tuning.choose(node_of(replace(HEAD, K=K))).name == "cpu-8x48"
    assert any("cannot be kept" in note for note in tuning.notes)


def test_classes_are_powers_of_two() -> None:
    assert class_of(Product(1, 2, 3, transpose_a=True)) == "1x2x4 tn"
    assert class_of(Product(1024, 1025, 768, transpose_b=True)) == "1024x2048x1024 nt"


def test_tuning_on_a_device_gives_a_product_that_is_right(tmp_path: Path) -> None:
    info, notes = DEVICES[0], list[str]()
    tuning = tuning_on(info, tmp_path, notes)
    product = Product(96, 96, 48)
    node = node_of(product)
    chosen = tuning.choose(node)
    assert chosen in candidates(product, info.traits)
    assert tuning.file is not None
    assert json.loads(tuning.file.read_text())["choices"] == {"128x128x64 nn": chosen.name}
    assert notes == []
    kernel = kernels_for(info.traits, tuning.choose)["matmul"]
    assert kernel.launches(node) == launches(node, chosen)
