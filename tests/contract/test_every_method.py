"""What every method must keep to, whoever wrote it: found through the registry, so a new file is tested unseen.

O = outputs, I = inputs.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from workers.engine.registry import STAGES, Group, Method, Stat, methods
from workers.engine.stats import LinearFacts, LinearStats

OUTPUTS, INPUTS = 24, 16
GROUPS: tuple[Group, ...] = get_args(Group)
PRUNE_EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "unstructured": [{"sparsity": s} for s in (0.0, 0.25, 0.3, 0.5, 0.77)],
    "N:M": [{"pattern": pattern} for pattern in ("2:4", "4:8", "1:2", "3:4")],
}


def named(stage: Any) -> Any:
    return pytest.mark.parametrize("method", methods(stage), ids=lambda method: method.name)


def weight(seed: int = 0) -> Tensor:
    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(seed))


def stats_for(needs: Stat) -> LinearStats:
    sq_mean_I = torch.rand(INPUTS, generator=torch.Generator().manual_seed(1)) + 0.1
    return LinearStats(tokens=64, input_sq_mean_I=sq_mean_I if Stat.INPUT_SQ_MEAN in needs else None)


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


@pytest.mark.parametrize("stage", ["score", "allocate", "prune"])
def test_names_its_paper(stage: Any) -> None:
    assert all(m.paper.startswith(("arXiv:", "doi:", "https://")) for m in methods(stage))


@named("score")
class TestScore:
    def test_is_finite_non_negative_and_of_the_weights_shape(self, method: Method) -> None:
        score_OI = method.function(weight(), stats_for(method.needs), method.params())
        assert score_OI.shape == (OUTPUTS, INPUTS)
        assert score_OI.isfinite().all()
        assert (score_OI >= 0).all()

    def test_is_deterministic_and_leaves_its_inputs_alone(self, method: Method) -> None:
        weight_OI, stats = weight(), stats_for(method.needs)
        first = method.function(weight_OI, stats, method.params())
        assert torch.equal(first, method.function(weight_OI, stats, method.params()))
        assert torch.equal(weight_OI, weight())
        if stats.input_sq_mean_I is not None:
            assert torch.equal(stats.input_sq_mean_I, stats_for(method.needs).input_sq_mean_I)

    def test_takes_half_precision(self, method: Method) -> None:
        score_OI = method.function(weight().bfloat16(), stats_for(method.needs), method.params())
        assert score_OI.dtype == torch.float32

    def test_a_zero_weight_is_the_least_important_of_its_row(self, method: Method) -> None:
        weight_OI = weight()
        weight_OI[:, 5] = 0
        score_OI = method.function(weight_OI, stats_for(method.needs), method.params())
        assert (score_OI[:, 5:6] <= score_OI).all()

    def test_parameters_survive_json(self, method: Method) -> None:
        params = method.params()
        assert method.params.model_validate_json(params.model_dump_json()) == params


@named("allocate")
class TestAllocate:
    layers = (
        LinearFacts("a", 0, "mlp_input", (40, 30)),
        LinearFacts("b", 0, "mlp_hidden", (10, 20)),
        LinearFacts("c", 1, "mlp_input", (40, 30)),
        LinearFacts("d", 1, "mlp_hidden", (10, 20)),
    )

    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7])
    def test_keeps_the_mean_and_the_bounds(self, method: Method, sparsity: float) -> None:
        found = method.function(self.layers, sparsity, method.params())
        assert set(found) == {layer.name for layer in self.layers}
        assert all(0 <= s < 1 for s in found.values())
        parameters = sum(layer.parameters for layer in self.layers)
        mean = sum(found[layer.name] * layer.parameters for layer in self.layers) / parameters
        assert mean == pytest.approx(sparsity, abs=1e-4)

    def test_is_monotone_in_the_target(self, method: Method) -> None:
        lower, higher = (method.function(self.layers, s, method.params()) for s in (0.4, 0.6))
        assert all(lower[name] <= higher[name] for name in lower)

    def test_parameters_survive_json(self, method: Method) -> None:
        params = method.params()
        assert method.params.model_validate_json(params.model_dump_json()) == params


def prune_cases() -> list[Any]:
    return [
        pytest.param(method, method.params.model_validate({"method": method.name} | example), group)
        for method in methods("prune")
        for pattern in method.patterns
        for example in PRUNE_EXAMPLES[pattern]
        for group in GROUPS
    ]


@pytest.mark.parametrize(("method", "params", "group"), prune_cases())
class TestPrune:
    def test_removes_exactly_what_it_says(self, method: Method, params: Any, group: Group) -> None:
        pruned_OI = method.function(weight(), weight().abs(), params.target, group, params)
        assert pruned_OI.shape == (OUTPUTS, INPUTS)
        assert int((pruned_OI == 0).sum()) == params.removed((OUTPUTS, INPUTS), params.target, group)

    def test_comes_within_a_weight_a_row_of_the_target(self, method: Method, params: Any, group: Group) -> None:
        short = params.target * OUTPUTS * INPUTS - params.removed((OUTPUTS, INPUTS), params.target, group)
        assert -1 < short < OUTPUTS

    def test_keeps_type_and_inputs_and_is_deterministic(self, method: Method, params: Any, group: Group) -> None:
        weight_OI = weight().bfloat16()
        score_OI = weight_OI.float().abs()
        first = method.function(weight_OI, score_OI, params.target, group, params)
        assert first.dtype == torch.bfloat16
        assert torch.equal(first, method.function(weight_OI, score_OI, params.target, group, params))
        assert torch.equal(weight_OI, weight().bfloat16())
        assert torch.equal(score_OI, weight().bfloat16().float().abs())

    def test_parameters_survive_json(self, method: Method, params: Any, group: Group) -> None:
        assert method.params.model_validate_json(params.model_dump_json()) == params


def test_every_declared_pattern_is_tried() -> None:
    declared = {pattern for method in methods("prune") for pattern in method.patterns}
    assert declared == set(PRUNE_EXAMPLES)


def test_the_light_half_imports_no_torch() -> None:
    # In a process of its own: this one has torch.
    code = (
        "import sys; import workers.engine.spec, workers.engine.plan, workers.engine.report, workers.engine.events;"
        "from workers.engine.registry import discover; assert discover();"
        "heavy = {'torch', 'transformers', 'safetensors', 'numpy', 'datasets'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
