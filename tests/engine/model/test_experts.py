"""Mixtures watched, and narrowed to some experts, in transformers' own modules.

T = tokens, E = experts, K = experts that a token is sent to, D = hidden size.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.mixtures import EXPERTS, FAMILIES, mixture_module, router_of, tiny
from workers.engine.model.expert_facts import squared_changes
from workers.engine.model.experts import Mixture, Routed, ScaledInputs

KEPT = [0, 2, 3, 4, 6, 7]
"""As many of each of two groups."""
AXES = ("weight", "bias", "wg.weight", "e_score_correction_bias")


def mixture_in(model: Any) -> Mixture:
    router, experts = router_of(mixture_module(model)), mixture_module(model).experts
    own = {name for name, _ in (*router.named_parameters(), *router.named_buffers())}
    axes = {name: 0 for name in AXES if name in own}
    if "moe_statics.e_score_correction_bias" in own:
        axes["moe_statics.e_score_correction_bias"] = 1
    kind = Mixture if hasattr(experts, "has_gate") else ScaledInputs
    return kind(router, experts, EXPERTS, axes)


def passed(model: Any, tokens: Tensor, mixture: Mixture) -> tuple[Tensor, list[Routed], list[Tensor]]:
    routed: list[Routed] = []
    sums: list[Tensor] = []
    with torch.no_grad(), mixture.watched(routed.append, sums.append):
        logits = model(input_ids=tokens, use_cache=False).logits
    return logits, routed, sums


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.arange(2 * 24).reshape(2, 24) * 7 % 101


@pytest.mark.parametrize("model_type", FAMILIES)
class TestMixture:
    def test_weights_and_outputs_are_those_of_the_block(self, model_type: str, tokens: Tensor) -> None:
        model = tiny(model_type)
        mixture = mixture_in(model)
        with torch.no_grad():
            plain = model(input_ids=tokens, use_cache=False).logits
        logits, (routed,), (sum_TD,) = passed(model, tokens, mixture)
        assert torch.equal(logits, plain)
        assert "forward" not in vars(mixture.router) | vars(mixture.experts)
        with torch.no_grad():
            ((part, output_TKD),) = mixture.outputs(routed.hidden_TD, routed.index_TK)
        assert part == slice(0, tokens.numel())
        weighted_TD = (output_TKD * routed.weight_TK.unsqueeze(2)).sum(dim=1)
        torch.testing.assert_close(weighted_TD, sum_TD, rtol=1e-4, atol=1e-6)
        assert len(routed.index_TK.unique()) > 3

    def test_only_some_experts_is_the_model_without_the_others(self, model_type: str, tokens: Tensor) -> None:
        model = tiny(model_type)
        mixture = mixture_in(model)
        with mixture.only(KEPT):
            logits, (routed,), _ = passed(model, tokens, mixture)
        assert {*routed.index_TK.unique().tolist()} <= {*KEPT}
        cut_out(mixture)
        if (bias_E := getattr(mixture_module(model), "e_score_correction_bias", None)) is not None:
            mixture_module(model).e_score_correction_bias = bias_E[KEPT]
        with torch.no_grad():
            cut = model(input_ids=tokens, use_cache=False).logits
        torch.testing.assert_close(logits, cut, rtol=1e-5, atol=1e-6)

    def test_the_change_without_experts_is_that_of_their_outputs(self, model_type: str, tokens: Tensor) -> None:
        model = tiny(model_type)
        mixture, gone = mixture_in(model), [1, 5]
        _, (routed,), (dense_TD,) = passed(model, tokens, mixture)
        with mixture.only(KEPT):
            _, _, (left_TD,) = passed(model, tokens, mixture)
        expected_N = (left_TD - dense_TD).double().square().sum(dim=1).unflatten(0, (2, -1)).sum(dim=1)
        with torch.no_grad():
            found_NS = squared_changes(mixture, routed, [gone, []] if "deep" not in model_type else [gone, gone], 2)
            against_NS = squared_changes(mixture, routed, [gone], 2, dense_TD)
        torch.testing.assert_close(found_NS[:, 0], expected_N, rtol=1e-4, atol=1e-9)
        torch.testing.assert_close(against_NS[:, 0], expected_N, rtol=1e-3, atol=1e-7)
        assert model_type == "deepseek_v3" or found_NS[:, 1].max() == 0


def cut_out(mixture: Mixture) -> None:
    """Take the other experts out of the modules, as a checkpoint without them would build them."""
    for name, axis in mixture.axes.items():
        path, _, own = name.rpartition(".")
        module = mixture.router.get_submodule(path)
        part = getattr(module, own).detach()[(slice(None),) * axis + (KEPT,)]
        setattr(module, own, torch.nn.Parameter(part) if own in module._parameters else part)
    for name, tensor in [*mixture.experts.named_parameters()]:
        setattr(mixture.experts, name, torch.nn.Parameter(tensor.detach()[KEPT]))
    for module in (mixture.router, mixture.experts):
        module.num_experts = len(KEPT)
