"""Train the byte-level BPE vocabulary that aieflow ships, from the text that every Python has.

Run by developers: `python -m aieflow.tools.make_vocabulary gpt2/vocabulary.tiktoken`. Each line of
the result is a token in base64 and its rank: the 256 bytes in order, then the merges. The most
frequent pair is merged first; of equally frequent pairs the one whose bytes sort first, so that
the same text gives the same file.
"""

import argparse
import base64
from collections import Counter, defaultdict
from pathlib import Path

import regex  # type: ignore[import-untyped]  # tiktoken's own dependency, without stubs

from aieflow.gpt2.corpus import default_documents
from aieflow.gpt2.tokenizer import SPLIT_PATTERN, Pair

VOCAB_SIZE = 1024  # with `<|endoftext|>`, which needs no line in the file


def train_merges(documents: tuple[str, ...], count: int) -> list[Pair]:
    """The `count` merges that BPE learns from the documents, in order.

    Sennrich et al. 2016, over bytes as in Radford et al. 2019; pairs are recounted only in the
    words that the last merge changed.
    """
    words = Counter(
        piece.encode() for document in documents for piece in regex.findall(SPLIT_PATTERN, document)
    )
    parts = {word: [word[i : i + 1] for i in range(len(word))] for word in words}
    frequency: Counter[Pair] = Counter()
    words_with: defaultdict[Pair, set[bytes]] = defaultdict(set)

    def count_pairs(word: bytes, sign: int) -> None:
        for pair in zip(parts[word], parts[word][1:], strict=False):
            frequency[pair] += sign * words[word]
            words_with[pair].add(word)

    for word in words:
        count_pairs(word, +1)
    merges: list[Pair] = []
    while len(merges) < count:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        merges.append(best)
        for word in words_with.pop(best):
            count_pairs(word, -1)
            parts[word] = _merged(parts[word], best)
            count_pairs(word, +1)
        del frequency[best]
    return merges


def _merged(parts: list[bytes], pair: Pair) -> list[bytes]:
    """`parts` with every occurrence of `pair` joined, from the left."""
    joined: list[bytes] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def main() -> None:
    """Write the vocabulary and say what it does to the text."""
    parser = argparse.ArgumentParser(description="Train the vocabulary that aieflow ships.")
    parser.add_argument("output", type=Path, help="for instance gpt2/vocabulary.tiktoken")
    output: Path = parser.parse_args().output
    merges = train_merges(default_documents(), VOCAB_SIZE - 256 - 1)
    tokens = [bytes([byte]) for byte in range(256)] + [left + right for left, right in merges]
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens)]
    output.write_bytes(b"".join(lines))
    print(f"{output}: {len(tokens)} tokens and the end of text; longest {max(tokens, key=len)!r}")


if __name__ == "__main__":
    main()
