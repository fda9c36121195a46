"""Blocks of several kinds in one model: which layers are pruned, what each reads, and what is never touched."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families.checkpoints import tiny_config
from tests.families.checkpoints import tiny_model as made
from workers.engine.architectures.generation.shapes import saved
from workers.engine.architectures.kinds import refuse
from workers.engine.architectures.layouts import mixture
from workers.engine.architectures.mixers import LATENT, NOTHING, STATE
from workers.engine.architectures.recognise import recognise
from workers.engine.architectures.wrappers import WHOLE, decoder_config, in_wrapper, names_of, whole_config
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.model.input_statistics import _watched

STREAMS: dict[str, set[tuple[str, ...]]] = {
    "minicpm3": {("attention_input", "query_latent", "key_latent", "attention_output", "mlp_input", "mlp_hidden")},
    "qwen3_5_text": {
        ("state_input", "state_output", "mlp_input", "mlp_hidden"),
        ("attention_input", "attention_output", "mlp_input", "mlp_hidden"),
    },
    "mamba": {("state_input", "state_inner", "state_output")},
    "falcon_h1": {
        ("state_input", "state_output", "attention_input", "attention_output", "mlp_input", "mlp_hidden"),
    },
    "recurrent_gemma": {
        ("state_input", "state_output", "mlp_input", "mlp_hidden"),
        ("attention_input", "attention_output", "mlp_input", "mlp_hidden"),
    },
}


def tiny_model(model_type: str) -> Any:
    return made(tiny_config(model_type), AutoModelForCausalLM.from_config)


OF_STATE = ("A_log", "conv1d", "conv_1d", "dt_proj", "rg_lru", "dt_bias", ".D", "norm")


@pytest.mark.parametrize("model_type", STREAMS)
def test_what_each_kind_of_block_reads(model_type: str) -> None:
    model = tiny_model(model_type)
    stored = {name: TensorFacts("F32", shape) for name, shape in saved(model).items()}
    found = recognise(model.config.to_dict(), stored)
    assert {tuple(found.streams(block)) for block in range(found.blocks)} == STREAMS[model_type]
    assert not any(part in layer.name for layer in found.layers for part in OF_STATE)
    inside = {layer.writes for layer in found.layers} & {STATE, LATENT}
    assert inside == ({LATENT} if model_type == "minicpm3" else {STATE})


def test_the_layer_that_is_computed_first_shows_a_stream() -> None:
    """Falcon-H1 computes the MLP's second matrix before its gate: the order in a table is not that of every family."""
    model = tiny_model("falcon_h1")
    stored = {name: TensorFacts("F32", shape) for name, shape in saved(model).items()}
    found = recognise(model.config.to_dict(), stored)
    seen: list[str] = []
    block = model.model.layers[0]
    with _watched(block, found.block(0), found.layout, lambda stream, _: seen.append(stream), every=False):
        for _ in range(2):
            model(input_ids=torch.arange(4, 20)[None], use_cache=False)
    assert sorted(seen) == sorted(2 * list(found.streams(0)))


def test_a_part_may_be_missing() -> None:
    assert not NOTHING.layers
    assert not NOTHING.has_experts


class TestWrapper:
    CONFIG: ClassVar[dict[str, Any]] = {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 8},
        "vision_config": {"hidden_size": 4},
        "image_token_index": 9,
    }

    def test_the_decoder_is_seen_alone_and_the_rest_is_put_back(self) -> None:
        decoder = decoder_config(self.CONFIG)
        assert (decoder["model_type"], decoder["num_hidden_layers"]) == ("gemma3_text", 3)
        assert decoder["tie_word_embeddings"] is True  # as the class has it
        assert decoder["num_attention_heads"] > 0  # a default that old files leave out
        whole = whole_config({**decoder, "num_hidden_layers": 2, "dtype": "float32"})
        assert whole["text_config"]["num_hidden_layers"] == 2
        assert WHOLE not in whole["text_config"]
        assert "tie_word_embeddings" not in whole["text_config"]
        assert {name: whole[name] for name in ("model_type", "vision_config", "image_token_index")} == {
            name: self.CONFIG[name] for name in ("model_type", "vision_config", "image_token_index")
        }

    def test_only_decoders_of_known_families_are_let_in(self) -> None:
        refuse(self.CONFIG, ["config.json"])
        with pytest.raises(UnsupportedModel, match="multimodal"):
            refuse(self.CONFIG | {"model_type": "florence2"}, ["config.json"])

    def test_a_flat_config_stays_flat(self) -> None:
        config = {"model_type": "qwen2_5_vl", "hidden_size": 8, "num_hidden_layers": 3, "vision_config": {"depth": 2}}
        decoder = decoder_config(config)
        assert decoder["model_type"] == "qwen2_5_vl_text"
        assert "vision_config" not in decoder
        whole = whole_config({**decoder, "num_hidden_layers": 2})
        assert (whole["model_type"], whole["num_hidden_layers"]) == ("qwen2_5_vl", 2)
        assert whole["vision_config"] == {"depth": 2}

    @pytest.mark.parametrize(
        ("model_type", "decoder", "head", "tower"),
        [
            ("gemma3", "language_model.model", "language_model.lm_head", "vision_tower.layers.0.q"),
            ("qwen3_vl", "model.language_model", "lm_head", "model.visual.blocks.0.q"),
            ("qwen2_5_vl", "model", "lm_head", "visual.blocks.0.q"),
        ],
    )
    def test_names_in_files_and_inside(self, model_type: str, decoder: str, head: str, tower: str) -> None:
        stored = [f"{decoder}.layers.0.mlp.up_proj.weight", f"{decoder}.norm.weight", f"{head}.weight", tower]
        names = names_of({"model_type": model_type}, stored)
        inside = [names.inside(name) for name in stored]
        assert inside == ["model.layers.0.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight", tower]
        assert [names.in_files(name) for name in inside] == stored

    def test_paths_in_the_wrappers_class(self) -> None:
        layout = in_wrapper(mixture.LAYOUT, {WHOLE: {"model_type": "qwen3_vl_moe"}})
        for ours, theirs in (
            ("model", "model.language_model"),
            ("model.layers.2.mlp.gate", "model.language_model.layers.2.mlp.gate"),
            ("model.visual.merger", "model.visual.merger"),
            ("lm_head", "lm_head"),
        ):
            assert (layout.in_module(ours), layout.from_module(theirs)) == (theirs, ours)


def test_a_layout_is_of_no_other_family_by_its_parts() -> None:
    """Hybrids' layouts hold Llama's parts too, and must not take models of them."""
    model = tiny_model("llama")
    stored = {name: TensorFacts("BF16", shape) for name, shape in saved(model).items()}
    assert recognise(model.config.to_dict(), stored).layout.name == "Llama"
