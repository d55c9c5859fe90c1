"""When durations of training steps count as drifted: scripted series."""

import random
from collections.abc import Iterable

import pytest

from aieflow.ops.errors import InputError
from aieflow.runtime.drift import Drift, DriftDetector, DriftRule

RULE = DriftRule(k=6.0, least=0.1, patience=8, settling=16)


def found(seconds: Iterable[float], predicted_s: float | None = None) -> tuple[int, Drift] | None:
    """The place of the duration with which the first drift is certain, and the drift."""
    detector = DriftDetector(RULE, predicted_s)
    for place, each in enumerate(seconds):
        drift = detector.note(each)
        if drift is not None:
            return place, drift
    return None


def noise(count: int, spread: float = 0.01, seed: int = 1) -> list[float]:
    """Around 1."""
    draw = random.Random(seed)
    return [draw.gauss(1.0, spread) for _ in range(count)]


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.05, 0.2])
def test_noise_is_no_drift(spread: float) -> None:
    assert found(noise(3000, spread)) is None


def test_a_step_change_counts_once_most_of_the_latest_show_it() -> None:
    """Five of eight make the median; an even count's median is the mean of the middle two."""
    place, drift = found(noise(50) + [3.0] * 50) or (-1, None)
    assert 50 + RULE.patience // 2 - 1 <= place <= 50 + RULE.patience // 2
    assert drift is not None
    assert drift.is_slower
    assert not drift.is_from_prediction
    assert drift.expected_s == pytest.approx(1.0, abs=0.01)


def test_to_become_faster_is_a_drift_too() -> None:
    _, drift = found(noise(50) + [0.5] * 50) or (-1, None)
    assert drift is not None
    assert not drift.is_slower


def test_a_slow_change_adds_up() -> None:
    """0.1 % more each time: a tenth after a hundred, and the median lags by half its window."""
    place, _ = found([1.0] * 20 + [1.0 + 0.001 * each for each in range(400)]) or (-1, None)
    assert 120 <= place <= 130


def test_outliers_are_no_drift() -> None:
    """Every fifth ten times as long, or three in a row now and then, is not for a while."""
    assert found([10.0 if place % 5 == 4 else 1.0 for place in range(500)]) is None
    assert found([10.0 if place % 50 < 3 else 1.0 for place in range(20, 500)]) is None


def test_what_varies_much_must_change_much() -> None:
    """MAD of 10 % of 1: 40 % more are within 6 MADs, twice as long is not."""
    wild = [0.9, 1.0, 1.1, 1.0, 0.9, 1.1] * 10
    assert found(wild + [1.4 * each for each in wild]) is None
    assert found(wild + [2.0 * each for each in wild]) is not None


def test_small_changes_of_what_hardly_varies_do_not_count() -> None:
    assert found([1.0] * 50 + [1.09] * 50) is None
    assert found([1.0] * 50 + [1.11] * 50) is not None


def test_a_prediction_that_misses_is_a_drift_when_settled() -> None:
    assert found(noise(100), predicted_s=1.05) is None
    place, drift = found(noise(100), predicted_s=0.5) or (-1, None)
    assert place == RULE.settling - 1
    assert drift is not None
    assert drift.is_from_prediction
    assert drift.expected_s == 0.5


def test_after_a_drift_it_is_silent_until_it_begins_anew() -> None:
    detector = DriftDetector(RULE)
    changed = [drift for each in [1.0] * 20 + [3.0] * 100 if (drift := detector.note(each))]
    assert len(changed) == 1
    detector.restart(RULE)
    assert detector.settled_s is None
    assert [detector.note(3.0) for _ in range(100)] == [None] * 100
    assert detector.settled_s == 3.0
    assert any(detector.note(1.0) is not None for _ in range(20))


@pytest.mark.parametrize("wrong", [{"k": 0.0}, {"least": -1.0}, {"patience": 0}, {"settling": 1}])
def test_a_rule_that_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="at least"):
        DriftRule(**wrong)  # type: ignore[arg-type]  # two of them are counts
