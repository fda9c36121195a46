"""Blocks of several kinds in one model: which layers are pruned, what each reads, and what is never touched."""

from __future__ import annotations

import json
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.families.checkpoints import tiny_config
from tests.families.checkpoints import tiny_model as made
from tests.families.wrappers import wrapper_config
from workers.engine.architectures.architecture import Kind
from workers.engine.architectures.canonical import canonical_facts
from workers.engine.architectures.coupled import check_alone
from workers.engine.architectures.entries import check_config
from workers.engine.architectures.generation.shapes import saved
from workers.engine.architectures.kept_blocks import bound_to_numbers, entries_of_kept
from workers.engine.architectures.kinds import refuse
from workers.engine.architectures.layouts import mixture
from workers.engine.architectures.mixers import LATENT, NOTHING, STATE
from workers.engine.architectures.recognise import recognise
from workers.engine.architectures.wrappers import WHOLE, decoder_config, in_wrapper, names_of, whole_config
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.model.input_statistics import _watched
from workers.engine.model.loaded import skeleton
from workers.engine.removals.outcome import _refuse_shared

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


@pytest.mark.parametrize(
    ("model_type", "kind", "said"),
    [
        ("mixtral", "channel", "lie inside experts"),
        ("minicpm3", "head", "a space of lower rank"),
        ("mamba", "head", "a recurrent state, without heads"),
        ("gemma4_unified_text", "head", "a norm of heads of 512 dimensions, where others have 8"),
    ],
)
def test_why_no_units_of_a_kind_are_removed_alone(model_type: str, kind: Kind, said: str) -> None:
    model = tiny_model(model_type)
    stored = {name: TensorFacts("F32", shape) for name, shape in saved(model).items()}
    config = model.config.to_dict()
    found = recognise(config, stored)
    with pytest.raises(UnsupportedModel, match=said):
        check_alone(found, config, canonical_facts(found.layout, found.sizes, stored), [kind])


def test_a_share_of_the_root_of_the_number_of_blocks_stays() -> None:
    config = {"model_type": "minicpm3", "scale_depth": 1.4, "num_hidden_layers": 8}
    for kept in ([0, 7], [*range(8), 7]):
        scale = entries_of_kept(config, kept, (), 8)["scale_depth"]
        assert scale / len(kept) ** 0.5 == pytest.approx(1.4 / 8**0.5)
    assert bound_to_numbers(config) is None


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

    def test_a_wrapper_is_judged_by_its_decoders_config(self) -> None:
        text = {"model_type": "llama", "num_hidden_layers": 3}
        refuse({"model_type": "deepseek_vl_hybrid", "text_config": text}, ["config.json"])  # no hybrid of blocks
        with pytest.raises(UnsupportedModel, match="in both directions"):
            refuse({"model_type": "paligemma", "text_config": {"model_type": "gemma"}}, ["config.json"])

    def test_alone_it_is_saved_only_where_it_has_a_class_of_its_own(self) -> None:
        for text, remedy in (("qwen2", "save its language model alone"), ("mllama_text_model", "use a model of a")):
            with pytest.raises(UnsupportedModel) as found:
                refuse({"model_type": "voxtral", "text_config": {"model_type": text}}, ["config.json"])
            assert str(found.value.hint).startswith(remedy)

    @pytest.mark.parametrize(("section", "said"), [([1, 1, 2], None), ([1, 1, 1], "4 pairs"), ([1, 1, 2.0], "whole")])
    def test_pairs_of_dimensions_of_each_axis_of_a_position(self, section: list[Any], said: str | None) -> None:
        rope = {"type": "mrope", "mrope_section": section}  # as Qwen's own files say it
        sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = decoder_config({"model_type": "qwen2_5_vl", "rope_scaling": rope, "num_hidden_layers": 2, **sizes})
        if said is None:
            check_config(config)
        else:
            with pytest.raises(UnsupportedModel, match=said):
                check_config(config)

    def test_towers_are_not_built_and_the_device_is_not_theirs(self) -> None:
        config = json.loads(wrapper_config("idefics3").to_json_string(use_diff=False))
        model = skeleton(decoder_config(config), torch.device("cpu"), torch.float32)
        beside = {name for name, _ in model.named_parameters()} - {"lm_head.weight"}
        assert beside
        assert all(name.startswith("model.text_model.") for name in beside)
        assert model.model.device.type == "cpu"

    def test_a_width_that_another_part_shares_stays(self) -> None:
        before = {"model_type": "mistral", "intermediate_size": 48, WHOLE: {"model_type": "idefics2"}}
        _refuse_shared(before, before | {"num_hidden_layers": 2}, "/prune")
        with pytest.raises(UnsupportedModel, match="`intermediate_size` of its decoder's config"):
            _refuse_shared(before, before | {"intermediate_size": 24}, "/prune")

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
            ("smolvlm", "model.text_model", "lm_head", "model.connector.proj"),
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
