"""One tensor of several blocks, held in memory, as growers are given it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from workers.engine.contracts.growing import Stack


class RowsInMemory:
    """`ScratchRows`, without a file."""

    def __init__(self) -> None:
        self.blocks: dict[int, Tensor] = {}

    def put(self, block: int, rows_RI: Tensor) -> None:
        self.blocks[block] = rows_RI

    def take(self, rows_N: Tensor, blocks_N: Tensor, count: int) -> Tensor:
        all_RBI = torch.stack([self.blocks[block] for block in range(len(self.blocks))], dim=1)
        return torch.stack([all_RBI[rows_N, blocks_N + after] for after in range(count)], dim=1)


def stack_of(tensors: Sequence[Tensor], like: Sequence[int], **facts: Any) -> Stack:
    """The weight of a linear layer, unless said otherwise."""
    given = {"name": "self_attn.q_proj.weight", "is_matrix": True, "adds": False, "seed": 0, **facts}
    return Stack(blocks=len(tensors), read=tensors.__getitem__, like=like, rows=lambda _: RowsInMemory(), **given)
