"""Protocols: signatures of methods. Those of pruners are in `removals/`, as they depend on the kind of unit.

Import-light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from workers.engine.contracts.params import MethodParams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.evaluation import EvaluationContext
    from workers.engine.contracts.facts import (
        AllocationFacts,
        DenseBlock,
        DenseUnits,
        LayerTask,
        LinearStats,
        Measurement,
        Probe,
        Trainable,
    )
    from workers.engine.contracts.training import Procedure, Target

P_contra = TypeVar("P_contra", bound=MethodParams, contravariant=True)


class Scorer(Protocol[P_contra]):
    """`(weight_OI, stats, params) -> score_OI`: importance >= 0, finite, higher is kept; never writes its inputs."""

    def __call__(self, weight_OI: Tensor, stats: LinearStats, params: P_contra, /) -> Tensor: ...


class UnitMeasure(Protocol[P_contra]):
    """`(block, params) -> {name: numbers}` of one dense block, float32 or float64 [U] of a family or [] of the block;
    called once per job, and cached between jobs. Names are the method's own, `head` or `channel` first."""

    def __call__(self, block: DenseUnits, params: P_contra, /) -> Mapping[str, Tensor]: ...


class UnitScorer(Protocol[P_contra]):
    """`(measured, params) -> scores`: from the measurements of every block to, per block, unit kind -> importance
    float64 [U] of its units. Higher is kept, +inf never goes."""

    def __call__(self, measured: Sequence[Mapping[str, Tensor]], params: P_contra, /) -> list[Mapping[str, Tensor]]: ...


class Allocator(Protocol[P_contra]):
    """`(facts, sparsity, params) -> {layer name: sparsity}`; the mean weighted by parameters is `sparsity`."""

    def __call__(self, facts: AllocationFacts, sparsity: float, params: P_contra, /) -> Mapping[str, float]: ...


class Measure(Protocol[P_contra]):
    """`(block, params) -> {layer name: metric}` of one dense block; called once per job, and cached between jobs."""

    def __call__(self, block: DenseBlock, params: P_contra, /) -> Mapping[str, float]: ...


class Refiner(Protocol[P_contra]):
    """`(layer, pruned_OI, stats, params, kept_of) -> kept_OI`: boolean [O, I], which weights to keep instead of the
    non-zeros of `pruned_OI`: as many in every row, and in every group of M where `kept_of` is (N, M), not None."""

    def __call__(
        self,
        layer: LayerTask,
        pruned_OI: Tensor,
        stats: LinearStats,
        params: P_contra,
        kept_of: tuple[int, int] | None,
        /,
    ) -> Tensor: ...


class Tuner(Protocol[P_contra]):
    """`(model, architecture, params) -> trainable`: prepares the pruned model for training.

    Chooses float32 parameters, as `params.trains_tensor` says, or adds some, and freezes the others. From then on the
    model's forward pass is that of the plain weights which `trainable.merged` gives, and which it reads from the model
    when it is called. Zeros in linear layers of the blocks stay zeros, in both.

    With several devices the model is divided already, as `Procedure` says of one (`contracts/training.py`), but for a
    method whose `params` go `block_by_block`: it takes a fourth argument, the numbers of the blocks in their order. A
    block's weights are there, and whole, when its number is given; when the next one is asked for it is divided, with
    what was put into it. All have to be asked for, and `trainable.parameters` to be looked up after that. Where there
    is no such argument the model is there whole. `begins_unchanged` spares such a method that the model is read twice.
    """

    def __call__(self, model: nn.Module, architecture: Architecture, params: P_contra, /) -> Trainable: ...


class Trainer(Protocol[P_contra]):
    """`(model, architecture, target, params) -> procedure`: prepares the dense model to be trained while what `target`
    says goes."""

    def __call__(
        self, model: nn.Module, architecture: Architecture, target: Target, params: P_contra, /
    ) -> Procedure: ...


class Evaluator(Protocol[P_contra]):
    """`(context, params) -> measurements` of the one model in `context`; called for the dense and the pruned one."""

    def __call__(self, context: EvaluationContext, params: P_contra, /) -> list[Measurement]: ...


class PairedEvaluator(Protocol[P_contra]):
    """`(context, params) -> probes` of the one whole model in `context`, warmed up; called for each model once it is in
    memory, as often as it is loaded. The stage reads the probes of both in turn. Readings are not kept for a retry."""

    def __call__(self, context: EvaluationContext, params: P_contra, /) -> list[Probe]: ...


class ComparingEvaluator(Protocol[P_contra]):
    """`(dense, pruned, params) -> (of the dense model against itself, of the pruned one against it)`: measurements in
    the same order. Each model is asked for by a call. Where one alone fits in memory it is loaded by each call: no
    context may be held while the other is asked for."""

    def __call__(
        self,
        dense: Callable[[], EvaluationContext],
        pruned: Callable[[], EvaluationContext],
        params: P_contra,
        /,
    ) -> tuple[list[Measurement], list[Measurement]]: ...
