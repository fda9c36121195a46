"""Select the least important entries, in exact number; check that all are finite.

R = rows, C = columns, G = groups of M entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from workers.engine.contracts.sparsity import removed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from workers.engine.contracts.params import Group

_SMALL_GROUP = 8
"""Up to here comparing all pairs of a group, a few whole-tensor operations, beats selecting in each (7 x for 2:4)."""


def lowest(score_RC: Tensor, count: int) -> Tensor:
    """Boolean [R, C]: True on exactly the `count` lowest entries of each row; of equal ones the first.

    Selects instead of sorting, O(C) a row. Masks nest as `count` grows. Scores must not be NaN.
    """
    if count == 0:
        return score_RC.new_zeros(score_RC.shape, dtype=torch.bool)
    if not score_RC.is_cpu:
        return lowest_unseen(score_RC, count)
    kth_R1 = _kth(score_RC, count)
    lowest_RC = score_RC <= kth_R1
    # Rows in which more entries equal the threshold than may go: rare and slow, so done apart.
    tied_rows = torch.from_numpy(np.count_nonzero(lowest_RC.numpy(), axis=1) > count).nonzero().flatten()
    if len(tied_rows):
        lowest_RC[tied_rows] = _first_of_equals(score_RC[tied_rows], kth_R1[tied_rows], count)
    return lowest_RC


def lowest_unseen(score_RC: Tensor, count: int) -> Tensor:
    """As `lowest`, for a GPU: reads no value back, so that the device is not waited for. `topk` shares a long row among
    many processors, `kthvalue` does not."""
    kth_R1 = score_RC.topk(count, dim=1, largest=False, sorted=False).values.amax(dim=1, keepdim=True)
    return _first_of_equals(score_RC, kth_R1, count)


def _first_of_equals(score_RC: Tensor, kth_R1: Tensor, count: int) -> Tensor:
    """The `count` lowest of each row, given the last of them: of what equals it the first."""
    below_RC, equal_RC = score_RC < kth_R1, score_RC == kth_R1
    room_R1 = count - below_RC.sum(dim=1, keepdim=True)
    return below_RC | (equal_RC & (equal_RC.cumsum(dim=1, dtype=torch.int32) <= room_R1))


def _kth(score_RC: Tensor, count: int) -> Tensor:
    """The `count`-th lowest score of each row, [R, 1]. NumPy selects with vector instructions, torch's CPU does not."""
    if score_RC.dtype != torch.float32:
        return score_RC.kthvalue(count, dim=1, keepdim=True).values
    selected_RC = np.partition(score_RC.numpy(), count - 1, axis=1)
    return torch.from_numpy(selected_RC[:, count - 1 : count].copy())


def finite(tensor: Tensor) -> bool:
    """Whether no entry is infinite or NaN. Their sum shows it faster, unless it overflows."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """The same of several tensors, with one synchronisation."""
    tensors = list(tensors)
    return bool(torch.stack([tensor.sum().float() for tensor in tensors]).isfinite().all()) or all(map(finite, tensors))


def lowest_of_groups(score_GM: Tensor, count: int) -> Tensor:
    """As `lowest`, for very many short rows: groups of N:M sparsity."""
    if score_GM.shape[1] > _SMALL_GROUP:
        return lowest(score_GM, count)
    if not score_GM.is_cpu:
        return lowest_of_groups_at_once(score_GM, count)
    columns = score_GM.unbind(dim=1)
    lowest_GM = score_GM.new_empty(score_GM.shape, dtype=torch.bool)
    for i, own_G in enumerate(columns):
        # Its rank: how many of its group go before it, the lower ones and the equal ones to its left.
        rank_G = torch.zeros_like(own_G, dtype=torch.int8)
        for j, other_G in enumerate(columns):
            if j != i:
                rank_G += other_G <= own_G if j < i else other_G < own_G
        lowest_GM[:, i] = rank_G < count
    return lowest_GM


def lowest_of_groups_at_once(score_GM: Tensor, count: int) -> Tensor:
    """As `lowest_of_groups`, for a GPU: some large operations in place of many small ones."""
    m = score_GM.shape[1]
    own_GM1, other_G1M = score_GM[:, :, None], score_GM[:, None, :]
    left_MM = torch.ones(m, m, dtype=torch.bool, device=score_GM.device).tril(-1)
    before_GMM = (other_G1M < own_GM1) | ((other_G1M == own_GM1) & left_MM)
    return before_GMM.sum(dim=2) < count


def dropped(score_OI: Tensor, sparsity: float, group: Group, kept_of: tuple[int, int] | None) -> Tensor:
    """Boolean [O, I]: the least important entries, exactly as many as `sparsity.removed` says, spread as pattern and
    group say: over every M consecutive entries of a row, over each row alike, or anywhere in the matrix."""
    outputs, inputs = score_OI.shape
    if kept_of is not None:
        m = kept_of[1]
        return lowest_of_groups(score_OI.reshape(-1, m), round(m * sparsity)).reshape(outputs, inputs)
    count = removed((outputs, inputs), sparsity, group, None)
    if group == "matrix":
        return lowest(score_OI.reshape(1, -1), count).reshape(outputs, inputs)
    return lowest(score_OI, count // outputs)
