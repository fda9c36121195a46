"""Adaptive sparse training: dense weights train behind masks of their smallest, which decay (AST, Huang et al. 2024,
arXiv:2407.20584).

The forward pass is that of the masked weights; its gradient goes to all weights straight through, and what is masked
decays beside it, so that a weight comes back only if the loss pulls it harder than the decay does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from workers.engine.contracts.training import Procedure, Trained
from workers.engine.training.trainable import unfrozen
from workers.engine.training.weight_masks import WeightMasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.training import Target

BETAS = (0.9, 0.95)
"""As in the authors' runs."""


class Ast(Procedure):
    """Masks of the smallest weights, taken anew every some steps while the decay grows; then they hold still."""

    def __init__(
        self, model: nn.Module, architecture: Architecture, target: Target, *, ramp: int, interval: int, pull: float
    ) -> None:
        """`ramp`: steps in which masks change, every `interval` of them, and the pull on masked weights grows to
        `pull`."""
        super().__init__()
        self._ramp, self._interval, self._pull = ramp, interval, pull
        self._trainable = unfrozen(model, architecture, lambda _: True)
        self._masks = WeightMasks(model, architecture, target)
        self._kept: dict[str, Tensor] = {}
        self._decay = 0.0
        self._returned = torch.zeros((), dtype=torch.int64)
        self._masks.take(self._masks.sizes())
        self.parameters, self.masks = self._trainable.parameters, self._trainable.masks
        self.state = {f"gone/{name}": gone for name, gone in self._masks.gone.items()} | {"returned": self._returned}

    def optimizer(self, adamw: Callable[..., Optimizer], learning_rate: float, weight_decay: float) -> Optimizer:
        gone = {id(parameter): self._masks.gone[name] for name, parameter in self._masks.parameters.items()}

        def pull(parameter: Tensor) -> Tensor | None:
            mask = gone.get(id(parameter))
            return None if mask is None else self._decay * mask * parameter

        return PulledAdamW(self.parameters.values(), pull, lr=learning_rate, weight_decay=weight_decay)

    def begin(self, step: int) -> None:
        if not self._kept:  # a step may begin twice
            self._kept = self._masks.hide()

    def before_update(self, step: int) -> None:
        self._masks.show(self._kept)
        self._kept = {}
        self._decay = self._pull * min(1.0, (step + 1) / self._ramp)

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        done = step + 1
        if done <= self._ramp and (done % self._interval == 0 or done == self._ramp):
            self._returned.fill_(self._masks.take(self._masks.sizes()))

    def evaluating(self) -> AbstractContextManager[None]:
        return self._masks.applied()

    def figures(self) -> Mapping[str, float]:
        """`returned`: of the weights that go, the share that came in anew with the last masks."""
        return {"sparsity": self._masks.share, "returned": int(self._returned) / self._masks.count}

    def finished(self) -> Trained:
        self._masks.zero()
        return Trained(self._trainable.merged)


class PulledAdamW(Optimizer):
    """AdamW that pulls some parameters beside their gradient: the pull is no part of the first moment m, and is part of
    the second. As in the authors' code, u = m + pull, v is the average of u^2, and w falls by rate u / sqrt(v).

    Parameters without a pull take AdamW's steps (Loshchilov and Hutter 2017, arXiv:1711.05101).
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        pull: Callable[[Tensor], Tensor | None],
        *,
        lr: float,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
    ) -> None:
        """`pull`: parameter -> what is added to its first moment at every step, of its shape; None for nothing."""
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "betas": BETAS, "eps": eps})
        self._pull = pull

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: Mapping[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None  # the caller has looked
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        (beta1, beta2), rate, done = group["betas"], group["lr"], int(state["step"])
        parameter.mul_(1 - rate * group["weight_decay"])
        moment = state["exp_avg"].lerp_(gradient, 1 - beta1)
        pull = self._pull(parameter)
        update = moment if pull is None else pull.add_(moment)
        squared = gradient if pull is None else update
        state["exp_avg_sq"].mul_(beta2).addcmul_(squared, squared, value=1 - beta2)
        root = (state["exp_avg_sq"] / (1 - beta2**done)).sqrt_().add_(group["eps"])
        parameter.addcdiv_(update, root, value=-rate / (1 - beta1**done))
