"""The plan of a spec, from the model's config and weight headers alone. No weights are loaded. Import-light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from workers.engine.architectures.architecture import Architecture, LinearFacts
from workers.engine.architectures.wrappers import WHOLE
from workers.engine.contracts.facts import AllocationFacts
from workers.engine.contracts.params import Stat
from workers.engine.errors import InvalidSpec, SequenceTooLong
from workers.engine.planning.elapsed import predicted_elapsed_s
from workers.engine.planning.fit_to_size import fitted, fitting_sparsity
from workers.engine.planning.predictions import least_memory_bytes, predicted_memory
from workers.engine.planning.result_size import parameters_after, stored_bytes
from workers.engine.planning.text_length import check_prompt, check_text, least_tokens, length_warnings, planned_texts
from workers.engine.registry import method_of
from workers.engine.removals.base import Prospect, removal_of
from workers.engine.removals.outcome import Outcome, config_after
from workers.engine.report import Plan, PlannedLayer
from workers.engine.sources.resolve import ModelSource, Sources, resolve_dataset, resolve_model

if TYPE_CHECKING:
    from workers.engine.files.safetensors_bytes import TensorFacts
    from workers.engine.spec import CompressionSpec


def plan(spec: CompressionSpec, sources: Sources) -> Plan:
    """The plan of a spec that can be carried out; otherwise the same error that the job would fail with.

    Raises the errors of `resolve_model` and `feasible`.
    """
    source = resolve_model(spec.model, sources)
    prospect = feasible(spec, source, sources)
    architecture, sparsity, outcome = prospect.architecture, prospect.sparsity, prospect.outcome
    texts = planned_texts(spec, source, sources)
    memory = predicted_memory(spec, source, architecture)
    return Plan(
        spec_digest=spec.digest(),
        model_id=source.id,
        model_commit=source.commit,
        architecture=architecture.model_type,
        blocks=architecture.blocks,
        blocks_after=None if outcome is None else len(outcome.blocks),
        parameters=source.parameters,
        parameters_after=None if outcome is None else parameters_after(source, outcome),
        prunable_parameters=architecture.prunable_parameters,
        zeros_after=removal_of(spec).zeros(spec, prospect),
        bytes_before=source.tensor_bytes,
        bytes_after=None if outcome is None else stored_bytes(spec.package.dtype, source, outcome),
        layers=[
            PlannedLayer(
                name=layer.name,
                block=layer.block,
                shape=layer.shape,
                target_sparsity=sparsity[layer.name] if sparsity else None,
            )
            for layer in architecture.layers
        ],
        devices=spec.compute.devices,
        peak_memory_bytes=memory.resident,
        mapped_memory_bytes=memory.mapped,
        least_memory_bytes=least_memory_bytes(spec, source, architecture),
        elapsed_s=predicted_elapsed_s(spec, source, architecture, sources.data_dir),
        runtimes=removal_of(spec).runtimes(spec, outcome),
        texts=texts,
        warnings=[*length_warnings(texts), *warnings(spec, prospect)],
    )


def feasible(spec: CompressionSpec, source: ModelSource, sources: Sources) -> Prospect:
    """Check that the spec fits the model and that its data exist, for dry runs and jobs; returns all that is known
    before.

    Raises UnsupportedModel, InvalidSpec (a pattern or groups that do not divide a width), SequenceTooLong,
    DatasetNotFound, DatasetTooShort, HubUnavailable, MemoryBudgetTooSmall.
    """
    architecture = source.checked_architecture
    if spec.calibrate is not None and spec.calibrate.all_experts and not architecture.has_experts:
        raise InvalidSpec(
            f"{source.id} is no mixture of experts, so there are no experts to read all tokens",
            "leave `all_experts` out",
            field="/calibrate/all_experts",
        )
    prospect = prospect_of(spec, source, architecture)  # refuses what cannot be removed
    if spec.train is not None and _keeps_all(spec, prospect):
        raise InvalidSpec(
            f"prune `{spec.edit.method}` as it is given removes nothing, so there is nothing to decide on in training",
            "ask for more to go, or leave `train` out and use `tune`",
            field="/prune",
        )
    if spec.tune is not None:
        spec.tune.check_held(architecture)
    if spec.tune is not None and prospect.outcome is not None:
        spec.tune.check(_layers_of(architecture, prospect.outcome, source.tensors))
    elif spec.tune is not None:
        spec.tune.check_multiples(removal_of(spec).width_multiple(spec))
    for field, ref in spec.texts().items():
        path = resolve_dataset(ref, sources, field)
        length = ref.window_tokens
        if length > architecture.context_length:
            raise SequenceTooLong(
                f"windows of {length} tokens exceed the model's context of {architecture.context_length}",
                f"use a sequence_length of at most {architecture.context_length}",
                field=f"{field}/sequence_length",
            )
        check_text(spec, field, ref, path, source)
    if spec.train is not None:
        check_prompt(spec.train, least_tokens(spec.train.read_first, source), architecture.context_length)
    predicted_memory(spec, source, architecture)  # refuses a budget that does not suffice
    return prospect


def _keeps_all(spec: CompressionSpec, prospect: Prospect) -> bool:
    """Whether it is known before that nothing goes."""
    source, outcome = prospect.source, prospect.outcome
    if outcome is None or removal_of(spec).zeros(spec, prospect) != 0:
        return spec.edit.target == 0
    return outcome.share_gone(prospect.architecture, source.tensors) == 0


def prospect_of(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Prospect:
    """The job as known before it begins. Raises InvalidSpec and UnsupportedModel where the structure is impossible."""
    removal_of(spec).check(spec, source, architecture)
    spec = _with_known_count(spec, source, architecture)
    sparsity = _sparsity(spec, source, architecture)
    outcome = removal_of(spec).outcome(spec, source, architecture, sparsity)
    if outcome is not None:
        config_after(source.config, outcome, source)  # refuses what no config can say
    return Prospect(spec, source, architecture, sparsity, outcome)


def _with_known_count(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> CompressionSpec:
    """The spec with the units that stay in place of a size, where both follow from the structure alone."""
    limit, removal = spec.edit.size_limit, removal_of(spec)
    if limit is None:
        return spec
    if limit.decode_time is not None and limit.tokens >= architecture.context_length:
        raise SequenceTooLong(
            f"no token can follow {limit.tokens} in a context of {architecture.context_length}",
            f"use fewer than {architecture.context_length} tokens",
            field="/prune/at_most/tokens",
        )
    if limit.decode_time is not None or not removal.counts(spec, source, architecture):
        return spec
    spec = spec.with_count(fitted(spec, source, architecture)[0])
    removal.check(spec, source, architecture)
    return spec


def _sparsity(spec: CompressionSpec, source: ModelSource, architecture: Architecture) -> Mapping[str, float] | None:
    """Layer name -> sparsity; None where it follows from what the job measures."""
    removal = removal_of(spec)
    if not spec.removes.spread:
        return removal.sparsity(spec, architecture, None)
    if method_of("allocate", spec.allocate).measure is not None or spec.allocate_needs is not Stat.NONE:
        return None
    facts, target, limit = AllocationFacts(architecture.layers, {}), spec.edit.target, spec.edit.size_limit
    if target is None and limit is not None and limit.decode_time is None:
        target, _ = fitting_sparsity(spec, source, architecture, facts)
    return None if target is None else removal.spread(spec, facts, target)


def _layers_of(architecture: Architecture, outcome: Outcome, tensors: Mapping[str, TensorFacts]) -> list[LinearFacts]:
    """The layers of the result's blocks, in its shapes, under the names of the dense model's."""
    shapes = outcome.tensor_shapes(tensors)
    found = []
    for index, block in enumerate(outcome.blocks):
        for layer in architecture.block(block):
            if layer.weight not in shapes:
                continue
            outputs, inputs = shapes[layer.weight]
            found.append(replace(layer, block=index, shape=(outputs, inputs)))
    return found


def warnings(spec: CompressionSpec, prospect: Prospect) -> list[str]:
    """Effects of this spec on this model that a user might not expect, a sentence each."""
    found, source, removal = [], prospect.source, removal_of(spec)
    if spec.calibrate is not None and spec.needs is Stat.NONE:
        found.append("no method of this spec looks at activations: `calibrate` is not used")
    found += removal.warnings(spec, prospect) + training_warnings(spec, source)
    if WHOLE in source.config:
        found.append("of the model its decoder alone is pruned, and measured, on text: what it says of images is not")
    share = prospect.architecture.prunable_parameters / source.parameters
    if share < 0.8 and (said := removal.of_whole(spec, prospect, share)) is not None:
        found.append(said)
    if not spec.evaluate:
        found.append(f"no evaluation is asked for: the report will not say what the {removal.act} cost")
    return found


def training_warnings(spec: CompressionSpec, source: ModelSource) -> list[str]:
    """The same of trainings."""
    found = []
    for stage, params in spec.trainings.items():
        found += params.warnings(source)
        if any(field.startswith("/evaluate") and ref.label == params.label for field, ref in spec.texts().items()):
            done = {"train": "trained", "tune": "tuned"}[stage]
            found.append(f"{params.label} is {done} on and measured on: its figures say little about other text")
    return found
