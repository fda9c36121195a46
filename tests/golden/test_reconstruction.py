"""Output errors of every matrix of the shipped model: what exact solutions promise over sequential ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.small_models import load
from workers.engine.contracts.facts import LayerTask, LinearStats
from workers.engine.contracts.params import Stat
from workers.engine.maths.second_order import output_error
from workers.engine.maths.selection import dropped
from workers.engine.model.input_statistics import collect
from workers.engine.model.walk import walk
from workers.engine.registry import method_of
from workers.engine.sources.resolve import Sources
from workers.engine.spec import CompressionSpec
from workers.engine.stages.calibrate import calibration
from workers.engine.store.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


def spec_of(prune: dict[str, Any]) -> CompressionSpec:
    return CompressionSpec.model_validate(
        {
            "model": {"id": "bookworm-7m"},
            "calibrate": {"dataset": "calibration.txt", "samples": 8, "sequence_length": 512},
            "prune": prune,
        }
    )


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[tuple[str, Any]], LinearStats]]:
    """(layer name and weight of each layer that reads it, statistics) of the 32 input streams of the dense model."""

    def found() -> Iterator[tuple[list[tuple[str, Any]], LinearStats]]:
        spec, sources = (
            spec_of({"method": "sparsegpt", "sparsity": 0.5}),
            Sources(EXAMPLES / "models", EXAMPLES / "data"),
        )
        model, checkpoint = load(spec, sources), Checkpoint(tmp_path_factory.mktemp("streams"))
        text = calibration(spec, model, sources)
        assert text is not None
        with walk(model, text, checkpoint.scratch_file) as way:
            for block, _, stats_of in way.blocks(
                way.enter(), lambda at: (collect(at, Stat.GRAM, advance=at.wanted), at.dense)
            ):
                statistics, tensors = stats_of
                for stream, stats in statistics.items():
                    layers = model.architecture.streams(block)[stream]
                    yield [(layer.name, tensors[f"{layer.name}.weight"].float()) for layer in layers], stats

    return list(found())


def errors(prune: dict[str, Any], layers: list[tuple[str, Any]], stats: LinearStats) -> list[tuple[float, Any]]:
    """(mean squared output error, zeros) of each layer."""
    params = spec_of(prune).prune
    tasks = [LayerTask(name, weight_OI, params.target or 0) for name, weight_OI in layers]
    pruned = method_of("prune", params).function(tasks, stats, method_of("prune", params).group, params)
    return [
        (output_error(weight_OI, found_OI, stats.gram_II).sum().item(), found_OI == 0)
        for (_, weight_OI), found_OI in zip(layers, pruned, strict=True)
    ]


@pytest.mark.parametrize("kept", [{"sparsity": 0.5}, {"sparsity": 0.7}, {"pattern": "2:4"}], ids=str)
def test_mrp_is_never_worse_than_sparsegpt_on_its_mask(kept: dict[str, Any], streams: Any) -> None:
    compared = 0
    for layers, stats in streams:
        sequential = errors({"method": "sparsegpt"} | kept, layers, stats)
        exact = errors({"method": "mrp", "mask": "sequential"} | kept, layers, stats)
        for (name, _), (theirs, their_mask), (ours, our_mask) in zip(layers, sequential, exact, strict=True):
            assert (their_mask == our_mask).all(), name
            assert ours < theirs, name
            compared += 1
    assert compared == 56


@pytest.mark.golden  # a minute
def test_fista_is_never_worse_than_where_it_starts(streams: Any) -> None:
    for layers, stats in streams:
        found = errors({"method": "fista", "sparsity": 0.5}, layers, stats)
        for (name, weight_OI), (ours, _) in zip(layers, found, strict=True):
            start_OI = weight_OI.masked_fill(dropped(stats.weighted(weight_OI), 0.5, "row", None), 0)
            assert ours < output_error(weight_OI, start_OI, stats.gram_II).sum().item(), name
