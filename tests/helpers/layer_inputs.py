"""Inputs of the layers of a block, recorded by hooks on a whole model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from workers.engine.architectures.layouts.llama import LAYOUT

STREAMS = {layer.name: layer.stream for layer in LAYOUT.layers}


def inputs_of(model: Any, windows_NT: Tensor, block: int) -> dict[str, Tensor]:
    """Stream name -> what its layers read, [tokens, I], float64."""
    seen: dict[str, list[Tensor]] = {stream: [] for stream in STREAMS.values()}
    handles = []
    for stream, reader in {stream: name for name, stream in STREAMS.items()}.items():
        linear = model.model.layers[block].get_submodule(reader)
        handles.append(linear.register_forward_pre_hook(lambda _, args, to=seen[stream]: to.append(args[0][0])))
    with torch.no_grad():
        for ids_T in windows_NT:
            model(ids_T[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {stream: torch.cat(found).double() for stream, found in seen.items()}
