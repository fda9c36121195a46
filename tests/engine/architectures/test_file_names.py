"""Tensors under other names than transformers saves: a base model's, with the masks that old checkpoints hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    PretrainedConfig,
)

from tests.helpers.small_models import SIZES, SaveModel, spec_of
from workers.engine.architectures.file_names import names_in_files
from workers.engine.errors import UnsupportedModel
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.sources.resolve import Sources

GPT2 = GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=SIZES["vocab_size"], n_positions=64)
OPT = OPTConfig(
    num_hidden_layers=2, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48, num_attention_heads=4,
    vocab_size=SIZES["vocab_size"], max_position_embeddings=64,
)  # fmt: skip
SPEC = {"score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}


def without_beginning(folder: Path, beginning: str, more: dict[str, torch.Tensor], *, head: str = "") -> None:
    """As a base model is saved, without the beginning of names; without a head, too, if one is named."""
    file = folder / "model.safetensors"
    tensors = {name.removeprefix(beginning): tensor for name, tensor in load_file(file).items() if name != head}
    save_file(tensors | more, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("config", "beginning", "more"),
    [
        (GPT2, "transformer.", {"h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.1.attn.masked_bias": torch.ones(())}),
        (OPT, "model.", {}),
    ],
    ids=["gpt2", "opt"],
)
def test_a_base_model_whose_head_is_tied_is_one_with_it(
    config: PretrainedConfig,
    beginning: str,
    more: dict[str, torch.Tensor],
    save_model: SaveModel,
    sources: Sources,
    tmp_path: Path,
) -> None:
    folder = save_model("tiny", config)
    compress(spec_of(**SPEC), tmp_path / "whole", sources, Silent(), tmp_path / "whole-checkpoint")
    without_beginning(folder, beginning, more)
    compress(spec_of(**SPEC), tmp_path / "bare", sources, Silent(), tmp_path / "bare-checkpoint")
    whole, bare = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "bare"))
    assert whole.keys() == bare.keys()
    assert all(torch.equal(tensor, bare[name]) for name, tensor in whole.items())
    _, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "bare/model", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


@pytest.mark.parametrize(
    ("config", "beginning", "head"),
    [
        (LlamaConfig(**SIZES), "model.", "lm_head.weight"),
        (GPTNeoXConfig(**SIZES), "gpt_neox.", "embed_out.weight"),
        (FalconConfig(**SIZES, tie_word_embeddings=False), "transformer.", "lm_head.weight"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_a_base_model_without_its_head_is_refused(
    config: PretrainedConfig, beginning: str, head: str, save_model: SaveModel, sources: Sources
) -> None:
    folder = save_model("tiny", config)
    for start in (beginning, ""):
        without_beginning(folder, start, {}, head=head)
        with pytest.raises(UnsupportedModel, match="a base model without its language-modelling head"):
            plan(spec_of(**SPEC), sources)


def test_what_transformers_ignores_in_blocks_is_left_out() -> None:
    deepseek = {"model_type": "deepseek_v3", "num_hidden_layers": 61}
    kept = "model.layers.60.self_attn.o_proj.weight"
    assert [*names_in_files(deepseek, [kept, "model.layers.61.self_attn.o_proj.weight"])] == [kept]
    gpt2 = {"model_type": "gpt2", "n_layer": 1}
    assert names_in_files(gpt2, ["h.0.attn.c_attn.bias", "h.0.attn.bias", "wte.weight", "lm_head.weight"]) == {
        "transformer.h.0.attn.c_attn.bias": "h.0.attn.c_attn.bias",
        "transformer.wte.weight": "wte.weight",
        "lm_head.weight": "lm_head.weight",
    }
