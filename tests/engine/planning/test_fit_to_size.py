"""Sizes to fit into: met, not overshot, and refused where they cannot be met."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from tests.helpers.machine import LOADS, Load, Machine
from tests.helpers.small_models import SIZES, SaveModel, size_of, spec_of
from tests.helpers.small_models import load as load_model
from workers.engine.contracts.facts import Probe
from workers.engine.contracts.params import AtMost
from workers.engine.contracts.refs import ModelRef
from workers.engine.errors import InvalidSpec, MemoryBudgetTooSmall, SequenceTooLong
from workers.engine.events import Silent
from workers.engine.pipeline import compress
from workers.engine.planning.plan import plan
from workers.engine.removals.decode_times import LatencyTable, decode_time, latency_table
from workers.engine.removals.heads_channels import timed
from workers.engine.removals.narrow_blocks import NarrowBlocks
from workers.engine.removals.outcome import Outcome
from workers.engine.sources.resolve import Sources, resolve_model
from workers.engine.spec import CompressionSpec

CHANNELS = {"parameters": 3 * 32, "bytes": 3 * 32 * 4, "macs": 64 * 3 * 32}
"""Parameters of a channel: a row of gate_proj and up_proj, a column of down_proj."""
FLOOR = {"parameters": 2 * 4096 * 32, "bytes": 4 * 2 * 4096 * 32, "macs": 64 * 4096 * 32}
"""Embedding and head, which stay. The head alone multiplies."""


def fitted(limits: dict[str, float], **parts: Any) -> CompressionSpec:
    prune = {"method": "structured", "at_most": limits, "compensate": False} | parts.pop("prune", {})
    return spec_of(**{"score": {"method": "magnitude"}, "calibrate": None, "prune": prune} | parts)


@pytest.mark.parametrize("share", [0.95, 0.5])
@pytest.mark.parametrize("allocate", ["uniform", "ranking"])
@pytest.mark.parametrize("limit", ["parameters", "bytes", "macs"])
def test_the_result_fits_and_no_more_goes_than_that_takes(
    limit: str, allocate: str, share: float, tiny: Path, sources: Sources, tmp_path: Path
) -> None:
    dense = size_of(resolve_model(ModelRef(id="tiny"), sources))
    wanted = int(FLOOR[limit] + share * (dense[limit] - FLOOR[limit]))
    spec = fitted({limit: wanted}, allocate={"method": allocate})
    report = compress(spec, tmp_path / "out", sources, Silent(), tmp_path / "checkpoint")
    found = size_of(resolve_model(ModelRef(id="model"), Sources(tmp_path / "out", sources.data_dir)))
    # A uniform cut gives back a channel of all three blocks at once. So does a ranking, at worst: what its whole
    # channels leave over is rounded block by block.
    assert wanted - 3 * CHANNELS[limit] < found[limit] <= wanted
    assert report.parameters_after == found["parameters"]
    if allocate == "uniform":
        assert plan(spec, sources).parameters_after == found["parameters"]


def test_of_several_limits_the_tightest_decides(tiny: Path, sources: Sources) -> None:
    dense = size_of(resolve_model(ModelRef(id="tiny"), sources))
    loose = dense["bytes"] - 10 * CHANNELS["bytes"]
    tight = dense["macs"] - 60 * CHANNELS["macs"]
    alone, both = fitted({"macs": tight}), fitted({"macs": tight, "bytes": loose})
    assert plan(both, sources).parameters_after == plan(alone, sources).parameters_after
    assert plan(fitted({"bytes": loose}), sources).parameters_after > (plan(alone, sources).parameters_after or 0)  # type: ignore[operator]


def test_a_model_that_fits_already_is_left_alone(tiny: Path, sources: Sources) -> None:
    found = plan(fitted({"parameters": 10**9}), sources)
    assert found.parameters_after == found.parameters
    assert {layer.target_sparsity for layer in found.layers} == {0.0}


def test_what_cannot_be_met_names_the_limit_and_the_least(tiny: Path, sources: Sources) -> None:
    with pytest.raises(InvalidSpec, match="cannot be cut to parameters 1,000: the smallest with this") as refused:
        plan(fitted({"bytes": 10**9, "parameters": 1000}), sources)
    assert refused.value.field == "/prune/at_most/parameters"
    with pytest.raises(InvalidSpec, match="cannot be cut"):  # nothing may go
        plan(fitted({"parameters": 1000}, prune={"protect_first": 3}), sources)


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ({"at_most": {}}, "at least one of `parameters`, `bytes`, `macs` and"),
        ({"at_most": {"parameters": 0}}, "greater than or equal to 1"),
        ({"at_most": {"parameters": 1}, "sparsity": 0.5}, "either `sparsity`, or `at_most`"),
        ({}, "either `sparsity`, or `at_most`"),
    ],
)
def test_one_target_is_asked_for(prune: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        spec_of(score={"method": "magnitude"}, prune={"method": "structured", **prune})


TABLE = LatencyTable(2.0, {"head": [(1, 3.0), (2, 5.0)], "channel": [(1, 1.0), (25, 3.0), (48, 5.0)]})


def test_times_between_those_measured_are_a_straight_line() -> None:
    # Dense: 2 + 3 blocks of 5 = 17.
    full = {(block, kind): units for block in range(3) for kind, units in (("head", 2), ("channel", 48))}
    assert TABLE.decode_time(full) == 1
    assert TABLE.decode_time({**full, (0, "head"): 1}) == pytest.approx(15 / 17)
    assert TABLE.decode_time({**full, (0, "channel"): 13}) == pytest.approx((17 - 3) / 17)  # half way from 1 to 25: 2 s
    both = {**full, (0, "head"): 1, (0, "channel"): 25}  # what each saves is saved whatever the other does
    assert TABLE.decode_time(both) == pytest.approx((17 - 2 - 2) / 17)


@pytest.mark.parametrize("allocate", ["uniform", "ranking"])
def test_a_decode_step_takes_no_longer_than_asked(
    allocate: str, tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.removals.decode_times.latency_table", lambda *_: TABLE)
    monkeypatch.setattr("workers.engine.checks.tries.decode_time", lambda *_: SimpleNamespace(ratio=0.8))
    spec = fitted({"decode_time": 0.8}, allocate={"method": allocate})
    planned = plan(spec, sources)
    assert planned.parameters_after is None
    assert any("times that the job measures" in warning for warning in planned.warnings) == (allocate == "uniform")
    assert all(("trust" in runtime.note) == (allocate == "ranking") for runtime in planned.runtimes)
    report = compress(spec, tmp_path / "out", sources, Silent(), tmp_path / "checkpoint")
    widths = {
        (layer.block, kind): layer.shape[1] // size
        for layer in report.layers
        for kind, name, size in (("head", "o_proj", 16), ("channel", "down_proj", 1))
        if layer.name.endswith(name)
    }
    assert 0.7 < TABLE.decode_time(widths) <= 0.8
    with pytest.raises(InvalidSpec, match=r"cannot be cut to decode_time 0\.05: the smallest with this"):
        compress(fitted({"decode_time": 0.05}), tmp_path / "two", sources, Silent(), tmp_path / "two-checkpoint")


@pytest.mark.parametrize(
    "config", [LlamaConfig(**SIZES), Qwen3Config(**SIZES | {"head_dim": 16}, use_sliding_window=False)]
)
def test_a_table_is_measured_of_every_family(
    config: PretrainedConfig, save_model: SaveModel, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.model.turns.MOST_S", 0)  # no more rounds than must be
    save_model("tiny", config)
    model = load_model(spec_of(), sources)
    table = latency_table(model, AtMost(decode_time=0.5, tokens=8), True, *timed(model))
    assert {kind: [units for units, _ in points] for kind, points in table.by_units.items()} == {
        "head": [1, 2],
        "channel": [1, 12, 24, 36, 48],
    }
    assert table.outside_s > 0
    for points in table.by_units.values():
        seconds = [second for _, second in points]
        assert seconds == sorted(seconds)
        assert seconds[-1] > 0


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_slow_moment_is_not_one_shapes(
    load: Load, tiny: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 2 s outside the blocks, and for each block 1 s a head and 1 s for 16 channels."""
    machine = Machine(load, random.Random(0), work_s=0.002)

    def seconds_probe(outcome: Outcome, at_most: AtMost) -> Probe:
        units = [
            (kind, left) for (_, kind), left in (outcome.widths if isinstance(outcome, NarrowBlocks) else {}).items()
        ]
        work_s = 2 + sum(left if kind == "head" else left / 16 for kind, left in units)
        probe = machine.probe(1 / work_s)
        return replace(probe, read=lambda: 1 / probe.read())

    monkeypatch.setattr("workers.engine.model.turns.time", SimpleNamespace(monotonic=lambda: machine.now_s))
    monkeypatch.setattr("workers.engine.removals.decode_times._of_one_value", lambda model, outcome: outcome)
    monkeypatch.setattr("workers.engine.removals.decode_times._decode_probe", seconds_probe)
    model = load_model(spec_of(), sources)
    table = latency_table(model, AtMost(decode_time=0.5, tokens=8), True, *timed(model))
    full = {(block, kind): units for block in range(3) for kind, units in (("head", 2), ("channel", 48))}
    halved = {key: units // 2 for key, units in full.items()}
    assert table.decode_time(halved) == pytest.approx((2 + 3 * 2.5) / (2 + 3 * 5), rel=0.05)


def test_the_result_is_timed_in_turn_with_the_dense_model(
    tiny: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.engine.model.turns.MOST_S", 0)
    found = decode_time(load_model(spec_of(), sources), tiny, AtMost(decode_time=0.5, tokens=8), True)
    assert found.rounds >= 10
    assert found.ratio > 0


def test_a_result_that_takes_longer_than_foreseen_is_cut_further(
    tiny: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table foresees a tenth less than what the result takes."""
    monkeypatch.setattr("workers.engine.removals.decode_times.latency_table", lambda *_: TABLE)
    widths: list[dict[tuple[int, str], int]] = []

    def measured(_: Any, folder: Path, __: AtMost, ___: bool) -> Any:
        config = json.loads((folder / "config.json").read_text())
        kept = {"head": config["num_key_value_heads"], "channel": config["intermediate_size"]}
        widths.append({(block, kind): units for block in range(3) for kind, units in kept.items()})
        return SimpleNamespace(ratio=TABLE.decode_time(widths[-1]) / 0.9)

    monkeypatch.setattr("workers.engine.checks.tries.decode_time", measured)
    report = compress(fitted({"decode_time": 0.7}), tmp_path / "out", sources, Silent(), tmp_path / "checkpoint")
    assert report.bound is not None
    broken, held = report.bound.tries
    assert broken.measured > 0.7 * 1.05 >= held.measured
    assert held.predicted == pytest.approx(TABLE.decode_time(widths[-1]))
    assert held.target_sparsity > broken.target_sparsity


def test_a_decode_time_needs_memory_for_whole_models(tiny: Path, sources: Sources) -> None:
    with pytest.raises(MemoryBudgetTooSmall, match="the whole model") as refused:
        plan(fitted({"decode_time": 0.5}, compute={"memory_budget": 501 * 2**20}), sources)
    assert refused.value.field == "/prune/at_most/decode_time"
    plan(fitted({"parameters": 280_000}, compute={"memory_budget": 501 * 2**20}), sources)


def test_a_step_is_timed_within_the_context(tiny: Path, sources: Sources) -> None:
    with pytest.raises(SequenceTooLong, match="no token can follow 128") as refused:
        plan(fitted({"decode_time": 0.5, "tokens": 128}), sources)
    assert refused.value.field == "/prune/at_most/tokens"
