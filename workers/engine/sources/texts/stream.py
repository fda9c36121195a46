"""Documents to token ids, piece by piece: the ids of the whole text, never more of it in memory than a piece.

A text is cut only where no token spans the cut: the tokens of the text before the cut are the same with and without the
text after it. The cuts do not depend on how the text arrives. Some tokenizers (SentencePiece) put a space before every
text; so a few characters before the cut are tokenised again, and their tokens dropped.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workers.engine.contracts.texts import Encoded
from workers.engine.sources.texts.documents import DOCUMENT_BREAK, Document
from workers.engine.sources.texts.token_ids import ids_and_ends, token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from workers.engine.contracts.texts import KeepsPieces

PIECE = 2**16
"""Characters that are tokenised at once. A longer run without a place to cut, which no language has, is cut anyway."""
CONTEXT = 64
"""Characters on each side of a cut that are compared."""
TRIES = 8
"""Places of each kind that are tried from the end of a piece."""
_PLACES = (
    re.compile(r"(?<=\S)(?= \S)"),
    re.compile(r"(?<=\S)(?=\s)|(?<=\s)(?=\S)"),
    re.compile(r"(?<=\w)(?=[^\w\s])|(?<=[^\w\s])(?=\w)"),
)
"""Before the space before a word, around other white space, around punctuation (languages without spaces)."""


@dataclass(frozen=True)
class Piece:
    """The next tokens of a text."""

    encoded: Encoded
    documents: list[Hashable]
    """Those that begin here."""


def pieces(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, kept: KeepsPieces | None = None
) -> Iterator[Piece]:
    """The tokens of documents joined by DOCUMENT_BREAK. `kept`: those of an earlier attempt, if there may be some."""
    encode = _Encoder(tokenizer, kept)
    before, text = "", ""  # what was tokenised last, what is still to be
    starts: list[tuple[Hashable, int]] = []  # document, index in `text` of its first character
    for document, part in _joined(documents):
        if document is not None:
            starts.append((document.key, len(text)))
        text += part
        while len(text) >= PIECE + CONTEXT:
            encoded = encode.first(before, text[: PIECE + CONTEXT], [at for _, at in starts])
            cut, begun = encoded.characters, len(encoded.starts)
            yield Piece(encoded, [key for key, _ in starts[:begun]])
            starts = [(key, at - cut) for key, at in starts[begun:]]
            before, text = text[cut - CONTEXT : cut], text[cut:]
    if text:
        yield Piece(encode.first(before, text, [at for _, at in starts]), [key for key, _ in starts])


def _joined(documents: Iterable[Document]) -> Iterator[tuple[Document | None, str]]:
    """Parts of at most PIECE characters; with the document where it begins."""
    anything = False
    for document in documents:
        begun = False
        for text in document.pieces:
            for start in range(0, len(text), PIECE):
                if not begun and anything:
                    yield None, DOCUMENT_BREAK
                yield None if begun else document, text[start : start + PIECE]
                begun = anything = True


def _cut(text: str, encode: _Encoder) -> int:
    """Index at which the first piece of `text` ends. Reads at most PIECE + CONTEXT characters."""
    for place in _PLACES:
        for found in reversed(deque(place.finditer(text, CONTEXT, PIECE + 1), maxlen=TRIES)):
            cut = found.start()
            left, right = text[cut - CONTEXT : cut], text[cut : cut + CONTEXT]
            ids = encode.ids(left)
            if encode.ids(left + right)[: len(ids)] == ids:
                return cut
    return PIECE


class _Encoder:
    def __init__(self, tokenizer: PreTrainedTokenizerBase, kept: KeepsPieces | None) -> None:
        self._tokenizer, self._kept = tokenizer, kept

    def ids(self, text: str) -> list[int]:
        return token_ids(self._tokenizer, text)

    def first(self, before: str, text: str, starts: Sequence[int]) -> Encoded:
        """The first piece of `text`, which stands after `before` and is all that is left, or PIECE + CONTEXT characters
        of it. `starts`: where documents begin."""
        starts = [at for at in starts if at < len(text)]

        def make() -> Encoded:
            cut = _cut(text, self) if len(text) >= PIECE + CONTEXT else len(text)
            return self._piece(before, text[:cut], [at for at in starts if at < cut])

        if self._kept is None:
            return make()
        return self._kept.piece(f"{starts} {len(before)} {before}{text}", make)

    def _piece(self, before: str, text: str, starts: Sequence[int]) -> Encoded:
        """The tokens of `text` as it stands after `before`, and the one that holds each start."""
        known = self.ids(before) if before else []
        # Where tokens lie is asked for with them: it would take twice as long apart.
        told = bool(starts) and self._tokenizer.is_fast
        ids, ends = self._ids_and_ends(before + text, told)
        if ids[: len(known)] != known:  # behind a cut without a place to cut
            before, known = "", []
            ids, ends = self._ids_and_ends(text, told)
        count = len(ids) - len(known)
        if told:
            firsts = [max(0, bisect_right(ends, len(before) + at) - len(known)) for at in starts]
        else:  # in proportion, for the few tokenizers that do not say
            firsts = [at * count // len(text) for at in starts]
        return Encoded(np.array(ids[len(known) :], dtype=np.int64), len(text), firsts)

    def _ids_and_ends(self, text: str, told: bool) -> tuple[list[int], list[int]]:
        """The ids and, if they are to be `told`, where in the text each token ends."""
        return ids_and_ends(self._tokenizer, text) if told else (self.ids(text), [])
