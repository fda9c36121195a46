"""Streamed gradients against back-propagation through the whole model, and what scores make of them by hand.

N = windows, T = tokens of a window, U = units.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from tests.helpers.small_models import SIZES, SaveModel, Scratch, load, spec_of, text_of, walk
from workers.engine.architectures.architecture import Family, Member
from workers.engine.contracts.facts import DenseUnits
from workers.engine.errors import NumericalFailure
from workers.engine.events import Silent
from workers.engine.maths.taylor import unit_importance, weight_importance
from workers.engine.methods.score import layer_taylor, random, saap, taylor
from workers.engine.methods.score.layer_taylor import LayerTaylorParams
from workers.engine.methods.score.random import RandomParams
from workers.engine.methods.score.saap import SaapParams
from workers.engine.methods.score.taylor import TaylorParams
from workers.engine.model.gradients import BlockGradients, gradients
from workers.engine.sources.resolve import Sources
from workers.engine.store.run import Run

MODELS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2-mixed": Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=8, max_window_layers=2),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
}
WINDOWS = 7
TEXT = {"dataset": "calibration.txt", "samples": WINDOWS, "sequence_length": 32}


def whole(folder: Path, windows_NT: Tensor) -> list[dict[str, Tensor]]:
    """Of every window: tensor name -> gradient of its mean loss, by transformers' loss and one backward pass."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    for ids_T in windows_NT:
        model.zero_grad()
        model(ids_T[None], labels=ids_T[None], use_cache=False).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if ".layers." in name})
    return found


def streamed(
    sources: Sources, scratch: Scratch, *, splits: int, squared: bool, batch: int = WINDOWS
) -> tuple[Tensor, dict[int, BlockGradients]]:
    spec = spec_of(calibrate=TEXT)
    model = replace(load(spec, sources), batch_tokens=batch * 32)
    text = text_of(spec, model, sources)
    found = list(gradients(model, text, Run.of(scratch, Silent()), splits=splits, squared=squared))
    assert [block for block, _ in found] == [2, 1, 0]
    assert all(parameter.is_meta for parameter in model.skeleton.parameters()), "a block must leave memory after use"
    return text.windows_NT, dict(found)


@pytest.mark.parametrize(("splits", "batch", "squared"), [(1, 7, False), (1, 3, True), (3, 2, False), (3, 7, True)])
@pytest.mark.parametrize("name", MODELS)
def test_equals_back_propagation(
    name: str, splits: int, batch: int, squared: bool, save_model: SaveModel, sources: Sources, scratch: Scratch
) -> None:
    folder = save_model("tiny", MODELS[name])
    windows_NT, found = streamed(sources, scratch, splits=splits, squared=squared, batch=batch)
    expected = whole(folder, windows_NT)
    bounds = {1: [0, 7], 3: [0, 2, 5, 7]}[splits]
    for split in range(splits):
        of_split = expected[bounds[split] : bounds[split + 1]]
        mean = {key: torch.stack([g[key] for g in of_split]).mean(dim=0) for key in expected[0]}
        square = {key: torch.stack([g[key].square() for g in of_split]).mean(dim=0) for key in expected[0]}
        seen = {key for block in found.values() for key in block.mean[split]}
        assert seen == set(mean), "every tensor of every block: norms and biases too"
        for block in found.values():
            for key, gradient in block.mean[split].items():
                scale = float(mean[key].abs().max())
                torch.testing.assert_close(gradient, mean[key], rtol=1e-5, atol=1e-5 * scale)
                if squared:
                    largest = float(square[key].max())
                    torch.testing.assert_close(block.squared[split][key], square[key], rtol=1e-4, atol=1e-5 * largest)
            if not squared:
                assert not block.squared[split]


@pytest.mark.parametrize("squared", [False, True])
def test_an_infinite_gradient_is_named(squared: bool, tiny: Path, sources: Sources, scratch: Scratch) -> None:
    tensors = load_file(tiny / "model.safetensors")
    if squared:  # the outputs stay as they are, and a gradient of some 1e20 is finite
        tensors["model.layers.1.mlp.up_proj.weight"] *= 1e25
        tensors["model.layers.1.mlp.down_proj.weight"] *= 1e-25
    else:
        tensors["model.layers.2.input_layernorm.weight"] *= 1e38
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalFailure, match=r"model\.layers\.[12]\..*: the loss's gradient is infinite or NaN"):
        streamed(sources, scratch, splits=1, squared=squared)


# One family of two units: `a` holds two rows of each, `b` (the reader) one column of each. By hand:
PAIR = Family(0, "channel", 2, (Member("a.weight", 0), Member("a.bias", 0), Member("b.weight", 1)), 6, 2)
WEIGHTS = {
    "a.weight": torch.tensor([[1.0, 2.0], [3.0, -1.0], [2.0, 0.0], [1.0, 1.0]]),
    "a.bias": torch.tensor([1.0, 1.0, 1.0, 1.0]),
    "b.weight": torch.tensor([[1.0, 4.0], [2.0, 3.0]]),
}
GRADIENTS = {
    "a.weight": torch.tensor([[1.0, -1.0], [2.0, 1.0], [1.0, 1.0], [0.0, 2.0]]),
    "a.bias": torch.tensor([9.0, 9.0, 9.0, 9.0]),
    "b.weight": torch.tensor([[1.0, 1.0], [-1.0, 2.0]]),
}
SQUARES = {name: torch.ones_like(weight) for name, weight in WEIGHTS.items()}
# w g of `a`: [1, -2], [6, -1] | [2, 0], [0, 2];  of `b`, by columns: [1, -2] | [4, 6].
# w^2:        [1, 4], [9, 1]   | [4, 0], [1, 1];              [1, 4]  | [16, 9].
BY_HAND: dict[str, tuple[dict[str, Any], list[float]]] = {
    "element": ({}, [3 + 7 + 3, 2 + 2 + 10]),
    # Two rows of `a` make one number of a unit, as do both weights of a column of `b`.
    "vector": ({"form": "vector"}, [1 + 5 + 1, 2 + 2 + 10]),
    "second": ({"order": "second"}, [5 + 10 + 5, 4 + 2 + 25]),
    # w g - w^2 / 2: [.5, -4], [1.5, -1.5] | [0, 0], [-.5, 1.5];  [.5, -4] | [-4, 1.5].
    "mixed": ({"order": "mixed"}, [4.5 + 3 + 4.5, 0 + 2 + 5.5]),
    "first": ({"aggregate": "first"}, [10, 4]),
    "last": ({"aggregate": "last"}, [3, 10]),
    "max": ({"aggregate": "max"}, [10, 10]),
    "mean": ({"aggregate": "mean"}, [6.5, 7]),
    "prod": ({"aggregate": "prod"}, [30, 40]),
}


def pair(**changes: Any) -> DenseUnits:
    return DenseUnits(0, [PAIR], WEIGHTS, gradients=[GRADIENTS], squared_gradients=[SQUARES], **changes)


@pytest.mark.parametrize("case", BY_HAND)
def test_taylor_by_hand(case: str) -> None:
    params, expected = BY_HAND[case]
    assert taylor.measure(pair(), TaylorParams(**params))["channel"].tolist() == expected


def test_query_heads_count_towards_the_head_they_share() -> None:
    """Rows of a key/value head of width 2 and its two query heads: positions are added up, heads are not mixed."""
    family = Family(0, "head", 2, (Member("q.weight", 0), Member("k.weight", 0)), 6, 0)
    found = unit_importance({"q.weight": torch.arange(8.0)[:, None], "k.weight": torch.zeros(4, 1)}, family, "element")
    # Query rows 0-3 belong to the first head: positions 0 and 2, and 1 and 3.
    assert found[0].tolist() == [[0 + 2, 1 + 3], [4 + 6, 5 + 7]]


def test_layer_taylor_by_hand() -> None:
    # |w g| of all tensors: 3 + 7 + 2 + 2 of `a`, 36 of its bias, 3 + 10 of `b`.
    assert layer_taylor.measure(pair(), LayerTaylorParams())["layer"].tolist() == [14 + 36 + 13]


def test_layer_taylor_of_a_model(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    spec = spec_of(
        calibrate=TEXT,
        prune={"method": "depth", "layers": 1},
        score={"method": "layer_taylor", "protect_first": 0, "protect_last": 0},
    )
    done = walk(spec, sources, tmp_path)
    windows_NT = text_of(spec, done.model, sources).windows_NT
    dense = load_file(tiny / "model.safetensors")
    expected = [0.0] * 3
    each = whole(tiny, windows_NT)
    for name in each[0]:
        gradient = torch.stack([window[name] for window in each]).mean(dim=0)
        expected[int(name.split(".")[2])] += float((dense[name] * gradient).abs().sum())
    scores = done.checkpoint.load_scores()
    assert [block["layer"][0] for block in scores] == pytest.approx(expected, rel=1e-4)


def test_salience_is_the_losss_change_of_a_parabola() -> None:
    """f(w) = g w + h w^2 / 2 with f(0) as removal: the second order is exact, and `mixed` has its sign."""
    weight, gradient_at_zero, curvature = torch.tensor(3.0), 2.0, 0.5
    gradient = gradient_at_zero + curvature * weight
    change = 0 - (gradient_at_zero * weight + curvature * weight.square() / 2)
    assert -weight_importance(weight, gradient, torch.tensor(curvature), "mixed") == change


class TestSaap:
    """Properties of the fusion and of the steadiness, after the closed form that the module states."""

    def blocks(self, parts: int = 5, spread: float = 0.3) -> list[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(3)
        found = []
        for _ in range(3):
            block: dict[str, Tensor] = {}
            for kind, units in (("head", 4), ("channel", 12)):
                element_U = 10 * torch.rand(units, generator=generator).double() + 0.1
                for form, values_U in (("element", element_U), ("vector", element_U * 0.4)):
                    noise_PU = 1 + spread * torch.rand(parts, units, generator=generator)
                    block[f"{kind}/{form}/parts"] = values_U * noise_PU
                    block[f"{kind}/{form}"] = values_U * (1 + torch.rand(units, generator=generator))
            found.append(block)
        return found

    def order(self, blocks: list[dict[str, Tensor]], kind: str = "channel", **params: Any) -> list[int]:
        scores = saap.score(blocks, SaapParams(**params))
        return torch.cat([block[kind] for block in scores]).argsort(stable=True).tolist()

    def test_the_closed_form_is_the_minimum(self) -> None:
        means = [torch.cat([b[f"channel/{form}"] for b in self.blocks()]).mean() for form in ("vector", "element")]
        for mean in means:
            variance = mean * torch.tensor([0.5, 0.99, 1.0, 1.01, 2.0])
            assert (mean / (2 * variance) + variance.log() / 2).argmin() == 2
        # With s^2 = E[I] both parts average 1/2, and the mean over a scope is 1.
        scores = saap.score(self.blocks(), SaapParams(stability=0))
        for kind in ("head", "channel"):
            assert float(torch.cat([block[kind] for block in scores]).mean()) == pytest.approx(1)

    def test_the_scale_of_either_importance_does_not_matter(self) -> None:
        usual, other = self.blocks(), self.blocks()
        for block in other:
            for name in [name for name in block if "/vector" in name]:
                block[name] = block[name] * 1000
        assert self.order(usual) == self.order(other)

    @pytest.mark.parametrize("order", ["first", "second", "mixed"])
    def test_vectors_are_worth_no_more_than_their_elements(self, order: Any) -> None:
        generator = torch.Generator().manual_seed(0)

        def drawn() -> dict[str, Tensor]:
            return {name: torch.randn(w.shape, generator=generator) for name, w in WEIGHTS.items()}

        gradients = [drawn() for _ in range(2)]
        squares = [{name: g.square() for name, g in part.items()} for part in gradients]
        block = DenseUnits(0, [PAIR], drawn(), gradients=gradients, squared_gradients=squares)
        found = saap.measure(block, SaapParams(parts=2, order=order))
        for suffix in ("", "/parts"):
            assert (found[f"channel/vector{suffix}"] >= 0).all()
            assert (found[f"channel/vector{suffix}"] <= found[f"channel/element{suffix}"]).all()

    @pytest.mark.parametrize("order", ["first", "second", "mixed"])
    def test_the_whole_is_what_taylor_measures(self, order: Any) -> None:
        block = DenseUnits(0, [PAIR], WEIGHTS, gradients=[GRADIENTS] * 2, squared_gradients=[SQUARES] * 2)
        found = saap.measure(block, SaapParams(parts=2, order=order))
        for form in ("element", "vector"):
            expected = taylor.measure(pair(), TaylorParams(order=order, form=form))["channel"]
            torch.testing.assert_close(found[f"channel/{form}"], expected)
            torch.testing.assert_close(found[f"channel/{form}/parts"], expected.expand(2, 2))

    @pytest.mark.parametrize("scope", ["model", "block"])
    def test_parts_that_agree_are_steady(self, scope: str) -> None:
        alike = self.blocks(spread=0.0)
        assert self.order(alike, scope=scope) == self.order(alike, scope=scope, stability=0)
        steady, plain = (saap.score(alike, SaapParams(scope=scope, stability=s)) for s in (1.0, 0.0))
        torch.testing.assert_close(steady[1]["head"], plain[1]["head"])
        assert self.order(self.blocks(), scope=scope, stability=10) != self.order(
            self.blocks(), scope=scope, stability=0
        )

    def test_steadiness_is_one_over_one_plus_the_relative_deviation(self) -> None:
        """Two units of one mean, one of them the same in all parts, the other 1 and 3: deviation sqrt(2) of 2."""
        importance_U, parts_PU = torch.tensor([2.0, 2.0]).double(), torch.tensor([[2.0, 1.0], [2.0, 3.0]]).double()
        names = [f"{kind}/{form}" for kind in ("head", "channel") for form in ("element", "vector")]
        block = dict.fromkeys(names, importance_U) | {f"{name}/parts": parts_PU for name in names}
        (found,) = saap.score([block], SaapParams(parts=2, stability=1))
        assert found["head"].tolist() == pytest.approx([1, 1 / (1 + math.sqrt(2) / 2)], rel=1e-5)
        (twice,) = saap.score([block], SaapParams(parts=2, stability=2))
        assert twice["head"][1] == pytest.approx((1 + math.sqrt(2) / 2) ** -2, rel=1e-5)

    @pytest.mark.parametrize("scope", ["model", "block"])
    def test_what_never_counts_goes_first(self, scope: str) -> None:
        blocks = self.blocks()
        # A block of far smaller importances, above whose level a block's own scope lifts all others.
        blocks[0] = {name: values * 1e-9 for name, values in blocks[0].items()}
        for name in ("element", "vector"):
            blocks[1][f"channel/{name}"][5] = 0
            blocks[1][f"channel/{name}/parts"][:, 5] = 0
        assert float(saap.score(blocks, SaapParams(scope=scope))[1]["channel"][5]) == 0

    def test_over_layers_all_units_of_a_block_are_damped_alike(self) -> None:
        blocks = self.blocks()
        damped, plain = (saap.score(blocks, SaapParams(axis="layers", stability=s)) for s in (1.0, 0.0))
        levels = [float(block["channel"].mean()) for block in plain]
        before = [levels[1], levels[0], levels[1]]
        for index in range(3):
            change = abs(levels[index] - before[index]) / ((levels[index] + before[index]) / 2)
            torch.testing.assert_close(damped[index]["channel"], plain[index]["channel"] / (1 + change))


def test_random_draws_differ_by_block_and_seed() -> None:
    def draw(block: int, seed: int) -> list[float]:
        return random.measure(DenseUnits(block, [PAIR], {}), RandomParams(seed=seed))["channel"].tolist()

    draws = [draw(block, seed) for block in range(4) for seed in (0, 1, 2**32 - 1)]
    assert len({tuple(values) for values in draws}) == 12
    assert draw(2, 1) == draw(2, 1)
