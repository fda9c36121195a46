"""Experts merged into others: which goes into which, what becomes of their weights, and what the report says.

T = tokens, E = experts, I = channels of an expert.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.helpers.mixtures import EXPERTS, mixture_module, router_of, save
from tests.helpers.small_models import load, spec_of, text_of
from workers.engine.contracts.facts import Merge
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.removals.merging import merges_of
from workers.engine.report import Report
from workers.engine.reporting.page import render
from workers.engine.sources.resolve import Sources
from workers.engine.store.checkpoint import Checkpoint

HALF = {"method": "experts", "experts": 4}


def spec(merge: bool = True, **parts: Any) -> Any:
    text = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32}
    return spec_of(
        **{"calibrate": text, "score": {"method": "expert_frequency"}, "prune": HALF | {"merge": merge}} | parts
    )


def run(asked: Any, sources: Sources, folder: Path, checkpoint: str = "checkpoint") -> Report:
    return compress(asked, folder, sources, Silent(), folder / checkpoint)


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model/model.safetensors")


class TestMergesOf:
    def test_into_the_kept_expert_of_the_most_similar_logits_by_tokens(self) -> None:
        logits_TE = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 4.0, 0.1, 1.0]], dtype=torch.float64)
        tokens_E = torch.tensor([30.0, 50.0, 10.0, 50.0], dtype=torch.float64)
        found = merges_of(7, [0, 1], tokens_E, logits_TE.T @ logits_TE)
        assert found == [Merge(7, 2, 0, 10 / 40), Merge(7, 3, 1, 50 / 100)]

    def test_several_share_one(self) -> None:
        logits_TE = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
        tokens_E = torch.tensor([5.0, 1.0, 4.0], dtype=torch.float64)
        assert [m.weight for m in merges_of(0, [0], tokens_E, logits_TE.T @ logits_TE)] == [0.1, 0.4]

    def test_experts_without_tokens_change_nothing_and_ties_go_to_the_first(self) -> None:
        found = merges_of(0, [0, 1], torch.zeros(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64))
        assert found == [Merge(0, 2, 0, 0.0), Merge(0, 3, 0, 0.0)]

    def test_nothing_goes(self) -> None:
        assert merges_of(0, [0, 1], torch.ones(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)) == []


def permuted_copies(family: str, folder: Path) -> None:
    """Every expert of every block becomes the first with its channels in another order, biases too."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for block in range(len(model.model.layers)):
        experts = mixture_module(model, block).experts
        width = experts.down_proj.shape[1 if family != "mixtral" else 2]
        for expert in range(1, EXPERTS):
            order_I = torch.randperm(width)
            # gate and up one after the other, or in turn
            both = torch.cat([order_I, order_I + width])
            if family == "gpt_oss":
                both = torch.stack([2 * order_I, 2 * order_I + 1], dim=1).flatten()
            with torch.no_grad():
                for name, tensor in experts.named_parameters():
                    transposed = family != "mixtral" and not name.endswith("bias")
                    first = tensor[0].T if transposed else tensor[0]
                    if name.startswith("gate_up"):
                        changed = first[both]
                    elif name.endswith("bias"):
                        changed = first
                    else:
                        changed = first[:, order_I]
                    tensor[expert] = changed.T if transposed else changed
    model.save_pretrained(folder)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "llama4_text"])
def test_a_permuted_copy_merges_exactly(family: str, sources: Sources, tmp_path: Path) -> None:
    """Merged into experts that compute the same, nothing differs from dropping."""
    folder = save(family, sources.models_dir / "tiny")
    if family == "gpt_oss":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for name, tensor in model.named_parameters():
            if name.endswith("proj_bias"):
                tensor.data.normal_()
        model.save_pretrained(folder)
    permuted_copies(family, folder)
    merged = run(spec(), sources, tmp_path / "merged")
    run(spec(merge=False), sources, tmp_path / "dropped")
    assert any(0 < merge.weight < 1 for merge in merged.merges)
    dropped = weights(tmp_path / "dropped")
    for name, tensor in weights(tmp_path / "merged").items():
        torch.testing.assert_close(tensor, dropped[name], rtol=1e-5, atol=1e-6)


@pytest.fixture
def mixtral(sources: Sources) -> Path:
    return save("mixtral", sources.models_dir / "tiny")


@pytest.mark.parametrize("number", [0, 1])
def test_beside_a_plain_program(number: int, mixtral: Path, sources: Sources, tmp_path: Path) -> None:
    """Tokens and logits by hooks on transformers' model, and the average of modules' weights; of the last block too."""
    report = run(spec(), sources, tmp_path)
    text = text_of(spec(), load(spec(), sources), sources)
    dense = AutoModelForCausalLM.from_pretrained(mixtral, dtype=torch.float32).eval()
    block, logits = mixture_module(dense, number), []
    router_of(block).register_forward_hook(lambda _, __, output: logits.append(output[0]))
    with torch.no_grad():
        dense.model(text.windows_NT)
    logits_TE = torch.cat(logits).flatten(0, -2)
    tokens_E = torch.bincount(logits_TE.topk(2).indices.flatten(), minlength=EXPERTS).float()
    kept = sorted(tokens_E.argsort(descending=True, stable=True)[:4].tolist())
    into = {
        expert: max(kept, key=lambda k: float(torch.cosine_similarity(logits_TE[:, expert], logits_TE[:, k], dim=0)))
        for expert in range(EXPERTS)
        if expert not in kept
    }
    found = {merge.expert: merge for merge in report.merges if merge.block == number}
    assert {expert: merge.into for expert, merge in found.items()} == into
    result = mixture_module(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32), number)
    torch.testing.assert_close(result.gate.weight, block.gate.weight[kept], rtol=0, atol=0)
    gate_up, down = block.experts.gate_up_proj.detach(), block.experts.down_proj.detach()
    gate, up = gate_up.chunk(2, dim=1)
    for place, stays in enumerate(kept):
        group = [stays, *(expert for expert, target in into.items() if target == stays)]
        share = tokens_E[group] / tokens_E[group].sum()
        mean_up, mean_down = torch.zeros_like(up[0]), torch.zeros_like(down[0])
        for weight, expert in zip(share, group, strict=True):
            cost = gate[stays] @ gate[expert].T + up[stays] @ up[expert].T + down[stays].T @ down[expert]
            order = linear_sum_assignment(cost.numpy(), maximize=True)[1]
            mean_up += weight * up[expert][order]
            mean_down += weight * down[expert][:, order]
            if expert != stays:
                assert found[expert].weight == pytest.approx(float(weight))
        torch.testing.assert_close(result.experts.gate_up_proj[place].chunk(2)[1], mean_up, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.experts.down_proj[place], mean_down, rtol=1e-5, atol=1e-6)


def test_blocks_made_again_and_another_type(mixtral: Path, sources: Sources, tmp_path: Path) -> None:
    report = run(spec(), sources, tmp_path)
    first = (tmp_path / "model/model.safetensors").read_bytes()
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    assert len(checkpoint.load_json("merges")) == 4 * 2
    checkpoint.forget_result()
    assert run(spec(), sources, tmp_path).merges == report.merges
    assert (tmp_path / "model/model.safetensors").read_bytes() == first
    small = run(spec(package={"dtype": "bfloat16"}), sources, tmp_path, "other")
    assert small.merges == report.merges
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.bfloat16}


def test_the_report_says_which_went_into_which(mixtral: Path, sources: Sources, tmp_path: Path) -> None:
    asked = spec(score={"method": "random"}, prune=HALF | {"merge": True, "skip": False})
    report = run(asked, sources, tmp_path)
    assert len({(merge.block, merge.expert) for merge in report.merges}) == 4 * 2
    assert all(merge.expert != merge.into and 0 < merge.weight < 1 for merge in report.merges)
    page = render(report)
    assert "were merged into the others" in page
    assert "Which expert went into which" in page
    assert {check.against for check in report.checks} == {"masked dense model", "walked model"}


def test_plan_and_refusal(mixtral: Path, sources: Sources) -> None:
    merged, dropped = plan(spec(), sources), plan(spec(merge=False), sources)
    assert merged.parameters_after == dropped.parameters_after
    assert merged.elapsed_s > dropped.elapsed_s
    with pytest.raises(ValidationError, match="`merge` of prune `experts` looks at activations"):
        spec(score={"method": "random"}, calibrate=None)
