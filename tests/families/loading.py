"""Models as transformers loads them, and where their blocks are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


def load(folder: Path, loader: Any = AutoModelForCausalLM) -> tuple[Any, dict[str, Any]]:
    """The model in float32, with eager attention and experts, and what transformers says of missing, unexpected and
    mismatched tensors; empty where there are none."""
    model, info = loader.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")
    return model.eval(), {kind: sorted(map(str, found)) for kind, found in info.items() if found}


def stored(folder: Path) -> dict[str, Tensor]:
    """The tensors of the files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    return found


def blocks_of(model: Any) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder's blocks: of the lists of modules that are as long as the config says, or of all,
    the one that holds most parameters."""
    blocks = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists = [(name, part) for name, part in model.named_modules() if isinstance(part, nn.ModuleList)]
    lists = [(name, part) for name, part in lists if len(part) == blocks] or lists
    return max(lists, key=lambda found: sum(tensor.numel() for tensor in found[1].parameters()))


def logits(model: Any, ids_NT: Tensor) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids_NT, use_cache=False).logits.float()


def inside(model: Any) -> dict[str, Tensor]:
    """Path below its block -> a matrix, or stack of matrices, of the first block that has one there."""
    prefix, _ = blocks_of(model)
    found: dict[str, Tensor] = {}
    for name, tensor in model.named_parameters():
        if name.startswith(f"{prefix}.") and tensor.ndim > 1:
            found.setdefault(name.removeprefix(f"{prefix}.").split(".", 1)[1].removesuffix(".weight"), tensor)
    return found
