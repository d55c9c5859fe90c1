"""The oracle notices a wrong number, and its files belong to the weights and batches drawn here."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aieflow.gpt2.params import parameter_specs
from aieflow.tools.oracle import (
    CASES,
    TRAINING_STEPS,
    Oracle,
    gradient_parts,
    relative_error,
    sketch,
    sketch_error,
)

LoadOracle = Callable[[str], Oracle]


def stored_gradient(oracle: Oracle, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return oracle.tensors[f"gradient/{name}"].astype(np.float32)


@pytest.mark.parametrize("name", ["tiny", "odd", pytest.param("124M", marks=pytest.mark.slow)])
def test_inputs_are_those_that_pytorch_was_given(load_oracle: LoadOracle, name: str) -> None:
    oracle = load_oracle(name)
    specs = parameter_specs(oracle.case.config)
    for (drawn, value), (expected, spec) in zip(oracle.parameters(), specs.items(), strict=True):
        assert (drawn, value.shape) == (expected, spec.shape)
    for step in range(TRAINING_STEPS):
        tokens, targets = oracle.batch(step)
        assert tokens.shape == targets.shape == (oracle.case.batch_size, oracle.case.seq_len)
        assert 0 <= tokens.min() <= tokens.max() < oracle.case.config.vocab_size
        assert np.array_equal(tokens[:, 1:], targets[:, :-1])


@pytest.mark.parametrize("name", CASES)
def test_a_file_answers_every_question(load_oracle: LoadOracle, name: str) -> None:
    oracle = load_oracle(name)
    names = set(parameter_specs(oracle.case.config))
    assert abs(oracle.loss / np.log(oracle.case.config.vocab_size) - 1) < 0.2
    for clip in oracle.case.grad_clips:
        training = oracle.training(clip)
        assert training.losses.shape == training.grad_norms.shape == (TRAINING_STEPS,)
        assert training.losses[0] == pytest.approx(oracle.loss, rel=1e-7)
        assert set(training.updates) == {n for n in names if not n.endswith("c_attn.bias")}
    if oracle.case.stored_whole:
        for parameter in names:
            assert oracle.gradient_error(parameter, stored_gradient(oracle, parameter)) == 0.0
        assert oracle.logits_error(oracle.tensors["logits"].astype(np.float32)) == 0.0


def test_clipping_changes_the_training(load_oracle: LoadOracle) -> None:
    for name in ("tiny", "odd"):
        free, clipped = (load_oracle(name).training(clip) for clip in (0.0, 1.0))
        assert free.grad_norms[0] > 1.0
        assert np.abs(free.losses / clipped.losses - 1).max() > 1e-3


def test_the_training_norm_is_that_of_the_gradients(load_oracle: LoadOracle) -> None:
    oracle = load_oracle("124M")
    parts = [value for key, value in oracle.tensors.items() if key.startswith("gradient/")]
    norm = np.sqrt(sum(float(part.astype(np.float64)[0]) ** 2 for part in parts))
    assert norm == pytest.approx(oracle.training(1.0).grad_norms[0], rel=1e-6)


def test_the_greedy_continuation_is_complete(load_oracle: LoadOracle) -> None:
    oracle = load_oracle("odd")
    prompt, continuation = oracle.greedy
    assert prompt == list(oracle.batch()[0][0, :5])
    assert len(continuation) == 30


def test_other_weights_are_refused(load_oracle: LoadOracle) -> None:
    oracle = load_oracle("tiny")
    other = replace(oracle, case=replace(oracle.case, seed=oracle.case.seed + 1))
    with pytest.raises(ValueError, match=r"wte\.weight differs from the oracle's by 1\.\de\+00"):
        next(other.parameters())
    with pytest.raises(ValueError, match="the batch of training step 3 differs"):
        other.batch(3)


def test_an_error_in_one_part_of_a_gradient_is_seen(load_oracle: LoadOracle) -> None:
    oracle = load_oracle("tiny")
    name = "h.0.attn.c_attn.weight"
    gradient = stored_gradient(oracle, name)
    gradient[:, 16:32] *= 1.001  # k
    assert oracle.gradient_error(name, gradient) == pytest.approx(1e-3, rel=1e-3)
    with pytest.raises(ValueError, match=r"has shape \(48, 16\), not \(16, 48\)"):
        oracle.gradient_error(name, gradient.T)


def test_relative_error_is_of_the_reference() -> None:
    reference = np.array([3.0, 4.0], np.float32)
    assert relative_error(reference + np.float32(1), reference) == pytest.approx(2**0.5 / 5)
    with pytest.raises(ValueError, match="shape"):
        relative_error(reference[:1], reference)


def test_sketch_is_linear_and_independent_of_chunks() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 1031, 1033))  # more than one chunk, no multiple of 8
    both = sketch(a + 2 * b)
    assert both[0] == pytest.approx(np.linalg.norm(a + 2 * b))
    np.testing.assert_allclose(both[1:], (sketch(a) + 2 * sketch(b))[1:], rtol=1e-9)
    unit = np.zeros(1031 * 1033)
    unit[-1] = 1.0
    np.testing.assert_array_equal(np.abs(sketch(unit)), 1.0)


def test_sketch_error_estimates_the_relative_error() -> None:
    rng = np.random.default_rng(1)
    ratios = []
    for _ in range(300):
        reference, error = rng.standard_normal((2, 500))
        ours = reference + 1e-4 * error
        estimate = sketch_error(sketch(ours), sketch(reference))
        ratios.append(estimate / relative_error(ours, reference))
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)
    assert np.mean(np.array(ratios) < 0.5) < 0.05
    assert 0.1 < min(ratios) <= max(ratios) < 2.0


def test_sketch_error_sees_one_wrong_element() -> None:
    reference = np.random.default_rng(2).standard_normal(100_000)
    ours = reference.copy()
    ours[77_777] += 0.1
    truth = relative_error(ours, reference)
    estimate = sketch_error(sketch(ours), sketch(reference))
    assert estimate == pytest.approx(truth, rel=1e-6)


def test_parts_are_whole_but_for_the_attention_weight() -> None:
    weight = np.arange(12.0).reshape(2, 6)
    labels = dict(gradient_parts("h.3.attn.c_attn.weight", weight))
    assert list(labels) == [f"h.3.attn.c_attn.weight[{letter}]" for letter in "qkv"]
    np.testing.assert_array_equal(np.hstack(list(labels.values())), weight)
    assert [label for label, _ in gradient_parts("h.3.mlp.c_fc.weight", weight)] == [
        "h.3.mlp.c_fc.weight"
    ]


def test_the_files_stay_small() -> None:
    files = list((Path(__file__).parent / "oracle").iterdir())
    assert sorted(f.stem for f in files) == sorted(CASES)
    assert sum(f.stat().st_size for f in files) < 3_000_000
