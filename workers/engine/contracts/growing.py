"""Growers: the base of their parameters, and what they are given. Import-light."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.params import EditMethodParams
from workers.engine.errors import InvalidSpec

if TYPE_CHECKING:
    from torch import Tensor

_AFTER = Field(
    None,
    strict=False,  # JSON has lists
    min_length=1,
    max_length=1024,
    description="Instead of `layers`: the dense model's blocks, counted from 0 and ascending, that a new one follows.",
    examples=[[3, 5]],
)


class GrowMethodParams(EditMethodParams):
    """Base of the growers' parameters: how many blocks are added, and where."""

    layers: int | None = Field(None, ge=1, le=1024, description="How many decoder blocks are added.", examples=[4])
    after: tuple[Annotated[int, Field(ge=0, le=1024)], ...] | None = _AFTER

    between: ClassVar[bool] = False
    """Whether a new block is made of the two that it stands between, so that none can follow the last one."""
    least_blocks: ClassVar[int] = 1
    """Number of blocks that a model must have."""
    mixes: ClassVar[bool] = False
    """Whether tensors of several blocks are combined, which must then be alike."""

    @model_validator(mode="after")
    def _one_number(self) -> GrowMethodParams:
        if (self.layers is None) == (self.after is None):
            raise PydanticCustomError(
                "one_number", "give either `layers`, how many blocks are added, or `after`, which ones they follow"
            )
        if self.after is not None and list(self.after) != sorted(set(self.after)):
            raise PydanticCustomError("not_ascending", "`after` names each block once, in ascending order")
        return self

    def arrangement(self, blocks: int) -> list[int]:
        """The dense block that each block of the result is made like, in the result's order, for a dense model of so
        many. One that occurs again is new. Raises InvalidSpec."""
        after = self.places(blocks)
        return [block for block in range(blocks) for _ in range(1 + (block in after))]

    def places(self, blocks: int) -> Sequence[int]:
        """The dense blocks after which a new one stands, ascending. Raises InvalidSpec."""
        room = blocks - self.between
        if self.after is not None:
            if self.after[-1] >= room:
                raise InvalidSpec(
                    f"no block can be made after block {self.after[-1]} of {blocks}"
                    + (": it has no next one" if self.between and self.after[-1] < blocks else ""),
                    f"name blocks from 0 to {room - 1}",
                    field="/grow/after",
                )
            return self.after
        layers = self.layers or 0
        if layers > room:
            raise InvalidSpec(
                f"{layers} blocks are to be added to {blocks}, and there is room for {room} at a time",
                f"add at most {room}, then grow the result again",
                field="/grow/layers",
            )
        return self.standing(layers, room)

    def standing(self, layers: int, room: int) -> Sequence[int]:
        """Which `layers` of so many places are taken, ascending."""
        raise NotImplementedError


Place = Literal["end", "even"]


def standing(place: Place, layers: int, room: int) -> Sequence[int]:
    """The last of the places, or every room / layers-th, the last one included."""
    if place == "end":
        return range(room - layers, room)
    return [(number + 1) * room // layers - 1 for number in range(layers)]


class BetweenParams(GrowMethodParams):
    """Base of growers that make a block of the two that it stands between."""

    place: Place | None = Field(
        None,
        description="With `layers`: between the last blocks (`end`), or spread evenly over the model (`even`). null "
        "takes `end`, as LESA's authors do.",
    )

    between: ClassVar[bool] = True
    least_blocks: ClassVar[int] = 2
    mixes: ClassVar[bool] = True

    @model_validator(mode="after")
    def _one_place(self) -> BetweenParams:
        refuse_both(self.after, self.place)
        return self

    def standing(self, layers: int, room: int) -> Sequence[int]:
        return standing(self.place or "end", layers, room)


def refuse_both(after: object, place: object) -> None:
    """Raise PydanticCustomError where both say where new blocks stand."""
    if after is not None and place is not None:
        raise PydanticCustomError("two_places", "`after` says where new blocks stand: leave `place` out")


class Rows(Protocol):
    """Rows of a matrix for every block, float32, on the disk."""

    def put(self, block: int, rows_RI: Tensor) -> None: ...

    def take(self, rows_N: Tensor, blocks_N: Tensor, count: int) -> Tensor:
        """These rows of `count` successive blocks from these on, [N, count, I], on the CPU."""


@dataclass(frozen=True)
class Stack:
    """One tensor of all blocks of the dense model."""

    name: str
    """Path below a block."""
    blocks: int
    read: Callable[[int], Tensor]
    """Dense block -> its tensor, in the type of the source, on the compute device. Never written to."""
    like: Sequence[int]
    """For each new block, in the order of the result, the dense block that it is made like; most follow it."""
    is_matrix: bool
    """Whether it is the weight [O, I] of a prunable linear layer."""
    adds: bool
    """Whether it is weight or bias of a layer whose outputs are added to the hidden states."""
    seed: int
    rows: Callable[[int], Rows]
    """I -> room on the disk for rows of I numbers of every block, gone with the stack."""


@dataclass(frozen=True)
class Fit:
    """How well new tensors are predicted, tried on blocks of the dense model: of each, from the two around it."""

    error: float
    """Norm of the difference, of all these blocks, relative to the norm of their tensors; 1 is as bad as zeros."""
    error_of_mean: float
    """The same of the mean of the two."""


@dataclass(frozen=True)
class Grown:
    """A tensor of the new blocks."""

    tensors: Iterator[Tensor]
    """In the order of `Stack.like`, of the dense shape, float32 or in the type of the source."""
    fit: Fit | None = None
    """None where nothing was learnt."""
