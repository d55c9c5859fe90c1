"""Which tokens each training step reads, and each evaluation.

What a training step reads is a function of its number alone, so a resumed run needs no state of a
random generator; and N micro batches of B rows are the rows of one batch of N·B.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, final

import numpy as np
import numpy.typing as npt

from aieflow.gpt2.tokenizer import TokenArray
from aieflow.ops.errors import InputError

IdArray = npt.NDArray[np.int32]

_RANDOM_STREAM = 0x64617461  # keeps these draws apart from other uses of the run's seed


class Sampler(Protocol):
    """Says what each training step reads."""

    def fill(
        self, training_step: int, micro_batch: int, tokens_out: IdArray, targets_out: IdArray
    ) -> None:
        """Write the inputs and the ids that follow them, for steps and micro batches from 0."""
        # tokens_out (B, T), targets_out (B, T)
        ...


@final
@dataclass(frozen=True, slots=True)
class RandomSampler:
    """Rows that begin anywhere, drawn from Philox at (seed, training step).

    Micro batch k gets rows k·B to (k+1)·B of the training step's draw. The raw 64-bit numbers are
    reduced by remainder, whose bias is below 1e-9 for fewer than 1e10 tokens, because NumPy keeps
    the raw stream, but not its `integers`, the same between versions.
    """

    tokens: TokenArray
    batch_size: int
    seq_len: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.tokens) < self.seq_len + 1:
            raise InputError(
                f"{len(self.tokens)} tokens to train on, but one sequence takes "
                f"{self.seq_len + 1}: give more data or a smaller --seq-len"
            )

    def fill(
        self, training_step: int, micro_batch: int, tokens_out: IdArray, targets_out: IdArray
    ) -> None:
        """Write the rows of one micro batch."""
        # tokens_out (B, T), targets_out (B, T)
        philox = np.random.Philox(
            key=np.array([self.seed & 0xFFFFFFFFFFFFFFFF, _RANDOM_STREAM], np.uint64),
            counter=np.array([0, 0, 0, training_step], np.uint64),
        )
        B = self.batch_size
        drawn = philox.random_raw((micro_batch + 1) * B)[micro_batch * B :]
        starts = drawn % np.uint64(len(self.tokens) - self.seq_len)
        _fill_rows(self.tokens, starts.tolist(), tokens_out, targets_out)


@final
@dataclass(frozen=True, slots=True)
class SequentialSampler:
    """llm.c's order: in training step s, row b reads T+1 tokens from (s·B+b)·T on.

    With N micro batches, micro batch k of training step s is batch s·N+k. After the last whole
    batch it begins again at the first token.
    """

    tokens: TokenArray
    batch_size: int
    seq_len: int
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if self._batches == 0:
            B, T = self.batch_size, self.seq_len
            raise InputError(
                f"{len(self.tokens)} tokens to train on, but one sequential batch takes "
                f"{B * T + 1} (--batch-size {B} times --seq-len {T}, and one token more): give "
                "more data, a smaller --batch-size or --seq-len, or --sampling random"
            )

    @property
    def _batches(self) -> int:
        return max(0, len(self.tokens) - 1) // (self.batch_size * self.seq_len)

    def fill(
        self, training_step: int, micro_batch: int, tokens_out: IdArray, targets_out: IdArray
    ) -> None:
        """Write the rows of one micro batch."""
        # tokens_out (B, T), targets_out (B, T)
        B, T = self.batch_size, self.seq_len
        batch = (training_step * self.micro_batches + micro_batch) % self._batches
        starts = range(batch * B * T, (batch + 1) * B * T, T)
        _fill_rows(self.tokens, starts, tokens_out, targets_out)


def validation_batches(
    tokens: TokenArray, batch_size: int, seq_len: int, limit: int | None = None
) -> Iterator[tuple[IdArray, IdArray]]:
    """Inputs and targets of at most `limit` batches, evenly spaced over `tokens`, always the same.

    Every batch has B rows, for the plan's shapes are fixed. Rows do not overlap, and the windows
    left over after the last whole batch are not read; only if there are fewer than B windows
    does the one batch spread its rows evenly over the tokens, overlapping. Raises InputError for
    fewer than T+1 tokens.
    """
    # yields inputs (B, T), targets (B, T)
    B, T = batch_size, seq_len
    windows = max(0, len(tokens) - 1) // T
    if windows == 0:
        raise InputError(
            f"{len(tokens)} tokens to validate on, but one sequence takes {T + 1}: give more data "
            "or a smaller --seq-len"
        )
    batches = windows // B if limit is None else min(limit, windows // B)
    rows = batches * B
    starts = [row * windows // rows * T for row in range(rows)]
    if windows < B and limit != 0:
        starts = [row * (len(tokens) - T - 1) // (B - 1) for row in range(B)]
    for first in range(0, len(starts), B):
        inputs, targets = np.empty((B, T), np.int32), np.empty((B, T), np.int32)
        _fill_rows(tokens, starts[first : first + B], inputs, targets)
        yield inputs, targets


def _fill_rows(
    tokens: TokenArray, starts: Sequence[int], tokens_out: IdArray, targets_out: IdArray
) -> None:
    # tokens_out (B, T), targets_out (B, T)
    T = tokens_out.shape[1]
    for row, start in enumerate(starts):
        tokens_out[row] = tokens[start : start + T]
        targets_out[row] = tokens[start + 1 : start + T + 1]
