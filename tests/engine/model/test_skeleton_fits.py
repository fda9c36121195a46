"""Weights of other blocks than transformers builds are refused at load, before any work."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3MoeConfig

from tests.helpers.small_models import SIZES, SaveModel
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import UnsupportedModel
from workers.engine.model.loaded import skeleton
from workers.engine.model.skeleton_fits import check_skeleton
from workers.engine.sources.resolve import Sources, resolve_model

MIXTURE = Qwen3MoeConfig(
    **SIZES,
    num_experts=4,
    num_experts_per_tok=2,
    moe_intermediate_size=16,
    mlp_only_layers=[0],
    tie_word_embeddings=True,
)


def test_blocks_of_another_kind_than_the_config_says(save_model: SaveModel, sources: Sources) -> None:
    """The files' structure is a model of the family; only the config says that another block is the dense one."""
    save_model("tiny", MIXTURE)
    source = resolve_model(ModelRef(id="tiny"), sources)
    architecture = recognise(source.config, source.stored)

    def check(**changes: object) -> None:
        config = {**source.config, **changes}
        check_skeleton(skeleton(config, torch.device("cpu"), torch.float32), architecture, source.tensors)

    check()
    with pytest.raises(UnsupportedModel, match=r"layers\.0\.mlp\.experts\.\w+` as \[4, .* nothing for it"):
        check(mlp_only_layers=[1])
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.\S+` as \[8, .* make it \[4, "):
        check(num_local_experts=8)
