"""A mixture that skips experts: the same as with weights of zero, for less work. T = tokens, K = experts of a token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.mixtures import mixture_module, save, tiny
from tests.helpers.small_models import spec_of
from workers.engine.architectures.skipping import BETAS, SKIPPING, SKIPS
from workers.engine.artifact import modeling_skipping
from workers.engine.errors import UnsupportedModel
from workers.engine.events import Silent
from workers.engine.model.loaded import load_model, load_result
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.reporting import wording
from workers.engine.sources.resolve import Sources

TOKENS = torch.arange(2 * 24).reshape(2, 24) * 7 % 101


def skipping(family: str, beta: float) -> tuple[Any, Any]:
    """(stock model, the one of the same weights that skips)."""
    stock = tiny(family)
    config = AutoConfig.for_model(**stock.config.to_dict() | {BETAS: {"0": beta, "1": beta}})
    own = getattr(modeling_skipping, f"Skipping{SKIPS[family]}ForCausalLM")._from_config(config, dtype=torch.float32)
    own.load_state_dict(stock.state_dict())
    return stock, own.eval()


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


@pytest.mark.parametrize("family", SKIPS)
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
class TestSkipping:
    def test_no_threshold_no_change(self, family: str, implementation: str) -> None:
        stock, own = skipping(family, 0.0)
        for model in (stock, own):
            model.set_experts_implementation(implementation)
        assert torch.equal(logits(own), logits(stock))

    def test_is_the_model_with_weights_of_zero(self, family: str, implementation: str) -> None:
        stock, own = skipping(family, 0.6)
        own.set_experts_implementation(implementation)
        shares: list[float] = []

        def zeroed(_: Any, __: Any, output: Any) -> Any:
            first, weight_TK, index_TK = output
            skipped_TK = weight_TK < 0.6 * weight_TK.max(dim=1, keepdim=True).values
            shares.append(skipped_TK.float().mean().item())
            left_TK = weight_TK * ~skipped_TK
            return first, left_TK * weight_TK.sum(dim=1, keepdim=True) / left_TK.sum(dim=1, keepdim=True), index_TK

        for block in range(2):
            mixture_module(stock, block).gate.register_forward_hook(zeroed)
        torch.testing.assert_close(logits(own), logits(stock), rtol=1e-4, atol=1e-5)
        assert all(0.1 < share < 0.5 for share in shares)


def test_skipped_experts_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    linear = functional.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if weight.shape == (48, 32):  # of gate and up
            rows.append(len(x))
        return linear(x, weight, bias)

    monkeypatch.setattr(functional, "linear", counted)
    found = {}
    for beta in (0.0, 0.6, 2.0):
        _, own = skipping("mixtral", beta)
        own.set_experts_implementation("eager")
        rows.clear()
        logits(own)
        found[beta] = sum(rows)
    pairs = 2 * 2 * TOKENS.numel()
    assert found[0.0] == pairs
    assert found[2.0] == pairs / 2
    assert pairs / 2 < found[0.6] < pairs


def test_a_job_brings_thresholds_and_the_file(sources: Sources, tmp_path: Path) -> None:
    save("mixtral", sources.models_dir / "tiny")
    spec = spec_of(
        score={"method": "reap"},
        prune={"method": "experts", "experts": 6, "skip": True},
        evaluate=[{"method": "perplexity", "dataset": "heldout.txt", "sequence_length": 32, "samples": 4}],
    )
    assert [runtime.loads for runtime in plan(spec, sources).runtimes] == [True, False]
    report = compress(spec, tmp_path, sources, Silent(), tmp_path / "checkpoint")
    folder = tmp_path / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config[BETAS] == report.betas
    assert config["num_local_experts"] == 6
    assert (folder / SKIPPING).read_bytes() == Path(modeling_skipping.__file__).read_bytes()
    assert wording.brings_code(report)
    assert "are skipped" in " ".join(wording.conditions(report))
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    loaded = [load(folder, torch.device("cpu"), torch.float32) for load in (load_result, load_model)]
    assert torch.equal(logits(loaded[0]), logits(loaded[1]))
    assert not torch.equal(logits(loaded[0]), logits(stock))
    skipped: list[Tensor] = []
    for block in loaded[0].model.layers:
        block.mlp.experts.register_forward_pre_hook(lambda _, args: skipped.append(args[1] == 6))
    logits(loaded[0])
    assert all(mask.any() for mask in skipped)


def test_families_without_a_file_are_refused(sources: Sources) -> None:
    save("glm4_moe", sources.models_dir / "tiny")
    spec = spec_of(score={"method": "reap"}, prune={"method": "experts", "experts": 6, "skip": True})
    with pytest.raises(UnsupportedModel, match="no modelling file") as refused:
        plan(spec, sources)
    assert refused.value.field == "/prune/skip"
