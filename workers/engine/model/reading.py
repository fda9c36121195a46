"""Texts as they are read, piece by piece: token ids, and where documents begin."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from workers.engine.contracts.texts import Tokens, Wanted
from workers.engine.model.windows import CHARACTERS_PER_TOKEN, opening_ids, refuse_unknown
from workers.engine.report import TextReport
from workers.engine.sources.texts.documents import Tally, documents, is_one_document
from workers.engine.sources.texts.stream import Piece, pieces

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from workers.engine.contracts.refs import DataRef
    from workers.engine.contracts.texts import Ids, OneDomain
    from workers.engine.sources.resolve import Sources
    from workers.engine.store.kept_pieces import KeptPieces
    from workers.engine.store.token_file import TokenFile

SOUGHT = 2**23
"""Tokens in which documents are sought beside those that are held out."""


def load_tokens(
    ref: DataRef,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    field: str,
    wanted: Wanted | None = None,
    *,
    vocabulary: int | None = None,
) -> Tokens:
    """Tokenize the documents of `ref`, joined by an empty line, as far as `wanted` goes (None: all), into memory.

    `field` is the JSON pointer of `ref` in the spec, for errors. Raises what a `Reading` does.
    """
    reading = Reading(ref, tokenizer, sources, field, wanted, vocabulary=vocabulary)
    while reading.on():
        pass
    return reading.tokens()


class Reading:
    """A text that is read as far as `wanted` goes: its documents, joined by an empty line. Memory is bounded by what is
    read, not by the text's own file.

    Raises, here or as it goes on, DatasetNotFound, HubUnavailable, InvalidSpec where the text column is missing or the
    file is not what its name says, and UnsupportedModel where the tokenizer gives ids of `vocabulary` (rows of the
    embedding) or more.
    """

    def __init__(
        self,
        ref: DataRef,
        tokenizer: PreTrainedTokenizerBase,
        sources: Sources,
        field: str,
        wanted: Wanted | None = None,
        *,
        vocabulary: int | None = None,
        domain: OneDomain | None = None,
        file: TokenFile | None = None,
        kept: KeptPieces | None = None,
    ) -> None:
        """`wanted`: None is all of the text. `field`: the JSON pointer of `ref` in the spec, for errors. `domain`: rows
        of that one alone. `file`: where the ids go, else they are in memory. `kept`: those of an earlier attempt."""
        self._ahead = 0
        if wanted is not None and wanted.held_out and is_one_document(ref, sources, field):
            self._ahead = wanted.held_out
            wanted = replace(wanted, count=wanted.count and wanted.held_out + wanted.count, held_out=0)
        self._ref, self._tokenizer, self._field, self._domain, self._file = ref, tokenizer, field, domain, file
        self._opening, self._tally = opening_ids(tokenizer, ref.bos, field), Tally()
        self._read = _Read(wanted, len(self._opening), repeated=ref.document_field is not None, file=file)
        found = documents(ref, tokenizer, sources, field, self._tally, domain)
        if wanted is not None and wanted.per_document is not None:
            most = wanted.per_document * wanted.length * CHARACTERS_PER_TOKEN
            found = (replace(document, pieces=_first(document.pieces, most)) for document in found)
        self._limit = sys.maxsize if vocabulary is None else vocabulary
        opening_T = torch.tensor(self._opening, dtype=torch.int64)
        refuse_unknown(opening_T, self._limit, tokenizer, "that windows begin with")
        self._pieces = pieces(found, tokenizer, kept)

    def on(self) -> bool:
        """Read a piece more. False where that was the last that is wanted, or there was none."""
        piece = next(self._pieces, None)
        if piece is None:
            return False
        refuse_unknown(
            torch.from_numpy(piece.encoded.ids_T), self._limit, self._tokenizer, f"of a part of {self._ref.label}"
        )
        self._read.add(piece)
        if self._read.enough:
            self._pieces = iter(())  # its file is closed
        return not self._read.enough

    @property
    def windows(self) -> int:
        """How many of the wanted length there are so far, beside those held out and others of their documents; of a
        text that is known to be one document, how many follow those held out."""
        return max(0, self._read.free_windows - self._ahead)

    def tokens(self) -> Tokens:
        """All that was read so far."""
        read, ref, field, file = self._read, self._ref, self._field, self._file
        ids_T: Ids = torch.cat([torch.empty(0, dtype=torch.int32), *read.ids]).long() if file is None else file
        label = ref.label if self._domain is None else f"{ref.label}: {self._domain.name}"
        names = self._tokenizer.convert_ids_to_tokens
        report = TextReport(
            label=f"{field.split('/')[1]}/{label}" if field else label,
            opening=[names(token) or f"<{token}>" for token in self._opening],
            documents=read.count,
            tokens=len(ids_T),
            rows_skipped=self._tally.rows_skipped,
            characters_replaced=self._tally.characters_replaced,
        )
        return Tokens(ids_T, self._opening, tuple(read.starts) or (0,), tuple(read.documents) or (0,), report)


class _Read:
    """The part of a text that was read so far."""

    def __init__(self, wanted: Wanted | None, opening: int, *, repeated: bool, file: TokenFile | None) -> None:
        """`opening`: tokens that every window begins with, beside those of the text. `repeated`: whether a document may
        go on after others. `file`: where ids are kept."""
        self._wanted, self._repeated, self._file = wanted, repeated, file
        self._stride = (wanted.length if wanted else 1) - opening
        self.ids: list[Tensor] = []
        """Where there is no file."""
        self.count = 0
        """Documents."""
        self._numbers: dict[Hashable, int] = {}
        """Document -> its number, where it may go on later."""
        self.starts: list[int] = []
        self.documents: list[int] = []
        """As of `Tokens`; documents of which none can be held out any more are one."""
        self._tokens = self._characters = 0
        self._windows: dict[int, int] = {}
        """Document -> windows in its stretches that are read to their end."""
        self._held: set[int] = set()
        """Documents of the windows that are held out."""
        self._spent = 0
        """Tokens of theirs, in stretches that are read to their end."""

    def add(self, piece: Piece) -> None:
        ids_T = piece.encoded.ids_T
        for key, start in zip(piece.documents, piece.encoded.starts, strict=True):
            number = self._number(key)
            if self.documents and (self.documents[-1] == number or self._neither_held(number)):  # it goes on
                continue
            if self.documents:
                if self._wanted is not None and self._wanted.per_document is not None:
                    self._windows[self.documents[-1]] = self._last_windows(self._tokens + start)
                self._spent += self._held_tokens(self._tokens + start)
            self.starts.append(self._tokens + start)
            self.documents.append(number)
            if self._wanted is not None and self.starts[-1] < self._wanted.held_out * self._stride:
                self._held.add(number)
        if self._file is not None:
            self._file.add(ids_T)
        else:
            small = ids_T.max(initial=0) < 2**31  # tokenizers count up to 2**32
            self.ids.append(torch.from_numpy(ids_T).to(torch.int32 if small else torch.int64))
        self._tokens += len(ids_T)
        self._characters += piece.encoded.characters

    @property
    def enough(self) -> bool:
        wanted = self._wanted
        if wanted is None or wanted.count is None or self._characters < wanted.characters:
            return False
        if wanted.held_out:
            if self.free_windows >= wanted.count:
                return True
            none = self._free_tokens == 0
            return none and self._tokens >= max(SOUGHT, (wanted.held_out + wanted.count) * self._stride)
        if wanted.per_document is None:
            return self.free_windows >= wanted.count
        if not self.documents:
            return False
        before = sum(self._windows.values()) - self._windows.get(self.documents[-1], 0)
        return before + self._last_windows(self._tokens) >= wanted.count

    @property
    def free_windows(self) -> int:
        """Of documents that are not held out."""
        return self._free_tokens // self._stride

    @property
    def _free_tokens(self) -> int:
        return self._tokens - self._spent - self._held_tokens(self._tokens)

    def _number(self, key: Hashable) -> int:
        number = self._numbers.setdefault(key, self.count) if self._repeated else self.count
        self.count += number == self.count
        return number

    def _neither_held(self, number: int) -> bool:
        """Whether this document and the one before are trained on: of a long text they are too many to be told apart
        in memory."""
        return bool(self._held) and not self._held & {number, self.documents[-1]}

    def _last_windows(self, end: int) -> int:
        """Of the last document, whose last stretch ends at `end`."""
        most = self._wanted.per_document if self._wanted else None
        if most is None:
            return 0
        return min(most, self._windows.get(self.documents[-1], 0) + (end - self.starts[-1]) // self._stride)

    def _held_tokens(self, end: int) -> int:
        """Tokens of the last stretch, which ends at `end`, if its document is held out."""
        return end - self.starts[-1] if self.documents and self.documents[-1] in self._held else 0


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return
