"""The tensors that a dry run expects of every decoder, against what transformers saves of a small one in other sizes
than the table was made in."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

from tests.families.checkpoints import tiny_config
from workers.engine.architectures.built import block_count, like_llama, sizes_of, spelled, table, value
from workers.engine.architectures.canonical import canonical_facts
from workers.engine.architectures.entries import check_config
from workers.engine.architectures.expected import expected, fits
from workers.engine.architectures.generation.shapes import built, saved
from workers.engine.architectures.kept_blocks import bound_to_numbers
from workers.engine.architectures.layouts import layouts
from workers.engine.architectures.per_layer import PER_LAYER
from workers.engine.architectures.recognise import recognise
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.model.loaded import skeleton
from workers.engine.model.skeleton_fits import check_skeleton
from workers.engine.removals.outcome import Outcome, config_after

OTHERS = sorted(name for name, row in table()["families"].items() if not like_llama(row))


def saved_config(model_type: str) -> dict[str, Any]:
    """`config.json` of the family's tiny checkpoint."""
    found: dict[str, Any] = json.loads(tiny_config(model_type).to_json_string())
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", OTHERS)
def test_tensors_are_those_that_transformers_saves(model_type: str) -> None:
    config = saved_config(model_type)
    check_config(config)
    shapes = saved(built(type(tiny_config(model_type)), tiny_config(model_type).to_dict()))
    wanted = expected(config, shapes)
    assert block_count(config) is not None
    assert wanted.keys() == shapes.keys()
    assert {name: shape for name, shape in shapes.items() if not fits(shape, wanted[name])} == {}
    facts = {name: TensorFacts("F32", shape) for name, shape in shapes.items()}
    try:
        architecture = recognise(config, facts)
    except UnsupportedModel:  # of no layout
        return
    if PER_LAYER in config:  # which a plan refuses
        return
    if type(tiny_config(model_type)) not in MODEL_FOR_CAUSAL_LM_MAPPING:  # only wrappers have it
        return
    tensors = canonical_facts(architecture.layout, architecture.sizes, facts)
    check_skeleton(skeleton(config, torch.device("cpu"), torch.float32), architecture, tensors)


@pytest.mark.parametrize(
    ("model_type", "entries", "kept", "after"),
    [
        ("gpt2", {"n_layer": 4}, [0, 3], {"n_layer": 2}),
        ("gpt_neo", {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}, [1, 2],
         {"num_layers": 2, "attention_types": [[["local", "global"], 1]]}),
        ("qwen2_moe", {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, [1, 2, 3, 5],
         {"num_hidden_layers": 4, "decoder_sparse_step": 1, "mlp_only_layers": [1, 2]}),
        ("deepseek_v3", {"num_hidden_layers": 6, "first_k_dense_replace": 3}, [0, 2, 5],
         {"num_hidden_layers": 3, "first_k_dense_replace": 2}),
        ("bamba", {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]}, [0, 3],
         {"num_hidden_layers": 2, "attn_layer_indices": [1]}),
        ("lfm2_moe", {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]}, [1, 2],
         {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}),
        ("ernie4_5_moe", {"num_hidden_layers": 4, "moe_layer_start_index": 1, "moe_layer_end_index": 2}, [0, 2, 3],
         {"num_hidden_layers": 3, "moe_layer_start_index": 1, "moe_layer_end_index": 1}),
        ("llama4_text", {"num_hidden_layers": 4, "moe_layers": [1, 3], "no_rope_layers": [1, 1, 1, 0]}, [0, 3],
         {"num_hidden_layers": 2, "moe_layers": [1], "no_rope_layers": [1, 0]}),
    ],
)  # fmt: skip
def test_entries_that_say_which_block_is_which(
    model_type: str, entries: dict[str, Any], kept: list[int], after: dict[str, Any]
) -> None:
    layout = next(iter(layouts()))
    assert (
        config_after({"model_type": model_type} | entries, Outcome(layout, kept)) == {"model_type": model_type} | after
    )


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "gpt2"}, None),
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, "`scale_attn_by_inverse_layer_idx`"),
        ({"model_type": "jamba"}, "with their own number"),
        ({"model_type": "ernie4_5_moe", "moe_layer_interval": 2}, "`moe_layer_interval`"),
        ({"model_type": "qwen3_moe"}, None),
    ],
)
def test_blocks_that_are_bound_to_their_numbers(config: dict[str, Any], why: str | None) -> None:
    found = bound_to_numbers(config)
    assert (why or "") in (found or "")
    assert (found is None) == (why is None)


def test_an_entry_is_read_and_written_under_the_name_that_the_config_has_for_it() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 48, "n_inner": None, "num_attention_heads": 4}
    assert [value(gpt2, name) for name in ("hidden_size", "intermediate_size", "num_attention_heads")] == [48, 192, 4]
    assert spelled(gpt2, {"intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 1}) == {
        "n_inner": 64,
        "num_attention_heads": 2,
        "n_layer": 1,
    }
    assert value({"model_type": "opt", "ffn_dim": 12}, "intermediate_size") == 12
    assert sizes_of({"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 8})["key"] == 8  # one, shared
    wide = {"model_type": "falcon", "hidden_size": 64, "num_attention_heads": 8, "new_decoder_architecture": True}
    assert sizes_of(wide | {"num_kv_heads": 2})["key"] == 16


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),  # as OPT-350m
        ("deepseek_v2", {"q_lora_rank": None, "n_shared_experts": 2}),
        ("granitemoehybrid", {"num_local_experts": 0}),
        ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        ("falcon", {"multi_query": False, "parallel_attn": False, "bias": True}),
        ("falcon", {"ffn_hidden_size": None}),
        ("gpt_neo", {"intermediate_size": None}),
        ("gpt2", {"n_inner": None}),
        ("lfm2", {"block_auto_adjust_ff_dim": True}),
        ("phi", {"qk_layernorm": True}),
    ],
    ids=str,
)
def test_variants_of_a_family(model_type: str, changes: dict[str, Any]) -> None:
    config = saved_config(model_type) | changes
    check_config(config)
    shapes = saved(skeleton(config, torch.device("cpu"), torch.float32))
    wanted = expected(config, shapes)
    assert wanted.keys() == shapes.keys()
    assert {name: shape for name, shape in shapes.items() if not fits(shape, wanted[name])} == {}


@pytest.mark.parametrize(
    ("model_type", "changes", "words"),
    [
        ("mixtral", {"num_experts_per_tok": 9}, "`num_experts_per_tok` is 9, of 8"),
        ("deepseek_v3", {"topk_group": 3}, "`topk_group` is 3, of 2"),
        ("gpt2", {"n_embd": "x"}, "`n_embd` is"),
        ("gpt2", {"attn_pdrop": -1.0}, "not between 0 and 1"),
        ("mixtral", {"head_dim": "x"}, "`head_dim` is"),
        ("phi3", {"rope_parameters": {"rope_type": "x"}}, "no kind of rotary embedding"),
        ("qwen3_moe", {"layer_types": ["full_attention"]}, "`layer_types` is not a list of 4"),
    ],
)
def test_what_no_family_computes_with_is_refused(model_type: str, changes: dict[str, Any], words: str) -> None:
    config = saved_config(model_type)
    check_config(config)
    with pytest.raises(UnsupportedModel, match=words):
        check_config(config | changes)


def test_a_number_of_experts_that_no_file_holds_is_not_counted_to() -> None:
    config = saved_config("mixtral") | {"num_local_experts": 10**9}
    names = ["model.layers.0.block_sparse_moe.experts.0.w1.weight"]
    assert len(expected(config, names)) < 100
