"""Duplicate: copies of blocks, overlapping (SOLAR) or each after its original, which may add nothing (LLaMA-Pro).

Kim et al. 2023 (SOLAR, arXiv:2312.15166) put the model's first blocks before its last ones, the middle ones twice. Wu
et al. 2024 (LLaMA-Pro, arXiv:2401.02415) copy the last block of every group, with zeros in the layers that add to the
hidden states: the grown model computes what the dense one does, until it is trained.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from workers.engine.contracts.growing import GrowMethodParams, Grown, refuse_both, standing
from workers.engine.removals.new_blocks import block_grower

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.engine.contracts.growing import Stack


class DuplicateParams(GrowMethodParams):
    """Copy blocks."""

    method: Literal["duplicate"] = Field("duplicate", description="Copy blocks.")
    place: Literal["stack", "even", "end"] | None = Field(
        None,
        description="With `layers`: the copies of the middle blocks stand together behind them (`stack`, SOLAR), or "
        "each copy after its original: of blocks spread evenly (`even`, LLaMA-Pro) or of the last ones (`end`). null "
        "takes `stack`, or `even` with `identity`.",
    )
    identity: bool = Field(
        False,
        description="Copies begin with zeros in the layers that add to the hidden states, so that they change nothing "
        "until they are trained (LLaMA-Pro).",
    )

    @model_validator(mode="after")
    def _one_place(self) -> DuplicateParams:
        refuse_both(self.after, self.place)
        return self

    @property
    def _place(self) -> Literal["stack", "even", "end"]:
        return self.place or ("even" if self.identity else "stack")

    def arrangement(self, blocks: int) -> list[int]:
        """Of `stack`: the first (blocks + layers) / 2 blocks, then the last ones, as many but for rounding."""
        found = super().arrangement(blocks)
        if self.layers is None or self._place != "stack":
            return found
        first = (blocks + self.layers) // 2
        return [*range(first), *range(first - self.layers, blocks)]

    def standing(self, layers: int, room: int) -> Sequence[int]:
        return standing("even" if self._place == "even" else "end", layers, room)


@block_grower(DuplicateParams, paper="arXiv:2312.15166")
def grow(stack: Stack, params: DuplicateParams) -> Grown:
    """The originals' tensors, or zeros in weights and biases of layers that add to the hidden states."""
    zeros = params.identity and stack.adds
    return Grown(tensor.new_zeros(tensor.shape) if zeros else tensor for tensor in map(stack.read, stack.like))
