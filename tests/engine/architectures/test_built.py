"""The tensors that a dry run expects of transformers' models, against transformers."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from tests.helpers.small_models import SIZES
from workers.engine.architectures.built import family, like_llama, obeyed, table, ties_head
from workers.engine.architectures.entries import check_config
from workers.engine.architectures.expected import check_tensors, expected
from workers.engine.architectures.generate import FILE, generate, written
from workers.engine.architectures.generation.row import family_row
from workers.engine.architectures.generation.shapes import built
from workers.engine.architectures.layouts.llama import LAYOUT
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts

FAMILIES = sorted(name for name, row in table()["families"].items() if like_llama(row))


def sizes(family: str, seed: int) -> dict[str, Any]:
    """A config.json of a family: odd sizes, and some of its switches turned."""
    draw = random.Random(f"{family} {seed}")
    row = table()["families"][family]
    keys, shared, width = 2 * draw.randint(1, 2), draw.randint(1, 3), 2 * draw.randint(3, 6)
    found = {
        "model_type": family,
        "vocab_size": draw.randint(60, 90),
        "hidden_size": keys * shared * 2 * draw.randint(4, 7),
        "intermediate_size": draw.randint(50, 99),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": keys * shared,
        "num_key_value_heads": keys,
        "head_dim": width,
        "max_position_embeddings": 64,
        "pad_token_id": draw.choice([None, 0, 7]),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    for switch, (usual, changes) in row["switches"].items():
        if changes is not None and draw.random() < 0.5:
            found[switch] = not usual
    if family == "cohere_compass_text":  # has no default
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        found["rope_parameters"] = dict.fromkeys(("full_attention", "sliding_attention"), rope)
    if family in ("bitnet", "stablelm"):  # cannot compute with heads of another width
        found |= {"head_dim": 8, "hidden_size": 8 * keys * shared}
    return found


def really(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    model = built(CONFIG_MAPPING[config["model_type"]], obeyed(config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_are_those_that_transformers_builds(family: str) -> None:
    for seed in range(3):
        config = sizes(family, seed)
        check_config(config)
        assert expected(config) == really(config)
    row = table()["families"][family]
    left_out = {"num_key_value_heads", *({"head_dim"} - {*row["needs"]})}
    config = {name: entry for name, entry in config.items() if name not in left_out}
    if config["num_attention_heads"] % (row["fields"]["num_key_value_heads"][1] or 1) == 0:
        assert expected(config) == really(config)  # what a config leaves out is the family's own default


@pytest.mark.parametrize("model_type", FAMILIES)
def test_rows_are_up_to_date(model_type: str) -> None:
    assert json.loads(json.dumps(family_row(model_type))) == family(model_type)


def test_no_width_of_an_mlp_is_taken_for_one_of_heads() -> None:
    """Sizes of two entries that happen to be in proportion in all settings would be."""
    for name, row in table()["families"].items():
        changed = [
            part for _, changes in row["switches"].values() if changes for part in changes.get("parts", {}).items()
        ]
        for part, found in (*row["parts"].items(), *changed):
            variants = found if isinstance(found, list) else found.get("all") or found["each"]
            axes = {a for one in variants for tensor, of in one.items() if "attn" not in tensor for a in of or ()}
            if part in ("mlp", "feed_forward", "block_sparse_moe", "shared_mlp"):
                assert not any("heads" in str(axis) for axis in axes), name


@pytest.mark.golden
def test_the_whole_table_is_up_to_date() -> None:
    assert written(generate()) == FILE.read_text(encoding="utf-8")


REFUSED_BY_TRANSFORMERS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"num_attention_heads": 11, "num_key_value_heads": 11}),
    ("hunyuan_v1_dense", {"head_dim": None}),
    ("diffllama", {"num_attention_heads": 9, "num_key_value_heads": 3}),
    ("llama", {"hidden_size": 64.0}),
    ("qwen3", {"head_dim": None}),
    ("mistral", {"rms_norm_eps": 1}),
    ("gemma2", {"layer_types": ["full_attention"] * 9}),
    ("llama", {"pad_token_id": 1000}),
    ("llama", {"initializer_range": 2.0}),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}),
    ("llama", {"hidden_act": "none of these"}),
    ("llama", {"dtype": "evil"}),
    ("smollm3", {"tie_word_embeddings": "yes"}),
    ("internlm3", {"qkv_bias": True}),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "changes"), REFUSED_BY_TRANSFORMERS)
def test_what_transformers_refuses_is_refused(model_type: str, changes: dict[str, Any]) -> None:
    config = sizes(model_type, 0) | changes
    with pytest.raises(Exception):  # noqa: B017, PT011 (of many types)
        really(config)
    with pytest.raises(UnsupportedModel, match=r"config\.json: "):
        check_config(config)


@pytest.mark.parametrize("model_type", ["gemma", "cohere"])
def test_a_head_may_be_tied_without_the_config_saying_so(model_type: str) -> None:
    config = sizes(model_type, 0)
    assert "tie_word_embeddings" not in config
    assert ties_head(config)
    tensors = {name: TensorFacts("BF16", shape) for name, shape in expected(config).items() if name != "lm_head.weight"}
    check_tensors(LAYOUT, config, tensors)
    with pytest.raises(UnsupportedModel, match=r"no `lm_head\.weight`"):
        check_tensors(LAYOUT, config | {"tie_word_embeddings": False}, tensors)


@pytest.mark.parametrize("family", ["cohere2", "gemma2", "gemma3_text", "olmo3", "ministral", "vaultgemma"])
def test_blocks_that_slide_by_themselves_need_a_window(family: str) -> None:
    """transformers builds such a model and fails at its first forward pass."""
    config = {"model_type": family, "head_dim": 8, "sliding_window": None, "vocab_size": 100} | SIZES
    with pytest.raises(UnsupportedModel, match="`sliding_window` is null"):
        check_config(config)
    check_config(config | {"layer_types": ["full_attention"] * SIZES["num_hidden_layers"]})


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("bitnet", {"head_dim": 16}, "do not make up the hidden size"),
        ("diffllama", {"attention_dropout": 0.5}, "cannot do"),
        ("diffllama", {"lambda_std_dev": -1.0}, "not a number from 0"),
        ("exaone4", {"sliding_window_pattern": "LLLG"}, "not a number from 1"),
        ("smollm3", {"no_rope_layer_interval": 0}, "not a number from 1"),
        ("stablelm", {"partial_rotary_factor": None}, "is null"),
        ("stablelm", {"head_dim": 16}, "where heads have 8 dimensions"),
        ("stablelm", {"rope_parameters": {"rope_type": "dynamic", "factor": 2}}, "more than 2 rotated"),
        ("ministral3", {"rope_parameters": {"rope_type": "default"}}, "this family needs"),
        ("ministral3", {"partial_rotary_factor": 0.5}, "whole heads"),
        ("gemma2", {"query_pre_attn_scalar": -1}, "not a number from 1"),
    ],
)
def test_what_a_family_cannot_compute_with_is_refused(family: str, changes: dict[str, Any], words: str) -> None:
    config = {"model_type": family, "head_dim": 8, "vocab_size": 100} | SIZES
    check_config(config)
    with pytest.raises(UnsupportedModel, match=words):
        check_config(config | changes)
