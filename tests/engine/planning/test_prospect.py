"""The prospect of a job: computed once, from the declarations of methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.small_models import spec_of
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning import plan as planning
from workers.engine.sources.resolve import Sources


def test_is_worked_out_once_a_job(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = planning.prospect_of, []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return real(*given)

    monkeypatch.setattr(planning, "prospect_of", counted)
    spec = spec_of(score={"method": "magnitude"}, calibrate=None)
    report = compress(spec, tmp_path, sources, Silent(), tmp_path / "checkpoint")
    assert len(calls) == 1
    assert report.warnings == planning.plan(spec, sources).warnings


@pytest.mark.parametrize("evaluation", [{"method": "macs", "sequence_length": 1_048_576}, {"method": "size"}])
def test_what_runs_no_model_takes_no_tokens(evaluation: dict[str, Any], tiny: Path, sources: Sources) -> None:
    """A length of `macs` is a factor of a count, not a text: it was taken for a batch of a million tokens."""
    one = {"method": "macs", "sequence_length": 1}
    alone, beside = (
        planning.plan(spec_of(evaluate=evaluations), sources).peak_memory_bytes
        for evaluations in ([one], [one, evaluation])
    )
    assert alone == beside
