"""Training with gates: hard-concrete gates learn which units go, beside weights that are trained on text, under
multipliers that hold the gates to a target."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.engine.contracts.training import Procedure, Trained
from workers.engine.maths import hard_concrete
from workers.engine.training.decided import lowest_of_all, lowest_of_each, row_of, scores_of
from workers.engine.training.gates import Gates
from workers.engine.training.lagrangian import Lagrangian

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.facts import Trainable
    from workers.engine.contracts.training import Target
    from workers.engine.training.decided import Row


@dataclass(frozen=True)
class GateSetting:
    """How gates are trained."""

    gate_rate: float
    multiplier_rate: float
    """Learning rates of AdamW, times the schedule's factor."""
    ramp_steps: int
    """Steps over which the target rises linearly from 0."""
    steps: int
    """Of the training."""


class Gated(Procedure):
    """Gates on the units that may go, and what `trainable` trains of the model. `Trainable.merged` gives the weights
    that the gates are merged into."""

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        target: Target,
        trainable: Trainable,
        setting: GateSetting,
    ) -> None:
        super().__init__()
        self.target, self.trainable, self.setting = target, trainable, setting
        self.masks = trainable.masks
        self.prunable = architecture.prunable_parameters
        going = target.going
        losing = [family for family in target.families if going is None or going.get(row_of(family))]
        self.gates = Gates(model, architecture, losing)
        self.lagrangian = Lagrangian(self.gates, target, self.prunable)
        self._over = False
        """Whether the last step is done."""
        self.parameters = {
            **trainable.parameters,
            **{f"gates/{_name(row)}": alpha_N for row, alpha_N in self.gates.alphas.items()},
            **{f"multipliers/{kind}": pair for kind, pair in self.lagrangian.multipliers.items()},
        }

    def optimizer(self, adamw: Callable[..., Optimizer], learning_rate: float, weight_decay: float) -> Optimizer:
        groups: list[dict[str, Any]] = [
            {"params": list(self.trainable.parameters.values())},
            {"params": list(self.gates.alphas.values()), "lr": self.setting.gate_rate, "weight_decay": 0.0},
            {
                "params": list(self.lagrangian.multipliers.values()),
                "lr": self.setting.multiplier_rate,
                "weight_decay": 0.0,
                "maximize": True,
            },
        ]
        return adamw(groups, lr=learning_rate, weight_decay=weight_decay)

    def clipped(self) -> list[nn.Parameter]:
        """The weights alone: gradients of gates grow with the multipliers, and would drown theirs."""
        return list(self.trainable.parameters.values())

    def begin(self, step: int) -> None:
        self.gates.draw()

    def penalty(self, step: int) -> Tensor:
        return self.lagrangian.penalty(min(1.0, (step + 1) / max(1, self.setting.ramp_steps)))

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        for alpha_N in self.gates.alphas.values():
            hard_concrete.clamp_(alpha_N)
        self._over = step + 1 >= self.setting.steps

    def evaluating(self) -> AbstractContextManager[object]:
        return self.gates.settled(self.closed() if self._over else self.closed_by_now())

    def figures(self) -> Mapping[str, float]:
        """The largest gap of each constraint from the whole target."""
        gaps = self.lagrangian.gaps(1.0)
        return {f"gap of {kind}": float(gap_R.abs().max().detach()) for kind, gap_R in gaps.items()}

    def finished(self) -> Trained:
        self._over = True
        closed = self.closed()
        fold = self.gates.merged(closed)

        def merged(name: str, stored: Tensor) -> Tensor:
            return fold(name, self.trainable.merged(name, stored))

        return Trained(merged, scores_of(self.target.families, self.gates.alphas, closed))

    def closed(self) -> dict[Row, Tensor]:
        """Row -> bool [N]: the units that go, exactly as many as the target says."""
        return self._lowest(self.target.going or {}, self.target.share * self.prunable)

    def closed_by_now(self) -> dict[Row, Tensor]:
        """The same of as many as chance closes on average, at most as many as go in the end: the gates begin open, and
        what a model of the whole target's size would lose before they have learnt says nothing about the present one.
        """
        alphas, target = self.gates.alphas, self.target
        expected = {row: float(hard_concrete.chance_of_zero(alpha_N.detach()).sum()) for row, alpha_N in alphas.items()}
        going = {row: min(count, round(expected.get(row, 0.0))) for row, count in (target.going or {}).items()}
        closed = sum(count * self.gates.rows[row][0].unit_parameters for row, count in expected.items())
        return self._lowest(going, min(target.share * self.prunable, closed))

    def _lowest(self, going: Mapping[Row, int], parameters: float) -> dict[Row, Tensor]:
        """Of each row as many as `going` says where the target says so, else those of so many parameters."""
        if self.target.going is not None:
            return lowest_of_each(self.gates.alphas, going)
        sizes = {row: of_row[0].unit_parameters for row, of_row in self.gates.rows.items()}
        return lowest_of_all(self.gates.alphas, sizes, parameters, self.target.least)


def _name(row: Row) -> str:
    block, kind = row
    return kind if block is None else f"{kind}/{block}"
