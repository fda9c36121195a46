"""Expert pruning of the shipped mixture beside a brute-force program; see moe.json in README.md beside this.

T = tokens, E = experts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.helpers.golden import compressed, perplexity
from tests.helpers.small_models import load
from workers.engine.events import Silent
from workers.engine.maths.experts import dropped_sets, second_over_first
from workers.engine.model.calibration import Calibration
from workers.engine.model.expert_facts import WINDOWS, squared_changes
from workers.engine.model.experts import Mixture, Routed
from workers.engine.removals.skipping import let_skip
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec
from workers.engine.store.run import Run

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "examples/models/bookworm-moe-8m"
REFERENCE = json.loads((HERE / "moe.json").read_text())
BLOCKS, EXPERTS = 6, 8


def naee(kept: int, order: str) -> dict[str, Any]:
    return {"score": {"method": "naee", "order": order}, "prune": {"method": "experts", "experts": kept}}


def scored(score: str, sparsity: float) -> dict[str, Any]:
    return {"score": {"method": score}, "prune": {"method": "experts", "sparsity": sparsity}}


# Whether it is quick proof enough for every `make test`; `make golden` runs all. Measured: below 1e-6 in every run.
RUNS: list[tuple[str, dict[str, Any], bool]] = [
    ("naee_layerwise_r6", naee(6, "layerwise"), False),
    ("naee_progressive_r6", naee(6, "progressive"), False),
    ("naee_layerwise_r4", naee(4, "layerwise"), False),
    ("naee_progressive_r4", naee(4, "progressive"), False),
    ("reap_r6", scored("reap", 0.25), True),
    ("reap_r4", scored("reap", 0.5), False),
    ("frequency_r6", scored("expert_frequency", 0.25), False),
    ("frequency_r4", scored("expert_frequency", 0.5), False),
]


@pytest.mark.parametrize(
    ("run", "parts"),
    [pytest.param(run, parts, id=run, marks=() if quick else pytest.mark.golden) for run, parts, quick in RUNS],
)
def test_kept_experts_and_perplexity(
    run: str, parts: dict[str, Any], windows: dict[str, Tensor], tmp_path: Path
) -> None:
    checkpoint = compressed(tmp_path, windows["calibration"], parts, "bookworm-moe-8m")
    scores, expected = checkpoint.load_scores(), REFERENCE["runs"][run]
    assert scores is not None
    left = len(expected["kept"][0])
    order = [sorted(range(EXPERTS), key=lambda expert: -block["expert"][expert]) for block in scores]
    assert [sorted(best[:left]) for best in order] == expected["kept"]
    if run == "reap_r6":
        for block, values in zip(scores, REFERENCE["reap_scores"], strict=True):
            assert block["expert"] == pytest.approx(values, rel=1e-4)
    found = perplexity(tmp_path / "model", windows["heldout"])
    assert found == pytest.approx(expected["heldout"], rel=1e-3)


@pytest.mark.golden
@pytest.mark.parametrize(("kept", "heldout"), [(6, 102.5765), (4, 492.1940)])
def test_merged_experts(kept: int, heldout: float, windows: dict[str, Tensor], tmp_path: Path) -> None:
    """The figures of docs/methods.md, of this program alone."""
    parts = {"score": {"method": "reap"}, "prune": {"method": "experts", "experts": kept, "merge": True}}
    compressed(tmp_path, windows["calibration"], parts, "bookworm-moe-8m")
    assert perplexity(tmp_path / "model", windows["heldout"]) == pytest.approx(heldout, rel=1e-3)


def test_losses_of_every_set_and_ratios_of_weights(windows: dict[str, Tensor]) -> None:
    """Of block 0: what its mixture reads depends on nothing that is pruned."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    model.model.layers = model.model.layers[:1]
    first = model.model.layers[0].mlp
    mixture = Mixture(first.gate, first.experts, EXPERTS, {"weight": 0})
    sets = {dropped: list(dropped_sets(EXPERTS, dropped)) for dropped in (2, 4)}
    losses = {dropped: torch.zeros(len(found), dtype=torch.float64) for dropped, found in sets.items()}
    ratios: list[Tensor] = []

    def read(routed: Routed) -> None:
        ratios.append(second_over_first(routed.weight_TK))
        squared_NS = squared_changes(mixture, routed, [*sets[2], *sets[4]], WINDOWS)
        of_batch = squared_NS.sum(dim=0).sqrt()
        losses[2] += of_batch[: len(sets[2])]
        losses[4] += of_batch[len(sets[2]) :]

    with torch.inference_mode(), mixture.watched(read):
        for ids_BT in windows["calibration"].split(WINDOWS):
            model.model(ids_BT, use_cache=False)
    for dropped, found_S in losses.items():
        expected = REFERENCE["runs"][f"naee_layerwise_r{EXPERTS - dropped}"]
        assert found_S.tolist() == pytest.approx(expected["losses_layer0"], rel=1e-4)
        assert sorted({*range(EXPERTS)} - {*sets[dropped][int(found_S.argmin())]}) == expected["kept"][0]
    assert float(torch.cat(ratios).median()) == pytest.approx(REFERENCE["betas"][0], rel=1e-4)


@pytest.mark.golden
def test_skipping(windows: dict[str, Tensor], tmp_path: Path) -> None:
    parts = scored("random", 0.0) | {"prune": {"method": "experts", "sparsity": 0.0, "skip": True}}
    checkpoint = compressed(tmp_path, windows["calibration"], parts, "bookworm-moe-8m")
    spec = CompressionSpec.model_validate(
        {"model": {"id": "bookworm-moe-8m"}, "calibrate": {"dataset": "calibration.txt"}} | parts
    )
    model = load(spec, Sources(MODEL.parent, MODEL.parents[1] / "data"))
    text, run = Calibration(windows["calibration"], "golden"), Run.of(checkpoint, Silent())
    betas = let_skip(model, tmp_path / "model", text, run)
    assert [*betas.values()] == pytest.approx(REFERENCE["betas"], rel=1e-4)
    found = perplexity(tmp_path / "model", windows["heldout"])
    assert found == pytest.approx(REFERENCE["skipping"]["heldout"], rel=1e-3)
