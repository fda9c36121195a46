"""Inputs and outputs of methods: facts about layers and units, input statistics, allocations, measurements.

Import-light. O = output features (rows of the weight), I = input features (columns).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from workers.engine.contracts.needed import needed

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Family, LinearFacts
    from workers.engine.contracts.params import Norm


@dataclass(frozen=True)
class LinearStats:
    """Statistics of one input stream over all calibration tokens; a field is None unless a method needs it.

    x is the stream as the layers read it, behind the parts of the model that are already pruned.
    """

    tokens: int = 0
    """Number of calibration tokens."""
    window_tokens: int = 0
    """Tokens per calibration window."""
    input_sq_mean_I: Tensor | None = None
    """Mean over tokens of x_i squared, float32 [I]."""
    input_mean_I: Tensor | None = None
    """Mean over tokens of x_i, float32 [I]."""
    input_variance_I: Tensor | None = None
    """Variance over tokens of x_i, float32 [I]."""
    input_abs_mean_I: Tensor | None = None
    """Mean over tokens of |x_i|, float32 [I]."""
    input_fourth_root_I: Tensor | None = None
    """Fourth root of the mean over tokens of x_i to the fourth, float32 [I]."""
    input_abs_max_I: Tensor | None = None
    """Largest |x_i| of all tokens, float32 [I]."""
    gram_II: Tensor | None = None
    """Mean over tokens of x_i x_j, float32 [I, I]: half the Hessian of a layer's mean squared output error."""
    dense_gram_II: Tensor | None = None
    """Mean over tokens of z_i z_j, where z is the same stream in the block before pruning, float32 [I, I]. None where z
    and x are one, as for the first stream of a block."""
    cross_gram_II: Tensor | None = None
    """Mean over tokens of z_i x_j, float32 [I, I] (rows dense). None where z and x are one."""

    def weighted(self, weight_OI: Tensor, norm: Norm = "l2") -> Tensor:
        """|W| times the norm of the input it multiplies, as a mean over tokens, float32 [O, I]; of `l2` Wanda's
        importance (Sun et al. 2023, arXiv:2306.11695, eq. 1). For methods that declare the statistic of the norm."""
        return weight_OI.float().abs().mul_(self.norm(norm))

    def norm(self, norm: Norm) -> Tensor:
        """(mean over tokens of |x_i| ** p) ** (1 / p), for p = 1, 2, 4, and its limit, the largest |x_i|."""
        if norm == "l1":
            return needed(self.input_abs_mean_I, "Stat.INPUT_ABS_MEAN")
        if norm == "l4":
            return needed(self.input_fourth_root_I, "Stat.INPUT_FOURTH_MEAN")
        if norm == "max":
            return needed(self.input_abs_max_I, "Stat.INPUT_ABS_MAX")
        return needed(self.input_sq_mean_I, "Stat.INPUT_SQ_MEAN").sqrt()


@dataclass(frozen=True)
class LayerTask:
    """One linear layer to prune."""

    name: str
    weight_OI: Tensor
    """Dense, in the type of the source. Never written to."""
    sparsity: float
    """Fraction to remove, in [0, 1]; for N:M patterns a multiple of 1 / M."""
    score_OI: Tensor | None = None
    """Importance by the spec's scorer, float32, higher is kept; None where the spec has none."""


@dataclass(frozen=True)
class DenseBlock:
    """One block of the dense model, for allocators."""

    layers: Sequence[LinearFacts]
    weights: Mapping[str, Tensor]
    """Layer name -> weight [O, I], in the type of the source."""
    stats: Mapping[str, LinearStats]
    """Stream name -> statistics; empty fields unless the allocator's `needs` ask for them."""
    curvature: Mapping[str, float]
    """Layer name -> trace of the loss's Hessian over the layer's weights; empty unless `Stat.CURVATURE` is needed."""


@dataclass(frozen=True)
class ExpertFacts:
    """The experts of one block over the calibration text, for scorers of experts. E = experts."""

    dropped: int
    """How many are to go."""
    tokens_E: Tensor
    """Tokens that are sent to each, float64 [E]."""
    weighted_norm_E: Tensor
    """Mean over these of the router's weight times the norm of the expert's output, float64 [E]; 0 without tokens."""
    peak_E: Tensor
    """Largest absolute value in the outputs of each, float64 [E]."""
    losses: Callable[[Sequence[Sequence[int]]], Sequence[float]]
    """Sets of experts that go, each ascending -> change of the mixture's output without each, >= 0."""
    go_on_without: Callable[[Sequence[int]], None] | None = None
    """Tells which experts go, so that later blocks read the outputs of this one without them. None unless
    `Stat.PRUNED_INPUTS` is needed."""


@dataclass(frozen=True)
class DenseUnits:
    """One block of the dense model and its units, for unit scorers."""

    block: int
    families: Sequence[Family]
    tensors: Mapping[str, Tensor]
    """Full name -> every tensor of the block, in the type of the source."""
    gradients: Sequence[Mapping[str, Tensor]] = ()
    """Of each split of the windows: full name -> mean over its windows of the gradient of their loss (mean nats a
    token), float32. Empty unless `Stat.GRADIENT` is needed."""
    squared_gradients: Sequence[Mapping[str, Tensor]] = ()
    """The same of the squares of every window's gradient. Empty unless `Stat.SQUARED_GRADIENT` is needed."""
    change: float | None = None
    """1 - the mean over tokens of the cosine between the block's input and output; with `Stat.CHANGE`."""
    loss_without: float | None = None
    """Mean loss (nats a token) of the model without the block; with `Stat.REMOVAL`."""
    experts: ExpertFacts | None = None
    """With `Stat.ROUTING`; None in a block without a mixture."""


@dataclass(frozen=True)
class Merge:
    """An expert that goes, averaged into one of its block that stays."""

    block: int
    expert: int
    """That goes."""
    into: int
    """That stays."""
    weight: float
    """Its share of the average, in [0, 1]; what those of one group leave is the share of the one that stays."""


@dataclass(frozen=True)
class Units:
    """The families of a model and the scores of their units."""

    families: Sequence[Family]
    scores: Sequence[Mapping[str, Sequence[float]]]
    """Block -> kind -> importance of each unit, higher is kept; `layer` holds one number."""
    merges: Sequence[Merge] = ()
    """Experts that go and are merged into others; empty where units are dropped."""

    def of(self, family: Family) -> Sequence[float]:
        return self.scores[family.block][family.kind]

    def of_kinds(self, kinds: Container[str]) -> Units:
        """Those of some kinds."""
        return replace(self, families=[family for family in self.families if family.kind in kinds])


@dataclass(frozen=True)
class AllocationFacts:
    """Inputs of an allocator."""

    layers: Sequence[LinearFacts]
    metrics: Mapping[str, float]
    """Layer name -> metric of the allocator's own `measure`; empty if it has none."""
    loss: Callable[[Mapping[str, float]], float] | None = None
    """`{layer name: sparsity} -> mean loss` (nats a token) on calibration text of the model pruned so, with statistics
    collected once. None unless `Stat.LOSS` is needed. Calls that agree on their first blocks share work."""
    rules: Mapping[str, Callable[[float], Mapping[str, float]]] = field(default_factory=dict)
    """Name of another allocator -> its `sparsity -> allocation`; those that the method `compares`."""
    units: Units | None = None
    """Units that may be removed, and their scores. None unless heads and channels are removed."""


@dataclass(frozen=True)
class Allocation:
    """The sparsity of every layer."""

    target: float
    """Mean sparsity of all prunable weights, in [0, 1)."""
    sparsity: Mapping[str, float]
    """Layer name -> fraction to remove."""
    metrics: Mapping[str, float]
    """Layer name -> metric of the allocator; empty if it measures nothing."""
    predicted: float | None = None
    """Where the target was found for a bound: the perplexity ratio of the trial pruning at it, or the decode time."""
    trials: Mapping[str, float] = field(default_factory=dict)
    """Name of each allocator that was compared -> loss of its trial pruning, mean nats a token; the least was taken."""


@dataclass(frozen=True)
class Trainable:
    """A model prepared for training, whose forward pass is that of the weights it will be merged into."""

    parameters: Mapping[str, nn.Parameter]
    """Name in the resume point -> trained parameter, float32."""
    merged: Callable[[str, Tensor], Tensor]
    """`(tensor name, stored tensor in float32) -> tensor to store`, same shape, float32; what was not trained comes
    back itself. The stored tensor is not written to."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Name in the resume point -> boolean, true where a weight may change, of the same shape. The gradient is zero
    elsewhere, where the parameter is whole; of one that is divided over ranks, the loop sees to it."""


@dataclass(frozen=True)
class Measurement:
    """One number about one model."""

    name: str
    """Slash-separated, unique in a report, e.g. `perplexity/heldout.txt`."""
    value: float
    unit: str
    higher_is_better: bool | None = None
    """None where neither direction is a goal (a plain count)."""
    stderr: float | None = None
    """Standard error or spread of `value` in `unit`; None where the number is exact, or nobody knows."""
    note: str = ""
    parts: Sequence[float] | None = None
    """Contribution of each sample (window, question) to `value`, in `unit`, up to a constant: the error of `value` is
    that of their mean. With them two models are compared sample by sample; None where nothing was sampled, and the
    number is exact; empty where samples made it in another way than by their mean."""
    documents: Sequence[int] | None = None
    """The document that each of `parts` comes from; None where that is not known."""
    degrees_of_freedom: float | None = None
    """Of Student's t for `stderr`; None: normal."""
    samples: Sequence[tuple[str, str]] = ()
    """(prompt, what the model wrote), for people to read."""
    margin: float | None = None
    """A relative change within this is called the same; None where every significant change counts."""
    right_or_wrong: bool = False
    """Whether each of `parts` is 1 for a right answer and 0 for a wrong one."""


@dataclass(frozen=True)
class Probe:
    """A number about one model in memory that drifts with the machine's load. It is read repeatedly, in turn with the
    other model's."""

    name: str
    """As a measurement's."""
    unit: str
    higher_is_better: bool
    margin: float
    """A relative change within this is called the same."""
    readings: int
    """Least number of readings."""
    note: str
    read: Callable[[], float]
    """Measure once, > 0, in `unit`. Holds the model in memory for as long as the probe lives."""
