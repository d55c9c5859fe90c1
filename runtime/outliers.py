"""Which steps of some runs took far longer than they usually do: a page fault, another program.

A step is held against its own median over the runs, so no model is asked. What is reported took
several times that, and so much longer that the run can have felt it.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from aieflow.runtime.outline import Outline, Recording

TIMES = 3.0  # of the step's median
SHARE = 0.01  # of the median run, that it took longer by
LEAST_RUNS = 5  # a median of fewer may be the outlier itself


@dataclass(frozen=True, slots=True)
class Outlier:
    """One step of one run."""

    run: int  # its place among the runs
    step: int
    seconds: float
    median_s: float  # of this step over all runs


def outliers(outline: Outline, recordings: Sequence[Recording]) -> tuple[Outlier, ...]:
    """The steps that took far longer than usual, by what they took more; none of too few runs."""
    if len(recordings) < LEAST_RUNS:
        return ()
    least_ns = SHARE * statistics.median(each.wall_ns for each in recordings)
    found: list[Outlier] = []
    for step in range(len(outline.steps)):
        ns = [each.ends_ns[step] - each.starts_ns[step] for each in recordings]
        median_ns = statistics.median(ns)
        found += [
            Outlier(run, step, taken / 1e9, median_ns / 1e9)
            for run, taken in enumerate(ns)
            if taken > TIMES * median_ns and taken - median_ns > least_ns
        ]
    return tuple(sorted(found, key=lambda each: each.median_s - each.seconds))
