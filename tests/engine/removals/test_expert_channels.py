"""Channels cut out of the experts of tiny mixtures: the result computes as the dense one with zeros in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.families.of_experts import with_narrow_experts
from tests.families.sides import Side, Wrong
from tests.helpers.mixtures import EXPERTS, save
from tests.helpers.small_models import spec_of, walk
from workers.engine.architectures.expert_widths import entries
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.removals.assemble import assemble
from workers.engine.sources.resolve import Sources, resolve_model

BACKENDS = ("eager", "grouped_mm", "batched_mm")
IDS_BT = torch.arange(2 * 24).reshape(2, 24) * 7 % 101


def spec(channels: int = 8, **parts: Any) -> Any:
    prune = {"method": "expert_channels", "channels": channels, "compensate": False} | parts.pop("prune", {})
    prune = {name: value for name, value in prune.items() if value is not None}
    return spec_of(**{"calibrate": None, "score": {"method": "magnitude"}, "prune": prune} | parts)


def with_biases(folder: Path) -> Path:
    """Random numbers for what transformers begins with zeros."""
    tensors = load_file(folder / "model.safetensors")
    drawn = torch.Generator().manual_seed(1)
    for name in sorted(name for name in tensors if name.endswith("proj_bias")):
        tensors[name].normal_(std=0.1, generator=drawn)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def result_of(asked: Any, sources: Sources, folder: Path) -> Path:
    walked = walk(asked, sources, folder)
    assemble(walked.spec, walked.model, walked.outcome, walked.checkpoint, folder / "model")
    return folder / "model"


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("mixtral", {"expert_channel": "intermediate_size"}),
        ("qwen2_moe", {"expert_channel": "moe_intermediate_size", "shared_channel": "shared_expert_intermediate_size"}),
        ("deepseek_v3", {"expert_channel": "moe_intermediate_size", "shared_channel": "moe_intermediate_size"}),
        ("gpt_oss", {"expert_channel": "intermediate_size"}),
        ("granitemoe", {"expert_channel": "intermediate_size"}),
        ("hunyuan_v1_moe", {"expert_channel": "intermediate_size", "shared_channel": "intermediate_size"}),
        ("llama4_text", {"expert_channel": "intermediate_size", "shared_channel": "intermediate_size"}),
    ],
)
class TestFamilies:
    def test_the_config_entry_of_each_width_is_known(self, family: str, said: dict[str, str], sources: Sources) -> None:
        save(family, sources.models_dir / "tiny")
        source = resolve_model(ModelRef(id="tiny"), sources)
        assert entries(recognise(source.config, source.stored), source.config, source.tensors) == said

    def test_cut_is_masked_on_every_backend(
        self, family: str, said: dict[str, str], sources: Sources, tmp_path: Path
    ) -> None:
        dense = with_biases(save(family, sources.models_dir / "tiny"))
        result = result_of(spec(8), sources, tmp_path)
        with_narrow_experts(Side(dense), Side(result))
        assert json.loads((result / "config.json").read_text())[said["expert_channel"]] == 8
        logits: list[Tensor] = []
        for backend in BACKENDS if family != "llama4_text" else (None,):
            model = AutoModelForCausalLM.from_pretrained(result, dtype=torch.float32).eval()
            if backend is not None:
                model.set_experts_implementation(backend)
            with torch.no_grad():
                logits.append(model(input_ids=IDS_BT, use_cache=False).logits)
        for found in logits[1:]:
            torch.testing.assert_close(found, logits[0], rtol=1e-4, atol=1e-5)


def test_channels_that_compute_nothing_go_and_cost_nothing(sources: Sources, tmp_path: Path) -> None:
    """Of each expert another third: its columns of w2 are zero, and its rows of w1 and w3 nearly."""
    folder = save("mixtral", sources.models_dir / "tiny")
    tensors = load_file(folder / "model.safetensors")
    idle: dict[str, list[int]] = {}
    for name in [name for name in tensors if name.endswith("w2.weight")]:
        expert = name.removesuffix("w2.weight")
        idle[expert] = torch.randperm(24, generator=torch.Generator().manual_seed(len(idle)))[:8].sort().values.tolist()
        tensors[name][:, idle[expert]] = 0
        for other in ("w1", "w3"):
            tensors[f"{expert}{other}.weight"][idle[expert]] *= 1e-6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    result = result_of(spec(16), sources, tmp_path)
    left = load_file(result / "model.safetensors")
    for expert, gone in idle.items():
        kept = [channel for channel in range(24) if channel not in gone]
        assert torch.equal(left[f"{expert}w1.weight"], tensors[f"{expert}w1.weight"][kept])
        assert torch.equal(left[f"{expert}w2.weight"], tensors[f"{expert}w2.weight"][:, kept])
    logits = []
    for model in (folder, result):
        with torch.no_grad():
            logits.append(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()(IDS_BT).logits)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-5, atol=1e-6)
    same = {name for name in tensors if ".experts." not in name}
    assert all(torch.equal(left[name], tensors[name]) for name in same)  # routers, attention, norms


@pytest.mark.parametrize(("family", "score"), [("deepseek_v3", "wanda"), ("gpt_oss", "taylor")])
def test_what_went_is_made_up_for_by_the_tokens_of_each_expert(
    family: str, score: str, sources: Sources, tmp_path: Path
) -> None:
    """Through the whole job, which compares its result with the masked dense model and with the walk."""
    dense = with_biases(save(family, sources.models_dir / "tiny"))
    text = {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32}
    asked = spec(8, calibrate=text, score={"method": score}, prune={"compensate": True})
    report = compress(asked, tmp_path / "job", sources, Silent(), tmp_path / "job/checkpoint")
    assert max(check.difference for check in report.checks) < 1e-4
    readers = [layer for layer in report.layers if layer.reads == "expert_channel"]
    assert {layer.shape[1] for layer in readers} == {8}
    assert sum(layer.tokens or 0 for layer in readers if layer.block == 1) == 8 * 32 * 2
    with pytest.raises(Wrong, match="no part of the dense"):  # what stays was changed
        with_narrow_experts(Side(dense), Side(tmp_path / "job/model"))


def test_the_plan_knows_the_size_of_the_result(sources: Sources, tmp_path: Path) -> None:
    save("qwen2_moe", sources.models_dir / "tiny")
    asked = spec(prune={"channels": None, "sparsity": 0.5, "shared_channels": 12})
    foreseen, folder = plan(asked, sources), result_of(asked, sources, tmp_path)
    tensors, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    assert foreseen.parameters_after == sum(tensor.numel() for tensor in tensors.values())
    assert (config["moe_intermediate_size"], config["shared_expert_intermediate_size"]) == (8, 12)
    assert config["intermediate_size"] == 24  # of blocks without experts
    # Of two blocks, each expert loses 8 channels and each shared MLP 8, of three vectors of 32.
    assert foreseen.parameters - foreseen.parameters_after == 2 * (EXPERTS + 1) * 8 * 3 * 32


@pytest.mark.parametrize(
    ("family", "prune", "field", "says"),
    [
        ("mixtral", {"channels": 11}, "/prune/channels", "no multiple of 8: grouped products"),
        ("mixtral", {"channels": 25}, "/prune/channels", "25 channels of experts are to stay, and there are 24"),
        ("mixtral", {"channels": None, "sparsity": 0.9}, "/prune/channel_multiple", "the nearest multiple of 8"),
        ("qwen2_moe", {"shared_channels": 21}, "/prune/shared_channels", "21 channels of shared MLPs"),
        ("deepseek_v3", {"shared_channels": 12}, "/prune/shared_channels", "`moe_intermediate_size` says their width"),
    ],
)
def test_what_the_config_cannot_say_is_refused_by_the_plan(
    family: str, prune: dict[str, Any], field: str, says: str, sources: Sources
) -> None:
    save(family, sources.models_dir / "tiny")
    with pytest.raises((InvalidSpec, UnsupportedModel), match=says) as refused:
        plan(spec(prune=prune), sources)
    assert refused.value.field == field


@pytest.mark.parametrize(("kept", "hint"), [(11, "keep 16"), (18, "keep 16"), (7, "keep 8")])
def test_the_number_that_is_named_instead_can_stay(kept: int, hint: str, sources: Sources) -> None:
    save("mixtral", sources.models_dir / "tiny", intermediate_size=20)
    with pytest.raises(InvalidSpec) as refused:
        plan(spec(kept), sources)
    assert refused.value.hint == hint


def test_a_dense_model_has_no_experts(tiny: Path, sources: Sources) -> None:
    with pytest.raises(UnsupportedModel, match="no experts") as refused:
        plan(spec(), sources)
    assert refused.value.field == "/prune"


def test_structured_says_where_the_channels_of_a_mixture_are(sources: Sources) -> None:
    save("mixtral", sources.models_dir / "tiny")
    with pytest.raises(UnsupportedModel, match="lie inside experts: remove them with `expert_channels`"):
        plan(spec_of(score={"method": "random"}, prune={"method": "structured", "sparsity": 0.25}), sources)


def test_the_check_can_fail(sources: Sources, tmp_path: Path) -> None:
    dense = save("olmoe", sources.models_dir / "tiny")
    result = result_of(spec(16), sources, tmp_path)
    file = result / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.experts.3.down_proj.weight"
    tensors[name] = tensors[name].roll(1, dims=1)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(Wrong, match="no part of the dense"):
        with_narrow_experts(Side(dense), Side(result))
