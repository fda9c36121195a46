"""Tokens that an attempt leaves to the next: found again where the text is the same, else made anew from there on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from workers.engine.contracts.texts import Encoded
from workers.engine.store.kept_pieces import KeptPieces

TEXTS = [f"piece {number} of a text" for number in range(6)]


def encoded(text: str) -> Encoded:
    """Stands for a tokenizer: its ids need two bytes, or four."""
    ids_T = np.array([ord(letter) * 1000 for letter in text], dtype=np.int64)
    return Encoded(ids_T, len(text), [0, 3] if "2" in text else [])


def read(path: Path, texts: Sequence[str] = TEXTS, made_by: str = "a tokenizer") -> list[str]:
    """Have an attempt read a text; the pieces that it had to make."""
    kept, made = KeptPieces(path, made_by), []

    def make(text: str) -> Encoded:
        made.append(text)
        return encoded(text)

    for text in texts:
        found, expected = kept.piece(text, lambda text=text: make(text)), encoded(text)
        assert found.ids_T.tolist() == expected.ids_T.tolist()
        assert found.ids_T.dtype == np.int64
        assert [found.characters, found.starts] == [expected.characters, expected.starts]
    return made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "points/text.pieces"


def test_an_attempt_makes_what_those_before_have_not(path: Path) -> None:
    assert read(path, TEXTS[:2]) == TEXTS[:2]
    assert read(path, TEXTS[:4]) == TEXTS[2:4]
    assert read(path, TEXTS[:3]) == []
    assert read(path) == TEXTS[4:], "one that stopped earlier has taken nothing away"
    assert read(path) == []


def test_another_text_is_made_from_where_it_differs(path: Path) -> None:
    read(path)
    other = [*TEXTS[:3], "something else", *TEXTS[4:]]
    assert read(path, other) == other[3:]
    assert read(path, other) == []
    assert read(path) == TEXTS[3:]


def test_nothing_is_kept_of_another_tokenizer(path: Path) -> None:
    read(path)
    assert read(path, made_by="another") == TEXTS


def test_what_is_not_whole_is_made_again(path: Path) -> None:
    read(path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        again = read(path)
        assert again == TEXTS[len(TEXTS) - len(again) :]
        assert path.read_bytes() == whole
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        assert read(path)
        assert path.read_bytes() == whole


def test_an_attempt_that_is_thought_dead_may_still_write(path: Path) -> None:
    older = KeptPieces(path, "a tokenizer")
    older.piece(TEXTS[0], lambda: encoded(TEXTS[0]))
    newer = KeptPieces(path, "a tokenizer")
    for text in TEXTS[:2]:
        newer.piece(text, lambda text=text: encoded(text))
    older.piece(TEXTS[1], lambda: encoded(TEXTS[1]))
    newer.piece(TEXTS[2], lambda: encoded(TEXTS[2]))
    assert read(path) == TEXTS[2:], "behind one that came twice"
    assert read(path) == []
