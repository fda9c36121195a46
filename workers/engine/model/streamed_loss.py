"""Stream: the loss of a model on a text with one block in memory at a time.

N = windows, B = windows of a batch, T = tokens of a window, D = hidden size, V = vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from workers.engine.model.activations import activations_of
from workers.engine.model.loaded import filled
from workers.engine.model.output_head import head

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.activations import Hidden
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.store.checkpoint import Checkpoint

LOGIT_TOKENS = 512
"""Positions whose logits are in memory at once: 128,000 entries each in a large vocabulary."""


class StreamedLoss:
    """Losses of a text under variants of a model that differ in their blocks."""

    def __init__(self, model: LoadedModel, text: Calibration, checkpoint: Checkpoint, *, keep_path: bool) -> None:
        """`keep_path` keeps the inputs of every block on disk, so that the next variant starts where it differs."""
        self._model = model
        self._activations = activations_of(model, text)
        self._checkpoint = checkpoint
        self._keep_path = keep_path
        self._path: list[Hashable] = []
        """What the blocks were in the variant before."""
        self._inputs: list[Hidden] = []
        """Inputs of the first blocks of that variant, and of the one after them; none before the first variant."""

    def close(self) -> None:
        for hidden in self._inputs:
            hidden.file.close()

    def nll(self, path: Sequence[Hashable], tensors: Callable[[int], Mapping[str, Tensor]]) -> Tensor:
        """Mean negative log-likelihood in nats of each window's T - 1 predictions, float64 [N] on the CPU.

        `path` names what each block is in this variant, None where it is left out; `tensors` gives a block's.
        """
        if not self._inputs:
            self._inputs.append(self._activations.hidden(self._checkpoint.scratch_file()))
            self._activations.embed(self._inputs[0])
        known = 0
        while known < len(self._path) and self._path[known] == path[known]:
            known += 1
        for hidden in self._inputs[known + 1 :]:
            if hidden is not self._inputs[known]:  # as where the block between them was left out
                hidden.file.close()
        del self._inputs[known + 1 :], self._path[known:]
        for block in range(known, self._model.architecture.blocks):
            if path[block] is None:
                self._inputs.append(self._inputs[-1])
                self._path.append(None)
                continue
            into = self._activations.hidden(self._checkpoint.scratch_file())
            with filled(self._model, self._model.architecture.layout.block(block), tensors(block)) as module:
                self._activations.advance(block, module, self._inputs[-1], into)
            if not self._keep_path:
                self._inputs[-1].file.close()
            self._inputs.append(into)
            self._path.append(path[block])
        return self._head()

    def _head(self) -> Tensor:
        """Losses from the last block's outputs, some positions at a time."""
        model, activations = self._model, self._activations
        losses = []
        with head(model) as logits:
            for batch in activations.batches:
                hidden_BTD = self._inputs[-1].read(batch).to(model.device)
                targets_BT = activations.windows_NT[batch].to(model.device)[:, 1:]
                for hidden_TD, targets_T in zip(hidden_BTD[:, :-1], targets_BT, strict=True):
                    nll_T = torch.cat(
                        [
                            cross_entropy(logits(some_TD), some_targets_T, reduction="none")
                            for some_TD, some_targets_T in zip(
                                hidden_TD.split(LOGIT_TOKENS), targets_T.split(LOGIT_TOKENS), strict=True
                            )
                        ]
                    )
                    losses.append(nll_T.double().mean().cpu())
        return torch.stack(losses)
