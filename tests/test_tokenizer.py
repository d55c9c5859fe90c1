import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aieflow.gpt2 import tokenizer as module
from aieflow.gpt2.corpus import default_documents, default_text
from aieflow.gpt2.tokenizer import Pair, Tokenizer, merges_of, reachable_merges
from aieflow.ops.errors import InputError
from aieflow.tools.make_vocabulary import train_merges

EMBEDDED = Tokenizer.embedded()
AWKWARD = " \n\t\r\x1c\x85\xa0\u3000aZ'sdmtlrev09½é漢字🙂!?.,-_\u0301\u200d\x00\x7f²Ⅷ"


def test_embedded_vocabulary_has_1024_tokens_and_the_end_of_text_last() -> None:
    assert EMBEDDED.vocab_size == 1024
    assert len(EMBEDDED.merges) == 767
    assert EMBEDDED.end_of_text == 1023
    assert EMBEDDED.dtype == np.uint16
    assert EMBEDDED.decode([1023]) == "<|endoftext|>"


def test_built_in_text_round_trips_at_more_than_two_and_a_half_characters_a_token() -> None:
    text = default_text()
    ids = EMBEDDED.encode(text)
    assert EMBEDDED.decode(ids) == text
    assert ids.max() < 1023
    assert 400_000 < len(text) < 1_000_000
    assert len(text) / len(ids) > 2.5


def test_built_in_text_is_the_topics_in_the_order_of_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert sorted(default_documents()) == sorted(topics.values())
    fake = ModuleType("fake_topics")
    fake.__dict__["topics"] = {"b": "two\n", "a": "one\n"}
    monkeypatch.setitem(sys.modules, "fake_topics", fake)
    monkeypatch.setattr("aieflow.gpt2.corpus.TOPICS_MODULE", "fake_topics")
    assert default_documents() == ("one\n", "two\n")
    assert default_text() == "one\n\ntwo\n"


def test_a_python_without_its_help_texts_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aieflow.gpt2.corpus.TOPICS_MODULE", "pydoc_data.absent")
    with pytest.raises(InputError, match=r"pydoc_data\.absent.*or give a text with --data"):
        default_documents()


@settings(max_examples=50)
@given(st.text())
def test_every_text_round_trips(text: str) -> None:
    assert EMBEDDED.decode(EMBEDDED.encode(text)) == text


def test_the_name_of_the_end_of_text_is_ordinary_text() -> None:
    ids = EMBEDDED.encode("a<|endoftext|>b")
    assert 1023 not in ids
    assert EMBEDDED.decode(ids) == "a<|endoftext|>b"


def test_lone_surrogates_and_unknown_ids_become_the_replacement_character() -> None:
    assert EMBEDDED.decode(EMBEDDED.encode("a\udc80b")) == "a\ufffdb"
    assert EMBEDDED.decode([ord("a"), 5000, ord("b")]) == "a\ufffdb"
    assert EMBEDDED.decode([0xC3]) == "\ufffd"
    assert EMBEDDED.decode([]) == ""
    assert EMBEDDED.encode("").shape == (0,)


def whole(text: str) -> list[int]:
    """The ids by one call of tiktoken over the whole text."""
    ranks = EMBEDDED._encoding.encode_ordinary(text)
    return [int(EMBEDDED._id_of_rank[rank]) for rank in ranks]


@settings(max_examples=200)
@given(st.text(st.sampled_from(AWKWARD)) | st.text(st.sampled_from(" \na's")), st.data())
def test_ids_do_not_depend_on_where_the_text_is_cut(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=3)))
    blocks = [text[a:b] for a, b in pairwise([0, *cuts, len(text)])]
    assert ids_of_blocks(blocks, data.draw(st.integers(1, 9))) == whole(text)


def ids_of_blocks(blocks: list[str], tail: int) -> list[int]:
    """The ids of a text in blocks, where a place to cut is sought in the last `tail` characters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TAIL_CHARACTERS", tail)
        return [i for part in EMBEDDED.encode_blocks(iter(blocks)) for i in part.tolist()]


@pytest.mark.parametrize("tail", range(1, 9))
def test_a_run_of_whitespace_is_not_cut(tail: int) -> None:
    assert ids_of_blocks(["x    y", "z"], tail) == whole("x    yz")


def test_blocks_are_cut_where_they_may_be_and_not_only_at_the_end() -> None:
    parts = list(EMBEDDED.encode_blocks(iter(["one two", "x three", " four", "y five"])))
    expected = ["one", " twox", " three foury", " five"]
    assert [EMBEDDED.decode(part) for part in parts] == expected


@pytest.mark.parametrize("after", ["", "x", "\x1cx", "\nx", "\u3000x"])
def test_long_runs_of_whitespace_give_the_ids_of_one_call(after: str) -> None:
    for run in (" " * 1500, "\n" * 1001, "\u3000" * 1200 + " ", " \t" * 700):
        text = "word" + run + after
        assert EMBEDDED.encode(text).tolist() == whole(text)


def test_a_million_spaces_before_a_word_do_not_overflow_the_matcher() -> None:
    text = " " * 1_100_000 + "x"
    ids = EMBEDDED.encode(text)
    assert EMBEDDED.decode(ids) == text


def test_a_block_boundary_in_the_middle_of_the_default_block_size_leaves_no_trace() -> None:
    text = "word  'll 12 \n\n" * 35_000  # longer than one block
    assert EMBEDDED.encode(text).tolist() == whole(text)


# Merges, with the ids that Hugging Face's own engine (tokenizers 0.23) gives.


def tokenizer_of(merges: list[Pair], first_id: int = 256) -> Tokenizer:
    vocabulary = {bytes([byte]): byte for byte in range(256)}
    for left, right in merges:
        vocabulary.setdefault(left + right, first_id + len(vocabulary) - 256)
    return Tokenizer(vocabulary, tuple(merges), {}, None)


def test_a_merge_that_bpe_cannot_reach_is_never_applied() -> None:
    """'abc' is always ab+c, so the merge a+bc is idle, and tiktoken must not join ab+c."""
    merges = [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc")]
    assert reachable_merges(merges) == ((b"a", b"b"), (b"b", b"c"))
    assert tokenizer_of(merges).encode("abc").tolist() == [256, ord("c")]


def test_of_two_merges_with_one_join_the_one_that_bpe_reaches_sets_the_rank() -> None:
    merges = [(b"a", b"bc"), (b"b", b"c"), (b"a", b"b"), (b"ab", b"c")]
    assert reachable_merges(merges) == ((b"a", b"bc"), (b"b", b"c"), (b"a", b"b"))
    assert tokenizer_of(merges).encode("abc").tolist() == [256]


def test_merges_follow_from_ranks() -> None:
    merges = train_merges(("a banana bandana is a banana",), 12)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for left, right in merges:
        ranks[left + right] = len(ranks)
    assert merges_of(ranks) == tuple(merges)
    with pytest.raises(ValueError, match=r"token b'xyz' of rank 400 has no merge"):
        merges_of(ranks | {b"xyz": 400})


def test_the_trainer_merges_the_most_frequent_pair_and_of_equals_the_first_in_order() -> None:
    # pieces: "ab" 1x, " ab" 2x, " cd" 3x
    merges = train_merges(("ab ab ab cd cd cd",), 4)
    assert merges == [(b" ", b"c"), (b" c", b"d"), (b"a", b"b"), (b" ", b"ab")]


# Folders.


def write_gpt2_folder(folder: Path) -> Path:
    """A Hugging Face folder in GPT-2's own order of bytes, its ids shuffled."""
    folder.mkdir(exist_ok=True)
    merges = ["a b", "Ġ ab", "ab c", "Ċ Ċ"]
    characters = list(module._CHARACTERS)
    printable = sorted(characters, key=lambda c: (ord(c) >= 256, ord(c)))
    names = [*printable, *(merge.replace(" ", "") for merge in merges)]
    order = np.random.default_rng(0).permutation(len(names)).tolist()
    vocabulary = {name: order[i] for i, name in enumerate(names)} | {"<|endoftext|>": len(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8", newline="\n"
    )
    return folder


def test_ids_are_the_folders_own(tmp_path: Path) -> None:
    folder = write_gpt2_folder(tmp_path)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_folder(folder)
    expected = ["ab", "Ġab", "abc"]
    # "ab ababc" splits into "ab" and " ababc": Ġ a b a b c -> Ġab abc
    assert tokenizer.encode("ab ababc").tolist() == [vocabulary[name] for name in expected]
    assert tokenizer.encode("\n\n").tolist() == [vocabulary["ĊĊ"]]
    assert tokenizer.end_of_text == vocabulary["<|endoftext|>"] == 260
    assert tokenizer.vocab_size == 261
    text = AWKWARD + "abc"
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("without", ["", "tokenizer.json", "vocab.json merges.txt"])
def test_a_saved_folder_gives_an_equal_tokenizer(tmp_path: Path, without: str) -> None:
    for tokenizer in (EMBEDDED, Tokenizer.from_folder(write_gpt2_folder(tmp_path / "a"))):
        folder = tmp_path / "saved"
        folder.mkdir(exist_ok=True)
        tokenizer.save(folder)
        for name in without.split():
            (folder / name).unlink()
        loaded = Tokenizer.from_folder(folder)
        assert loaded == tokenizer
        assert loaded.fingerprint == tokenizer.fingerprint
        assert loaded.encode("ab while\n").tolist() == tokenizer.encode("ab while\n").tolist()


def test_fingerprints_tell_tokenizers_apart(tmp_path: Path) -> None:
    other = Tokenizer.from_folder(write_gpt2_folder(tmp_path))
    unended = Tokenizer(EMBEDDED.vocabulary, EMBEDDED.merges, {}, None)
    fewer = Tokenizer(EMBEDDED.vocabulary, EMBEDDED.merges[:-1], {}, None)
    assert len({t.fingerprint for t in (EMBEDDED, other, unended, fewer)}) == 4


def test_a_saved_folder_names_its_end_of_text_even_where_its_id_is_0(tmp_path: Path) -> None:
    vocabulary = {bytes([byte]): byte + 1 for byte in range(256)}
    Tokenizer(vocabulary, (), {"<end>": 0}, 0).save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["eos_token"] == "<end>"
    assert Tokenizer.from_folder(tmp_path).end_of_text == 0


def test_added_tokens_are_decoded_and_never_encoded(tmp_path: Path) -> None:
    folder = write_gpt2_folder(tmp_path)
    (folder / "added_tokens.json").write_text('{"<|user|>": 300}')
    (folder / "tokenizer_config.json").write_text(
        '{"eos_token": {"content": "<|end|>"}, '
        '"added_tokens_decoder": {"301": {"content": "<|end|>"}}}'
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.end_of_text == 301
    assert tokenizer.vocab_size == 302
    assert tokenizer.decode([300, 301]) == "<|user|><|end|>"
    assert max(tokenizer.encode("<|user|>")) < 300


def test_an_ordinary_token_that_is_listed_as_added_stays_ordinary(tmp_path: Path) -> None:
    folder = write_gpt2_folder(tmp_path)
    ids = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "added_tokens.json").write_text(json.dumps({"!": ids["!"], "ab": ids["ab"]}))
    assert Tokenizer.from_folder(folder).encode("!ab").tolist() == [ids["!"], ids["ab"]]


def test_more_than_65536_ids_need_uint32(tmp_path: Path) -> None:
    folder = write_gpt2_folder(tmp_path)
    (folder / "added_tokens.json").write_text('{"<|far|>": 65536}')
    assert Tokenizer.from_folder(folder).dtype == np.uint32
    assert Tokenizer.from_folder(folder).encode("ab").dtype == np.uint32


# Mistakes.


def message(folder: Path) -> str:
    with pytest.raises(InputError) as raised:
        Tokenizer.from_folder(folder)
    return str(raised.value)


def test_a_folder_without_a_tokenizer_says_which_files_are_missing(tmp_path: Path) -> None:
    assert "no tokenizer.json, and vocab.json and merges.txt are missing" in message(tmp_path)
    (write_gpt2_folder(tmp_path) / "merges.txt").unlink()
    assert "no tokenizer.json, and merges.txt is missing: copy" in message(tmp_path)
    assert str(tmp_path) in message(tmp_path)


def test_unreadable_json_says_where(tmp_path: Path) -> None:
    folder = write_gpt2_folder(tmp_path)
    (folder / "vocab.json").write_text('{"a": 1,\n "b" 2}')
    assert "vocab.json: not JSON at line 2, column 6: Expecting ':'" in message(folder)
    (folder / "vocab.json").write_bytes(b'{"\xff": 1}')
    assert "vocab.json: not UTF-8 at byte 2" in message(folder)
    (folder / "vocab.json").write_text("[]")
    assert "vocab.json: holds list: expected a JSON object" in message(folder)


def test_merges_that_name_unknown_tokens_say_line_and_token(tmp_path: Path) -> None:
    folder = write_gpt2_folder(tmp_path)
    with (folder / "merges.txt").open("a") as file:
        file.write("q q\n")
    assert "merges.txt: line 6 merges 'q' and 'q', but 'qq' is not in the vocab" in message(folder)
    (folder / "merges.txt").write_text("#version: 0.2\na b c\n")
    assert "merges.txt: line 2 is 'a b c': expected two tokens" in message(folder)
    (folder / "merges.txt").write_bytes(b"#version: 0.2\na \xff\n")
    assert "merges.txt: not UTF-8 at byte 16" in message(folder)


def test_a_vocabulary_of_characters_is_not_byte_level(tmp_path: Path) -> None:
    folder = write_gpt2_folder(tmp_path)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"▁the": 999}))
    assert "token '▁the' holds '▁', which stands for no byte" in message(folder)
    del vocabulary["z"]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    assert "no token 'z' for byte 122: not a byte-level vocabulary" in message(folder)


def test_ids_must_be_integers_and_differ(tmp_path: Path) -> None:
    folder = write_gpt2_folder(tmp_path)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"z": "1"}))
    assert "the id of 'z' is '1': expected an integer from 0 to 2147483647" in message(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary | {"z": vocabulary["a"]}))
    assert f"'a' and 'z' have the same id {vocabulary['a']}" in message(folder)


def changed(*keys: str, to: object) -> Callable[[dict[str, object]], None]:
    def change(content: dict[str, object]) -> None:
        for key in keys[:-1]:
            inner = content[key]
            assert isinstance(inner, dict)
            content = inner
        content[keys[-1]] = to

    return change


def mistakes() -> Iterator[tuple[Callable[[dict[str, object]], None], str]]:
    yield changed("model", "type", to="Unigram"), "model.type is 'Unigram', where GPT-2's"
    yield changed("pre_tokenizer", "type", to="Metaspace"), "pre_tokenizer.type is 'Metaspace'"
    yield changed("pre_tokenizer", to=None), "pre_tokenizer is None: expected an object"
    yield changed("pre_tokenizer", "add_prefix_space", to=True), "add_prefix_space is True"
    yield changed("normalizer", to={"type": "NFC"}), "normalizer is {'type': 'NFC'}"
    yield changed("model", "ignore_merges", to=True), "model.ignore_merges is True"
    yield changed("model", "end_of_word_suffix", to="</w>"), "end_of_word_suffix is '</w>'"
    yield changed("model", "merges", to="ab"), "model.merges is str: expected a list"
    yield changed("model", "merges", to=["a b c"]), "model.merges[0] is 'a b c': expected two"
    yield changed("model", "merges", to=[["q", "zq"]]), "model.merges[0] merges 'q' and 'zq'"
    yield changed("added_tokens", to=[{"id": 1}]), "added_tokens[0] has no content or no id"
    yield changed("model", "vocab", to={}), "tokenizer.json: model.merges[0] merges"


@pytest.mark.parametrize(("change", "expected"), list(mistakes()))
def test_a_tokenizer_json_that_is_not_gpt2s_is_refused(
    tmp_path: Path, change: Callable[[dict[str, object]], None], expected: str
) -> None:
    EMBEDDED.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    assert expected in message(tmp_path)
    assert os.fspath(path) in message(tmp_path)


def test_merges_may_be_lists_of_two(tmp_path: Path) -> None:
    EMBEDDED.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["merges"] = [merge.split(" ") for merge in content["model"]["merges"]]
    path.write_text(json.dumps(content), encoding="utf-8")
    assert Tokenizer.from_folder(tmp_path) == EMBEDDED
