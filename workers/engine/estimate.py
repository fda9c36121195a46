"""Predictions for a plan: peak memory and run time of a job on two CPU cores. Import-light.

Sums of what is known to be resident and of the arithmetic to be done, with constants measured on models of 7 M and
150 M parameters (torch 2.13, float32, glibc). There memory came out within 20 %, time within a factor of two. On a GPU
the device holds what is counted here for activations and weights, and time is far shorter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workers.engine.architectures.llama import BLOCKS, Architecture
from workers.engine.refs import DataRef
from workers.engine.registry import Stat, method_of
from workers.engine.shards import DTYPE_BYTES

if TYPE_CHECKING:
    from workers.engine.registry import MethodParams
    from workers.engine.sources import ModelSource
    from workers.engine.spec import CompressionSpec

BATCH_TOKENS = 4096
"""Tokens per forward pass of calibration, which the prediction rests on: enough to keep a device busy, little enough
for an MLP of width 30,000 to fit a small one."""
_PROCESS_BYTES = 420 * 2**20
"""Python with torch and transformers imported."""
_TOKENIZER_BYTES = 80 * 2**20
_SELECTION_BYTES = 24
"""Per weight of the layer at hand: its float32 copy and score, and the selection's values and int64 indices."""
_RETAINED_BYTES, _RETAINED_PER_WEIGHT = 256 * 2**20, 80
"""What the allocator keeps of freed blocks below its 32 MiB mmap threshold: up to this much, at this rate."""
_CPU_FLOPS = 80e9
_DISK_BYTES_PER_S = 200e6
_START_S = 5.0
_TOKENS_UNKNOWN = 32_768
"""Stands for the work of a measurement that reads no text of its own."""
_TOKENS_OF_HUB_DATASET = 300_000
"""About WikiText-2's test split."""
_CHARACTERS_PER_TOKEN = 4


def predicted_peak_memory_bytes(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> int:
    """Peak resident memory: the greater of the walk over the blocks and of evaluation with the whole model loaded."""
    compute_bytes = {"float32": 4, "bfloat16": 2}[spec.compute.dtype]
    largest = max(layer.parameters for layer in architecture.layers)
    block = max(sum(layer.parameters for layer in architecture.block(b)) for b in range(architecture.blocks))
    stored = sum(facts.bytes for facts in source.tensors.values())
    outside = sum(facts.bytes for name, facts in source.tensors.items() if not name.startswith(f"{BLOCKS}."))

    selection = _SELECTION_BYTES * largest + min(_RETAINED_BYTES, _RETAINED_PER_WEIGHT * largest)
    walk = max(outside, block * 4 + selection)
    if _walks_activations(spec):
        assert spec.calibrate is not None  # the spec's validator saw to it
        hidden_size, mlp_width = architecture.hidden_size, max(layer.shape[0] for layer in architecture.layers)
        tokens = spec.calibrate.samples * spec.calibrate.sequence_length
        batch = min(tokens, max(BATCH_TOKENS, spec.calibrate.sequence_length))
        working = batch * compute_bytes * (9 * mlp_width + 16 * hidden_size)
        hidden = tokens * hidden_size * compute_bytes
        walk = _TOKENIZER_BYTES + hidden + max(outside, block * (2 + compute_bytes) + max(selection, working))
    evaluation = 0
    if spec.evaluate:
        logits = max(_tokens_at_once(params) for params in spec.evaluate) * architecture.vocabulary * 4 * 3
        evaluation = _TOKENIZER_BYTES + source.parameters * compute_bytes + stored + logits
    return _PROCESS_BYTES + max(walk, evaluation)


def predicted_elapsed_s(
    spec: CompressionSpec, source: ModelSource, architecture: Architecture, data_dir: Path
) -> float:
    """Run time: two passes over the calibration text, both models over every evaluation text, weights to disk twice."""
    work = 0.0
    if _walks_activations(spec):
        assert spec.calibrate is not None  # the spec's validator saw to it
        length = spec.calibrate.sequence_length
        per_token = 2 * architecture.prunable_parameters + _attention_flops(architecture, length)
        work += 2 * spec.calibrate.samples * length * per_token
    for params in spec.evaluate:
        per_token = 2 * source.parameters + _attention_flops(architecture, getattr(params, "sequence_length", 0))
        work += 2 * _tokens_read(params, data_dir) * per_token
    written = 2 * source.parameters * DTYPE_BYTES["BF16"]
    return _START_S + work / _CPU_FLOPS + written / _DISK_BYTES_PER_S


def _walks_activations(spec: CompressionSpec) -> bool:
    return method_of("score", spec.score).needs is not Stat.NONE


def _attention_flops(architecture: Architecture, length: int) -> int:
    """Per token: scores and weighted values over a causal window, half of it on average."""
    return 2 * length * architecture.hidden_size * architecture.blocks


def _tokens_at_once(params: MethodParams) -> int:
    return int(getattr(params, "batch_size", 1)) * int(getattr(params, "sequence_length", 512))


def _tokens_read(params: object, data_dir: Path) -> int:
    if not isinstance(params, DataRef):
        return _TOKENS_UNKNOWN
    there = _TOKENS_OF_HUB_DATASET
    if params.local:
        there = (data_dir / params.dataset).stat().st_size // _CHARACTERS_PER_TOKEN
    samples = getattr(params, "samples", None)
    return min(there, samples * getattr(params, "sequence_length", 512)) if samples else there
