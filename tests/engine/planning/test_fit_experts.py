"""Sizes that the experts of a mixture are made narrow for: met, and to within one step of width."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from tests.helpers.mixtures import EXPERTS, save
from tests.helpers.small_models import load, size_of, spec_of
from workers.engine.contracts.params import AtMost
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import InvalidSpec, SequenceTooLong
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.removals.base import removal_of
from workers.engine.removals.decode_times import LatencyTable
from workers.engine.report import Report
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.spec import CompressionSpec

WIDTH, MULTIPLE = 64, 8
WIDE = {"moe_intermediate_size": WIDTH, "intermediate_size": WIDTH}


def fitted(limits: dict[str, float] | None = None, score: str = "magnitude", **prune: Any) -> CompressionSpec:
    of = {"method": "expert_channels", "at_most": limits, "compensate": False}
    given = {name: value for name, value in (of | prune).items() if value is not None}
    text = {"dataset": "calibration.txt", "samples": 4, "sequence_length": 32} if score == "reap" else None
    return spec_of(calibrate=text, score={"method": score}, prune=given)


def sizes(channels: int, sources: Sources, folder: Path) -> dict[str, int]:
    """Counted in the files of a result of so many channels."""
    compress(fitted(channels=channels), folder, sources, Silent(), folder / "checkpoint")
    return size_of(resolve_model(ModelRef(id="model"), Sources(folder, sources.data_dir)))


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_the_result_fits_and_one_step_wider_would_not(family: str, sources: Sources, tmp_path: Path) -> None:
    """Of an expert's own entry, of one beside it for the shared MLP, and of one for both."""
    save(family, sources.models_dir / "tiny", **WIDE)
    narrow, wide = (sizes(channels, sources, tmp_path / str(channels)) for channels in (24, 24 + MULTIPLE))
    for limit in ("parameters", "bytes", "macs"):
        assert narrow[limit] < wide[limit]
        for most, expected in ((narrow[limit], narrow), (wide[limit] - 1, narrow), (wide[limit], wide)):
            assert plan(fitted({limit: most}), sources).parameters_after == expected["parameters"], limit
    asked, out = fitted({"bytes": wide["bytes"] - 1}), tmp_path / "job"
    report = compress(asked, out, sources, Silent(), out / "checkpoint")
    assert size_of(resolve_model(ModelRef(id="model"), Sources(out, sources.data_dir))) == narrow
    assert report.parameters_after == narrow["parameters"]
    assert report.spec["prune"]["channels"] is None, "the report has the spec as it was given"


def test_what_is_small_enough_is_left_alone_and_what_cannot_be_is_refused(sources: Sources) -> None:
    save("mixtral", sources.models_dir / "tiny", **WIDE)
    found = plan(fitted({"parameters": 10**9}), sources)
    assert found.parameters_after == found.parameters
    with pytest.raises(InvalidSpec, match="cannot be cut to bytes 1,000: the smallest with this") as refused:
        plan(fitted({"bytes": 1000}), sources)
    assert refused.value.field == "/prune/at_most/bytes"
    with pytest.raises(SequenceTooLong) as too_long:
        plan(fitted({"decode_time": 0.5, "tokens": 64}), sources)
    assert too_long.value.field == "/prune/at_most/tokens"


def test_one_target_is_asked_for() -> None:
    for given in ({}, {"channels": 8, "at_most": {"bytes": 1}}, {"sparsity": 0.5, "at_most": {"bytes": 1}}):
        with pytest.raises(ValidationError, match="one of `channels`, how many stay, `sparsity` and `at_most`"):
            fitted(**given)


@pytest.mark.parametrize(("family", "least", "step"), [("qwen2_moe", 2, 1), ("glm4_moe", 4, 2)])
def test_as_many_experts_stay_as_fit(family: str, least: int, step: int, sources: Sources) -> None:
    """Of two groups, of one of which both experts of a token are chosen, at least two of each, and as many of each."""
    save(family, sources.models_dir / "tiny")

    def parameters(**prune: Any) -> int:
        asked = fitted(score="reap", method="experts", compensate=None, **prune)
        return plan(asked, sources).parameters_after or 0

    by_count = {count: parameters(experts=count) for count in range(least, EXPERTS + 1, step)}
    for count, found in by_count.items():
        assert parameters(limits={"parameters": found}) == found
        assert parameters(limits={"parameters": by_count.get(count + step, found + 2) - 1}) == found
    with pytest.raises(InvalidSpec, match="cannot be cut to parameters"):
        parameters(limits={"parameters": by_count[least] - 1})


def test_experts_that_fit_are_those_of_the_job(sources: Sources, tmp_path: Path) -> None:
    """NAEE scores sets of as many as go, so the number must be known before."""
    save("mixtral", sources.models_dir / "tiny")
    text = {"dataset": "calibration.txt", "samples": 4, "sequence_length": 32}

    def job(folder: Path, **prune: Any) -> Report:
        asked = spec_of(calibrate=text, score={"method": "naee"}, prune={"method": "experts", **prune})
        return compress(asked, folder, sources, Silent(), folder / "checkpoint")

    five = job(tmp_path / "five", experts=5)
    fits = job(tmp_path / "fits", at_most={"parameters": five.parameters_after})
    assert [(layer.name, layer.shape) for layer in fits.layers] == [(layer.name, layer.shape) for layer in five.layers]


def test_no_time_of_fewer_experts_is_promised(sources: Sources) -> None:
    save("mixtral", sources.models_dir / "tiny")
    for limit in ({"decode_time": 0.5, "tokens": 8}, {"macs": 1000}):
        with pytest.raises(InvalidSpec, match="a token is sent to 2 experts, however many") as refused:
            plan(fitted(limit, method="experts", compensate=None, score="reap"), sources)
        assert refused.value.field == f"/prune/at_most/{next(iter(limit))}"


def test_a_decode_time_is_foreseen_measured_and_cut_further_for(
    sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 s outside of two blocks of 4 s, of which an expert's 64 channels take 3.2: 0.05 a channel."""
    save("mixtral", sources.models_dir / "tiny", **WIDE)
    table = LatencyTable(2.0, {"expert_channel": [(8, 4.0 - 0.05 * 56), (64, 4.0)]})
    monkeypatch.setattr("workers.engine.removals.decode_times.latency_table", lambda *_: table)

    def foreseen(channels: int) -> float:
        return (2 + 2 * (4 - 0.05 * (WIDTH - channels))) / 10

    widths: list[int] = []

    def measured(_: Any, folder: Path, __: AtMost, ___: bool) -> Any:
        widths.append(json.loads((folder / "config.json").read_text())["intermediate_size"])
        return SimpleNamespace(ratio=foreseen(widths[-1]) / 0.9)

    monkeypatch.setattr("workers.engine.checks.tries.decode_time", measured)
    asked = fitted({"decode_time": 0.8, "tokens": 8})
    planned = plan(asked, sources)
    assert planned.parameters_after is None
    assert any("times that the job measures" in warning for warning in planned.warnings)
    report = compress(asked, tmp_path / "out", sources, Silent(), tmp_path / "checkpoint")
    # 0.8 at 44 channels, so 40. The result takes 0.844: the next bound is 0.72, at 36 channels, so 32.
    assert widths == [40, 32]
    assert report.bound is not None
    assert [tried.predicted for tried in report.bound.tries] == pytest.approx([foreseen(40), foreseen(32)])


def test_a_table_is_measured_of_experts(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.model.turns.MOST_S", 0)  # no more rounds than must be
    save("deepseek_v3", sources.models_dir / "tiny", **WIDE)
    asked = fitted({"decode_time": 0.5, "tokens": 8})
    removal, model, times = removal_of(asked), load(asked, sources), []
    decode_time = removal.decode_time(asked, model, True, Silent())
    for channels in (8, 32, 64):
        outcome = removal.outcome(asked.with_count(channels), model.source, model.architecture, None)
        assert outcome is not None
        times.append(decode_time(outcome))
    assert times == sorted(times)
    assert times[-1] == 1
