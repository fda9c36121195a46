"""Experts dropped from tiny mixtures of several families: the result computes as the dense model whose router gives the
dropped experts -inf.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from tests.helpers.mixtures import EXPERTS, mixture_module, router_of, save
from tests.helpers.small_models import spec_of, walk
from workers.engine.errors import EngineError, InvalidSpec, NumericalFailure, UnsupportedModel
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.removals.assemble import assemble
from workers.engine.removals.experts import FewerExperts
from workers.engine.sources.resolve import Sources
from workers.engine.store.checkpoint import Checkpoint

SIX = {"method": "experts", "experts": 6}


def spec(score: str = "reap", **parts: Any) -> Any:
    text = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32}
    return spec_of(**{"calibrate": text, "score": {"method": score}, "prune": SIX} | parts)


@contextmanager
def masked(model: Any, kept: dict[int, Any]) -> Iterator[None]:
    """Routers whose logits, and correction terms, are -inf for dropped experts."""
    undo: list[Any] = []
    linear = functional.linear
    for block, experts in kept.items():
        around = mixture_module(model, block)
        gone = [expert for expert in range(EXPERTS) if expert not in experts]
        for module in (around, router_of(around)):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if "correction" in name:
                    tensor.data[..., gone] = -math.inf
        route = router_of(around).forward

        def forward(*args: Any, route: Any = route, gone: Any = gone) -> Any:
            functional.linear = lambda *given: linear(*given).index_fill(-1, torch.tensor(gone), -math.inf)
            try:
                return route(*args)
            finally:
                functional.linear = linear

        router_of(around).forward = forward
        undo.append(router_of(around))
    try:
        yield
    finally:
        for router in undo:
            del router.forward


@pytest.mark.parametrize(
    ("family", "score"),
    [
        ("mixtral", "naee"),
        ("qwen3_moe", "reap"),
        ("glm4_moe", "expert_frequency"),
        ("gpt_oss", "naee"),
        ("granitemoe", "reap"),
        ("ernie4_5_moe", "random"),
        ("llama4_text", "reap"),
    ],
)
def test_the_result_is_the_dense_model_with_the_dropped_experts_at_minus_infinity(
    family: str, score: str, sources: Sources, tmp_path: Path
) -> None:
    folder = save(family, sources.models_dir / "tiny")
    walked = walk(spec(score), sources, tmp_path)
    assemble(walked.spec, walked.model, walked.outcome, walked.checkpoint, tmp_path / "model")
    assert isinstance(walked.outcome, FewerExperts)
    ids_BT = torch.arange(2 * 24).reshape(2, 24) * 7 % 101
    logits: list[Tensor] = []
    for implementation in ("eager", "grouped_mm", "batched_mm") if family != "llama4_text" else (None,):
        result, loading = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", dtype=torch.float32, output_loading_info=True
        )
        assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        if implementation is not None:
            result.set_experts_implementation(implementation)
        with torch.no_grad():
            logits.append(result.eval()(input_ids=ids_BT, use_cache=False).logits)
    dense = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad(), masked(dense, dict(walked.outcome.kept)):
        expected = dense(input_ids=ids_BT, use_cache=False).logits
    for found in logits:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in result.parameters()) < sum(p.numel() for p in dense.parameters())
    reports = walked.reports(tmp_path / "reported")
    gone = [report for report in reports if report.shape == (0, 0)]
    assert len(gone) == 3 * 2 * len(walked.outcome.kept)
    assert {report.sparsity for report in gone} == {1}


def test_groups_lose_as_many_each(sources: Sources, tmp_path: Path) -> None:
    save("glm4_moe", sources.models_dir / "tiny")
    outcome = walk(spec(), sources, tmp_path).outcome
    assert isinstance(outcome, FewerExperts)
    for kept in outcome.kept.values():
        assert sum(expert < EXPERTS // 2 for expert in kept) == 3


@pytest.mark.parametrize(
    ("family", "parts", "field", "says"),
    [
        ("mixtral", {"prune": {"method": "experts", "experts": 1}}, "/prune", "a token is sent to 2"),
        ("mixtral", {"prune": {"method": "experts", "experts": 9}}, "/prune/experts", "a block has 8"),
        ("glm4_moe", {"prune": {"method": "experts", "experts": 5}}, "/prune", "2 groups"),
        ("glm4_moe", {"prune": {"method": "experts", "experts": 2}}, "/prune", "in 2 groups, those of the 1 chosen"),
        ("glm4_moe", {"score": "naee"}, "/score", "sets of experts"),
    ],
)
def test_what_cannot_be_routed_is_refused_by_the_plan(
    family: str, parts: dict[str, Any], field: str, says: str, sources: Sources
) -> None:
    save(family, sources.models_dir / "tiny")
    with pytest.raises(InvalidSpec, match=says) as refused:
        plan(spec(**parts), sources)
    assert refused.value.field == field


def test_a_dense_model_has_no_experts(tiny: Path, sources: Sources) -> None:
    with pytest.raises(UnsupportedModel, match="no experts") as refused:
        plan(spec(), sources)
    assert refused.value.field == "/prune"


@pytest.mark.parametrize("score", ["naee", "reap", "expert_frequency", "random"])
@pytest.mark.parametrize(
    "tensor", ["model.layers.1.self_attn.v_proj.weight", "model.layers.0.block_sparse_moe.experts.2.w2.weight"]
)
def test_a_broken_mixture_is_a_named_failure(score: str, tensor: str, sources: Sources, tmp_path: Path) -> None:
    file = save("mixtral", sources.models_dir / "tiny") / "model.safetensors"
    tensors = load_file(file)
    tensors[tensor][0, 0] = math.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(EngineError) as failure:
        walk(spec(score), sources, tmp_path)
    assert isinstance(failure.value, NumericalFailure)
    assert failure.value.hint
    assert Checkpoint(tmp_path / "checkpoint").finished_blocks() == 0


def test_the_plan_knows_the_size_of_the_result(sources: Sources, tmp_path: Path) -> None:
    save("qwen3_moe", sources.models_dir / "tiny")
    foreseen = plan(spec(), sources)
    walked = walk(spec(), sources, tmp_path)
    assemble(walked.spec, walked.model, walked.outcome, walked.checkpoint, tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    assert foreseen.parameters_after == sum(tensor.numel() for tensor in tensors.values())
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert (config["num_local_experts"], config["num_experts_per_tok"]) == (6, 2)


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "ernie4_5_moe"])
def test_routers_train_alone(family: str, sources: Sources, tmp_path: Path) -> None:
    save(family, sources.models_dir / "tiny")
    tune = {
        "method": "full", "train": "routers", "dataset": "calibration.txt", "sequence_length": 32, "steps": 4,
        "batch": 2, "holdout": 2, "evaluate_every": 2,
    }  # fmt: skip
    report = compress(spec(tune=tune), tmp_path / "tuned", sources, Silent(), tmp_path / "checkpoint")
    compress(spec(), tmp_path / "plain", sources, Silent(), tmp_path / "other")
    tuned, plain = (load_file(tmp_path / name / "model/model.safetensors") for name in ("tuned", "plain"))
    changed = {name for name, tensor in plain.items() if not torch.equal(tensor, tuned[name])}
    assert report.tune is not None
    assert report.tune.best_step == 0 or changed
    assert all("gate" in name or "router" in name for name in changed)
    trained = sum(tensor.numel() for name, tensor in plain.items() if name.endswith(("gate.weight", "router.weight")))
    biases = sum(tensor.numel() for name, tensor in plain.items() if name.endswith("router.bias"))
    assert report.tune.trained_parameters == trained + biases


def test_a_dense_model_has_no_routers_to_train(tiny: Path, sources: Sources) -> None:
    tune = {"method": "full", "train": "routers", "dataset": "calibration.txt", "sequence_length": 32}
    with pytest.raises(InvalidSpec, match="no routers") as refused:
        plan(spec_of(tune=tune), sources)
    assert refused.value.field == "/tune/train"
