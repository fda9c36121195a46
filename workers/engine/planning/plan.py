"""What a spec would do to a model, from its config and weight headers alone. Nothing is loaded or run. Import-light."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from workers.engine.architectures.architecture import Architecture, LinearFacts
from workers.engine.architectures.built import check_tensors, family
from workers.engine.architectures.coupled import check_alone, families, hidden_families
from workers.engine.architectures.entries import check_config
from workers.engine.architectures.per_layer import PER_LAYER, modeling_class
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.facts import AllocationFacts
from workers.engine.contracts.params import (
    HiddenPruneParams,
    LayerPruneParams,
    Stat,
    UnitPruneParams,
    UnitScoreParams,
    WeightPruneParams,
)
from workers.engine.errors import InvalidSpec, SequenceTooLong, UnsupportedModel
from workers.engine.planning.fit_to_size import fitting_sparsity
from workers.engine.planning.layer_sparsities import allocation
from workers.engine.planning.predictions import predicted_elapsed_s, predicted_peak_memory_bytes
from workers.engine.planning.result_size import parameters_after, stored_bytes
from workers.engine.registry import method_of
from workers.engine.removals.outcome import Outcome, config_after
from workers.engine.removals.widths import kept_units
from workers.engine.report import Plan, PlannedLayer, Runtime
from workers.engine.sources.resolve import ModelSource, Sources, resolve_dataset, resolve_model

if TYPE_CHECKING:
    from workers.engine.architectures.architecture import Family
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.spec import CompressionSpec


_SIGNIFICAND_BITS = {"BF16": 8, "bfloat16": 8, "F16": 11, "float16": 11}
"""Of types that round a gain noticeably."""


@dataclass(frozen=True)
class Prospect:
    """What is known of a job before it begins."""

    architecture: Architecture
    sparsity: Mapping[str, float] | None
    """Layer name -> sparsity; None where the job has to measure something first."""
    outcome: Outcome | None
    """Structure of the result; None where widths follow from what the job measures. Which blocks are dropped is not
    known, and does not matter to their number and size: the last stand for them."""


def plan(spec: CompressionSpec, sources: Sources) -> Plan:
    """The plan of a spec that can be carried out; otherwise the same error that the job would fail with.

    Raises the errors of `resolve_model` and `feasible`.
    """
    source = resolve_model(spec.model, sources)
    prospect = feasible(spec, source, sources)
    architecture, sparsity, outcome = prospect.architecture, prospect.sparsity, prospect.outcome
    return Plan(
        spec_digest=spec.digest(),
        model_id=source.id,
        model_commit=source.commit,
        architecture=architecture.model_type,
        blocks=architecture.blocks,
        parameters=source.parameters,
        parameters_after=None if outcome is None else parameters_after(source, outcome),
        prunable_parameters=architecture.prunable_parameters,
        zeros_after=_zeros(spec, prospect),
        bytes_before=sum(facts.bytes for facts in source.tensors.values()),
        bytes_after=None if outcome is None else stored_bytes(spec, source, outcome),
        layers=[
            PlannedLayer(
                name=layer.name,
                block=layer.block,
                shape=layer.shape,
                target_sparsity=sparsity[layer.name] if sparsity else None,
            )
            for layer in architecture.layers
        ],
        peak_memory_bytes=predicted_peak_memory_bytes(spec, source, architecture),
        elapsed_s=predicted_elapsed_s(spec, source, architecture, sources.data_dir),
        runtimes=runtimes(spec, blocks_alike(spec) if outcome is None else outcome.uniform),
        warnings=warnings(spec, source, prospect),
    )


def feasible(spec: CompressionSpec, source: ModelSource, sources: Sources) -> Prospect:
    """What is known beforehand, if the spec fits the model and its data can be found. A dry run and a job both ask.

    Raises UnsupportedModel, InvalidSpec (a pattern or groups that do not divide a width), SequenceTooLong,
    DatasetNotFound, HubUnavailable, MemoryBudgetTooSmall.
    """
    architecture = recognise(source.config, source.tensors)
    if PER_LAYER in source.config:
        raise UnsupportedModel(
            f"{source.id}: its blocks differ in width, as an earlier pruning left them",
            "prune the model it was made of, or a result whose blocks are alike",
            field="/model/id",
        )
    check_config(source.config)
    check_tensors(architecture.layout, source.config, source.tensors)
    if isinstance(spec.prune, WeightPruneParams):
        for layer in architecture.layers:
            if misfit := spec.prune.misfit(layer.shape):
                raise InvalidSpec(
                    f"{layer.name}: {misfit}", "choose a pattern that fits every width", field="/prune/pattern"
                )
    prospect = foresee(spec, source, architecture)  # refuses what cannot be removed
    at_most = spec.prune.at_most if isinstance(spec.prune, UnitPruneParams) else None
    if at_most is not None and at_most.decode_time is not None and at_most.tokens >= architecture.context_length:
        raise SequenceTooLong(
            f"no token can follow {at_most.tokens} in a context of {architecture.context_length}",
            f"use fewer than {architecture.context_length} tokens",
            field="/prune/at_most/tokens",
        )
    if spec.tune is not None and prospect.outcome is not None:
        spec.tune.check(_layers_of(architecture, prospect.outcome, source.tensors))
    elif spec.tune is not None and isinstance(spec.prune, UnitPruneParams):
        spec.tune.check_multiples(spec.prune.channel_multiple)
    for field, ref in spec.texts().items():
        resolve_dataset(ref, sources, field)
        length = getattr(ref, "sequence_length", 0)
        if length > architecture.context_length:
            raise SequenceTooLong(
                f"windows of {length} tokens exceed the model's context of {architecture.context_length}",
                f"use a sequence_length of at most {architecture.context_length}",
                field=f"{field}/sequence_length",
            )
    predicted_peak_memory_bytes(spec, source, architecture)  # refuses a budget that does not suffice
    return prospect


def foresee(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Prospect:
    """What is known beforehand. Raises InvalidSpec and UnsupportedModel where the structure is not to be had."""
    sparsity = _sparsity(spec, source, architecture)
    return Prospect(architecture, sparsity, _outcome(spec, source, architecture, sparsity))


def _layers_of(architecture: Architecture, outcome: Outcome, tensors: Mapping[str, TensorFacts]) -> list[LinearFacts]:
    """The layers of the blocks that stay, in the shapes of the result."""
    shapes = outcome.tensor_shapes(tensors)
    found = []
    for layer in architecture.layers:
        if layer.block in outcome.blocks:
            outputs, inputs = shapes[layer.weight]
            found.append(replace(layer, shape=(outputs, inputs)))
    return found


def _sparsity(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Mapping[str, float] | None:
    method = method_of("allocate", spec.allocate)
    if method.measure is not None or spec.allocate_needs is not Stat.NONE or isinstance(spec.prune, LayerPruneParams):
        return None
    if isinstance(spec.prune, HiddenPruneParams):
        gone = spec.prune.share_removed(architecture.hidden_size)
        return dict.fromkeys((layer.name for layer in architecture.layers), gone)
    facts, target = AllocationFacts(architecture.layers, {}), spec.prune.target
    if isinstance(spec.prune, UnitPruneParams) and target is None:
        assert spec.prune.at_most is not None  # one of both is given
        if spec.prune.at_most.decode_time is not None:
            return None
        target, _ = fitting_sparsity(spec, source, architecture, facts)
    return None if target is None else allocation(spec, facts, target)


def _outcome(
    spec: CompressionSpec, source: ModelSource, architecture: Architecture, sparsity: Mapping[str, float] | None
) -> Outcome | None:
    blocks, layout = range(architecture.blocks), architecture.layout
    if isinstance(spec.prune, LayerPruneParams):
        assert isinstance(spec.score, UnitScoreParams)
        row = family(architecture.model_type)
        if row is not None and row["counts_blocks"]:
            raise UnsupportedModel(
                f"{architecture.model_type}: its blocks compute with their own number, which changes when others go",
                "remove channels with `structured`, or weights",
                field="/prune",
            )
        left = architecture.blocks - spec.prune.dropped(architecture.blocks)
        if left < max(1, sum(spec.score.protected)):
            raise InvalidSpec(
                f"{spec.prune.dropped(architecture.blocks)} of {architecture.blocks} blocks are to go, and "
                f"{max(1, sum(spec.score.protected))} must stay",
                "drop fewer blocks, or lower protect_first and protect_last of the score",
                field="/prune",
            )
        return Outcome(layout, blocks[:left])
    if isinstance(spec.prune, HiddenPruneParams):
        hidden_families(architecture, source.config, source.tensors)  # refuses families it is not known of
        outcome = Outcome(layout, blocks, hidden=(spec.prune.kept(architecture.hidden_size), architecture.hidden_size))
        config_after(source.config, outcome, source.tensors)  # refuses what no config can say
        return outcome
    if isinstance(spec.prune, UnitPruneParams):
        check_alone(architecture, source.config, source.tensors, spec.prune.units)
        found = families(architecture, source.config, source.tensors)
        if sparsity is None:
            if not blocks_alike(spec):
                modeling_class(source.config)  # refuses families that have none
            elif "head" in spec.prune.units:
                _check_heads(source, blocks, found)
            return None
        outcome = Outcome(
            layout, blocks, found, kept_units(architecture.layers, found, sparsity, spec.prune, spec.allocate)
        )
        config_after(source.config, outcome, source.tensors)  # refuses what no config can say
        return outcome
    return Outcome(layout, blocks)


def _check_heads(source: ModelSource, blocks: Sequence[int], found: Sequence[Family]) -> None:
    """Refuse a family whose config cannot say fewer heads, where it is not known yet how many stay."""
    half: dict[tuple[int, str], int] = {
        (part.block, part.kind): part.units // (2 if part.kind == "head" else 1) or 1 for part in found
    }
    config_after(source.config, Outcome(source.layout, blocks, found, half), source.tensors)


def _zeros(spec: CompressionSpec, prospect: Prospect) -> int | None:
    """Zeros the pruned layers will hold, where the dense weights hold none; None while the target is not known.

    Where the allocation is not known yet it is the target's share: allocations keep the mean.
    """
    if not isinstance(spec.prune, WeightPruneParams):
        return 0
    if spec.prune.target is None:
        return None
    layers, sparsity = prospect.architecture.layers, prospect.sparsity
    if sparsity is None:
        return round(spec.prune.target * prospect.architecture.prunable_parameters)
    return sum(spec.prune.removed(layer.shape, sparsity[layer.name], spec.group) for layer in layers)


def blocks_alike(spec: CompressionSpec) -> bool:
    """Whether all blocks will lose as much as one another, however much that is."""
    params = spec.prune
    protected = isinstance(params, UnitPruneParams) and bool(params.protect_first or params.protect_last)
    return spec.allocate.method == "uniform" and not protected


def runtimes(spec: CompressionSpec, alike: bool) -> list[Runtime]:
    """What can load the result, and whether it is faster there. `alike`: all blocks have one shape."""
    if spec.removes == "weight":
        return [
            Runtime(
                runtime="transformers",
                loads=True,
                faster=False,
                note="an ordinary checkpoint; zeros are stored and multiplied like other weights",
            ),
            Runtime(
                runtime="vLLM",
                loads=True,
                faster=False,
                note="loads as a dense checkpoint; vLLM has removed its 2:4 sparse kernels",
            ),
        ]
    if alike:
        smaller = "fewer layers" if spec.removes == "layer" else "narrower layers"
        note = f"an ordinary checkpoint whose config says {smaller}"
        return [Runtime(runtime=name, loads=True, faster=True, note=note) for name in ("transformers", "vLLM")]
    return [
        Runtime(
            runtime="transformers",
            loads=True,
            faster=True,
            note="blocks of different widths: 5.14 or newer, with trust_remote_code=True and the file in the folder",
        ),
        Runtime(
            runtime="vLLM",
            loads=True,
            faster=True,
            note="blocks of different widths: with --trust-remote-code, through its transformers backend (tried: 0.32)",
        ),
    ]


def warnings(spec: CompressionSpec, source: ModelSource, prospect: Prospect) -> list[str]:
    """What a user might not expect of this spec on this model."""
    found = []
    if spec.calibrate is not None and spec.needs is Stat.NONE:
        found.append("no method of this spec looks at activations: `calibrate` is not used")
    if spec.removes != "weight":
        return found + _structure_warnings(spec, source, prospect)
    zeros, prunable = _zeros(spec, prospect), prospect.architecture.prunable_parameters
    target = spec.prune.target
    realised = zeros / prunable if zeros is not None else None
    if target is not None and realised is not None and target - realised > 1e-4:
        found.append(f"{realised:.4f} of the weights will be removed, not {target:g}: each row drops a whole number")
    if target is None:
        found.append(
            "the sparsity is found by trial prunings with scores taken once; the result is measured, and where it "
            "breaks the ratio the job prunes again, up to five times"
        )
    if prospect.sparsity is None:
        found.append("how much each layer loses is measured by the job, not known in advance")
    found += tuning_warnings(spec, source)
    share = prunable / source.parameters
    if share < 0.8:
        found.append(
            f"only {share:.0%} of the parameters can be pruned, the linear layers of the blocks: "
            + (f"the whole model ends up {realised * share:.0%} zeros" if realised is not None else "the rest stays")
        )
    if not spec.evaluate:
        found.append("no evaluation is asked for: the report will not say what the pruning cost")
    return found


def _structure_warnings(spec: CompressionSpec, source: ModelSource, prospect: Prospect) -> list[str]:
    found = []
    architecture, outcome = prospect.architecture, prospect.outcome
    if outcome is None and blocks_alike(spec):
        found.append("how narrow the blocks become follows from times that the job measures: another run may differ")
    elif outcome is None:
        found.append(
            "widths follow from what the job measures: blocks will differ, and need the shipped modelling file"
        )
    elif spec.prune.target:
        left = outcome.parameters(source.tensors)
        kept = sum(left.get(layer.weight, 0) for layer in architecture.layers)
        removed = 1 - kept / architecture.prunable_parameters
        if abs(removed - spec.prune.target) > 0.005:
            found.append(
                f"{removed:.1%} of the blocks' parameters will be removed, not {spec.prune.target:.1%}: whole units go"
            )
    if outcome is not None and outcome.hidden is not None:
        found += _gain_warnings(spec, source, outcome.hidden)
    found += tuning_warnings(spec, source)
    share = architecture.prunable_parameters / source.parameters
    if share < 0.8 and spec.removes != "hidden":  # of which embeddings lose as much
        found.append(f"only {share:.0%} of the parameters are in the blocks; the rest stays")
    if not spec.evaluate:
        found.append("no evaluation is asked for: the report will not say what the pruning cost")
    return found


def _gain_warnings(spec: CompressionSpec, source: ModelSource, hidden: tuple[int, int]) -> list[str]:
    """What rounding costs the gains of norms, which go up by sqrt(D / K), K of D hidden dimensions being kept."""
    kept, of = hidden
    stored: set[str] = {spec.package.dtype}
    if spec.package.dtype == "source":
        stored = {facts.dtype for name, facts in source.tensors.items() if source.layout.is_hidden_norm(name)}
    digits = [bits for dtype, bits in _SIGNIFICAND_BITS.items() if dtype in stored]
    if not digits or math.log2(of / kept) % 2 == 0:  # raised by a power of two, they have the digits they had
        return []
    return [
        f"the gains of the norms go up by {math.sqrt(of / kept):.4f} and are rounded to a type of {min(digits)} bits, "
        f"by up to {2.0 ** -min(digits):.2%} each: `package.dtype` float32 keeps them exact"
    ]


def tuning_warnings(spec: CompressionSpec, source: ModelSource) -> list[str]:
    """What a user might not expect of the tuning."""
    if spec.tune is None:
        return []
    found = list(spec.tune.warnings(source))
    if any(field.startswith("/evaluate") and ref.label == spec.tune.label for field, ref in spec.texts().items()):
        found.append(f"{spec.tune.label} is tuned on and measured on: its figures say little about other text")
    return found
