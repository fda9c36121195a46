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
