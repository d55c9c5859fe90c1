"""What is believed of repeated measurements."""

import pytest

from aieflow.profiles.samples import MOST, TRUSTED, Samples, weighted_median


def test_one_interruption_moves_nothing() -> None:
    """A sample 400 times too long, as a preempted kernel gives, must not count."""
    quiet = Samples((190e-6, 191e-6, 189e-6, 192e-6, 188e-6) * 2)
    spoilt = quiet.with_more((80e-3,))
    assert spoilt.expected == pytest.approx(quiet.expected, rel=1e-12)
    assert spoilt.median == pytest.approx(190e-6, rel=0.01)
    assert spoilt.mad == pytest.approx(1e-6, rel=1e-9)


def test_small_delays_count() -> None:
    """Every fifth time 14 % longer: a sum of many such durations is longer, too."""
    samples = Samples((1.0, 1.05, 0.95, 1.0, 1.14) * 4)
    assert samples.median == 1.0
    assert samples.expected == pytest.approx(1.028)


def test_a_burst_of_delays_does_not_count() -> None:
    """Another program took the cores for three runs of ten: half as long again is no habit."""
    samples = Samples((1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.5, 1.6, 1.4))
    assert samples.expected == pytest.approx(1.0, rel=1e-3)


def test_a_median_of_weights() -> None:
    assert weighted_median([(5.0, 1.0), (1.0, 2.0), (9.0, 0.5)]) == 1.0
    assert weighted_median([(5.0, 3.0), (1.0, 2.0), (9.0, 0.5)]) == 5.0
    with pytest.raises(ValueError, match="no values"):
        weighted_median([])


def test_ten_samples_are_trusted() -> None:
    assert not Samples((1.0,) * (TRUSTED - 1)).is_trusted
    assert Samples((1.0,) * TRUSTED).is_trusted
    assert TRUSTED == 10


def test_the_latest_are_kept() -> None:
    samples = Samples((1.0,) * MOST).with_more((2.0, 3.0))
    assert samples.count == MOST
    assert samples.values[-3:] == (1.0, 2.0, 3.0)
    assert Samples((1.0,)).with_more((2.0,) * 5, most=3).values == (2.0,) * 3
