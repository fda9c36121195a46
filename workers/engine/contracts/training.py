"""The contract of methods that prune a model while it trains. Import-light.

A method prepares the model and gives a `Procedure`, which the training loop calls step by step. At the end it gives
weights of the dense shapes, and where units go their scores: what is then removed, and how, the spec's pruner does, as
after any other score. So a method never cuts, and its result is written and checked like every other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from workers.engine.architectures.architecture import Family, LinearFacts


@dataclass(frozen=True)
class Target:
    """The part of the model that is to be gone when training ends."""

    share: float
    """Fraction of the prunable parameters, in (0, 1)."""
    families: Sequence[Family] = ()
    """Units that may go; empty where single weights go."""
    going: Mapping[tuple[int | None, str], int] | None = None
    """(block, kind) -> how many units of that family go, where it is known before; the block is None for kinds that are
    the whole model's: `hidden` and `layer`. None where any units may go that amount to `share` together."""
    least: Mapping[tuple[int | None, str], int] = field(default_factory=dict)
    """(block, kind) -> how many units of that family stay at least, where that is more than one."""
    layers: Sequence[LinearFacts] = ()
    """Layers whose weights may go; empty where units go."""
    sparsity: Mapping[str, float] = field(default_factory=dict)
    """Layer name -> fraction of its weights that goes."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Layer name -> how many of its weights go: exact. Without a pattern they may lie anywhere in the layer."""
    kept_of: tuple[int, int] | None = None
    """(N, M) where N of every M consecutive inputs stay, on average over the layers; of one layer, M minus its sparsity
    times M."""


@dataclass(frozen=True)
class Trained:
    """The outcome of a training: weights of the dense shapes, and what goes."""

    merged: Callable[[str, Tensor], Tensor]
    """`(tensor name, stored tensor in float32) -> tensor to store`, same shape, float32; what was not trained comes
    back itself. The stored tensor is not written to."""
    scores: Sequence[Mapping[str, Sequence[float]]] | None = None
    """Block -> kind -> importance of each unit, finite, higher is kept. Below zero goes, and is as many as
    `Target.going` says, or as amount to `Target.share` to within a unit of the smallest kind; zero and above stays.
    None where single weights go: those that are smallest then go, and `merged` gives zeros there."""


class Procedure:
    """A method at work on one model. The loop calls it in the order of its methods below, for each step.

    Where its parameters say that it `divides`, the model may be divided over several ranks before the method prepares
    it (`training/shards.py`): parameters are torch's DTensors then, and each rank sees its part of a step's windows.
    Arithmetic entry by entry is the same; what looks at all of a tensor asks for its `whole`, on all ranks alike. Ranks
    draw the same numbers in `begin`, and gradients are means over all windows before `penalty` and `before_update`, so
    that what is decided on parameters and gradients is the same on all. All call `finished`, and then `merged` of what
    it gives, tensor by tensor: the parameters of the part that holds the tensor, a block or all that is outside of
    blocks, are whole meanwhile, and are to be read from the model then.
    """

    backward: ClassVar[bool] = True
    """Whether gradients come from a backward pass through the model; else `estimate` makes them."""

    parameters: Mapping[str, nn.Parameter]
    """Name in the resume point -> trained parameter, float32. Others are frozen."""
    state: Mapping[str, Tensor]
    """Name in the resume point -> any other tensor that changes from step to step, in place. Of a divided model: in a
    parameter's shape and divided like it, or whole and the same on all ranks after each step."""
    masks: Mapping[str, Tensor]
    """Some of `parameters` -> boolean, false where an entry is never trained, as `Trainable.masks`."""

    def __init__(self) -> None:
        self.parameters, self.state, self.masks = {}, {}, {}

    def optimizer(self, adamw: Callable[..., Optimizer], learning_rate: float, weight_decay: float) -> Optimizer:
        """AdamW over all parameters; the schedule multiplies the rate of every group. `adamw`: torch's class, or one
        that takes the same and keeps moments in 8 bits, of methods whose parameters offer it."""
        return adamw(list(self.parameters.values()), lr=learning_rate, weight_decay=weight_decay)

    def clipped(self) -> list[nn.Parameter]:
        """The parameters whose gradients are together scaled down to a norm of at most 1."""
        return list(self.parameters.values())

    def begin(self, step: int) -> None:
        """Before the forward passes of a step, counted from 0. Random numbers are seeded by the step already.

        The step's windows go through in parts, each with a backward pass of its own, and a step may begin twice: draw
        numbers here, change no state, and build what depends on parameters anew in every forward pass.
        """

    def penalty(self, step: int) -> Tensor | None:
        """A term of the loss that does not depend on the text, added once a step; None for none."""
        return None

    def estimate(self, loss: Callable[[], Tensor]) -> Tensor:
        """Of methods without a backward pass: fill `.grad` of the parameters from forward passes. `loss` computes that
        of the step's windows (mean nats a token, a scalar without gradient). Returns the loss to report, a scalar."""
        raise NotImplementedError

    def before_clipping(self) -> None:
        """After the gradients are there, before they are clipped: set those to zero that nothing will be updated by, or
        the others would be scaled down for their length."""

    def before_update(self, step: int) -> None:
        """After the backward pass and the clipping of gradients, before the optimiser's update."""

    def after_update(self, step: int, optimizer: Optimizer) -> None:
        """After it: clamp, project, or remove."""

    def evaluating(self) -> AbstractContextManager[object]:
        """Within it the forward pass is that of the model as it would be cut now: without chance, and with units that
        are to stay whole and the others gone."""
        return nullcontext()

    def figures(self) -> Mapping[str, float]:
        """Numbers about the present state, for log and report, such as the share that is gone."""
        return {}

    def finished(self) -> Trained:
        """After the last step. The model's forward pass within `evaluating` is that of the trained weights with the
        units that go set to zero, to 1e-4."""
        raise NotImplementedError
