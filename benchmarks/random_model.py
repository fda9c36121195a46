"""Random models of the Llama layout, and mixtures of experts, in the sizes that benchmarks need.

    python -m benchmarks.random_model 350m FOLDER [--dtype bfloat16]

Written block by block, one shard each, so that memory holds one block whatever the size. The tokenizer is bookworm's,
with its 4096 entries; input and output embeddings are one. O = outputs, I = inputs.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BOOKWORM = Path(__file__).parent.parent / "examples/models/bookworm-7m"
VOCABULARY = 4096
STANDARD_DEVIATION = 0.02


@dataclass(frozen=True)
class Shape:
    """Of a Llama."""

    hidden: int
    mlp: int
    heads: int
    blocks: int
    kv_heads: int | None = None
    """None: as many as query heads."""
    experts: int = 0
    """Of each block, each with an MLP of that width, 8 of them for a token: a Qwen3-MoE. 0: a Llama."""

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """Linear layer of a block -> (O, I)."""
        square = (self.hidden, self.hidden)
        shared = (self.hidden * (self.kv_heads or self.heads) // self.heads, self.hidden)
        return {
            "self_attn.q_proj": square,
            "self_attn.k_proj": shared,
            "self_attn.v_proj": shared,
            "self_attn.o_proj": square,
            **{
                f"{mlp}.{name}": size
                for mlp in [f"mlp.experts.{expert}" for expert in range(self.experts)] or ["mlp"]
                for name, size in (
                    ("gate_proj", (self.mlp, self.hidden)),
                    ("up_proj", (self.mlp, self.hidden)),
                    ("down_proj", (self.hidden, self.mlp)),
                )
            },
        }


SHAPES = {
    "60m": Shape(hidden=640, mlp=1728, heads=10, blocks=12),
    "350m": Shape(hidden=1024, mlp=3328, heads=16, blocks=24),
    # The blocks of Sheared-LLaMA-1.3B.
    "1.3b": Shape(hidden=2048, mlp=5504, heads=16, blocks=24),
    "llama-7b": Shape(hidden=4096, mlp=11008, heads=32, blocks=32),
    "qwen3-8b": Shape(hidden=4096, mlp=12288, heads=32, blocks=36, kv_heads=8),
    "mixture": Shape(hidden=1024, mlp=512, heads=16, blocks=16, kv_heads=4, experts=64),
    "tiny": Shape(hidden=64, mlp=128, heads=4, blocks=2, kv_heads=2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    write(SHAPES[arguments.shape], arguments.folder, arguments.dtype)


def write(shape: Shape, folder: Path, dtype: str, positions: int | None = None) -> None:
    """A model folder as `transformers` reads it, of bookworm's context or so many positions. The same shape and dtype
    always make the same weights."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, str] = {}
    stored_bytes = 0
    for shard in range(shape.blocks + 1):
        tensors = _outside(shape) if shard == 0 else block_tensors(shape, shard - 1)
        tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
        file = f"model-{shard + 1:05d}-of-{shape.blocks + 1:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        files |= dict.fromkeys(tensors, file)
        stored_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": stored_bytes}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((BOOKWORM / "config.json").read_text()) | {
        "dtype": dtype,
        "head_dim": shape.hidden // shape.heads,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.blocks,
        "num_key_value_heads": shape.kv_heads or shape.heads,
        "vocab_size": VOCABULARY,
    }
    if shape.experts:
        config |= {
            "model_type": "qwen3_moe",
            "architectures": ["Qwen3MoeForCausalLM"],
            "num_experts": shape.experts,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": shape.mlp,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    if positions is not None:
        config["max_position_embeddings"] = positions
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(BOOKWORM / name, folder)


def block_tensors(shape: Shape, block: int) -> dict[str, Tensor]:
    """One decoder block's tensors, float32, under their names in the checkpoint."""
    import torch

    generator = torch.Generator().manual_seed(block + 1)
    tensors = {
        f"model.layers.{block}.{name}.weight": torch.randn(size, generator=generator) * STANDARD_DEVIATION
        for name, size in shape.layers.items()
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        tensors[f"model.layers.{block}.{name}.weight"] = torch.ones(shape.hidden)
    if shape.experts:
        router = torch.randn((shape.experts, shape.hidden), generator=generator)
        tensors[f"model.layers.{block}.mlp.gate.weight"] = router * STANDARD_DEVIATION
        for name in ("q_norm", "k_norm"):
            tensors[f"model.layers.{block}.self_attn.{name}.weight"] = torch.ones(shape.hidden // shape.heads)
    return tensors


def _outside(shape: Shape) -> dict[str, Tensor]:
    import torch

    embedding = torch.randn(VOCABULARY, shape.hidden, generator=torch.Generator().manual_seed(0)) * STANDARD_DEVIATION
    return {"model.embed_tokens.weight": embedding, "model.norm.weight": torch.ones(shape.hidden)}


if __name__ == "__main__":
    main()
