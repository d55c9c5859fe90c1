import json
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.params import initial_parameters, parameter_specs
from aieflow.gpt2.pretrained import huggingface_config, load_parameters, read_model_config
from aieflow.gpt2.safetensors_file import file_nbytes, read_header, read_tensor, write_tensors
from aieflow.ops.errors import InputError

Array = npt.NDArray[np.float32]
TINY = ModelConfig(vocab_size=64, seq_len=16, layers=2, heads=2, channels=8)
METADATA = {"format": "pt"}


def _parameters() -> dict[str, Array]:
    rng = np.random.default_rng(3)
    return {name: rng.standard_normal(a.shape, np.float32) for name, a in _initial().items()}


def _initial() -> dict[str, Array]:
    return dict(initial_parameters(TINY, 0))


def _empty() -> dict[str, Array]:
    return {name: np.full(s.shape, -1, np.float32) for name, s in parameter_specs(TINY).items()}


def _write_config(folder: Path, **changes: object) -> None:
    content = huggingface_config(TINY, 0.1, None) | changes
    (folder / "config.json").write_text(json.dumps(content))


def _refusal(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_parameters(folder, TINY, _empty())
    return str(caught.value)


def _bfloat16_file(path: Path, tensors: dict[str, Array]) -> None:
    """Write the upper half of each float32, by the format's letter."""
    header: dict[str, object] = {}
    content = b""
    for name, tensor in tensors.items():
        raw = (tensor.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        offsets = [len(content), len(content) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        content += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


def test_config_round_trip(tmp_path: Path) -> None:
    config = ModelConfig(211, 37, 3, 3, 12, layernorm_epsilon=1e-6)
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(config, 0.0, 210)))
    assert read_model_config(tmp_path) == config


def test_a_variant_of_the_same_formula_is_accepted(tmp_path: Path) -> None:
    _write_config(tmp_path, activation_function="gelu_pytorch_tanh", n_inner=32)
    assert read_model_config(tmp_path) == TINY


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("activation_function", "relu"),
        ("scale_attn_by_inverse_layer_idx", True),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("scale_attn_weights", False),
        ("n_inner", 16),
        ("n_layer", "2"),
        ("n_layer", True),
        ("layer_norm_epsilon", 0),
    ],
)
def test_another_network_is_refused_by_key(tmp_path: Path, key: str, value: object) -> None:
    _write_config(tmp_path, **{key: value})
    with pytest.raises(InputError) as caught:
        read_model_config(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: {key} = {value!r}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "holds no JSON object"),
        ('{"model_type": "gpt2"}', "vocab_size is missing: must be a whole number"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=f"^{tmp_path / 'config.json'}: {message}"):
        read_model_config(tmp_path)


def test_sizes_that_do_not_fit_name_the_file(tmp_path: Path) -> None:
    _write_config(tmp_path, n_head=3)
    with pytest.raises(InputError, match=f"^{tmp_path}/config.json: channels = 8 is not a mult"):
        read_model_config(tmp_path)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config.json: give a Hugging Face GPT-2 folder"):
        read_model_config(tmp_path)
    with pytest.raises(InputError, match="gone: does not exist: give a folder"):
        read_model_config(tmp_path / "gone")


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_weights_load_with_and_without_prefix(tmp_path: Path, prefix: str) -> None:
    wanted = _parameters()
    stored = {prefix + name: array for name, array in wanted.items()}
    mask = np.ones((1, 1, 16, 16), np.uint8)
    buffers: dict[str, npt.NDArray[np.generic]] = {
        "h.0.attn.bias": mask,
        "h.1.attn.masked_bias": np.array([-1e4], np.float32),
    }
    head = {"lm_head.weight": wanted["wte.weight"]}
    save_file(stored | buffers | head, tmp_path / "model.safetensors", METADATA)
    into = _empty()
    load_parameters(tmp_path, TINY, into)
    for name, array in wanted.items():
        assert np.array_equal(into[name], array), name


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    wanted, into = _parameters(), _empty()
    half = {name: array.astype(np.float16) for name, array in wanted.items()}
    save_file(half, tmp_path / "model.safetensors")
    load_parameters(tmp_path, TINY, into)
    assert all(np.array_equal(into[name], half[name].astype(np.float32)) for name in wanted)

    _bfloat16_file(tmp_path / "model.safetensors", wanted)
    load_parameters(tmp_path, TINY, into)
    for name, array in wanted.items():
        assert np.array_equal(into[name].view(np.uint32), array.view(np.uint32) & 0xFFFF0000)
        np.testing.assert_allclose(into[name], array, rtol=2**-7)


def test_shards_are_found_through_their_index(tmp_path: Path) -> None:
    wanted, into = _parameters(), _empty()
    names = list(wanted)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: wanted[name] for name in part}, tmp_path / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    load_parameters(tmp_path, TINY, into)
    assert all(np.array_equal(into[name], wanted[name]) for name in names)

    (tmp_path / "model-2.safetensors").unlink()
    assert "model-2.safetensors is missing" in _refusal(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../model-1.safetensors"}}))
    assert "../model-1.safetensors lies outside of the folder" in _refusal(tmp_path)
    index.write_text("{}")
    assert "weight_map is missing" in _refusal(tmp_path)


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    stored = _parameters() | {"wpe.weight": np.zeros((17, 8), np.float32)}
    stored |= {f"adapter.{i}": np.zeros(1, np.float32) for i in range(7)}
    del stored["h.1.mlp.c_fc.bias"]
    integers = {"ln_f.bias": np.zeros(8, np.int64)}
    save_file(stored | integers, tmp_path / "model.safetensors")
    message = _refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: the weights are not those of its config.json; ")
    assert "missing: h.1.mlp.c_fc.bias;" in message
    assert "not known: adapter.0, " in message
    assert " and 2 more; of another shape: wpe.weight [17, 8] instead of [16, 8];" in message
    assert message.endswith("of another dtype than F32, F16, BF16: ln_f.bias I64")


def test_a_head_of_its_own_is_refused(tmp_path: Path) -> None:
    stored = _parameters() | {"lm_head.weight": _parameters()["wte.weight"] + 1}
    save_file(stored, tmp_path / "model.safetensors")
    assert "lm_head.weight differs from wte.weight: only models" in _refusal(tmp_path)


def test_one_parameter_under_two_names_is_refused(tmp_path: Path) -> None:
    stored = _parameters() | {"transformer.ln_f.bias": np.ones(8, np.float32)}
    save_file(stored, tmp_path / "model.safetensors")
    assert "transformer.ln_f.bias" in _refusal(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    stored = _parameters()
    stored["h.1.attn.c_proj.weight"][7, 3] = value
    save_file(stored, tmp_path / "model.safetensors")
    assert f"h.1.attn.c_proj.weight holds {value} at element 59" in _refusal(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file(_parameters(), file)
    content = file.read_bytes()
    for end in (0, 5, 100, len(content) - 1):
        file.write_bytes(content[:end])
        assert f"{file}: {end} bytes that are no whole safetensors file" in _refusal(tmp_path)


def test_a_file_cut_after_its_header_was_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"x": np.ones(100, np.float32)}, file)
    stored = read_header(file)["x"]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="ends within x"):
        read_tensor(stored, np.empty(100, np.float32))


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "no whole safetensors file" in _refusal(tmp_path)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "run `git lfs pull`" in _refusal(tmp_path)


def test_folders_without_usable_weights_are_refused(tmp_path: Path) -> None:
    assert f"{tmp_path}: holds no model.safetensors" in _refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02")
    message = _refusal(tmp_path)
    assert message.startswith(f"{tmp_path}: pytorch_model.bin is pickled")
    assert "save_pretrained(NEW, safe_serialization=True)" in message
    assert "gone: does not exist" in _refusal(tmp_path / "gone")
    assert "is not a folder" in _refusal(tmp_path / "pytorch_model.bin")


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    wanted = _parameters() | {"ä": np.array([[1.5]], np.float32)}
    write_tensors(file, wanted, METADATA)
    assert file.stat().st_size == file_nbytes(wanted, METADATA)
    with safe_open(file, framework="numpy") as reader:
        assert reader.metadata() == METADATA
        assert sorted(reader.keys()) == sorted(wanted)
        for name, array in wanted.items():
            read = reader.get_tensor(name)
            assert read.dtype == np.float32
            assert np.array_equal(read, array)
    assert struct.unpack("<Q", file.read_bytes()[:8])[0] % 8 == 0


def test_neither_writing_nor_reading_copies_a_tensor(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    tensor = np.ones((4, 1 << 20), np.float32)  # 16 MiB
    into = np.empty_like(tensor)
    tracemalloc.start()
    try:
        write_tensors(file, {"x": tensor}, METADATA)
        read_tensor(read_header(file)["x"], into)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(into, tensor)
    assert peak < tensor.nbytes / 4
