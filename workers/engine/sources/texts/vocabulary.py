"""About how many tokens a text has, by the vocabulary of a model's tokenizer. Import-light.

The API has no tokenizer, and runs no untrusted pattern of one: the text is cut into the longest entries of the
vocabulary, from left to right. Tokenizers merge in another order and never across the ends of words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from workers.engine.files.model_files import TOKENIZER_DIGITS, BadFile, find, read_json

TOKENIZER = "tokenizer.json"
MOST_PER_BYTE = 3
"""Tokens per byte of a text in UTF-8, at most: a space may be written as `▁`, of three bytes, and each of them may be a
token; NFC makes up to three times as many bytes of a text."""
_LARGEST_BYTES = 40 * 2**20
"""Of the file. The largest in use has 34 MB; one of 22 MB takes 120 MiB while it is read."""
_ONE_AT_A_TIME = Lock()
_LONGEST = 32
"""Characters of an entry. Longer ones are rows of spaces or dashes."""
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {**{byte: chr(byte) for byte in _PRINTABLE}, **{byte: chr(256 + n) for n, byte in enumerate(_OTHERS)}}
"""Byte -> the character that stands for it in vocabularies of byte-level BPE (Radford et al. 2019)."""
_BYTE_SPACE, _WORD_SPACE = _BYTES[ord(" ")], "\u2581"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The entries of a tokenizer. Compared by identity."""

    entries: frozenset[str]
    longest: Mapping[str, int]
    """First character of entries -> characters of the longest of them."""
    bounded: bool
    """Whether the tokenizer is known to make at most MOST_PER_BYTE tokens of a byte."""

    def count(self, text: str) -> int:
        """About how many tokens the text has. A character that no entry begins with is as many as its bytes."""
        if _BYTE_SPACE in self.entries:
            text = "".join(map(_BYTES.__getitem__, text.encode(errors="replace")))
        elif _WORD_SPACE in self.entries:
            text = text.replace(" ", _WORD_SPACE)
        at = tokens = 0
        while at < len(text):
            sizes = range(self.longest.get(text[at], 0), 0, -1)
            size = next((size for size in sizes if text[at : at + size] in self.entries), 0)
            tokens += 1 if size else len(text[at].encode(errors="replace"))
            at += size or 1
        return tokens


def vocabulary(folder: Path) -> Vocabulary | None:
    """That of the model in a folder; None where its files do not say it as `tokenizer.json` does."""
    try:
        path = find(folder, TOKENIZER)
        if path is None:
            return None
        status = path.stat()
        with _ONE_AT_A_TIME:
            return _read(path, status.st_size, status.st_mtime_ns)
    except (BadFile, OSError):  # the job says what is wrong with it
        return None


@lru_cache(maxsize=2)
def _read(path: Path, size: int, mtime_ns: int) -> Vocabulary | None:
    document = read_json(path.parent, path.name, _LARGEST_BYTES, TOKENIZER_DIGITS)
    model = document.get("model")
    entries = frozenset(_entries(model)) if isinstance(model, dict) else frozenset()
    if not entries:
        return None
    longest: dict[str, int] = {}
    for entry in entries:
        longest[entry[0]] = max(longest.get(entry[0], 0), len(entry))
    return Vocabulary(entries, longest, bounded=_is_bounded(document.get("normalizer"), entries))


def _entries(model: Mapping[str, Any]) -> Iterable[str]:
    """None of WordPiece's, which writes an entry within a word in another way."""
    found = model.get("vocab")
    if isinstance(found, list):  # of a unigram model: pairs of entry and score
        found = [pair[0] for pair in found if isinstance(pair, list) and pair]
    if model.get("type") == "WordPiece" or not isinstance(found, list | dict):
        return ()
    return (entry for entry in found if isinstance(entry, str) and 0 < len(entry) <= _LONGEST)


def _is_bounded(normalizer: Any, entries: frozenset[str]) -> bool:
    """Whether it writes a text with at most MOST_PER_BYTE bytes for each, or with spaces as entries of their own."""
    match normalizer:
        case None | {"type": "NFC"}:
            return True
        case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"} | {"type": "Prepend"}:
            return _WORD_SPACE in entries
        case {"type": "Sequence", "normalizers": list(parts)}:
            return len(parts) <= 2 and all(_is_bounded(part, entries) for part in parts)
    return False
