"""Weights and inputs of one layer, drawn from a seed, and hard ones.

O = outputs, I = inputs, N = tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from workers.engine.contracts.facts import LinearStats
from workers.engine.contracts.params import Stat

OUTPUTS, INPUTS = 24, 16
TOKENS = 64


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weight(seed: int = 0, outputs: int = OUTPUTS, inputs: int = INPUTS) -> Tensor:
    return torch.randn(outputs, inputs, generator=seeded(seed))


def inputs_of(seed: int = 1, tokens: int = TOKENS, inputs: int = INPUTS) -> Tensor:
    """Correlated, off zero, and of very different scales."""
    generator = seeded(seed)
    mixing_II = torch.randn(inputs, inputs, generator=generator) / inputs**0.5 + torch.eye(inputs)
    scale_I = torch.rand(inputs, generator=generator) * 3 + 0.1
    drawn_NI: Tensor = (torch.randn(tokens, inputs, generator=generator) @ mixing_II + 0.3) * scale_I
    return drawn_NI


def poisons() -> dict[str, Tensor]:
    """Inputs that occur and are hard: [N, I]."""
    dead_NI = inputs_of()
    dead_NI[:, 3:9] = 0
    return {
        "all-zero": torch.zeros(TOKENS, INPUTS),
        "one-dead-group": dead_NI,
        "constant": torch.ones(TOKENS, INPUTS) * torch.linspace(0.1, 2, INPUTS),
        "one-token": inputs_of(tokens=2)[:1].repeat(2, 1),
        "tiny": inputs_of() * 1e-12,
        "huge": inputs_of() * 1e12,
        "very-unequal": inputs_of() * torch.logspace(-6, 6, INPUTS),
    }


def stats_of(x_NI: Tensor, needs: Stat, z_NI: Tensor | None = None) -> LinearStats:
    """The statistics of inputs, as far as they are needed; `z_NI` is what they are in the dense block."""
    count = len(x_NI)
    moments, twins = Stat.INPUT_MOMENTS in needs, Stat.DENSE_INPUTS in needs and z_NI is not None
    fourth_root_I = x_NI.double().pow(4).mean(dim=0).pow(0.25).float()
    return LinearStats(
        tokens=count,
        window_tokens=count // 2,
        input_sq_mean_I=x_NI.square().mean(dim=0) if needs else None,
        input_mean_I=x_NI.mean(dim=0) if moments else None,
        input_variance_I=x_NI.var(dim=0, correction=0) if moments else None,
        input_abs_mean_I=x_NI.abs().mean(dim=0) if Stat.INPUT_ABS_MEAN in needs else None,
        input_fourth_root_I=fourth_root_I if Stat.INPUT_FOURTH_MEAN in needs else None,
        input_abs_max_I=x_NI.abs().amax(dim=0) if Stat.INPUT_ABS_MAX in needs else None,
        gram_II=x_NI.T @ x_NI / count if Stat.GRAM in needs else None,
        dense_gram_II=z_NI.T @ z_NI / count if twins and z_NI is not None else None,
        cross_gram_II=z_NI.T @ x_NI / count if twins and z_NI is not None else None,
    )


def stats_for(needs: Stat) -> LinearStats:
    """The same of drawn inputs, a little off those of the dense block."""
    z_NI = inputs_of()
    return stats_of(z_NI + 0.1 * torch.randn(z_NI.shape, generator=seeded(2)), needs, z_NI)


def tensors_in(stats: LinearStats) -> dict[str, Tensor]:
    values = {field.name: getattr(stats, field.name) for field in fields(stats)}
    return {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
