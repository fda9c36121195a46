"""Load: download the model of a spec, after its checks. No weights are read yet."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from workers.engine.errors import InvalidSpec, MemoryBudgetTooSmall
from workers.engine.model.loaded import LoadedModel, generation_settings, skeleton, tokenizer_of
from workers.engine.model.memory import planned_memory, room_for_states
from workers.engine.model.skeleton_fits import check_skeleton
from workers.engine.planning.predictions import BATCH_TOKENS, GPU_BATCH_TOKENS, batch_tokens, walk_bytes
from workers.engine.ranks import Ranks
from workers.engine.sources.resolve import download, slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from workers.engine.removals.base import Prospect
    from workers.engine.spec import CompressionSpec


def load(spec: CompressionSpec, prospect: Prospect, ranks: Ranks | None = None) -> LoadedModel:
    """Download the files of the model that are missing; read no weights yet. `ranks`: the processes that walk it.

    Raises UnsupportedModel where transformers cannot read the tokenizer or build the config.
    """
    ranks = ranks or Ranks()
    folder = ranks.first(lambda: download(prospect.source))
    architecture, source = prospect.architecture, replace(prospect.source, path=folder)
    device, dtype = _device(spec), getattr(torch, spec.compute.dtype)
    generation_settings(source.folder, source.id)  # raises before the work, not when it is evaluated
    budget = planned_memory(spec.compute.memory_budget, device, ranks.count)
    most = GPU_BATCH_TOKENS if device.type == "cuda" else BATCH_TOKENS
    empty = skeleton(source.config, device, dtype)
    check_skeleton(empty, architecture, source.tensors)
    with _named_as_a_share(spec, device, ranks.count):
        tokens = batch_tokens(spec, source, architecture, budget=budget, most=most)
    return LoadedModel(
        source,
        architecture,
        source.folder,
        tokenizer_of(source),
        empty,
        device,
        dtype,
        tokens,
        room_for_states(
            device, walk=walk_bytes(spec, source, architecture, tokens), budget=budget, processes=ranks.count
        ),
        slices(source),
        ranks,
    )


@contextmanager
def _named_as_a_share(spec: CompressionSpec, device: torch.device, ranks: int) -> Iterator[None]:
    """Where the budget is no one's but one of several processes' share of the host, say so."""
    try:
        yield
    except MemoryBudgetTooSmall as error:
        if ranks == 1 or device.type == "cuda" or spec.compute.memory_budget is not None:
            raise
        raise MemoryBudgetTooSmall(
            f"{error.message}, the share of one of {ranks} processes in the host's memory",
            f"set `devices` to less than {ranks}, or {error.hint}",
            field="/compute/devices",
        ) from None


def _device(spec: CompressionSpec) -> torch.device:
    available = torch.cuda.is_available()
    if spec.compute.device == "cuda" and not available:
        raise InvalidSpec(
            "this worker has no CUDA device",
            "leave `device` at `auto`, or send the job to a worker with a GPU",
            field="/compute/device",
        )
    # TensorFloat-32 would round factors to 10 bits. Images of NVIDIA's turn it on (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE).
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if available and spec.compute.device != "cpu" else "cpu")
