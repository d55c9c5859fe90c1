"""Tells when training steps no longer take what they did, or what was foretold; without a clock.

After a start the first durations *settle*: their median is what a training step takes now, their
median absolute deviation (MAD) how much that varies. If a prediction was given and the median is
far from it, that is a drift at once. From then on the median of the last few durations is held
against the settled one, which stays as it is, so that a slow change adds up until it counts. Single
outliers move no median.

*Far* is further than `k` MADs, and further than a share of the duration itself: a computer whose
durations hardly vary would otherwise drift by a thousandth.

>>> detector = DriftDetector(DriftRule(patience=3, settling=5))
>>> seconds = [1.0, 1.01, 0.99, 1.0, 1.02, 1.0, 9.0, 1.0, 3.0, 3.0]
>>> [drift for each in seconds if (drift := detector.note(each))]
[Drift(measured_s=3.0, expected_s=1.0, far_s=0.1, is_from_prediction=False)]
"""

import statistics
from collections import deque
from dataclasses import dataclass

from aieflow.ops.errors import InputError


@dataclass(frozen=True, slots=True)
class DriftRule:
    """What counts as a drift; raises InputError for what cannot be."""

    k: float = 6.0  # MADs
    least: float = 0.1  # share of what is expected
    patience: int = 8  # training steps whose median is held against it
    settling: int = 16  # training steps that it is taken from

    def __post_init__(self) -> None:
        if not (self.k > 0 and self.least > 0 and self.patience >= 1 and self.settling >= 2):
            raise InputError(f"{self}: k and least above 0, patience of 1, settling of 2 at least")


@dataclass(frozen=True, slots=True)
class Drift:
    """What training steps take, and what they were expected to, in seconds."""

    measured_s: float
    expected_s: float
    far_s: float  # the difference from which it counts
    is_from_prediction: bool  # else from what was measured before

    @property
    def is_slower(self) -> bool:
        """True where training steps take longer than expected."""
        return self.measured_s > self.expected_s


class DriftDetector:
    """Is told the duration of each training step; silent after a drift until `restart`."""

    def __init__(self, rule: DriftRule | None = None, predicted_s: float | None = None) -> None:
        self._rule = rule or DriftRule()
        self.restart(self._rule, predicted_s)

    def restart(self, rule: DriftRule, predicted_s: float | None = None) -> None:
        """Begin anew, as when another plan is followed."""
        self._rule = rule
        self._predicted_s = predicted_s
        self._settling: list[float] = []
        self._recent: deque[float] = deque(maxlen=rule.patience)
        self._mad_s = 0.0
        self._has_drifted = False
        self.settled_s: float | None = None  # the median once it is known

    def note(self, seconds: float) -> Drift | None:
        """Take one duration; the drift where this one makes it certain."""
        if self._has_drifted:
            return None
        if self.settled_s is None:
            self._settling.append(seconds)
            return self._settle() if len(self._settling) == self._rule.settling else None
        self._recent.append(seconds)
        if len(self._recent) < self._rule.patience:
            return None
        return self._compare(statistics.median(self._recent), self.settled_s, False)

    def _settle(self) -> Drift | None:
        settled_s = self.settled_s = statistics.median(self._settling)
        self._mad_s = statistics.median(abs(each - settled_s) for each in self._settling)
        if self._predicted_s is None:
            return None
        return self._compare(settled_s, self._predicted_s, True)

    def _compare(self, measured_s: float, expected_s: float, is_predicted: bool) -> Drift | None:
        far_s = max(self._rule.k * self._mad_s, self._rule.least * expected_s)
        if abs(measured_s - expected_s) <= far_s:
            return None
        self._has_drifted = True
        return Drift(measured_s, expected_s, far_s, is_predicted)
