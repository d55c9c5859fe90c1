"""What `--data` takes: tokens, or text that is tokenised once.

Data are one row of token ids, memory-mapped: a `.bin` in place (nanoGPT's plain uint16, or llm.c's
with its header of 1024 bytes), or text, tokenised once into a plain `.bin` in a cache folder. A
folder of text means every regular file in it that is not hidden, by path, subfolders included but
not the folders of runs; empty files are passed over, and the end of text stands between the others.
The cache is named by a hash of the text's bytes and of the tokenizer, and its own hash lies beside
it, so that a truncated or foreign file is noticed and made again.

The last tenth of the tokens is for validation. Which of them a training step reads is decided in
`gpt2.sampler`.
"""

import codecs
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from aieflow.gpt2.corpus import default_documents
from aieflow.gpt2.run_folder import holds_run
from aieflow.gpt2.tokenizer import TokenArray, Tokenizer
from aieflow.ops.errors import InputError

Document = Path | bytes

LLMC_MAGIC = 20240520
LLMC_VERSION = 1
LLMC_HEADER_NBYTES = 1024  # 256 int32: magic, version, number of tokens, zeros

_CACHE_FORMAT = b"aieflow tokens 1"
_BLOCK_NBYTES = 1 << 20
_BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True)
class TokenData:
    """The tokens to train on and those to validate on, read-only and memory-mapped."""

    train: TokenArray
    validation: TokenArray | None  # None: too little data for a sequence in each part
    tokens: int  # in both parts
    characters: int | None  # of the text; None for a `.bin`
    identity: str  # a hash of what was read: tells a resumed run that its data have changed


def load_tokens(
    source: Path | None,
    tokenizer: Tokenizer | None,
    cache: Path,
    vocab_size: int,
    seq_len: int,
    validation_fraction: float = 0.1,
) -> TokenData:
    """The tokens of `source`: a `.bin`, a text file, a folder of them; None is the built-in text.

    Text needs a tokenizer and is cached under the folder `cache`, which is made if need be; a
    `.bin` needs neither. Raises InputError for a source that is missing, empty, not UTF-8, no
    valid `.bin`, shorter than `seq_len + 1` tokens, or that holds ids beyond `vocab_size`.
    """
    name = "the built-in text" if source is None else str(source)
    characters: int | None = None
    if source is not None:
        _size(source)
    if source is not None and source.suffix.lower() == ".bin" and not source.is_dir():
        tokens = open_bin(source)
        identity = _checked_ids(tokens, vocab_size, source)
    else:
        if tokenizer is None:
            raise InputError(
                f"{name} is text, but there is no tokenizer for it: copy tokenizer.json, or "
                "vocab.json and merges.txt, into the folder of --init, or give --data a .bin"
            )
        if tokenizer.vocab_size > vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, but the model's vocabulary "
                f"holds {vocab_size}: set --vocab-size {tokenizer.vocab_size} or more"
            )
        documents = _documents(source, cache)
        identity = _content_hash(documents)
        tokens, characters = _tokenised(documents, identity, tokenizer, cache)
    train, validation = _split(tokens, seq_len, validation_fraction, name)
    return TokenData(train, validation, len(tokens), characters, identity)


def open_bin(path: Path) -> TokenArray:
    """The uint16 tokens of a `.bin`, memory-mapped: nanoGPT's form, or llm.c's by its magic."""
    nbytes = _size(path)
    if nbytes == 0:
        raise InputError(f"{path}: empty: expected uint16 tokens")
    with path.open("rb") as file:
        header = np.frombuffer(file.read(12).ljust(12, b"\0"), "<i4")
    if header[0] != LLMC_MAGIC:
        if nbytes % 2:
            raise InputError(
                f"{path}: {nbytes} bytes, an odd number: not uint16 tokens, or cut short; "
                "write the file again, or rename a text so that it does not end in .bin"
            )
        return _mapped(path, np.dtype("<u2"), 0, nbytes // 2)
    if header[1] != LLMC_VERSION:
        raise InputError(
            f"{path}: llm.c header of version {header[1]}: expected version {LLMC_VERSION}, "
            "uint16 tokens; write the file again with llm.c's scripts for GPT-2"
        )
    expected = LLMC_HEADER_NBYTES + 2 * int(header[2])
    if nbytes != expected or header[2] < 0:
        raise InputError(
            f"{path}: {nbytes} bytes, but its header promises {header[2]} tokens, that is "
            f"{expected} bytes: the file was cut short or joined; copy it again"
        )
    return _mapped(path, np.dtype("<u2"), LLMC_HEADER_NBYTES, int(header[2]))


def _mapped(
    path: Path, dtype: np.dtype[np.uint16 | np.uint32], offset: int, count: int
) -> TokenArray:
    if count == 0:  # no empty file can be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r", offset, (count,))


def _checked_ids(tokens: TokenArray, vocab_size: int, path: Path) -> str:
    """A hash of the tokens, all of which are below `vocab_size`; InputError otherwise."""
    digest = hashlib.sha256()
    for start in range(0, len(tokens), _BLOCK_TOKENS):
        block = tokens[start : start + _BLOCK_TOKENS]
        digest.update(block.data)
        if int(block.max()) >= vocab_size:
            index = int(np.argmax(block >= vocab_size))
            raise InputError(
                f"{path}: token id {block[index]} at index {start + index}, but the vocabulary "
                f"holds {vocab_size} tokens (ids 0 to {vocab_size - 1}): set --vocab-size "
                f"{int(block.max()) + 1} or more, or tokenise the data with the model's vocabulary"
            )
    return digest.hexdigest()


def _documents(source: Path | None, cache: Path) -> Sequence[Document]:
    """What is read, in order: the built-in topics, the one file, or a folder's files."""
    if source is None:
        return [text.encode() for text in default_documents()]
    if source.is_file():
        if _size(source) == 0:
            raise InputError(f"{source}: the file is empty: give --data a text to train on")
        return [source]
    if not source.is_dir():
        raise InputError(f"{source}: neither a regular file nor a folder: copy it into a file")
    files: list[Path] = []
    for folder, subfolders, names in os.walk(source, onerror=_refuse):
        here = Path(folder)
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and (here / name).resolve() != cache.resolve()
            and not holds_run(here / name)
        ]
        files += [here / name for name in names if not name.startswith(".")]
    usable = [path for path in files if path.is_file() and _size(path) > 0]
    if not usable:
        raise InputError(
            f"{source}: none of the {len(files)} files in this folder that are not hidden holds "
            "text: give --data a text file or a folder of them"
        )
    usable.sort(key=lambda path: path.relative_to(source).parts)
    return usable


def _content_hash(documents: Sequence[Document]) -> str:
    whole = hashlib.sha256()
    for document in documents:
        one = hashlib.sha256()
        for block in _blocks(document):
            one.update(block)
        whole.update(one.digest())
    return whole.hexdigest()


def _tokenised(
    documents: Sequence[Document], identity: str, tokenizer: Tokenizer, cache: Path
) -> tuple[TokenArray, int]:
    """Tokens and number of characters of the documents: from the cache, or into it."""
    key = hashlib.sha256(_CACHE_FORMAT + f"{identity} {tokenizer.fingerprint}".encode())
    path = cache / f"tokens-{key.hexdigest()[:16]}.bin"
    dtype = tokenizer.dtype.newbyteorder("<")
    if (counts := _cached_counts(path)) is None:
        counts = _write_cache(path, documents, tokenizer, dtype)
    return _mapped(path, dtype, 0, counts[0] // dtype.itemsize), counts[1]


def _cached_counts(path: Path) -> tuple[int, int] | None:
    """Bytes and characters of a cache that is whole, as its record says; None for any other."""
    try:
        record: object = json.loads(path.with_suffix(".json").read_bytes())
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("characters"), int):
        return None
    if record.get("sha256") != sha256:
        return None
    return _size(path), int(record["characters"])


def _write_cache(
    path: Path,
    documents: Sequence[Document],
    tokenizer: Tokenizer,
    dtype: np.dtype[np.uint16 | np.uint32],
) -> tuple[int, int]:
    """Tokenise into `path` and its record, each under another name until it is on the disk."""
    digest, nbytes, characters = hashlib.sha256(), 0, 0
    separator = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]

    def counted(blocks: Iterator[str]) -> Iterator[str]:
        nonlocal characters
        for block in blocks:
            characters += len(block)
            yield block

    def contents() -> Iterator[bytes]:
        for number, document in enumerate(documents):
            if number:
                yield np.array(separator, dtype).tobytes()
            for ids in tokenizer.encode_blocks(counted(_decoded(document))):
                yield ids.astype(dtype, copy=False).tobytes()

    def hashed() -> Iterator[bytes]:
        nonlocal nbytes
        for content in contents():
            digest.update(content)
            nbytes += len(content)
            yield content

    _write_whole(path, hashed())
    record = {"sha256": digest.hexdigest(), "characters": characters}
    _write_whole(path.with_suffix(".json"), iter([json.dumps(record).encode()]))
    return nbytes, characters


def _write_whole(path: Path, contents: Iterator[bytes]) -> None:
    """Write `path` so that it holds all of the contents or does not change.

    Runs that begin at once may write the same cache, so each process has a name of its own.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.writelines(contents)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: the cache of tokens cannot be written: {error.strerror}: make room or "
            "choose another folder with --out"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _decoded(document: Document) -> Iterator[str]:
    """The text of a document in blocks, without a byte order mark; InputError if not UTF-8."""
    offset, pending = 0, b""
    for block in _blocks(document):
        data = pending + block
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            raise _not_utf8(document, offset + error.start, data[error.start]) from error
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset, pending = offset + used, data[used:]
    if pending:
        raise _not_utf8(document, offset, pending[0])


def _not_utf8(document: Document, offset: int, byte: int) -> InputError:
    return InputError(
        f"{_name(document)}: not UTF-8: byte 0x{byte:02x} at offset {offset}: convert the file, "
        "for instance with `iconv -f LATIN1 -t UTF-8`, or leave it out (a name that begins with "
        "a dot is passed over)"
    )


def _blocks(document: Document) -> Iterator[bytes]:
    if isinstance(document, bytes):
        yield document
        return
    try:
        with document.open("rb") as file:
            while block := file.read(_BLOCK_NBYTES):
                yield block
    except OSError as error:
        _refuse(error)


def _name(document: Document) -> str:
    return str(document) if isinstance(document, Path) else "the built-in text"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        raise InputError(
            f"{error.filename}: no such file or folder: give --data a text file, a folder of text "
            "files or a .bin of tokens"
        ) from error
    raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _split(
    tokens: TokenArray, seq_len: int, validation_fraction: float, name: str
) -> tuple[TokenArray, TokenArray | None]:
    """The first tokens to train on, the last to validate on; each holds a sequence at least.

    Without enough tokens for a sequence in each part, and with a fraction of 0, all are to train
    on. Raises InputError if they are not enough for one sequence.
    """
    count, needed = len(tokens), seq_len + 1
    if not 0 <= validation_fraction < 1:
        raise InputError(
            f"a validation fraction of {validation_fraction}: must be at least 0 and below 1"
        )
    if count < needed:
        smaller = f", or set --seq-len {count - 1} or less" if count > 1 else ""
        raise InputError(
            f"{name}: {count} tokens, but one sequence takes {needed} (--seq-len {seq_len} and "
            f"the token after it): give more data{smaller}"
        )
    if validation_fraction == 0 or count < 2 * needed:
        return tokens, None
    held_out = min(max(int(count * validation_fraction), needed), count - needed)
    return tokens[: count - held_out], tokens[count - held_out :]
