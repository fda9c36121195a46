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
from workers.engine.planning.memory import (
    COMPUTE_BYTES,
    PROCESS_BYTES,
    TOKENIZER_BYTES,
    Memory,
    loaded_result,
    looked_at_bytes,
    stacking_bytes,
    token_numbers,
)
from workers.engine.planning.training_memory import SELECTION_BYTES, trained_at_once, training_bytes
from workers.engine.registry import method_of
from workers.engine.removals.base import removal_of

if TYPE_CHECKING:
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec

TRIAL_TOKENS = 8192
"""Calibration text that trial prunings are judged on: allocations are compared on the same, so little is enough."""
BATCH_TOKENS = 4096
"""Tokens per forward pass of calibration on a CPU, where memory allows: more would make nothing faster."""
GPU_BATCH_TOKENS = 32_768
"""The same on a GPU: a block's kernels and the additions to its Gram matrices are then an eighth as many."""
WHOLE_ANYWAY_BYTES = 2**26
"""The result may need so much more than the rest of the job and still be loaded whole: predictions err by as much."""
_SOLVE_BYTES = 24
"""Per weight of the layers that share a Hessian: their float32 copies, masks and errors while columns are solved."""
_IMPORTANCE_COPIES = 10
"""Of a block in float32, beside what is kept of each part of the text: gradients of a batch, and what a score makes."""
_FACTOR_COPIES = 3
"""Of the largest Gram matrix, while its Cholesky factor is inverted."""
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
    least = _least_tokens(spec)
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


def _least_tokens(spec: CompressionSpec) -> int:
    """Those of one window."""
    return spec.calibrate.sequence_length if spec.calibrate else 1


def whole_models(spec: CompressionSpec, source: ModelSource, architecture: Architecture, budget: int | None) -> int:
    """How many models are in memory as a whole when they are measured: two where both are measured in turn and fit, one
    where one fits, none where they are measured block by block.

    Raises MemoryBudgetTooSmall if one must and does not.
    """
    source, architecture = removal_of(spec).largest(spec, source, architecture)
    wanted = 2 if _in_turn(spec) else 1
    for models in range(wanted, 0, -1):
        if budget is None or _evaluation(spec, source, architecture, models).needed <= budget:
            return models
    peak = _evaluation(spec, source, architecture, 1).needed
    for field, name in _needing_whole(spec).items():
        raise MemoryBudgetTooSmall(
            f"{name} needs the whole model in memory, {peak / 2**20:.0f} MiB, the budget is "
            f"{(budget or 0) / 2**20:.0f} MiB",
            f"allow {peak} bytes, or leave it out: perplexity is measured block by block",
            field=field,
        )
    return 0


def _needing_whole(spec: CompressionSpec) -> dict[str, str]:
    """Field -> name of what is measured on whole models alone."""
    needs = {"/prune/at_most/decode_time": "the decode time of the result"} if _decode_time(spec) else {}
    return needs | {
        f"/evaluate/{index}": params.method
        for index, params in enumerate(spec.evaluate)
        if method_of("evaluate", params).whole_model
    }


def _in_turn(spec: CompressionSpec) -> bool:
    """Whether anything is measured on both models in turn."""
    found = [method_of("evaluate", params) for params in spec.evaluate]
    return _decode_time(spec) or any(method.paired or method.compares for method in found)


def _decode_time(spec: CompressionSpec) -> bool:
    """Whether the time of a decode step is bounded."""
    return spec.edit.size_limit is not None and spec.edit.size_limit.decode_time is not None


def predicted_memory(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Memory:
    """The most of a job's process, where memory is bounded by the spec's budget alone.

    Raises MemoryBudgetTooSmall.
    """
    rest, whole = _unchecked(spec, source, architecture), _checked(spec, source, architecture)
    budget = spec.compute.memory_budget
    return rest.and_then(whole.within(budget)) if _fits(whole, rest, budget) else rest


def least_memory_bytes(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> int:
    """Memory without which a process cannot do a job: as its budget has it, or without one, with the batches halved to
    single windows and everything measured block by block that can be, as a job does where a worker has no more.

    Raises MemoryBudgetTooSmall.
    """
    if spec.compute.memory_budget is not None:
        return predicted_memory(spec, source, architecture).needed
    walk = walk_bytes(spec, source, architecture, _least_tokens(spec))
    peaks = [walk, *_trainings(spec, source, architecture)]
    if Stat.CURVATURE in spec.allocate_needs:
        peaks.append(_curvature_bytes(source))
    if _needing_whole(spec):
        peaks.append(_evaluation(spec, *removal_of(spec).largest(spec, source, architecture), 1).needed)
    return max(peaks)


def checks_whole(spec: CompressionSpec, source: ModelSource, architecture: Architecture, budget: int | None) -> bool:
    """Whether the result is loaded whole when it is checked: where that needs no more than the rest of the job, and no
    more than `budget` bytes."""
    return _fits(_checked(spec, source, architecture), _unchecked(spec, source, architecture), budget)


def _fits(whole: Memory, rest: Memory, budget: int | None) -> bool:
    most = rest.needed + WHOLE_ANYWAY_BYTES
    return whole.needed <= (most if budget is None else min(most, budget))


def _checked(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Memory:
    """The process with the whole result loaded in float32, for one window."""
    larger = removal_of(spec).largest(spec, source, architecture)
    return loaded_result(*larger, "float32", beside=stacking_bytes(larger[1], 4))


def _unchecked(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Memory:
    """The most of the dense model's curvature, the walk over the blocks, trainings and evaluation."""
    budget = spec.compute.memory_budget
    peak = walk_bytes(spec, source, architecture, batch_tokens(spec, source, architecture, budget=budget))
    if Stat.CURVATURE in spec.allocate_needs:
        whole = _curvature_bytes(source)
        if budget is not None and whole > budget:
            raise MemoryBudgetTooSmall(
                f"{spec.allocate.method} differentiates the whole model, {whole / 2**20:.0f} MiB, the budget is "
                f"{budget / 2**20:.0f} MiB",
                f"allow {whole} bytes, or use an allocation that looks at blocks one by one",
                field="/allocate",
            )
        peak = max(peak, whole)
    found = Memory(max([peak, *_trainings(spec, source, architecture)]))
    if (spec.evaluate or _decode_time(spec)) and (models := whole_models(spec, source, architecture, budget)):
        larger = removal_of(spec).largest(spec, source, architecture)
        return found.and_then(_evaluation(spec, *larger, models).within(budget))
    return found


def _trainings(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> list[int]:
    """The most of each training, with as many windows at once as the budget allows. Raises MemoryBudgetTooSmall."""
    at_once = {stage: trained_at_once(spec, stage, source, architecture) for stage in spec.trainings}
    return [training_bytes(spec, stage, source, architecture, windows) for stage, windows in at_once.items()]


def _curvature_bytes(source: ModelSource) -> int:
    """Weights, their gradients, signs and products, and a graph of about as much again; all float32."""
    return PROCESS_BYTES + 8 * 4 * source.parameters


def walk_bytes(spec: CompressionSpec, source: ModelSource, architecture: Architecture, tokens: int) -> int:
    """The process while a block is pruned, with forward passes of so many tokens."""
    compute_bytes = COMPUTE_BYTES[spec.compute.dtype]
    stored_bytes = max(DTYPE_BYTES[facts.dtype] for facts in source.tensors.values())
    block = architecture.largest_block
    largest = max(outputs * inputs for outputs, inputs in architecture.shapes)
    others = source.outside
    # All as they ship, or one in float32, when the result is verified.
    outside = max(sum(facts.bytes for facts in others), max(4 * facts.parameters + facts.bytes for facts in others))
    # The block being pruned as read and as pruned, the next one being read, and the previous one being written; all
    # experts of one once more as transformers' module holds them, in one tensor.
    blocks = (4 + architecture.has_experts) * block * stored_bytes
    selection = SELECTION_BYTES * largest + min(_RETAINED_BYTES, _RETAINED_PER_WEIGHT * largest)
    held = max(spec.edit.held_bytes(shape) for shape in architecture.shapes)
    if spec.needs is Stat.NONE:
        return PROCESS_BYTES + max(outside, blocks + selection, held)
    calibrate = needed(spec.calibrate, "/calibrate")
    hidden_size, mlp_width = architecture.hidden_size, max(outputs for outputs, _ in architecture.shapes)
    calibrated = calibrate.samples * calibrate.sequence_length
    token = compute_bytes * token_numbers(architecture)
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
    return PROCESS_BYTES + TOKENIZER_BYTES + max(outside, walk, scoring)


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


def _evaluation(spec: CompressionSpec, source: ModelSource, architecture: Architecture, models: int) -> Memory:
    """The process with so many whole models loaded, one of them just now, or the largest batch: its logits or what a
    block computes of it, or where models are timed, which asks for the last logits only, a prompt on its way and what
    each model keeps of the sequence.

    The sizes of the larger of dense model and result are counted.
    """
    compute_bytes = COMPUTE_BYTES[spec.compute.dtype]
    read = [params.tokens_at_once for params in spec.evaluate if not method_of("evaluate", params).paired]
    batches = [tokens * looked_at_bytes(architecture) for tokens in read]
    passing = token_numbers(architecture)
    kept = sum(layer.shape[0] for layer in architecture.caching())
    batches += [compute_bytes * (prompt * passing + models * all_ * kept) for prompt, all_ in _timed_tokens(spec)]
    others = (models - 1) * source.parameters * compute_bytes
    beside = others + max(stacking_bytes(architecture, compute_bytes), *batches)
    return loaded_result(source, architecture, spec.compute.dtype, beside=beside)


def _timed_tokens(spec: CompressionSpec) -> list[tuple[int, int]]:
    """(tokens of the prompts, these and the ones written after them) of every timing, all its sequences together."""
    found = [params.timed_tokens for params in spec.evaluate if method_of("evaluate", params).paired]
    if spec.edit.size_limit is not None and spec.edit.size_limit.decode_time is not None:
        tokens = spec.edit.size_limit.batch_size * spec.edit.size_limit.tokens
        found.append((tokens, tokens))
    return found
