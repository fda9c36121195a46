"""Rules of every method for heads, channels, hidden dimensions and blocks: found through the registry, so
a new file is tested unseen.

U = units, O = outputs, I = inputs, N = tokens, K = inputs kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.four_blocks import ALL_FAMILIES, ARCHITECTURE, BLOCKS, FAMILIES, SHAPES, UNITS, facts_of
from workers.engine.architectures.architecture import Family
from workers.engine.contracts.facts import AllocationFacts, DenseUnits, LayerTask
from workers.engine.contracts.params import MethodParams, Stat
from workers.engine.errors import InvalidSpec, NumericalFailure
from workers.engine.laws.random_layers import inputs_of, poisons, same, seeded, stats_of, tensors_in, weight
from workers.engine.registry import Method, discover, methods
from workers.engine.removals.widths import kept_units


def unit_methods(stage: Any, *units: str) -> list[Method]:
    found = [method for method in methods(stage) if {*method.units} & {*units} and "weight" not in method.units]
    assert found
    return found


def pruners_of(*units: str) -> list[Method]:
    found = [method for method in methods("prune") if method.units == units]
    assert found
    return found


def variants(method: Method) -> Iterator[Any]:
    """The defaults, and every choice of every parameter that has some."""
    yield method.params()
    for name, schema in method.params.model_json_schema()["properties"].items():
        for choice in schema.get("enum", []):
            if choice != schema.get("default"):
                yield method.params.model_validate({name: choice})


def scorers() -> list[Any]:
    return [
        pytest.param(method, params, id="-".join([method.name, *changed(params)]))
        for method in unit_methods("score", "head", "channel", "hidden", "layer")
        for params in variants(method)
    ]


def changed(params: MethodParams) -> list[str]:
    return [f"{name}={value}" for name, value in params.model_dump(exclude_defaults=True).items() if name != "method"]


def dense(method: Method, params: Any, worthless: int | None = None) -> list[DenseUnits]:
    """Blocks as they are measured; of a `worthless` one nothing counts, nor of unit 1 of any family."""
    needs = method.needs & ~params.waives
    found = []
    for block in range(BLOCKS):
        prefix = f"model.layers.{block}."
        experts = Family(block, "expert", UNITS["expert"], (), 64, 0)
        own = [family for family in (*ALL_FAMILIES, experts) if family.block == block and family.kind in method.units]

        def drawn(seed: int, block: int = block, prefix: str = prefix) -> dict[str, Tensor]:
            generator = seeded(100 * block + seed)
            return {f"{prefix}{name}": torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}

        tensors = drawn(0)
        gradients = [drawn(1 + split) for split in range(params.splits)]
        if worthless is not None:
            for part in (tensors, *gradients):
                for family in own:
                    for member in family.members:
                        rows = part[member.tensor].movedim(member.axis, 0).unflatten(0, (family.units, -1))
                        rows[1:2] = 0  # a view
            if block == worthless:
                for part in (tensors, *gradients):
                    for tensor in part.values():
                        tensor.zero_()
        counts = block != worthless
        found.append(
            DenseUnits(
                block,
                own,
                {name: tensor.bfloat16() for name, tensor in tensors.items()},
                gradients=gradients if Stat.GRADIENT in needs else (),
                squared_gradients=[{name: g.square() for name, g in part.items()} for part in gradients]
                if Stat.SQUARED_GRADIENT in needs
                else (),
                change=0.2 * (1 + block) * counts if Stat.CHANGE in needs else None,
                loss_without=3.0 + (1 + block) * counts if Stat.REMOVAL in needs else None,
            )
        )
    return found


Scores = list[Mapping[str, Tensor]]


def measured(method: Method, params: Any, blocks: Sequence[DenseUnits]) -> Scores:
    assert method.measure is not None
    return [{name: found.double() for name, found in method.measure(block, params).items()} for block in blocks]


def copied(block: DenseUnits) -> list[dict[str, Tensor]]:
    return [
        {name: tensor.clone() for name, tensor in part.items()}
        for part in (block.tensors, *block.gradients, *block.squared_gradients)
    ]


@pytest.mark.parametrize(("method", "params"), scorers())
class TestUnitScore:
    def test_measures_finitely_and_leaves_the_block_alone(self, method: Method, params: Any) -> None:
        assert method.measure is not None
        for block in dense(method, params):
            before = copied(block)
            found = method.measure(block, params)
            assert found
            assert {tensor.dtype for tensor in found.values()} <= {torch.float32, torch.float64}
            assert all(tensor.isfinite().all() for tensor in found.values())
            assert same(found, method.measure(block, params))
            assert all(same(part, was) for part, was in zip(copied(block), before, strict=True))

    def test_scores_every_unit_of_its_kinds(self, method: Method, params: Any) -> None:
        facts = measured(method, params, dense(method, params))
        before = [{name: tensor.clone() for name, tensor in block.items()} for block in facts]
        scores = method.function(facts, params)
        assert len(scores) == BLOCKS
        for block in scores:
            assert set(block) == set(method.units)
            for kind, score_U in block.items():
                assert (score_U.shape, score_U.dtype) == ((UNITS[kind],), torch.float64)
                assert score_U.isfinite().all()
        assert all(same(*pair) for pair in zip(facts, before, strict=True))
        assert all(same(*pair) for pair in zip(scores, method.function(facts, params), strict=True))

    def test_a_block_may_lack_a_kind_of_unit(self, method: Method, params: Any) -> None:
        """As hybrids' blocks without attention do."""
        facts, gone = measured(method, params, dense(method, params)), method.units[0]
        facts[2] = {name: values for name, values in facts[2].items() if name.partition("/")[0] != gone}
        scores = method.function(facts, params)
        assert [set(block) for block in scores] == [{*method.units} - ({gone} if b == 2 else set()) for b in range(4)]

    def test_what_counts_for_nothing_is_lowest(self, method: Method, params: Any) -> None:
        usual, poor = (measured(method, params, dense(method, params, worthless)) for worthless in (None, 2))
        if all(same(*pair) for pair in zip(usual, poor, strict=True)):
            pytest.skip("does not look at the model")
        scores = method.function(poor, params)
        for kind in method.units:
            for block in range(BLOCKS):
                assert scores[block][kind].argmin() == min(1, UNITS[kind] - 1) or block == 2
                assert scores[2][kind].max() <= scores[block][kind].min()
        if "channel" in method.units:
            assert scores[0]["channel"][1] < scores[0]["channel"].median()
        else:
            assert scores[2]["layer"] < min(scores[block]["layer"] for block in (0, 1, 3))

    def test_parameters_survive_json(self, method: Method, params: Any) -> None:
        assert method.params.model_validate_json(params.model_dump_json()) == params


KEPT_I = torch.tensor([0, 1, 2, 4, 5, 7, 8, 9, 10, 12, 13, 15])
"""Of 16."""


def mask_of_kept() -> Tensor:
    return torch.zeros(16, dtype=torch.bool).index_fill(0, KEPT_I, True)


def unit_pruners() -> list[Any]:
    return [
        pytest.param(method, method.params.model_validate({"sparsity": 0.5} | changes), id=f"{method.name}-{changes}")
        for method in pruners_of("head", "channel")
        for changes in [{}, *({"compensate": False} for _ in [0] if "compensate" in method.params.model_fields)]
    ]


def error(dense_OI: Tensor, found_OI: Tensor, x_NI: Tensor) -> float:
    """Mean squared output error."""
    return float(((found_OI.double() - dense_OI.double()) @ x_NI.double().T).square().mean())


@pytest.mark.parametrize(("method", "params"), unit_pruners())
class TestUnitPrune:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_zero_exactly_where_units_go(self, method: Method, params: Any, dtype: torch.dtype) -> None:
        needs = method.needs & ~params.waives
        reader, stats = LayerTask("reader", weight().to(dtype), 0.0), stats_of(inputs_of(), needs)
        before, statistics, kept = reader.weight_OI.clone(), tensors_in(stats), mask_of_kept()
        found_OI = method.function(reader, kept, stats, params)
        assert (found_OI.shape, found_OI.dtype) == (reader.weight_OI.shape, torch.float32)
        assert torch.equal(found_OI != 0, kept.expand_as(found_OI))
        assert torch.equal(found_OI, method.function(reader, kept, stats, params))
        assert torch.equal(reader.weight_OI, before)
        assert torch.equal(kept, mask_of_kept())
        assert same(tensors_in(stats), statistics)

    def test_nothing_removed_nothing_changed(self, method: Method, params: Any) -> None:
        reader = LayerTask("reader", weight().bfloat16(), 0.0)
        stats = stats_of(inputs_of(), method.needs & ~params.waives)
        found_OI = method.function(reader, torch.ones(16, dtype=torch.bool), stats, params)
        assert torch.equal(found_OI, reader.weight_OI.float())

    @pytest.mark.parametrize("poison", poisons())
    def test_never_worse_than_leaving_out(self, method: Method, params: Any, poison: str) -> None:
        x_NI, reader = poisons()[poison], LayerTask("reader", weight(), 0.0)
        found_OI = method.function(reader, mask_of_kept(), stats_of(x_NI, method.needs & ~params.waives), params)
        assert found_OI.isfinite().all()
        assert torch.equal(found_OI[:, ~mask_of_kept()], torch.zeros(24, 4))
        left_out = error(reader.weight_OI, reader.weight_OI * mask_of_kept(), x_NI)
        assert error(reader.weight_OI, found_OI, x_NI) <= left_out * (1 + 1e-5)

    @pytest.mark.parametrize("value", [math.inf, math.nan])
    def test_broken_statistics_are_refused_by_the_layers_name(self, method: Method, params: Any, value: float) -> None:
        stats = stats_of(inputs_of(), method.needs & ~params.waives)
        if stats.gram_II is None:
            pytest.skip("looks at no statistics")
        stats.gram_II[2, 2] = value
        with pytest.raises(NumericalFailure, match="reader"):
            method.function(LayerTask("reader", weight(), 0.0), mask_of_kept(), stats, params)


def compensating() -> Any:
    found = [p for p in unit_pruners() if getattr(p.values[1], "compensate", False)]
    assert found
    return pytest.mark.parametrize(("method", "params"), found)


@compensating()
class TestCompensation:
    def test_is_the_damped_least_squares_solution(self, method: Method, params: Any) -> None:
        """W_K + argmin |X_P W_P - X_K D|^2 / N + damping |D|^2, solved with the inputs themselves, in double."""
        x_NI, reader, kept = inputs_of(), LayerTask("reader", weight(), 0.0), mask_of_kept()
        found_OI = method.function(reader, kept, stats_of(x_NI, method.needs), params)
        x, w = x_NI.double(), reader.weight_OI.double()
        damping = params.dampening * (x.square().mean(dim=0)).mean()
        rows = torch.cat([x[:, kept] / len(x) ** 0.5, damping.sqrt() * torch.eye(len(KEPT_I), dtype=torch.float64)])
        lost = torch.cat([x[:, ~kept] @ w[:, ~kept].T / len(x) ** 0.5, torch.zeros(len(KEPT_I), 24)])
        expected = w[:, kept] + torch.linalg.lstsq(rows, lost).solution.T
        torch.testing.assert_close(found_OI[:, kept].double(), expected, rtol=1e-5, atol=1e-5)

    def test_another_weight_is_no_better(self, method: Method, params: Any) -> None:
        x_NI, reader, kept = inputs_of(), LayerTask("reader", weight(), 0.0), mask_of_kept()
        mild = params.model_copy(update={"dampening": 1e-6})
        found_OI = method.function(reader, kept, stats_of(x_NI, method.needs), mild)
        least = error(reader.weight_OI, found_OI, x_NI)
        assert least < 0.9 * error(reader.weight_OI, reader.weight_OI * kept, x_NI)
        for seed in range(5):
            nudge_OI = 0.02 * torch.randn(24, 16, generator=seeded(seed)) * kept
            assert error(reader.weight_OI, found_OI + nudge_OI, x_NI) > least

    def test_a_duplicated_input_costs_nothing(self, method: Method, params: Any) -> None:
        x_NI, reader = inputs_of(), LayerTask("reader", weight(), 0.0)
        x_NI[:, 3] = x_NI[:, 7]
        kept = torch.arange(16) != 3
        mild = params.model_copy(update={"dampening": 1e-6})
        found_OI = method.function(reader, kept, stats_of(x_NI, method.needs), mild)
        power = float((reader.weight_OI @ x_NI.T).square().mean())
        assert error(reader.weight_OI, reader.weight_OI * kept, x_NI) > 1e-3 * power
        assert error(reader.weight_OI, found_OI, x_NI) < 1e-8 * power
        expected_OI = (reader.weight_OI * kept).index_add(1, torch.tensor([7]), reader.weight_OI[:, 3:4])
        torch.testing.assert_close(found_OI, expected_OI, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("method", pruners_of("layer"), ids=lambda method: method.name)
class TestLayerPrune:
    @pytest.mark.parametrize("gone", [1, 3, 7])
    def test_drops_exactly_as_many_of_the_lowest(self, method: Method, gone: int) -> None:
        scores = torch.randperm(8, generator=seeded(gone)).double().tolist()
        before = list(scores)
        kept = method.function(scores, method.params.model_validate({"layers": gone}))
        assert kept == [block for block in range(8) if before[block] >= gone]
        assert scores == before

    @pytest.mark.parametrize(("sparsity", "gone"), [(0.0, 0), (0.05, 0), (0.25, 2), (0.3, 2), (0.32, 3), (0.99, 8)])
    def test_a_fraction_is_rounded(self, method: Method, sparsity: float, gone: int) -> None:
        params = method.params.model_validate({"sparsity": sparsity})
        assert params.dropped(8) == gone
        assert len(method.function([1.0] * 8, params)) == 8 - gone

    def test_of_ties_the_lower_index_goes_and_infinity_never(self, method: Method) -> None:
        params = method.params.model_validate({"layers": 2})
        assert method.function([math.inf, 1.0, 1.0, 1.0, 2.0, math.inf], params) == [0, 3, 4, 5]

    def test_takes_one_target(self, method: Method) -> None:
        for both_or_none in ({}, {"layers": 1, "sparsity": 0.5}, {"layers": 1, "at_most": {"bytes": 1}}):
            with pytest.raises(ValueError, match="give one of `layers`"):
                method.params.model_validate(both_or_none)


@pytest.mark.parametrize("method", pruners_of("hidden"), ids=lambda method: method.name)
class TestHiddenPrune:
    @pytest.mark.parametrize(("sparsity", "multiple", "kept"), [(0, 1, 32), (0.2, 1, 26), (0.2, 8, 24), (0.9, 1, 3)])
    def test_keeps_exactly_as_many_of_the_highest(
        self, method: Method, sparsity: float, multiple: int, kept: int
    ) -> None:
        scores = torch.randperm(32, generator=seeded(1)).double().tolist()
        before = list(scores)
        params: Any = method.params.model_validate({"sparsity": sparsity, "multiple_of": multiple})
        assert params.kept(32) == kept
        assert method.function(scores, params) == [index for index in range(32) if before[index] >= 32 - kept]
        assert scores == before

    def test_of_ties_the_lower_index_goes(self, method: Method) -> None:
        assert method.function([1.0] * 8, method.params.model_validate({"sparsity": 0.25})) == [2, 3, 4, 5, 6, 7]

    @pytest.mark.parametrize(("sparsity", "multiple"), [(0.99, 1), (0.5, 64), (0.05, 12)])
    def test_refuses_what_leaves_none_or_more_than_there_are(
        self, method: Method, sparsity: float, multiple: int
    ) -> None:
        params: Any = method.params.model_validate({"sparsity": sparsity, "multiple_of": multiple})
        with pytest.raises(InvalidSpec) as error:
            params.kept(32)
        assert (error.value.field, bool(error.value.hint)) == ("/prune/multiple_of", True)

    def test_takes_how_many_stay(self, method: Method) -> None:
        params: Any = method.params.model_validate({"dimensions": 24, "multiple_of": 8})
        assert params.kept(32) == 24
        for of, multiple in ((16, 8), (32, 5)):
            with pytest.raises(InvalidSpec) as error:
                method.params.model_validate({"dimensions": 24, "multiple_of": multiple}).kept(of)  # type: ignore[attr-defined]
            assert error.value.field == "/prune/dimensions"


@pytest.mark.parametrize("method", pruners_of("hidden", "head", "layer", "channel"), ids=lambda method: method.name)
class TestShapePrune:
    @pytest.mark.parametrize("count", [1, 5, 32])
    def test_keeps_exactly_as_many_of_the_highest(self, method: Method, count: int) -> None:
        scores = torch.randperm(32, generator=seeded(1)).double().tolist()
        before = list(scores)
        params = method.params.model_validate({"hidden": count})
        assert method.function(scores, count, params) == [index for index in range(32) if before[index] >= 32 - count]
        assert scores == before

    def test_of_ties_the_higher_index_stays_and_infinity_always(self, method: Method) -> None:
        params = method.params.model_validate({"heads": 3})
        assert method.function([math.inf, 1.0, 1.0, 2.0, 1.0], 3, params) == [0, 3, 4]

    def test_takes_at_least_one_size(self, method: Method) -> None:
        with pytest.raises(ValueError, match="at least one of `hidden`"):
            method.params.model_validate({})


def unit_allocators() -> Any:
    found = [method for method in methods("allocate") if Stat.UNIT_SCORES in method.needs]
    assert found
    return pytest.mark.parametrize("method", found, ids=lambda method: method.name)


def kept_of(facts: AllocationFacts, sparsity: Mapping[str, float], kinds: Sequence[str]) -> dict[tuple[int, str], int]:
    """Units of every family that stay, by the rule that cuts them."""
    (method,) = pruners_of("head", "channel")
    params: Any = method.params.model_validate({"sparsity": 0.5, "units": kinds})
    return dict(kept_units(facts.layers, FAMILIES, sparsity, params, discover()["allocate", "uniform"].params()))


def removed_parameters(kept: Mapping[tuple[int, str], int]) -> int:
    return sum((family.units - kept[family.block, family.kind]) * family.unit_parameters for family in FAMILIES)


TOTAL = sum(layer.parameters for layer in ARCHITECTURE.layers)
CHANNEL, HEAD = 3 * 16, (2 + 1 + 1 + 2) * 4 * 16


@unit_allocators()
class TestUnitAllocate:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.25, 0.5, 0.6])
    def test_keeps_the_mean_the_bounds_and_a_unit_of_each(self, method: Method, sparsity: float, seed: int) -> None:
        facts = facts_of(seed)
        found = method.function(facts, sparsity, method.params())
        assert set(found) == {layer.name for layer in facts.layers}
        assert all(0 <= share < 1 for share in found.values())
        mean = math.fsum(found[layer.name] * layer.parameters for layer in facts.layers) / TOTAL
        assert mean == pytest.approx(sparsity, abs=1e-9)
        kept = kept_of(facts, found, ("head", "channel"))
        assert min(kept.values()) >= 1
        # Half a channel a block is rounded, and what did not fill a channel is spread.
        assert abs(removed_parameters(kept) - sparsity * TOTAL) <= (BLOCKS / 2 + 1) * CHANNEL

    @pytest.mark.parametrize("kinds", [("channel",), ("head",)])
    def test_is_monotone_where_units_are_of_one_size(self, method: Method, kinds: tuple[str, ...]) -> None:
        facts = facts_of(kinds=kinds)
        before = dict.fromkeys((layer.name for layer in facts.layers), 0.0)
        for target in (0.05, 0.1, 0.2, 0.3):
            found = method.function(facts, target, method.params())
            wanted = {name: share for name, share in found.items() if (".mlp." in name) == (kinds == ("channel",))}
            # Up to the part of a unit that did not fit and is spread over all.
            unit = CHANNEL if kinds == ("channel",) else HEAD
            assert all(before[name] <= share + unit / TOTAL for name, share in wanted.items())
            before = dict(found)

    def test_only_units_that_may_go_are_ranked(self, method: Method) -> None:
        facts = facts_of(kinds=("channel",))
        kept = kept_of(facts, method.function(facts, 0.3, method.params()), ("channel",))
        assert all(kept[block, "head"] == 3 for block in range(BLOCKS))
        assert abs(removed_parameters(kept) - 0.3 * TOTAL) <= (BLOCKS / 2 + 1) * CHANNEL

    def test_later_blocks_are_worth_more_here_and_lose_less(self, method: Method) -> None:
        facts = facts_of()
        kept = kept_of(facts, method.function(facts, 0.4, method.params()), ("head", "channel"))
        assert kept[0, "channel"] < kept[3, "channel"]
        assert kept[0, "head"] <= kept[3, "head"]

    def test_the_scale_of_a_kind_does_not_matter(self, method: Method) -> None:
        assert method.function(facts_of(), 0.4, method.params()) == pytest.approx(
            method.function(facts_of(factor=1e4), 0.4, method.params())
        )

    def test_is_deterministic_and_leaves_the_facts_alone(self, method: Method) -> None:
        facts = facts_of()
        assert facts.units is not None
        layers, scores = list(facts.layers), [dict(block) for block in facts.units.scores]
        first = method.function(facts, 0.4, method.params())
        assert method.function(facts, 0.4, method.params()) == first
        assert (list(facts.layers), [dict(block) for block in facts.units.scores]) == (layers, scores)

    @pytest.mark.parametrize("scores", [0.0, 1.0], ids=["worthless", "equal"])
    def test_scores_that_say_nothing(self, method: Method, scores: float) -> None:
        facts = facts_of()
        assert facts.units is not None
        alike = [{"head": [scores] * 3, "channel": [scores] * 20}] * BLOCKS
        found = method.function(replace(facts, units=replace(facts.units, scores=alike)), 0.4, method.params())
        kept = kept_of(facts, found, ("head", "channel"))
        assert abs(removed_parameters(kept) - 0.4 * TOTAL) <= (BLOCKS / 2 + 1) * CHANNEL

    def test_of_open_blocks_only(self, method: Method) -> None:
        """As where blocks are protected: units of others are in the facts, their layers are not."""
        facts = facts_of()
        inner = [layer for layer in facts.layers if layer.block in (1, 2)]
        found = method.function(replace(facts, layers=inner), 0.4, method.params())
        assert set(found) == {layer.name for layer in inner}

    def test_parameters_survive_json(self, method: Method) -> None:
        params = method.params()
        assert method.params.model_validate_json(params.model_dump_json()) == params
