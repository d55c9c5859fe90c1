"""Fits of measured works: exact where the model is true, relative, never negative."""

from dataclasses import replace

import pytest

from aieflow.profiles.fit import LEAST_FOR_VARIANT, curve, distance_squared, fit
from aieflow.profiles.work import Work

WORK = Work("cpu", "matmul", "blas", 1, "3", "", 1e6, 1e4, (100, 100, 100))


def sized(scale: float, variant: str = "3", parts: int = 1) -> Work:
    """A work `scale` times as large in every operand; FLOPs and bytes grow apart."""
    sizes = tuple(round(100 * scale) for _ in range(3))
    return replace(
        WORK,
        flops=1e6 * scale**1.5,
        nbytes=1e4 * scale,
        sizes=sizes,
        variant=variant,
        parts=parts,
        signature=f"{scale} {variant}",
    )


def seconds(work: Work) -> float:
    """Launch 4 us, 50 GFLOP/s, 8 GB/s."""
    return 4e-6 + work.flops / 50e9 + work.nbytes / 8e9


def test_true_rates_are_found() -> None:
    works = [sized(scale) for scale in (1, 3, 10, 40, 200, 1000)]
    line = fit([(work.flops, work.nbytes, seconds(work)) for work in works])
    # exact data: what is left is rounding, over six orders of magnitude
    assert line.launch_s == pytest.approx(4e-6, rel=1e-6)
    assert line.s_per_flop == pytest.approx(1 / 50e9, rel=1e-6)
    assert line.s_per_byte == pytest.approx(1 / 8e9, rel=1e-6)


def test_no_cost_is_negative() -> None:
    """Seconds that fall with the bytes: the best is that bytes cost nothing."""
    line = fit([(1e6, 1e6, 3e-4), (1e6, 2e6, 2e-4), (1e6, 4e6, 1e-4)])
    assert min(line.launch_s, line.s_per_flop, line.s_per_byte) == 0.0
    assert line.s_per_byte == 0.0
    assert line.seconds(1e6, 1e9) == pytest.approx(line.seconds(1e6, 0))


def test_errors_are_relative() -> None:
    """Ten works of 10 us and one of 1 s that is 30 % off: the small ones must not pay for it."""
    small = [(0.0, 1e3, 1e-5)] * 10
    line = fit([*small, (0.0, 1e8, 1.3)])
    assert line.seconds(0, 1e3) == pytest.approx(1e-5, rel=0.02)


def test_nothing_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="nothing to fit"):
        fit([])
    with pytest.raises(ValueError, match="above 0"):
        fit([(1.0, 1.0, 0.0)])


def test_neighbours_correct_the_line() -> None:
    """Works above 30 times the size take twice what any line says, as beyond a cache."""
    works = [sized(1.5**step) for step in range(20)]
    measured = [seconds(work) * (2 if work.sizes[0] > 3000 else 1) for work in works]
    each = curve(works, measured)
    large, small = sized(1.5**16.5), sized(1.5**2.5)
    for work, factor in ((large, 2), (small, 1)):
        line_error = abs(each.line.seconds(work.flops, work.nbytes) / seconds(work) / factor - 1)
        error = abs(each.predict(work) / seconds(work) / factor - 1)
        assert error < 0.05
        assert error < line_error


def test_a_measured_work_is_foretold_nearly_as_measured() -> None:
    works = [sized(2**step) for step in range(8)]
    measured = [seconds(work) * (1.4 if step % 2 else 1.0) for step, work in enumerate(works)]
    each = curve(works, measured)
    for work, expected in zip(works, measured, strict=True):
        # its own weight is 100, those of neighbours at twice and half the size below 1 each
        assert each.predict(work) == pytest.approx(expected, rel=0.02)


def test_what_is_left_out_is_foretold_by_the_others() -> None:
    works = [sized(2**step) for step in range(8)]
    exact = curve(works, [seconds(work) for work in works])
    assert exact.residuals.worst < 1e-6
    assert exact.left_out is not None
    assert exact.left_out.worst < 1e-6
    measured = [seconds(work) for work in works]
    measured[3] *= 3
    spoilt = curve(works, measured)
    assert spoilt.left_out is not None
    # what the others say of the odd one is a third of it: 67 % off
    assert 0.5 < spoilt.left_out.worst < 0.8
    assert spoilt.without(3).predict(works[3]) == pytest.approx(seconds(works[3]), rel=1e-6)
    assert curve(works[:1], measured[:1]).left_out is None


def test_likeness_has_an_order() -> None:
    work = sized(4)
    same = distance_squared(work, sized(4))
    near = distance_squared(work, sized(4.4))
    other_parts = distance_squared(work, sized(4, parts=2))
    other_variant = distance_squared(work, sized(4, variant="transpose_a 3"))
    other_operands = distance_squared(work, replace(work, sizes=(400, 400)))
    assert 0 == same < near < other_parts < other_variant <= other_operands
    assert LEAST_FOR_VARIANT >= 2
