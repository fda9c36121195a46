"""Texts as windows of token ids. N = windows, L = tokens per window, T = tokens of a text."""

from __future__ import annotations

import hashlib
import statistics
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from workers.engine.contracts.params import WindowsMethodParams
from workers.engine.contracts.texts import Tokens, Wanted
from workers.engine.contracts.tuning_params import TrainingParams
from workers.engine.errors import DatasetTooShort, InvalidSpec, UnsupportedModel
from workers.engine.model.cut import Cut
from workers.engine.sources.texts.token_ids import token_ids
from workers.engine.spec import Calibrate

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from workers.engine.contracts.refs import DataRef

CHARACTERS_PER_TOKEN = 16
"""Characters read per token wanted, where windows are drawn at random: four times what English takes. It bounds how
much of a large dataset is fetched, and leaves text to choose from."""
LEAST_CHARACTERS = 2**19
"""At least so much is read, however few windows are drawn."""


def wanted_of(ref: DataRef) -> Wanted:
    """How much of a text the spec needs."""
    match ref:
        case Calibrate(samples=count, sequence_length=length):
            return Wanted(count, length, characters=max(count * length * CHARACTERS_PER_TOKEN, LEAST_CHARACTERS))
        case TrainingParams():
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
