"""Small models for the engine's tests: the shipped one, and random ones of each family, saved as users save them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig

from workers.engine.sources import Sources
from workers.engine.spec import CompressionSpec

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def examples() -> Sources:
    """The shipped model and texts."""
    return Sources(EXAMPLES / "models", EXAMPLES / "data")


SaveModel = Callable[[str, PretrainedConfig], Path]


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    """Empty folders but for the beginnings of the shipped texts, some 10,000 tokens each."""
    found = Sources(tmp_path / "models", tmp_path / "data")
    found.models_dir.mkdir()
    found.data_dir.mkdir()
    for name in ("calibration.txt", "heldout.txt"):
        (found.data_dir / name).write_text((EXAMPLES / "data" / name).read_text()[:40_000])
    return found


@pytest.fixture
def save_model(sources: Sources) -> SaveModel:
    """Save a random model of a config under a name, with the shipped tokenizer (4096 entries)."""

    def save(name: str, config: PretrainedConfig, **kwargs: Any) -> Path:
        torch.manual_seed(0)
        folder = sources.models_dir / name
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder, **kwargs)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(EXAMPLES / "models/bookworm-7m" / file, folder)
        return folder

    return save


@pytest.fixture
def tiny(save_model: SaveModel) -> Path:
    """A Llama of three blocks, hidden size 32, context 128, float32, under the name `tiny`."""
    return save_model("tiny", LlamaConfig(**SIZES))


def spec_of(**parts: Any) -> CompressionSpec:
    """A spec for `tiny`: Wanda, half of the weights, eight windows of 32 tokens, unless said otherwise."""
    parts = {
        "model": {"id": "tiny"},
        "calibrate": {"dataset": "calibration.txt", "samples": 8, "sequence_length": 32},
        "score": {"method": "wanda"},
        "prune": {"method": "mask", "sparsity": 0.5},
    } | parts
    return CompressionSpec.model_validate_json(json.dumps(parts))
