"""Latency: how long a decode step takes by the widths of its blocks, measured before anything is cut.

A table of times as ZipLM's (Kurtic et al. 2023, arXiv:2302.04089): a model of a few blocks with some of their heads,
then with some of their channels, less one of none. Times hang on shapes, not on values, so all weights are one number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workers.engine.architectures.coupled import families
from workers.engine.clock import device_time_s
from workers.engine.outcome import Outcome, config_after
from workers.engine.stages.load import empty_model, load_model, stock_config

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel

    from workers.engine.registry import AtMost
    from workers.engine.stages.load import LoadedModel
    from workers.engine.widths import Widths

LEVELS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Shares of a block's units that are timed; between them a straight line. 0 stands for one unit."""
_BLOCKS = 4
"""Timed together: one alone may stay in a processor's cache, which a whole model does not."""
_STEPS, _ROUNDS = 24, 3
"""Decode steps of a model each time it is timed, and how often that is done."""


@dataclass(frozen=True)
class LatencyTable:
    """Seconds of a decode step."""

    outside_s: float
    """Of what is not in blocks."""
    by_units: Mapping[str, Sequence[tuple[int, float]]]
    """Kind -> (units that stay, seconds of a block with all units of the other kind), ascending."""

    def decode_time(self, widths: Widths) -> float:
        """Of a model whose blocks have these widths, as a fraction of the dense model's."""
        blocks = {block for block, _ in widths}
        full = {kind: points[-1][0] for kind, points in self.by_units.items()}
        dense = {(block, kind): units for block in blocks for kind, units in full.items()}
        return self._seconds(widths) / self._seconds(dense)

    def _seconds(self, widths: Widths) -> float:
        """What each kind saves of a full block is saved whatever the other kind does."""
        full_s = next(iter(self.by_units.values()))[-1][1]
        blocks_s = dict.fromkeys((block for block, _ in widths), full_s)
        for (block, kind), left in widths.items():
            units, seconds = zip(*self.by_units[kind], strict=True)
            blocks_s[block] -= full_s - float(np.interp(left, units, seconds))
        return self.outside_s + sum(max(0.0, block_s) for block_s in blocks_s.values())


def latency_table(model: LoadedModel, at_most: AtMost) -> LatencyTable:
    """Measured on the model's device, in its compute type, with plain transformers."""
    blocks = range(min(_BLOCKS, model.architecture.blocks))
    cut = families(model.architecture, model.source.config, model.source.tensors)[: 2 * len(blocks)]
    kinds = {family.kind: family.units for family in cut}  # all blocks are alike
    wanted = {kind: sorted({max(1, round(level * units)) for level in LEVELS}) for kind, units in kinds.items()}
    times: dict[Any, list[float]] = {}
    for _ in range(_ROUNDS):  # all in turn: a slow moment of the machine is not one shape's
        times.setdefault(None, []).append(_decode_s(model, Outcome([]), at_most))
        for kind in kinds:
            for units in wanted[kind]:
                widths: Widths = {(f.block, f.kind): units if f.kind == kind else f.units for f in cut}
                times.setdefault((kind, units), []).append(_decode_s(model, Outcome(blocks, cut, widths), at_most))
    outside_s = min(times[None])
    block_s = {key: max(0.0, min(found) - outside_s) / len(blocks) for key, found in times.items()}
    full_s = min(block_s[kind, units] for kind, units in kinds.items())
    table: dict[str, Sequence[tuple[int, float]]] = {}
    for kind, counts in wanted.items():
        # More units never take less time, but for noise.
        rising = np.maximum.accumulate([block_s[kind, units] for units in counts[:-1]]).tolist()
        table[kind] = list(zip(counts, [*(min(seconds, full_s) for seconds in rising), full_s], strict=True))
    return LatencyTable(outside_s, table)


def decode_time(dense: LoadedModel, folder: Path, at_most: AtMost) -> float:
    """A decode step of the model in `folder` as a fraction of the dense one's, each at its fastest, in turn."""
    found: dict[Path, list[float]] = {dense.path: [], folder: []}
    for _ in range(_ROUNDS):
        for path, seconds in found.items():
            seconds.append(_step_s(load_model(path, dense.device, dense.dtype), at_most))
    return min(found[folder]) / min(found[dense.path])


def _decode_s(model: LoadedModel, outcome: Outcome, at_most: AtMost) -> float:
    return _step_s(_of_one_value(model, outcome), at_most)


def _step_s(built: PreTrainedModel, at_most: AtMost) -> float:
    """The fastest decode step of a model: whatever else runs only ever adds to it."""
    ids_BT = torch.zeros(at_most.batch_size, at_most.tokens, dtype=torch.long, device=built.device)
    found = []
    with torch.inference_mode():
        output = built(input_ids=ids_BT, use_cache=True, logits_to_keep=1)
        for _ in range(_STEPS):
            started = device_time_s(built.device)
            output = built(input_ids=ids_BT[:, :1], past_key_values=output.past_key_values, use_cache=True)
            found.append(device_time_s(built.device) - started)
    return min(found)


def _of_one_value(model: LoadedModel, outcome: Outcome) -> PreTrainedModel:
    built = empty_model(stock_config(config_after(model.source.config, outcome)), model.device, model.dtype)
    values = {
        name: torch.full(tensor.shape, 0.01, dtype=model.dtype, device=model.device)
        for name, tensor in built.state_dict().items()
    }
    built.load_state_dict(values, assign=True)
    return built.eval()
