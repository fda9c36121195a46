"""The run time of a job on two CPU cores, for a plan. Import-light.

Sums of arithmetic, with constants measured on models of 7 M and 150 M parameters (torch 2.13, float32), for which the
time was within a factor of two. On a GPU it is far shorter.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workers.engine.architectures.architecture import Architecture
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import Stat
from workers.engine.contracts.refs import DataRef
from workers.engine.files.safetensors_bytes import DTYPE_BYTES
from workers.engine.planning.mixture_counts import active, met, most_experts, sent_to
from workers.engine.planning.predictions import TRIAL_TOKENS
from workers.engine.removals.base import removal_of

if TYPE_CHECKING:
    from workers.engine.contracts.params import MethodParams
    from workers.engine.sources.resolve import ModelSource
    from workers.engine.spec import CompressionSpec

_BACKWARD_PASSES = 4
"""Forward passes that a gradient costs: one before, one again for each block, and twice that backwards."""
_PROBES, _PROBE_PASSES, _PROBE_TOKENS = 96, 11, 512
"""Of the curvature: as many as bookworm-7m takes (88 to 112), forward passes that one costs there, and its text."""
_CPU_FLOPS = 80e9
_DISK_BYTES_PER_S = 200e6
_START_S = 5.0
_TOKENS_UNKNOWN = 32_768
"""Tokens that a measurement without a text of its own is counted as."""
_TOKENS_OF_HUB_DATASET = 300_000
"""About WikiText-2's test split."""
_CHARACTERS_PER_TOKEN = 4


def predicted_elapsed_s(
    spec: CompressionSpec, source: ModelSource, architecture: Architecture, data_dir: Path
) -> float:
    """Run time: passes over the calibration text, forward and backward over what is tuned on, both models over every
    evaluation text, weights to disk twice."""
    work = 0.0
    if spec.needs is not Stat.NONE:
        calibrate = needed(spec.calibrate, "/calibrate")
        length = calibrate.sequence_length
        sent = most_experts(architecture) if calibrate.all_experts else sent_to(architecture)
        per_token = 2 * met(architecture, sent) + _attention_flops(architecture, length)
        passes = 2.0 if not spec.removes.scored_first or spec.walk_needs else 0.0
        passes += bool((spec.allocate_needs | spec.unit_needs) & (Stat.INPUT_SQ_MEAN | Stat.GRAM | Stat.CHANGE))
        passes += _BACKWARD_PASSES * bool(spec.unit_needs & (Stat.GRADIENT | Stat.SQUARED_GRADIENT))
        passes += (Stat.ROUTING in spec.unit_needs) + spec.edit.merges
        if Stat.EXPERT_SETS in spec.unit_needs:
            work += (
                2
                * calibrate.samples
                * length
                * (met(architecture, most_experts(architecture)) - met(architecture, sent))
            )
        if Stat.REMOVAL in spec.unit_needs:  # of a block: all behind it again, which is half the model on average
            passes += 1 + architecture.blocks / 2
        work += passes * calibrate.samples * length * per_token
        streams = sum(len(architecture.streams(block)) for block in range(architecture.blocks))
        tried = min(TRIAL_TOKENS, calibrate.samples * length)
        whole = 2 * active(source, architecture) + _attention_flops(architecture, length)
        work += spec.allocate.trials(streams) * tried * whole
        if Stat.CURVATURE in spec.allocate_needs:
            work += _PROBES * _PROBE_PASSES * min(length, _PROBE_TOKENS) * per_token
    work += sum(spec.edit.operations(layer.shape, architecture.blocks) for layer in architecture.block(0))
    source, architecture = removal_of(spec).largest(spec, source, architecture)
    for training in spec.trainings.values():
        per_token = 2 * active(source, architecture) + _attention_flops(architecture, training.read_tokens)
        looks = 2 + training.steps // training.look_every
        read = training.steps * training.batch * training.passes * training.read_tokens
        work += per_token * (read + looks * training.holdout * training.sequence_length)
    for params in spec.evaluate:
        per_token = 2 * active(source, architecture) + _attention_flops(architecture, params.window_tokens)
        work += 2 * _tokens_read(params, data_dir) * per_token
    written = 2 * source.parameters * DTYPE_BYTES["BF16"]
    return _START_S + work / _CPU_FLOPS + written / _DISK_BYTES_PER_S


def _attention_flops(architecture: Architecture, length: int) -> int:
    """Per token: scores and weighted values over a causal window, half of it on average."""
    return 2 * length * architecture.hidden_size * architecture.blocks


def _tokens_read(params: MethodParams, data_dir: Path) -> int:
    text: object = params  # those that read a text are one
    if not isinstance(text, DataRef):
        return _TOKENS_UNKNOWN
    there = _TOKENS_OF_HUB_DATASET
    if text.local:
        there = (data_dir / text.dataset).stat().st_size // _CHARACTERS_PER_TOKEN
    return there if params.most_tokens is None else min(there, params.most_tokens)
