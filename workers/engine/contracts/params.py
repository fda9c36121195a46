"""Parameters: the bases of every method's, and what methods declare about themselves. Import-light."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from workers.engine.contracts.refs import DataRef, SpecModel

Stage = Literal["score", "allocate", "train", "prune", "grow", "refine", "tune", "evaluate"]
Unit = str
"""A kind of unit that is scored and removed, as the files of `removals/` name it: `weight`; `head` with its key/value
group; `channel` of an MLP; `hidden`, a dimension of the vector that all blocks read and add to; `layer`, a block;
`expert`, one of a mixture."""
Group = Literal["row", "matrix"]
"""Scores are compared within a row of the weight, or over the whole matrix."""
Scores = Literal["required", "optional", "unused"]
STAGES: tuple[Stage, ...] = get_args(Stage)
EDITS: tuple[Stage, ...] = ("prune", "grow")
"""A spec has exactly one of these stages: its method edits the model's structure or weights."""


class Stat(Flag):
    """Measurements that a method needs beside the weights; made once, per input stream where they are of inputs.

    The first four, and the last three, are fields of `LinearStats` and need calibration text.
    """

    NONE = 0
    INPUT_SQ_MEAN = auto()
    INPUT_MOMENTS = auto()
    """Mean and variance of each input."""
    GRAM = auto()
    DENSE_INPUTS = auto()
    """The Gram matrices against the inputs of a dense block; differs from GRAM where inputs are refreshed."""
    CURVATURE = auto()
    """Allocators only: the loss's Hessian over each layer's weights. Holds the whole model in memory."""
    LOSS = auto()
    """Allocators only: the loss of the model pruned as the allocator asks."""
    GRADIENT = auto()
    """Unit scorers only: gradients of the loss, block by block."""
    SQUARED_GRADIENT = auto()
    """Unit scorers only: means over windows of squared gradients (the empirical Fisher information's diagonal)."""
    CHANGE = auto()
    """Unit scorers only: 1 - the cosine between a block's input and output."""
    REMOVAL = auto()
    """Unit scorers only: the loss without the block."""
    ROUTING = auto()
    """Scorers of experts only: the tokens that are sent to each expert, and what it makes of them."""
    PRUNED_INPUTS = auto()
    """Scorers of experts only: with ROUTING, blocks read what pruned ones before them give."""
    EXPERT_SETS = auto()
    """Scorers of experts only: with ROUTING, the losses of sets of experts that go."""
    UNIT_SCORES = auto()
    """Allocators only: the scores of the units, where units are removed."""
    INPUT_ABS_MEAN = auto()
    """Mean magnitude of each input."""
    INPUT_FOURTH_MEAN = auto()
    """The fourth root of the mean fourth power of each input."""
    INPUT_ABS_MAX = auto()
    """Largest magnitude of each input."""


Norm = Literal["l1", "l2", "l4", "max"]
NORMS: dict[Norm, Stat] = {
    "l1": Stat.INPUT_ABS_MEAN,
    "l2": Stat.INPUT_SQ_MEAN,
    "l4": Stat.INPUT_FOURTH_MEAN,
    "max": Stat.INPUT_ABS_MAX,
}
"""Norm of an input over the calibration tokens, as a mean of powers -> the statistic that it is computed from."""
OF_NORMS = Stat.INPUT_ABS_MEAN | Stat.INPUT_FOURTH_MEAN | Stat.INPUT_ABS_MAX
"""Those that magnitudes are looked at for."""
OF_INPUTS = OF_NORMS | Stat.INPUT_SQ_MEAN | Stat.INPUT_MOMENTS
"""Those that are one number for each input."""


class MethodParams(BaseModel):
    """Base of every method's parameters. Subclasses add `method: Literal["<file name>"]` and bounded fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    method: str

    unmeasured: ClassVar[frozenset[str]] = frozenset()
    """Allocators: parameters that `measure` does not read. A change of them keeps cached measurements."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Evaluators: names of their metrics. One that ends in `/` stands for all names that begin so."""
        return (f"{self.method}/",)

    @property
    def window_tokens(self) -> int:
        """Evaluators: tokens of a window that the model attends over; 0 where it reads no windows."""
        return 0

    @property
    def tokens_at_once(self) -> int:
        """Evaluators: about how many tokens the largest forward pass has; 0 where there is none."""
        return 512

    @property
    def most_tokens(self) -> int | None:
        """Evaluators: how many tokens of their text are read; None: all."""
        return None

    @property
    def timed_tokens(self) -> tuple[int, int]:
        """Paired evaluators: (tokens of the prompts, tokens of the prompts and their continuations), over all sequences
        of a batch."""
        return 0, 0

    @property
    def own_texts(self) -> dict[str, tuple[str, ...]]:
        """Evaluators: field -> texts in the parameters themselves, such as prompts."""
        return {}

    @property
    def waives(self) -> Stat:
        """The part of its method's `needs` that these parameters do not use."""
        return Stat.NONE

    @property
    def splits(self) -> int:
        """Scores of units: into how many parts the windows are divided; gradients are averaged within each."""
        return 1

    @property
    def protected(self) -> tuple[int, int]:
        """Scores of blocks: how many at the front and at the back are never dropped."""
        return 0, 0

    @property
    def compares(self) -> tuple[str, ...]:
        """Allocators: the names of others that it is told the allocations of (`AllocationFacts.rules`)."""
        return ()

    def trials(self, streams: int) -> float:
        """Allocators: about how many trial prunings of the whole model they make, for so many input streams."""
        return 0.0

    @property
    def most_of_units(self) -> float:
        """Allocators: the largest fraction of a block's heads, and of its channels, that may go."""
        return 1.0

    @property
    def least_sparsity(self) -> float:
        """Allocators: no layer loses a smaller fraction, unless the target itself is smaller."""
        return 0.0


class WindowsMethodParams(DataRef, MethodParams):
    """Base of evaluators that read consecutive windows of a text."""

    sequence_length: int
    samples: int | None
    per_document: int | None

    @property
    def window_tokens(self) -> int:
        return self.sequence_length

    @property
    def least_windows(self) -> int:
        return self.samples or 1

    @property
    def most_tokens(self) -> int | None:
        return None if self.samples is None else self.samples * self.sequence_length

    @property
    def variant(self) -> str:
        """Settings by which the windows are others than the first so many of the text; empty for none."""
        usual = {name: type(self).model_fields[name].default for name in ("bos", "per_document")}
        return "".join(f"/{name}={value}" for name in usual if (value := getattr(self, name)) != usual[name])


class LossMethodParams(WindowsMethodParams):
    """Base of evaluators of the loss on a text, which a target can bound."""


DECODE_TOLERANCE = 0.05
"""Fraction by which the decode time of the result may exceed its bound: about the spread of repeated measurements."""


@dataclass(frozen=True)
class Bounds:
    """A bound on a measurement of the result, as a multiple of the dense model's."""

    name: Literal["perplexity_ratio", "decode_time"]
    asked: float
    tolerance: float
    """The measured value may lie above `asked` by this fraction of it."""
    field: str
    """JSON pointer of the spec's field."""


class AtMost(SpecModel):
    """Upper bounds on the size and decode time of a result; all that are given hold."""

    parameters: int | None = Field(None, ge=1, description="Of the whole model, tied ones once.", examples=[5_000_000])
    bytes: int | None = Field(None, ge=1, description="Of its weights as stored.")
    macs: int | None = Field(
        None, ge=1, description="Multiply-accumulate operations of a forward pass, counted as evaluation `macs` does."
    )
    decode_time: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Time of a decode step as a fraction of the dense model's, foreseen by the worker before it cuts "
        "and measured on the result, which may take 1.05 times that: the result is not the same on another machine, "
        "and to the last channel not on the same.",
        examples=[0.6],
    )
    tokens: int = Field(
        64, ge=1, le=131_072, description="Tokens of the pass that `macs` bounds, and before the step of `decode_time`."
    )
    batch_size: int = Field(1, ge=1, le=256, description="Sequences that `decode_time` decodes together.")

    @model_validator(mode="after")
    def _a_limit(self) -> AtMost:
        if not self.limits:
            raise PydanticCustomError(
                "no_limit", "give at least one of `parameters`, `bytes`, `macs` and `decode_time`"
            )
        return self

    @property
    def limits(self) -> dict[str, float]:
        names = ("parameters", "bytes", "macs", "decode_time")
        return {name: limit for name in names if (limit := getattr(self, name)) is not None}

    @property
    def bound(self) -> Bounds | None:
        """The bound on the decode time, which is predicted and then measured on the result; None without one."""
        if self.decode_time is None:
            return None
        return Bounds("decode_time", self.decode_time, DECODE_TOLERANCE, "/prune/at_most/decode_time")


class EditMethodParams(MethodParams):
    """Base of the parameters of methods that edit the model, as other stages read them."""

    @property
    def target(self) -> float | None:
        """Global fraction of the prunable weights to remove, in [0, 1); None where none is asked for, or it is still to
        be found."""
        return None

    @property
    def kinds(self) -> tuple[Unit, ...]:
        """The kinds of unit that go, of those of the method; empty where all may."""
        return ()

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """(N, M) where N of every M consecutive inputs are kept on average over the layers, else None."""
        return None

    @property
    def size_limit(self) -> AtMost | None:
        """Size limits of the result, where no target is given."""
        return None

    @property
    def bound(self) -> Bounds | None:
        """A bound that can only be measured on the result; the target is then searched for it."""
        return None if self.size_limit is None else self.size_limit.bound

    def fitted(self, count: int) -> Self:
        """The same with this number of units in place of the size that the result is to fit into."""
        raise NotImplementedError

    @property
    def as_trained(self) -> Self:
        """The same, where a training has decided what goes and the weights are those of a model without it."""
        return self

    @property
    def skips(self) -> bool:
        """Whether the result skips experts by their weights, measured on calibration text."""
        return False

    @property
    def merges(self) -> bool:
        """Whether units that go are averaged into those that stay, in proportion to their use on calibration text."""
        return False

    def held_bytes(self, shape: tuple[int, int]) -> int:
        """Bytes that the method holds while it works on the (O, I) weights of a layer, and no text is read."""
        return 0

    def operations(self, shape: tuple[int, int], blocks: int) -> float:
        """About how many multiplications and additions that takes, for a layer of all so many blocks."""
        return 0.0


class PruneMethodParams(EditMethodParams):
    """Base of the pruners' parameters."""

    @property
    def target(self) -> float | None:
        raise NotImplementedError


class SizedPruneParams(PruneMethodParams):
    """Base of pruners that take a size to fit into."""

    at_most: AtMost | None
    """Size limits of the result, where it is not given how much goes."""

    @property
    def size_limit(self) -> AtMost | None:
        return self.at_most


class CountedPruneParams(SizedPruneParams):
    """Base of those that take one number of units for the whole model, or a size instead."""

    number: ClassVar[str]
    """The field that takes it."""

    @property
    def undecided(self) -> bool:
        """Whether it is not known yet which number fits into the size."""
        return self.at_most is not None and getattr(self, self.number) is None

    def fitted(self, count: int) -> Self:
        return self.model_copy(update={self.number: count})


class WeightPruneParams(PruneMethodParams):
    """Base of pruners that set single weights to zero."""

    def removed(self, shape: tuple[int, int], sparsity: float, group: Group) -> int:
        """How many weights of an (O, I) layer go at `sparsity`: exact, and known without the weights."""
        raise NotImplementedError

    def misfit(self, shape: tuple[int, int]) -> str | None:
        """Why an (O, I) layer cannot be pruned like this, or None if it can."""
        raise NotImplementedError
