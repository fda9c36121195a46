"""Gradients of the mean loss over calibration windows, one block at a time, from the last block to the first.

A forward pass keeps the inputs of every block. Then each block is loaded again, run again from its inputs, and
the gradient of its outputs becomes the gradients of its weights and of its inputs: back-propagation in which only one
block, its gradients and one batch of activations are in memory.
N = windows, B = windows of a batch, T = tokens of a window, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from workers.engine.errors import NumericalFailure
from workers.engine.maths.selection import all_finite, finite
from workers.engine.model.loaded import block_tensors
from workers.engine.model.loss import next_token_loss
from workers.engine.model.output_head import head
from workers.engine.model.repeatable import Repeatable
from workers.engine.model.walk import At, walk

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.model.placement import States
    from workers.engine.model.walk import Walk
    from workers.engine.ranks import Ranks
    from workers.engine.store.run import Run


class BlockGradients:
    """Of one block: for each split of the windows, full tensor name -> float32 mean over its windows."""

    def __init__(self, splits: int) -> None:
        self.mean: list[dict[str, Tensor]] = [{} for _ in range(splits)]
        self.squared: list[dict[str, Tensor]] = [{} for _ in range(splits)]

    def add(self, split: int, at: At, share: float, *, squared: bool) -> None:
        """Add `share` of a batch's gradients, and of their squares, and forget them."""
        for full, found in at.held.items():
            whole = at.module.get_parameter(found.parameter).grad
            assert whole is not None
            gradient = found.read(whole).float()
            for sums, addend in ((self.mean, gradient), (self.squared, gradient.square() if squared else None)):
                if addend is None:
                    continue
                if full in sums[split]:
                    sums[split][full].add_(addend, alpha=share)
                else:
                    sums[split][full] = addend.mul_(share) if addend is not gradient else addend * share
        at.module.requires_grad_(False)
        at.module.zero_grad()

    def merge(self, other: BlockGradients) -> None:
        """Add what was found on other windows of the same text: shares of one mean."""
        for mine, others in zip((*self.mean, *self.squared), (*other.mean, *other.squared), strict=True):
            for name, found in others.items():
                mine[name] = mine[name].add_(found) if name in mine else found

    def add_ranks(self, ranks: Ranks) -> None:
        """Add what the other ranks found on their windows, of which each has some."""
        for parts in (self.mean, self.squared) if ranks.count > 1 else ():
            known = {name: gradient for part in parts for name, gradient in part.items()}
            for part in parts:
                for name, gradient in known.items():
                    if name not in part:  # no window of this split is ours
                        part[name] = torch.zeros_like(gradient)
                    ranks.add(part[name])


def gradients(
    model: LoadedModel,
    calibration: Calibration,
    run: Run,
    *,
    splits: int,
    squared: bool,
) -> Iterator[tuple[int, BlockGradients]]:
    """(block, its gradients), last block first. A window's loss is the mean over its predictions, in nats.

    The windows are cut into `splits` runs of nearly equal length. `squared` also takes the square of every window's
    gradient, which needs them one by one. Raises NumericalFailure where a gradient is not finite.
    """
    count, ranks = len(calibration.windows_NT), model.ranks
    bounds = [round(count * index / splits) for index in range(splits + 1)]
    sizes = [end - start for start, end in pairwise(bounds)]
    share = ranks.share(count)
    bounds = [min(max(bound, share.start), share.stop) - share.start for bound in bounds]  # of this rank's windows
    step = 1 if squared else max(len(range(*batch.indices(count))) for batch in calibration.batches(model.batch_tokens))
    # Batches that keep to one split each.
    batches = [
        slice(begin, min(begin + step, end)) for start, end in pairwise(bounds) for begin in range(start, end, step)
    ]
    split_of = [next(s for s in range(splits) if batch.start < bounds[s + 1]) for batch in batches]
    blocks, repeatable = model.architecture.blocks, Repeatable(model.device)
    with walk(model, calibration, run.checkpoint.scratch_file, batches) as way:
        inputs = [way.enter()]
        for block, outputs, _ in way.blocks(inputs[0], At.advance, last_wanted=True, keep=True):
            assert outputs is not None  # they are wanted
            inputs.append(outputs)
            run.events.progress(block + 1, 2 * blocks, "block for gradients")
        upstream = _of_outputs(way, inputs[-1])
        for block in reversed(range(blocks)):
            found = BlockGradients(splits)
            with way.at(block, inputs[block], block_tensors(model, block)) as at:
                for index, batch in enumerate(batches):
                    split = split_of[index]
                    repeatable.run(partial(_backward, at, batch, upstream), at.module)
                    found.add(split, at, 1 / sizes[split], squared=squared)
                before = at.outputs
            del at  # with the tensors it was given
            assert before is not None  # of some windows
            way.drop(inputs[block + 1])
            way.drop(upstream)
            upstream = before
            found.add_ranks(ranks)
            _refuse_infinite(found)
            yield block, found
            run.events.progress(2 * blocks - block, 2 * blocks, "block for gradients")


def _of_outputs(way: Walk, outputs: States) -> States:
    """Gradient of every window's loss with respect to the last block's outputs, window by window."""
    found = way.states()
    with head(way.model) as logits, torch.enable_grad():
        for batch in way.batches:
            for hidden_TD, ids_T in zip(outputs.read(batch), way.ids(batch), strict=True):
                hidden_TD.requires_grad_()
                loss = next_token_loss(logits(hidden_TD[:-1]), ids_T[1:])
                (gradient_TD,) = torch.autograd.grad(loss, hidden_TD)
                found.append(gradient_TD[None])
    return found


def _backward(at: At, batch: slice, upstream: States) -> None:
    """Fill the gradients of the module's parameters with the sum over a batch's windows; keep that of its inputs."""
    at.module.requires_grad_(True)
    hidden_BTD = at.inputs.read(batch).requires_grad_()
    with torch.enable_grad():
        at.run(hidden_BTD).backward(upstream.read(batch))
    assert hidden_BTD.grad is not None
    at.keep(hidden_BTD.grad)


def _refuse_infinite(found: BlockGradients) -> None:
    parts = (*found.mean, *found.squared)
    if all_finite([gradient for part in parts for gradient in part.values()]):
        return
    for part in parts:
        for name, gradient in part.items():
            if not finite(gradient):
                raise NumericalFailure(
                    f"{name}: the loss's gradient is infinite or NaN",
                    "set /compute/dtype to float32; if it is, the model's weights are broken",
                    field="/score",
                )
