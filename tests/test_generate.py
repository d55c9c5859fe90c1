"""Generation: the cache gives what the whole sequence gives, and how a token is drawn."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from aieflow.devices.cpu import CpuDevice
from aieflow.devices.fake import FakeDevice
from aieflow.gpt2.checkpoint import Moments, TrainingState, save_checkpoint
from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.generate import CHUNK, Generator, Sampling, choose
from aieflow.gpt2.lower import decoding
from aieflow.gpt2.params import initial_parameters
from aieflow.gpt2.run_config import RunConfig
from aieflow.gpt2.run_folder import create_run
from aieflow.ops.errors import InputError
from aieflow.ops.op import Array
from aieflow.runtime.machine import Machine

CONFIG = ModelConfig(vocab_size=64, seq_len=96, layers=2, heads=2, channels=16)
GREEDY = Sampling(temperature=0)


def _parameters(config: ModelConfig = CONFIG) -> dict[str, Array]:
    """Weights large enough that the likeliest token is far from the next."""
    parameters = dict(initial_parameters(config, 4))
    return {name: 6 * p if p.ndim > 1 else p for name, p in parameters.items()}


@pytest.fixture
def device() -> Iterator[CpuDevice]:
    with closing(CpuDevice(2)) as device:
        yield device


def _tokens(count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.random.default_rng(8).integers(0, 64, count).astype(np.int32)


@pytest.mark.parametrize("length", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5, 95])
def test_cached_logits_equal_those_of_the_whole_sequence(device: CpuDevice, length: int) -> None:
    """At the prompt's end and at every position from there to the end of the context."""
    tokens = _tokens(96)
    with Generator(CONFIG, _parameters(), Machine((device,))) as generator:
        whole = generator.logits(tokens)
        cached = generator._read(tokens[None, :length])
        np.testing.assert_allclose(cached[0], whole[length - 1], rtol=1e-4, atol=1e-4)
        for position in range(length, 96):
            cached = generator._read(tokens[None, position : position + 1])
            np.testing.assert_allclose(cached[0], whole[position], rtol=1e-4, atol=1e-4)


def _recomputed(generator: Generator, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens without a cache, in windows as the module says.

    The window is what was read since the cache was last emptied; when it fills the context, its
    later half is read again.
    """
    T = generator.config.seq_len
    window = prompt[-T:]
    made = []
    for _ in range(count):
        made.append(int(np.argmax(generator.logits(np.array(window, np.int32))[-1])))
        full = len(window) == T
        window = [*window, made[-1]]
        if full:
            window = window[-max(1, T // 2) :]
    return made


@pytest.mark.parametrize("length", [3, 96, 150])
def test_text_goes_on_past_the_end_of_the_context(device: CpuDevice, length: int) -> None:
    prompt = _tokens(length)
    with Generator(CONFIG, _parameters(), Machine((device,))) as generator:
        made = generator.greedy(prompt, 150)
        assert made == _recomputed(generator, prompt.tolist(), 150)
        assert len(set(made)) > 1
        assert generator.greedy(prompt, 150) == made


@pytest.mark.parametrize("seq_len", [1, 2, 3])
def test_the_smallest_contexts_work(device: CpuDevice, seq_len: int) -> None:
    config = ModelConfig(vocab_size=64, seq_len=seq_len, layers=1, heads=1, channels=16)
    with Generator(config, _parameters(config), Machine((device,))) as generator:
        prompt = _tokens(2)
        assert generator.greedy(prompt, 9) == _recomputed(generator, prompt.tolist(), 9)


def test_a_token_costs_the_same_wherever_it_stands() -> None:
    """One plan serves every position: a short text and a long one make the same calls."""
    device = FakeDevice()
    with Generator(CONFIG, _parameters(), Machine((device,))) as generator:
        stream = generator.stream([1], GREEDY)
        calls = []
        for _ in range(90):
            before = len(device.calls)
            next(stream)
            calls.append(device.calls[before:])
    nodes = len(decoding(CONFIG, 1, 1).nodes)
    assert {len({name for name, _ in each}) for each in calls} == {nodes}
    assert all(each == calls[0] for each in calls)


def test_samples_do_not_depend_on_how_many_there_are(device: CpuDevice) -> None:
    texts = []
    for samples in (1, 3):
        with Generator(CONFIG, _parameters(), Machine((device,)), samples) as generator:
            stream = generator.stream(_tokens(40), Sampling(temperature=1.0, seed=9))
            texts.append(list(zip(*(next(stream) for _ in range(70)), strict=True)))
    assert texts[0][0] == texts[1][0]
    assert len(set(texts[1])) == 3


def test_same_seed_same_text(device: CpuDevice) -> None:
    with Generator(CONFIG, _parameters(), Machine((device,))) as generator:
        texts = [
            [next(stream)[0] for _ in range(30)]
            for stream in (
                generator.stream(_tokens(5), Sampling(temperature=1.0, seed=seed))
                for seed in (1, 1, 2)
            )
        ]
    assert texts[0] == texts[1] != texts[2]


def test_a_checkpoint_generates_what_its_parameters_do(tmp_path: Path, device: CpuDevice) -> None:
    run = create_run(tmp_path / "run", RunConfig(model=CONFIG, seq_len=16))
    parameters = _parameters()
    empty = {name: np.zeros_like(array) for name, array in parameters.items()}
    folder = save_checkpoint(run, TrainingState(training_step=1), parameters, Moments(empty, empty))
    with Generator(CONFIG, parameters, Machine((device,))) as generator:
        expected = generator.greedy(_tokens(9), 20)
    with Generator.from_folder(folder, Machine((device,))) as generator:
        assert generator.greedy(_tokens(9), 20) == expected


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([3, 64], "token id 64 is beyond the vocabulary of 64"),
        ([3, -1], "token id -1 is beyond the vocabulary"),
    ],
)
def test_prompts_are_checked(device: CpuDevice, prompt: list[int], message: str) -> None:
    with Generator(CONFIG, _parameters(), Machine((device,))) as generator:
        with pytest.raises(InputError, match=message):
            next(generator.stream(prompt, GREEDY))
        with pytest.raises(InputError, match=message):
            generator.logits(np.array(prompt, np.int32))


def test_what_does_not_fit_into_memory_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--samples 1000000: needs .* fake has 1\.00 GiB free"):
        Generator(CONFIG, _parameters(), Machine((FakeDevice(),)), samples=10**6)
    (tmp_path / "config.json").write_text(
        '{"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_layer": 48,'
        ' "n_head": 25, "n_embd": 1600}'
    )
    with pytest.raises(InputError, match=r"needs 5\.80 GiB of memory, .*: use a smaller model"):
        Generator.from_folder(tmp_path, Machine((FakeDevice(),)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "--temperature = -0.1"),
        ({"temperature": float("nan")}, "--temperature = nan"),
        ({"temperature": float("inf")}, "--temperature = inf"),
        ({"top_k": -1}, "--top-k = -1"),
        ({"top_p": 0.0}, "--top-p = 0.0"),
        ({"top_p": 1.1}, "--top-p = 1.1"),
        ({"seed": -1}, "--seed = -1"),
    ],
)
def test_sampling_settings_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Sampling(**settings)  # type: ignore[arg-type]  # of the right type each


def _plain_probabilities(logits: Array, sampling: Sampling) -> dict[int, float]:
    """The distribution by its definition: one filter after the other, over sorted pairs."""
    weights = np.exp(logits.astype(np.float64) / sampling.temperature)
    probabilities = weights / weights.sum()
    pairs = sorted(enumerate(probabilities.tolist()), key=lambda pair: -pair[1])
    if sampling.top_k:
        pairs = pairs[: sampling.top_k]
    total = sum(p for _, p in pairs)
    kept: dict[int, float] = {}
    for token, p in pairs:
        kept[token] = p / total
        if sum(kept.values()) >= sampling.top_p:
            break
    total = sum(kept.values())
    return {token: p / total for token, p in kept.items()}


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.5),
        Sampling(temperature=1.7, top_k=4),
        Sampling(temperature=1.0, top_p=0.7),
        Sampling(temperature=1.2, top_k=5, top_p=0.8),
        Sampling(temperature=1.0, top_p=1e-9),
        Sampling(temperature=1.0, top_k=100),
    ],
)
def test_tokens_are_drawn_from_the_filtered_distribution(sampling: Sampling) -> None:
    logits = np.random.default_rng(2).standard_normal(12).astype(np.float32) * 1.5
    expected = _plain_probabilities(logits, sampling)
    rng = np.random.default_rng(1)
    draws = 20_000
    counts = np.bincount([choose(logits, sampling, rng) for _ in range(draws)], minlength=12)
    assert set(np.flatnonzero(counts)) <= expected.keys()
    for token, probability in expected.items():
        deviation = 5 * np.sqrt(probability * (1 - probability) / draws) + 1e-12
        assert abs(counts[token] / draws - probability) <= deviation, token


def test_extreme_temperatures_and_logits_are_harmless() -> None:
    rng = np.random.default_rng(1)
    logits = np.array([-3e38, 50, 49.9, -50], np.float32)
    for temperature in (0.0, 1e-310, 1e-3):
        sampling = Sampling(temperature=temperature)
        assert {choose(logits, sampling, rng) for _ in range(20)} == {1}
    hot = {choose(logits[1:], Sampling(temperature=1e300), rng) for _ in range(60)}
    assert hot == {0, 1, 2}


def test_the_first_of_equals_is_the_likeliest() -> None:
    logits = np.array([0, 2, 2, 1], np.float32)
    rng = np.random.default_rng(1)
    assert choose(logits, GREEDY, rng) == 1
    assert {choose(logits, Sampling(temperature=1, top_k=1), rng) for _ in range(9)} == {1}
