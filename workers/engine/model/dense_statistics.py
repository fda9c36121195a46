"""Statistics of the inputs of the whole dense model, for allocators and unit scores.

Vectors, such as squared means, are a few kilobytes a block, and cached by content. Gram matrices are as large as the
layers: they lie in the checkpoint, block by block, and are collected when the first of them is asked for. I = inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

from safetensors import safe_open

from workers.engine.contracts.facts import LinearStats
from workers.engine.contracts.needed import needed
from workers.engine.contracts.params import OF_INPUTS, Stat
from workers.engine.model.input_statistics import collect
from workers.engine.model.provenance import environment
from workers.engine.model.walk import walk

if TYPE_CHECKING:
    from torch import Tensor

    from workers.engine.model.calibration import Calibration
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.store.run import Run

Statistics = Mapping[str, LinearStats]
"""`block/stream` -> statistics of the dense model."""


def dense_statistics(
    model: LoadedModel,
    calibration: Calibration | None,
    run: Run,
    *,
    needs: Stat,
) -> Statistics:
    """Statistics of the inputs of every layer, as far as `needs` asks for them; empty where it does not."""
    if not needs & (OF_INPUTS | Stat.GRAM):
        return {}
    calibration = needed(calibration, "/calibrate")
    if Stat.GRAM in needs:
        return _Grams(model, calibration, run, needs)
    needs = needs & OF_INPUTS | Stat.INPUT_SQ_MEAN
    asked = ",".join(stat.name or "" for stat in needs)
    key = environment(model) | {"calibration": calibration.key, "needs": asked}
    found = run.cache.tensors("dense-input-statistics", key)
    if found is None:
        found = {
            f"{block}/{stream}#{field}": vector.cpu()
            for block, streams in _collected(model, calibration, run, needs)
            for stream, stats in streams.items()
            for field, vector in _vectors(stats)
        }
        run.cache.keep_tensors("dense-input-statistics", key, found)
    tokens, window_tokens = calibration.windows_NT.numel(), calibration.windows_NT.shape[1]
    of_streams: dict[str, dict[str, Tensor]] = {}
    for name, vector in found.items():
        stream, _, field = name.rpartition("#")
        of_streams.setdefault(stream, {})[field] = vector.to(model.device)
    return {name: LinearStats(tokens, window_tokens, **vectors) for name, vectors in of_streams.items()}


def _vectors(stats: LinearStats) -> Iterator[tuple[str, Tensor]]:
    """(field, its value), of those that hold one number for each input."""
    for field in fields(stats):
        value = getattr(stats, field.name)
        if field.name.endswith("_I") and value is not None:
            yield field.name, value


class _Grams(Statistics):
    """Statistics with Gram matrices, read from the checkpoint one by one."""

    def __init__(self, model: LoadedModel, calibration: Calibration, run: Run, needs: Stat) -> None:
        self._model, self._calibration, self._run = model, calibration, run
        self._needs = needs & OF_INPUTS & ~Stat.INPUT_SQ_MEAN | Stat.GRAM  # squared means are its diagonal

    def __getitem__(self, name: str) -> LinearStats:
        block, _, stream = name.partition("/")
        if stream not in self._model.architecture.streams(int(block)):
            raise KeyError(name)
        if not self._run.checkpoint.grams(int(block)).exists():
            self._collect()
        with safe_open(self._run.checkpoint.grams(int(block)), framework="pt") as file:
            gram_II = file.get_tensor(stream).to(self._model.device)
            vectors = {
                field: file.get_tensor(key).to(self._model.device)
                for key in file.keys()  # noqa: SIM118 - the file is no dictionary
                if (field := key.removeprefix(f"{stream}#")) != key
            }
        count, length = self._calibration.windows_NT.shape
        return LinearStats(
            count * length, length, **({"input_sq_mean_I": gram_II.diagonal()} | vectors), gram_II=gram_II
        )

    def __iter__(self) -> Iterator[str]:
        architecture = self._model.architecture
        return (f"{block}/{stream}" for block in range(architecture.blocks) for stream in architecture.streams(block))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _collect(self) -> None:
        for block, streams in _collected(self._model, self._calibration, self._run, self._needs):
            grams = {stream: needed(stats.gram_II, "Stat.GRAM").cpu() for stream, stats in streams.items()}
            if self._needs != Stat.GRAM:
                grams |= {
                    f"{stream}#{field}": vector.cpu()
                    for stream, stats in streams.items()
                    for field, vector in _vectors(stats)
                }
            self._run.checkpoint.save_grams(block, grams)


def _collected(
    model: LoadedModel, calibration: Calibration, run: Run, needs: Stat
) -> Iterator[tuple[int, dict[str, LinearStats]]]:
    """The streams of each block in turn, in one pass through the dense model."""
    with walk(model, calibration, run.checkpoint.scratch_file) as way:
        found = way.blocks(way.enter(), lambda at: collect(at, needs, advance=at.wanted))
        for block, _, streams in found:
            yield block, streams
            run.events.progress(block + 1, model.architecture.blocks, "dense block")
