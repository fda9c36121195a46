"""Gradient: of the mean loss over calibration windows, for one block's tensors at a time, from the last block to the
first.

A forward pass keeps the inputs of every block on disk. Then each block is loaded again, run again from its inputs, and
the gradient of its outputs becomes the gradients of its weights and of its inputs: back-propagation in which only one
block, its gradients and one batch of activations are in memory.
N = windows, B = windows of a batch, T = tokens of a window, D = hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from workers.engine.errors import NumericalFailure
from workers.engine.maths.selection import finite
from workers.engine.model.activations import activations_of
from workers.engine.model.loaded import filled_block
from workers.engine.model.output_head import head

if TYPE_CHECKING:
    from torch import Tensor, nn

    from workers.engine.events import Events
    from workers.engine.model.activations import Activations, Hidden
    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.store.checkpoint import Checkpoint


class BlockGradients:
    """Of one block: for each split of the windows, full tensor name -> float32 mean over its windows."""

    def __init__(self, splits: int) -> None:
        self.mean: list[dict[str, Tensor]] = [{} for _ in range(splits)]
        self.squared: list[dict[str, Tensor]] = [{} for _ in range(splits)]


def gradients(
    model: LoadedModel,
    calibration: Calibration,
    checkpoint: Checkpoint,
    events: Events,
    *,
    splits: int,
    squared: bool,
) -> Iterator[tuple[int, BlockGradients]]:
    """(block, its gradients), last block first. A window's loss is the mean over its predictions, in nats.

    The windows are cut into `splits` runs of nearly equal length. `squared` also takes the square of every window's
    gradient, which needs them one by one. Raises NumericalFailure where a gradient is not finite.
    """
    activations = activations_of(model, calibration)
    count = len(calibration.windows_NT)
    bounds = [round(count * index / splits) for index in range(splits + 1)]
    step = 1 if squared else max(len(range(*batch.indices(count))) for batch in activations.batches)
    # Batches that keep to one split each.
    activations.batches = [
        slice(begin, min(begin + step, end)) for start, end in pairwise(bounds) for begin in range(start, end, step)
    ]
    split_of = [next(s for s in range(splits) if batch.start < bounds[s + 1]) for batch in activations.batches]
    sizes = [end - start for start, end in pairwise(bounds)]
    blocks = model.architecture.blocks
    with ExitStack() as files:

        def new_hidden() -> Hidden:
            return activations.hidden(files.enter_context(checkpoint.scratch_file()))

        inputs = [new_hidden()]
        activations.embed(inputs[0])
        for block in range(blocks):
            inputs.append(new_hidden())
            with filled_block(model, block) as module:
                activations.advance(block, module, inputs[-2], inputs[-1])
            events.progress(block + 1, 2 * blocks, "block for gradients")
        upstream = new_hidden()
        _head(activations, inputs[-1], upstream)
        for block in reversed(range(blocks)):
            found, into = BlockGradients(splits), new_hidden()
            prefix = model.architecture.layout.block(block)
            with filled_block(model, block) as module:
                for index, batch in enumerate(activations.batches):
                    split = split_of[index]
                    _backward(activations, block, module, batch, inputs[block], upstream, into)
                    _add(found, split, prefix, module, 1 / sizes[split], squared=squared)
            inputs[block + 1].file.close()
            upstream.file.close()
            upstream = into
            _refuse_infinite(found)
            yield block, found
            events.progress(2 * blocks - block, 2 * blocks, "block for gradients")


def _head(activations: Activations, hidden: Hidden, into: Hidden) -> None:
    """Gradient of every window's loss with respect to the last block's outputs, window by window."""
    model = activations.model
    with head(model) as logits, torch.enable_grad():
        for batch in activations.batches:
            ids_BT = activations.windows_NT[batch].to(model.device)
            for hidden_TD, ids_T in zip(hidden.read(batch).to(model.device), ids_BT, strict=True):
                hidden_TD.requires_grad_()
                loss = cross_entropy(logits(hidden_TD[:-1]), ids_T[1:])
                (gradient_TD,) = torch.autograd.grad(loss, hidden_TD)
                into.append(gradient_TD[None])


def _backward(
    activations: Activations,
    block: int,
    module: nn.Module,
    batch: slice,
    inputs: Hidden,
    upstream: Hidden,
    into: Hidden,
) -> None:
    """Fill the gradients of the module's parameters with the sum over a batch's windows; write that of its inputs."""
    device = activations.model.device
    module.requires_grad_(True)
    hidden_BTD = inputs.read(batch).to(device).requires_grad_()
    with torch.enable_grad():
        output_BTD = activations.run(block, module, hidden_BTD)
        output_BTD.backward(upstream.read(batch).to(device))
    assert hidden_BTD.grad is not None
    into.append(hidden_BTD.grad)


def _add(found: BlockGradients, split: int, prefix: str, module: nn.Module, share: float, *, squared: bool) -> None:
    """Add `share` of a batch's gradients, and of their squares, and forget them."""
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None
        gradient, parameter.grad = parameter.grad.float(), None
        full = f"{prefix}.{name}"
        for sums, addend in ((found.mean, gradient), (found.squared, gradient.square() if squared else None)):
            if addend is None:
                continue
            if full in sums[split]:
                sums[split][full].add_(addend, alpha=share)
            else:
                sums[split][full] = addend.mul_(share) if addend is not gradient else addend * share
    module.requires_grad_(False)


def _refuse_infinite(found: BlockGradients) -> None:
    for part in (*found.mean, *found.squared):
        for name, gradient in part.items():
            if not finite(gradient):
                raise NumericalFailure(
                    f"{name}: the loss's gradient is infinite or NaN",
                    "set /compute/dtype to float32; if it is, the model's weights are broken",
                    field="/score",
                )
