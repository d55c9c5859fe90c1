"""One model in training: what a training step computes, what it refuses, what memory it takes."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import numpy as np
import pytest

from aieflow.devices.base import Buffer
from aieflow.devices.cpu import CpuDevice
from aieflow.devices.fake import FakeDevice
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.sampler import RandomSampler
from aieflow.gpt2.trainer import Trainer
from aieflow.ops.errors import InputError, TrainingError
from aieflow.ops.op import Array
from aieflow.runtime.machine import Machine

TINY = ModelConfig(vocab_size=64, seq_len=16, layers=2, heads=2, channels=16)
CONFIG = RunConfig(model=TINY, seq_len=16, batch_size=4, steps=8, lr=1e-2, warmup=2, seed=5)
TOKENS = np.random.default_rng(3).integers(0, 64, 500).astype(np.uint16)


@contextmanager
def _opened(config: RunConfig, lanes: int = 2) -> Iterator[Trainer]:
    with (
        closing(CpuDevice(lanes)) as device,
        closing(Trainer(config, Machine((device,)))) as trainer,
    ):
        trainer.initialise()
        yield trainer


def _trained(
    config: RunConfig, steps: int = 4, lanes: int = 2
) -> tuple[list[tuple[float, float]], dict[str, Array]]:
    """(loss, grad_norm) of each training step, and the parameters at the end."""
    sampler = RandomSampler(TOKENS, config.batch_size, config.seq_len, config.seed)
    with _opened(config, lanes) as trainer:
        records = [trainer.step(index, sampler) for index in range(steps)]
        parameters = {name: array.copy() for name, array in trainer.parameters.items()}
    return [(record.loss, record.grad_norm) for record in records], parameters


def _assert_equal(left: dict[str, Array], right: dict[str, Array]) -> None:
    assert [name for name in left if not np.array_equal(left[name], right[name])] == []


def test_two_runs_give_the_same_bits_and_learn() -> None:
    losses, parameters = _trained(CONFIG)
    again, same = _trained(CONFIG)
    assert losses == again
    _assert_equal(parameters, same)
    assert losses[-1][0] < losses[0][0]


def test_another_seed_gives_other_numbers() -> None:
    assert _trained(CONFIG, 1)[0] != _trained(replace(CONFIG, seed=6), 1)[0]


@pytest.mark.parametrize("lanes", [1, 3])
def test_lanes_and_check_finite_leave_the_bits_alone(lanes: int) -> None:
    losses, parameters = _trained(CONFIG)
    for config in (CONFIG, replace(CONFIG, check_finite=True)):
        others, same = _trained(config, lanes=lanes)
        assert others == losses
        _assert_equal(parameters, same)


@pytest.mark.parametrize("passes", [2, 4])
def test_accumulated_passes_equal_one_batch(passes: int) -> None:
    whole, parameters = _trained(CONFIG)
    divided = replace(CONFIG, batch_size=4 // passes, grad_accumulation=passes)
    accumulated, same = _trained(divided)
    np.testing.assert_allclose(accumulated, whole, rtol=1e-5)
    for name, array in parameters.items():
        np.testing.assert_allclose(same[name], array, rtol=1e-3, atol=2e-5, err_msg=name)


def test_dropout_differs_learns_and_repeats() -> None:
    config = replace(CONFIG, dropout=0.2)
    losses, parameters = _trained(config, 8)
    again, same = _trained(config, 8)
    assert losses == again
    _assert_equal(parameters, same)
    plain = _trained(CONFIG, 8)[0]
    assert all(mine != other for mine, other in zip(losses, plain, strict=True))
    assert losses[-1][0] < losses[0][0]


def test_each_training_step_drops_others() -> None:
    """Data of one sequence give every training step the same batch."""
    config = replace(CONFIG, dropout=0.3, lr=1e-30, weight_decay=0.0)
    sampler = RandomSampler(TOKENS[:17], 4, 16, 5)
    with _opened(config) as trainer:
        losses = [trainer.step(index, sampler).loss for index in (0, 1, 2, 0)]
    assert len(set(losses[:3])) == 3
    assert losses[3] == losses[0]


def test_evaluation_knows_no_dropout() -> None:
    tokens = TOKENS[:64].reshape(4, 16).astype(np.int32)
    batch = (tokens, tokens)
    evaluated = []
    for config in (CONFIG, replace(CONFIG, dropout=0.5)):
        with _opened(config) as trainer:
            evaluated.append([trainer.evaluate([batch]), trainer.evaluate([batch, batch])])
    assert evaluated[0] == evaluated[1]
    assert evaluated[0][0] == pytest.approx(evaluated[0][1])


def test_clipping_bounds_the_update_but_not_the_norm_that_is_told() -> None:
    clipped, unclipped = replace(CONFIG, grad_clip=1e-3), replace(CONFIG, grad_clip=0.0)
    norms = [_trained(config, 1)[0][0][1] for config in (clipped, unclipped)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)
    assert norms[0] > 1e-3
    with _opened(clipped) as trainer:
        trainer.step(0, RandomSampler(TOKENS, 4, 16, 5))
        first = np.concatenate([m.ravel() for m in trainer.moments.m.values()])
    norm = np.linalg.norm(first) / (1 - clipped.beta1)
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_warming_up_leaves_no_trace() -> None:
    with _opened(CONFIG) as trainer:
        trainer.warm_up()
        assert not any(array.any() for array in trainer.parameters.values())
        assert not any(array.any() for array in trainer.moments.by_stored_name().values())
        trainer.initialise()
        warm = trainer.step(0, RandomSampler(TOKENS, 4, 16, 5))
    assert (warm.loss, warm.grad_norm) == _trained(CONFIG, 1)[0][0]


def test_a_record_tells_rates_of_the_whole_batch() -> None:
    config = replace(CONFIG, batch_size=2, grad_accumulation=3)
    with _opened(config) as trainer:
        record = trainer.step(1, RandomSampler(TOKENS, 2, 16, 5))
    assert (record.training_step, record.lr) == (2, 1e-2)
    assert record.tokens_per_s * record.seconds == pytest.approx(3 * 2 * 16)


def test_a_loss_that_is_not_finite_stops() -> None:
    with _opened(CONFIG) as trainer:
        trainer.parameters["ln_f.weight"][3] = np.inf
        with pytest.raises(TrainingError, match=r"training step 5: the loss is nan: .*--lr"):
            trainer.step(4, RandomSampler(TOKENS, 4, 16, 5))


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_norm_that_is_not_finite_stops_though_the_loss_is() -> None:
    """Logits stay small, but the embedding's gradient is as large as the last norm's output."""
    config = replace(CONFIG, batch_size=1, seq_len=1, grad_clip=0.0)
    with _opened(config) as trainer:
        trainer.parameters["ln_f.weight"][...] = 9e37
        trainer.parameters["wte.weight"][...] *= 1e-37
        sampler = RandomSampler(TOKENS, 1, 1, 5)
        with pytest.raises(TrainingError, match="training step 1: the gradients' norm is inf"):
            trainer.step(0, sampler)


def test_check_finite_names_the_first_node() -> None:
    with _opened(replace(CONFIG, check_finite=True)) as trainer:
        trainer.parameters["h.1.mlp.c_fc.weight"][0, 5] = np.inf
        message = r"training step 1: %h\.1\.fc is the first value .*: element 5 is -?inf"
        with pytest.raises(TrainingError, match=message):
            trainer.step(0, RandomSampler(TOKENS, 4, 16, 5))


def test_an_evaluation_that_is_not_finite_stops() -> None:
    tokens = np.zeros((4, 16), np.int32)
    batch = (tokens, tokens)
    with _opened(CONFIG) as trainer:
        trainer.parameters["wpe.weight"][0, 0] = np.nan
        with pytest.raises(TrainingError, match="the validation loss is nan"):
            trainer.evaluate([batch])


def test_a_parameter_that_is_not_finite_is_named() -> None:
    with _opened(CONFIG) as trainer:
        trainer.require_finite()
        trainer.parameters["h.0.ln_1.bias"][1] = np.inf
        with pytest.raises(TrainingError, match=r"parameter h\.0\.ln_1\.bias is not finite"):
            trainer.require_finite()


class _Counting(FakeDevice):
    """Adds up what is asked for."""

    def __init__(self, nbytes: int) -> None:
        super().__init__(nbytes=nbytes)
        self.allocated = 0

    def allocate(self, nbytes: int) -> Buffer:
        self.allocated += nbytes
        return super().allocate(nbytes)


def test_all_memory_is_promised_before() -> None:
    device = _Counting(1 << 30)
    with closing(Trainer(CONFIG, Machine((device,)))) as trainer:
        assert device.allocated <= trainer.planned_nbytes <= 1.01 * device.allocated
        promised, allocated = trainer.planned_nbytes, device.allocated
        trainer.warm_up()
        assert device.allocated == allocated
    Trainer(CONFIG, Machine((_Counting(promised),))).close()
    with pytest.raises(InputError, match=r"needs .* of memory \(parameters .*smaller --batch-size"):
        Trainer(CONFIG, Machine((_Counting(promised - 1),)))


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, batch_size=10**30),
        replace(CONFIG, grad_accumulation=10**9),
        replace(CONFIG, model=replace(TINY, layers=10**9)),
    ],
)
def test_what_can_never_fit_is_refused_without_a_plan(config: RunConfig) -> None:
    device = _Counting(1 << 30)
    with pytest.raises(InputError, match=r"GiB of memory .* fake has 1.00 GiB free: use a smaller"):
        Trainer(config, Machine((device,)))
    assert device.allocated == 0
