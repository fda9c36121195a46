"""The slices of a head or a channel, and that a model without them computes what the masked one does.

U = units, D = hidden size, B = batch, T = tokens.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    Olmo2Config,
)

from tests.helpers.families import FAMILIES, described, masked_by_hand
from tests.helpers.small_models import SIZES, SaveModel, spec_of, walk
from workers.engine.architectures.coupled import families
from workers.engine.architectures.recognise import recognise
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.maths.unit_slices import kept_only
from workers.engine.model.loaded import load_model
from workers.engine.planning.plan import plan, prospect_of
from workers.engine.planning.result_size import parameters_after
from workers.engine.removals.assemble import assemble
from workers.engine.sources.resolve import ModelSource, Sources
from workers.engine.spec import CompressionSpec

UNIFORM = {"method": "structured", "sparsity": 0.35}
PER_BLOCK = UNIFORM | {"protect_first": 1}
CASES = {"uniform": UNIFORM, "per-block": PER_BLOCK}


class TestFamilies:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_units_are_all_that_can_be_pruned_and_share_nothing(
        self, name: str, save_model: SaveModel, sources: Sources
    ) -> None:
        save_model("tiny", FAMILIES[name])
        source, found = described(sources)
        owners = Counter(member.tensor for family in found for member in family.members)
        assert set(owners.values()) == {1}, "a tensor belongs to one family, and there each slice to one unit"
        prunable = {layer.name for layer in recognise(source.config, source.stored).layers}
        assert {tensor for tensor in owners if tensor.endswith(".weight")} == {f"{layer}.weight" for layer in prunable}
        for part, count in (("weight", "unit_parameters"), ("bias", "unit_biases")):
            owned = sum(source.tensors[tensor].parameters for tensor in owners if tensor.endswith(part))
            assert sum(family.units * getattr(family, count) for family in found) == owned
        # The output projections' biases belong to the hidden state, the norms to all heads.
        biases = {tensor.split(".")[-2] for tensor in owners if tensor.endswith(".bias")}
        assert biases == ({"q_proj", "k_proj", "v_proj"} if name.startswith("qwen2") else set())
        assert not any("norm" in tensor for tensor in owners)

    def test_by_hand(self, save_model: SaveModel, sources: Sources) -> None:
        save_model("tiny", FAMILIES["qwen2"])
        _, found = described(sources)
        assert [(family.block, family.kind, family.units) for family in found[:3]] == [
            (0, "head", 3), (0, "channel", 48), (1, "head", 3)
        ]  # fmt: skip
        # Two query heads, a key and a value head of 8 by 48, and the columns that read the two query heads.
        assert (found[0].unit_parameters, found[0].unit_biases) == ((2 + 1 + 1 + 2) * 8 * 48, (2 + 1 + 1) * 8)
        assert (found[1].unit_parameters, found[1].unit_biases) == (3 * 48, 0)
        assert (found[0].reader.tensor, found[0].reader.axis) == ("model.layers.0.self_attn.o_proj.weight", 1)
        assert (found[1].reader.tensor, found[1].reader.axis) == ("model.layers.0.mlp.down_proj.weight", 1)

    def test_a_slice_is_where_the_model_computes_the_head(self, save_model: SaveModel, sources: Sources) -> None:
        """Key/value head 1 of three is read by query heads 2 and 3 of six."""
        save_model("tiny", FAMILIES["qwen2"])
        source, found = described(sources)
        numbered = {
            name: torch.arange(prod(facts.shape)).reshape(facts.shape) for name, facts in source.tensors.items()
        }
        kept = kept_only(numbered, found[:2], {"head": [1], "channel": [0, 47]})
        block = "model.layers.0."
        for tensor, expected in {
            "self_attn.q_proj.weight": numbered[block + "self_attn.q_proj.weight"][16:32],
            "self_attn.k_proj.weight": numbered[block + "self_attn.k_proj.weight"][8:16],
            "self_attn.v_proj.bias": numbered[block + "self_attn.v_proj.bias"][8:16],
            "self_attn.o_proj.weight": numbered[block + "self_attn.o_proj.weight"][:, 16:32],
            "mlp.up_proj.weight": numbered[block + "mlp.up_proj.weight"][[0, 47]],
            "mlp.down_proj.weight": numbered[block + "mlp.down_proj.weight"][:, [0, 47]],
            "input_layernorm.weight": numbered[block + "input_layernorm.weight"],
        }.items():
            assert torch.equal(kept[block + tensor], expected), tensor
        assert torch.equal(kept["model.layers.1.mlp.up_proj.weight"], numbered["model.layers.1.mlp.up_proj.weight"]), (
            "another block is not cut"
        )

    def test_a_norm_over_all_heads_ties_them_together(self, save_model: SaveModel, sources: Sources) -> None:
        save_model("tiny", Olmo2Config(**SIZES))
        spec = spec_of(score={"method": "magnitude"}, prune=UNIFORM)
        with pytest.raises(UnsupportedModel, match="is a norm over all heads") as error:
            plan(spec, sources)
        assert error.value.field == "/prune/units"
        assert "unstructured" in error.value.hint

    @pytest.mark.parametrize(
        ("tensor", "shape", "message"),
        [
            ("self_attn.k_proj.weight", (20, 48), "k_proj has 20 outputs, not a multiple of a head's 8"),
            ("self_attn.q_proj.weight", (50, 48), r"q_proj.weight: \[50, 48\] is not made of 3 units along axis 0"),
            ("self_attn.o_proj.weight", (48, 49), r"o_proj.weight: \[48, 49\] is not made of 3 units along axis 1"),
        ],
    )
    def test_heads_that_cannot_be_told_apart_are_refused(
        self, tensor: str, shape: tuple[int, int], message: str, save_model: SaveModel, sources: Sources
    ) -> None:
        save_model("tiny", FAMILIES["llama"])
        source, _ = described(sources)
        architecture = recognise(source.config, source.stored)
        tensors = dict(source.tensors) | {f"model.layers.1.{tensor}": TensorFacts("F32", shape)}
        with pytest.raises(UnsupportedModel, match=message) as error:
            families(architecture, source.config, tensors)
        assert error.value.field == "/model/id"
        assert error.value.hint


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_cut_model_computes_what_the_masked_one_does(
    name: str, case: str, save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    folder = save_model("tiny", FAMILIES[name])
    spec = spec_of(prune=CASES[case], score={"method": "wanda"})
    done = walk(spec, sources, tmp_path)
    assemble(spec, done.model, done.outcome, done.checkpoint, tmp_path / "model")
    assert done.outcome.uniform == (case == "uniform")
    cut = load_model(tmp_path / "model", torch.device("cpu"), torch.float32)
    _, found = described(sources)
    masked = masked_by_hand(folder, cut.state_dict(), found)
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(3, 4096, (2, 24), generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(cut(ids_BT).logits, masked(ids_BT).logits, rtol=1e-4, atol=1e-5)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
    cached, uncached = (cut.generate(ids_BT, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, uncached)


def gpt(**config: Any) -> tuple[dict[str, Any], dict[str, TensorFacts]]:
    """Config and headers of a Llama, without its weights. D by D, F by D and so on, as published."""
    hidden, mlp, blocks = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    keys = config["num_key_value_heads"] * (hidden // config["num_attention_heads"])
    of_block = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (keys, hidden), "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp), "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
    }  # fmt: skip
    shapes = {f"model.layers.{b}.{name}": shape for b in range(blocks) for name, shape in of_block.items()}
    shapes |= dict.fromkeys(("model.embed_tokens", "lm_head"), (config["vocab_size"], hidden))
    shapes["model.norm"] = (hidden,)
    return (
        {"model_type": "llama", "max_position_embeddings": 2048} | config,
        {f"{name}.weight": TensorFacts("BF16", shape) for name, shape in shapes.items()},
    )


LLAMA_7B = gpt(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
    vocab_size=32000,
)  # fmt: skip
LLAMA_13B = gpt(
    hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, num_key_value_heads=40,
    vocab_size=32000,
)  # fmt: skip
LLAMA_31_8B = gpt(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128256,
)  # fmt: skip


class TestPublishedSizes:
    """Parameters of the papers' results, from headers alone."""

    def after(self, model: Any, prune: dict[str, Any], score: str) -> tuple[int, int]:
        config, tensors = model
        source = ModelSource("published", config, tensors, dict.fromkeys(tensors, "x"), None, "commit")
        spec = CompressionSpec.model_validate(
            {"model": {"id": "a/b"}, "score": {"method": score}, "prune": prune, "calibrate": {"dataset": "a/b"}}
        )
        outcome = prospect_of(spec, source, recognise(config, tensors)).outcome
        assert outcome is not None
        return source.parameters, parameters_after(source, outcome)

    def structured(self, model: Any) -> tuple[int, int]:
        """A quarter of the units of blocks 4 to 29, as in LLM-Pruner's published runs."""
        prune = {"method": "structured", "sparsity": 0.25 * 26 / 32, "protect_first": 4, "protect_last": 2}
        return self.after(model, prune, "taylor")

    def depth(self, model: Any, layers: int) -> tuple[int, int]:
        return self.after(model, {"method": "depth", "layers": layers}, "reverse_order")

    def test_llm_pruner_on_llama_7b(self) -> None:
        before, after = self.structured(LLAMA_7B)
        assert before == 6_738_415_616
        # 26 blocks lose a quarter of 4 * 4096^2 + 3 * 4096 * 11008: "5.42 B".
        assert after == before - 26 * (4 * 4096**2 + 3 * 4096 * 11008) // 4
        assert round(after / 1e9, 2) == 5.42

    def test_llm_pruner_on_llama_3_1_8b(self) -> None:
        assert self.structured(LLAMA_31_8B) == (8_030_261_248, 6_612_586_496)

    @pytest.mark.parametrize(
        ("model", "gone", "after", "of_a_block"),
        [
            (LLAMA_7B, 6, 5_524_115_456, 202_383_360),
            (LLAMA_13B, 8, 10_478_228_480, 317_204_480),
            (LLAMA_31_8B, 1, 8_030_261_248 - 218_112_000, 218_112_000),
        ],
        ids=["7b", "13b", "3.1-8b"],
    )
    def test_shortened_llama(self, model: Any, gone: int, after: int, of_a_block: int) -> None:
        assert self.depth(model, gone)[1] == after
        assert sum(self.depth(model, 1)) == 2 * self.depth(model, 1)[0] - of_a_block
