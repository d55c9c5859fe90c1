"""A figure: one number that is known of a machine, with where it comes from and how sure it is.

A figure without a source is a guess that nobody can check, so there are none. Its `mark` says of
what kind it is, its range how far the sources disagree or how little is known.

>>> Figure(1.1e12, "XY: 8 cores x 32 FLOP x 4.4 GHz", "inferred", 1.0e12, 1.2e12).value
1100000000000.0
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

Mark: TypeAlias = Literal["measured", "vendor", "inferred", "fitted", "assumed", "varied"]

# What a file may say, the surest first. A figure changed by hand is "varied", in memory only.
FILE_MARKS: tuple[Mark, ...] = ("measured", "vendor", "inferred", "fitted", "assumed")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number about a machine, in the unit that its field's name ends with.

    `measured` by the source on such a chip, `vendor` a specification or a constant of the driver,
    `inferred` arithmetic on such figures, `fitted` so that a simulated step takes what a source
    says that the whole one took, `assumed` where no source exists: then the source says "unknown"
    and there is a range.
    """

    value: float
    source: str  # a key of the machine's sources and a place there, or "unknown: why this value"
    mark: Mark
    low: float | None = None  # the range, both ends or none
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Which numbers a figure may hold, besides being finite."""

    text: str
    least: float
    most: float = math.inf
    is_least_allowed: bool = True
    is_whole: bool = False

    def allows(self, number: float) -> bool:
        """True if the number obeys the rule; never for an infinity or a NaN."""
        if not math.isfinite(number) or not self.least <= number <= self.most:
            return False
        if number == self.least and not self.is_least_allowed:
            return False
        return not self.is_whole or number == int(number)


ABOVE_ZERO = Rule("must be a finite number above 0", 0, is_least_allowed=False)
NOT_NEGATIVE = Rule("must be a finite number, 0 or more", 0)
WHOLE = Rule("must be a whole number, 1 or more", 1, is_whole=True)
AT_LEAST_ONE = Rule("must be a finite number, 1 or more", 1)
UP_TO_ONE = Rule("must lie between 0 and 1", 0, 1)

Rate: TypeAlias = Annotated[Figure, ABOVE_ZERO]
Seconds: TypeAlias = Annotated[Figure, NOT_NEGATIVE]
Watts: TypeAlias = Annotated[Figure, NOT_NEGATIVE]
Count: TypeAlias = Annotated[Figure, WHOLE]
Nbytes: TypeAlias = Annotated[Figure, WHOLE]
Factor: TypeAlias = Annotated[Figure, ABOVE_ZERO]  # of a rate, or of watts
Slowdown: TypeAlias = Annotated[Figure, AT_LEAST_ONE]  # of a duration
Fraction: TypeAlias = Annotated[Figure, UP_TO_ONE]


def scaled(figure: Figure, factor: Figure, circumstance: str) -> Figure:
    """The product of both, with both sources, the ranges multiplied, and the less sure mark.

    A product is nobody's measurement: it is at best "inferred".
    """
    if factor.value == 1 and factor.low is None:
        return figure
    low = high = None
    if figure.low is not None or factor.low is not None:
        low = _low(figure) * _low(factor)
        high = _high(figure) * _high(factor)
    return Figure(
        value=figure.value * factor.value,
        source=f"{figure.source}; x {factor.value:g} {circumstance} ({factor.source})",
        mark=_less_sure(figure, factor),
        low=low,
        high=high,
    )


def lengthened(figure: Figure, extra: Figure, circumstance: str) -> Figure:
    """The sum of both, with both sources, the ranges added, and the less sure mark."""
    low = high = None
    if figure.low is not None or extra.low is not None:
        low, high = _low(figure) + _low(extra), _high(figure) + _high(extra)
    source = f"{figure.source}; + {extra.value:g} {circumstance} ({extra.source})"
    return Figure(figure.value + extra.value, source, _less_sure(figure, extra), low, high)


def _less_sure(*figures: Figure) -> Mark:
    """The mark of what was reckoned from figures."""
    marks = [each.mark for each in figures]
    if "assumed" in marks:
        return "assumed"
    return "fitted" if "fitted" in marks else "inferred"


def varied(figure: Figure, value: float) -> Figure:
    """A what-if: another value in place of the figure's, whatever its range said."""
    source = f"varied from {figure.value:g} ({figure.mark}; {figure.source})"
    return Figure(value, source, "varied")


def _low(figure: Figure) -> float:
    return figure.value if figure.low is None else figure.low


def _high(figure: Figure) -> float:
    return figure.value if figure.high is None else figure.high
