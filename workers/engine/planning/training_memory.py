"""Predicted memory of `tune` and `train`, and how many windows go through at once within it. Import-light.

L = prunable weights, those that masks are of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.errors import MemoryBudgetTooSmall
from workers.engine.planning.memory import (
    COMPUTE_BYTES,
    PROCESS_BYTES,
    TOKENIZER_BYTES,
    looked_at_bytes,
    stacking_bytes,
)
from workers.engine.planning.mixture_counts import expert_width, sent_to
from workers.engine.removals.base import removal_of

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Architecture
    from workers.engine.contracts.tuning_params import TrainingParams, Trains
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec

TRAINED_TOKENS = 2048
"""Tokens per forward and backward pass where the budget allows."""
SELECTION_BYTES = 24
"""Per weight of the layer that a mask is made for: its float32 copy and score, and the selection's values and int64
indices."""
_GRADIENT_BYTES, _MOMENTS_BYTES, _CODED_MOMENTS_BYTES = 4, 8, 2 * (1 + 4 / 256)
"""Per trained parameter, beside itself: its gradient, and AdamW's two moments in float32 or in 8 bits."""
_CODING_BYTES = 40
"""Per entry of the largest parameter, while its moments are computed in float32 and coded again."""
_BEST_BYTES = 4
"""Per trained parameter, the best state, which `tune` keeps."""
_KEPT_PER_HIDDEN, _KEPT_PER_MLP = 20, 6
"""Numbers per token and block that a backward pass needs, in hidden sizes and in widths of the MLP."""
_KEPT_PER_SENT = 3
"""The same for each expert that a token is sent to, in hidden sizes: its input, its output, and that times a weight."""
_ADDED_BYTES = 13
"""Per weight of a block's experts whose updates are added to them: the sum, its gradient, that masked, and the mask."""
_KEPT_PER_LOGIT = 4
"""Copies of the logits in float32: as they are, shifted, their softmax and its gradient."""
_KEPT_BY_DISTILLATION, _KEPT_BY_TOP_K = 3.5, 1.0
"""Further copies where the dense model's predictions are learnt, of all tokens or of its likeliest: 7.2 and 4.2 in all
were measured, 3.4 without, with a vocabulary of 64,000."""


def trained_at_once(spec: CompressionSpec, stage: Trains, source: ModelSource, architecture: Architecture) -> int:
    """Windows per forward and backward pass of `tune` or `train`: at most TRAINED_TOKENS tokens, halved to keep the
    spec's budget.

    Raises MemoryBudgetTooSmall if one window at a time is still too much.
    """
    params, budget = spec.trainings[stage], spec.compute.memory_budget
    windows = min(params.batch // _sharing(spec, params), max(1, TRAINED_TOKENS // params.sequence_length))
    while budget is not None and (peak := training_bytes(spec, stage, source, architecture, windows)) > budget:
        if windows == 1:
            raise MemoryBudgetTooSmall(
                f"{params.method} trains the whole model in memory, {peak / 2**20:.0f} MiB, the budget is "
                f"{budget / 2**20:.0f} MiB",
                f"allow {peak} bytes, or use shorter windows, `gradient_checkpointing`, "
                + ("`distill` null, so that the dense model is not there too, " if params.distill else "")
                + "or a method that trains less",
                field=f"/{stage}",
            )
        windows //= 2
    return windows


def training_bytes(
    spec: CompressionSpec, stage: Trains, source: ModelSource, architecture: Architecture, windows: int
) -> int:
    """The process with the whole model, what trains, and the activations of so many windows.

    `train` has the dense model; of `tune` the sizes of the larger of dense model and result are counted. Nothing is
    mapped: models in training are read.
    """
    params = spec.trainings[stage]
    if stage == "tune":
        source, architecture = removal_of(spec).largest(spec, source, architecture)
    compute_bytes, devices = COMPUTE_BYTES[spec.compute.dtype], _sharing(spec, params)
    # Where `train` trains all, the model is held in float32, whatever it computes in.
    held_bytes = 4 if stage == "train" and params.trains_all else compute_bytes
    gathered = 0
    if devices > 1:  # the whole of a block and of what is outside
        block = architecture.largest_block
        gathered = block + source.parameters - architecture.prunable_parameters
    weights = state_bytes(spec, stage, source, architecture) + (4 if stage == "tune" else held_bytes) * gathered
    if params.adds_to_experts:
        weights += _ADDED_BYTES * max(architecture.expert_parameters)
    kept = _kept_bytes(params, architecture, compute_bytes)
    blocks = params.blocks_back(source, architecture)
    inputs = blocks * architecture.hidden_size * compute_bytes
    per_token = kept + inputs if params.gradient_checkpointing else kept * blocks
    tokens = windows * params.read_tokens
    dense = source.parameters * compute_bytes // devices + compute_bytes * gathered
    of_weights, linear = params.weight_bytes, architecture.prunable_parameters
    at_times = [
        of_weights.passing * linear // devices
        + tokens * (per_token + int(architecture.vocabulary * 4 * _logit_copies(params))),
        _updating_bytes(params, source, architecture, devices),
        of_weights.looking * linear // devices + windows * params.sequence_length * looked_at_bytes(architecture),
    ]
    begun = weights + max(at_times) + (dense if params.distill else 0)
    if params.reads_dense_losses:  # once, before there are gradients and moments
        batch = windows * params.sequence_length * looked_at_bytes(architecture)
        looking = dense + max(batch, stacking_bytes(architecture, compute_bytes))
        optimized = int(params.trained_parameters(source, architecture) * _optimized_bytes(params)) // devices
        begun = max(begun, weights - optimized + looking)
    if devices > 1:
        apart = _writing_bytes(spec, stage, source, architecture)
    else:
        apart = source.parameters * held_bytes + stacking_bytes(architecture, held_bytes)
    return PROCESS_BYTES + TOKENIZER_BYTES + max(apart, begun)


def state_bytes(spec: CompressionSpec, stage: Trains, source: ModelSource, architecture: Architecture) -> int:
    """A rank's part of the model in training and of what goes with its weights from the first step to the last:
    gradients, moments, the best state, masks and what else the method keeps."""
    params, linear = spec.trainings[stage], architecture.prunable_parameters
    compute_bytes, devices = COMPUTE_BYTES[spec.compute.dtype], _sharing(spec, params)
    held_bytes = 4 if stage == "train" and params.trains_all else compute_bytes
    trained = params.trained_parameters(source, architecture)
    base = linear * (params.base_bits / 8 if params.base_bits else held_bytes)
    itself = 4 - held_bytes if params.trains_own else 4
    optimized = trained * (itself + _optimized_bytes(params) + (_BEST_BYTES if stage == "tune" else 0))
    masks = params.weight_bytes.always * linear
    if stage == "tune" and spec.removes.leaves_zeros:
        masks += params.masked_weights(architecture)
    divided = base + (source.parameters - linear) * held_bytes + optimized + masks
    return int(divided) // devices + 4 * params.whole_numbers(architecture)


def _writing_bytes(spec: CompressionSpec, stage: Trains, source: ModelSource, architecture: Architecture) -> int:
    """A rank's part of a divided model after the last step, and what is whole while the result is checked and written:
    a block, or all that is outside of blocks, of which one module is there as stored and as merged too."""
    params, devices = spec.trainings[stage], _sharing(spec, spec.trainings[stage])
    gone = _optimized_bytes(params) + (_BEST_BYTES if stage == "tune" else 0)
    parts = state_bytes(spec, stage, source, architecture)
    parts -= int(params.trained_parameters(source, architecture) * gone) // devices
    parts += params.weight_bytes.looking * architecture.prunable_parameters // devices
    blocks: dict[int, int] = {}
    outside = []
    for name, facts in source.tensors.items():
        within = source.layout.split(name)
        if within is None:
            outside.append(facts)
        else:
            blocks[within[0]] = blocks.get(within[0], 0) + 8 * facts.parameters + facts.bytes
    gathered = sum(4 * facts.parameters for facts in outside)
    module = max(facts.bytes + 4 * facts.parameters for facts in outside)
    return parts + max(max(blocks.values()) + stacking_bytes(architecture, 4), gathered + module)


def _updating_bytes(params: TrainingParams, source: ModelSource, architecture: Architecture, devices: int) -> int:
    """More than the state, while an update is made: activations are gone then."""
    found = params.weight_bytes.updating * architecture.prunable_parameters // devices
    if found:
        found += SELECTION_BYTES * max(layer.parameters for layer in architecture.layers)
    if params.eight_bit:
        found = max(found, _CODING_BYTES * max(facts.parameters for facts in source.tensors.values()) // devices)
    return found


def _optimized_bytes(params: TrainingParams) -> float:
    """Of a trained parameter's gradient and moments."""
    return _GRADIENT_BYTES + (_CODED_MOMENTS_BYTES if params.eight_bit else _MOMENTS_BYTES)


def _sharing(spec: CompressionSpec, params: TrainingParams) -> int:
    """Devices over which a model in training is divided."""
    return spec.compute.devices if params.divides else 1


def _logit_copies(params: TrainingParams) -> float:
    if params.distill is None:
        return _KEPT_PER_LOGIT
    return _KEPT_PER_LOGIT + (_KEPT_BY_DISTILLATION if params.distill.top_k is None else _KEPT_BY_TOP_K)


def _kept_bytes(params: TrainingParams, architecture: Architecture, compute_bytes: int) -> int:
    """Per token, what a block keeps for the backward pass: of a mixture, for each expert that it is sent to, unless
    experts are computed again. Copies of inputs are those of adapters, in float32."""
    layout, hidden_size = architecture.layout, architecture.hidden_size
    width = max(layer.shape[0] for layer in architecture.layers)
    copied = (
        sum(layer.shape[1] for layer in architecture.block(block) if not layout.of_experts(layer))
        for block in range(architecture.blocks)
    )
    kept = hidden_size * _KEPT_PER_HIDDEN + width * _KEPT_PER_MLP
    if architecture.has_experts and not params.adds_to_experts:
        of_one = hidden_size * _KEPT_PER_SENT + expert_width(architecture) * _KEPT_PER_MLP
        kept += sent_to(architecture) * of_one
    return kept * compute_bytes + 4 * max(copied) * params.input_copies
