"""Sparsity as a constraint of the optimiser, by the alternating direction method of multipliers (ELSA, Lee et al. 2025,
arXiv:2510.01650).

Dense weights x minimise the loss while they are drawn to z, the sparse ones nearest to them, by a force that grows as
long as they differ: f(x) + penalty / 2 |x - z + u|^2. Nearness counts every weight by Adam's second moment, which
stands for its curvature. No mask stands before the weights until the end, when x becomes its own sparse version.
"""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from workers.engine.contracts.training import Procedure, Trained
from workers.engine.training.moments import in_full
from workers.engine.training.shards import whole
from workers.engine.training.trainable import unfrozen
from workers.engine.training.weight_masks import WeightMasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.training import Target


BETAS = (0.9, 0.95)
"""As in the authors' runs."""
_LEAST = 1e-16
"""Added to second moments: weights that never had a gradient, as of experts without tokens, are told apart by size."""


class Elsa(Procedure):
    """x are the parameters; z and u are kept beside them, in their shapes."""

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        target: Target,
        *,
        projection: int,
        interval: int,
        penalty: float,
        curved: bool,
    ) -> None:
        """`projection`: the step that ends with the final mask; until then z and u are updated every `interval` steps.
        `penalty`: lambda. `curved`: whether nearness counts weights by Adam's second moment."""
        super().__init__()
        self._curved = curved
        self._projection, self._interval, self._penalty = projection, interval, penalty
        self._trainable = unfrozen(model, architecture, lambda _: True)
        self._masks = WeightMasks(model, architecture, target)
        self._optimizer: Optimizer | None = None
        self._projected = torch.zeros((), dtype=torch.bool)
        self._z: dict[str, Tensor] = {}
        self._u: dict[str, Tensor] = {}
        self.parameters, self.masks = self._trainable.parameters, self._trainable.masks
        self.state = {"projected": self._projected, **_named("gone", self._masks.gone)}

    def optimizer(self, adamw: Callable[..., Optimizer], learning_rate: float, weight_decay: float) -> Optimizer:
        """With z and u: what only steps need is not there where the trained model is put together."""
        self._optimizer = super().optimizer(partial(adamw, betas=BETAS), learning_rate, weight_decay)
        x = self._x()
        self._masks.take(self._scores(x))
        self._z = {name: own.masked_fill(self._masks.gone[name], 0) for name, own in x.items()}
        self._u = {name: torch.zeros_like(own) for name, own in x.items()}
        self.state = {**self.state, **_named("z", self._z), **_named("u", self._u)}
        return self._optimizer

    def before_clipping(self) -> None:
        if self._projected:
            self._masks.hold()

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        if self._projected:
            return
        for name, parameter in self._masks.parameters.items():
            if parameter.grad is not None:
                away = parameter - self._z[name] + self._u[name]
                parameter.grad.add_(away, alpha=self._penalty)

    @torch.no_grad()
    def after_update(self, step: int, optimizer: Optimizer) -> None:
        done = step + 1
        if done >= self._projection:
            if not self._projected:
                self._masks.take(self._scores(self._x()))
                self._projected.fill_(True)
            self._masks.zero()  # Adam's moments of before would still move them
        elif done % self._interval == 0:
            sums = {name: x + self._u[name] for name, x in self._x().items()}
            self._masks.take(self._scores(sums))
            for name, parameter in self._masks.parameters.items():
                self._z[name].copy_(sums[name].masked_fill_(self._masks.gone[name], 0))
                self._u[name].add_(parameter - self._z[name])

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        if not self._projected:  # as x would be cut now, which z need not be
            before = {name: gone.clone() for name, gone in self._masks.gone.items()}
            self._masks.take(self._scores(self._x()))
        with self._masks.applied():
            yield
        if not self._projected:
            for name, gone in self._masks.gone.items():
                gone.copy_(before[name])

    @torch.no_grad()
    def figures(self) -> Mapping[str, float]:
        """`distance`: of x from z, as a share of the length of x."""
        if self._projected:
            return {"distance": 0.0}
        apart = sum(float(whole((x - self._z[name]).square().sum())) for name, x in self._x().items())
        length = sum(float(whole(x.square().sum())) for x in self._x().values())
        return {"distance": (apart / max(length, 1e-30)) ** 0.5}

    def finished(self) -> Trained:
        return Trained(self._trainable.merged)

    def _x(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self._masks.parameters.items()}

    def _scores(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """v w^2, by Adam's second moment v; w^2 before there is one, and where it does not count."""
        found = {}
        for name, weight in weights.items():
            optimizer = self._optimizer if self._curved else None
            moments = optimizer.state.get(self._masks.parameters[name]) if optimizer else None
            squared = weight.square()
            found[name] = squared.mul_(in_full(moments["exp_avg_sq"]) + _LEAST) if moments else squared
        return found


def _named(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}
