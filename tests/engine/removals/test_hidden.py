"""Hidden dimensions: which go, and that a model without them computes what it did with zeros in their place.

D = hidden size, B = batch, T = tokens, V = vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from tests.helpers.families import FAMILIES
from tests.helpers.small_models import SIZES, SaveModel, Walked, load, spec_of, walk
from workers.engine.architectures.layouts.llama import LAYOUT
from workers.engine.contracts.facts import Units
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.events import Silent
from workers.engine.model.loaded import load_model
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.removals.assemble import assemble
from workers.engine.removals.hidden import kept_dimensions
from workers.engine.sources.resolve import Sources

IDS_BT = torch.arange(100, 124).reshape(2, 12)


def hidden(sparsity: float = 0.25, score: str = "magnitude", **parts: Any) -> Any:
    prune = {"method": "hidden", "sparsity": sparsity} | parts.pop("prune", {})
    return spec_of(prune=prune, score={"method": score}, **parts)


def written(done: Walked, folder: Path) -> dict[str, Any]:
    assemble(done.spec, done.model, done.outcome, done.checkpoint, folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def kept_of(done: Walked) -> list[int]:
    return kept_dimensions(done.spec, Units((), done.checkpoint.load_scores()))


def masked(folder: Path, kept: list[int]) -> Any:
    """The dense model with zeros wherever something is written into the dimensions that go."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    gone_D = torch.ones(model.config.hidden_size, dtype=torch.bool)
    gone_D[kept] = False
    with torch.no_grad():
        model.get_input_embeddings().weight[:, gone_D] = 0
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[0].endswith(("o_proj", "down_proj")):
                parameter[gone_D] = 0
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_computes_what_the_masked_model_does(
    name: str, save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    folder = save_model("tiny", FAMILIES[name])
    done = walk(hidden(), sources, tmp_path / "walk")
    config = written(done, tmp_path / "out")
    assert config["hidden_size"] == len(kept_of(done)) == 36  # of 48
    # Stock: none of our code, none that lies beside the weights.
    cut = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, trust_remote_code=False).eval()
    with torch.no_grad():
        found_BTV, expected_BTV = cut(IDS_BT).logits, masked(folder, kept_of(done))(IDS_BT).logits
    # In exact arithmetic they are equal; float32 sums of 36 instead of 48 terms round otherwise.
    torch.testing.assert_close(found_BTV, expected_BTV, rtol=1e-4, atol=1e-5)
    assert expected_BTV.std() > 100 * (found_BTV - expected_BTV).abs().max()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
    assert torch.equal(
        cut.generate(IDS_BT, use_cache=True, **options), cut.generate(IDS_BT, use_cache=False, **options)
    )


def test_the_gains_make_the_difference(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    done = walk(hidden(), sources, tmp_path / "walk")
    config = written(done, tmp_path / "out")
    dense = json.loads((tiny / "config.json").read_text())
    assert config["rms_norm_eps"] == pytest.approx(dense["rms_norm_eps"] * 4 / 3)
    gain_D = load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]
    before_D = load_file(tiny / "model.safetensors")["model.norm.weight"]
    torch.testing.assert_close(gain_D, before_D[kept_of(done)] * (4 / 3) ** 0.5)


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", False), ("source", False)])
def test_gains_of_a_bfloat16_model_are_rounded_once_and_only_where_the_result_is(
    dtype: str, exact: bool, tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    before_D = 1 + torch.rand(32, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(tiny / "model.safetensors").items()}
    tensors |= {name: before_D.clone() for name in tensors if name.endswith("norm.weight")}
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    spec = hidden(package={"dtype": dtype})
    done = walk(spec, sources, tmp_path / "walk")
    written(done, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    raised_D = before_D[kept_of(done)].float() * (32 / 24) ** 0.5
    assert not torch.equal(raised_D, raised_D.bfloat16().float())
    for name, tensor in found.items():
        if name.endswith("norm.weight"):
            assert torch.equal(tensor, raised_D if exact else raised_D.bfloat16()), name
    warned = [warning for warning in plan(spec, sources).warnings if "gains of the norms" in warning]
    assert [warning for warning in warned if "by up to 0.39% each" in warning] == warned
    assert bool(warned) != exact


@pytest.mark.parametrize("score", ["magnitude", "wanda", "taylor"])
def test_what_nobody_reads_or_writes_goes(score: str, tiny: Path, sources: Sources, tmp_path: Path) -> None:
    tensors = load_file(tiny / "model.safetensors")
    gone = [3, 4, 17, 31]
    for name, tensor in tensors.items():
        axis = LAYOUT.hidden_axis(name)
        if axis is not None and tensor.dim() == 2:
            tensor.index_fill_(axis, torch.tensor(gone), 0)
    save_file(tensors, tiny / "model.safetensors", metadata={"format": "pt"})
    parts = {} if score == "magnitude" else {"calibrate": TEXT}
    done = walk(hidden(4 / 32, score, **parts), sources, tmp_path)
    assert sorted({*range(32)} - {*kept_of(done)}) == gone


TEXT = {"dataset": "calibration.txt", "samples": 4, "sequence_length": 32}


def test_every_tensor_of_the_model_is_told_apart(tiny: Path) -> None:
    """By hand: which axis is as long as the hidden vector, where only one is."""
    for name, tensor in load_file(tiny / "model.safetensors").items():
        sides = [axis for axis, size in enumerate(tensor.shape) if size == 32]
        if len(sides) == 1:
            assert LAYOUT.hidden_axis(name) == sides[0], name
    assert LAYOUT.hidden_axis("model.layers.0.self_attn.q_proj.bias") is None
    assert LAYOUT.hidden_axis("model.layers.0.self_attn.o_proj.bias") == 0
    assert LAYOUT.hidden_axis("model.layers.0.self_attn.q_norm.weight") is None


@pytest.mark.parametrize("name", ["llama-tied", "qwen2", "qwen3"])
def test_the_plan_is_what_happens(name: str, save_model: SaveModel, sources: Sources, tmp_path: Path) -> None:
    save_model("tiny", FAMILIES[name])
    spec = hidden(0.3)
    planned = plan(spec, sources)
    written(walk(spec, sources, tmp_path / "walk"), tmp_path / "out")
    loaded = load_model(tmp_path / "out", torch.device("cpu"), torch.float32)
    assert planned.parameters_after == sum(parameter.numel() for parameter in loaded.parameters())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert planned.bytes_after == sum(tensor.nbytes for tensor in tensors.values())
    assert {layer.target_sparsity for layer in planned.layers} == {1 - 34 / 48}
    assert not any("stays" in warning for warning in planned.warnings)
    assert all(runtime.loads and runtime.faster and "trust" not in runtime.note for runtime in planned.runtimes)


def test_the_report_counts_what_went(tiny: Path, sources: Sources, tmp_path: Path) -> None:
    report = compress(hidden(), tmp_path, sources, Silent(), tmp_path / "checkpoint")
    assert report.sparsity == 0.25
    assert {layer.sparsity for layer in report.layers} == {0.25}
    assert "of the hidden dimensions were cut off" in (tmp_path / "model" / "README.md").read_text()
    page = (tmp_path / "model" / "report.html").read_text()
    assert ("Sparsity of each layer" in page, "Shape of each block" in page) == (True, False)


class TestRefuses:
    def test_families_that_compute_with_the_number(self, save_model: SaveModel, sources: Sources) -> None:
        save_model("tiny", Gemma2Config(**SIZES))
        for refusing in (plan, load):
            with pytest.raises(UnsupportedModel, match="only from llama") as error:
                refusing(hidden(), sources)
            assert (error.value.field, bool(error.value.hint)) == ("/model/id", True)

    def test_biases_where_no_config_can_say_it(self, save_model: SaveModel, sources: Sources) -> None:
        save_model("tiny", LlamaConfig(**SIZES, attention_bias=True))
        with pytest.raises(UnsupportedModel, match="do not divide the hidden size"):
            plan(hidden(1 / 32), sources)

    def test_a_multiple_of_more_than_there_are(self, tiny: Path, sources: Sources) -> None:
        for refusing in (plan, load):
            with pytest.raises(InvalidSpec) as error:
                refusing(hidden(prune={"multiple_of": 128}), sources)
            assert error.value.field == "/prune/multiple_of"

    def test_groups_that_do_not_divide_what_is_left(self, tiny: Path, sources: Sources) -> None:
        tune = {"method": "group", "group_size": 16, "dataset": "calibration.txt", "steps": 2, "sequence_length": 32}
        with pytest.raises(InvalidSpec) as error:
            plan(hidden(tune=tune), sources)
        assert error.value.field == "/tune/group_size"
        assert plan(hidden(0.5, tune=tune), sources).parameters_after is not None

    @pytest.mark.parametrize(
        "parts",
        [{"allocate": {"method": "owl"}}, {"score": "block_influence"}, {"score": "saap"}, {"prune": {"sparsity": 1}}],
    )
    def test_by_the_spec(self, parts: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            hidden(calibrate=TEXT, **parts)
