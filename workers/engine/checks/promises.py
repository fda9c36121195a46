"""Promises: the spec's bounds on the result's size, counted in its files, and on the job's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.engine.errors import PromiseBroken
from workers.engine.model.loaded import result_of
from workers.engine.planning.result_size import macs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from workers.engine.contracts.params import AtMost
    from workers.engine.model.loaded import LoadedModel
    from workers.engine.report import StageReport

_BUG = "this is a bug in the engine; the numbers in this message are what to report"


def check_sizes(at_most: AtMost | None, dense: LoadedModel, folder: Path) -> None:
    """Raise PromiseBroken where the files in `folder`, the result, hold more than `at_most` allows."""
    if at_most is None:
        return
    result = result_of(dense, folder)
    counted: dict[str, int] = {
        "parameters": result.source.parameters,
        "bytes": result.source.tensor_bytes,
        "macs": macs(result.architecture, at_most.tokens),
    }
    for name, count in counted.items():
        limit = at_most.limits.get(name)
        if limit is not None and count > limit:
            raise PromiseBroken(
                f"{name}: at most {limit:,.0f} were asked for, and the result has {count:,}",
                _BUG,
                field=f"/prune/at_most/{name}",
            )


def memory_warnings(budget: int | None, stages: Sequence[StageReport]) -> list[str]:
    """A warning where a stage had more memory than the budget, which is used for planning and not enforced. On a CPU
    mapped weight files are among it, which the budget leaves out: how much they ever were is not on record.
    """
    if budget is None:
        return []
    device = any(stage.device_peak_memory_bytes is not None for stage in stages)
    peaks = {
        stage.stage: (stage.device_peak_memory_bytes if device else stage.peak_memory_bytes) or 0 for stage in stages
    }
    name = next((name for name, peak in peaks.items() if peak > budget), None)
    if name is None:
        return []
    held = "allocated on the device" if device else "resident, pages of mapped weight files included"
    over = f"the job had {max(peaks.values()) / 2**20:.0f} MiB {held}, and its budget is {budget / 2**20:.0f} MiB"
    return [f"{over}: the first stage above it was `{name}`"]
