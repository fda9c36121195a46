"""Transfers between host and GPU: weights once each way, and nothing that the compute waits for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.small_models import spec_of, walk
from tests.helpers.synchronisations import counted
from workers.engine.files.safetensors_bytes import read_header
from workers.engine.model.memory import Room
from workers.engine.model.transfers import Arrival, to_device, to_host
from workers.engine.sources.resolve import Sources

CPU = torch.device("cpu")
SPECS: dict[str, dict[str, Any]] = {
    "wanda": {},
    "sparsegpt": {"score": None, "prune": {"method": "sparsegpt", "sparsity": 0.5}},
    "magnitude": {"score": {"method": "magnitude"}},
    "bfloat16": {"package": {"dtype": "bfloat16"}},
}


def test_on_a_cpu_nothing_moves() -> None:
    tensors = {"a": torch.ones(2), "b": torch.zeros(3, dtype=torch.bfloat16)}
    for found in (to_device(tensors, CPU)(), to_host(tensors)()):
        assert all(found[name] is tensor for name, tensor in tensors.items())


@pytest.mark.parametrize("name", SPECS)
def test_weights_cross_once_each_way(
    name: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crossed: Counter[str] = Counter()

    def noting(way: str, send: Callable[..., Arrival]) -> Callable[..., Arrival]:
        def noted(tensors: Mapping[str, Tensor], *to: torch.device) -> Arrival:
            for key, tensor in tensors.items():
                crossed[f"{way} {'block' if '.layers.' in key else 'outside'}"] += tensor.nbytes
            return send(tensors, *to)

        return noted

    monkeypatch.setattr("workers.engine.model.loaded.to_device", noting("to", to_device))
    monkeypatch.setattr("workers.engine.stages.prune.to_host", noting("from", to_host))
    with counted() as waits:
        walk(spec_of(**SPECS[name]), sources, tmp_path, room=Room(host=2**30))
    shares = {"block": 0, "outside": 0}
    for key, piece in read_header(tiny / "model.safetensors").items():
        shares["block" if ".layers." in key else "outside"] += piece.facts.bytes
    embedded = 0 if name == "magnitude" else 4096 * 32 * 4  # read once more where a text enters
    half = 2 if name == "bfloat16" else 1
    assert crossed == {
        "to block": shares["block"],
        "to outside": shares["outside"] + embedded,
        "from block": shares["block"] // half,
        "from outside": shares["outside"] // half,
    }
    assert waits["cpu"] == 0
    assert waits["to"] == (name != "magnitude"), "the text's windows"
