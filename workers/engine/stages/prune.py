"""Prune: the walk over the blocks. The only place that decides what weights are written.

Each block is loaded, its inputs are looked at while it is dense, its layers are scored and pruned one by one, and the
pruned block, rounded to the type it will be stored in, makes the inputs of the next: what later layers are calibrated
on is what they will see in use. At any time one block is resident, and a block is durable before the next begins.
O = outputs, I = inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

from workers.engine.architectures.llama import BLOCKS
from workers.engine.errors import NumericalFailure
from workers.engine.registry import method_of
from workers.engine.report import LayerReport
from workers.engine.stages.calibrate import Activations, Calibration, capture, collect
from workers.engine.stages.load import LoadedModel, filled, outside_tensors, tensors_of
from workers.engine.stages.score import score
from workers.engine.stats import LinearStats

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.checkpoint import Checkpoint
    from workers.engine.clock import Clock
    from workers.engine.events import Events
    from workers.engine.spec import CompressionSpec


def prune(
    spec: CompressionSpec,
    model: LoadedModel,
    calibration: Calibration | None,
    sparsity: Mapping[str, float],
    *,
    checkpoint: Checkpoint,
    clock: Clock,
    events: Events,
) -> int:
    """Prune every block into the checkpoint. Returns how many were found done. Raises NumericalFailure."""
    blocks = model.architecture.blocks
    if not checkpoint.outside().exists():
        checkpoint.save_outside(_stored(spec, outside_tensors(model)))
    start, activations = _resume(model, calibration, checkpoint)
    if start:
        events.resume(start)
    events.progress(start, blocks, "block")
    for block in range(start, blocks):
        dense = tensors_of(model, f"{BLOCKS}.{block}")
        with clock.measure("calibrate"):
            stats = _statistics(model, activations, block, dense)
        pruned = _stored(spec, _pruned(spec, model, block, dense, stats, sparsity, clock))
        checkpoint.save_block(block, pruned)
        if activations is not None and block + 1 < blocks:
            with clock.measure("calibrate"), filled(model, f"{BLOCKS}.{block}", pruned) as module:
                activations.advance(block, module)
            checkpoint.save_hidden(block + 1, activations.hidden_NTD)
        events.checkpoint(block)
        events.progress(block + 1, blocks, "block")
    return start


def layer_reports(model: LoadedModel, sparsity: Mapping[str, float], checkpoint: Checkpoint) -> list[LayerReport]:
    """What became of every layer, counted in the files as written."""
    reports = []
    for block in range(model.architecture.blocks):
        with safe_open(checkpoint.block(block), framework="pt") as stored:
            for layer in model.architecture.block(block):
                weight_OI = stored.get_tensor(f"{layer.name}.weight")
                zeros = weight_OI.numel() - int(weight_OI.count_nonzero())
                reports.append(
                    LayerReport(
                        name=layer.name,
                        block=block,
                        shape=layer.shape,
                        parameters=layer.parameters,
                        zeros=zeros,
                        target_sparsity=sparsity[layer.name],
                        sparsity=zeros / layer.parameters,
                    )
                )
    return reports


def _resume(
    model: LoadedModel, calibration: Calibration | None, checkpoint: Checkpoint
) -> tuple[int, Activations | None]:
    """First block still to do, and the activations that enter it."""
    blocks = model.architecture.blocks
    finished = checkpoint.finished_blocks()
    if calibration is None or finished == blocks:
        return finished, None
    start, hidden_NTD = checkpoint.latest_hidden() or (0, None)
    return start, capture(model, calibration, hidden_NTD)


def _statistics(
    model: LoadedModel, activations: Activations | None, block: int, dense: Mapping[str, Tensor]
) -> Mapping[str, LinearStats]:
    if activations is None:
        return {layer.stream: LinearStats() for layer in model.architecture.block(block)}
    with filled(model, f"{BLOCKS}.{block}", dense) as module:
        return collect(model, activations, block, module)


def _pruned(
    spec: CompressionSpec,
    model: LoadedModel,
    block: int,
    dense: Mapping[str, Tensor],
    stats: Mapping[str, LinearStats],
    sparsity: Mapping[str, float],
    clock: Clock,
) -> dict[str, Tensor]:
    """The block's tensors with its linear layers pruned, layer by layer so that one score is resident."""
    group, pruner = method_of("score", spec.score).group, method_of("prune", spec.prune)
    tensors = dict(dense)
    for layer in model.architecture.block(block):
        weight_OI = dense[f"{layer.name}.weight"]
        with clock.measure("score"):
            score_OI = score(spec, layer, weight_OI, stats[layer.stream])
        tensors[f"{layer.name}.weight"] = pruner.function(weight_OI, score_OI, sparsity[layer.name], group, spec.prune)
    return tensors


def _stored(spec: CompressionSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in the type they are shipped in, in host memory. Raises NumericalFailure where that overflows."""
    if spec.package.dtype == "source":
        return {name: tensor.to("cpu").contiguous() for name, tensor in tensors.items()}
    dtype = getattr(torch, spec.package.dtype)
    stored = {name: tensor.to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    for name, tensor in stored.items():
        if not tensor.isfinite().all() and tensors[name].isfinite().all():
            raise NumericalFailure(
                f"{name} holds values beyond the range of {spec.package.dtype}",
                "package as `source`, bfloat16 or float32",
                field="/package/dtype",
            )
    return stored
