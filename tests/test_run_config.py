import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.run_config import RunConfig, differences, from_json, learning_rate, to_json
from aieflow.ops.errors import InputError

TINY = ModelConfig(vocab_size=64, seq_len=16, layers=2, heads=2, channels=8)
CONFIG = RunConfig(model=TINY, seq_len=16)
FILE = Path("run/config.json")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("batch_size", 0, "--batch-size = 0: must be at least 1"),
        ("steps", 0, "--steps = 0: must be at least 1"),
        ("grad_accumulation", 0, "--grad-accumulation = 0: must be at least 1"),
        ("eval_batches", 0, "--eval-batches = 0: must be at least 1"),
        ("seq_len", 0, "--seq-len = 0: must be at least 1"),
        ("seq_len", 17, "--seq-len = 17: the model ends at 16"),
        ("lr", 0.0, "--lr = 0.0: must be a finite number above 0"),
        ("lr", math.nan, "--lr = nan: must be a finite number above 0"),
        ("lr", math.inf, "--lr = inf: must be a finite number above 0"),
        ("warmup", -1, "--warmup = -1: must be 0 or more"),
        ("eval_every", -1, "--eval-every = -1: must be 0 or more"),
        ("checkpoint_every", -1, "--checkpoint-every = -1: must be 0 or more"),
        ("weight_decay", -0.1, "--weight-decay = -0.1: must be a finite number, 0 (off) or more"),
        ("grad_clip", math.inf, "--grad-clip = inf: must be a finite number, 0 (off) or more"),
        ("beta1", 1.5, "--beta1 = 1.5: must lie in [0, 1)"),
        ("beta2", 1.0, "--beta2 = 1.0: must lie in [0, 1)"),
        ("dropout", 1.0, "--dropout = 1.0: must lie in [0, 1)"),
        ("min_lr_fraction", 1.1, "--min-lr-fraction = 1.1: must lie in [0, 1]"),
        ("seed", -1, "--seed = -1: must lie in [0, 2^63)"),
        ("lr_schedule", "linear", "--lr-schedule = linear: must be constant or cosine"),
        ("sampling", "shuffled", "--sampling = shuffled: must be random or sequential"),
    ],
)
def test_each_setting_is_held_to_its_range(setting: str, value: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(CONFIG, **{setting: value})  # type: ignore[arg-type]  # one of them is a text
    assert str(caught.value) == message


def test_what_switches_a_thing_off_is_allowed() -> None:
    replace(CONFIG, warmup=0, grad_clip=0.0, weight_decay=0.0, eval_every=0, checkpoint_every=0)
    replace(CONFIG, steps=10, warmup=1000)


def test_warmup_is_linear_and_reaches_the_peak() -> None:
    config = replace(CONFIG, lr=1.0, warmup=4, steps=10, lr_schedule="constant")
    assert [learning_rate(config, s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_the_peak_to_the_floor() -> None:
    config = replace(CONFIG, lr=1.0, warmup=2, steps=10, min_lr_fraction=0.1)
    rates = [learning_rate(config, s) for s in range(1, 11)]
    assert rates[0] == rates[1] == 1.0
    assert rates[5] == pytest.approx(0.55)  # half of the way: training step 6 of 2 to 10
    assert rates[-1] == pytest.approx(0.1)
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert learning_rate(config, 99) == pytest.approx(0.1)


def test_no_warmup_starts_at_the_peak() -> None:
    assert learning_rate(replace(CONFIG, lr=0.5, warmup=0), 0) == 0.5
    longer_than_the_run = replace(CONFIG, lr=1.0, warmup=100, steps=10)
    assert learning_rate(longer_than_the_run, 9) == 0.1
    assert learning_rate(longer_than_the_run, 100) == 1.0


def test_json_round_trip_is_exact() -> None:
    config = replace(CONFIG, lr=0.1 + 0.2, data="/data/ä.txt", init="gpt2", check_finite=True)
    assert from_json(to_json(config), FILE) == config
    assert from_json(to_json(CONFIG), FILE) == CONFIG


def test_a_whole_number_is_a_fine_float() -> None:
    text = to_json(CONFIG).replace('"grad_clip": 1.0', '"grad_clip": 2')
    assert from_json(text, FILE) == replace(CONFIG, grad_clip=2.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": None}, "run/config.json: lr = None: must be float"),
        ({"steps": "ten"}, "run/config.json: steps = 'ten': must be int"),
        ({"steps": True}, "run/config.json: steps = True: must be int"),
        ({"check_finite": 1}, "run/config.json: check_finite = 1: must be bool"),
        ({"data": 3}, "run/config.json: data = 3: must be text or null"),
        ({"sampling": 3}, "run/config.json: sampling = 3: must be text"),
        ({"model": 3}, "run/config.json: model = 3: must be object"),
        ({"beta1": 7.0}, "run/config.json: --beta1 = 7.0: must lie in [0, 1)"),
        ({"spin": 1}, "run/config.json: spin is unknown: use the version"),
        ({"aieflow_run": 1}, "run/config.json: aieflow_run = 1, but this version reads 3"),
    ],
)
def test_a_damaged_file_is_refused_by_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as caught:
        from_json(json.dumps(json.loads(to_json(CONFIG)) | change), FILE)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("key", ["lr", "model.layers", "aieflow_run"])
def test_a_missing_key_is_named(key: str) -> None:
    content = json.loads(to_json(CONFIG))
    inner = content["model"] if key.startswith("model.") else content
    del inner[key.removeprefix("model.")]
    with pytest.raises(InputError, match=f"^run/config.json: .*{key}"):
        from_json(json.dumps(content), FILE)


def test_model_sizes_that_do_not_fit_name_the_file() -> None:
    with pytest.raises(InputError, match=r"^run/config.json: channels = 8 is not a multiple"):
        from_json(to_json(CONFIG).replace('"heads": 2', '"heads": 3'), FILE)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"n_layer": 2}'])
def test_what_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"^run/config.json: not "):
        from_json(text, FILE)


def test_differences_name_each_setting() -> None:
    asked = replace(CONFIG, lr=0.01, model=replace(TINY, layers=3))
    assert differences(CONFIG, asked) == [
        "model.layers: 2 in the run, 3 asked for",
        "lr: 0.001 in the run, 0.01 asked for",
    ]
    assert differences(CONFIG, replace(CONFIG)) == []
