"""The same channels of two MLPs, found by their weights: an MLP computes the same in whatever order its channels are.

Weight matching of Ainsworth et al. 2023 (Git Re-Basin, arXiv:2209.04836), as M-SMoE (Li et al. 2024, arXiv:2310.01334)
uses it before it averages experts. C = channels, N = weights of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def matched_channels(mine: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """For each channel of one MLP the channel of the other that stands in its place, int64 [C]: the order of the
    other's channels in which all weights together differ least, in squares. Both are given as matrices [C, N] in pairs.
    """
    from scipy.optimize import linear_sum_assignment

    products_CC = torch.stack([a.float() @ b.float().T for a, b in zip(mine, others, strict=True)]).sum(dim=0)
    _, order_C = linear_sum_assignment(products_CC.cpu().numpy(), maximize=True)
    return torch.from_numpy(order_C).to(products_CC.device)
