"""Multiplications of a forward pass, against published and hooked counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.small_models import load, spec_of
from workers.engine.architectures.recognise import recognise
from workers.engine.files.safetensors_bytes import TensorFacts
from workers.engine.methods.evaluate.macs import macs
from workers.engine.model.loaded import load_model
from workers.engine.sources.resolve import Sources


def test_llama_7b_is_llm_pruners_424_g_less_its_norms() -> None:
    d, width, vocabulary = 4096, 11008, 32000
    shapes = {f"self_attn.{n}_proj": (d, d) for n in "qkvo"}
    shapes |= {"mlp.gate_proj": (width, d), "mlp.up_proj": (width, d), "mlp.down_proj": (d, width)}
    tensors = {"model.embed_tokens.weight": TensorFacts("F16", (vocabulary, d))}
    for block in range(32):
        tensors |= {f"model.layers.{block}.{n}.weight": TensorFacts("F16", shape) for n, shape in shapes.items()}
    config = {"model_type": "llama", "num_hidden_layers": 32, "max_position_embeddings": 2048}
    count = macs(recognise(config, tensors), 64)
    linear = 64 * (32 * (4 * d * d + 3 * d * width) + vocabulary * d)
    assert count - linear == 32 * 2 * 64 * 64 * d
    assert linear == pytest.approx(422.85e9, rel=1e-4)
    # 424.02 G, of which 0.09 G are norms, activations and rotations.
    assert count == pytest.approx(424.02e9, rel=5e-4)


def test_of_mixtral_8x7b_the_experts_that_a_token_is_sent_to_count() -> None:
    d, width, keys, vocabulary = 4096, 14336, 1024, 32000
    shapes = {"self_attn.q_proj": (d, d), "self_attn.k_proj": (keys, d), "self_attn.v_proj": (keys, d)}
    shapes |= {"self_attn.o_proj": (d, d), "block_sparse_moe.gate": (8, d)}
    for expert in range(8):
        inner = {"w1": (width, d), "w2": (d, width), "w3": (width, d)}
        shapes |= {f"block_sparse_moe.experts.{expert}.{name}": shape for name, shape in inner.items()}
    tensors = {"model.embed_tokens.weight": TensorFacts("BF16", (vocabulary, d))}
    for block in range(32):
        tensors |= {f"model.layers.{block}.{n}.weight": TensorFacts("BF16", shape) for n, shape in shapes.items()}
    config = {
        "model_type": "mixtral", "num_hidden_layers": 32, "hidden_size": d, "num_attention_heads": 32,
        "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 32768,
    }  # fmt: skip
    active = macs(recognise(config, tensors), 1) - 32 * 2 * d
    # 12.88 G of 46.7 G parameters, less the embedding, the routers and the norms.
    assert active == 32 * (2 * d * d + 2 * keys * d + 2 * 3 * d * width) + vocabulary * d
    assert active + vocabulary * d == pytest.approx(12.88e9, rel=1e-3)


def test_is_what_the_layers_multiply(tiny: Path, sources: Sources) -> None:
    model = load(spec_of(), sources)
    whole: Any = load_model(tiny, torch.device("cpu"), torch.float32)
    seen = 0

    def count(module: torch.nn.Linear, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal seen
        seen += args[0].numel() * output.shape[-1]

    for module in whole.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(count)
    whole(input_ids=torch.zeros(1, 10, dtype=torch.long))
    config = whole.config
    attention = 2 * 10 * 10 * config.head_dim * config.num_attention_heads * config.num_hidden_layers
    assert macs(model.architecture, 10) == seen + attention
