"""Sizes that blocks are dropped for, or hidden dimensions: met, and by as little as that takes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import LlamaConfig

from tests.helpers.mixtures import save
from tests.helpers.small_models import SIZES, SaveModel, load, size_of, spec_of
from workers.engine.contracts.params import AtMost
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import InvalidSpec, UnsupportedModel
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.removals.base import removal_of
from workers.engine.removals.decode_times import StepTimes
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.spec import CompressionSpec

LAYERS = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 48 * 32
"""Parameters of the linear layers of one of three blocks of the hidden size 32: q, k and v, o, and the MLP's three."""
BLOCK = LAYERS + 2 * 32
"""With its two norms."""
EMBEDDING = 4096 * 32
ATTENDED = 2 * 64 * 64 * 32
"""Multiplications of scores and weighted values of a block, of 64 tokens."""


def sizes(blocks: int, dimensions: int, tied: bool) -> dict[str, int]:
    """Of a model of so many of the blocks, by hand: but for what attention multiplies, all is proportional to the
    hidden size."""
    matrices = 1 if tied else 2
    parameters = (matrices * EMBEDDING + 32 + blocks * BLOCK) * dimensions // 32
    macs = 64 * (EMBEDDING + blocks * LAYERS) * dimensions // 32 + blocks * ATTENDED
    return {"parameters": parameters, "bytes": 4 * parameters, "macs": macs}


def fitted(method: str, limits: dict[str, float] | None = None, **parts: Any) -> CompressionSpec:
    prune = {"method": method, "at_most": limits} | parts.pop("prune", {})
    prune = {name: value for name, value in prune.items() if value is not None}
    score = (
        {"method": "layer_magnitude", "protect_first": 0, "protect_last": 0}
        if method == "depth"
        else {"method": "magnitude"}
    )
    return spec_of(**{"calibrate": None, "score": score, "prune": prune} | parts)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("method", ["depth", "hidden"])
def test_the_result_fits_and_one_unit_more_would_not(
    method: str, tied: bool, save_model: SaveModel, sources: Sources, tmp_path: Path
) -> None:
    save_model("tiny", LlamaConfig(**SIZES, tie_word_embeddings=tied))
    fits, more = (
        (sizes(2, 32, tied), sizes(3, 32, tied)) if method == "depth" else (sizes(3, 24, tied), sizes(3, 25, tied))
    )
    for limit in ("parameters", "bytes", "macs"):
        for most, expected in ((fits[limit], fits), (more[limit] - 1, fits), (more[limit], more)):
            assert plan(fitted(method, {limit: most}), sources).parameters_after == expected["parameters"], (
                limit,
                most,
            )
    asked, out = fitted(method, {"macs": more["macs"] - 1, "bytes": more["bytes"]}), tmp_path / "job"
    report = compress(asked, out, sources, Silent(), out / "checkpoint")
    assert size_of(resolve_model(ModelRef(id="model"), Sources(out, sources.data_dir))) == fits
    assert report.parameters_after == fits["parameters"]
    assert report.spec["prune"]["at_most"]["bytes"] == more["bytes"], "the report has the spec as it was given"


def test_dimensions_that_stay_are_a_multiple(tiny: Path, sources: Sources) -> None:
    asked = fitted("hidden", {"parameters": sizes(3, 31, False)["parameters"]}, prune={"multiple_of": 8})
    assert plan(asked, sources).parameters_after == sizes(3, 24, False)["parameters"]


@pytest.mark.parametrize("method", ["depth", "hidden"])
def test_what_is_small_enough_is_left_alone(method: str, tiny: Path, sources: Sources) -> None:
    found = plan(fitted(method, {"parameters": sizes(3, 32, False)["parameters"]}), sources)
    assert found.parameters_after == found.parameters


def test_what_cannot_be_met_names_the_limit_and_the_least(tiny: Path, sources: Sources) -> None:
    ends = {"score": {"method": "layer_magnitude", "protect_first": 1, "protect_last": 1}}
    least = (
        (fitted("depth", {"bytes": 1000}), sizes(1, 32, False)),
        (fitted("depth", {"bytes": 1000}, **ends), sizes(2, 32, False)),
        (fitted("hidden", {"bytes": 1000}), sizes(3, 1, False)),
        (fitted("hidden", {"bytes": 1000}, prune={"multiple_of": 8}), sizes(3, 8, False)),
    )
    for asked, size in least:
        with pytest.raises(
            InvalidSpec, match=f"cannot be cut to bytes 1,000: the smallest .* has {size['bytes']:,}"
        ) as no:
            plan(asked, sources)
        assert (no.value.field, bool(no.value.hint)) == ("/prune/at_most/bytes", True)
    protected = {"score": {"method": "layer_magnitude", "protect_first": 2, "protect_last": 2}}
    for limit in ("bytes", "decode_time"):
        with pytest.raises(InvalidSpec, match="4 must stay"):
            plan(fitted("depth", {limit: 0.5 if limit == "decode_time" else 1000}, **protected), sources)


def test_one_target_is_asked_for() -> None:
    for method, own in (("depth", "layers"), ("hidden", "dimensions")):
        for given in ({}, {own: 1, "at_most": {"bytes": 1}}, {"sparsity": 0.5, "at_most": {"bytes": 1}}):
            with pytest.raises(ValidationError, match="the size to fit into"):
                fitted(method, prune=given)


def test_of_blocks_that_differ_any_may_go(sources: Sources, tmp_path: Path) -> None:
    """One MLP and two mixtures, which are larger: as many go as is enough if it is the MLP that goes first."""
    save("glm4_moe", sources.models_dir / "tiny", num_hidden_layers=3)
    source = resolve_model(ModelRef(id="tiny"), sources)
    of_block = [0, 0, 0]
    for name, facts in source.tensors.items():
        if (found := source.layout.split(name)) is not None:
            of_block[found[0]] += facts.parameters
    dense, mixture, other = of_block
    assert dense < mixture == other
    outside = source.parameters - sum(of_block)
    last = {"score": {"method": "layer_magnitude", "protect_first": 0, "protect_last": 2}}
    for most, left in ((2 * mixture, 2), (2 * mixture - 1, 1), (dense + mixture, 1), (mixture, 1)):
        assert plan(fitted("depth", {"parameters": outside + most}), sources).blocks_after == left
    with pytest.raises(InvalidSpec, match=f"has {outside + 2 * mixture:,}"):
        plan(fitted("depth", {"parameters": outside + dense + mixture}, **last), sources)
    out = tmp_path / "out"
    compress(fitted("depth", {"parameters": outside + 2 * mixture}, **last), out, sources, Silent(), out / "checkpoint")
    assert (
        size_of(resolve_model(ModelRef(id="model"), Sources(out, sources.data_dir)))["parameters"]
        == outside + 2 * mixture
    )


def test_a_number_that_no_config_says_is_refused_before(save_model: SaveModel, sources: Sources) -> None:
    save_model("tiny", LlamaConfig(**SIZES, attention_bias=True))
    for limit in ({"parameters": 200_000}, {"decode_time": 0.5, "tokens": 8}):
        with pytest.raises(UnsupportedModel, match="do not divide the hidden size") as refused:
            plan(fitted("hidden", limit), sources)
        assert refused.value.field == "/prune/multiple_of"
        plan(fitted("hidden", limit, prune={"multiple_of": 4}), sources)


TIMES = StepTimes([(1, 1.0), (16, 2.5), (32, 4.1)], [(1, 1.0), (32, 4.1)])
"""Seconds outside and of each of three blocks. Of blocks, the size is 1."""


@pytest.mark.parametrize(("method", "kept"), [("depth", [2, 1]), ("hidden", [23, 19])])
def test_a_decode_time_is_foreseen_measured_and_cut_further_for(
    method: str,
    kept: list[int],
    tiny: Path,
    sources: Sources,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result takes 1.15 times what was foreseen. 1 + blocks of 4 s, or 0.9 + 0.1 a dimension of 4.1 s."""
    monkeypatch.setattr("workers.engine.removals.decode_times.step_times", lambda *_: TIMES)

    def foreseen(count: int) -> float:
        if method == "depth":
            return TIMES.seconds(1, count) / TIMES.seconds(1, 3)
        return TIMES.seconds(count, 3) / TIMES.seconds(32, 3)

    found: list[int] = []

    def measured(_: Any, folder: Path, __: AtMost, ___: bool) -> Any:
        config = json.loads((folder / "config.json").read_text())
        found.append(config["num_hidden_layers" if method == "depth" else "hidden_size"])
        return SimpleNamespace(ratio=1.15 * foreseen(found[-1]))

    monkeypatch.setattr("workers.engine.checks.tries.decode_time", measured)
    spec = fitted(method, {"decode_time": 0.8, "tokens": 8})
    planned = plan(spec, sources)
    assert planned.parameters_after is None
    assert any("times that the job measures" in warning for warning in planned.warnings)
    report = compress(spec, tmp_path / "out", sources, Silent(), tmp_path / "checkpoint")
    assert found == kept
    assert report.bound is not None
    assert [tried.predicted for tried in report.bound.tries] == pytest.approx([foreseen(count) for count in kept])


@pytest.mark.parametrize("method", ["depth", "hidden"])
def test_times_are_measured(method: str, tiny: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.engine.model.turns.MOST_S", 0)  # no more rounds than must be
    asked = fitted(method, {"decode_time": 0.5, "tokens": 8})
    removal, model = removal_of(asked), load(asked, sources)
    decode_time = removal.decode_time(asked, model, True, Silent())
    times = []
    for count in removal.counts(asked, model.source, model.architecture):
        outcome = removal.outcome(asked.with_count(count), model.source, model.architecture, None)
        assert outcome is not None
        times.append(decode_time(outcome))
    assert times == sorted(times, reverse=True)
    assert times[0] == 1
    assert times[-1] > 0
