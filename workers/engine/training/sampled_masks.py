"""Masks that are learnt from forward passes alone: chance decides which units stay, and the losses say how their
probabilities move. Weights are frozen. K = models tried in a step, N = units of a kind, U = units of a family.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from workers.engine.contracts.training import Procedure, Trained
from workers.engine.maths.bernoulli import exact_gradient, papers_gradient, probabilities, projected
from workers.engine.training.budget import parameters_going
from workers.engine.training.decided import lowest_of_all, lowest_of_each, row_of, rows_of, scores_of, units_of
from workers.engine.training.group_slices import GroupSlices
from workers.engine.training.recent_inputs import RecentInputs, squares
from workers.engine.training.unit_masks import UnitMasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from workers.engine.architectures.architecture import Architecture, Family, Kind
    from workers.engine.contracts.training import Target
    from workers.engine.training.decided import Row


_DECIDED = 0.05
"""A probability this near to 0 or 1 counts as decided."""


@dataclass(frozen=True)
class Sampling:
    """How probabilities are learnt."""

    samples: int
    """Models tried in a step, >= 2."""
    window: int
    """Steps that the baseline is the running mean of."""
    exact: bool
    """Whether the estimate of the gradient is unbiased; else the paper's."""
    from_weights: bool
    """Whether the first probabilities follow the weights and inputs of the layers that read the units; else all are
    the same."""
    head_rate: float | None
    """Learning rate of heads, if not that of the others."""


class SampledMasks(Procedure):
    backward: ClassVar[bool] = False

    def __init__(self, model: nn.Module, architecture: Architecture, target: Target, sampling: Sampling) -> None:
        super().__init__()
        model.requires_grad_(False)
        self._sampling, self._target, self._prunable = sampling, target, architecture.prunable_parameters
        self._wanted = parameters_going(target, self._prunable)
        self._by_kind: dict[Kind, list[Family]] = {}
        for family in target.families:
            self._by_kind.setdefault(family.kind, []).append(family)
        self._model, self._architecture, self._slices = model, architecture, GroupSlices(model, architecture)
        self._masks = UnitMasks(model, architecture, target.families)
        self._read = [family for family in target.families if not family.is_block]
        """Families whose units a layer reads."""
        # On the CPU, so that chance is the same on every device.
        self.parameters = {
            kind: nn.Parameter(
                torch.cat([torch.full((family.units,), self._share(family)) for family in families]),
                requires_grad=False,
            )
            for kind, families in self._by_kind.items()
        }
        """Kind -> probability that each unit stays, [N], family by family."""
        self._baseline = torch.full((), torch.nan, dtype=torch.float64)
        self._begun = torch.zeros((), dtype=torch.bool)
        self._chance: dict[Kind, Tensor] = {}
        self.state = {"baseline": self._baseline, "begun": self._begun}

    def optimizer(self, adamw: Callable[..., Optimizer], learning_rate: float, weight_decay: float) -> Optimizer:
        """Plain gradient descent, with a rate of its own for heads."""
        rates = {"head": self._sampling.head_rate or learning_rate}
        groups = [
            {"params": [stays_N], "lr": rates.get(kind, learning_rate)} for kind, stays_N in self.parameters.items()
        ]
        return torch.optim.SGD(groups, lr=learning_rate, weight_decay=weight_decay)

    def clipped(self) -> list[nn.Parameter]:
        return []

    def begin(self, step: int) -> None:
        self._chance = {
            kind: torch.rand(self._sampling.samples, len(stays_N)) for kind, stays_N in self.parameters.items()
        }

    @torch.no_grad()
    def estimate(self, loss: Callable[[], Tensor]) -> Tensor:
        """Losses that are not finite are left out. Where fewer than two are left, nothing moves."""
        if not self._begun:
            self._start(loss)
        drawn = {kind: self._chance[kind] < stays_N for kind, stays_N in self.parameters.items()}
        losses = []
        for number in range(self._sampling.samples):
            self._apply({kind: drawn_KN[number] for kind, drawn_KN in drawn.items()})
            losses.append(loss())
        self._apply(None)
        loss_K = torch.stack(losses).double().cpu()
        finite_K = loss_K.isfinite()
        loss_K = loss_K[finite_K]
        if len(loss_K) > 1:
            self._follow(loss_K.mean())
        for kind, stays_N in self.parameters.items():
            stays_N.grad = self._gradient(loss_K, drawn[kind][finite_K], stays_N)
        return loss_K.mean()

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        """Bring the probabilities back to what the target lets stay: in each row where it says how many go there, else
        in all of a kind."""
        going = self._target.going
        for kind, families in self._by_kind.items():
            stays_N = self.parameters[kind].data
            if going is None:
                stays_N.copy_(projected(stays_N, sum(family.units * self._share(family) for family in families)))
                continue
            for row, stays_U in self._by_row(kind).items():
                stays_U.copy_(projected(stays_U, len(stays_U) - going[row]))

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        closed = self._closed()
        self._apply({kind: ~torch.cat([closed[row] for row in self._by_row(kind)]) for kind in self._by_kind})
        try:
            yield
        finally:
            self._apply(None)

    def figures(self) -> Mapping[str, float]:
        gone = sum(
            float((1 - stays_U).sum()) * family.unit_parameters
            for kind, families in self._by_kind.items()
            for family, stays_U in zip(families, self._of_families(kind, self.parameters[kind].data), strict=True)
        )
        all_N = torch.cat([stays_N.data for stays_N in self.parameters.values()])
        return {
            "share gone on average": gone / self._prunable,
            "units undecided": float(((all_N > _DECIDED) & (all_N < 1 - _DECIDED)).float().mean()),
        }

    def finished(self) -> Trained:
        found = scores_of(self._target.families, self._importance(), self._closed())
        return Trained(lambda _, stored: stored, found)

    def _share(self, family: Family) -> float:
        """Share of the units of a family's row that stays on average: heads and channels lose the same where the target
        does not say how many."""
        if self._target.going is not None:
            row = row_of(family)
            return 1 - self._target.going[row] / units_of(rows_of(self._target.families)[row])
        return 1 - self._wanted / sum(one.units * one.unit_parameters for one in self._target.families)

    def _start(self, loss: Callable[[], Tensor]) -> None:
        """Set the first probabilities. Those of layers, which nothing reads as a unit, stay alike."""
        self._begun.fill_(True)
        if not self._sampling.from_weights:
            return
        inputs = RecentInputs(self._model, self._architecture, self._read, squares)
        inputs.record(step=0)
        loss()
        inputs.stop()
        for family in self._read:
            weight_OI = self._slices.read(family.reader, lambda parameter: parameter.data).float()
            score_I = weight_OI.abs().mean(dim=0) * inputs.mean(family).sqrt()
            score_U = score_I.view(family.units, -1).sum(dim=1).cpu()
            self._by_row(family.kind)[row_of(family)].copy_(probabilities(score_U, self._share(family)))

    def _follow(self, loss: Tensor) -> None:
        """Let the baseline follow the mean loss of a step."""
        self._baseline.copy_(
            torch.where(self._baseline.isnan(), loss, self._baseline + (loss - self._baseline) / self._sampling.window)
        )

    def _gradient(self, loss_K: Tensor, drawn_KN: Tensor, stays_N: Tensor) -> Tensor:
        if len(loss_K) < 2:
            return torch.zeros_like(stays_N)
        if self._sampling.exact:
            return exact_gradient(loss_K, drawn_KN, stays_N)
        return papers_gradient(loss_K, float(self._baseline), drawn_KN, stays_N)

    def _apply(self, stays: Mapping[Kind, Tensor] | None) -> None:
        """Mask the units that do not stay; None stands for all of them staying."""
        for kind, families in self._by_kind.items():
            stays_N = torch.ones(len(self.parameters[kind])) if stays is None else stays[kind]
            for family, stays_U in zip(families, self._of_families(kind, stays_N), strict=True):
                self._masks.values[family.block, kind].copy_(stays_U)

    def _of_families(self, kind: Kind, values_N: Tensor) -> Sequence[Tensor]:
        """The values of each family's units, as views."""
        return torch.split(values_N, [family.units for family in self._by_kind[kind]])

    def _by_row(self, kind: Kind) -> dict[Row, Tensor]:
        """The probabilities of each row of a kind, as views."""
        rows = rows_of(self._by_kind[kind])
        parts = torch.split(self.parameters[kind].data, [units_of(families) for families in rows.values()])
        return dict(zip(rows, parts, strict=True))

    def _importance(self) -> dict[Row, Tensor]:
        return {row: stays_U for kind in self._by_kind for row, stays_U in self._by_row(kind).items()}

    def _closed(self) -> dict[Row, Tensor]:
        """Row -> bool [U]: units that go, of the lowest probabilities. Where the target does not say how many, heads go
        in the nearest number to their share, and channels make up for the rest."""
        importance = self._importance()
        if self._target.going is not None:
            return lowest_of_each(importance, self._target.going)
        found: dict[Row, Tensor] = {}
        kinds, left = [self._by_kind[kind] for kind in sorted(self._by_kind, reverse=True)], float(self._wanted)
        for number, families in enumerate(kinds):
            rows = {row_of(family): importance[row_of(family)] for family in families}
            sizes = {row_of(family): family.unit_parameters for family in families}
            own = left
            if number + 1 < len(kinds):
                own = sum((1 - self._share(family)) * family.units * family.unit_parameters for family in families)
            closed = lowest_of_all(rows, sizes, own, self._target.least)
            left -= sum(int(closed_U.sum()) * sizes[row] for row, closed_U in closed.items())
            found |= closed
        return found
