"""Mask: sets the least important weights to exactly zero; the tensors keep their shapes.

`unstructured` removes exact counts (the reference scripts' `<= threshold` removes one more, and more on ties);
`N:M` keeps N of every M consecutive inputs of a row, the layout sparse tensor cores need.
O = output features, I = input features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Group
from workers.engine.contracts.sparsity import SparsityParams
from workers.engine.removals.weights import weight_pruner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from workers.engine.contracts.facts import LayerTask, LinearStats


class MaskParams(SparsityParams):
    """Set the lowest-scored weights to zero."""

    method: Literal["mask"] = Field("mask", description="Zero the lowest-scored weights; the others stay as they are.")


@weight_pruner(MaskParams, paper="arXiv:2306.11695", patterns=("unstructured", "N:M"), scores="required")
def prune(layers: Sequence[LayerTask], stats: LinearStats, group: Group, params: MaskParams) -> list[Tensor]:
    """The weights [O, I] with exactly the lowest-scored entries zero.

    `matrix` scores drop round(O * I * sparsity) entries of the whole matrix, `row` scores floor(I * sparsity) of each
    row (Wanda's choice); N:M drops M - N of every M. On ties the lower index goes first.
    """
    from workers.engine.maths.masking import zeroed
    from workers.engine.maths.selection import dropped

    pruned = []
    for layer in layers:
        dropped_OI = dropped(needed(layer.score_OI, "the score"), layer.sparsity, group, params.kept_of)
        pruned.append(zeroed(layer.weight_OI, dropped_OI))
    return pruned
