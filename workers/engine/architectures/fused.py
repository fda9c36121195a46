"""Tensors that hold several canonical ones, as rows of a layout's table. Import-light.

The engine computes with matrices [O, I] of one projection of one expert. Files and transformers' modules may hold rows
of several projections in one matrix, the transpose, or all experts in one tensor [E, ...]. A `Fused` is a row of a
layout's table that says so.
O = outputs, I = inputs, E = experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from workers.engine.files.places import Place

EACH = "{}"
"""Stands for the number of an expert in the name of a canonical tensor."""
REST = "rest"
"""Width of parts that share all outputs evenly."""


Sizes = Mapping[str, int]
"""Name -> number of outputs: `query`, `key` of all heads, `head` of one, `group` of the query heads of a key head."""


@dataclass(frozen=True)
class Fused:
    """A tensor of a block that holds one or several canonical tensors, by their names below the block."""

    tensor: str
    """Full name below the block, e.g. `self_attn.qkv_proj.weight`."""
    parts: tuple[str, ...]
    """Canonical names, in the order of their outputs. With `EACH`, all experts lie along the first axis."""
    widths: tuple[str, ...] = (REST,)
    """Outputs of each part in a period: a name of `Sizes`, a number, or `REST`; one for all parts if it is one."""
    repeats: bool = False
    """Whether the parts alternate, period by period, to the end; else there is one period."""
    transposed: bool = False
    """Whether a matrix lies as [I, O]."""

    @property
    def stacked(self) -> bool:
        return any(EACH in part for part in self.parts)

    @property
    def module(self) -> str:
        """Path of the module that has the tensor."""
        return self.tensor.rpartition(".")[0]

    def width_of(self, sizes: Sizes) -> list[int]:
        """Outputs of each part in a period; empty where they share all outputs evenly."""
        names = self.widths * len(self.parts) if len(self.widths) == 1 else self.widths
        return [] if REST in names else [int(name) if name.isdecimal() else sizes[name] for name in names]

    def places(self, shape: Sequence[int], sizes: Sizes) -> Iterator[tuple[str, Place]]:
        """(canonical name, its place) of all parts, in a tensor of this shape. Raises ValueError where they do not fit
        it."""
        experts = range(shape[0]) if self.stacked else [None]
        inner = tuple(shape[1:] if self.stacked else shape)
        if not inner:
            raise ValueError(f"{list(shape)} has too few axes")
        outputs = inner[-1] if self.transposed and len(inner) > 1 else inner[0]
        widths = self.width_of(sizes) or [outputs // len(self.parts)] * len(self.parts)
        period = sum(widths)
        if period <= 0 or outputs % period or (outputs != period and not self.repeats):
            raise ValueError(f"{list(shape)} is not made of parts of {widths} outputs")
        for expert in experts:
            start = 0
            for part, width in zip(self.parts, widths, strict=True):
                name = part if expert is None else part.replace(EACH, str(expert))
                yield name, Place(expert, self.transposed and len(inner) > 1, start, width, period)
                start += width
