"""Tries: some bounds can only be measured on the result. Where it breaks one, the job allocates and prunes again.

A perplexity ratio is predicted by trial prunings, a decode time by a table of times. In a further try the bound on the
prediction is tightened by the factor by which the result exceeded its bound.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from workers.engine.contracts.needed import needed
from workers.engine.errors import PromiseBroken
from workers.engine.model.memory import memory_budget
from workers.engine.planning.predictions import whole_models
from workers.engine.removals.decode_times import decode_time
from workers.engine.report import Bound, Try

if TYPE_CHECKING:
    from pathlib import Path

    from workers.engine.contracts.facts import Allocation
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.run import Run

MOST_TRIES = 5
_MARGIN = 0.05
"""Fraction of the logarithm of the ratio that a further try leaves as a margin."""


class BoundExceeded(Exception):
    """The result breaks the spec's bound, and there is another try."""


class Tries:
    """The tries of one job. Those that broke the bound are kept in its checkpoint: a retry continues at the next."""

    def __init__(self, spec: CompressionSpec, run: Run) -> None:
        self._spec, self.shared = spec, run
        self._bound = spec.edit.bound
        self._broken = [Try(**tried) for tried in run.checkpoint.load_json("tries") or []]
        self._held: Try | None = None
        self.present = run.with_checkpoint(self._next())
        """The run with the resume points of the present try; `shared` has those of work that all tries share."""

    @property
    def number(self) -> int:
        """Number of the present try, from 1."""
        return 1 + len(self._broken)

    @property
    def bound(self) -> float | None:
        """Bound on the prediction (trial pruning, or table of times) in this try; None where the spec has no such
        bound."""
        if self._bound is None:
            return None
        asked = self._bound.asked
        if not self._broken:
            return asked
        last = self._broken[-1]
        if self._bound.name == "decode_time":
            return last.predicted * asked / last.measured
        if last.predicted <= 1:  # the trial predicted no loss: only `below` changes the next try
            return asked
        return math.exp((1 - _MARGIN) * math.log(last.predicted) * math.log(asked) / math.log(last.measured))

    @property
    def below(self) -> float:
        """Upper bound, exclusive, of the sparsity that is searched for a ratio."""
        if not self._broken:
            return 1.0
        last = self._broken[-1]
        return last.target_sparsity if last.predicted > 1 else last.target_sparsity / 2

    def check(self, allocation: Allocation, measured: float) -> None:
        """Record the value measured on the result. Raises BoundExceeded where it is above the bound and another try may
        keep it, PromiseBroken where none will."""
        bound, predicted = needed(self._bound, "a bound on the result"), needed(allocation.predicted, "a prediction")
        tried = Try(target_sparsity=allocation.target, predicted=predicted, measured=measured)
        number = self.number
        holds = measured <= bound.asked * (1 + bound.tolerance)
        self.shared.events.log(
            f"try {number}: {bound.name} {measured:.4f} of the result at a sparsity of {tried.target_sparsity:.4f}, "
            f"{tried.predicted:.4f} foreseen, {bound.asked:g} asked for: " + ("kept" if holds else "broken"),
            "info" if holds else "warning",
        )
        if holds:
            self._held = tried
            return
        self._broken.append(tried)
        if number == MOST_TRIES or (bound.name == "perplexity_ratio" and not tried.target_sparsity):
            raise self.given_up()
        self.shared.checkpoint.save_json("tries", [tried.model_dump() for tried in self._broken])
        self.present = self.shared.with_checkpoint(self._next())
        self.shared.events.log(f"try {self.number} of at most {MOST_TRIES}: foreseen must be {self.bound:.4f} at most")
        raise BoundExceeded

    def check_decode_time(self, allocation: Allocation, dense: LoadedModel, folder: Path) -> None:
        """Time the model in `folder` beside the dense one where the spec bounds that, and `check` it."""
        limit = self._spec.edit.size_limit
        if limit is not None and limit.decode_time is not None:
            budget = memory_budget(self._spec.compute.memory_budget, dense.device)
            resident = whole_models(self._spec, dense.source, dense.architecture, budget) > 1
            self.check(allocation, dense.ranks.first(lambda: decode_time(dense, folder, limit, resident).ratio))

    def report(self) -> Bound | None:
        """Values asked for, predicted and measured; None where the spec has no such bound."""
        if self._held is None or self._bound is None:
            return None
        bound, tries = self._bound, [*self._broken, self._held]
        return Bound(name=bound.name, asked=bound.asked, tolerance=bound.tolerance, tries=tries)

    def _next(self) -> Checkpoint:
        """Resume points of the next try; those of the tries that broke the bound are removed."""
        found = self.shared.checkpoint
        for number in range(2, 2 + len(self._broken)):
            found.forget_result()
            found = self.shared.checkpoint.of_try(number)
        return found

    def given_up(self) -> PromiseBroken:
        """The error after a try that broke the bound, where no other may keep it."""
        tries, bound = self._broken, needed(self._bound, "a bound on the result")
        nearest = min(tries, key=lambda tried: tried.measured)
        if not nearest.target_sparsity:
            return PromiseBroken(
                f"the perplexity is {nearest.measured:.4f} times the dense model's with nothing removed, "
                f"{bound.asked:g} was asked for",
                "package in a type of more digits, leave `tune` out or tune more gently, or allow a larger ratio",
                field=bound.field,
            )
        return PromiseBroken(
            f"{bound.name} {bound.asked:g} was asked for, and the nearest of {len(tries)} tries has "
            f"{nearest.measured:.4f}, {nearest.measured / bound.asked - 1:.1%} more, at a sparsity of "
            f"{nearest.target_sparsity:.4f}",
            f"allow {nearest.measured:.4f}, or give a sparsity in its place and look at the report",
            field=bound.field,
        )
