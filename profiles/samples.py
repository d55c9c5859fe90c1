"""Repeated measurements of one thing, and what is believed of it.

One interrupted run must not spoil a point for ever, so nothing here is a plain mean: the centre is
the median, the spread the median absolute deviation (MAD), and what is expected of the next time is
the mean of those samples that lie near the median. Unlike the median it counts the small delays
that every tenth time has, and which a long sum of durations therefore holds.

>>> samples = Samples((1.0, 1.1, 0.9, 1.0, 70.0))
>>> samples.median, round(samples.mad, 3), round(samples.expected, 3), samples.is_trusted
(1.0, 0.1, 1.0, False)
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

TRUSTED = 10  # samples from which a point counts
MOST = 40  # samples of a work that are kept: the latest
OUTLIER_MADS = 3.0  # distance from the median beyond which a sample is no part of the mean
LEAST_SPREAD = 0.01  # of the median: a spread that a clock's resolution must not go below


@dataclass(frozen=True, slots=True)
class Samples:
    """At least one measurement, the latest last."""

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.values)

    @property
    def is_trusted(self) -> bool:
        """True if there are enough to believe in."""
        return self.count >= TRUSTED

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def mad(self) -> float:
        """The median distance from the median."""
        median = self.median
        return statistics.median(abs(value - median) for value in self.values)

    @property
    def expected(self) -> float:
        """The mean without outliers."""
        rows = [(value, 1.0) for value in self.values]
        return _mean_near(rows, self.median, self.mad, OUTLIER_MADS)

    def with_more(self, values: tuple[float, ...], most: int = MOST) -> "Samples":
        """These and later ones, the latest `most` of them."""
        return Samples((*self.values, *values)[-most:])


def weighted_median(rows: Iterable[tuple[float, float]]) -> float:
    """The value that half of all weight does not exceed, of values with their weights.

    Raises ValueError where there are none.

    >>> weighted_median([(3.0, 1.0), (1.0, 1.0), (7.0, 5.0)])
    7.0
    """
    ordered = sorted(rows)
    half, so_far = sum(weight for _, weight in ordered) / 2, 0.0
    for value, weight in ordered:
        so_far += weight
        if so_far >= half:
            return value
    raise ValueError("no values have no median")


def weighted_mean(rows: Iterable[tuple[float, float]], mads: float) -> float:
    """The mean of those values, with their weights, that lie within so many MADs of the median.

    Raises ValueError where there are none.

    >>> weighted_mean([(1.0, 1.0), (2.0, 2.0), (4.0, 1.0), (900.0, 1.0)], mads=8.0)
    2.25
    """
    known = tuple(rows)
    median = weighted_median(known)
    mad = weighted_median((abs(value - median), weight) for value, weight in known)
    return _mean_near(known, median, mad, mads)


def _mean_near(
    rows: Sequence[tuple[float, float]], median: float, mad: float, mads: float
) -> float:
    far = mads * max(mad, LEAST_SPREAD * abs(median))
    near = [(value, weight) for value, weight in rows if abs(value - median) <= far]
    return sum(value * weight for value, weight in near) / sum(weight for _, weight in near)
