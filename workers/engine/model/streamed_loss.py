"""Streamed loss: the loss of a model on a text with one block in memory at a time.

N = windows, B = windows of a batch, T = tokens of a window, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from workers.engine.model.loss import next_token_loss
from workers.engine.model.output_head import head
from workers.engine.model.walk import walk

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.model.placement import States
    from workers.engine.store.checkpoint import Checkpoint

LOGIT_TOKENS = 512
"""Positions whose logits are in memory at once: 128,000 entries each in a large vocabulary."""


class StreamedLoss:
    """Losses of a text under variants of a model that differ in their blocks."""

    def __init__(self, model: LoadedModel, text: Calibration, checkpoint: Checkpoint, *, keep_path: bool) -> None:
        """`keep_path` keeps the inputs of every block, so that the next variant starts where it differs."""
        self._model = model
        self._walk = walk(model, text, checkpoint.scratch_file)
        self._keep_path = keep_path
        self._path: list[Hashable] = []
        """`path` of the previous variant."""
        self._inputs: list[States] = []
        """Inputs of the first blocks of that variant, and of the block after them; empty before the first variant."""

    def close(self) -> None:
        self._walk.close()

    def nll(self, path: Sequence[Hashable], tensors: Callable[[int], Mapping[str, Tensor]]) -> Tensor:
        """Mean negative log-likelihood in nats of each window's T - 1 predictions, float64 [N] on the CPU; all ranks
        get it of all windows.

        `path` identifies each block of this variant, None where it is left out; `tensors` returns a block's tensors.
        """
        if not self._inputs:
            self._inputs.append(self._walk.enter())
        known = 0
        while known < len(self._path) and self._path[known] == path[known]:
            known += 1
        for states in dict.fromkeys(self._inputs[known + 1 :]):  # where a block was left out, two are one
            if states is not self._inputs[known]:
                self._walk.drop(states)
        del self._inputs[known + 1 :], self._path[known:]
        for block in range(known, self._model.architecture.blocks):
            outputs = self._inputs[-1]
            if path[block] is not None:
                outputs = self._walk.through(block, self._inputs[-1], tensors(block))
                if not self._keep_path:
                    self._walk.drop(self._inputs[-1])
            self._inputs.append(outputs)
            self._path.append(path[block])
        return torch.cat(self._model.ranks.gather(self._head()))

    def _head(self) -> Tensor:
        """Losses of this rank's windows from the last block's outputs, some positions at a time."""
        losses = []
        with head(self._model) as logits:
            for batch in self._walk.batches:
                hidden_BTD, targets_BT = self._inputs[-1].read(batch), self._walk.ids(batch)[:, 1:]
                for hidden_TD, targets_T in zip(hidden_BTD[:, :-1], targets_BT, strict=True):
                    parts = zip(hidden_TD.split(LOGIT_TOKENS), targets_T.split(LOGIT_TOKENS), strict=True)
                    nll_T = torch.cat([next_token_loss(logits(some_TD), some_T, "none") for some_TD, some_T in parts])
                    losses.append(nll_T.double().mean())
        return torch.stack(losses).cpu() if losses else torch.empty(0, dtype=torch.float64)
