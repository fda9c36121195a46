"""Scores of heads, channels, hidden dimensions or blocks of the dense model.

Gradients and other expensive measurements are made once per block and cached by content.
B = windows of a batch, T = tokens of a window, D = hidden size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cosine_similarity

from workers.engine.architectures.architecture import Family
from workers.engine.contracts.facts import DenseUnits, LinearStats, Units
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Stat
from workers.engine.errors import NumericalFailure
from workers.engine.maths.selection import finite
from workers.engine.maths.unit_slices import unit_rows
from workers.engine.model.dense_statistics import dense_statistics
from workers.engine.model.expert_facts import expert_facts
from workers.engine.model.gradients import gradients
from workers.engine.model.loaded import block_tensors
from workers.engine.model.provenance import environment
from workers.engine.model.streamed_loss import StreamedLoss
from workers.engine.model.walk import At, walk
from workers.engine.registry import method_of
from workers.engine.removals.base import Scores, removal_of
from workers.engine.removals.weight_scores import score

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.registry import Method
    from workers.engine.spec import CompressionSpec
    from workers.engine.store.checkpoint import Checkpoint
    from workers.engine.store.run import Run

Measured = list[dict[str, "Tensor"]]
"""Per block: name -> measurement of the method."""


def score_units(spec: CompressionSpec, model: LoadedModel, calibration: Calibration | None, run: Run) -> Units:
    """The scores of all heads and channels, hidden dimensions or blocks. Kept in the checkpoint for a retry.

    Raises NumericalFailure where a score is not a number.
    """
    removal = removal_of(spec)
    found = removal.families(spec, model.architecture, model.source.config, model.source.tensors)
    scores = run.checkpoint.load_scores() or _scores(spec, model, found, calibration, run)
    return removal.decided(spec, model, Units(found, scores), calibration, run)


def _scores(
    spec: CompressionSpec, model: LoadedModel, found: Sequence[Family], calibration: Calibration | None, run: Run
) -> Scores:
    params = needed(spec.score, "/score")
    method = method_of("score", params)
    if method.measure is None:
        scores = _sums_over_weights(spec, model, found, calibration, run)
    else:
        scores = _of_measured(spec, method, model, found, calibration, run)
    # What is removed follows from them, and must be the same on all.
    scores = model.ranks.first(lambda: scores)
    for block, of_block in enumerate(scores):
        for kind, values in of_block.items():
            if any(math.isnan(value) for value in values):
                raise NumericalFailure(
                    f"block {block}: {method.name} gives {kind}s that are not a number", "check the dense model"
                )
    run.checkpoint.save_scores(scores)
    return scores


def _sums_over_weights(
    spec: CompressionSpec,
    model: LoadedModel,
    found: Sequence[Family],
    calibration: Calibration | None,
    run: Run,
) -> Scores:
    """A score of weights, added up over the weights of each unit."""
    params = needed(spec.score, "/score")
    stats = dense_statistics(model, calibration, run, needs=spec.unit_needs)
    scores: Scores = [{} for _ in range(model.architecture.blocks)]
    for block in range(model.architecture.blocks):
        tensors, of_block = block_tensors(model, block), [family for family in found if family.block == block]
        layers = {layer.weight: layer for layer in model.architecture.block(block)}
        uses = Counter(member.tensor for family in of_block for member in family.members)
        scored: dict[str, Tensor] = {}  # no longer than it takes: all experts' together are as large as the block
        for family in of_block:
            parts = []
            for member in family.members:
                if (layer := layers.get(member.tensor)) is None:
                    continue
                if layer.weight not in scored:
                    stream = stats.get(f"{block}/{layer.stream}", LinearStats())
                    scored[layer.weight] = score(params, layer, tensors[layer.weight], stream)
                parts.append(unit_rows(scored[layer.weight], family, member).double().sum(dim=(1, 2)))
                uses[layer.weight] -= 1
                if not uses[layer.weight]:
                    del scored[layer.weight]
            scores[block][family.kind] = torch.stack(parts).sum(dim=0).tolist()
    return scores


def _of_measured(
    spec: CompressionSpec,
    method: Method,
    model: LoadedModel,
    found: Sequence[Family],
    calibration: Calibration | None,
    run: Run,
) -> Scores:
    """A score of units, from its method's measurements of every block."""
    params, measure = needed(spec.score, "/score"), needed(method.measure, "a measure of the scorer")
    key = environment(model) | {
        "score": params.model_dump(mode="json", exclude=set(params.unmeasured)),
        "calibration": calibration.digest if calibration and spec.unit_needs else "",
        "of": sorted({family.kind for family in found}),
    }
    if Stat.EXPERT_SETS in spec.unit_needs:  # of as many as are to go
        key["prune"] = spec.edit.model_dump(mode="json")
    kept = run.cache.tensors("unit-measures", key)
    if kept is None:
        kept = {}
        for facts in _facts(spec, model, found, calibration, run):
            kept |= {f"{facts.block}/{name}": values for name, values in measure(facts, params).items()}
        run.cache.keep_tensors("unit-measures", key, {name: values.contiguous() for name, values in kept.items()})
    measured: Measured = [{} for _ in range(model.architecture.blocks)]
    for name, values in kept.items():
        block, _, own = name.partition("/")
        measured[int(block)][own] = values.cpu().double()
    scores = [{kind: values.tolist() for kind, values in block.items()} for block in method.function(measured, params)]
    removal_of(spec).protect(params, scores)
    return scores


def _facts(
    spec: CompressionSpec,
    model: LoadedModel,
    found: Sequence[Family],
    calibration: Calibration | None,
    run: Run,
) -> Iterator[DenseUnits]:
    """The blocks, in some order, with the measurements that the score needs. NumericalFailure where one is not
    finite."""
    needs = spec.unit_needs

    def facts(block: int, **known: object) -> DenseUnits:
        of_block = [family for family in found if family.block == block]
        tensors = block_tensors(model, block)
        for name, tensor in tensors.items():
            if not finite(tensor):
                raise NumericalFailure(f"{name}: its weights are infinite or NaN", "check the dense model")
        return DenseUnits(block, of_block, tensors, **known)  # type: ignore[arg-type]

    if needs & (Stat.GRADIENT | Stat.SQUARED_GRADIENT):
        walk = gradients(
            model,
            needed(calibration, "/calibrate"),
            run,
            splits=needed(spec.score, "/score").splits,
            squared=Stat.SQUARED_GRADIENT in needs,
        )
        for block, sums in walk:
            squares = sums.squared if Stat.SQUARED_GRADIENT in needs else ()
            yield facts(block, gradients=sums.mean, squared_gradients=squares)
    elif Stat.CHANGE in needs:
        for block, change in _changes(model, needed(calibration, "/calibrate"), run.checkpoint):
            yield facts(block, change=change)
            run.events.progress(block + 1, model.architecture.blocks, "measured block")
    elif Stat.REMOVAL in needs:
        for block, loss in _losses_without(model, needed(calibration, "/calibrate"), run.checkpoint):
            yield facts(block, loss_without=loss)
            run.events.progress(model.architecture.blocks - block, model.architecture.blocks, "left-out block")
    elif Stat.ROUTING in needs:
        text, going = needed(calibration, "/calibrate"), {f.block: removal_of(spec).going(spec, f) for f in found}
        for block, experts in expert_facts(model, text, run.checkpoint.scratch_file, needs, going):
            yield facts(block, experts=experts)
            run.events.progress(block + 1, model.architecture.blocks, "measured block")
    else:
        yield from map(facts, range(model.architecture.blocks))


def _changes(model: LoadedModel, calibration: Calibration, checkpoint: Checkpoint) -> Iterator[tuple[int, float]]:
    """1 - the mean over all tokens of the cosine between each block's input and output, in float32."""
    tokens = calibration.windows_NT.numel()

    def cosines(at: At) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=model.device)
        for batch in at.batches:
            input_BTD = at.inputs.read(batch)
            output_BTD = at.run(input_BTD)
            total += cosine_similarity(input_BTD.float(), output_BTD.float(), dim=-1).double().sum()
            if at.wanted:
                at.keep(output_BTD)
        return total

    with walk(model, calibration, checkpoint.scratch_file) as way:
        for block, _, total in way.blocks(way.enter(), cosines):
            model.ranks.add(total)
            yield block, 1 - total.item() / tokens


def _losses_without(
    model: LoadedModel, calibration: Calibration, checkpoint: Checkpoint
) -> Iterator[tuple[int, float]]:
    """Mean loss without each block, last block first: what lies before it is the same as for the one after."""
    blocks = model.architecture.blocks

    def tensors(block: int) -> Mapping[str, Tensor]:
        return block_tensors(model, block)

    with closing(StreamedLoss(model, calibration, checkpoint, keep_path=True)) as streamed:
        streamed.nll(range(blocks), tensors)
        for left_out in reversed(range(blocks)):
            path = [block if block != left_out else None for block in range(blocks)]
            yield left_out, streamed.nll(path, tensors).mean().item()
