"""Hard-concrete gates (Louizos et al. 2017, arXiv:1712.01312): random numbers in [0, 1], often exactly 0 or 1, through
which the chance of being 0 is learnt.

A gate of parameter alpha is drawn as z = min(1, max(0, 1.2 y - 0.1)), y = sigmoid((log u - log(1 - u) + alpha) / beta),
u uniform in (0, 1). The constants are those of Compresso (arXiv:2310.05015) and Sheared LLaMA (arXiv:2310.06694), read
in their code. Shapes are any, of all arguments and results alike; float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

BETA = 2 / 3
LOW, HIGH = -0.1, 1.1
"""Where y = 0 and y = 1 come to lie before z is cut to [0, 1]."""
BOUND = math.log(100)
"""Alpha is kept within: a gate is 0 with a chance of 0.2 % at least and of 95.3 % at most."""
_SMALLEST_U = 1e-6
_TOWARDS_THE_ENDS = 0.8
"""Of the authors' code: a gate without chance has the value sigmoid(0.8 alpha / beta)."""
_ALWAYS_CUT = BETA * math.log(-LOW / HIGH)


def noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """u for gates of the shape of `like`, drawn on the CPU, so that it is the same on every device."""
    u = torch.rand(like.shape, generator=generator, dtype=torch.float32)
    return (u * (1 - 2 * _SMALLEST_U) + _SMALLEST_U).to(like.device)


def drawn(alpha: Tensor, u: Tensor) -> Tensor:
    """The gates z in [0, 1]. Where z is 0 or 1 it has no gradient."""
    y = ((u.log() - (-u).log1p() + alpha) / BETA).sigmoid()
    return (y * (HIGH - LOW) + LOW).clamp(0, 1)


def chance_of_zero(alpha: Tensor) -> Tensor:
    """P(z = 0) = sigmoid(beta log(0.1 / 1.1) - alpha)."""
    return (_ALWAYS_CUT - alpha).sigmoid()


def settled(alpha_N: Tensor, closed_N: Tensor) -> Tensor:
    """The gates without chance: 0 where they are closed, else what the authors' code sets them to, 0.996 at the largest
    alpha."""
    return (alpha_N * (_TOWARDS_THE_ENDS / BETA)).sigmoid().where(~closed_N, 0)


def clamp_(alpha: Tensor) -> None:
    """Keep alpha where a gate can still change."""
    with torch.no_grad():
        alpha.clamp_(-BOUND, BOUND)
