"""Hugging Face's GPT-2 folder, both ways: `config.json` and the weights.

`config.json` is accepted when it describes exactly the network that `gpt2.lower` builds; every
variant that `transformers` knows beside it (other activations, untied heads, cross attention, …)
is refused by name, for it would train something else without a word. Weights are found as
`model.safetensors`, whole or sharded, with or without the prefix `transformer.`; pickled weights
are refused, since reading them runs code. Every tensor goes straight into the given array.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from aieflow.gpt2.config import ModelConfig
from aieflow.gpt2.params import parameter_specs
from aieflow.gpt2.safetensors_file import (
    READABLE,
    StoredTensor,
    is_equal,
    read_header,
    read_tensor,
)
from aieflow.ops.errors import InputError

PREFIX = "transformer."
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"

_HEAD = "lm_head.weight"
_EMBEDDING = "wte.weight"
_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # causal masks of old checkpoints
_SIZES = {
    "vocab_size": "vocab_size",
    "n_positions": "seq_len",
    "n_layer": "layers",
    "n_head": "heads",
    "n_embd": "channels",
}
_TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")  # two names of one formula
_UNSUPPORTED = {
    "scale_attn_by_inverse_layer_idx": True,
    "reorder_and_upcast_attn": True,
    "add_cross_attention": True,
    "scale_attn_weights": False,
}
_LISTED = 5  # names in one message


def huggingface_config(
    config: ModelConfig, dropout: float, end_of_text: int | None
) -> dict[str, object]:
    """What `transformers` reads from the `config.json` of a GPT-2."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{key: getattr(config, name) for key, name in _SIZES.items()},
        "n_ctx": config.seq_len,
        "n_inner": None,
        "layer_norm_epsilon": config.layernorm_epsilon,
        "activation_function": _TANH_GELUS[0],
        "attn_pdrop": dropout,
        "embd_pdrop": dropout,
        "resid_pdrop": dropout,
        "initializer_range": 0.02,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }


def read_json_object(file: Path) -> dict[str, object]:
    """The JSON object in `file`; raises InputError where there is none."""
    try:
        content: object = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error}): copy or download it again") from None
    if not isinstance(content, dict):
        raise InputError(f"{file}: holds no JSON object: copy or download it again")
    return {str(key): value for key, value in content.items()}


def read_model_config(folder: Path) -> ModelConfig:
    """The sizes in the folder's `config.json`; raises InputError that names file, key and value."""
    _require_folder(folder)
    file = folder / CONFIG
    if not file.is_file():
        raise InputError(f"{folder}: holds no {CONFIG}: give a Hugging Face GPT-2 folder")
    content = read_json_object(file)
    model_type = content.get("model_type")
    if model_type != "gpt2":
        raise InputError(f"{file}: model_type = {model_type!r}: only 'gpt2' is supported")
    sizes = {name: _size(content, key, file) for key, name in _SIZES.items()}
    epsilon = content.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise InputError(f"{file}: layer_norm_epsilon = {epsilon!r}: must lie in (0, 1)")
    activation = content.get("activation_function", _TANH_GELUS[0])
    if activation not in _TANH_GELUS:
        raise InputError(
            f"{file}: activation_function = {activation!r}: "
            f"only {' and '.join(map(repr, _TANH_GELUS))} are supported"
        )
    for key, refused in _UNSUPPORTED.items():
        if content.get(key, not refused) is not (not refused):
            raise InputError(f"{file}: {key} = {content[key]!r}: only {not refused} is supported")
    inner = content.get("n_inner")
    if inner not in (None, 4 * sizes["channels"]):
        raise InputError(
            f"{file}: n_inner = {inner!r}: only 4 x n_embd = {4 * sizes['channels']} is supported"
        )
    try:
        return ModelConfig(**sizes, layernorm_epsilon=float(epsilon))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _size(content: Mapping[str, object], key: str, file: Path) -> int:
    value = content.get(key)
    if type(value) is not int:
        found = f"{key} = {value!r}" if key in content else f"{key} is missing"
        raise InputError(f"{file}: {found}: must be a whole number")
    return value


def load_parameters(
    folder: Path, config: ModelConfig, into: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Fill `into` (every name of `parameter_specs(config)`) with the folder's weights as float32.

    Raises InputError: no folder, no or pickled weights, a damaged file, tensors that are missing,
    not known or of another shape (each listed), values that are not finite, a head of its own.
    """
    _require_folder(folder)
    stored = _stored_parameters(folder)
    head = stored.pop(_HEAD, None)
    _require_match(folder, config, stored)
    for name in parameter_specs(config):
        read_tensor(stored[name], into[name])
    if head is not None and not is_equal(head, into[_EMBEDDING]):
        raise InputError(
            f"{head.path}: {head.name} differs from {stored[_EMBEDDING].name}: "
            "only models whose head shares the token embedding are supported"
        )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        fault = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {fault}: give a folder with {CONFIG} and {WEIGHTS}")


def _stored_parameters(folder: Path) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in _weight_files(folder):
        for full_name, tensor in read_header(file).items():
            name = full_name.removeprefix(PREFIX)
            if _BUFFER.fullmatch(name):
                continue
            if name in stored:
                other = stored[name]
                raise InputError(f"{file}: {full_name} is also {other.name} of {other.path.name}")
            stored[name] = tensor
    return stored


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickled = [f.name for f in sorted(folder.iterdir()) if f.suffix in (".bin", ".pt", ".pth")]
    if pickled:
        raise InputError(
            f"{folder}: {listed(pickled)} is pickled, and reading it would run code from it: "
            "convert it once, where you trust it, with transformers: GPT2LMHeadModel"
            ".from_pretrained(DIR).save_pretrained(NEW, safe_serialization=True)"
        )
    raise InputError(f"{folder}: holds no {WEIGHTS}: give a Hugging Face GPT-2 folder")


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: weight_map is missing: copy or download it again")
    names = sorted({str(name) for name in weight_map.values()})
    foreign = [name for name in names if Path(name).name != name]
    if foreign:
        raise InputError(f"{index}: {listed(foreign)} lies outside of the folder")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: {listed(missing)} is missing: copy or download it again")
    return [folder / name for name in names]


def _require_match(folder: Path, config: ModelConfig, stored: Mapping[str, StoredTensor]) -> None:
    specs = parameter_specs(config)
    faults = {
        "missing": [name for name in specs if name not in stored],
        "not known": [name for name in stored if name not in specs],
        "of another shape": [
            f"{name} {_shape(stored[name].shape)} instead of {_shape(spec.shape)}"
            for name, spec in specs.items()
            if name in stored and stored[name].shape != spec.shape
        ],
        f"of another dtype than {', '.join(READABLE)}": [
            f"{name} {stored[name].dtype}"
            for name in specs
            if name in stored and stored[name].dtype not in READABLE
        ],
    }
    found = [f"{fault}: {listed(names)}" for fault, names in faults.items() if names]
    if found:
        raise InputError(f"{folder}: the weights are not those of its {CONFIG}; {'; '.join(found)}")


def _shape(shape: Iterable[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def listed(names: list[str]) -> str:
    """The first few names for a message, and how many more there are."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
