"""Text to token ids and back: byte-level BPE over GPT-2's pieces of text, run by tiktoken.

tiktoken merges the adjacent pair whose *joined* bytes have the lowest rank; Hugging Face merges the
adjacent pair that stands first in the list of merges. Both agree exactly when every token has one
rank and is reached only through its own merge. So a merge is kept only if BPE, run on the token's
bytes alone, ends with that very pair: any other merge can never be applied, because what happens
inside a token does not depend on what stands around it. Ranks are ours (bytes, then merges in
order); ids are the vocabulary's, and one array maps the first to the second.

`encode` treats all text as text: a literal `<|endoftext|>` in somebody's data becomes the ordinary
tokens of those thirteen characters. Only `end_of_text`, which the data pipeline puts between
documents, stands for the special token.

>>> tokenizer = Tokenizer.embedded()
>>> tokenizer.decode(tokenizer.encode("while True: pass"))
'while True: pass'
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tiktoken

from aieflow.ops.errors import InputError

TokenArray = npt.NDArray[np.uint16 | np.uint32]
Pair = tuple[bytes, bytes]

END_OF_TEXT = "<|endoftext|>"

# GPT-2's split (Radford et al. 2019), with possessive quantifiers so that no match backtracks but
# that of a run of whitespace, which keeps its last character for the word that follows.
SPLIT_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

# Unicode's White_Space, which is what `\s` means to tiktoken; Python's `\s` holds four more.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
# The split always falls between a character and the whitespace after it, whatever surrounds them.
_SAFE_CUT = re.compile(f"[^{_SPACE}](?=[{_SPACE}])")
# It also falls before the last character of a run of whitespace that a word follows. Cutting there
# spares tiktoken's matcher the backtracking, whose stack overflows on a million spaces.
_LONG_RUN = re.compile(f"(?<![{_SPACE}])[{_SPACE}]{{1000,}}+(?=[^{_SPACE}])")

_BLOCK_CHARACTERS = 1 << 19
_TAIL_CHARACTERS = 1 << 12
_REPLACEMENT = "\ufffd".encode()
_HIGHEST_ID = (1 << 31) - 1  # the op graph takes ids as int32


def _byte_characters() -> Iterator[str]:
    """The character that stands for each byte in Hugging Face's files: printable, never a space."""
    substitutes = 0
    for byte in range(256):
        if 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174:
            yield chr(byte)
        else:
            yield chr(256 + substitutes)
            substitutes += 1


_CHARACTERS = tuple(_byte_characters())
_BYTES = {character: byte for byte, character in enumerate(_CHARACTERS)}


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A vocabulary and its merges, with the way from text to ids and back.

    `vocabulary` gives the id of each ordinary token and holds all 256 bytes; `merges` are in order
    of priority, each of two tokens whose join is a token; `added` are tokens that no text
    produces, such as the end of a text, by their name.
    """

    vocabulary: Mapping[bytes, int]
    merges: tuple[Pair, ...]
    added: Mapping[str, int]
    end_of_text: int | None
    _encoding: tiktoken.Encoding = field(init=False, repr=False, compare=False)
    _id_of_rank: npt.NDArray[np.uint32] = field(init=False, repr=False, compare=False)
    _bytes_of_id: Mapping[int, bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        reachable = reachable_merges(self.merges)
        tokens = [bytes([byte]) for byte in range(256)] + [a + b for a, b in reachable]
        ranks = {token: rank for rank, token in enumerate(tokens)}
        encoding = tiktoken.Encoding(
            "aieflow", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )
        of_rank = np.array([self.vocabulary[token] for token in tokens], np.uint32)
        of_id = {token_id: token for token, token_id in self.vocabulary.items()}
        of_id.update((token_id, name.encode()) for name, token_id in self.added.items())
        object.__setattr__(self, "merges", reachable)
        object.__setattr__(self, "_encoding", encoding)
        object.__setattr__(self, "_id_of_rank", of_rank)
        object.__setattr__(self, "_bytes_of_id", of_id)

    @classmethod
    def embedded(cls) -> "Tokenizer":
        """The vocabulary that aieflow ships: 256 bytes, 767 merges and `<|endoftext|>`."""
        lines = resources.files("aieflow.gpt2").joinpath("vocabulary.tiktoken").read_bytes()
        vocabulary: dict[bytes, int] = {}
        for line in lines.splitlines():
            token, rank = line.split()
            vocabulary[base64.b64decode(token)] = int(rank)
        end = len(vocabulary)
        return cls(vocabulary, merges_of(vocabulary), {END_OF_TEXT: end}, end)

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """The tokenizer of a Hugging Face folder, or of one that `save` wrote.

        Reads `tokenizer.json` where there is one, else `vocab.json` with `merges.txt`; the end of
        the text is the `eos_token` of `tokenizer_config.json` or `special_tokens_map.json`, else
        `<|endoftext|>`, if the vocabulary holds it. Raises InputError for a folder without these
        files, for unreadable ones, and for a tokenizer that is not GPT-2's byte-level BPE.
        """
        config = _read_optional(folder / "tokenizer_config.json")
        end = _end_name(config) or _end_name(_read_optional(folder / "special_tokens_map.json"))
        if (folder / "tokenizer.json").is_file():
            return cls(*_read_tokenizer_json(folder / "tokenizer.json", end or END_OF_TEXT))
        missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
        if missing:
            raise InputError(
                f"{folder}: no tokenizer: there is no tokenizer.json, and {' and '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing: copy the tokenizer's files into "
                "the folder, or give --data a .bin of tokens"
            )
        return cls(*_read_vocabulary_and_merges(folder, config, end or END_OF_TEXT))

    def save(self, folder: Path) -> None:
        """Write the files from which `transformers` and `from_folder` load the same tokenizer."""
        text = {token: "".join(_CHARACTERS[byte] for byte in token) for token in self.vocabulary}
        names = {text[token]: i for token, i in self.vocabulary.items()} | dict(self.added)
        vocabulary = dict(sorted(names.items(), key=lambda item: item[1]))
        merges = [f"{text[left]} {text[right]}" for left, right in self.merges]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        added = [
            {"id": token_id, "content": name, "special": True}
            | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            for name, token_id in sorted(self.added.items(), key=lambda item: item[1])
        ]
        end = next((name for name, i in self.added.items() if i == self.end_of_text), None)
        _write_json(folder / "vocab.json", vocabulary)
        lines = ["#version: 0.2", *merges, ""]
        (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8", newline="\n")
        _write_json(
            folder / "tokenizer.json",
            {
                "version": "1.0",
                "truncation": None,
                "padding": None,
                "added_tokens": added,
                "normalizer": None,
                "pre_tokenizer": byte_level | {"use_regex": True},
                "post_processor": byte_level | {"trim_offsets": False},
                "decoder": byte_level,
                "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
            },
        )
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
        _write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False} | special,
        )

    @property
    def vocab_size(self) -> int:
        """V: one more than the highest id."""
        return max(self._bytes_of_id) + 1

    @property
    def dtype(self) -> np.dtype[np.uint16 | np.uint32]:
        """The smallest of uint16 and uint32 that holds every id."""
        return np.dtype(np.uint16) if self.vocab_size <= 1 << 16 else np.dtype(np.uint32)

    @property
    def fingerprint(self) -> str:
        """A hash that differs where two tokenizers give different ids to some text."""
        digest = hashlib.sha256(SPLIT_PATTERN.encode())
        for token, token_id in sorted(self.vocabulary.items()):
            digest.update(b"%d %s\n" % (token_id, token.hex().encode()))
        for left, right in self.merges:
            digest.update(b"%s %s\n" % (left.hex().encode(), right.hex().encode()))
        digest.update(f"end {self.end_of_text}".encode())
        return digest.hexdigest()

    def encode(self, text: str) -> TokenArray:
        """The ids of `text`, shape (tokens,), uint16 or uint32 as `dtype` says.

        Lone surrogates, which are no characters, become U+FFFD.
        """
        blocks = (
            text[start : start + _BLOCK_CHARACTERS]
            for start in range(0, len(text), _BLOCK_CHARACTERS)
        )
        return np.concatenate([np.zeros(0, self.dtype), *self.encode_blocks(blocks)])

    def encode_blocks(self, blocks: Iterable[str]) -> Iterator[TokenArray]:
        """The ids of a text that comes in blocks; their boundaries leave no trace in the ids.

        Holds one block at a time, and the text since the last place where cutting is safe.
        """
        pending: list[str] = []
        for block in blocks:
            cut = _last_safe_cut(block)
            if cut == 0:
                pending.append(block)
                continue
            yield self._encode_whole("".join([*pending, block[:cut]]))
            pending = [block[cut:]]
        yield self._encode_whole("".join(pending))

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
        """The text of `ids`; bytes that are not UTF-8 and unknown ids become U+FFFD."""
        pieces = (self._bytes_of_id.get(int(token_id), _REPLACEMENT) for token_id in ids)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _encode_whole(self, text: str) -> TokenArray:
        ranks: list[int] = []
        start = 0
        for run in _LONG_RUN.finditer(text):
            ranks += self._encoding.encode_ordinary(text[start : run.end() - 1])
            start = run.end() - 1
        ranks += self._encoding.encode_ordinary(text[start:])
        return self._id_of_rank[np.array(ranks, np.intp)].astype(self.dtype)


def merges_of(ranks: Mapping[bytes, int]) -> tuple[Pair, ...]:
    """The merges behind a table of ranks, as tiktoken's files hold it, in order of rank.

    Raises ValueError for a token that BPE cannot build from the tokens of lower rank.
    """
    priorities: dict[Pair, int] = {}
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            pair = _last_pair(token, priorities)
            if pair is None:
                raise ValueError(f"token {token!r} of rank {ranks[token]} has no merge")
            priorities[pair] = ranks[token]
    return tuple(priorities)


def reachable_merges(merges: Sequence[Pair]) -> tuple[Pair, ...]:
    """Those of `merges` that BPE can ever apply, in order; no two have the same join."""
    priorities: dict[Pair, int] = {}
    for priority, pair in enumerate(merges):
        priorities.setdefault(pair, priority)
    return tuple(pair for pair in priorities if _last_pair(b"".join(pair), priorities) == pair)


def _last_pair(token: bytes, priorities: Mapping[Pair, int]) -> Pair | None:
    """The two parts that BPE makes of `token` before it joins them; None if it stops earlier."""
    parts = [token[i : i + 1] for i in range(len(token))]
    never = _HIGHEST_ID + 1
    while len(parts) > 2:
        found = [priorities.get(pair, never) for pair in pairwise(parts)]
        first = min(found)
        if first == never:
            return None
        i = found.index(first)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts[0], parts[1]


def _last_safe_cut(block: str) -> int:
    """A place near the end of `block` where the split falls in any case; 0 if there is none."""
    for start in (max(0, len(block) - _TAIL_CHARACTERS), 0):
        if match := _SAFE_CUT.search(block, start):
            return match.end()
    return 0


# What a folder gives: vocabulary, merges, added tokens, end of text; as Tokenizer takes them.
_Parts = tuple[dict[bytes, int], tuple[Pair, ...], dict[str, int], int | None]


def _read_tokenizer_json(path: Path, end: str) -> _Parts:
    content = _read_json(path)
    model = _section(content, "model", path)
    pre_tokenizer = _section(content, "pre_tokenizer", path)
    settings: dict[str, tuple[object, object]] = {
        "model.type": (model.get("type", "BPE"), "BPE"),
        "pre_tokenizer.type": (pre_tokenizer.get("type"), "ByteLevel"),
        "pre_tokenizer.add_prefix_space": (pre_tokenizer.get("add_prefix_space", False), False),
        "pre_tokenizer.use_regex": (pre_tokenizer.get("use_regex", True), True),
        "normalizer": (content.get("normalizer"), None),
        "model.dropout": (model.get("dropout") or None, None),
        "model.ignore_merges": (model.get("ignore_merges", False), False),
        "model.byte_fallback": (model.get("byte_fallback", False), False),
        "model.continuing_subword_prefix": (model.get("continuing_subword_prefix") or "", ""),
        "model.end_of_word_suffix": (model.get("end_of_word_suffix") or "", ""),
    }
    for key, (found, expected) in settings.items():
        if found != expected:
            raise InputError(
                f"{path}: {key} is {found!r}, where GPT-2's byte-level BPE has {expected!r}: "
                "tokenise the data with that tokenizer's own program and give --data the .bin"
            )
    merges = []
    for number, merge in enumerate(_list(model.get("merges"), "model.merges", path)):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(f"{path}: model.merges[{number}] is {merge!r}: expected two tokens")
        merges.append((f"model.merges[{number}]", str(pair[0]), str(pair[1])))
    added = {}
    for number, token in enumerate(_list(content.get("added_tokens", []), "added_tokens", path)):
        if not isinstance(token, dict) or not {"content", "id"} <= token.keys():
            raise InputError(f"{path}: added_tokens[{number}] has no content or no id")
        added[str(token["content"])] = _id(token["id"], f"{path}: added_tokens[{number}].id")
    return _assembled(path, _section(model, "vocab", path), merges, added, end)


def _read_vocabulary_and_merges(folder: Path, config: dict[str, object], end: str) -> _Parts:
    path = folder / "merges.txt"
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}: copy the file again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    merges = []
    for number, line in enumerate(lines, 1):
        if line == "" or (number == 1 and line.startswith("#version")):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not left or not right or " " in right:
            raise InputError(f"{path}: line {number} is {line!r}: expected two tokens")
        merges.append((f"line {number}", left, right))
    place = folder / "added_tokens.json"
    added = {
        name: _id(token_id, f"{place}: {name!r}")
        for name, token_id in _read_optional(place).items()
    }
    decoder = config.get("added_tokens_decoder")
    for token_id, token in decoder.items() if isinstance(decoder, dict) else ():
        if isinstance(token, dict) and str(token_id).isdecimal() and "content" in token:
            added[str(token["content"])] = int(token_id)
    return _assembled(path, _read_json(folder / "vocab.json"), merges, added, end)


def _assembled(
    path: Path,
    names: dict[str, object],
    named_merges: list[tuple[str, str, str]],
    added: dict[str, int],
    end: str,
) -> _Parts:
    """The parts of a tokenizer, from the names in its files; `path` holds the merges."""
    ids = {name: _id(value, f"{path.parent}: the id of {name!r}") for name, value in names.items()}
    if end in ids:
        added = added | {end: ids[end]}
    needed = set(_CHARACTERS)
    for place, left, right in named_merges:
        for name in (left, right, left + right):
            if name not in ids:
                raise InputError(
                    f"{path}: {place} merges {left!r} and {right!r}, but {name!r} is not in the "
                    "vocabulary: the files belong to different tokenizers; copy both again"
                )
        needed.add(left + right)
    vocabulary: dict[bytes, int] = {}
    for name, token_id in ids.items():
        if name in needed or name not in added:
            try:
                vocabulary[bytes(_BYTES[character] for character in name)] = token_id
            except KeyError as error:
                raise InputError(
                    f"{path.parent}: token {name!r} holds {error.args[0]!r}, which stands for no "
                    "byte: not a byte-level vocabulary; give --data a .bin of tokens instead"
                ) from error
    for byte, character in enumerate(_CHARACTERS):
        if bytes([byte]) not in vocabulary:
            raise InputError(
                f"{path.parent}: the vocabulary has no token {character!r} for byte {byte}: not a "
                "byte-level vocabulary; give --data a .bin of tokens instead"
            )
    name_of: dict[int, str] = {}
    for name, token_id in (ids | added).items():
        if token_id in name_of:
            raise InputError(
                f"{path.parent}: {name_of[token_id]!r} and {name!r} have the same id {token_id}: "
                "the files belong to different tokenizers; copy them again"
            )
        name_of[token_id] = name
    merges = tuple(
        (bytes(_BYTES[c] for c in left), bytes(_BYTES[c] for c in right))
        for _, left, right in named_merges
    )
    return vocabulary, merges, added, added.get(end)


def _end_name(settings: dict[str, object]) -> str | None:
    token = settings.get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _id(value: object, place: str) -> int:
    if not isinstance(value, int) or not 0 <= value <= _HIGHEST_ID:
        raise InputError(f"{place} is {value!r}: expected an integer from 0 to {_HIGHEST_ID}")
    return value


def _list(value: object, key: str, path: Path) -> list[object]:
    if not isinstance(value, list):
        raise InputError(f"{path}: {key} is {type(value).__name__}: expected a list")
    return value


def _section(content: dict[str, object], key: str, path: Path) -> dict[str, object]:
    value = content.get(key)
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: {key} is {value!r}: expected an object, as in GPT-2's tokenizer.json"
        )
    return value


def _read_optional(path: Path) -> dict[str, object]:
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, object]:
    try:
        content: object = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not JSON at line {error.lineno}, column {error.colno}: {error.msg}: "
            "copy the file again"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}: copy the file again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}: expected a JSON object")
    return content


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
