"""Which models are recognised, by what they really save, and what is said of the others."""

from __future__ import annotations

import pytest
from transformers import (
    BertGenerationConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    RwkvConfig,
    TrOCRConfig,
)

from tests.helpers.small_models import SIZES, SaveModel
from workers.engine.architectures.architecture import Architecture
from workers.engine.architectures.recognise import recognise
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import UnsupportedModel
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.sources.resolve import Sources, resolve_model


def recognised(sources: Sources) -> Architecture:
    source = resolve_model(ModelRef(id="some"), sources)
    return recognise(source.config, source.stored)


@pytest.mark.parametrize("config_class", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_llama_layout(config_class: type[PretrainedConfig], save_model: SaveModel, sources: Sources) -> None:
    save_model("some", config_class(**SIZES, head_dim=8))
    found = recognised(sources)
    assert found.model_type == config_class.model_type
    assert (found.blocks, found.hidden_size, found.vocabulary, found.context_length) == (3, 32, 4096, 128)
    # Hidden 32, MLP 48, four query and two key/value heads of 8.
    assert [(layer.name, layer.stream, layer.shape) for layer in found.block(1)] == [
        ("model.layers.1.self_attn.q_proj", "attention_input", (32, 32)),
        ("model.layers.1.self_attn.k_proj", "attention_input", (16, 32)),
        ("model.layers.1.self_attn.v_proj", "attention_input", (16, 32)),
        ("model.layers.1.self_attn.o_proj", "attention_output", (32, 32)),
        ("model.layers.1.mlp.gate_proj", "mlp_input", (48, 32)),
        ("model.layers.1.mlp.up_proj", "mlp_input", (48, 32)),
        ("model.layers.1.mlp.down_proj", "mlp_hidden", (32, 48)),
    ]
    assert found.prunable_parameters == 3 * (32 * 32 * 2 + 16 * 32 * 2 + 48 * 32 * 3)


SMALL = SIZES | {"num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            BertGenerationConfig(**SMALL, is_decoder=True),
            r"bert-generation: .* none of the paths that are known \(`.*such as `bert\.",
        ),
        (
            TrOCRConfig(vocab_size=64, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48),
            r"trocr: block 0 also has the matrix `encoder_attn\.k_proj`, whose use is not known",
        ),
        (
            RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2),
            r"rwkv: .*its blocks lie under none of the paths",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_others_are_refused_by_what_they_lack(
    config: PretrainedConfig, message: str, save_model: SaveModel, sources: Sources
) -> None:
    save_model("some", config)
    with pytest.raises(UnsupportedModel, match=message) as error:
        recognised(sources)
    assert error.value.field == "/model/id"


CONFIG = {"model_type": "llama", "num_hidden_layers": 1, "max_position_embeddings": 16}


class TestStructure:
    def tensors(self) -> dict[str, TensorFacts]:
        shapes = {"self_attn.q_proj": (8, 8), "self_attn.k_proj": (4, 8), "self_attn.v_proj": (4, 8)}
        shapes |= {
            "self_attn.o_proj": (8, 8),
            "mlp.gate_proj": (12, 8),
            "mlp.up_proj": (12, 8),
            "mlp.down_proj": (8, 12),
        }
        found = {f"model.layers.0.{name}.weight": TensorFacts("BF16", shape) for name, shape in shapes.items()}
        return found | {"model.embed_tokens.weight": TensorFacts("BF16", (64, 8))}

    def test_is_recognised(self) -> None:
        assert recognise(CONFIG, self.tensors()).blocks == 1

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"num_hidden_layers": 2}, "config.json says 2 blocks, the weights hold 1"),
            ({"max_position_embeddings": None}, "max_position_embeddings"),
        ],
    )
    def test_config_is_refused(self, config: dict[str, object], message: str) -> None:
        with pytest.raises(UnsupportedModel, match=message):
            recognise(CONFIG | config, self.tensors())

    @pytest.mark.parametrize(
        ("name", "facts", "message"),
        [
            ("model.layers.0.mlp.router.weight", TensorFacts("BF16", (2, 8)), r"also has the matrix `mlp\.router`"),
            ("model.layers.0.mlp.up_proj.weight", TensorFacts("I8", (12, 8)), "I8.* not a float matrix"),
            ("model.layers.0.mlp.up_proj.weight", TensorFacts("BF16", (12, 6)), "mlp_input differ in width"),
            ("model.layers.2.mlp.up_proj.weight", TensorFacts("BF16", (12, 8)), "config.json says 1 blocks"),
        ],
    )
    def test_tensor_is_refused(self, name: str, facts: TensorFacts, message: str) -> None:
        with pytest.raises(UnsupportedModel, match=message):
            recognise(CONFIG, self.tensors() | {name: facts})

    def test_code_beside_a_native_type_is_ignored(self) -> None:
        config = CONFIG | {"auto_map": {"AutoModelForCausalLM": "modeling_llama.Llama"}}
        assert recognise(config, self.tensors()).model_type == "llama"
