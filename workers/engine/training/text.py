"""The text of a training: windows to train on and, of other documents, to measure on. N = windows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

import torch

from workers.engine.contracts.texts import OneDomain, Wanted
from workers.engine.errors import DatasetTooShort
from workers.engine.model.windows import HeldOut, held_out_windows, ids_digest, load_tokens
from workers.engine.store.token_file import TokenFile
from workers.engine.training.mixture import Mixture

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from workers.engine.contracts.tuning_params import TrainingParams, Trains
    from workers.engine.model.cut import Cut
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import TextReport
    from workers.engine.sources.resolve import Sources
    from workers.engine.training.turns import Turns


_AT_ONCE = 1024
"""Windows that are read at once for their digest."""


@dataclass(frozen=True)
class Domain:
    """Token ids, int64 [N, T], cut from one text without overlap."""

    train_NT: Cut
    holdout_NT: Tensor
    read: TextReport | None = None
    name: str | None = None
    """None where the text is not divided into domains."""
    share: float = 1.0
    """Of the windows of all domains."""
    warning: str | None = None
    """A sentence where what is held out may be of documents that are trained on."""

    def windows(self, first: int, count: int, seed: int) -> Tensor:
        """`count` windows to train on, from number `first` on: every epoch goes through all of them in an order of its
        own."""
        size = len(self.train_NT)
        epochs = range(first // size, -(-(first + count) // size))
        order_N = torch.cat([_order(size, seed, epoch) for epoch in epochs])
        begin = first - epochs.start * size
        return self.train_NT[order_N[begin : begin + count]]

    def all_windows(self) -> Iterator[Tensor]:
        """Those held out and those to train on, some at a time."""
        yield self.holdout_NT
        for begin in range(0, len(self.train_NT), _AT_ONCE):
            yield self.train_NT[begin : begin + _AT_ONCE]


@dataclass(frozen=True)
class TuningText:
    """The domains of a text."""

    domains: tuple[Domain, ...]
    label: str
    """Stage and data set."""
    mixture: Mixture = field(init=False)
    holdout_NT: Tensor = field(init=False)
    """Of every domain in turn."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "mixture", Mixture.of([domain.share for domain in self.domains]))
        object.__setattr__(self, "holdout_NT", torch.cat([domain.holdout_NT for domain in self.domains]))

    @property
    def train_windows(self) -> int:
        """Different ones, of all domains."""
        return sum(len(domain.train_NT) for domain in self.domains)

    @property
    def reads(self) -> list[TextReport]:
        return [domain.read for domain in self.domains if domain.read is not None]

    @property
    def warnings(self) -> list[str]:
        return [domain.warning for domain in self.domains if domain.warning is not None]

    @cached_property
    def digest(self) -> str:
        """`sha256:` of the windows of every domain, first those that are held out."""
        return ids_digest(ids_NT for domain in self.domains for ids_NT in domain.all_windows())

    @property
    def digests(self) -> dict[str, str]:
        """Label -> `sha256:` digest of all windows."""
        return {self.label: self.digest}

    def batch(self, params: TrainingParams, step: int, turns: Turns | None = None) -> Tensor:
        """The windows of one step, int64 [batch, T]. They depend on the seed, the step and the turns alone, so that a
        resumed run continues the order of the killed one. `turns`: of domains whose shares change."""
        if turns is None:
            domain_B, number_B = self.mixture.places(step * params.batch, (step + 1) * params.batch)
        else:
            domain_B, number_B = turns.take(params.batch)
        ids_BT = self.holdout_NT.new_empty(params.batch, params.sequence_length)
        for number, domain in enumerate(self.domains):
            mine_B = domain_B == number
            if count := int(mine_B.sum()):
                ids_BT[mine_B] = domain.windows(int(number_B[mine_B][0]), count, params.seed + (number << 32))
        return ids_BT


def training_text(
    stage: Trains, params: TrainingParams, model: LoadedModel, sources: Sources, folder: Path | None = None
) -> TuningText:
    """The windows of a training. Their tokens lie in files in a folder, by default that of temporary files.

    The first `holdout` are held out, and their documents are not trained on, whatever the number of steps, so runs of
    different lengths compare. Raises what reading data raises, and DatasetTooShort where less than one step's windows
    would be left.
    """
    shares: dict[str | None, float] = dict(params.domains.shares.items()) if params.domains else {None: 1.0}
    mixture = Mixture.of([*shares.values()])
    counts = [
        [max(1, count) for count in mixture.windows(windows)]
        for windows in (params.holdout, params.batch, params.steps * params.batch)
    ]
    if params.domains is not None and params.domains.dynamic is not None:  # any may get all windows
        counts[2] = [params.steps * params.batch] * len(shares)
    field = f"/{stage}"
    found = TuningText(
        tuple(
            _domain(params, field, model, sources, folder, name, share / sum(shares.values()), *windows)
            for (name, share), *windows in zip(shares.items(), *counts, strict=True)
        ),
        f"{stage}/{params.label}",
    )
    _ = found.digest  # once: what is sent to other ranks has it
    return found


def _domain(
    params: TrainingParams,
    field: str,
    model: LoadedModel,
    sources: Sources,
    folder: Path | None,
    name: str | None,
    share: float,
    holdout: int,
    least: int,
    most: int,
) -> Domain:
    """`holdout` windows, and `least` to `most` to train on, as many as the text has."""
    tokens = load_tokens(
        params,
        model.tokenizer,
        sources,
        field,
        Wanted(most, params.sequence_length, held_out=holdout),
        vocabulary=model.architecture.vocabulary,
        domain=OneDomain(params.domains.column, name) if params.domains and name is not None else None,
        file=TokenFile(folder),
    )
    with _naming(name, field):
        found = held_out_windows(tokens, params.sequence_length, holdout=holdout, least=least, most=most, field=field)
    read = tokens.report and tokens.report.model_copy(update={"documents_held_out": found.documents})
    return Domain(found.train_NL, found.holdout_NL, read, name, share, _warning(params, field, found, read))


def _warning(params: TrainingParams, field: str, found: HeldOut, read: TextReport | None) -> str | None:
    label = read.label if read else params.label
    if found.documents is None:
        return (
            f"{label}: its held-out windows are of documents that are trained on, as there are no others: their loss "
            "says little about other text" + (", and the state that ships is chosen by it" if field == "/tune" else "")
        )
    if found.short_rows and params.document_field is None:
        return (
            f"{label}: its rows are shorter than windows. If they are parts of documents, held-out rows are of "
            "documents that are trained on: say in `document_field` which rows belong together"
        )
    return None


@contextmanager
def _naming(domain: str | None, field: str) -> Iterator[None]:
    """Say which domain is too short."""
    try:
        yield
    except DatasetTooShort as short:
        if domain is None:
            raise
        remedy = f"{short.hint}, lower the share of {domain!r}, or leave it out"
        raise DatasetTooShort(f"domain {domain!r}: {short.message}", remedy, field=f"{field}/domains/shares") from None


@lru_cache(maxsize=8)  # of one epoch after another, of some domains
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed((seed << 24) + epoch))
