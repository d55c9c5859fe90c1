"""Which tokens each training step and each evaluation reads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aieflow.gpt2.sampler import (
    IdArray,
    RandomSampler,
    Sampler,
    SequentialSampler,
    validation_batches,
)
from aieflow.ops.errors import InputError


def batch(sampler: Sampler, step: int, micro_batch: int, B: int, T: int) -> tuple[IdArray, IdArray]:
    tokens, targets = np.full((B, T), -1, np.int32), np.full((B, T), -1, np.int32)
    sampler.fill(step, micro_batch, tokens, targets)
    return tokens, targets


def test_sequential_order_is_llmcs() -> None:
    """B=2, T=3, 20 tokens: (20-1)//6 = 3 batches, then from the start.

    step 0   [0 1 2] 3      [3 4 5] 6
    step 1   [6 7 8] 9      [9 10 11] 12
    step 2   [12 13 14] 15  [15 16 17] 18
    step 3   as step 0
    """
    sampler = SequentialSampler(np.arange(20, dtype=np.uint16), batch_size=2, seq_len=3)
    for step, start in enumerate([0, 6, 12, 0]):
        tokens, targets = batch(sampler, step, 0, 2, 3)
        assert tokens.tolist() == np.arange(start, start + 6).reshape(2, 3).tolist()
        assert targets.tolist() == np.arange(start + 1, start + 7).reshape(2, 3).tolist()


def test_the_last_batch_needs_one_token_more_than_it_feeds() -> None:
    for count, batches in ((18, 2), (19, 3)):
        sampler = SequentialSampler(np.arange(count, dtype=np.uint16), batch_size=2, seq_len=3)
        starts = [int(batch(sampler, step, 0, 2, 3)[0][0, 0]) for step in range(batches + 1)]
        assert starts == [*range(0, 6 * batches, 6), 0]


def test_micro_batches_are_the_next_batches_in_order() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    sampler = SequentialSampler(tokens, batch_size=2, seq_len=3, micro_batches=2)
    starts = [int(batch(sampler, s, k, 2, 3)[0][0, 0]) for s in (0, 1, 2) for k in (0, 1)]
    assert starts == [0, 6, 12, 18, 24, 30]


def test_data_shorter_than_a_batch_are_refused() -> None:
    six = np.arange(6, dtype=np.uint16)
    expected = r"6 tokens to train on, but one sequential batch takes 7 \(--batch-size 2.*random"
    with pytest.raises(InputError, match=expected):
        SequentialSampler(six, batch_size=2, seq_len=3)
    with pytest.raises(InputError, match="6 tokens to train on, but one sequence takes 7"):
        RandomSampler(six, batch_size=2, seq_len=6, seed=0)


def test_random_rows_are_sequences_of_the_data_and_reach_both_ends() -> None:
    sampler = RandomSampler(np.arange(12, dtype=np.uint16), batch_size=4, seq_len=9, seed=1)
    starts = set()
    for step in range(20):
        tokens, targets = batch(sampler, step, 0, 4, 9)
        assert (tokens == tokens[:, :1] + np.arange(9)).all()
        assert (targets == tokens + 1).all()
        starts |= set(tokens[:, 0].tolist())
    assert starts == {0, 1, 2}


def test_random_rows_depend_on_seed_and_training_step_alone() -> None:
    data = np.arange(50_000, dtype=np.uint16)

    def rows(seed: int, step: int, micro_batch: int = 0) -> list[int]:
        sampler = RandomSampler(data, batch_size=4, seq_len=8, seed=seed)
        return [int(start) for start in batch(sampler, step, micro_batch, 4, 8)[0][:, 0]]

    assert rows(0, 5) == rows(0, 5)
    drawn = [rows(seed, step, k) for seed in (0, 1) for step in (5, 6, 1000) for k in (0, 1)]
    assert len({start for part in drawn for start in part}) == 48
    # another order would change what a resumed run reads
    assert rows(0, 5) == [11127, 48081, 40663, 6691]


def test_micro_batches_are_the_rows_of_one_larger_batch() -> None:
    data = np.arange(50_000, dtype=np.uint16)
    whole = batch(RandomSampler(data, 6, 8, seed=3), 7, 0, 6, 8)[0]
    parts = [batch(RandomSampler(data, 2, 8, seed=3), 7, k, 2, 8)[0] for k in range(3)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_random_starts_are_spread_evenly() -> None:
    sampler = RandomSampler(np.arange(1001, dtype=np.uint16), 1000, 1, seed=0)
    starts = [batch(sampler, step, 0, 1000, 1)[0] for step in range(20)]
    counts = np.histogram(starts, 10, (0, 1000))[0]
    assert (abs(counts - 2000) < 200).all()  # 2000 expected in each, deviation 42


def starts_of(count: int, B: int, T: int, limit: int | None) -> list[list[int]]:
    tokens = np.arange(count, dtype=np.uint16)
    found = []
    for inputs, targets in validation_batches(tokens, B, T, limit):
        assert inputs.shape == targets.shape == (B, T)
        assert inputs.dtype == targets.dtype == np.int32
        assert (inputs == inputs[:, :1] + np.arange(T)).all()
        assert (targets == inputs + 1).all()
        found.append([int(start) for start in inputs[:, 0]])
    return found


def test_validation_batches_are_spread_evenly_over_the_tokens() -> None:
    """41 tokens, T=4: ten windows; two batches of two take windows 0, 2, 5 and 7."""
    assert starts_of(41, 2, 4, 2) == [[0, 8], [20, 28]]
    assert starts_of(41, 2, 4, None) == [[0, 4], [8, 12], [16, 20], [24, 28], [32, 36]]
    assert starts_of(41, 2, 4, 0) == []


def test_windows_beyond_the_last_whole_batch_are_dropped_evenly() -> None:
    assert starts_of(41, 3, 4, None) == [[0, 4, 8], [12, 16, 20], [24, 28, 32]]
    assert starts_of(41, 4, 4, None) == [[0, 4, 8, 12], [20, 24, 28, 32]]


def test_fewer_windows_than_rows_overlap_in_one_batch() -> None:
    assert starts_of(9, 4, 4, 10) == [[0, 1, 2, 4]]
    assert starts_of(5, 3, 4, None) == [[0, 0, 0]]


@given(st.integers(2, 300), st.integers(1, 5), st.integers(1, 10), st.integers(0, 8) | st.none())
def test_validation_batches_hold_whole_sequences(
    count: int, B: int, T: int, limit: int | None
) -> None:
    if count <= T:
        with pytest.raises(InputError, match=f"{count} tokens to validate on, but one sequence"):
            starts_of(count, B, T, limit)
        return
    found = starts_of(count, B, T, limit)
    assert limit is None or len(found) <= limit
    flat = [start for rows in found for start in rows]
    assert flat == sorted(flat)
    if (count - 1) // T >= B:
        assert (np.diff(flat) >= T).all()
