"""LLM-Pruner's own code at its own shapes, on the shipped model: ours must be no worse, and of exactly its size.

Theirs credits query heads to the wrong key/value head where heads are grouped, so that it can be worse than random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.helpers.golden import compressed, perplexity
from workers.engine.files.safetensors_bytes import read_header

REFERENCE: dict[str, Any] = json.loads((Path(__file__).parent / "llm_pruner.json").read_text())
CASES = {
    "0.25_0-8": {"sparsity": 0.25},
    # Their fraction is of the blocks that are pruned.
    "0.25_1-7": {"sparsity": 0.25 * 6 / 8, "protect_first": 1, "protect_last": 1},
    "0.5_1-7": {"sparsity": 0.5 * 6 / 8, "protect_first": 1, "protect_last": 1},
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "0.25_1-7" else pytest.mark.golden) for case in CASES]
)
def test_taylor_is_no_worse(case: str, windows: dict[str, Tensor], tmp_path: Path) -> None:
    prune = {"method": "structured", "compensate": False} | CASES[case]
    calibration_NT = windows["calibration"][:32, :128]
    compressed(tmp_path, calibration_NT, {"score": {"method": "taylor"}, "prune": prune})
    reference = REFERENCE[f"taylor_param_first_{case}"]
    tensors = read_header(tmp_path / "model/model.safetensors")
    assert sum(piece.facts.parameters for piece in tensors.values()) == reference["params"]
    shapes = [
        [
            tensors[f"model.layers.{block}.self_attn.k_proj.weight"].facts.shape[0] // 32,
            tensors[f"model.layers.{block}.mlp.gate_proj.weight"].facts.shape[0],
        ]
        for block in range(8)
    ]
    assert shapes == reference["kv_heads_and_mlp_width_per_block"]
    found = perplexity(tmp_path / "model", windows["heldout"])

    assert found <= reference["heldout"]
