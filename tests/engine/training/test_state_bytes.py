"""Memory that trainings keep of their weights, counted in tensors that are there, beside the dry run's prediction."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig

from tests.helpers.small_models import SIZES, SaveModel, spec_of
from tests.helpers.training import TARGETS, training
from tests.helpers.tuning import Killed, tuning
from workers.engine.architectures.recognise import recognise
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.training_memory import state_bytes
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.training import loop
from workers.engine.training.weight_masks import WeightMasks

TOLERANCE, UNPREDICTED = 0.01, 2**18
"""Of what is predicted; and bytes of windows, buffers, gates and their likes, which are not."""
FEWER: dict[str, Any] = {"steps": 2, "evaluate_every": 1, "distill": None}
HALF = {"score": {"method": "magnitude"}, "prune": {"method": "mask", "sparsity": 0.5}}
UNSTRUCTURED, HEADS = TARGETS["weight"]["unstructured"], TARGETS["head"]["uniform"]
BFLOAT16 = {"compute": {"dtype": "bfloat16"}}
JOBS: dict[str, dict[str, Any]] = {
    "ast": {"train": training("ast", **FEWER), **UNSTRUCTURED},
    "compresso": {"train": training("compresso", **FEWER), **HEADS},
    "efficient_llm": {"train": training("efficient_llm", **FEWER), **HEADS},
    "elsa": {"train": training("elsa", **FEWER | {"interval": 1}), **UNSTRUCTURED},
    "gradual": {"train": training("gradual", **FEWER), **UNSTRUCTURED},
    "full in bfloat16": {"tune": tuning("full", **FEWER), **HALF, **BFLOAT16},
    "last_layers in bfloat16": {"tune": tuning("last_layers", **FEWER, blocks=1), **HALF, **BFLOAT16},
    "group": {"tune": tuning("group", **FEWER, rank=64), **HALF},
    "spp in bfloat16": {"tune": tuning("spp", **FEWER, rank=64), **HALF, **BFLOAT16},
}


def present() -> int:
    """Bytes of all tensors that there are, and of gradients; what several share is counted once."""
    found: dict[int, int] = {}
    for tensor in _tensors():
        if tensor.device.type == "cpu" and tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def _tensors() -> Iterator[Tensor]:
    for one in gc.get_objects():
        if issubclass(type(one), Tensor):
            yield from (getattr(one, "codes", one), getattr(one, "scale", one))
            if one.is_leaf and one.grad is not None:
                yield one.grad


@pytest.mark.parametrize("name", JOBS)
def test_a_training_keeps_as_much_as_is_predicted(
    name: str, save_model: SaveModel, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model("tiny", LlamaConfig(**SIZES | {"hidden_size": 64, "intermediate_size": 512}))
    parts: dict[str, Any] = {"score": None, "calibrate": None} | JOBS[name]
    spec = spec_of(**parts)
    counted: dict[str, int] = defaultdict(int)

    def counting(time: str, owner: Any, function: str) -> None:
        real: Callable[..., Any] = getattr(owner, function)

        def counted_too(*given: Any, **named: Any) -> Any:
            counted[time] = max(counted[time], present() - before)
            return real(*given, **named)

        monkeypatch.setattr(owner, function, counted_too)

    counting("passing", loop, "clip_grad_norm_")
    counting("updating", WeightMasks, "take")
    counting("looking", loop.Setting, "holdout_losses")
    monkeypatch.setattr(loop.Loop, "end", Mock(side_effect=Killed))  # nothing after it is looked at
    gc.collect()
    before = present()
    with pytest.raises(Killed):
        compress(spec, tmp_path, sources, Silent(), tmp_path / "checkpoint")
    source = resolve_model(spec.model, sources)
    architecture = recognise(source.config, source.stored)
    ((stage, params),) = spec.trainings.items()
    state = state_bytes(spec, stage, source, architecture)
    for time, count in counted.items():
        more = getattr(params.weight_bytes, time) * architecture.prunable_parameters
        assert -TOLERANCE * state < count - state - more < UNPREDICTED, time
