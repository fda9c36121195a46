"""Times of a decode step as a function of the blocks' number and widths, measured before anything is cut.

A table of times as ZipLM's (Kurtic et al. 2023, arXiv:2302.04089): a model of a few blocks with some of their heads,
then with some of their channels, less one of none. Times depend on shapes, not on values, so all weights are one
number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from workers.engine.contracts.facts import Probe
from workers.engine.maths.paired import Comparison
from workers.engine.model.loaded import empty_model, load_model, load_result, stock_config
from workers.engine.model.turns import in_turn
from workers.engine.removals.outcome import Outcome, config_after
from workers.engine.store.clock import device_time_s

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workers.engine.contracts.params import AtMost
    from workers.engine.events import Events
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.removals.widths import Widths

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of a block's units that are timed, interpolated linearly. 0 means one unit."""
MOST_BLOCKS = 4
"""Number of blocks timed together: a single one may fit a processor's cache, a whole model does not."""
_STEPS, _ROUNDS, _MARGIN = 8, 10, 0.05
"""Decode steps per timing, least number of timings, and largest width of the interval of the ratio of two models."""


def levels(counts: Sequence[int]) -> list[int]:
    """Of the numbers of units that may stay, those nearest to LEVELS of the largest, ascending."""
    return sorted({min(counts, key=lambda count: abs(count - level * max(counts))) for level in LEVELS})


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of a decode step."""

    outside_s: float
    """Of the parts outside of blocks."""
    by_units: Mapping[str, Sequence[tuple[int, float]]]
    """Kind -> (units that stay, seconds of a block with all units of the other kind), ascending."""

    def decode_time(self, widths: Widths) -> float:
        """Of a model whose blocks have these widths, as a fraction of the dense model's."""
        blocks = {block for block, _ in widths}
        full = {kind: points[-1][0] for kind, points in self.by_units.items()}
        dense = {(block, kind): units for block in blocks for kind, units in full.items()}
        return self._seconds(widths) / self._seconds(dense)

    def log(self, events: Events) -> None:
        for kind, points in self.by_units.items():
            shown = ", ".join(f"{units}: {1000 * seconds:.3g} ms" for units, seconds in points)
            events.log(f"decode step of a block by {kind}s that stay: {shown}")

    def _seconds(self, widths: Widths) -> float:
        """The saving of each kind is taken as independent of the other kind's."""
        full_s = next(iter(self.by_units.values()))[-1][1]
        blocks_s = dict.fromkeys((block for block, _ in widths), full_s)
        for (block, kind), left in widths.items():
            blocks_s[block] -= full_s - _between(self.by_units[kind], left)
        return self.outside_s + sum(max(0.0, block_s) for block_s in blocks_s.values())


def latency_table(
    model: LoadedModel,
    at_most: AtMost,
    resident: bool,
    wanted: Mapping[str, Sequence[int]],
    outcome_of: Callable[[str, int], Outcome],
) -> LatencyTable:
    """Measured on the model's device, in its compute type, with plain transformers.

    Every shape is timed in turn with the full one, so that a slow moment of the machine affects both.
    `resident`: two such models fit in memory. `wanted`: kind -> numbers of units that are timed, ascending to all of a
    block; `outcome_of`: the few blocks that are timed, with so many units of a kind.
    """
    kind, counts = next(iter(wanted.items()))
    whole = outcome_of(kind, counts[-1])
    against_full = _timed_against(model, at_most, resident, whole)
    outside = against_full(Outcome(whole.layout, []))
    full_s, outside_s = outside.dense, min(outside.pruned, outside.dense)
    blocks = len(whole.blocks)
    block_s = (full_s - outside_s) / blocks
    table: dict[str, Sequence[tuple[int, float]]] = {}
    for kind, counts in wanted.items():
        seconds = [(full_s * against_full(outcome_of(kind, units)).ratio - outside_s) / blocks for units in counts[:-1]]
        # Times must not fall as units are added; where they do, it is noise.
        rising = np.maximum.accumulate([min(max(0.0, found_s), block_s) for found_s in seconds]).tolist()
        table[kind] = list(zip(counts, [*rising, block_s], strict=True))
    return LatencyTable(outside_s, table)


@dataclass(frozen=True)
class StepTimes:
    """Seconds of a decode step by a size that is one for the whole model."""

    outside_s: Sequence[tuple[int, float]]
    """(size, seconds of the parts outside of blocks), ascending to that of the dense model."""
    block_s: Sequence[tuple[int, float]]
    """(size, seconds of a block), ascending likewise."""

    def seconds(self, size: int, blocks: int) -> float:
        """Of a model of so many blocks. Times between those measured lie on a straight line."""
        return _between(self.outside_s, size) + blocks * _between(self.block_s, size)

    def log(self, events: Events) -> None:
        for what, points in (("outside of blocks", self.outside_s), ("of a block", self.block_s)):
            shown = ", ".join(f"{size}: {1000 * seconds:.3g} ms" for size, seconds in points)
            events.log(f"decode step {what} by size: {shown}")


def step_times(
    model: LoadedModel,
    at_most: AtMost,
    resident: bool,
    sizes: Sequence[int],
    outcome_of: Callable[[int, Sequence[int]], Outcome],
) -> StepTimes:
    """Measured likewise, a few blocks of every size and none, each in turn with the few of the dense model.

    `sizes`: ascending to the dense model's; `outcome_of`: the structure with a size and these blocks.
    """
    few = range(min(MOST_BLOCKS, model.architecture.blocks))
    against_full = _timed_against(model, at_most, resident, outcome_of(sizes[-1], few))
    outside_s, block_s, full_s = list[float](), list[float](), 0.0
    for size in sizes[::-1]:
        outside = against_full(outcome_of(size, []))
        full_s = full_s or outside.dense
        whole = 1.0 if size == sizes[-1] else against_full(outcome_of(size, few)).ratio
        outside_s.append(full_s * min(outside.ratio, whole))
        block_s.append(full_s * max(0.0, whole - outside.ratio) / len(few))
    # Times must not rise as the model gets smaller; where they do, it is noise.
    falling = (np.minimum.accumulate(found).tolist()[::-1] for found in (outside_s, block_s))
    return StepTimes(*(list(zip(sizes, found, strict=True)) for found in falling))


def _between(points: Sequence[tuple[int, float]], size: int) -> float:
    sizes, seconds = zip(*points, strict=True)
    return float(np.interp(size, sizes, seconds))


def _timed_against(
    model: LoadedModel, at_most: AtMost, resident: bool, whole: Outcome
) -> Callable[[Outcome], Comparison]:
    """A function that times a structure in turn with `whole`."""

    def probes(outcome: Outcome) -> list[Probe]:
        return [_decode_probe(_of_one_value(model, outcome), at_most)]

    def compared(outcome: Outcome) -> Comparison:
        ((_, found),) = in_turn(partial(probes, whole), partial(probes, outcome), resident=resident)
        return found

    return compared


def decode_time(dense: LoadedModel, folder: Path, at_most: AtMost, resident: bool) -> Comparison:
    """Of a decode step of the model in `folder` and of the dense one, both timed in turn. `resident`: both fit."""

    def probes(path: Path) -> list[Probe]:
        load = load_model if path == dense.path else load_result
        return [_decode_probe(load(path, dense.device, dense.dtype), at_most)]

    ((_, found),) = in_turn(partial(probes, dense.path), partial(probes, folder), resident=resident)
    return found


def _decode_probe(model: PreTrainedModel, at_most: AtMost) -> Probe:
    """Seconds of a decode step after the prompt that the spec says."""
    ids_BT = torch.zeros(at_most.batch_size, at_most.tokens, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def read() -> float:
        output = model(input_ids=ids_BT, use_cache=True, logits_to_keep=1)
        started_s = device_time_s(model.device)
        for _ in range(_STEPS):
            output = model(input_ids=ids_BT[:, :1], past_key_values=output.past_key_values, use_cache=True)
        return (device_time_s(model.device) - started_s) / _STEPS

    read()  # to warm up
    return Probe("decode_time", "s", False, _MARGIN, _ROUNDS, "", read)


def _of_one_value(model: LoadedModel, outcome: Outcome) -> PreTrainedModel:
    built = empty_model(stock_config(config_after(model.source.config, outcome)), model.device, model.dtype)
    values = {
        name: torch.full(tensor.shape, 0.01, dtype=model.dtype, device=model.device)
        for name, tensor in built.state_dict().items()
    }
    built.load_state_dict(values, assign=True)
    return built.eval()
