"""The price of one shape for all blocks: by hand, and in a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.four_blocks import ARCHITECTURE, FAMILIES
from tests.helpers.small_models import spec_of
from workers.engine.contracts.facts import AllocationFacts, Units
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.removals.base import removal_of
from workers.engine.removals.narrow_blocks import NarrowBlocks
from workers.engine.removals.widths import kept_units
from workers.engine.report import Report
from workers.engine.reporting.wording import conditions
from workers.engine.sources.resolve import Sources

CHANNELS = {"method": "structured", "units": ["channel"], "sparsity": 0.2, "compensate": False}
# Four blocks of 3 heads and 20 channels; half of the channels of blocks 0 and 1 are worth nothing, the others 1 each.
SCORES = [{"head": [1.0] * 3, "channel": [float(block > 1 or unit > 9) for unit in range(20)]} for block in range(4)]


def price(scores: list[dict[str, list[float]]], **parts: Any) -> tuple[float, float] | None:
    spec = spec_of(**({"prune": CHANNELS, "score": {"method": "magnitude"}} | parts))
    channels = [family for family in FAMILIES if family.kind == "channel"]
    units, sparsity = Units(FAMILIES, scores), spec.prune.target
    assert sparsity is not None
    spread = removal_of(spec).spread(
        spec, AllocationFacts(ARCHITECTURE.layers, {}, units=Units(channels, scores)), sparsity
    )
    widths = kept_units(ARCHITECTURE.layers, FAMILIES, spread, spec.prune, spec.allocate)
    return removal_of(spec).importance_lost(
        spec, ARCHITECTURE, units, NarrowBlocks(ARCHITECTURE.layout, range(4), FAMILIES, widths), sparsity
    )


def test_by_hand() -> None:
    # A block has 16 * (24 + 12 + 12 + 24) + 60 * 16 = 2112 weights; a fifth of them is 8.8 channels of 48: 9 of 20 go.
    # Uniform: worth nothing in blocks 0 and 1, worth 1 in 2 and 3: 18 of 60. Channels have 3840 of 8448 weights.
    # Ranking has 35 to remove: the 20 that are worth nothing, and 15 of the others (16 with the fraction of one).
    found = price(SCORES)
    assert found is not None
    assert found[0] == pytest.approx(18 / 60 * 3840 / 8448)
    assert found[1] in (pytest.approx(15 / 60 * 3840 / 8448), pytest.approx(16 / 60 * 3840 / 8448))


def test_alike_scores_cost_nothing_more() -> None:
    found = price([{"head": [1.0] * 3, "channel": [1.0] * 20}] * 4)
    assert found is not None
    assert found[0] == pytest.approx(found[1], abs=0.02)


@pytest.mark.parametrize(
    ("scores", "parts"),
    [
        (SCORES, {"prune": CHANNELS | {"protect_first": 1}}),
        (SCORES, {"allocate": {"method": "ranking"}}),
        ([{"head": [1.0] * 3, "channel": [-1.0] * 20}] * 4, {}),
        ([{"head": [0.0] * 3, "channel": [1.0] * 20}] * 4, {}),
    ],
    ids=["protected", "different anyway", "negative", "nothing"],
)
def test_has_none(scores: Any, parts: Any) -> None:
    assert price(scores, **parts) is None


@pytest.mark.parametrize("allocate", ["uniform", "ranking"])
def test_is_in_the_report(allocate: str, tiny: Path, sources: Sources, tmp_path: Path) -> None:
    prune = {"method": "structured", "sparsity": 0.35, "compensate": False}
    spec = spec_of(prune=prune, score={"method": "magnitude"}, allocate={"method": allocate})
    report = compress(spec, tmp_path, sources, Silent(), tmp_path / "checkpoint")
    assert report == Report.model_validate_json((tmp_path / "model" / "report.json").read_text())
    assert (report.importance_lost is None) == (allocate == "ranking")
    assert any("would have held" in said for said in conditions(report)) == (allocate == "uniform")
    if report.importance_lost is not None and report.importance_lost_by_ranking is not None:
        assert 0 < report.importance_lost_by_ranking <= report.importance_lost + 0.02 < 0.5
