"""Modules that hold all experts' matrices of a block, computed with updated weights in place of their own.

How such a module multiplies, loops over or groups experts is its own affair. P, Q = the axes of an expert's matrix as
it is held: [E, O, I], or [E, I, O].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


class UpdatedExperts(nn.Module):
    """A module that holds all experts of a block; what trains updates some of its parameters."""

    def __init__(self, experts: nn.Module, transposed: Mapping[str, bool]) -> None:
        """`transposed`: parameter that is updated -> whether it is [E, I, O]."""
        super().__init__()
        self.base_layer = experts
        self.transposed = dict(transposed)

    def begin(self) -> None:
        """Draw what begins at random, by torch's own generator: as long values of all experts of the model follow
        those of its linear layers. The module may be divided by then."""
        raise NotImplementedError

    def factors(self) -> dict[str, nn.Parameter]:
        """The trained parameters, by their names in this module."""
        raise NotImplementedError

    def updated(self, name: str) -> Tensor:
        """A parameter with its update [E, P, Q], in its own type."""
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # The updated weights, one copy of all experts, are made again in the backward pass instead of being kept.
        return checkpoint(self._computed, args, kwargs, use_reentrant=False, preserve_rng_state=False)

    def _computed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return functional_call(self.base_layer, {name: self.updated(name) for name in self.transposed}, args, kwargs)
