"""Broken IRON programs, and by which check each is caught."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from iron_dataflow import DeadlockError, HazardError, Machine
from iron_proof import SMALL, SMALL_SIZE, Edit, check_run, check_structure, packed, record
from iron_recorder import Recorder, pattern
from iron_signatures import RecordError

from aieflow.ops.errors import PlanError
from aieflow.ops.npu import iron_gemm
from aieflow.ops.npu.design import GemmDesign, GemmSize
from aieflow.ops.npu.generation import NPU1
from aieflow.ops.npu.iron_gemm import gemm_module
from aieflow.ops.npu.iron_pin import pin
from aieflow.ops.npu.iron_release import Iron


def edited_pattern(change: Callable[[dict[str, Any]], None]) -> Edit:
    """A generator whose access patterns are changed."""

    def edit(recorder: Recorder, iron: Iron) -> Iron:
        del recorder

        def changed(dims: Any, **given: Any) -> Any:  # noqa: ANN401
            change(given)
            return pattern(dims, **given)

        return replace(iron, taplib=with_members(iron.taplib, TensorAccessPattern=changed))

    return edit


def with_members(module: Any, **members: Any) -> Any:  # noqa: ANN401
    return type(module)(**{**vars(module), **members})


def edited_core(code: Callable[..., None]) -> Edit:
    """A generator whose cores run other code."""

    def edit(recorder: Recorder, iron: Iron) -> Iron:
        del recorder
        worker = iron.iron.Worker

        def make(_core: object, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return worker(code, *args, **kwargs)

        make.grid = worker.grid  # type: ignore[attr-defined]
        return replace(iron, iron=with_members(iron.iron, Worker=make))

    return edit


def edited_move(verb: str, **change: Any) -> Edit:  # noqa: ANN401
    """A generator that moves data with other keywords."""

    def edit(recorder: Recorder, iron: Iron) -> Iron:
        del recorder
        make = iron.iron.ObjectFifo

        def made(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            fifo = make(*args, **kwargs)
            for side in ("prod", "cons"):
                give = getattr(fifo, side)

                def taken(*args: Any, give: Any = give, **kwargs: Any) -> Any:  # noqa: ANN401
                    end = give(*args, **kwargs)
                    move = getattr(type(end), verb)
                    setattr(end, verb, lambda *a, **k: move(end, *a, **{**k, **change}))
                    return end

                setattr(fifo, side, taken)
            return fifo

        return replace(iron, iron=with_members(iron.iron, ObjectFifo=made))

    return edit


def wrong_stride(given: dict[str, Any]) -> None:
    if given["sizes"][1] > 1:
        given["strides"] = [given["strides"][0], given["strides"][1] // 2, *given["strides"][2:]]


def no_repeat(given: dict[str, Any]) -> None:
    given["sizes"] = [1, *given["sizes"][1:]]


def no_offset(given: dict[str, Any]) -> None:
    given["offset"] = 0


def core(
    swap: bool = False, release_b: bool = True, step_off: bool = True, early: bool = False,
    once: bool = False,
) -> Callable[..., None]:  # fmt: skip
    """A core's code with a mistake."""

    def code(
        a: Any, b: Any, c: Any, zero: Any, multiply: Any, parameters: Any, barrier: Any  # noqa: ANN401
    ) -> None:  # fmt: skip
        if early:
            tiles, inner = parameters[0], parameters[1]
        barrier.wait_for_value(1)
        tiles, inner = parameters[0], parameters[1]
        if step_off:
            barrier.release_with_value(1)
        for tile in range(tiles):
            out = c.acquire(1)
            if not once or tile == 0:
                zero(out)
            for _ in range(inner):
                left, right = a.acquire(1), b.acquire(1)
                multiply(*((right, left) if swap else (left, right)), out)
                a.release(1)
                if release_b:
                    b.release(1)
            c.release(1)

    return code


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (edited_pattern(wrong_stride), AssertionError, "numbers differ from numpy's"),
        (edited_pattern(no_offset), AssertionError, "numbers differ from numpy's"),
        (edited_pattern(no_repeat), DeadlockError, "nothing moves: the sequence waits at Finish"),
        (edited_core(core(release_b=False)), HazardError, "b0: descriptor freed while in flight"),
        (edited_core(core(swap=True)), RecordError, r"takes \(\(16, 8\), .* given \(\(8, 16\)"),
        (edited_core(core(early=True)), RecordError, "reads its parameters before its barrier"),
        (edited_core(core(step_off=False)), HazardError, "a core has begun again, with old param"),
        (edited_core(core(once=True)), AssertionError, "numbers differ from numpy's"),
        (edited_move("drain", wait=False), HazardError, "c0: descriptor freed while in flight"),
        (edited_move("fill", grp=None), RecordError, "unexpected keyword argument 'grp'"),
        (edited_move("fill", tap=None), RecordError, "pattern is not of the buffer"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_program_is_caught(edit: Edit, error: type[Exception], message: str) -> None:
    """By its run: one size, then another on the same array."""

    def run() -> None:
        sizes = (SMALL_SIZE, replace(SMALL_SIZE, K=8, M=64))
        first, second = (record(SMALL, size, edit) for size in sizes)
        machine = Machine(first)
        check_run(machine, first, SMALL, sizes[0])
        check_run(machine, second, SMALL, sizes[1])

    with pytest.raises(error, match=message):
        run()


def test_swapped_operands_of_square_tiles_give_other_numbers() -> None:
    design = GemmDesign(NPU1, 16, 16, 16, columns=4)
    size = GemmSize(64, 32, 64)
    recorded = record(design, size, edited_core(core(swap=True)))
    with pytest.raises(AssertionError, match="numbers differ from numpy's"):
        check_run(Machine(recorded), recorded, design, size)


def test_depth_1_is_caught_by_the_structure() -> None:
    """It computes the same, but nothing moves while a core multiplies."""
    recorded = record(replace(SMALL, fifo_depth=1), SMALL_SIZE)
    check_run(Machine(recorded), recorded, SMALL, SMALL_SIZE)
    with pytest.raises(AssertionError, match="fifo a0_cores has depth 1"):
        check_structure(recorded, SMALL)


def test_too_many_descriptors_are_caught_by_the_checker_and_by_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    greedy = replace(SMALL, groups=6, group_blocks=1)
    with pytest.raises(PlanError, match="descriptors of a shim: 18, more than the limit of 16"):
        record(greedy, SMALL_SIZE)
    monkeypatch.setattr(iron_gemm, "check", lambda design, size: None)
    size = replace(SMALL_SIZE, M=64 * 8)
    with pytest.raises(HazardError, match="more than 4 tasks in its queue"):
        Machine(recorded := record(greedy, size)).run(recorded, packed(greedy, size, 0)[:3])
    monkeypatch.setattr("iron_dataflow.QUEUE_DEPTH", 99)
    with pytest.raises(HazardError, match="shim 0: more than 16 descriptors"):
        Machine(recorded := record(greedy, size)).run(recorded, packed(greedy, size, 0)[:3])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "ObjectFifo",
            {"obj_type": None, "default_depth": 2},
            "unexpected keyword argument 'default_depth'",
        ),
        ("Buffer", {"type": None, "initial_value": 0, "name": "p"}, "without use_write_rtp"),
        ("Worker", {"core_fn": None, "fn_args": [], "stack_size": 1024}, "overflows it and hangs"),
        ("Worker", {"core_fn": None, "placement": None}, "unexpected keyword argument 'placement'"),
        ("TaskGroup", {}, "outside of the sequence"),
        ("Program", {"device": None}, "missing a required argument: 'rt'"),
    ],
)
def test_the_recorder_refuses_what_the_release_would(
    name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecordError, match=message):
        getattr(Recorder().iron().iron, name)(**arguments)


def test_a_kernel_for_other_micro_tiles_is_refused() -> None:
    def edit(recorder: Recorder, iron: Iron) -> Iron:
        make = iron.kernels.mm

        def emulating(**given: Any) -> Any:  # noqa: ANN401
            kernel = make(**given)
            kernel.mac_dims = (8, 8, 8)
            return kernel

        return replace(iron, kernels=with_members(iron.kernels, mm=emulating))

    with pytest.raises(
        PlanError, match=r"micro-tiles of \(8, 8, 8\), the design packs \(4, 8, 4\)"
    ):
        record(SMALL, SMALL_SIZE, edit)


def test_a_size_that_breaks_a_limit_makes_no_program() -> None:
    with pytest.raises(PlanError, match=r"M .pad it. is 100, no multiple of 64"):
        record(SMALL, replace(SMALL_SIZE, M=100))


def test_cores_without_parameters_are_noticed() -> None:
    recorder = Recorder()
    recorded = gemm_module(SMALL, SMALL_SIZE, recorder.iron())
    with pytest.raises(PlanError, match=r"in each of 17 cores, found .*'aie.lock': 16"):
        pin(recorded, SMALL.parameters_address, SMALL.barrier_lock, 17, recorder.iron().ir)
