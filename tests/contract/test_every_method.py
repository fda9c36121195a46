"""Rules of every method, whoever wrote it: found through the registry, so a new file is tested unseen.

O = outputs, I = inputs, N = tokens.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers.mixtures import tiny
from workers.engine.architectures.architecture import Architecture
from workers.engine.architectures.canonical import in_modules
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.facts import LayerTask
from workers.engine.contracts.params import STAGES, Group, Stat, WeightPruneParams
from workers.engine.errors import NumericalFailure
from workers.engine.files.safetensors_bytes import TensorFacts, read_header
from workers.engine.laws.allocate import AllocateLaws
from workers.engine.laws.random_layers import (
    INPUTS,
    OUTPUTS,
    inputs_of,
    poisons,
    same,
    seeded,
    stats_for,
    stats_of,
    tensors_in,
    weight,
)
from workers.engine.laws.score import ScoreLaws
from workers.engine.model.views import held
from workers.engine.registry import Method, methods
from workers.engine.sources.resolve import ModelSource

GROUPS: tuple[Group, ...] = get_args(Group)
PRUNE_EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "unstructured": [{"sparsity": s} for s in (0.0, 0.25, 0.3, 0.5, 0.77)],
    "N:M": [{"pattern": pattern} for pattern in ("2:4", "4:8", "1:2", "3:4")],
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def of_weights(stage: Any) -> list[Method]:
    """The methods of a stage that are about single weights; those about units have their own suite."""
    if stage in ("score", "prune"):
        return [method for method in methods(stage) if "weight" in method.units]
    return [method for method in methods(stage) if Stat.UNIT_SCORES not in method.needs]


def named(stage: Any) -> Any:
    return pytest.mark.parametrize("method", of_weights(stage), ids=lambda method: method.name)


@pytest.mark.parametrize("method", [m for stage in STAGES for m in methods(stage)], ids=lambda m: f"{m.stage}-{m.name}")
class TestDeclaration:
    def test_has_a_summary_and_described_parameters(self, method: Method) -> None:
        assert method.summary.endswith(".")
        assert len(method.summary) < 200
        assert method.params.__doc__
        for name, field in method.params.model_fields.items():
            assert field.description, f"{method.name}.{name} has no description"

    def test_is_the_tag_of_its_parameters(self, method: Method) -> None:
        assert method.params.model_fields["method"].default == method.name
        assert get_args(method.params.model_fields["method"].annotation) == (method.name,)

    def test_refuses_unknown_parameters(self, method: Method) -> None:
        with pytest.raises(ValidationError, match="extra_forbidden"):
            method.params.model_validate({"method": method.name, "no_such_parameter": 1})

    def test_bounds_every_number(self, method: Method) -> None:
        for name, schema in method.params.model_json_schema()["properties"].items():
            for part in schema.get("anyOf", [schema]):
                if part.get("type") in ("number", "integer"):
                    assert {"minimum", "exclusiveMinimum"} & part.keys(), f"{method.name}.{name} has no lower bound"

    def test_waives_no_more_than_it_needs(self, method: Method) -> None:
        if method.stage in ("score", "allocate", "refine"):
            assert method.params().waives in method.needs


@pytest.mark.parametrize("stage", ["score", "allocate", "prune", "refine", "tune"])
def test_names_its_paper(stage: Any) -> None:
    assert all(m.paper.startswith(("arXiv:", "doi:", "https://")) for m in methods(stage))


@pytest.mark.parametrize("stage", ["score", "prune", "refine", "tune"])
def test_only_allocators_look_at_the_loss_of_the_whole(stage: Any) -> None:
    assert all(not m.needs & (Stat.LOSS | Stat.CURVATURE) for m in methods(stage))


@named("score")
class TestScore(ScoreLaws):
    """Every one of ours."""


@named("allocate")
class TestAllocate(AllocateLaws):
    """Every one of ours."""


def all_params(method: Method) -> list[Any]:
    return [
        method.params.model_validate({"method": method.name} | example)
        for pattern in method.patterns
        for example in PRUNE_EXAMPLES[pattern]
    ]


def with_and_without_score(method: Method) -> list[bool]:
    return {"required": [True], "optional": [True, False], "unused": [False]}[method.scores]


def prune_cases() -> Iterator[Any]:
    """Every pruner on every example; a score's group is either, without a score it is the pruner's own."""
    for method in of_weights("prune"):
        for params in all_params(method):
            target = params.pattern if params.kept_of else params.sparsity
            for scored in with_and_without_score(method):
                for group in GROUPS if scored else (method.group,):
                    name = f"{method.name}-{target}-{f'scored-{group}' if scored else 'unscored'}"
                    yield pytest.param(method, params, group, scored, id=name)


def task(seed: int, outputs: int, sparsity: float, *, scored: bool, dtype: torch.dtype = torch.float32) -> LayerTask:
    weight_OI = weight(seed, outputs).to(dtype)
    score_OI = torch.rand(outputs, INPUTS, generator=seeded(seed + 10)) if scored else None
    return LayerTask(f"layer{seed}", weight_OI, sparsity, score_OI)


def assert_exact(params: WeightPruneParams, group: Group, layer: LayerTask, pruned_OI: Tensor) -> None:
    """As many zeros as promised, in every row or group that the promise is about, and finite weights beside them."""
    assert pruned_OI.shape == layer.weight_OI.shape
    assert pruned_OI.isfinite().all()
    outputs, inputs = layer.weight_OI.shape
    zero_OI = pruned_OI == 0
    count = params.removed((outputs, inputs), layer.sparsity, group)
    assert int(zero_OI.sum()) == count
    if params.kept_of is not None:
        m = params.kept_of[1]
        assert zero_OI.reshape(-1, m).sum(dim=1).unique().tolist() == [round(m * layer.sparsity)]
    elif group == "row":
        assert zero_OI.sum(dim=1).unique().tolist() == [count // outputs]


@pytest.mark.parametrize(("method", "params", "group", "scored"), list(prune_cases()))
class TestPrune:
    def test_removes_exactly_what_it_says(self, method: Method, params: Any, group: Group, scored: bool) -> None:
        layer = task(0, OUTPUTS, params.target, scored=scored)
        (pruned_OI,) = method.function([layer], stats_for(method.needs), group, params)
        assert_exact(params, group, layer, pruned_OI)
        short = params.target * OUTPUTS * INPUTS - params.removed((OUTPUTS, INPUTS), params.target, group)
        assert -1 < short < OUTPUTS, "within a weight a row of the target"

    def test_each_layer_of_a_stream_has_its_own_sparsity(
        self, method: Method, params: Any, group: Group, scored: bool
    ) -> None:
        step = 1 / params.kept_of[1] if params.kept_of else 0.17
        sparsities = (params.target, max(0.0, params.target - step), min(1 - step, params.target + step), 0.0)
        layers = [task(i, 6 + 5 * i, s, scored=scored, dtype=torch.bfloat16) for i, s in enumerate(sparsities)]
        stats = stats_for(method.needs)
        before, statistics = [layer.weight_OI.clone() for layer in layers], tensors_in(stats)
        scores = [layer.score_OI.clone() for layer in layers if layer.score_OI is not None]
        first = method.function(layers, stats, group, params)
        second = method.function(layers, stats, group, params)
        assert len(first) == len(layers)
        for layer, pruned_OI, again_OI in zip(layers, first, second, strict=True):
            assert_exact(params, group, layer, pruned_OI)
            assert torch.equal(pruned_OI, again_OI)
        assert all(torch.equal(layer.weight_OI, weight_OI) for layer, weight_OI in zip(layers, before, strict=True))
        assert all(torch.equal(a, b) for a, b in zip((i.score_OI for i in layers if scored), scores, strict=True))
        assert same(statistics, tensors_in(stats))
        # Of inputs as in the dense block: of others the layer may make up for what was pruned before it.
        nothing = method.function(layers[3:], stats_of(inputs_of(), method.needs), group, params)[0]
        torch.testing.assert_close(nothing.float(), before[3].float())  # nothing removed, nothing changed

    def test_weights_that_stay_change_only_if_declared(
        self, method: Method, params: Any, group: Group, scored: bool
    ) -> None:
        layer = task(0, OUTPUTS, params.target, scored=scored)
        (pruned_OI,) = method.function([layer], stats_of(inputs_of(), method.needs), group, params)
        # By more than float32's last digits.
        changed = bool((~pruned_OI.isclose(layer.weight_OI, rtol=1e-4) & (pruned_OI != 0)).any())
        assert changed == (method.updates_weights and params.target > 0)

    def test_parameters_survive_json(self, method: Method, params: Any, group: Group, scored: bool) -> None:
        assert method.params.model_validate_json(params.model_dump_json()) == params


def hard_cases() -> Iterator[Any]:
    for method in of_weights("prune"):
        for scored in with_and_without_score(method):
            for params in all_params(method):
                if (params.kept_of or params.sparsity) in ((2, 4), 0.5):
                    group: Group = "row" if scored else method.group
                    yield pytest.param(method, params, group, scored, id=f"{method.name}-{params.pattern}-{scored}")


@pytest.mark.parametrize(("method", "params", "group", "scored"), list(hard_cases()))
class TestHardStatistics:
    @pytest.mark.parametrize("poison", poisons())
    def test_finite_weights_and_the_exact_count(
        self, method: Method, params: Any, group: Group, scored: bool, poison: str
    ) -> None:
        layer = task(0, OUTPUTS, 0.5, scored=scored)
        x_NI = poisons()[poison]
        (pruned_OI,) = method.function([layer], stats_of(x_NI, method.needs, x_NI), group, params)
        assert_exact(params, group, layer, pruned_OI)

    @pytest.mark.parametrize("value", [math.inf, math.nan])
    @pytest.mark.parametrize("field", ["gram_II", "cross_gram_II", "dense_gram_II"])
    def test_broken_statistics_are_refused_by_the_layers_name(
        self, method: Method, params: Any, group: Group, scored: bool, field: str, value: float
    ) -> None:
        stats = stats_for(method.needs)
        gram_II = getattr(stats, field)
        if gram_II is None:
            return
        broken_II = gram_II.clone()
        broken_II[2, 2] = value
        layer = task(0, OUTPUTS, 0.5, scored=scored)
        with pytest.raises(NumericalFailure, match="layer0"):
            method.function([layer], replace(stats, **{field: broken_II}), group, params)


def test_every_declared_pattern_is_tried() -> None:
    declared = {pattern for method in of_weights("prune") for pattern in method.patterns}
    assert declared == set(PRUNE_EXAMPLES)


@named("refine")
class TestRefine:
    @pytest.mark.parametrize("kept_of", [None, (2, 4), (1, 2), (4, 8)])
    def test_keeps_as_many_in_every_row_and_group(self, method: Method, kept_of: tuple[int, int] | None) -> None:
        layer, stats = task(0, OUTPUTS, 0.5, scored=False), stats_for(method.needs)
        m = kept_of[1] if kept_of else INPUTS
        kept_OI = torch.rand(OUTPUTS * INPUTS // m, m, generator=seeded(3)).argsort(dim=1) < m // 2
        pruned_OI = layer.weight_OI * kept_OI.reshape(OUTPUTS, INPUTS)
        before = (layer.weight_OI.clone(), pruned_OI.clone(), tensors_in(stats))
        found_OI = method.function(layer, pruned_OI, stats, method.params(), kept_of)
        assert (found_OI.dtype, found_OI.shape) == (torch.bool, (OUTPUTS, INPUTS))
        assert (found_OI.reshape(-1, m).sum(dim=1) == m // 2).all()
        assert not torch.equal(found_OI, pruned_OI != 0), "these zeros were set at random: some must move"
        assert torch.equal(found_OI, method.function(layer, pruned_OI, stats, method.params(), kept_of))
        assert torch.equal(layer.weight_OI, before[0])
        assert torch.equal(pruned_OI, before[1])
        assert same(tensors_in(stats), before[2])

    @pytest.mark.parametrize("poison", poisons())
    def test_keeps_the_count_whatever_the_inputs(self, method: Method, poison: str) -> None:
        layer = task(0, OUTPUTS, 0.5, scored=False, dtype=torch.bfloat16)
        pruned_OI = layer.weight_OI * (torch.arange(INPUTS) % 2)
        stats = stats_of(poisons()[poison], method.needs)
        found_OI = method.function(layer, pruned_OI, stats, method.params(), None)
        assert (found_OI.sum(dim=1) == INPUTS // 2).all()

    def test_rows_may_hold_unequal_numbers_of_zeros(self, method: Method) -> None:
        layer = task(0, OUTPUTS, 0.5, scored=False)
        pruned_OI = layer.weight_OI * (torch.rand(OUTPUTS, INPUTS, generator=seeded(4)) < 0.5)
        pruned_OI[0], pruned_OI[1] = 0, layer.weight_OI[1]
        found_OI = method.function(layer, pruned_OI, stats_for(method.needs), method.params(), None)
        assert torch.equal(found_OI.sum(dim=1), (pruned_OI != 0).sum(dim=1))

    def test_parameters_survive_json(self, method: Method) -> None:
        params = method.params()
        assert method.params.model_validate_json(params.model_dump_json()) == params


Kind = Literal["dense", "masked", "mixture", "transposed"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MIXTURES = {"mixture": "mixtral", "transposed": "gpt_oss"}
"""Families that hold all experts' matrices of a block in one parameter, as they are or transposed."""


def built(kind: Kind, *, tied: bool = False) -> tuple[nn.Module, Architecture]:
    """A random Llama of four blocks, or a mixture of two. Half of the linear layers' weights are zero, but where it is
    dense."""
    model = tiny(MIXTURES[kind]) if kind in MIXTURES else llama(tied=tied)
    architecture = recognise(model.config.to_dict(), stored_facts(kind, tied=tied))
    places = held(model, architecture)
    for layer in architecture.layers if kind != "dense" else ():
        at = places[layer.weight]
        weight = at.view(model.get_parameter(at.parameter).data)
        weight *= torch.rand(weight.shape) < 0.5
    return model, architecture


def llama(*, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "vocab_size": 50}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads))


@cache
def stored_facts(kind: Kind, *, tied: bool) -> Mapping[str, TensorFacts]:
    """The tensors that files of the model hold."""
    if kind not in MIXTURES:
        return {name: TensorFacts("F32", tuple(own.shape)) for name, own in llama(tied=tied).named_parameters()}
    with TemporaryDirectory() as folder:
        tiny(MIXTURES[kind]).save_pretrained(folder)
        return {name: piece.facts for name, piece in read_header(Path(folder) / "model.safetensors").items()}


def canonical(model: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    """Copies of the model's tensors, by their canonical names."""
    own = model.state_dict()
    return {name: at.read(own[at.parameter]).clone() for name, at in held(model, architecture).items()}


def params_of(method: Method, kind: Kind, **changes: Any) -> Any:
    if kind in MIXTURES:
        changes |= {"last_layers": {"blocks": 2}, "group": {"group_size": 8}}.get(method.name, {})
    return method.params(dataset="text.txt", **changes)


def source_of(model: nn.Module, architecture: Architecture) -> ModelSource:
    own = dict(model.named_parameters())
    tensors = {
        name: TensorFacts("F32", tuple(at.read(own[at.parameter]).shape))
        for name, at in held(model, architecture).items()
        if at.parameter in own
    }
    return ModelSource("random", model.config.to_dict(), tensors, {}, None)


def loss_of(model: nn.Module) -> Tensor:
    ids_BT = torch.randint(50, (2, 12), generator=seeded(5))
    return model(input_ids=ids_BT, labels=ids_BT).loss


@cache
def trained(name: str, kind: Kind) -> tuple[nn.Module, dict[str, Tensor], Any]:
    """A model, prepared by a method, after three steps with weight decay, what its weights were, and its trainable."""
    (method,) = (method for method in methods("tune") if method.name == name)
    model, architecture = built(kind)
    before = canonical(model, architecture)
    trainable = method.function(model, architecture, params_of(method, kind))
    optimizer = torch.optim.AdamW(trainable.parameters.values(), lr=0.01, weight_decay=0.1)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    return model.eval(), before, trainable


@named("tune")
@pytest.mark.parametrize("kind", KINDS)
class TestTune:
    def test_trains_float32_parameters_and_nothing_else(self, method: Method, kind: Kind) -> None:
        model, architecture = built(kind)
        own = {*model.state_dict()}
        trainable = method.function(model.bfloat16(), architecture, params_of(method, kind))
        found = {id(parameter) for parameter in trainable.parameters.values()}
        assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == found
        assert all(trainable.parameters[name].dtype == torch.float32 for name in trainable.parameters.keys() - own)

    def test_every_parameter_learns(self, method: Method, kind: Kind) -> None:
        _, _, trainable = trained(method.name, kind)
        for name, parameter in trainable.parameters.items():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    def test_what_is_merged_is_what_was_trained(self, method: Method, kind: Kind) -> None:
        model, before, trainable = trained(method.name, kind)
        plain, architecture = built(kind)
        untrained = loss_of(plain.eval()).item()
        merged = {name: trainable.merged(name, tensor) for name, tensor in before.items()}
        plain.load_state_dict(in_modules(architecture.layout, architecture.sizes, merged))
        with torch.no_grad():
            assert loss_of(plain).item() == pytest.approx(loss_of(model).item(), rel=1e-6)
        assert loss_of(model).item() < untrained

    def test_zeros_stay_and_no_other_comes(self, method: Method, kind: Kind) -> None:
        _, before, trainable = trained(method.name, kind)
        for layer in built(kind)[1].layers:
            merged_OI = trainable.merged(layer.weight, before[layer.weight])
            assert torch.equal(merged_OI == 0, before[layer.weight] == 0), layer.name

    def test_what_is_stored_is_left_alone_and_what_was_not_trained_comes_back(self, method: Method, kind: Kind) -> None:
        _, before, trainable = trained(method.name, kind)
        moved = 0
        for name, tensor in before.items():
            copy = tensor.clone()
            merged = trainable.merged(name, tensor)
            assert torch.equal(tensor, copy)
            assert (merged.shape, merged.dtype) == (tensor.shape, torch.float32)
            assert merged is tensor or not torch.equal(merged, tensor), f"{name} is written although nothing changed"
            moved += merged is not tensor
        assert moved

    def test_starts_from_the_seed(self, method: Method, kind: Kind) -> None:
        again = trained.__wrapped__(method.name, kind)
        assert same(trained(method.name, kind)[2].parameters, again[2].parameters)

    def test_says_how_many_parameters_it_trains(self, method: Method, kind: Kind) -> None:
        model, architecture = built(kind, tied=kind == "masked")
        source, params = source_of(model, architecture), params_of(method, kind)
        trainable = method.function(model, architecture, params)
        promised = params.trained_parameters(source, architecture)
        assert promised == sum(parameter.numel() for parameter in trainable.parameters.values())

    def test_parameters_survive_json(self, method: Method, kind: Kind) -> None:
        params = params_of(method, kind)
        assert method.params.model_validate_json(params.model_dump_json()) == params


@pytest.mark.parametrize(
    "method", [m for m in methods("tune") if not m.params(dataset="t.txt").multiplies], ids=lambda m: m.name
)
@pytest.mark.parametrize("kind", ["dense", "mixture"])
def test_zeros_of_a_block_that_was_added_are_weights_like_others(method: Method, kind: Kind) -> None:
    """Those of LLaMA-Pro's copies, in the layers that add to the hidden states."""
    model, architecture = built(kind)
    new = architecture.blocks - 1
    architecture = replace(architecture, new_blocks=frozenset({new}))
    added = [layer.weight for layer in architecture.writing("hidden", new)]
    for name in added:
        at = held(model, architecture)[name]
        at.view(model.get_parameter(at.parameter).data).zero_()
    before = canonical(model, architecture)
    trainable = method.function(model, architecture, params_of(method, kind))
    optimizer = torch.optim.AdamW(trainable.parameters.values(), lr=0.01)
    loss_of(model.train()).backward()
    optimizer.step()
    for name in added:
        assert trainable.merged(name, before[name]).count_nonzero(), name


@pytest.mark.parametrize("kind", ["masked", "mixture"])
@pytest.mark.parametrize(
    "method", [m for m in methods("tune") if "train" in m.params.model_fields], ids=lambda m: m.name
)
def test_training_of_new_blocks_leaves_the_others_alone(method: Method, kind: Kind) -> None:
    model, architecture = built(kind)
    architecture = replace(architecture, new_blocks=frozenset({1, architecture.blocks - 1}))
    params = params_of(method, kind, train="new_blocks")
    before = canonical(model, architecture)
    promised = params.trained_parameters(source_of(model, architecture), architecture)
    trainable = method.function(model, architecture, params)
    assert promised == sum(parameter.numel() for parameter in trainable.parameters.values())
    optimizer = torch.optim.AdamW(trainable.parameters.values(), lr=0.01)
    for _ in range(2):
        loss_of(model.train()).backward()
        optimizer.step()
    changed = {name for name, tensor in before.items() if not torch.equal(trainable.merged(name, tensor), tensor)}
    assert {layer.weight for layer in architecture.layers if architecture.is_new(layer.name)} <= changed
    assert all(architecture.is_new(name) for name in changed)


def test_the_light_half_imports_no_torch() -> None:
    # In a process of its own: this one has torch.
    code = (
        "import sys; import workers.engine.spec, workers.engine.planning.plan, workers.engine.report;"
        "import workers.engine.events;"
        "from workers.engine.registry import discover; assert discover();"
        "heavy = {'torch', 'transformers', 'safetensors', 'numpy', 'scipy', 'datasets', 'peft'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("method", [method for stage in STAGES for method in methods(stage)], ids=lambda m: m.name)
def test_lists_of_json_are_taken_where_they_were_parsed_before(method: Method) -> None:
    """A sweep and the command line change a parsed spec before they validate it."""
    for name, field in method.params.model_fields.items():
        if get_origin(field.annotation) is tuple:
            try:
                method.params.model_validate({"method": method.name, name: []})
            except ValidationError as error:
                wrong = {(*mistake["loc"],): mistake["type"] for mistake in error.errors()}
                assert wrong.get((name,)) != "tuple_type", name
