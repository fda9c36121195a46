"""Pruning-aware training: groups of coupled weights go one after the other while the model trains.

A running estimate of what the loss would gain says which. A group that goes is zero from then on, in all its tensors
and in the optimiser's moments, and its values are masked, so that no gradient brings it back: it is cut out when
training has ended. A hidden dimension is zero everywhere then, so that norms, which divide by the root mean square of
all of them, give what they will give of those that are left, times a constant that the cut accounts for.
O = outputs, I = inputs, U = units of a family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from workers.engine.contracts.facts import LayerTask
from workers.engine.contracts.training import Procedure, Trained
from workers.engine.maths.group_choice import Groups, gone_by, next_groups
from workers.engine.maths.second_order import hessian_of, without_inputs
from workers.engine.training.budget import parameters_going
from workers.engine.training.decided import row_of, rows_of
from workers.engine.training.group_slices import GroupSlices
from workers.engine.training.recent_inputs import RecentInputs, gram
from workers.engine.training.trainable import unfrozen
from workers.engine.training.unit_masks import UnitMasks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from workers.engine.architectures.architecture import Architecture, Family
    from workers.engine.contracts.training import Target
    from workers.engine.maths.group_choice import Course
    from workers.engine.training.decided import Row

Saliency = Literal["second_moment", "squared_gradient", "taylor"]
_BETAS = (0.9, 0.95)
"""AdamW's, as in pretraining."""


@dataclass(frozen=True)
class Removing:
    """When groups go, and how."""

    begins: int
    """Steps before the first may go, >= 1: the estimate begins then."""
    ends: int
    """Steps after which all are gone."""
    every: int
    """Steps from one removal to the next."""
    course: Course
    saliency: Saliency
    decay: float
    """Of the running mean of the saliency, from one refresh to the next."""
    refresh: int
    """Steps from one refresh to the next, of a saliency that is not measured every step."""
    dampening: float | None
    """Of the least squares by which layers make up for inputs that go; None where they do not."""
    recent: int
    """Steps up to a removal whose inputs these see, as far as they are after the one before."""
    rests: bool
    """Whether weights do not train before all groups are gone."""

    def now(self, step: int) -> bool:
        """Whether groups go at the end of a step, counted from 0."""
        return self.next(step) == step

    def next(self, step: int) -> int | None:
        """The first step, from this one on, at whose end groups go; None after the last."""
        done = step + 1
        if done > self.ends:
            return None
        intervals = max(1, -(-(done - self.begins) // self.every))
        return min(self.begins + intervals * self.every, self.ends) - 1

    def records(self, step: int) -> bool:
        """Whether the least squares of a removal see the inputs of a step."""
        later = self.next(step)
        return self.dampening is not None and later is not None and later - step < self.recent

    def share(self, step: int) -> float:
        """Of all that goes, what is gone at the end of a step."""
        return gone_by(self.course, (step + 1 - self.begins) / (self.ends - self.begins))


class PruningAware(Procedure):
    def __init__(self, model: nn.Module, architecture: Architecture, target: Target, removing: Removing) -> None:
        super().__init__()
        self._removing = removing
        self._target, self._slices = target, GroupSlices(model, architecture)
        self._families: dict[Row, Family] = {
            row: self._slices.of_the_model(families) if families[0].shared else families[0]
            for row, families in rows_of(target.families).items()
        }
        self._most = {
            row: family.units - target.least.get(row, 1) if target.going is None else target.going[row]
            for row, family in self._families.items()
        }
        self._wanted = parameters_going(target, architecture.prunable_parameters)
        trainable = unfrozen(model, architecture, lambda _: True)
        self.parameters, self.masks, self._merged = trainable.parameters, trainable.masks, trainable.merged
        self._read = [family for family in self._families.values() if not family.shared]
        """Families of which one layer reads the units."""
        self._masks = UnitMasks(model, architecture, self._read)
        recorded = self._read if removing.dampening is not None else []
        self._recent = RecentInputs(model, architecture, recorded, gram)
        units = {key: family.units for key, family in self._families.items()}
        self._order = {key: torch.zeros(count, dtype=torch.int64) for key, count in units.items()}
        """Number of the removal in which each unit went, from 1; 0 for those that are there."""
        self._saliency = {key: torch.zeros(count, dtype=torch.float64) for key, count in units.items()}
        """Running sum of the saliency; its mean is over `_measured`."""
        self._measured = torch.zeros((), dtype=torch.float64)
        self._adamw: Optimizer | None = None
        self.state = {
            "measured": self._measured,
            **{f"kept/{_name(key)}": mask_U for key, mask_U in self._masks.values.items()},
            **{f"order/{_name(key)}": order_U for key, order_U in self._order.items()},
            **{f"saliency/{_name(key)}": saliency_U for key, saliency_U in self._saliency.items()},
            **{f"gram/{name}": gram_II for name, gram_II in self._recent.sums.items()},
            **{f"tokens/{name}": count for name, count in self._recent.tokens.items()},
        }

    def optimizer(self, adamw: Callable[..., Optimizer], learning_rate: float, weight_decay: float) -> Optimizer:
        parameters = list(self.parameters.values())
        self._adamw = adamw(parameters, lr=learning_rate, weight_decay=weight_decay, betas=_BETAS)
        return self._adamw

    def begin(self, step: int) -> None:
        if self._removing.records(step):
            self._recent.record(step)

    def before_update(self, step: int) -> None:
        if self._removing.saliency != "second_moment":
            self._measure(self._by_gradient)
        if self._removing.rests and step < self._removing.ends:
            assert self._adamw is not None
            for group in self._adamw.param_groups:
                group["lr"] = 0.0  # the schedule sets it again; moments are kept up

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        self._recent.stop()
        removing, done = self._removing, step + 1
        if removing.now(step):
            self._remove(self._chosen(removing.share(step)), optimizer)
            self._recent.clear()
        soon = removing.now(done) or done % removing.refresh == 0
        if removing.saliency == "second_moment" and soon and done < removing.ends:
            self._measure(self._by_second_moment)

    def figures(self) -> Mapping[str, float]:
        return {"share gone": self._target.share * self._gone() / self._wanted}

    def finished(self) -> Trained:
        return Trained(self._merged, self._scores())

    # What goes

    def _gone(self) -> int:
        gone = {key: int((order_U > 0).sum()) for key, order_U in self._order.items()}
        return sum(gone[key] * family.unit_parameters for key, family in self._families.items())

    def _chosen(self, share: float) -> list[tuple[Row, int]]:
        """The groups that go, for `share` of all removals to be done."""
        gone, groups = self._gone(), {}
        for key, family in self._families.items():
            kept_U = self._order[key] == 0
            most = self._most[key] - int((~kept_U).sum())
            mean_U = self._saliency[key] / self._measured
            groups[key] = Groups(family.unit_parameters, most, mean_U, kept_U)
        return next_groups(groups, round(share * self._wanted) - gone, self._wanted - gone)

    @torch.no_grad()
    def _remove(self, chosen: Sequence[tuple[Row, int]], optimizer: Optimizer) -> None:
        """Take out groups."""
        units: dict[Row, list[int]] = {}
        went = sum(int((order_U > 0).sum()) for order_U in self._order.values())
        for number, (key, unit) in enumerate(chosen, start=went + 1):
            self._order[key][unit] = number
            units.setdefault(key, []).append(unit)
        for key, going in units.items():
            family = self._families[key]
            if family in self._read:
                if self._removing.dampening is not None:
                    self._make_up(family, going, self._removing.dampening)
                self._masks.values[family.block, family.kind][going] = 0
            for member in family.members:
                parameter = self._slices.parameter(member)
                moments = optimizer.state.get(parameter, {})
                beside = [moments[name] for name in ("exp_avg", "exp_avg_sq") if name in moments]
                for whole in (parameter.data, *beside):
                    self._slices.clear(family, going, whole, member)

    def _make_up(self, family: Family, going: Sequence[int], dampening: float) -> None:
        """Update the weights of the reader that stay, by least squares over recent inputs."""
        weight_OI = self._slices.read(family.reader, lambda parameter: parameter.data)
        width = weight_OI.shape[1] // family.units
        there_U = self._masks.values[family.block, family.kind] != 0
        stays_U = there_U.clone()
        stays_U[list(going)] = False
        there_I, stays_I = there_U.repeat_interleave(width), stays_U.repeat_interleave(width)
        gram_II = self._recent.mean(family)[there_I][:, there_I]
        task = LayerTask(family.reader.tensor.rpartition(".")[0], weight_OI, 0.0)
        damped_II = hessian_of(gram_II, dampening, [task]).damped_II
        updated_OI = weight_OI.clone()
        updated_OI[:, there_I] = without_inputs(weight_OI[:, there_I], stays_I[there_I], damped_II)
        self._slices.write(family.reader, updated_OI)

    # The saliency

    def _measure(self, sums: Callable[[Family], Tensor]) -> None:
        """Add the present saliency of all groups to the running mean."""
        decay = self._removing.decay
        for key, family in self._families.items():
            self._saliency[key].mul_(decay).add_(sums(family), alpha=1 - decay)
        self._measured.mul_(decay).add_(1 - decay)

    def _by_gradient(self, family: Family) -> Tensor:
        def gradient(parameter: nn.Parameter) -> Tensor:
            return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

        taylor = self._removing.saliency == "taylor"

        def value(parts: Sequence[Tensor]) -> Tensor:
            product = parts[0] * parts[1]
            return product if taylor else product.square() / 2

        sums_U = self._slices.sums(family, value, _weight, gradient)
        return sums_U.abs()

    def _by_second_moment(self, family: Family) -> Tensor:
        """Half the sum of w^2 v, v AdamW's second moment without the bias of its beginning."""
        assert self._adamw is not None
        optimizer = self._adamw

        def moment(parameter: nn.Parameter) -> Tensor:
            state = optimizer.state.get(parameter)
            if not state:
                return torch.zeros_like(parameter)
            unbiased: Tensor = state["exp_avg_sq"] / (1 - _BETAS[1] ** float(state["step"]))
            return unbiased

        return self._slices.sums(family, lambda parts: parts[0].square() * parts[1] / 2, _weight, moment)

    def _scores(self) -> list[dict[str, Sequence[float]]]:
        """Below zero what went, lowest what went first; above it what stayed, by saliency."""
        families = self._target.families
        found: list[dict[str, Sequence[float]]] = [{} for _ in range(1 + max(family.block for family in families))]
        last = max(int(order_U.max()) for order_U in self._order.values())
        for family in families:
            order_U = self._order[row_of(family)]
            mean_U = self._saliency[row_of(family)] / self._measured
            found[family.block][family.kind] = torch.where(order_U > 0, (order_U - last - 1).double(), mean_U).tolist()
        return found


def _name(row: Row) -> str:
    block, kind = row
    return kind if block is None else f"{block}/{kind}"


def _weight(parameter: nn.Parameter) -> Tensor:
    return parameter.data
