"""Predictions for a plan: peak memory of a job on the CPU. Import-light.

Sums of resident memory, with constants measured on models of 7 M and 150 M parameters (torch 2.13, float32, glibc), for
which memory was within 20 %. On a GPU the device holds the activations and weights counted here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.architectures.architecture import Architecture
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Stat
from workers.engine.errors import MemoryBudgetTooSmall
from workers.engine.files.safetensors_bytes import DTYPE_BYTES
from workers.engine.maths.spreading import parameters
from workers.engine.planning.mixture_counts import expert_width, of_experts, sent_to
from workers.engine.registry import method_of
from workers.engine.removals.base import removal_of

if TYPE_CHECKING:
    from workers.engine.contracts.tuning_params import TrainingParams, Trains
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec

TRIAL_TOKENS = 8192
"""Calibration text that trial prunings are judged on: allocations are compared on the same, so little is enough."""
BATCH_TOKENS = 4096
"""Tokens per forward pass of calibration on a CPU, where memory allows: more would make nothing faster."""
GPU_BATCH_TOKENS = 32_768
"""The same on a GPU: a block's kernels and the additions to its Gram matrices are then an eighth as many."""
TRAINED_TOKENS = 2048
"""Tokens per forward and backward pass of a training where the budget allows."""
_PROCESS_BYTES = 420 * 2**20
"""Python with torch and transformers imported."""
_TOKENIZER_BYTES = 80 * 2**20
_SELECTION_BYTES = 24
"""Per weight of the layer being pruned: its float32 copy and score, and the selection's values and int64 indices."""
_SOLVE_BYTES = 24
"""Per weight of the layers that share a Hessian: their float32 copies, masks and errors while columns are solved."""
_IMPORTANCE_COPIES = 10
"""Of a block in float32, beside what is kept of each part of the text: gradients of a batch, and what a score makes."""
_FACTOR_COPIES = 3
"""Of the largest Gram matrix, while its Cholesky factor is inverted."""
_COMPUTE_BYTES = {"float32": 4, "bfloat16": 2}
_GRADIENT_BYTES, _MOMENTS_BYTES, _CODED_MOMENTS_BYTES = 4, 8, 2 * (1 + 4 / 256)
"""Per trained parameter, beside itself: its gradient, and AdamW's two moments in float32 or in 8 bits."""
_CODING_BYTES = 40
"""Per entry of the largest parameter, while its moments are computed in float32 and coded again."""
_BEST_BYTES = 4
"""The same of the best state, which `tune` keeps."""
_STACKING = 1.5
"""Of a block's experts in the type computed in: copies of them while they are put into one tensor, beside that. 1.0 by
us and 1.3 by transformers were measured."""
_PASSING_BYTES = 4
"""Per number of a forward pass, whatever the model computes in: bfloat16 took as much as float32."""
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
_RETAINED_BYTES, _RETAINED_PER_WEIGHT = 256 * 2**20, 80
"""Freed memory that glibc keeps, below its 32 MiB mmap threshold: so much per weight, up to so many bytes."""


def batch_tokens(
    spec: CompressionSpec,
    source: ModelSource,
    architecture: Architecture,
    *,
    budget: int | None,
    most: int = BATCH_TOKENS,
) -> int:
    """Tokens per forward pass of the walk, halved from `most` until the predicted peak is within `budget` bytes.

    Raises MemoryBudgetTooSmall if one window at a time is still too much.
    """
    least = spec.calibrate.sequence_length if spec.calibrate else 1
    tokens = max(most, least)
    while budget is not None and (peak := walk_bytes(spec, source, architecture, tokens)) > budget:
        if tokens <= least:
            raise MemoryBudgetTooSmall(
                f"pruning block by block takes {peak / 2**20:.0f} MiB, the budget is {budget / 2**20:.0f} MiB",
                f"allow {peak} bytes, or calibrate on shorter windows, or compute in bfloat16",
                field="/compute/memory_budget",
            )
        tokens = max(tokens // 2, least)
    return tokens


def whole_models(spec: CompressionSpec, source: ModelSource, architecture: Architecture, budget: int | None) -> int:
    """How many models are in memory as a whole when they are measured: two where both are measured in turn and fit, one
    where one fits, none where they are measured block by block.

    Raises MemoryBudgetTooSmall if one must and does not.
    """
    source, architecture = removal_of(spec).largest(spec, source, architecture)
    wanted = 2 if _in_turn(spec) else 1
    for models in range(wanted, 0, -1):
        if budget is None or _evaluation_bytes(spec, source, architecture, models) - _mapped_bytes(source) <= budget:
            return models
    peak = _evaluation_bytes(spec, source, architecture, 1) - _mapped_bytes(source)
    needs = {"/prune/at_most/decode_time": "the decode time of the result"} if _decode_time(spec) else {}
    needs |= {
        f"/evaluate/{index}": params.method
        for index, params in enumerate(spec.evaluate)
        if method_of("evaluate", params).whole_model
    }
    for field, name in needs.items():
        raise MemoryBudgetTooSmall(
            f"{name} needs the whole model in memory, {peak / 2**20:.0f} MiB, the budget is "
            f"{(budget or 0) / 2**20:.0f} MiB",
            f"allow {peak} bytes, or leave it out: perplexity is measured block by block",
            field=field,
        )
    return 0


def _in_turn(spec: CompressionSpec) -> bool:
    """Whether anything is measured on both models in turn."""
    found = [method_of("evaluate", params) for params in spec.evaluate]
    return _decode_time(spec) or any(method.paired or method.compares for method in found)


def _decode_time(spec: CompressionSpec) -> bool:
    """Whether the time of a decode step is bounded."""
    return spec.edit.size_limit is not None and spec.edit.size_limit.decode_time is not None


def predicted_peak_memory_bytes(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> int:
    """Peak resident memory: the greatest of the dense model's curvature, the walk over the blocks, and evaluation."""
    budget = spec.compute.memory_budget
    peak = walk_bytes(spec, source, architecture, batch_tokens(spec, source, architecture, budget=budget))
    if Stat.CURVATURE in spec.allocate_needs:
        # Weights, their gradients, signs and products, and a graph of about as much again; all float32.
        whole = _PROCESS_BYTES + 8 * 4 * source.parameters
        if budget is not None and whole > budget:
            raise MemoryBudgetTooSmall(
                f"{spec.allocate.method} differentiates the whole model, {whole / 2**20:.0f} MiB, the budget is "
                f"{budget / 2**20:.0f} MiB",
                f"allow {whole} bytes, or use an allocation that looks at blocks one by one",
                field="/allocate",
            )
        peak = max(peak, whole)
    larger = removal_of(spec).largest(spec, source, architecture)
    for stage in spec.trainings:
        windows = trained_at_once(spec, stage, source, architecture)
        peak = max(peak, _training_bytes(spec, stage, source, architecture, windows))
    if (spec.evaluate or _decode_time(spec)) and (models := whole_models(spec, source, architecture, budget)):
        held = _evaluation_bytes(spec, *larger, models)
        # Of the mapped files, as much is in memory as there is room for.
        needed_bytes = held - _mapped_bytes(larger[0])
        peak = max(peak, held if budget is None else max(needed_bytes, min(held, budget)))
    return peak


def trained_at_once(spec: CompressionSpec, stage: Trains, source: ModelSource, architecture: Architecture) -> int:
    """Windows per forward and backward pass of `tune` or `train`: at most TRAINED_TOKENS tokens, halved to keep the
    spec's budget.

    Raises MemoryBudgetTooSmall if one window at a time is still too much.
    """
    params, budget = spec.trainings[stage], spec.compute.memory_budget
    windows = min(params.batch // _sharing(spec, params), max(1, TRAINED_TOKENS // params.sequence_length))
    while budget is not None and (peak := _training_bytes(spec, stage, source, architecture, windows)) > budget:
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


def _training_bytes(
    spec: CompressionSpec, stage: Trains, source: ModelSource, architecture: Architecture, windows: int
) -> int:
    """The process with the whole model, what trains, and the activations of so many windows.

    `train` has the dense model; of `tune` the sizes of the larger of dense model and result are counted.
    """
    params = spec.trainings[stage]
    if stage == "tune":
        source, architecture = removal_of(spec).largest(spec, source, architecture)
    compute_bytes = _COMPUTE_BYTES[spec.compute.dtype]
    # Where `train` trains all, the model is held in float32, whatever it computes in.
    held_bytes = 4 if stage == "train" and params.trains_all else compute_bytes
    stored = sum(facts.bytes for facts in source.tensors.values())
    trained = params.trained_parameters(source, architecture)
    # Of a divided model that is at the end, when the first rank has all of it again.
    loading = source.parameters * held_bytes + _stacking_bytes(architecture, held_bytes)
    linear = architecture.prunable_parameters
    base = linear * (params.base_bits / 8 if params.base_bits else held_bytes)
    optimized = _GRADIENT_BYTES + (_CODED_MOMENTS_BYTES if params.eight_bit else _MOMENTS_BYTES)
    beside = optimized + 4 * params.copies + (_BEST_BYTES if stage == "tune" else 0)
    weights = int(base + (source.parameters - linear) * held_bytes + trained * beside)
    devices, gathered = _sharing(spec, params), 0
    if devices > 1:  # a part of all, and the whole of a block and of what is outside
        block = max(sum(layer.parameters for layer in architecture.block(b)) for b in range(architecture.blocks))
        gathered = block + source.parameters - linear
        weights = weights // devices + (4 if stage == "tune" else held_bytes) * gathered
    weights += trained * 4 * params.whole_copies
    if params.adds_to_experts:
        weights += _ADDED_BYTES * max(of_experts(architecture, block) for block in range(architecture.blocks))
    kept = _kept_bytes(params, architecture, compute_bytes)
    blocks = params.blocks_back(source, architecture)
    inputs = blocks * architecture.hidden_size * compute_bytes
    per_token = kept + inputs if params.gradient_checkpointing else kept * blocks
    tokens = windows * params.read_tokens
    activations = tokens * (per_token + int(architecture.vocabulary * 4 * _logit_copies(params)))
    dense = (source.parameters * compute_bytes + stored) // devices + compute_bytes * gathered
    teacher = dense if params.distill else 0
    begun = weights + activations + teacher
    if params.reads_dense_losses:  # once, before there are gradients and moments
        batch = windows * params.sequence_length * _looked_at_bytes(architecture)
        whole = source.parameters * compute_bytes // devices + compute_bytes * gathered
        looking = whole + max(batch, _stacking_bytes(architecture, compute_bytes))
        begun = max(begun, weights - int(trained * optimized) // devices + looking)
    if params.eight_bit:
        largest = max(facts.parameters for facts in source.tensors.values())
        begun = max(begun, weights + teacher + _CODING_BYTES * largest // devices)
    return _PROCESS_BYTES + _TOKENIZER_BYTES + max(loading, begun)


def _looked_at_bytes(architecture: Architecture) -> int:
    """Bytes of a forward pass for each token, where its loss is all that is kept: its logits, or what a block computes
    of it."""
    return max(architecture.vocabulary * 4 * 3, _PASSING_BYTES * _token_numbers(architecture))


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


def walk_bytes(spec: CompressionSpec, source: ModelSource, architecture: Architecture, tokens: int) -> int:
    """The process while a block is pruned, with forward passes of so many tokens."""
    compute_bytes = _COMPUTE_BYTES[spec.compute.dtype]
    stored_bytes = max(DTYPE_BYTES[facts.dtype] for facts in source.tensors.values())
    block = max(sum(layer.parameters for layer in architecture.block(b)) for b in range(architecture.blocks))
    largest = max(layer.parameters for layer in architecture.layers)
    others = [facts for name, facts in source.tensors.items() if source.layout.split(name) is None]
    # All as they ship, or one in float32, when the result is verified.
    outside = max(sum(facts.bytes for facts in others), max(4 * facts.parameters + facts.bytes for facts in others))
    # The block being pruned as read and as pruned, the next one being read, and the previous one being written; all
    # experts of one once more as transformers' module holds them, in one tensor.
    blocks = (4 + architecture.has_experts) * block * stored_bytes
    selection = _SELECTION_BYTES * largest + min(_RETAINED_BYTES, _RETAINED_PER_WEIGHT * largest)
    held = max(spec.edit.held_bytes(layer.shape) for layer in architecture.layers)
    if spec.needs is Stat.NONE:
        return _PROCESS_BYTES + max(outside, blocks + selection, held)
    calibrate = needed(spec.calibrate, "/calibrate")
    hidden_size, mlp_width = architecture.hidden_size, max(layer.shape[0] for layer in architecture.layers)
    calibrated = calibrate.samples * calibrate.sequence_length
    token = compute_bytes * _token_numbers(architecture)
    forward = min(calibrated, tokens) * token
    removal = removal_of(spec)
    of_blocks = [
        [layers for layers in architecture.streams(b).values() if any(removal.looks_at(spec, one) for one in layers)]
        for b in range(architecture.blocks)
    ]
    streams = max(of_blocks, key=lambda streams: sum(layers[0].shape[1] ** 2 for layers in streams))
    widths = [layers[0].shape[1] for layers in streams]
    grams = 0
    if Stat.GRAM in spec.walk_needs:
        kinds = 3 if Stat.DENSE_INPUTS in spec.walk_needs and spec.refresh == "projection" else 1
        grams = kinds * 4 * (sum(width * width for width in widths) + _FACTOR_COPIES * max(widths) ** 2)
        selection = _SOLVE_BYTES * max(parameters(layers) for layers in streams)
    paused = 0
    if spec.refresh == "projection":
        twins = 2 if Stat.DENSE_INPUTS in spec.walk_needs else 1
        paused = twins * calibrated * compute_bytes * (mlp_width + 2 * hidden_size)
    walk = blocks + block * compute_bytes + grams + paused + max(selection, forward, held)
    scoring = _gradient_bytes(spec, block, min(calibrated, tokens), token)
    return _PROCESS_BYTES + _TOKENIZER_BYTES + max(outside, walk, scoring)


def _gradient_bytes(spec: CompressionSpec, block: int, tokens: int, token: int) -> int:
    """A block of so many parameters, its gradients, and what a score makes of them; 0 if it asks for none.

    `tokens` go through at a time, of `token` bytes each, or one window where gradients are taken one by one.
    """
    if not spec.unit_needs & (Stat.GRADIENT | Stat.SQUARED_GRADIENT):
        return 0
    length = needed(spec.calibrate, "/calibrate").sequence_length
    squared = Stat.SQUARED_GRADIENT in spec.unit_needs
    copies = needed(spec.score, "/score").splits * (2 + 2 * squared) + _IMPORTANCE_COPIES
    return 4 * block * copies + (length if squared else tokens) * token


def _evaluation_bytes(spec: CompressionSpec, source: ModelSource, architecture: Architecture, models: int) -> int:
    """The process with so many whole models loaded, one of them just now, or the largest batch: its logits or what a
    block computes of it, or where models are timed, which asks for the last logits only, a prompt on its way and what
    each model keeps of the sequence.

    The sizes of the larger of dense model and result are counted.
    """
    compute_bytes = _COMPUTE_BYTES[spec.compute.dtype]
    stored = sum(facts.bytes for facts in source.tensors.values())
    read = [params.tokens_at_once for params in spec.evaluate if not method_of("evaluate", params).paired]
    batches = [tokens * _looked_at_bytes(architecture) for tokens in read]
    passing = _token_numbers(architecture)
    kept = sum(layer.shape[0] for layer in architecture.caching())
    batches += [compute_bytes * (prompt * passing + models * all_ * kept) for prompt, all_ in _timed_tokens(spec)]
    weights = models * source.parameters * compute_bytes
    loading = _stacking_bytes(architecture, compute_bytes)
    return _PROCESS_BYTES + _TOKENIZER_BYTES + weights + stored + max(loading, *batches)


def _mapped_bytes(source: ModelSource) -> int:
    """Bytes of weight files that are mapped while a result is loaded as its users do. Their pages are clean, so the
    system takes them back before a limit is reached: of a mixture of 602 MiB, with 1,833 MiB resident, 1,180 MiB of a
    control group were enough."""
    return sum(facts.bytes for facts in source.tensors.values())


def _stacking_bytes(architecture: Architecture, of_each: int) -> int:
    """Bytes that loading a model whole takes beside it, with so many for each weight: of a mixture, its largest block's
    experts."""
    return int(_STACKING * of_each * max(of_experts(architecture, block) for block in range(architecture.blocks)))


def _token_numbers(architecture: Architecture) -> int:
    """Numbers that a block's forward pass holds per token: of a mixture, for each expert that it is sent to."""
    plain = 6 * max(layer.shape[0] for layer in architecture.layers) + 12 * architecture.hidden_size
    if not architecture.has_experts:
        return plain
    return plain + sent_to(architecture) * (4 * expert_width(architecture) + 2 * architecture.hidden_size)


def _timed_tokens(spec: CompressionSpec) -> list[tuple[int, int]]:
    """(tokens of the prompts, these and the ones written after them) of every timing, all its sequences together."""
    found = [params.timed_tokens for params in spec.evaluate if method_of("evaluate", params).paired]
    if spec.edit.size_limit is not None and spec.edit.size_limit.decode_time is not None:
        tokens = spec.edit.size_limit.batch_size * spec.edit.size_limit.tokens
        found.append((tokens, tokens))
    return found


def whole_float32_bytes(source: ModelSource, architecture: Architecture) -> int:
    """The process with the whole model loaded in float32, for one window."""
    stored = sum(facts.bytes for facts in source.tensors.values())
    weights = 4 * source.parameters + _stacking_bytes(architecture, 4)
    return _PROCESS_BYTES + _TOKENIZER_BYTES + weights + stored
