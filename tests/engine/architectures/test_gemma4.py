"""Gemma 4 with experts beside its MLPs, a variant that the table of families has no row of its own for."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.families.checkpoints import save, tiny_config, tiny_model
from tests.families.jobs import texts, verdicts
from tests.families.sides import Side

ENTRIES = {"enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 24}
JOBS = ("wanda", "experts", "expert_channels")


@pytest.mark.filterwarnings("ignore")
def test_experts_beside_an_mlp(tmp_path: Path) -> None:
    folder = tmp_path / "models/gemma4"
    save(tiny_model(tiny_config("gemma4_text", **ENTRIES), AutoModelForCausalLM.from_config), folder)
    texts(tmp_path / "data")
    found = dict(verdicts(Side(folder), tmp_path / "data", tmp_path / "work", JOBS))
    assert {job: verdict.verdict for job, verdict in found.items()} == dict.fromkeys(JOBS, "verified"), found
    assert [found[job].detail for job in JOBS] == ["router.proj", "4 of 8", "16 of 24"]
