"""Texts as windows of token ids. N = windows, L = tokens per window, T = tokens of a text."""

from __future__ import annotations

import hashlib
import statistics
import sys
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from workers.engine.contracts.params import WindowsMethodParams
from workers.engine.contracts.texts import Tokens, Wanted
from workers.engine.contracts.tuning_params import TuneMethodParams
from workers.engine.errors import DatasetTooShort, InvalidSpec, UnsupportedModel
from workers.engine.model.cut import Cut
from workers.engine.report import TextReport
from workers.engine.sources.texts.documents import Tally, documents, is_one_document
from workers.engine.sources.texts.stream import Piece, pieces
from workers.engine.sources.texts.token_ids import token_ids
from workers.engine.spec import Calibrate

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from workers.engine.contracts.refs import DataRef
    from workers.engine.contracts.texts import Ids, OneDomain
    from workers.engine.sources.resolve import Sources
    from workers.engine.store.token_file import TokenFile

CHARACTERS_PER_TOKEN = 16
"""Characters read per token wanted, where windows are drawn at random: four times what English takes. It bounds how
much of a large dataset is fetched, and leaves text to choose from."""
LEAST_CHARACTERS = 2**19
"""At least so much is read, however few windows are drawn."""
SOUGHT = 2**23
"""Tokens in which documents are sought beside those that are held out."""


def wanted_of(ref: DataRef) -> Wanted:
    """How much of a text the spec needs."""
    match ref:
        case Calibrate(samples=count, sequence_length=length):
            return Wanted(count, length, characters=max(count * length * CHARACTERS_PER_TOKEN, LEAST_CHARACTERS))
        case TuneMethodParams():
            return Wanted(ref.steps * ref.batch, ref.sequence_length, held_out=ref.holdout)
        case WindowsMethodParams():
            return Wanted(ref.samples, ref.sequence_length, ref.per_document)
    raise TypeError(f"{type(ref).__name__} is no text of a spec")


@dataclass(frozen=True)
class HeldOut:
    """Windows to train on and to measure on, int64 [N, L]."""

    train_NL: Cut
    holdout_NL: Tensor
    documents: int | None
    """How many are held out whole; None where windows of the same documents are in both parts."""
    short_rows: bool = False
    """Whether documents are rows shorter than windows, which may be parts of the same ones."""


@dataclass(frozen=True)
class Windows:
    """Windows of a text."""

    ids_NL: Tensor
    """int64."""
    documents: tuple[int, ...] | None
    """The number of the document that most of each window is of; None where that is not known."""


def load_tokens(
    ref: DataRef,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sources,
    field: str,
    wanted: Wanted | None = None,
    *,
    vocabulary: int | None = None,
    domain: OneDomain | None = None,
    file: TokenFile | None = None,
) -> Tokens:
    """Tokenize the documents of `ref`, joined by an empty line, as far as `wanted` goes (None: all).

    `field` is the JSON pointer of `ref` in the spec, for errors; `domain`: rows of that one alone; `file`: where the
    ids go, else they are in memory. Memory is bounded by what is read, not by the text's own file.
    Raises DatasetNotFound, HubUnavailable, InvalidSpec where the text column is missing or the file is not what its
    name says, and UnsupportedModel where the tokenizer gives ids of `vocabulary` (rows of the embedding) or more.
    """
    if wanted is not None and wanted.held_out and is_one_document(ref, sources, field):
        wanted = replace(wanted, count=wanted.count and wanted.held_out + wanted.count, held_out=0)
    opening, tally = opening_ids(tokenizer, ref.bos, field), Tally()
    read = _Read(wanted, len(opening), repeated=ref.document_field is not None, file=file)
    found = documents(ref, tokenizer, sources, field, tally, domain)
    if wanted is not None and wanted.per_document is not None:
        most = wanted.per_document * wanted.length * CHARACTERS_PER_TOKEN
        found = (replace(document, pieces=_first(document.pieces, most)) for document in found)
    limit = sys.maxsize if vocabulary is None else vocabulary
    refuse_unknown(torch.tensor(opening, dtype=torch.int64), limit, tokenizer, "that windows begin with")
    for piece in pieces(found, tokenizer):
        if max(piece.ids, default=0) >= limit:
            refuse_unknown(torch.tensor(piece.ids), limit, tokenizer, f"of a part of {ref.label}")
        read.add(piece)
        if read.enough:
            break
    ids_T: Ids = torch.cat([torch.empty(0, dtype=torch.int32), *read.ids]).long() if file is None else file
    label = ref.label if domain is None else f"{ref.label}: {domain.name}"
    report = TextReport(
        label=f"{field.split('/')[1]}/{label}" if field else label,
        opening=[tokenizer.convert_ids_to_tokens(token) or f"<{token}>" for token in opening],
        documents=read.count,
        tokens=len(ids_T),
        rows_skipped=tally.rows_skipped,
        characters_replaced=tally.characters_replaced,
    )
    return Tokens(ids_T, opening, tuple(read.starts) or (0,), tuple(read.documents) or (0,), report)


def opening_ids(
    tokenizer: PreTrainedTokenizerBase, bos: Literal["auto", "always", "never"], field: str
) -> tuple[int, ...]:
    """Tokens that every window and every prompt begins with.

    `auto`: those that the tokenizer puts before a text. Raises InvalidSpec where a token is asked for that the
    tokenizer lacks.
    """
    if bos == "never":
        return ()
    if bos == "auto":
        bare, text = (token_ids(tokenizer, "a", special=special) for special in (False, True))
        ahead = next((n for n in range(len(text) - len(bare) + 1) if text[n : n + len(bare)] == bare), 0)
        return tuple(text[:ahead])
    if tokenizer.bos_token_id is None:
        raise InvalidSpec(
            "the model's tokenizer has no beginning-of-sequence token",
            "set `bos` to `auto` or `never`",
            field=f"{field}/bos",
        )
    return (tokenizer.bos_token_id,)


def consecutive_windows(tokens: Tokens, length: int, *, count: int | None, field: str) -> Tensor:
    """The first `count` (None: all) non-overlapping windows, int64 [N, L]; a rest shorter than L is left out.

    Raises DatasetTooShort if there are fewer than `count`, or none.
    """
    return _consecutive(tokens, Wanted(count, length), field)[0].ids_NL


def held_out_windows(tokens: Tokens, length: int, *, holdout: int, least: int, most: int, field: str) -> HeldOut:
    """The first `holdout` windows, and up to `most` of the documents of which none of these is, in their order.

    Where those have less than `least`, as in a text of one document, the windows that follow the first ones instead.
    Raises DatasetTooShort where these are too few too.
    """
    own = length - len(tokens.opening)
    held = {document for start, document in zip(tokens.starts, tokens.documents, strict=True) if start < holdout * own}
    ends = [*tokens.starts[1:], len(tokens.ids_T)]
    stretches = zip(tokens.starts, ends, tokens.documents, strict=True)
    free = [(start, end) for start, end, document in stretches if document not in held]
    fit, all_ = sum(end - start for start, end in free) // own, len(tokens.ids_T) // own
    if fit < least:
        count = max(holdout + least, min(holdout + most, all_))
        if all_ < count:
            raise _too_short(tokens, Wanted(count, length), all_, field)
        later = Cut(tokens.ids_T, tokens.opening, [(holdout * own, len(tokens.ids_T))], length, count - holdout)
        return HeldOut(later, consecutive_windows(tokens, length, count=holdout, field=field), None)
    found, shares = _consecutive(tokens, Wanted(holdout, length), field)
    others = Cut(tokens.ids_T, tokens.opening, free, length, min(most, fit))
    return HeldOut(others, found.ids_NL, len(held), _parts(shares))


def measured_windows(
    params: WindowsMethodParams, load: Callable[[WindowsMethodParams, Wanted], Tokens], field: str
) -> Windows:
    """The windows on which an evaluation measures, and whose loss a target may bound.

    Rows shorter than windows may be paragraphs of one document, as WikiText's are: where half of the windows have no
    row that makes up half of them, documents are known only by a `document_field`.
    Raises what `load` raises, and DatasetTooShort.
    """
    wanted = wanted_of(params)
    found, shares = _consecutive(load(params, wanted), wanted, field)
    if params.document_field is None and _parts(shares):
        return replace(found, documents=None)
    return found


def random_windows(tokens: Tokens, length: int, *, count: int, seed: int, field: str) -> Tensor:
    """`count` windows at random starts, int64 [N, L]; they may overlap, as in the calibration of GPTQ and Wanda.

    Raises DatasetTooShort if the text holds fewer tokens than `count` windows without overlap: then the windows would
    mostly repeat each other.
    """
    own = length - len(tokens.opening)
    if len(tokens.ids_T) < count * own:
        raise _too_short(tokens, Wanted(count, length), len(tokens.ids_T) // own, field)
    generator = torch.Generator().manual_seed(seed)
    starts_N = torch.randint(len(tokens.ids_T) - own + 1, (count,), generator=generator)
    return _window_ids(tokens, starts_N.tolist(), own)


def refuse_unknown(ids_T: Tensor, vocabulary: int, tokenizer: PreTrainedTokenizerBase, which: str) -> None:
    """Raises UnsupportedModel if ids reach beyond the `vocabulary` rows of the embedding. `which`: tokens they are."""
    if not (unknown := ids_T[ids_T >= vocabulary]).numel():
        return
    first = int(unknown[0])
    raise UnsupportedModel(
        f"{len(unknown)} of the {len(ids_T)} tokens {which} have ids beyond the model's embedding of "
        f"{vocabulary} rows, the first {first} ({tokenizer.convert_ids_to_tokens(first)!r})",
        "give the model the tokenizer it was trained with, or resize its embedding to the tokenizer",
        field="/model/id",
    )


def ids_digest(parts: Iterable[Tensor]) -> str:
    """`sha256:` of token ids of any shape, one part after the other, as little-endian int64 in row order, as reports
    record texts. Without a copy of them, unless they lie otherwise."""
    found = hashlib.sha256()
    for ids in parts:
        found.update(np.ascontiguousarray(ids.numpy(), dtype="<i8").data)
    return "sha256:" + found.hexdigest()


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
        for key, start in piece.starts:
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
            self._file.add(piece.ids)
        else:
            small = max(piece.ids, default=0) < 2**31  # tokenizers count up to 2**32
            self.ids.append(torch.tensor(piece.ids, dtype=torch.int32 if small else torch.int64))
        self._tokens += len(piece.ids)
        self._characters += piece.characters

    @property
    def enough(self) -> bool:
        wanted = self._wanted
        if wanted is None or wanted.count is None or self._characters < wanted.characters:
            return False
        if wanted.held_out:
            free = self._tokens - self._spent - self._held_tokens(self._tokens)
            if free // self._stride >= wanted.count:
                return True
            return free == 0 and self._tokens >= max(SOUGHT, (wanted.held_out + wanted.count) * self._stride)
        if wanted.per_document is None:
            return self._tokens // self._stride >= wanted.count
        if not self.documents:
            return False
        before = sum(self._windows.values()) - self._windows.get(self.documents[-1], 0)
        return before + self._last_windows(self._tokens) >= wanted.count

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


def _consecutive(tokens: Tokens, wanted: Wanted, field: str) -> tuple[Windows, list[float]]:
    """Also the share of each window that is of its document."""
    own = wanted.length - len(tokens.opening)
    if wanted.per_document is None:
        starts: Sequence[int] = range(0, len(tokens.ids_T) - own + 1, own)
    else:
        starts = _starts_by_document(tokens, own, wanted.per_document)
    if len(starts) < (wanted.count or 1):
        raise _too_short(tokens, wanted, len(starts), field)
    starts = starts[: wanted.count]
    documents, shares = _documents_of(tokens, starts, own)
    return Windows(_window_ids(tokens, starts, own), documents), shares


def _parts(shares: Sequence[float]) -> bool:
    """Whether documents are much shorter than windows, of which these are the largest shares."""
    return statistics.median(shares) < 0.5


def _starts_by_document(tokens: Tokens, own: int, most: int) -> list[int]:
    """Each document's first windows. One that lies in several stretches has its windows in the first of them."""
    found: dict[int, list[int]] = {}
    ends = [*tokens.starts[1:], len(tokens.ids_T)]
    for start, end, document in zip(tokens.starts, ends, tokens.documents, strict=True):
        taken = found.setdefault(document, [])
        taken += range(start, end - own + 1, own)[: most - len(taken)]
    return sorted(start for taken in found.values() for start in taken)


def _window_ids(tokens: Tokens, starts: Sequence[int], own: int) -> Tensor:
    opening = torch.tensor(tokens.opening, dtype=torch.int64)
    return torch.stack([torch.cat([opening, tokens.ids_T[start : start + own]]) for start in starts])


def _documents_of(tokens: Tokens, starts: Sequence[int], own: int) -> tuple[tuple[int, ...], list[float]]:
    """The document that most of each window is of, the earlier one of two that share it evenly; and its share."""
    found, largest = [], []
    ends = [*tokens.starts[1:], len(tokens.ids_T)]
    for start in starts:
        shares: dict[int, int] = {}
        stretch = max(0, bisect_right(tokens.starts, start) - 1)
        while stretch < len(tokens.starts) and tokens.starts[stretch] < start + own:
            overlap = min(ends[stretch], start + own) - max(tokens.starts[stretch], start)
            shares[tokens.documents[stretch]] = shares.get(tokens.documents[stretch], 0) + overlap
            stretch += 1
        found.append(max(shares, key=shares.__getitem__))
        largest.append(shares[found[-1]] / own)
    return tuple(found), largest


def _too_short(tokens: Tokens, wanted: Wanted, fit: int, field: str) -> DatasetTooShort:
    count, own = wanted.count or 1, wanted.length - len(tokens.opening)
    of_each = f", {wanted.per_document} of each document at most" if wanted.per_document else ""
    remedies = ["ask for fewer windows"] * (fit > 0) + ["ask for shorter windows"] * (len(tokens.ids_T) >= 8)
    return DatasetTooShort(
        f"{count} windows of {own} tokens need {count * own} tokens; the text has {len(tokens.ids_T)}, "
        f"enough for {fit}{of_each}",
        ", ".join([*remedies, "give a longer text"]),
        field=field,
    )
