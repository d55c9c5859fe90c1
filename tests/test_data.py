import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from aieflow.gpt2 import data
from aieflow.gpt2.corpus import default_documents
from aieflow.gpt2.data import (
    TokenData,
    load_tokens,
    open_bin,
)
from aieflow.gpt2.tokenizer import Tokenizer
from aieflow.ops.errors import InputError

TOKENIZER = Tokenizer.embedded()
TEXT = "The quick brown fox jumps over the lazy dog.\n" * 40


def load(source: Path | None, cache: Path, seq_len: int = 8) -> TokenData:
    return load_tokens(source, TOKENIZER, cache / "cache", 1024, seq_len)


def all_tokens(data: TokenData) -> list[int]:
    validation = [] if data.validation is None else data.validation.tolist()
    return [*data.train.tolist(), *validation]


def mistake(source: Path, cache: Path, vocab_size: int = 1024, seq_len: int = 8) -> str:
    with pytest.raises(InputError) as raised:
        load_tokens(source, TOKENIZER, cache / "cache", vocab_size, seq_len)
    return str(raised.value)


# Text.


def test_a_text_file_gives_its_tokens_and_nothing_more(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    data = load(tmp_path / "a.txt", tmp_path)
    expected = TOKENIZER.encode(TEXT).tolist()
    assert all_tokens(data) == expected
    assert data.tokens == len(expected)
    assert data.characters == len(TEXT)
    assert data.train.dtype == np.uint16
    assert isinstance(data.train, np.memmap)


def test_a_folder_gives_its_files_in_order_with_the_end_of_text_between(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "b" / "inner.py").write_text("two " * 20)
    (folder / "b.txt").write_text("three " * 20)
    (folder / "a.md").write_text("one " * 20)
    (folder / "empty.txt").write_text("")
    (folder / ".hidden").write_bytes(b"\xff")
    (folder / ".git" / "objects").write_bytes(b"\xff")
    data = load_tokens(folder, TOKENIZER, folder / "cache", 1024, 8)
    texts = ["one " * 20, "two " * 20, "three " * 20]
    encoded = [TOKENIZER.encode(text).tolist() for text in texts]
    assert all_tokens(data) == [*encoded[0], 1023, *encoded[1], 1023, *encoded[2]]
    assert data.characters == sum(map(len, texts))
    # the cache lies in the folder now, and is no text
    assert load_tokens(folder, TOKENIZER, folder / "cache", 1024, 8).identity == data.identity


def test_the_built_in_text_needs_no_file(tmp_path: Path) -> None:
    data = load(None, tmp_path, seq_len=128)
    documents = default_documents()
    assert data.characters == sum(map(len, documents))
    assert (
        np.count_nonzero(data.train == 1023)
        + np.count_nonzero([] if data.validation is None else data.validation == 1023)
        == len(documents) - 1
    )
    assert data.train[:5].tolist() == TOKENIZER.encode(documents[0])[:5].tolist()
    assert data.validation is not None
    assert len(data.validation) == data.tokens // 10


def test_text_that_spans_blocks_of_the_file_is_read_whole(tmp_path: Path) -> None:
    text = "é word\n" * 140_000  # longer than one block; characters straddle the boundary
    (tmp_path / "a.txt").write_text("x" + text, encoding="utf-8")
    data = load(tmp_path / "a.txt", tmp_path)
    assert np.array_equal(all_tokens(data), TOKENIZER.encode("x" + text))
    assert data.characters == len(text) + 1


def test_a_byte_order_mark_is_dropped_and_line_ends_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"one\r\ntwo\r" * 10)
    ids = all_tokens(load(tmp_path / "a.txt", tmp_path))
    assert ids == TOKENIZER.encode("one\r\ntwo\r" * 10).tolist()


# The cache.


def cached(folder: Path) -> tuple[Path, Path]:
    """The one cache in `folder` and its record."""
    (tokens,) = (folder / "cache").glob("*.bin")
    (record,) = (folder / "cache").glob("*.json")
    assert len(list((folder / "cache").iterdir())) == 2
    return tokens, record


def test_the_cache_is_plain_tokens_and_is_used_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    first = load(tmp_path / "a.txt", tmp_path)
    tokens, _ = cached(tmp_path)
    assert np.fromfile(tokens, "<u2").tolist() == all_tokens(first)
    written = tokens.stat().st_mtime_ns
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")  # the content counts, not the name
    second = load(tmp_path / "b.txt", tmp_path)
    assert cached(tmp_path)[0].stat().st_mtime_ns == written
    assert second.characters == first.characters
    assert all_tokens(second) == all_tokens(first)
    assert second.identity == first.identity


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("bin", b"\1\0" * 5),  # truncated, or of another program
        ("bin", b""),
        ("bin", None),
        ("json", None),
        ("json", b"{"),
        ("json", b"[]"),
        ("json", b"{}"),
        ("json", b'{"characters": 1, "sha256": 2}'),
    ],
)
def test_a_spoiled_cache_is_made_again(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    expected = all_tokens(load(tmp_path / "a.txt", tmp_path))
    before = [path.read_bytes() for path in cached(tmp_path)]
    path = cached(tmp_path)[0].with_suffix("." + suffix)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    data = load(tmp_path / "a.txt", tmp_path)
    assert all_tokens(data) == expected
    assert data.characters == len(TEXT)
    assert [path.read_bytes() for path in cached(tmp_path)] == before


def test_a_cache_with_one_other_bit_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    expected = all_tokens(load(tmp_path / "a.txt", tmp_path))
    path, _ = cached(tmp_path)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert all_tokens(load(tmp_path / "a.txt", tmp_path)) == expected


def test_two_processes_may_write_the_same_cache_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    decoded = data._decoded
    others: list[TokenData] = []

    def with_another_run_between(document: data.Document) -> Iterator[str]:
        with monkeypatch.context() as other_process:
            other_process.setattr(data, "_decoded", decoded)
            other_process.setattr(os, "getpid", lambda: 0)
            others.append(load(tmp_path / "a.txt", tmp_path))
        yield from decoded(document)

    monkeypatch.setattr(data, "_decoded", with_another_run_between)
    ours = load(tmp_path / "a.txt", tmp_path)
    assert [all_tokens(ours)] == [all_tokens(other) for other in others]
    assert all_tokens(ours) == TOKENIZER.encode(TEXT).tolist()
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".bin", ".json"}


def test_other_text_and_other_tokenizers_have_other_caches(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    first = load(tmp_path / "a.txt", tmp_path)
    (tmp_path / "a.txt").write_text(TEXT.replace("fox", "cat"))
    second = load(tmp_path / "a.txt", tmp_path)
    other = Tokenizer(TOKENIZER.vocabulary, TOKENIZER.merges[:100], {}, None)
    third = load_tokens(tmp_path / "a.txt", other, tmp_path / "cache", 1024, 8)
    assert first.identity != second.identity == third.identity
    assert len(list((tmp_path / "cache").glob("*.bin"))) == 3
    assert third.tokens > second.tokens


def test_files_that_join_to_the_same_bytes_are_other_data(tmp_path: Path) -> None:
    for name, parts in (("a", ["one two", " three"]), ("b", ["one", " two three"])):
        (tmp_path / name).mkdir()
        for number, part in enumerate(parts):
            (tmp_path / name / str(number)).write_text(part)
    identities = {load(tmp_path / name, tmp_path, 2).identity for name in "ab"}
    assert len(identities) == 2


def test_nothing_of_a_failed_tokenisation_stays(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(TEXT.encode() + b"\xff")
    mistake(tmp_path / "a.txt", tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_tokenizer_of_many_ids_gives_uint32(tmp_path: Path) -> None:
    wide = Tokenizer(TOKENIZER.vocabulary, TOKENIZER.merges, {"<|far|>": 70_000}, 70_000)
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / name).write_text(TEXT)
    data = load_tokens(tmp_path / "texts", wide, tmp_path / "cache", 70_001, 8)
    assert data.train.dtype == np.uint32
    once = TOKENIZER.encode(TEXT).tolist()
    assert all_tokens(data) == [*once, 70_000, *once]


# `.bin` files.


def write_bin(path: Path, ids: npt.ArrayLike) -> Path:
    np.asarray(ids, "<u2").tofile(path)
    return path


def write_llmc(path: Path, ids: npt.ArrayLike, magic: int = 20240520, version: int = 1) -> Path:
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, np.size(ids)
    path.write_bytes(header.tobytes() + np.asarray(ids, "<u2").tobytes())
    return path


def test_both_forms_of_bin_give_their_tokens_in_place_without_a_tokenizer(tmp_path: Path) -> None:
    assert open_bin(write_bin(tmp_path / "short.bin", [5])).tolist() == [5]
    ids = np.arange(100) * 7 % 1000
    for path in (write_bin(tmp_path / "a.bin", ids), write_llmc(tmp_path / "b.BIN", ids)):
        data = load_tokens(path, None, tmp_path / "cache", 1000, 8)
        assert all_tokens(data) == ids.tolist()
        assert data.characters is None
        assert isinstance(data.train, np.memmap)
        assert not data.train.flags.writeable
        assert str(data.train.filename) == str(path)
    assert not (tmp_path / "cache").exists()


def test_an_id_beyond_the_vocabulary_is_named_with_its_index(tmp_path: Path) -> None:
    ids = np.zeros(100, np.int64)
    ids[[37, 50]] = 1000, 1200
    for path in (write_bin(tmp_path / "a.bin", ids), write_llmc(tmp_path / "b.bin", ids)):
        text = mistake(path, tmp_path, vocab_size=1000)
        assert f"{path}: token id 1000 at index 37, but the vocabulary holds 1000" in text
        assert "--vocab-size 1201 or more" in text


def test_an_id_beyond_the_vocabulary_is_found_in_a_later_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aieflow.gpt2.data._BLOCK_TOKENS", 16)
    ids = np.zeros(100, np.int64)
    ids[37] = 1000
    text = mistake(write_bin(tmp_path / "a.bin", ids), tmp_path, vocab_size=1000)
    assert "token id 1000 at index 37," in text


def test_a_bin_that_is_empty_or_of_odd_length_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"abc")
    assert "a.bin: 3 bytes, an odd number: not uint16" in mistake(tmp_path / "a.bin", tmp_path)
    (tmp_path / "a.bin").write_bytes(b"")
    assert "a.bin: empty: expected uint16 tokens" in mistake(tmp_path / "a.bin", tmp_path)


def test_an_llmc_header_must_fit_the_file(tmp_path: Path) -> None:
    path = write_llmc(tmp_path / "a.bin", [1] * 50, version=7)
    assert "llm.c header of version 7: expected version 1" in mistake(path, tmp_path)
    path = write_llmc(tmp_path / "a.bin", [1] * 50)
    os.truncate(path, path.stat().st_size - 10)
    text = mistake(path, tmp_path)
    assert "1114 bytes, but its header promises 50 tokens, that is 1124 bytes" in text
    os.truncate(path, 100)
    assert "100 bytes, but its header promises 50 tokens" in mistake(path, tmp_path)


# Mistakes with texts.


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    for name in ("absent.txt", "absent.bin"):
        text = mistake(tmp_path / name, tmp_path)
        assert f"{tmp_path / name}: no such file or folder: give --data a text file" in text
    (tmp_path / "a.txt").write_text("a")
    assert "no such file or folder" in mistake(tmp_path / "a.txt" / "b", tmp_path)


def test_a_source_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    assert "a.txt: the file is empty: give --data a text" in mistake(tmp_path / "a.txt", tmp_path)
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / ".hidden").write_text("a")
    (folder / "empty").write_text("")
    (folder / "broken").symlink_to("nowhere")
    assert f"{folder}: none of the 2 files in this folder that are not" in mistake(folder, tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "pipe: neither a regular file nor a folder" in mistake(tmp_path / "pipe", tmp_path)


@pytest.mark.parametrize(
    ("content", "byte", "offset"),
    [
        (b"abc\xff" + b"d" * 100, "0xff", 3),
        (b"abc\xc3", "0xc3", 3),
        (b"a" * (1 << 20) + b"\xe9t\xe9", "0xe9", 1 << 20),
        (b"a" * ((1 << 20) - 1) + b"\xc3\xa9" + b"\x80", "0x80", (1 << 20) + 1),
        ("text".encode("utf-16"), "0xff", 0),
    ],
)
def test_text_that_is_not_utf8_says_file_and_offset(
    tmp_path: Path, content: bytes, byte: str, offset: int
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    text = mistake(path, tmp_path)
    assert f"{path}: not UTF-8: byte {byte} at offset {offset}: convert the file" in text
    assert "iconv" in text


def test_text_without_a_tokenizer_or_beyond_the_vocabulary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    with pytest.raises(InputError, match=r"a\.txt is text, but there is no tokenizer.*\.bin"):
        load_tokens(tmp_path / "a.txt", None, tmp_path / "cache", 1024, 8)
    text = mistake(tmp_path / "a.txt", tmp_path, vocab_size=512)
    assert "tokenizer has 1024 tokens, but the model's vocabulary holds 512" in text
    assert "--vocab-size 1024 or more" in text


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "cache").write_text("in the way")
    text = mistake(tmp_path / "a.txt", tmp_path)
    assert "the cache of tokens cannot be written: File exists: make room or choose" in text


# The split.


def split(count: int, seq_len: int, fraction: float, folder: Path) -> tuple[int, int | None]:
    path = write_bin(folder / "a.bin", np.arange(count))
    data = load_tokens(path, None, folder, 1 << 16, seq_len, fraction)
    assert all_tokens(data) == list(range(count))
    return len(data.train), None if data.validation is None else len(data.validation)


@pytest.mark.parametrize(
    ("count", "seq_len", "fraction", "expected"),
    [
        (1000, 9, 0.1, (900, 100)),
        (1000, 9, 0.0, (1000, None)),
        (50, 9, 0.1, (40, 10)),  # a tenth would be too short for a sequence
        (20, 9, 0.1, (10, 10)),
        (19, 9, 0.1, (19, None)),  # enough for one part alone
        (10, 9, 0.1, (10, None)),
        (100, 9, 0.99, (10, 90)),
    ],
)
def test_the_last_tokens_are_for_validation(
    tmp_path: Path, count: int, seq_len: int, fraction: float, expected: tuple[int, int | None]
) -> None:
    assert split(count, seq_len, fraction, tmp_path) == expected


def test_data_shorter_than_a_sequence_say_how_many_are_needed(tmp_path: Path) -> None:
    text = mistake(write_bin(tmp_path / "a.bin", range(9)), tmp_path, seq_len=9)
    assert "a.bin: 9 tokens, but one sequence takes 10 (--seq-len 9 and" in text
    assert text.endswith("give more data, or set --seq-len 8 or less")
    text = mistake(write_bin(tmp_path / "a.bin", [1]), tmp_path, seq_len=9)
    assert text.endswith("give more data")


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_validation_fraction_outside_its_range_is_refused(
    tmp_path: Path, fraction: float
) -> None:
    with pytest.raises(InputError, match="must be at least 0 and below 1"):
        split(100, 9, fraction, tmp_path)
