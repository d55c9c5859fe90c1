"""Seconds of work that was not measured, from measured works of other sizes.

A fit is launch + FLOPs + bytes, each with a cost of 0 or more, chosen so that the sum of squared
*relative* errors is least (non-negative least squares; Lawson & Hanson 1974, chapter 23). No such
line follows caches and tiles; what it misses is much the same for works of nearly the same sizes.
So a prediction is the fit times what the nearest measured works took relative to it, weighed by the
inverse square of their distance, which is measured in the logarithms of the operands' sizes.

>>> line = fit([(0.0, 1e6, 1.1e-4), (0.0, 2e6, 2.1e-4), (1e6, 1e6, 2.1e-4)])
>>> [f"{x:.3g}" for x in (line.launch_s, line.s_per_flop, line.s_per_byte)]
['1e-05', '1e-10', '1e-10']
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls  # type: ignore[import-untyped]  # ships no types

from aieflow.profiles.work import Work

NEIGHBOURS = 4
SMOOTH = 0.01  # squared distance below which neighbours count alike: sizes 10 % apart
LEAST_FOR_VARIANT = 4  # works of a variant from which it has a fit of its own


@dataclass(frozen=True, slots=True)
class Fit:
    """Seconds = launch + FLOPs and bytes at constant rates."""

    launch_s: float
    s_per_flop: float
    s_per_byte: float

    def seconds(self, flops: float, nbytes: float) -> float:
        """What it foretells of so much work."""
        return self.launch_s + self.s_per_flop * flops + self.s_per_byte * nbytes


@dataclass(frozen=True, slots=True)
class Residuals:
    """How far predictions lie from measurements, relative to these."""

    median: float
    worst: float


def fit(rows: Sequence[tuple[float, float, float]]) -> Fit:
    """The fit of (FLOPs, bytes, seconds) with the least squared relative error.

    Raises ValueError without rows or for seconds that are not above 0.
    """
    if not rows:
        raise ValueError("nothing to fit")
    table = np.array(rows, np.float64)
    seconds = table[:, 2]
    if not (seconds > 0).all():
        raise ValueError(f"{seconds.min()} s: a duration must be above 0")
    columns = np.column_stack([np.ones(len(rows)), table[:, 0], table[:, 1]]) / seconds[:, None]
    scale = np.linalg.norm(columns, axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(columns / scale, np.ones(len(rows)))
    launch_s, s_per_flop, s_per_byte = (float(x) for x in found / scale)
    return Fit(launch_s, s_per_flop, s_per_byte)


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured works of one op and kernel on one device, and the fit through them."""

    works: tuple[Work, ...]
    seconds: tuple[float, ...]
    line: Fit

    def predict(self, work: Work) -> float:
        """Seconds of a work: the fit, corrected by its neighbours."""
        base = self.line.seconds(work.flops, work.nbytes)
        near = sorted(
            (distance_squared(work, other), position) for position, other in enumerate(self.works)
        )[:NEIGHBOURS]
        total = weights = 0.0
        for squared, position in near:
            other = self.works[position]
            fitted = self.line.seconds(other.flops, other.nbytes)
            weight = 1.0 / (squared + SMOOTH)
            total += weight * math.log(self.seconds[position] / fitted)
            weights += weight
        return base * math.exp(total / weights)

    def without(self, position: int) -> "Curve":
        """The curve through all works but one."""
        works = self.works[:position] + self.works[position + 1 :]
        return curve(works, self.seconds[:position] + self.seconds[position + 1 :])

    @property
    def residuals(self) -> Residuals:
        """Of the fit alone, at the works that it was made of."""
        return _residuals(
            [self.line.seconds(work.flops, work.nbytes) for work in self.works], self.seconds
        )

    @property
    def left_out(self) -> Residuals | None:
        """Of `predict` at each work by the curve through the others; None where there is one."""
        if len(self.works) < 2:
            return None
        foretold = [self.without(each).predict(work) for each, work in enumerate(self.works)]
        return _residuals(foretold, self.seconds)


def curve(works: Sequence[Work], seconds: Sequence[float]) -> Curve:
    """The curve through measured works; raises ValueError where there are none."""
    rows = [(work.flops, work.nbytes, each) for work, each in zip(works, seconds, strict=True)]
    return Curve(tuple(works), tuple(seconds), fit(rows))


def distance_squared(work: Work, other: Work) -> float:
    """Between two works; those of another variant are far, those of other parts a little apart."""
    apart = math.log(work.parts / other.parts) ** 2
    if len(work.sizes) != len(other.sizes):
        ratio = (work.flops + work.nbytes) / (other.flops + other.nbytes)
        return apart + 1.0 + math.log(ratio) ** 2
    sizes = zip(work.sizes, other.sizes, strict=True)
    squares = sum(math.log(mine / theirs) ** 2 for mine, theirs in sizes)
    return apart + squares + (1.0 if work.variant != other.variant else 0.0)


def _residuals(foretold: Sequence[float], measured: Sequence[float]) -> Residuals:
    errors = [abs(one / other - 1) for one, other in zip(foretold, measured, strict=True)]
    return Residuals(statistics.median(errors), max(errors))
