"""The text of a training: windows to train on and, of other documents, to measure on. N = windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch

from workers.engine.contracts.needed import needed
from workers.engine.contracts.texts import OneDomain, Wanted
from workers.engine.errors import DatasetTooShort
from workers.engine.model.provenance import tokens_made_by
from workers.engine.model.reading import Reading
from workers.engine.model.windows import HeldOut, held_out_windows, ids_digest
from workers.engine.ranks import Ranks
from workers.engine.store.kept_pieces import KeptPieces
from workers.engine.store.token_file import TokenFile
from workers.engine.training.mixture import Mixture
from workers.engine.training.portions import PORTION, Arrival, Background

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from workers.engine.contracts.texts import Tokens
    from workers.engine.contracts.tuning_params import TrainingParams, Trains
    from workers.engine.model.cut import Cut
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import TextReport
    from workers.engine.sources.resolve import Sources
    from workers.engine.training.portions import Told
    from workers.engine.training.turns import Turns


_AT_ONCE = 1024
"""Windows that are read at once for their digest."""


@dataclass
class Domain:
    """Token ids, int64 [N, T], cut from one text without overlap. It grows, on all ranks alike, where the text is read
    on while it is trained on."""

    train_NT: Cut
    """As far as they are known."""
    holdout_NT: Tensor
    read: TextReport | None = None
    name: str | None = None
    """None where the text is not divided into domains."""
    share: float = 1.0
    """Of the windows of all domains."""
    warning: str | None = None
    """A sentence where what is held out may be of documents that are trained on."""
    ended: bool = True
    """Whether all windows are known."""
    portion: int = PORTION
    digests: list[str] = field(default_factory=list)
    """Of what was read up to the end of each portion; none where the training began with all windows."""

    def grow(self, told: Told) -> None:
        self.train_NT, self.read, self.ended = told.train_NT, told.read, told.ended
        portions = -(-len(self.train_NT) // self.portion)
        self.digests += [told.digest] * (portions - len(self.digests))

    def digest(self, count: int) -> str:
        """Of what was read for the first `count` windows of a training; empty where there is none."""
        last = min(count, len(self.train_NT)) - 1
        return self.digests[last // self.portion] if self.digests and last >= 0 else ""

    def windows(self, first: int, count: int, seed: int) -> Tensor:
        """`count` windows to train on, from number `first` on. Every epoch goes through the portions in their order,
        and through the windows of each in another one."""
        size, found = len(self.train_NT), []
        portions = -(-size // self.portion)
        while count:
            epoch, at = divmod(first, size)
            portion, begin = divmod(at, self.portion)
            length = min(self.portion, size - portion * self.portion)
            order = _order(length, seed, epoch * portions + portion)[begin : begin + count]
            found.append(portion * self.portion + order)
            first, count = first + len(order), count - len(order)
        return self.train_NT[torch.cat(found)]

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
    background: Background | None = None
    """On the first rank, what reads them on."""
    mixture: Mixture = field(init=False)
    holdout_NT: Tensor = field(init=False)
    """Of every domain in turn."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"background": None}

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
    def beginning(self) -> str:
        """`sha256:` of the windows of every domain that are known before the training begins, first those that are held
        out."""
        return ids_digest(ids_NT for domain in self.domains for ids_NT in domain.all_windows())

    @property
    def digest(self) -> str:
        """The same of all that are known by now."""
        if not any(domain.digests for domain in self.domains):
            return self.beginning
        return ids_digest(ids_NT for domain in self.domains for ids_NT in domain.all_windows())

    @property
    def digests(self) -> dict[str, str]:
        """Label -> `sha256:` digest of all windows."""
        return {self.label: self.digest}

    def taken(self, params: TrainingParams, step: int, turns: Turns | None) -> Sequence[int]:
        """How many windows of each domain the steps before `step` have read."""
        return self.mixture.windows(step * params.batch) if turns is None else turns.taken

    def reach(self, counts: Sequence[int], ranks: Ranks) -> list[str]:
        """Have the first so many windows of each domain known on all ranks, or all that there are. Returns digests of
        what was read for them, of each domain; none where the training began with all windows.

        Ranks take part that train. Raises what a `Reading` does.
        """
        for number, (domain, count) in enumerate(zip(self.domains, counts, strict=True)):
            while not domain.ended and len(domain.train_NT) < count:
                domain.grow(ranks.first(partial(self._next, number)))
        found = [domain.digest(count) for domain, count in zip(self.domains, counts, strict=True)]
        return found if any(domain.digests for domain in self.domains) else []

    def _next(self, number: int) -> Told:
        """The next portion of a domain, on the first rank."""
        return needed(self.background, "what reads the text").next(number)

    def batch(
        self, params: TrainingParams, step: int, turns: Turns | None = None, ranks: Ranks | None = None
    ) -> Tensor:
        """The windows of one step, int64 [batch, T]. They depend on the seed, the step and the turns alone, so that a
        resumed run continues the order of the killed one. `turns`: of domains whose shares change. `ranks`: those that
        train, each of which calls this."""
        if turns is None:
            domain_B, number_B = self.mixture.places(step * params.batch, (step + 1) * params.batch)
        else:
            domain_B, number_B = turns.take(params.batch)
        if not all(domain.ended for domain in self.domains):
            self.reach(self.taken(params, step + 1, turns), ranks or Ranks())
        ids_BT = self.holdout_NT.new_empty(params.batch, params.sequence_length)
        for number, domain in enumerate(self.domains):
            mine_B = domain_B == number
            if count := int(mine_B.sum()):
                ids_BT[mine_B] = domain.windows(int(number_B[mine_B][0]), count, params.seed + (number << 32))
        return ids_BT

    @property
    def waited_s(self) -> float:
        """How long steps, or a resume, waited for text, on the first rank."""
        return 0.0 if self.background is None else self.background.waited_s

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read on meanwhile, on the first rank."""
        with nullcontext() if self.background is None else self.background.reading():
            yield


def training_text(
    stage: Trains,
    params: TrainingParams,
    model: LoadedModel,
    sources: Sources,
    folder: Path | None = None,
    kept: Path | None = None,
    portion: int = PORTION,
) -> TuningText:
    """The windows of a training, of each domain as far as the end of its first portion, which has so many windows, or
    its own. Their tokens lie in files in a folder, by default that of temporary files. `kept`: a folder in which an
    attempt leaves them to the next, so that it need not tokenise again.

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
    field, total = f"/{stage}", sum(shares.values())
    made_by = tokens_made_by(model) if kept is not None else ""
    domains, arrivals = [], []
    for number, ((name, share), holdout, least, most) in enumerate(zip(shares.items(), *counts, strict=True)):
        file = TokenFile(folder)
        reading = Reading(
            params,
            model.tokenizer,
            sources,
            field,
            Wanted(most, params.sequence_length, held_out=holdout),
            vocabulary=model.architecture.vocabulary,
            domain=OneDomain(params.domains.column, name) if params.domains and name is not None else None,
            file=file,
            kept=KeptPieces(kept / f"text-{stage}-{number}.pieces", made_by) if kept is not None else None,
        )
        cut = partial(_cut, params.sequence_length, holdout, least, most, field)
        with _naming(name, field):
            arrival = Arrival(reading, file, cut, least, portion)
        domains.append(_domain(params, field, name, share / total, arrival))
        arrivals.append(arrival)
    grows = not all(domain.ended for domain in domains)
    found = TuningText(tuple(domains), f"{stage}/{params.label}", Background(arrivals) if grows else None)
    _ = found.beginning  # once: what is sent to other ranks has it
    return found


def _cut(length: int, holdout: int, least: int, most: int, field: str, tokens: Tokens, windows: int | None) -> HeldOut:
    return held_out_windows(
        tokens, length, holdout=holdout, least=least, most=most if windows is None else windows, field=field
    )


def _domain(params: TrainingParams, field: str, name: str | None, share: float, arrival: Arrival) -> Domain:
    """As far as it has arrived."""
    told, found = arrival.told.popleft(), arrival.found
    domain = Domain(
        told.train_NT,
        found.holdout_NL,
        name=name,
        share=share,
        warning=_warning(params, field, found, told.read),
        portion=arrival.portion,
    )
    domain.grow(told)
    if told.ended:
        domain.digests.clear()
    return domain


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


@lru_cache(maxsize=8)  # of one portion after another, of some domains
def _order(count: int, seed: int, number: int) -> Tensor:
    """Of the windows of a portion, whose number counts the portions of all epochs."""
    return torch.randperm(count, generator=torch.Generator().manual_seed((seed << 24) + number))
